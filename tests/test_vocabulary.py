"""The small vocabulary: learnt deterministically and in the published format."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import tiktoken

from monkey.data import vocabulary
from monkey.data.vocabulary import byte_order, read_texts, tiktoken_file, train_vocabulary
from monkey.tokenization import SPLIT_PATTERN, QwenTokenizer, read_ranks

ROOT = Path(__file__).parents[1]
SMALL = ROOT / "configs" / "model" / "small"


def test_shipped_file_is_what_its_text_teaches(tmp_path):
    command = ["--text", str(SMALL / "vocabulary.txt"), "--ranks", "512", "--output", str(tmp_path / "qwen.tiktoken")]
    assert vocabulary.main(command) == 0
    assert (tmp_path / "qwen.tiktoken").read_bytes() == (SMALL / "qwen.tiktoken").read_bytes()


def test_first_ranks_are_the_bytes_in_the_published_order():
    published = list(read_ranks(Path(__file__).parent / "golden" / "checkpoint" / "qwen.tiktoken"))[:256]
    assert byte_order() == published
    assert list(read_ranks(SMALL / "qwen.tiktoken"))[:256] == published


def test_every_token_is_two_earlier_ones():
    """tiktoken reaches a token only by joining two others."""
    ranks = read_ranks(SMALL / "qwen.tiktoken")
    for token, rank in list(ranks.items())[256:]:
        halves = [(ranks.get(token[:cut], rank), ranks.get(token[cut:], rank)) for cut in range(1, len(token))]
        assert any(max(pair) < rank for pair in halves), token


def test_digits_stay_alone_and_words_apart(tokenizer):
    for token in list(read_ranks(SMALL / "qwen.tiktoken"))[256:]:
        text = token.decode("utf-8")
        assert not any(character.isdigit() for character in text)
        assert " " not in text[1:] or text.isspace()
    assert tokenizer.tokenize("4711") == [b"4", b"7", b"1", b"1"]


def test_commonest_pair_first_and_ties_in_byte_order():
    assert train_vocabulary(["ab ab ab", "cd", "ef"], 259)[256:] == [b"ab", b" ab", b"cd"]


def test_the_same_bytes_from_two_pairs_are_one_token():
    tokens = train_vocabulary(["aaaa", "aaa", "aa", "aaaaaaa"], 259)
    assert len(set(tokens)) == len(tokens) == 259


def test_order_of_texts_does_not_matter():
    texts = read_texts(SMALL / "vocabulary.txt")[:200]
    shuffled = random.Random(0).sample(texts, len(texts))
    assert train_vocabulary(texts, 300) == train_vocabulary(shuffled, 300)


def test_ids_agree_with_tiktokens_own_reader():
    """The file that we write is one that tiktoken's encoder takes, and the bytes come back."""
    tokens = train_vocabulary(["the cat sat on the mat"], 264)
    ranks = {token: rank for rank, token in enumerate(tokens)}
    encoding = tiktoken.Encoding("small", pat_str=SPLIT_PATTERN, mergeable_ranks=ranks, special_tokens={})
    text = "the cat é 猫 47\n"
    assert encoding.decode(encoding.encode(text)) == text
    assert tiktoken_file(tokens).splitlines()[0] == "IQ== 0"


@pytest.fixture(scope="module")
def tokenizer() -> QwenTokenizer:
    return QwenTokenizer.from_pretrained(SMALL, image_tokens=4)


def test_colours_are_one_token_and_special_ids_follow_the_ranks(tokenizer):
    """A word in pieces is an answer in several steps."""
    for colour in ("red", "green", "blue", "yellow", "purple", "orange", "black", "brown"):
        assert len(tokenizer.tokenize(colour)) == 1, colour
    assert tokenizer.eod_id == 512
    assert (tokenizer.image_start_id, tokenizer.image_end_id, tokenizer.image_pad_id) == (726, 727, 728)


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        (b"short", ["--ranks", "512"], "the text has pairs for"),
        (b"text", ["--ranks", "100"], "--ranks 100 has no room for the 256 single bytes"),
        (b"\n", [], "is empty"),
        (b"caf\xe9", [], "not UTF-8 text at byte 3"),
        (None, [], "no such text file"),
    ],
)
def test_bad_text_is_one_sentence_and_writes_nothing(tmp_path, capsys, content, flags, message):
    text, output = tmp_path / "text.txt", tmp_path / "out.tiktoken"
    if content is not None:
        text.write_bytes(content)
    assert vocabulary.main(["--text", str(text), "--output", str(output), *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert not output.exists()
