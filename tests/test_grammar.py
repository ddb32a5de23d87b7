"""Answers that are held to a JSON schema: they are of its form, whatever the model wants to say."""

from __future__ import annotations

import json
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from monkey import grammar
from monkey.decoding import Decoding
from monkey.grammar import MAX_SCHEMA_BYTES, Grammar, Grammars, SchemaError
from monkey.processing import MonkeyProcessor
from monkey.serving.session import Answerer
from tests.conftest import random_model
from tests.running_server import photo
from tests.small_processor import small_config, small_processor
from tests.small_tokenizers import config_of, llama2, smollm, unigram

pytest.importorskip("llguidance", reason="holding answers to a schema needs llguidance, of the extra `serve`")

RECEIPT = {
    "type": "object",
    "properties": {
        "paid": {"type": "boolean"},
        "currency": {"enum": ["€", "kr", "US$"]},
        "total": {"type": "string", "pattern": r"^\d{1,3}\.\d\d$"},
        "items": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "maxItems": 3},
    },
    "required": ["paid", "currency", "total", "items"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "name": {"enum": ["a", "b"]},
                "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]},
            },
            "required": ["name", "next"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}


def question(text: str, *numbers: int) -> list[dict]:
    parts = [{"type": "image", "image": photo(number)} for number in numbers]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


@pytest.fixture(scope="module")
def answerer():
    with Answerer(random_model(small_config()), small_processor(), max_rows=4) as answerer:
        yield answerer


def is_receipt(text: str) -> bool:
    value = json.loads(text)
    whole, _, cents = value["total"].partition(".")
    return (
        list(value) == ["paid", "currency", "total", "items"]
        and isinstance(value["paid"], bool)
        and value["currency"] in RECEIPT["properties"]["currency"]["enum"]
        and (1 <= len(whole) <= 3 and whole.isdecimal() and len(cents) == 2 and cents.isdecimal())
        and (len(value["items"]) <= 3 and all(number in range(10) for number in value["items"]))
    )


@pytest.mark.parametrize("temperature", [0, 3.0])
def test_an_answer_has_the_form_and_ends_by_itself(answerer, temperature):
    texts = set()
    for seed in range(1 if not temperature else 6):
        decoding = Decoding(200, temperature=temperature, seed=seed, top_p=0.99)
        reply = answerer.chat(question("What?", 0), decoding, schema=RECEIPT)
        assert is_receipt(reply.text)
        assert reply.finish_reason == "stop"
        texts.add(reply.text)
    assert len(texts) == (1 if not temperature else 6)


def test_properties_that_nobody_named_are_written_where_the_schema_asks_for_them_alone(answerer):
    name = {"type": "string", "maxLength": 3}
    inner = {"type": "object", "properties": {"properties": name}, "required": ["properties"]}
    schema = {"type": "object", "properties": {"a": inner, "b": {"$ref": "#/$defs/b"}}, "required": ["a", "b"]}
    schema["$defs"] = {"b": {"type": "array", "items": inner, "minItems": 1, "maxItems": 2}}
    for seed in range(4):
        reply = answerer.chat(question("What?"), Decoding(200, temperature=3.0, seed=seed), schema=schema)
        value = json.loads(reply.text)
        assert set(value) == {"a", "b"}
        assert all(set(one) == {"properties"} for one in (value["a"], *value["b"]))
    assert "additionalProperties" not in schema


@pytest.mark.parametrize(
    ("schema", "start"),
    [
        (
            {"allOf": [{"properties": {key: {"enum": [1]}}, "required": [key]} for key in "xy"], "type": "object"},
            '{"x": 1, "y": 1',
        ),
        (
            {
                "type": "object",
                "properties": {"x": {"enum": [1]}},
                "required": ["x"],
                "anyOf": [{"properties": {"y": {"enum": [2]}}, "required": ["y"]}],
            },
            '{"x": 1, "y": 2',
        ),
        ({"type": "object", "properties": {}, "required": ["zz"]}, '{"zz": '),
        (
            {"type": "object", "properties": {}, "additionalProperties": {"enum": [7]}, "required": ["zz"]},
            '{"zz": 7',
        ),
    ],
    ids=["allOf", "anyOf beside", "required beside", "said to be there"],
)
def test_properties_that_are_named_elsewhere_are_written_too(answerer, schema, start):
    assert answerer.chat(question("What?"), Decoding(16), schema=schema).text.startswith(start)


@pytest.mark.parametrize("family", [smollm, llama2, unigram], ids=lambda family: family.__name__)
def test_every_kind_of_tokenizer_writes_it(family):
    config, tokenizer = config_of(family())
    processor = MonkeyProcessor.from_config(config, tokenizer)
    with Answerer(random_model(config), processor) as answerer:
        decoding = Decoding(200, temperature=2.0, seed=1)
        reply = answerer.chat(question("What?", 0), decoding, form="plain", schema=RECEIPT)
        assert is_receipt(reply.text)


def test_a_schema_may_name_itself(answerer):
    reply = answerer.chat(question("What?"), Decoding(300, temperature=2.0, seed=2), schema=TREE)
    value = json.loads(reply.text)
    while value is not None:
        assert value["name"] in ("a", "b")
        value = value["next"]


def test_an_answer_without_room_is_cut_off_and_says_so(answerer):
    whole = answerer.chat(question("What?", 0), Decoding(200), schema=RECEIPT).text
    reply = answerer.chat(question("What?", 0), Decoding(5), schema=RECEIPT)
    assert whole.startswith(reply.text)
    assert (reply.finish_reason, reply.new_tokens) == ("length", 5)


def test_probabilities_are_those_of_the_model_and_not_of_the_form(answerer):
    reply = answerer.chat(question("What?", 0), Decoding(200, logprobs=1), schema={"const": "x"})
    assert reply.text == '"x"'
    assert any(token != likeliest[0][0] and value < likeliest[0][1] for token, value, likeliest in reply.logprobs)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "integer", "minimum": 5, "maximum": 1}, r"minimum \(5\) is greater than maximum \(1\)"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "incompatible types"),
        ({"$ref": "#"}, "no text can ever have this form"),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, "a text of this form never ends"),
        ({"$ref": "https://a.example/schema.json"}, "a.example"),
        ({"$ref": "file:///etc/passwd"}, "etc/passwd"),
        ({"type": "string", "pattern": "("}, "unclosed group"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"type": "string", "format": "of my own"}, "Unknown format: of my own"),
        ({"not": {"type": "string"}}, r'Unimplemented keys: \["not"\]'),
        (
            {"type": "object", "properties": {f"p{number}": {} for number in range(500)}, "additionalProperties": True},
            "Current row has",
        ),
        ({"enum": ["x" * 40 for _ in range(MAX_SCHEMA_BYTES // 40)]}, f"more than the {MAX_SCHEMA_BYTES:,} allowed"),
        (json.loads('{"items": ' * 70 + "{}" + "}" * 70), "more than 64 levels deep"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_schema_that_cannot_be_held_to_is_refused_in_a_sentence(answerer, schema, words):
    with pytest.raises(SchemaError, match=words) as caught:
        answerer.grammars.compile(schema)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("pattern", ["(x+x+)+y", "((x{1,300}){1,300}){1,300}y"])
def test_a_pattern_over_which_searches_explode_holds_an_answer_all_the_same(answerer, pattern):
    reply = answerer.chat(question("What?", 0), Decoding(12), schema={"type": "string", "pattern": f"^{pattern}$"})
    assert re.fullmatch('"x+(y"?)?', reply.text)


def test_a_schema_that_takes_for_ever_is_given_up_and_its_work_ended(answerer, monkeypatch):
    started, original = [], subprocess.Popen

    def note(*arguments, **settings):
        started.append(original(*arguments, **settings))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", note)
    monkeypatch.setattr(grammar, "COMPILE_SECONDS", 1.0)
    with pytest.raises(SchemaError, match="longer to compile than the 1 seconds allowed"):
        answerer.grammars.compile({"type": "integer", "multipleOf": 1_000_003})
    (process,) = started
    assert process.returncode < 0


def test_a_trial_that_runs_out_of_memory_is_a_refusal_and_another_fault_is_ours(answerer, monkeypatch):
    ends = iter([(-6, "memory allocation of 8 bytes failed"), (1, "MemoryError"), (1, "ImportError: no such thing")])

    def end(command, **settings):
        code, said = next(ends)
        return subprocess.CompletedProcess(command, code, "", said)

    monkeypatch.setattr(subprocess, "run", end)
    for _ in range(2):
        with pytest.raises(SchemaError, match="more memory to compile than is allowed"):
            answerer.grammars.compile({"const": "never compiled"})
    with pytest.raises(RuntimeError, match="failed: ImportError"):
        answerer.grammars.compile({"const": "never compiled"})


def test_a_schema_that_was_compiled_is_not_compiled_again_and_few_are_kept(monkeypatch):
    tried = []
    monkeypatch.setattr(grammar, "_try", lambda written: tried.append(written))
    monkeypatch.setattr(grammar, "KEPT", 2)
    grammars = Grammars(small_processor().tokenizer)
    for value in (1, 1, 2, 3, 3, 1):
        grammars.compile({"const": value})
    assert [json.loads(written)["const"] for written in tried] == [1, 2, 3, 1]


def test_others_of_the_batch_are_not_concerned(answerer, monkeypatch):
    texts = [f"What is number {number}?" for number in range(6)]

    def asked(text: str) -> str:
        return answerer.chat(question(text, 0), Decoding(20)).text

    expected = [asked(text) for text in texts]
    alone = answerer.chat(question("What?", 0), Decoding(200), schema=RECEIPT).text
    original = Grammar.restrict

    def fail_at_the_third(self, logits, end_ids):
        self.steps = getattr(self, "steps", 0) + 1
        if self.is_doomed and self.steps == 3:
            raise SchemaError("too much work")
        original(self, logits, end_ids)

    monkeypatch.setattr(Grammar, "restrict", fail_at_the_third)
    monkeypatch.setattr(Grammar, "is_doomed", False, raising=False)
    with ThreadPoolExecutor(8) as threads:
        plain = [threads.submit(asked, text) for text in texts]
        held = threads.submit(lambda: answerer.chat(question("What?", 0), Decoding(200), schema=RECEIPT).text)
        assert [one.result() for one in plain] == expected
        assert held.result() == alone
        monkeypatch.setattr(Grammar, "is_doomed", True)
        plain = [threads.submit(asked, text) for text in texts]
        doomed = answerer.chat(question("What?", 0), Decoding(200), schema=RECEIPT)
        with pytest.raises(SchemaError, match="too much work"):
            doomed.text  # noqa: B018
        assert doomed.new_tokens == 2
        assert [one.result() for one in plain] == expected


def test_rows_of_the_head_that_are_no_tokens_are_never_chosen():
    held = Grammars(small_processor().tokenizer).compile({"const": "x"})
    logits = torch.zeros(5000)
    held.restrict(logits, [4999])
    allowed = logits.isfinite().nonzero()[:, 0].tolist()
    assert allowed
    assert max(allowed) < small_processor().tokenizer.vocab_size
