"""The parts of the engine: what was read before, tokens that become text, and settings of how they are chosen."""

from __future__ import annotations

import pytest
import torch

from monkey.serving.decoding import Decoding, chosen_tokens, generator_of
from monkey.serving.prefix_store import PrefixStore
from monkey.serving.reply import TextAssembly


def _states(count: int, start: float = 0.0):
    tensor = torch.arange(count).float()[None, :, None] + start
    return (tensor,), (-tensor,)


def test_the_store_finds_the_longest_beginning_across_stretches():
    store = PrefixStore(1000)
    store.keep(1.0, "abcdef", [2, 4, 6], lambda start, end: _states(end - start, start))
    store.keep(1.0, "abxy", [2, 4], lambda start, end: _states(end - start, start))
    (first, second, third) = store.find(1.0, "abcdeq")
    assert [(one.start, one.length) for one in (first, second, third)] == [(0, 2), (2, 2), (4, 1)]
    assert third.keys[0].flatten().tolist() == [4]
    assert [(one.start, one.length) for one in store.find(1.0, "abxz")] == [(0, 2), (2, 1)]
    assert store.find(3.0, "abcd") == []
    assert store.num_bytes == 8 * 8  # eight tokens, keys and values of one fp32 each


def test_the_store_forgets_ends_before_what_they_build_on():
    store = PrefixStore(4 * 8)
    store.keep(1.0, "abcd", [2, 4], lambda start, end: _states(end - start))
    store.keep(1.0, "xy", [2], lambda start, end: _states(end - start))
    assert [(one.start, one.length) for one in store.find(1.0, "abcd")] == [(0, 2)]
    assert len(store.find(1.0, "xy")) == 1
    store.keep(1.0, "0123456789", [10], lambda start, end: _states(end - start))
    assert store.find(1.0, "0123456789") == []
    assert store.num_bytes == 4 * 8


@pytest.mark.parametrize(
    ("pieces", "stop", "expected"),
    [
        ([" ", "\n a", " ", "b ", ""], (), "a b"),
        (["", "a\n", "", "\n", "b"], (), "a\n\nb"),
        ([" ", "\n"], (), ""),
        (["a", "ST", "OP", "b"], ("STOP",), "a"),
        (["a", "ST", "Ox"], ("STOP",), "aSTOx"),
        (["a S", "T"], ("STOP",), "a ST"),
        (["x", "\n", "\nQ:"], ("\nQ:", "\n\n"), "x"),
        (["\n", "\nQ"], ("\n\n",), ""),
        ([], (), ""),
    ],
)
def test_text_comes_stripped_and_ends_before_a_stop_text(pieces, stop, expected):
    assembly = TextAssembly(_Bytes(pieces), stop)
    given = [assembly.push(number) for number in range(len(pieces)) if not assembly.is_stopped]
    assert "".join(given) == "".join(given).strip()
    assert "".join([*given, assembly.finish()]) == expected


def test_a_character_in_several_tokens_comes_when_it_is_whole_and_markers_of_places_stay():
    assembly = TextAssembly(_Bytes([b"\xe4\xbd", b"\xa0", "<ref>", "<|im_end|>", "</ref>", b"\xe4"]))
    given = [assembly.push(number) for number in range(6)]
    assert given == ["", "你", "<ref>", "", "</ref>", ""]
    assert assembly.finish() == "\ufffd"


def test_markers_of_places_are_left_out_on_request():
    assembly = TextAssembly(_Bytes([b"a", "<ref>", b"cat", "</ref>"]), keep_markers=False)
    assert "".join(assembly.push(number) for number in range(4)) + assembly.finish() == "acat"


class _Bytes:
    """A tokenizer whose tokens are these; names in angle brackets are special ones."""

    def __init__(self, tokens):
        self.tokens = tokens

    def convert_ids_to_tokens(self, number):
        token = self.tokens[number]
        return token.encode() if isinstance(token, str) and not token.startswith("<") else token


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"temperature": 1e308}, r"temperature is 1e\+308, and 0, which is greedy, or a number from 0.001 to 100"),
        ({"temperature": 1e-320}, "temperature is 1e-320"),
        ({"temperature": 10**400}, "temperature is 1000"),
        ({"temperature": "1"}, "temperature is '1'"),
        ({"temperature": True}, "temperature is True"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": float("nan")}, "top_p is nan"),
        ({"stop": ("",)}, "stop is"),
        ({"seed": 2**64}, "seed is"),
        ({"seed": 1.5}, "seed is 1.5"),
    ],
)
def test_settings_that_mean_nothing_are_refused_by_name(options, name):
    with pytest.raises(ValueError, match=name):
        Decoding(**{"max_new_tokens": 4, **options})


def test_only_the_likeliest_tokens_that_reach_top_p_are_sampled():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()[None]

    def drawn(top_p: float) -> set[int]:
        decoding = Decoding(max_new_tokens=1, temperature=1.0, seed=0, top_p=top_p)
        generator = generator_of(decoding, torch.device("cpu"))
        return {chosen_tokens(logits, [decoding], [generator])[0] for _ in range(400)}

    assert drawn(1e-320) == drawn(0.4) == {0}
    assert drawn(0.6) == {0, 1}
    assert drawn(0.9) == {0, 1, 2}
    assert drawn(1.0) == {0, 1, 2, 3}
