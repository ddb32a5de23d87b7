"""What was read before: keys and values of the beginnings of prompts, the least recently used forgotten first.

A tree for each growth of the rotary base. Each node holds one stretch of tokens behind its parent's: a prompt up to the
end of an image, or what follows in a conversation. Tokens of an image's span are known by the digest of its pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

from monkey.serving.row_cache import LayerStates

MAX_NODES = 512
"""Most stretches that are kept, however short they are."""


@dataclass(eq=False)
class _Node:
    symbols: tuple[Hashable, ...]
    keys: LayerStates
    values: LayerStates
    parent: _Node | None
    children: list[_Node] = field(default_factory=list)
    last_used: int = 0

    @property
    def num_bytes(self) -> int:
        return sum(x.numel() * x.element_size() for x in (*self.keys, *self.values))


@dataclass(frozen=True)
class Stretch:
    """Keys and values of the `length` tokens from position `start` on."""

    start: int
    length: int
    keys: LayerStates
    values: LayerStates


class PrefixStore:
    """Finds the longest beginning of a prompt that was read before.

    Args:
        max_bytes: of the keys and values that are kept; 0 keeps none.
    """

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._roots: dict[float, _Node] = {}
        self._nodes: list[_Node] = []
        self._clock = count(1)

    def clear(self) -> None:
        self._roots, self._nodes, self.num_bytes = {}, [], 0

    def find(self, growth: float, symbols: Sequence[Hashable]) -> list[Stretch]:
        """Stretches that make up the longest known beginning of `symbols`, in their order.

        Args:
            growth: of the rotary base, which keys depend on.
            symbols: each token of a prompt, or the digest of the image that it belongs to.
        """
        stretches: list[Stretch] = []
        for node, start, length in self._path(growth, symbols):
            if length == len(node.symbols):  # one that only begins alike goes on being forgotten
                node.last_used = next(self._clock)
            stretches.append(
                Stretch(
                    start,
                    length,
                    tuple(x[:, :length] for x in node.keys),
                    tuple(x[:, :length] for x in node.values),
                )
            )
        return stretches

    def keep(
        self,
        growth: float,
        symbols: Sequence[Hashable],
        ends: Sequence[int],
        read: Callable[[int, int], tuple[LayerStates, LayerStates]],
    ) -> None:
        """Remember a beginning, in stretches that end at `ends`; `read(start, end)` gives the keys and values."""
        if not self.max_bytes:
            return
        node = self._roots.setdefault(growth, _Node((), (), (), None))
        known = 0
        for found, start, length in self._path(growth, symbols):
            if length < len(found.symbols):
                break
            node, known = found, start + length
            node.last_used = next(self._clock)
        for end in ends:
            if end <= known:
                continue
            keys, values = read(known, end)
            new = _Node(tuple(symbols[known:end]), keys, values, node, last_used=next(self._clock))
            if new.num_bytes > self.max_bytes:
                break
            node.children.append(new)
            self._nodes.append(new)
            self.num_bytes += new.num_bytes
            node, known = new, end
        self._forget()

    def _path(self, growth: float, symbols: Sequence[Hashable]) -> Iterator[tuple[_Node, int, int]]:
        """Nodes that `symbols` begin with, each with its first position and how many of its tokens they share."""
        node, start = self._roots.get(growth), 0
        while node is not None:
            best, length = None, 0
            for child in node.children:
                shared = _shared(child.symbols, symbols, start)
                if shared > length:
                    best, length = child, shared
            if best is None:
                return
            yield best, start, length
            start += length
            node = best if length == len(best.symbols) else None

    def _forget(self) -> None:
        while self.num_bytes > self.max_bytes or len(self._nodes) > MAX_NODES:
            oldest = min((node for node in self._nodes if not node.children), key=lambda node: node.last_used)
            oldest.parent.children.remove(oldest)
            self._nodes.remove(oldest)
            self.num_bytes -= oldest.num_bytes


def _shared(stretch: tuple[Hashable, ...], symbols: Sequence[Hashable], start: int) -> int:
    """How many of a stretch's tokens `symbols` have from `start` on."""
    if tuple(symbols[start : start + len(stretch)]) == stretch:
        return len(stretch)
    length = 0
    for one, other in zip(stretch, symbols[start:], strict=False):
        if one != other:
            break
        length += 1
    return length
