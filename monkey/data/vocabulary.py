"""Trains a small byte-level BPE vocabulary in tiktoken's format: `base64-token rank` a line, ranks from 0 without gaps.

python -m monkey.data.vocabulary --text configs/model/small/vocabulary.txt --ranks 512 \
    --output configs/model/small/qwen.tiktoken

Byte-pair encoding after Sennrich et al. (arXiv 1508.07909) over the published split pattern, so that no token crosses a
word and every digit stays alone. The first 256 ranks are the single bytes in GPT-2's order, as in the published file.
"""

from __future__ import annotations

import base64
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path

import regex

from monkey.cli import ArgumentParser, run_program
from monkey.journal import write_atomic

Pair = tuple[bytes, bytes]


def byte_order() -> list[bytes]:
    """The 256 single bytes: those that print in Latin-1 first, then the others, as GPT-2 numbers them."""
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [bytes([value]) for value in [*printing, *(value for value in range(256) if value not in printing)]]


def train_vocabulary(texts: Iterable[str], ranks: int) -> list[bytes]:
    """Tokens in the order of their ranks, learnt from texts that are each split on their own.

    The commonest pair is merged first; of equally common ones the first in byte order, so that the result depends on
    nothing but the texts. Raises ValueError where the texts have fewer pairs than the ranks ask for.
    """
    from monkey.tokenization import SPLIT_PATTERN

    tokens = byte_order()
    if ranks < len(tokens):
        raise ValueError(f"--ranks {ranks} has no room for the {len(tokens)} single bytes")
    words = Counter(word for text in texts for word in regex.findall(SPLIT_PATTERN, unicodedata.normalize("NFC", text)))
    split = {word: [bytes([value]) for value in word.encode("utf-8")] for word in words}
    known = set(tokens)
    while len(tokens) < ranks:
        pair = _commonest_pair(words, split)
        if pair is None:
            raise ValueError(f"the text has pairs for {len(tokens)} ranks, not for --ranks {ranks}; give more text")
        split = {word: _merged(pieces, pair) for word, pieces in split.items()}
        # Two different pairs can spell the same bytes; the second adds no token.
        if b"".join(pair) not in known:
            tokens.append(b"".join(pair))
            known.add(tokens[-1])
    return tokens


def _commonest_pair(words: Counter[str], split: dict[str, list[bytes]]) -> Pair | None:
    counts: Counter[Pair] = Counter()
    for word, pieces in split.items():
        for pair in pairwise(pieces):
            counts[pair] += words[word]
    return min(counts, key=lambda pair: (-counts[pair], pair), default=None)


def _merged(pieces: list[bytes], pair: Pair) -> list[bytes]:
    """The pieces with every occurrence of the pair joined, from the left."""
    joined: list[bytes] = []
    place = 0
    while place < len(pieces):
        if tuple(pieces[place : place + 2]) == pair:
            joined.append(b"".join(pair))
            place += 2
        else:
            joined.append(pieces[place])
            place += 1
    return joined


def tiktoken_file(tokens: Sequence[bytes]) -> str:
    """The content of a `.tiktoken` file."""
    return "".join(f"{base64.b64encode(token).decode('ascii')} {rank}\n" for rank, token in enumerate(tokens))


def read_texts(file: Path) -> list[str]:
    """The lines of a text file, each a text of its own. Raises ValueError where it is empty or not UTF-8."""
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such text file")
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text at byte {error.start}; save the file as UTF-8") from None
    texts = [line for line in lines if line]
    if not texts:
        raise ValueError(f"{file}: is empty")
    return texts


def main(arguments: Sequence[str] | None = None) -> int:
    parser = ArgumentParser(prog="python -m monkey.data.vocabulary", description="Trains a small vocabulary.")
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="text files, one text a line")
    parser.add_argument("--ranks", type=int, default=512, help="tokens, the 256 single bytes included (default 512)")
    parser.add_argument("--output", type=Path, required=True, help="the .tiktoken file to write")
    flags = parser.parse_args(arguments)

    def train() -> None:
        tokens = train_vocabulary([text for file in flags.text for text in read_texts(file)], flags.ranks)
        write_atomic(flags.output, tiktoken_file(tokens))
        print(f"wrote {len(tokens)} ranks to {flags.output}")

    return run_program(train)


if __name__ == "__main__":
    sys.exit(main())
