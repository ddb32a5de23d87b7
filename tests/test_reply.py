"""The parts of the engine: what was read before, tokens that become text, and settings of how they are chosen."""

from __future__ import annotations

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from monkey import kv_cache
from monkey.decoding import Decoding, choose_tokens, make_generator, penalise
from monkey.kv_cache import PrefixBlock, PrefixStore
from monkey.reply import Detokenizer, Reply


def kept(store, text: str, ends, ntk_alpha: float = 1.0) -> None:
    """Read a text into a store, in blocks that end at `ends`; keys and values are its positions."""
    block = store.find(ntk_alpha, text)
    for end in ends:
        start = block.end if block else 0
        if end > start:
            block = PrefixBlock(tuple(text[start:end]), block)
            states = torch.arange(start, end).float()[None, None, :, None]
            block.record(states, -states)
            store.insert(ntk_alpha, block)
    store.trim(set())


def found(store, text: str, ntk_alpha: float = 1.0) -> list[tuple[int, int]]:
    block = store.find(ntk_alpha, text)
    return [(block.start, len(block)) for block in block.chain] if block else []


def test_the_store_finds_the_longest_beginning_across_blocks(monkeypatch):
    monkeypatch.setattr(kv_cache, "SHORTEST_REUSE", 1)
    store = PrefixStore(1000)
    kept(store, "abcdef", [2, 4, 6])
    kept(store, "abxy", [2, 4])
    assert store.num_bytes == 8 * 8  # eight tokens, keys and values of one fp32 each
    assert found(store, "abcdeq") == [(0, 2), (2, 2), (4, 1)]
    assert store.find(1.0, "abcdeq").keys[0].flatten().tolist() == [4]
    assert found(store, "abxz") == [(0, 2), (2, 1)]
    assert found(store, "abcd", 3.0) == []
    assert store.num_bytes == 10 * 8  # the part of a block that went on differently is one of its own
    assert found(store, "abcdef") == [(0, 2), (2, 2), (4, 2)]


def test_the_store_forgets_ends_before_what_they_build_on_and_nothing_in_use():
    store = PrefixStore(4 * 8)
    kept(store, "abcd", [2, 4])
    kept(store, "xy", [2])
    assert found(store, "abcd") == [(0, 2)]
    assert found(store, "xy") == [(0, 2)]
    used = store.find(1.0, "xy")
    kept(store, "0123456789", [10])
    assert found(store, "0123456789") == []
    assert store.num_bytes == 4 * 8
    store.max_bytes = 0
    store.trim({used})
    assert store.num_bytes == 2 * 8


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
    detokenizer = Detokenizer(_Bytes(pieces), stop)
    given = [detokenizer.push(number) for number in range(len(pieces)) if not detokenizer.is_stopped]
    assert "".join(given) == "".join(given).strip()
    assert "".join([*given, detokenizer.finish()]) == expected


def test_a_character_in_several_tokens_comes_when_it_is_whole_and_markers_of_places_stay():
    detokenizer = Detokenizer(_Bytes([b"\xe4\xbd", b"\xa0", "<ref>", "<|im_end|>", "</ref>", b"\xe4"]))
    given = [detokenizer.push(number) for number in range(6)]
    assert given == ["", "你", "<ref>", "", "</ref>", ""]
    assert detokenizer.finish() == "\ufffd"


def test_markers_of_places_are_left_out_on_request():
    detokenizer = Detokenizer(_Bytes([b"a", "<ref>", b"cat", "</ref>"]), keep_markers=False)
    assert "".join(detokenizer.push(number) for number in range(4)) + detokenizer.finish() == "acat"


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
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": 1e308}, r"temperature is 1e\+308, and 0, which is greedy, or a number from 0.001 to 100"),
        ({"temperature": 1e-320}, "temperature is 1e-320"),
        ({"temperature": "1"}, "temperature is '1'"),
        ({"temperature": True}, "temperature is True"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": float("nan")}, "top_p is nan"),
        ({"stop": ("",)}, "stop is"),
        ({"seed": 2**64}, "seed is"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"top_k": -1}, "top_k is -1"),
        ({"top_k": True}, "top_k is True"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"frequency_penalty": 2.5}, "frequency_penalty is 2.5, and a number from -2 to 2"),
        ({"presence_penalty": float("nan")}, "presence_penalty is nan"),
        ({"logprobs": 21}, "logprobs is 21"),
    ],
)
def test_settings_that_mean_nothing_are_refused_by_name(options, name):
    with pytest.raises(ValueError, match=name):
        Decoding(**{"max_new_tokens": 4, **options})


def test_only_the_likeliest_tokens_that_reach_top_p_are_sampled():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()[None]

    def drawn(top_p: float) -> set[int]:
        decoding = Decoding(max_new_tokens=1, temperature=1.0, seed=0, top_p=top_p)
        generator = make_generator(decoding, torch.device("cpu"))
        return {choose_tokens(logits, [decoding], [generator])[0] for _ in range(400)}

    assert drawn(1e-320) == drawn(0.4) == {0}
    assert drawn(0.6) == {0, 1}
    assert drawn(0.9) == {0, 1, 2}
    assert drawn(1.0) == {0, 1, 2, 3}


def test_whoever_listens_is_told_what_came_before_and_what_comes():
    reply, told = Reply(1), []
    reply.put("a")
    reply.listen(told.append)
    reply.put("b")
    reply.end("stop")
    assert told == ["a", "b", None]
    assert reply.finish_reason == "stop"


def test_only_so_many_of_the_likeliest_tokens_are_sampled():
    logits = torch.tensor([0.05, 0.5, 0.15, 0.3]).log()[None]

    def drawn(top_k: int, top_p: float = 1.0) -> set[int]:
        decoding = Decoding(max_new_tokens=1, temperature=1.0, seed=0, top_k=top_k, top_p=top_p)
        generator = make_generator(decoding, torch.device("cpu"))
        return {choose_tokens(logits, [decoding], [generator])[0] for _ in range(400)}

    assert drawn(1) == {1}
    assert drawn(2) == {1, 3}
    assert drawn(0) == drawn(9) == {0, 1, 2, 3}
    # Of the two that are left the first has 5/8.
    assert drawn(2, 0.6) == {1}


def test_penalties_are_those_of_transformers_and_of_openai():
    prompt, answer = [3, 1], [0, 4, 4]
    logits = torch.tensor([2.0, -1.0, 0.5, 3.0, -2.0, 1.0])
    expected = RepetitionPenaltyLogitsProcessor(1.5)(torch.tensor([prompt + answer]), logits[None].clone())[0]
    given = logits.clone()
    penalise(given, Decoding(1, repetition_penalty=1.5), prompt, answer)
    assert given.tolist() == expected.tolist()
    given = logits.clone()
    penalise(given, Decoding(1, frequency_penalty=0.5, presence_penalty=0.25), prompt, answer)
    assert given.tolist() == [1.25, -1.0, 0.5, 3.0, -3.25, 1.0]
