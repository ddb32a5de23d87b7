"""What known clients send beyond a plain chat: forms of answers, several of them, probabilities, OpenAI's responses.

The bodies are those that the clients of docs/serving.md were seen to send.
"""

from __future__ import annotations

import importlib.util
import json
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from monkey import grammar
from monkey.grammar import Grammar, SchemaError
from monkey.reply import Logprob
from monkey.serving.protocol import told_logprobs
from monkey.serving.server import Limits
from monkey.serving.session import Answerer
from tests.running_server import asking, data_uri, held, image_part, photo, running, talkative_model, text_part, until
from tests.small_processor import small_processor
from tests.small_tokenizers import config_of, llama2, smollm, unigram

NEEDS_GRAMMARS = pytest.mark.skipif(
    importlib.util.find_spec("llguidance") is None, reason="holding answers to a schema needs llguidance"
)
TOTAL = {
    "type": "object",
    "properties": {"total": {"type": "string", "pattern": r"^\d{1,3}\.\d\d$"}, "paid": {"enum": ["cash", "card"]}},
    "required": ["total", "paid"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def server():
    with (
        Answerer(talkative_model(), small_processor(), name="tiny", max_rows=4) as answerer,
        running(answerer) as server,
    ):
        yield server


def posted(server, path: str = "chat/completions", /, **body: Any) -> tuple[int, Any]:
    """Status and JSON of an answer, or its events with their names."""
    if path == "chat/completions":
        body = {"messages": [{"role": "user", "content": asking("What is the total?", 0)}], "max_tokens": 8, **body}
    with server.client() as client:
        reply = client._client.post(f"{server.url}/{path}", json={"model": "tiny", **body}, timeout=60)
    if "event-stream" not in reply.headers["content-type"]:
        return reply.status_code, reply.json()
    events = []
    for block in reply.text.strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n"))
        events.append((lines.get("event"), lines["data"] if lines["data"] == "[DONE]" else json.loads(lines["data"])))
    return reply.status_code, events


def text_of(server, **body: Any) -> str:
    status, told = posted(server, **body)
    assert status == 200, told
    return told["choices"][0]["message"]["content"]


def refused(server, path: str = "chat/completions", /, **body: Any) -> dict:
    status, told = posted(server, path, **body)
    assert status == 400
    assert "\n" not in told["error"]["message"]
    return told["error"]


def wrapped(schema: dict, **more: Any) -> dict:
    return {"type": "json_schema", "json_schema": {"name": "Receipt", "schema": schema, **more}}


class TestForms:
    pytestmark = NEEDS_GRAMMARS

    @pytest.mark.parametrize(
        "form",
        [
            # openai.parse(), LangChain, LiteLLM
            wrapped({**TOTAL, "title": "Receipt", "description": "What a receipt says."}, strict=True),
            # zodResponseFormat and the AI SDK
            wrapped({**TOTAL, "$schema": "http://json-schema.org/draft-07/schema#"}, strict=True, description=None),
            # instructor's JSON_SCHEMA
            wrapped({**TOTAL, "required": ["total", "paid"]}),
        ],
        ids=["openai", "zod", "instructor"],
    )
    @pytest.mark.parametrize("is_stream", [False, True])
    def test_an_answer_is_json_of_the_schema(self, server, form, is_stream):
        status, told = posted(server, response_format=form, max_tokens=60, stream=is_stream)
        assert status == 200, told
        if is_stream:
            choices = [chunk["choices"][0] for _, chunk in told[:-1]]
            text = "".join(choice["delta"].get("content", "") for choice in choices)
            reason = choices[-1]["finish_reason"]
        else:
            (choice,) = told["choices"]
            text, reason = choice["message"]["content"], choice["finish_reason"]
        value = json.loads(text)
        assert list(value) == ["total", "paid"]
        assert (float(value["total"]) < 1000, value["paid"] in ("cash", "card"), reason) == (True, True, "stop")

    def test_json_object_is_an_object_and_text_is_any(self, server):
        assert text_of(server, response_format={"type": "json_object"}).startswith("{")
        assert text_of(server, response_format={"type": "text"}) == text_of(server)

    def test_an_answer_without_room_for_its_form_says_length(self, server):
        _, told = posted(server, response_format=wrapped(TOTAL), max_tokens=5)
        (choice,) = told["choices"]
        assert (choice["finish_reason"], told["usage"]["completion_tokens"]) == ("length", 5)
        assert choice["message"]["content"].startswith("{")

    @pytest.mark.parametrize(
        ("schema", "words"),
        [
            ({"$ref": "#"}, "no text can ever have this form"),
            ({"type": "integer", "minimum": 2, "maximum": 1}, "minimum (2) is greater than maximum (1)"),
            ({"type": "string", "pattern": "(?<=a)b"}, "look-around"),
            ({"enum": ["x" * 70_000]}, "more than the 65,536 allowed"),
            (json.loads('{"items": ' * 70 + "{}" + "}" * 70), "more than 64 levels deep"),
        ],
        ids=lambda value: str(value)[:30],
    )
    def test_a_schema_that_cannot_be_held_to_is_refused_by_its_field(self, server, schema, words):
        error = refused(server, response_format=wrapped(schema))
        assert (error["code"], error["param"]) == ("invalid_json_schema", "response_format.json_schema.schema")
        assert words in error["message"]
        form = {"type": "json_schema", "name": "x", "schema": schema}
        assert refused(server, "responses", input="Hello", text={"format": form})["param"] == "text.format.schema"

    def test_sixteen_others_are_answered_as_ever_beside_schemas_that_explode_or_fail(self, server, monkeypatch):
        monkeypatch.setattr(grammar, "COMPILE_SECONDS", 2.0)
        original, doomed = Grammar.restrict, {"const": "doomed"}
        posted(server, response_format=wrapped(doomed))

        def fail_midway(self, logits, end_ids):
            self.steps = getattr(self, "steps", 0) + 1
            if self.steps == 4:
                raise SchemaError("too much work")
            original(self, logits, end_ids)

        questions = [f"What is number {number}?" for number in range(16)]

        def ask(text: str) -> str:
            return text_of(server, messages=[{"role": "user", "content": asking(text, 0)}], max_tokens=12)

        expected = [ask(text) for text in questions]
        monkeypatch.setattr(Grammar, "restrict", fail_midway)
        hostile = [{"type": "integer", "multipleOf": 1_000_003 + number} for number in range(2)]
        with ThreadPoolExecutor(20) as threads:
            bad = [threads.submit(refused, server, response_format=wrapped(schema)) for schema in (*hostile, doomed)]
            streamed = threads.submit(posted, server, response_format=wrapped(doomed), stream=True)
            good = [threads.submit(ask, text) for text in questions]
            assert [answer.result() for answer in good] == expected
            errors = [answer.result() for answer in bad]
        assert [error["code"] for error in errors] == ["invalid_json_schema"] * 3
        assert all("longer to compile than the 2 seconds allowed" in error["message"] for error in errors[:2])
        assert "too much work" in errors[2]["message"]
        status, events = streamed.result()
        assert (status, events[-1][1]["error"]["code"]) == (200, "invalid_json_schema")


def tool(name: str, schema: dict | None = None) -> dict:
    return {"type": "function", "function": {"name": name, "description": "x", "parameters": schema, "strict": True}}


class TestTools:
    """A tool that must be called is a form of the answer, and how instructor and LangChain ask for one."""

    CHOICES = ("required", {"type": "function", "function": {"name": "Receipt"}})

    @NEEDS_GRAMMARS
    @pytest.mark.parametrize("choice", CHOICES, ids=str)
    def test_the_one_that_must_be_called_gets_its_arguments(self, server, choice):
        tools = [tool("Receipt", TOTAL)] if choice == "required" else [tool("Other"), tool("Receipt", TOTAL)]
        settings = {"tools": tools, "tool_choice": choice, "parallel_tool_calls": False, "max_tokens": 60}
        status, told = posted(server, **settings)
        assert status == 200, told
        message = told["choices"][0]["message"]
        (call,) = message["tool_calls"]
        assert (message["content"], call["type"], call["function"]["name"]) == (None, "function", "Receipt")
        assert list(json.loads(call["function"]["arguments"])) == ["total", "paid"]
        _, events = posted(server, **settings, stream=True)
        deltas = [chunk["choices"][0]["delta"] for _, chunk in events[:-1]]
        pieces = [piece for delta in deltas for piece in delta.get("tool_calls", ())]
        assert "".join(piece["function"]["arguments"] for piece in pieces) == call["function"]["arguments"]
        assert [piece.get("id") is None for piece in pieces] == [False] + [True] * (len(pieces) - 1)
        assert pieces[0]["function"]["name"] == "Receipt"

    def test_tools_that_may_not_be_called_change_nothing(self, server):
        assert text_of(server, tools=[tool("f")], tool_choice="none") == text_of(server)

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"tools": [tool("f")]}, "tools"),
            ({"tools": [tool("f")], "tool_choice": "auto"}, "tools"),
            ({"tools": [tool("f"), tool("g")], "tool_choice": "required"}, "tool_choice"),
            ({"tools": [tool("f")], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
            ({"tools": [tool("f")], "tool_choice": "any"}, "tool_choice"),
            (
                {"tools": [tool("f")], "tool_choice": {"type": "function", "function": {"nope": 1}}},
                "tool_choice.function",
            ),
            ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tools.0"),
            ({"tools": [{**tool("f"), "nope": 1}], "tool_choice": "required"}, "tools.0.nope"),
            ({"tools": [tool("f", {"not": {}})], "tool_choice": "required"}, "tools.0.function.parameters"),
        ],
        ids=lambda value: str(value)[:60],
    )
    def test_others_are_refused(self, server, fields, param):
        error = refused(server, **fields)
        if "not" in str(fields):
            pytest.importorskip("llguidance", reason="holding answers to a schema needs llguidance")
        assert error["param"].startswith(param)


class TestSeveral:
    def test_answers_are_as_many_as_were_asked_for_with_seeds_that_count_up(self, server):
        settings = {"temperature": 1.0, "max_tokens": 6}
        alone = [text_of(server, seed=seed, **settings) for seed in (7, 8, 9)]
        status, told = posted(server, n=3, seed=7, **settings)
        assert (status, [choice["index"] for choice in told["choices"]]) == (200, [0, 1, 2])
        assert [choice["message"]["content"] for choice in told["choices"]] == alone
        assert len(set(alone)) == 3
        assert told["usage"]["completion_tokens"] == 18
        assert told["usage"]["total_tokens"] == told["usage"]["prompt_tokens"] + 18
        _, events = posted(server, n=3, seed=7, stream=True, stream_options={"include_usage": True}, **settings)
        *chunks, (_, usage), (_, done) = events
        choices = [chunk["choices"][0] for _, chunk in chunks]
        for index, text in enumerate(alone):
            own = [choice for choice in choices if choice["index"] == index]
            assert own[0]["delta"]["role"] == "assistant"
            assert "".join(choice["delta"].get("content", "") for choice in own) == text
            assert [choice["finish_reason"] for choice in own][-2:] == [None, "length"]
        assert (usage["usage"]["completion_tokens"], done) == (18, "[DONE]")

    def test_more_than_there_are_rows_is_refused_and_each_takes_a_place_in_line(self):
        with (
            Answerer(talkative_model(), small_processor(), name="tiny", max_rows=2) as answerer,
            running(answerer, Limits(queue=1)) as server,
            held(server.engine) as gate,
            ThreadPoolExecutor(1) as threads,
        ):
            assert "n is 3, and at most 2 answers" in refused(server, n=3)["message"]
            both = threads.submit(posted, server, n=2)
            until(lambda: server.engine.running + server.engine.waiting == 2)
            assert server.api.admission.in_flight == 2
            assert posted(server, n=2)[0] == 429
            gate.open()
            assert len(both.result()[1]["choices"]) == 2
            until(lambda: server.api.admission.in_flight == 0)
            assert b"monkey_completion_tokens_total 16.0" in server.api.metrics.text()


class TestProbabilities:
    def test_each_token_has_its_own_and_those_of_the_likeliest(self, server):
        status, told = posted(server, logprobs=True, top_logprobs=3)
        assert status == 200
        (choice,) = told["choices"]
        content = choice["logprobs"]["content"]
        assert len(content) == told["usage"]["completion_tokens"] == 8
        assert b"".join(bytes(one["bytes"]) for one in content).decode().strip() == choice["message"]["content"]
        for one in content:
            values = [other["logprob"] for other in one["top_logprobs"]]
            assert values == sorted(values, reverse=True)
            assert len(values) == 3
            # What is taken greedily is the likeliest.
            assert (one["token"], one["logprob"]) == (one["top_logprobs"][0]["token"], values[0])
            assert 0 < sum(map(math.exp, values)) <= 1 + 1e-6
        assert posted(server, logprobs=True)[1]["choices"][0]["logprobs"]["content"][0]["top_logprobs"] == []
        assert posted(server)[1]["choices"][0]["logprobs"] is None

    def test_a_stream_tells_those_of_the_whole_answer(self, server):
        whole = posted(server, logprobs=True, top_logprobs=1)[1]["choices"][0]["logprobs"]["content"]
        _, events = posted(server, logprobs=True, top_logprobs=1, stream=True)
        told = [one for _, chunk in events[:-1] for one in chunk["choices"][0]["logprobs"]["content"]]
        assert [one["token"] for one in told] == [one["token"] for one in whole]
        assert [one["logprob"] for one in told] == pytest.approx([one["logprob"] for one in whole], abs=1e-4)


@pytest.mark.parametrize("family", [smollm, llama2, unigram], ids=lambda family: family.__name__)
def test_tokens_are_told_as_they_stand_in_the_text_whatever_their_vocabulary(family):
    _, tokenizer = config_of(family())
    ids = tokenizer.encode_text("What is the total, 漢?", split_special_tokens=True)
    told = told_logprobs([Logprob(token, -math.inf, []) for token in ids], tokenizer)
    assert {one["logprob"] for one in told} == {-9999.0}
    whole = [one for one in told if one["bytes"] is not None]
    assert all(bytes(one["bytes"]).decode() == one["token"] for one in whole)
    assert "".join(one["token"] for one in whole).strip().startswith("What is the total,")
    # The bytes of a character that has no token of its own are no text.
    assert len(told) - len(whole) in (0, 3)


class TestSettings:
    def test_penalties_and_top_k_change_the_answer_as_they_say(self, server):
        plain = text_of(server, max_tokens=20)
        for fields in ({"frequency_penalty": 2}, {"presence_penalty": 2.0}, {"repetition_penalty": 3}):
            assert text_of(server, max_tokens=20, **fields) != plain
        assert text_of(server, max_tokens=20, temperature=1.0, seed=1) != plain
        assert text_of(server, max_tokens=20, temperature=1.0, seed=1, top_k=1) == plain
        assert text_of(server, max_tokens=20, top_k=5) == plain  # greedy has one choice anyway

    def test_an_image_of_low_detail_costs_its_global_view_and_is_another_question(self, server):
        def asked(detail: str) -> dict:
            image = image_part(data_uri(photo()))
            image["image_url"]["detail"] = detail
            return posted(server, messages=[{"role": "user", "content": [image, text_part("What?")]}])[1]

        low, high, auto = map(asked, ("low", "high", "auto"))
        assert high["choices"] == auto["choices"]
        assert low["choices"] != high["choices"]
        # Of two views of four tokens, one.
        assert high["usage"]["prompt_tokens"] - low["usage"]["prompt_tokens"] == 4


def said(response: dict) -> str:
    (item,) = response["output"]
    (part,) = item["content"]
    assert (item["type"], item["role"], part["type"]) == ("message", "assistant", "output_text")
    return part["text"]


def responded(server, **body: Any) -> dict:
    status, told = posted(server, "responses", **{"max_output_tokens": 8, **body})
    assert status == 200, told
    return told


class TestResponses:
    PARTS = ({"type": "input_image", "image_url": data_uri(photo()), "detail": "high"},)
    """As the AI SDK and openai-python write an image."""

    @property
    def question(self) -> list[dict]:
        return [{"role": "user", "content": [*self.PARTS, {"type": "input_text", "text": "What is the total?"}]}]

    def test_the_answer_is_that_of_the_chat(self, server):
        told = responded(server, input=self.question)
        assert said(told) == text_of(server)
        assert (told["object"], told["status"], told["model"]) == ("response", "incomplete", "tiny")
        assert told["incomplete_details"] == {"reason": "max_output_tokens"}
        chat = posted(server)[1]["usage"]
        assert told["usage"]["input_tokens"] == chat["prompt_tokens"]
        assert told["usage"]["output_tokens"] == chat["completion_tokens"] == 8
        assert told["usage"]["total_tokens"] == chat["total_tokens"]
        assert said(responded(server, input="Hello")) == server.text("Hello")

    def test_instructions_and_earlier_turns_are_read_as_in_a_chat(self, server):
        first = responded(server, input=self.question)
        again = {"role": "user", "content": "And why?"}
        system = {"role": "system", "content": "Be brief."}
        whole = [system, {"role": "user", "content": asking("What is the total?", 0)}]
        expected = text_of(server, messages=[*whole, {"role": "assistant", "content": said(first)}, again])
        sent = [*self.question, *first["output"], again]
        told = responded(server, input=sent, instructions="Be brief.")
        assert (said(told), told["instructions"]) == (expected, "Be brief.")

    def test_a_stream_is_told_in_the_events_that_clients_wait_for(self, server):
        status, events = posted(server, "responses", input=self.question, max_output_tokens=8, stream=True)
        assert status == 200
        names = [name for name, _ in events]
        deltas = names.count("response.output_text.delta")
        assert names == [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            *["response.output_text.delta"] * deltas,
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.incomplete",
        ]
        assert all(event["type"] == name for name, event in events)
        assert [event["sequence_number"] for _, event in events] == list(range(len(events)))
        whole = responded(server, input=self.question)
        text = "".join(event["delta"] for name, event in events if name.endswith("text.delta"))
        assert text == said(whole) == said(events[-1][1]["response"])
        costs = [told["usage"] for told in (events[-1][1]["response"], whole)]
        read = [cost.pop("input_tokens_details")["cached_tokens"] for cost in costs]
        assert costs[0] == costs[1]
        assert 0 <= read[0] <= read[1] < costs[1]["input_tokens"]
        assert read[1] > 0  # the image and what stands before it
        (item,) = {event["item_id"] for _, event in events if "item_id" in event}
        assert events[-1][1]["response"]["output"][0]["id"] == item

    def test_probabilities_come_where_they_are_included(self, server):
        include = ["message.output_text.logprobs"]
        told = responded(server, input=self.question, include=include, top_logprobs=2)
        (part,) = told["output"][0]["content"]
        chat = posted(server, logprobs=True, top_logprobs=2)[1]["choices"][0]["logprobs"]["content"]
        assert [one["token"] for one in part["logprobs"]] == [one["token"] for one in chat]
        assert len(part["logprobs"][0]["top_logprobs"]) == 2
        settings = {"input": self.question, "include": include, "max_output_tokens": 8, "stream": True}
        _, events = posted(server, "responses", **settings)
        told = [one for name, event in events if name.endswith("text.delta") for one in event["logprobs"]]
        assert [one["token"] for one in told] == [one["token"] for one in chat]

    @NEEDS_GRAMMARS
    def test_a_schema_holds_the_answer(self, server):
        form = {"type": "json_schema", "name": "Receipt", "strict": True, "schema": TOTAL}
        told = responded(
            server, input=self.question, text={"format": form, "verbosity": "medium"}, max_output_tokens=60
        )
        assert list(json.loads(said(told))) == ["total", "paid"]
        assert (told["status"], told["text"]["format"]["schema"]) == ("completed", TOTAL)

    def test_what_asks_for_nothing_is_taken(self, server):
        idle = {
            "tools": [],
            "tool_choice": "auto",
            "parallel_tool_calls": True,
            "store": False,
            "truncation": "disabled",
            "previous_response_id": None,
            "reasoning": {"effort": "low"},
            "include": ["reasoning.encrypted_content"],
            "metadata": {"a": "b"},
            "background": False,
            "stream_options": {"include_obfuscation": False},
            "max_tool_calls": 3,
            "user": "ann",
        }
        assert said(responded(server, input=self.question, **idle)) == said(responded(server, input=self.question))

    @pytest.mark.parametrize(
        ("fields", "param", "words"),
        [
            ({"previous_response_id": "resp_1"}, "previous_response_id", "send all messages each time"),
            ({"conversation": "conv_1"}, "conversation", "send all messages each time"),
            ({"tools": [{"type": "web_search"}]}, "tools", "calls no tools"),
            ({"background": True}, "background", "no answers and conversations are kept"),
            ({"truncation": "auto"}, "truncation", "refused and never cut"),
            ({"include": ["file_search_call.results"]}, "include.0", "message.output_text.logprobs"),
            ({"input": []}, "input", "at least 1"),
            ({"input": [{"type": "function_call_output", "call_id": "1", "output": "x"}]}, "input.0", ""),
            (
                {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
                "input.0.content.0",
                "",
            ),
            ({"input": "x", "max_tokens": 5}, "max_tokens", "is not known"),
            ({"text": {"format": {"type": "xml"}}}, "text.format", ""),
            ({"text": {"nope": 1}}, "text.nope", "format are known"),
            ({"input": "why " * 600}, "input", "the 512 allowed"),
            ({"input": [{"role": "system", "content": [*PARTS]}]}, "input.0.content.0.type", "only a user's"),
            ({"top_logprobs": 21}, "top_logprobs", ""),
            ({"form": "poem"}, "form", "'chatml'"),
        ],
        ids=lambda value: str(value)[:40],
    )
    def test_what_cannot_be_had_is_refused_by_its_field(self, server, fields, param, words):
        error = refused(server, "responses", **{"input": "Hello", **fields})
        assert error["param"].startswith(param)
        assert words in error["message"]
        assert error["type"] == "invalid_request_error"

    def test_an_end_amid_a_stream_is_told_as_clients_read_it(self, server):
        admission = server.api.admission

        def stop_at_the_third() -> None:
            if len(gate.rows) == 3:
                admission.is_stopped = True
                until(lambda: not admission.in_flight)

        with held(server.engine) as gate, server.client() as client:
            gate.wait = stop_at_the_third
            try:
                stream = client.responses.create(model="tiny", input="Hello", max_output_tokens=400, stream=True)
                with pytest.raises(openai.APIError, match="the server ended before the answer did"):
                    list(stream)
            finally:
                admission.is_stopped = False
