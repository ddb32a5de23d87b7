"""OpenAI's API over HTTP, by its official client: the answers are the model's own, and never another's."""

from __future__ import annotations

import codecs
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from monkey.serving.protocol import NEUTRAL, WITHOUT_EFFECT
from monkey.serving.session import Answerer, Decoding
from tests.running_server import (
    asking,
    data_uri,
    held,
    image_part,
    photo,
    received,
    running,
    sent,
    talkative_model,
    text_part,
    until,
)
from tests.small_processor import plain, small_processor, span

IMAGE_URL = "messages.0.content.0.image_url"


@pytest.fixture(scope="module")
def model():
    return talkative_model()


@pytest.fixture(scope="module")
def server(model):
    with Answerer(model, small_processor(), name="tiny") as answerer, running(answerer) as server:
        yield server


@pytest.fixture
def fresh(model):
    """A server that nobody asked before, whose counts are those of a test; it answers one at a time."""
    with Answerer(model, small_processor(), name="tiny", max_rows=1) as answerer, running(answerer) as server:
        yield server


def alone(model, messages, form=None, labels=True, **decoding) -> str:
    """The answer of a model that nobody else asks."""
    with Answerer(model, small_processor(), cache_bytes=0) as answerer:
        settings = Decoding(**{"max_new_tokens": 8, **decoding})
        return answerer.chat(messages, settings, form=form, picture_labels=labels).text


def user(text: str, *numbers: int) -> dict:
    images = [{"type": "image", "image": photo(number)} for number in numbers]
    return {"role": "user", "content": [*images, text_part(text)]}


def refusal(server, content="What?", kind=openai.BadRequestError, **fields) -> dict:
    """The error that a request ends with, in OpenAI's shape and one sentence."""
    with pytest.raises(kind) as caught:
        server.ask(content, **fields)
    error = caught.value.response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    assert len(error["message"]) < 700
    return error


def fields_of(server) -> dict[str, float]:
    """The figures of /metrics by name and labels."""
    with server.client() as client:
        text = client._client.get(server.url.replace("/v1", "/metrics")).text
    return {
        sample.name + "".join(sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


class TestAnswers:
    def test_the_answer_is_what_the_model_gives_and_costs_are_told(self, server, model):
        completion = server.ask(asking("What is the total?", 0))
        assert completion.choices[0].message.content == alone(model, [user("What is the total?", 0)])
        assert completion.choices[0].finish_reason == "length"
        assert (completion.model, completion.object) == ("tiny", "chat.completion")
        prompt = [*span(small_processor()), *plain(small_processor(), " What is the total? Answer: ")]
        assert completion.usage.prompt_tokens == len(prompt)
        assert completion.usage.completion_tokens == 8
        assert completion.usage.total_tokens == len(prompt) + 8

    def test_a_stream_gives_the_same_text_and_its_costs_where_they_are_asked_for(self, server, model):
        expected = alone(model, [user("Which?", 0, 1)], max_new_tokens=20)
        *chunks, last = server.ask(
            asking("Which?", 0, 1), stream=True, stream_options={"include_usage": True}, max_tokens=20
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected
        assert chunks[0].choices[0].delta.role == "assistant"
        assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
        assert (last.choices, last.usage.completion_tokens) == ([], 20)
        assert len({chunk.id for chunk in (*chunks, last)}) == 1
        assert all(chunk.choices for chunk in server.ask("Hello", stream=True))

    def test_a_conversation_is_read_whole_with_its_instructions_as_one_and_images_in_order(self, server, model):
        answer = {"role": "assistant", "content": "A tree"}
        system = {"role": "system", "content": "Be brief.\n\nBe kind.\n\nEnd."}
        sent = [
            {"role": "system", "content": "Be brief."},
            {"role": "system", "content": [text_part("Be kind.")]},
            {"role": "user", "content": asking("What?", 0, 1)},
            # As the client dumps an answer of the server's.
            {**answer, "refusal": None, "tool_calls": None, "annotations": []},
            {"role": "developer", "content": "End."},
            {"role": "user", "content": asking("And why?", 2)},
        ]
        assert server.talk(sent) == alone(model, [system, user("What?", 0, 1), answer, user("And why?", 2)])
        assert server.text(asking("Compare", 0, 1)) != server.text(asking("Compare", 1, 0))

    def test_settings_of_sampling_are_those_of_the_model(self, server, model):
        sampled = {"temperature": 1.0, "top_p": 0.9, "seed": 3}
        expected = alone(model, [user("What?", 0)], **sampled)
        assert server.text(asking("What?", 0), **sampled) == expected
        assert server.text(asking("What?", 0), **{**sampled, "seed": 4}) != expected

    @pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
    def test_the_longest_answer_goes_by_either_name(self, server, name):
        told = server.ask("Hello", **{"max_tokens": openai.NOT_GIVEN, name: 3})
        assert (told.usage.completion_tokens, told.choices[0].finish_reason) == (3, "length")

    def test_a_stop_text_ends_the_answer_and_is_no_part_of_it(self, server):
        whole = server.text(asking("What?", 0), max_tokens=30)
        stop = whole[len(whole) // 2 :][:2]
        told = server.ask(asking("What?", 0), max_tokens=30, stop=[stop]).choices[0]
        assert told.finish_reason == "stop"
        assert told.message.content == whole[: whole.index(stop)].rstrip()

    @pytest.mark.parametrize(
        ("form", "labels"), [("plain", True), ("questions", True), ("chatml", True), ("chatml", False)]
    )
    def test_the_form_of_the_prompt_may_be_chosen(self, server, model, monkeypatch, form, labels):
        expected = alone(model, [user(" Count: ", 0)], form=form, labels=labels)
        body = {"form": form, "picture_labels": labels}
        assert server.text(asking(" Count: ", 0), extra_body=body) == expected
        monkeypatch.setattr(server.api, "picture_labels", labels)
        assert server.text(asking(" Count: ", 0), extra_body={"form": form}) == expected

    def test_messages_that_mean_the_same_are_answered_alike(self, server):
        first, last = {"role": "user", "content": "What?"}, server.text("What?")
        empty, refused = ({"role": "assistant", "content": text} for text in ("", "No."))
        amid, after_refusal = server.talk([first, empty, first]), server.talk([first, refused, first])
        for answer in ({"content": None}, {}, {"content": []}, {"content": None, "refusal": ""}):
            said = {"role": "assistant", **answer}
            assert (server.talk([first, said, first]), server.talk([first, said])) == (amid, last)
        for answer in ({"content": None, "refusal": "No."}, {"content": [{"type": "refusal", "refusal": "No."}]}):
            assert server.talk([first, {"role": "assistant", **answer}, first]) == after_refusal
        marked = [{**part, "cache_control": {"type": "ephemeral"}} for part in asking("What?")]
        assert server.talk([{"role": "user", "name": "ann", "content": marked, "id": "m1"}]) == last

    def test_images_and_texts_may_be_written_in_other_ways(self, server, model):
        image = photo().resize((64, 64)).rotate(30)
        url = data_uri(image)
        head, _, encoded = url.partition(",")
        assert {"+", "/"} <= set(encoded)
        messages = [{"role": "user", "content": [{"type": "image", "image": image}, text_part("What?")]}]
        expected = alone(model, messages)
        lines = "\r\n".join(encoded[start : start + 76] for start in range(0, len(encoded), 76))
        for_urls = encoded.replace("+", "-").replace("/", "_")
        for other in (lines, encoded + "\n", quote(encoded, safe=""), encoded.rstrip("="), for_urls):
            assert server.text([image_part(f" {head},{other}"), text_part("What?")]) == expected
        for part in (
            {"type": "image_url", "image_url": quote(url, safe=":")},
            *({"type": "image_url", "image_url": {"url": url, "detail": detail}} for detail in ("high", "auto", None)),
            {"type": "input_image", "image_url": url, "detail": "high"},
            image_part(data_uri(image, "bmp")),
        ):
            assert server.text([part, {"type": "input_text", "text": "What?"}]) == expected
        broken = encoded.replace("+", " ")
        assert "base64" in refusal(server, [image_part(f"{head},{broken}"), text_part("What?")])["message"]


class TestModels:
    def test_the_one_model_is_listed_by_its_name_and_health_says_it(self, server):
        with server.client() as client:
            (model,) = client.models.list().data
            assert model.id == client.models.retrieve("tiny").id == "tiny"
            with pytest.raises(openai.NotFoundError, match="no model 'gpt-9' here, only 'tiny'"):
                client.models.retrieve("gpt-9")
            health = client._client.get(server.url.replace("/v1", "/health"))
            assert health.json() == {"status": "ok", "model": "tiny"}
            for path in ("//v1/models", "/v1//models", "/v1/models/"):
                reply = client._client.get(server.url.replace("/v1", path), follow_redirects=False)
                assert reply.json()["data"][0]["id"] == "tiny"

    def test_what_can_be_read_can_be_asked_for_its_head(self, server):
        with server.client() as client:
            for path in ("/v1/models", "/v1/models/tiny", "/metrics", "/health"):
                reply = client._client.head(server.url.replace("/v1", path))
                assert (reply.status_code, reply.content) == (200, b""), path

    def test_another_model_or_path_or_method_is_told_what_there_is(self, server):
        error = refusal(server, kind=openai.NotFoundError, extra_body={"model": "gpt-9"})
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        with server.client() as client:
            hints = {"/v1/completions": '"form": "plain"', "/v1/embeddings": "makes no embeddings"}
            for path in (*hints, "/chat/completions", "/v1/v1/models", "/"):
                reply = client._client.post(server.url.replace("/v1", path), json={"model": "tiny", "input": "x"})
                error = reply.json()["error"]
                assert (reply.status_code, error["type"]) == (404, "invalid_request_error")
                assert (error["code"], path in error["message"]) == ("not_found", True)
                assert "POST /v1/chat/completions" in error["message"]
                assert f"as {server.url}" in error["message"]
                assert hints.get(path, "") in error["message"]
            reply = client._client.get(f"{server.url}/chat/completions")
            assert (reply.status_code, reply.json()["error"]["code"]) == (405, "method_not_allowed")
            assert reply.headers["allow"] == "POST"
            assert reply.json()["error"]["message"].endswith("; use POST")


class TestRefusals:
    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("n", 9),
            ("n", 0),
            ("top_logprobs", 2),
            ("top_logprobs", 21),
            ("frequency_penalty", 2.5),
            ("repetition_penalty", 0),
            ("logit_bias", {"5": 10}),
            ("response_format", {"type": "xml"}),
            ("response_format", {"type": "json_schema"}),
            ("response_format", {"type": "json_schema", "json_schema": {"name": "x", "schema": []}}),
            ("response_format", {"type": "json_object", "indent": 2}),
            ("guided_json", {"type": "object"}),
            ("tools", [{"type": "function", "function": {"name": "f"}}]),
            ("tool_choice", "required"),
            ("modalities", ["text", "audio"]),
            ("top_k", -2),
            ("min_p", 0.1),
            ("echo", True),
            ("options", {"temperature": 1}),
            ("temperature", 2.5),
            ("temperature", "hot"),
            ("temperature", 1e-30),
            ("top_p", 0),
            ("max_tokens", 0),
            ("max_tokens", True),
            ("seed", 1.5),
            ("seed", 2**64),
            ("stop", ["a"] * 5),
            ("stop", "a" * 257),
            ("stream", "yes"),
            ("form", "poem"),
        ],
        ids=str,
    )
    def test_a_setting_that_cannot_be_had_is_refused_by_its_name(self, server, name, value):
        error = refusal(server, extra_body={"max_tokens": 8} | {name: value})
        assert error["param"].split(".")[0] == name
        assert name in error["message"]
        assert error["type"] == "invalid_request_error"
        # What cannot be had is not named as if it could.
        assert "tools" not in error["message"].split() or name == "tools"

    def test_settings_that_ask_for_nothing_are_taken(self, server):
        neutral = {name: values[0] for name, values in NEUTRAL.items() if values}
        empty = dict(zip(NEUTRAL, [None, "", [], {}] * len(NEUTRAL), strict=False))
        more = {
            "stop": "",
            "top_k": -1,
            "presence_penalty": 0.0,
            "stream_options": {"include_usage": True, "include_obfuscation": True},
            "of_a_program_that_nobody_knows": {},
        }
        fields = ("n", "logprobs", "top_logprobs", "response_format", "tools", "tool_choice", "repetition_penalty")
        plain = dict(zip(fields, (1, False, 0, {"type": "text"}, [], "auto", 1), strict=True))
        expected = server.text("Hello")
        blank = dict(zip(fields, ["", [], {}] * 3, strict=False))
        idle = dict.fromkeys(WITHOUT_EFFECT, "x")
        for fields in (neutral, empty, plain, blank, idle, more, {"stop": None}, {"stop": [""]}):
            assert server.text("Hello", extra_body=fields) == expected

    @pytest.mark.parametrize(
        ("messages", "param"),
        [
            ([], "messages"),
            ("Hello", "messages"),
            ([{"role": "robot", "content": "x"}], "messages.0.role"),
            ([{"role": "tool", "content": "x", "tool_call_id": "1"}], "messages.0.role"),
            ([{"role": "user"}], "messages.0.content"),
            ([{"role": "user", "content": None}], "messages.0.content"),
            ([{"role": "user", "content": {"type": "text", "text": "x"}}], "messages.0.content"),
            ([{"role": "system", "content": [image_part("data:")]}], "messages.0.content.0.type"),
            ([{"role": "user", "content": ["x"]}], "messages.0.content.0"),
            ([{"role": "user", "content": [{"type": "video", "url": "x"}]}], "messages.0.content.0"),
            ([{"role": "user", "content": [{"type": "text"}]}], "messages.0.content.0.text"),
            ([{"role": "user", "content": [{**text_part("x"), "lang": "en"}]}], "messages.0.content.0.lang"),
            ([{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}], IMAGE_URL),
            ([{"role": "user", "content": [image_part(3)]}], f"{IMAGE_URL}.url"),
            (
                [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:", "detail": "8k"}}]}],
                f"{IMAGE_URL}.detail",
            ),
            ([{"role": "user", "content": "x", "tool_calls": [{"id": "1"}]}], "messages.0.tool_calls"),
        ],
        ids=str,
    )
    def test_a_wrong_message_is_named_by_its_place(self, server, messages, param):
        assert refusal(server, extra_body={"messages": messages})["param"] == param

    def test_a_refusal_says_what_to_do(self, server):
        messages = [{"role": role, "content": "x"} for role in ("user", "assistant")]
        assert "a user's must be last" in refusal(server, extra_body={"messages": messages})["message"]
        assert "question is empty" in refusal(server, " ")["message"]
        said = refusal(server, [{"type": "image", "image": "x"}])["message"]
        assert "a part of type 'image' is not taken" in said
        assert '"image_url": {"url": "data:image/png;base64,…"}' in said
        messages = [{"role": "system", "content": asking("x", 0)}, {"role": "user", "content": "x"}]
        assert "only a user's message" in refusal(server, extra_body={"messages": messages})["message"]
        assert "max_completion_tokens" in refusal(server, max_tokens=3, max_completion_tokens=4)["message"]
        error = refusal(server, extra_body={"messages": [{"role": "user"}]})
        assert error["message"] == "messages.0.content: it is missing, and a text or a list of parts is needed"
        assert error["code"] == "missing_required_parameter"
        for stop in (["a"] * 5, "a" * 257):
            error = refusal(server, extra_body={"stop": stop})
            assert error["message"].endswith(", and up to 4 texts of 256 characters are taken")
            assert error["code"] == "unsupported_value"

    @pytest.mark.parametrize(
        ("body", "known"),
        [
            ({"nope": 1}, "model, stream, stream_options"),
            ({"stream_options": {"nope": 1}}, "include_usage, include_obfuscation"),
            ({"messages": [{"role": "user", "content": "x", "nope": 1}]}, "role, refusal, content are"),
            ({"messages": [{"role": "user", "content": [{**text_part("x"), "nope": 1}]}]}, "(type, text are"),
            (
                {"messages": [{"role": "user", "content": [{**image_part("x"), "nope": 1}]}]},
                "(type, image_url, detail are",
            ),
            (
                {
                    "messages": [
                        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x", "nope": 1}}]}
                    ]
                },
                "(url, detail are",
            ),
            ({"response_format": {"type": "text", "nope": 1}}, "(type are"),
            (
                {"response_format": {"type": "json_schema", "json_schema": {"schema": {}, "nope": 1}}},
                "(name, description, strict, schema are",
            ),
        ],
        ids=str,
    )
    def test_a_field_that_is_not_known_is_told_beside_those_that_are(self, server, body, known):
        error = refusal(server, extra_body=body)
        assert (error["code"], error["param"].rpartition(".")[2]) == ("unknown_parameter", "nope")
        assert known in error["message"]

    @pytest.mark.parametrize(("text", "words"), [("why " * 600, "the 512 allowed"), ("a" * 200_001, "200,000 allowed")])
    def test_a_prompt_that_is_too_long_is_refused_as_clients_know_it(self, server, text, words):
        error = refusal(server, text)
        assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
        assert words in error["message"]

    @pytest.mark.parametrize(
        ("body", "words"),
        [
            (b"", "not JSON"),
            (b"[]", ""),
            (b"\xff", "send it in UTF-8"),
            ('{"model": "é"}'.encode("latin-1"), "send it in UTF-8"),
            ('{"model": "tiny"}'.encode("utf-16"), "send it in UTF-8"),
            (b'{"model": "tiny", "messages": [{"role": "user", "content": "\0"}]}', "not JSON"),
            (b'{"model": "tiny", "messages": ' + b"[" * 100_000, "not JSON"),
            (b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}', "not JSON"),
            (b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "temperature": NaN}', ""),
        ],
        ids=lambda body: repr(body[:40]),
    )
    def test_a_body_that_is_no_request_is_a_sentence(self, server, body, words):
        status, _, said = received(sent(server, body))
        assert (status, words in json.loads(said)["error"]["message"]) == (400, True)

    def test_a_body_may_have_a_byte_order_mark_and_any_character(self, server):
        body = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "é \0"}]}, ensure_ascii=False)
        assert received(sent(server, codecs.BOM_UTF8 + body.encode()))[0] == 200

    @pytest.mark.parametrize(
        ("error", "code", "words"),
        [
            (RuntimeError("secret of the house"), "internal_error", "its log says how"),
            (MemoryError(), "out_of_memory", "memory of cpu"),
        ],
        ids=["a fault", "too little memory"],
    )
    def test_a_fault_of_the_model_is_an_error_and_the_next_question_is_answered(
        self, fresh, model, monkeypatch, error, code, words
    ):
        def broken(pixels):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(model, "get_image_features", broken)
            told = refusal(fresh, asking("What?", 0), openai.InternalServerError)
        assert (told["type"], told["code"]) == ("server_error", code)
        assert words in told["message"]
        assert "secret" not in str(told)
        assert fresh.text(asking("What?", 0))


class TestImages:
    @pytest.mark.parametrize(
        "url",
        [
            "/etc/passwd",
            "FILE:///etc/passwd",
            "ftp://a.example/x.png",
            "HTTPS://a.example/x.png",
            "photo.png",
            "",
            " data:image/png;base64,AAAA",
            "data:text/plain;base64,AAAA",
            "data:image/png;base64,@@@@",
            "data:image/png,AAAA",
        ],
    )
    def test_what_is_no_image_is_neither_opened_nor_fetched(self, server, url, monkeypatch):
        def opened(*_, **__):
            raise AssertionError("something was opened")

        monkeypatch.setattr("monkey.images.read_image_file", opened)
        monkeypatch.setattr(socket, "getaddrinfo", opened)
        content = [image_part(url), text_part("What?")]
        status, _, said = received(sent(server, {"model": "tiny", "messages": [{"role": "user", "content": content}]}))
        assert status == 400
        assert json.loads(said)["error"]["message"].startswith(("image 1:", "the image "))

    def test_there_are_limits_on_their_number_and_size(self, server, monkeypatch):
        assert "9 images, more than the 8 allowed" in refusal(server, asking("What?", *[0] * 9))["message"]
        content = [image_part(data_uri(b"%PDF-1.7\n")), text_part("What?")]
        assert "is a PDF; render its pages to PNG first" in refusal(server, content)["message"]
        images = server.api.answerer.processor.image_processor
        for name, limit in (("max_pixels", 100), ("max_bytes", 20)):
            with monkeypatch.context() as patch:
                patch.setattr(images, name, limit)
                assert f"more than the {limit} allowed" in refusal(server, asking("What?", 0))["message"]


class TestTogether:
    def test_many_at_once_share_a_running_batch_and_are_never_mixed(self, model):
        cases = [(f"What is number {number}?", (number % 4,), bool(number % 2)) for number in range(16)]
        expected = [alone(model, [user(text, *numbers)], max_new_tokens=12) for text, numbers, _ in cases]

        def asked(case) -> str:
            text, numbers, is_stream = case
            told = server.ask(asking(text, *numbers), stream=is_stream, max_tokens=12)
            if not is_stream:
                return told.choices[0].message.content
            return "".join(chunk.choices[0].delta.content or "" for chunk in told)

        with (
            Answerer(model, small_processor(), name="tiny", max_rows=4) as answerer,
            running(answerer) as server,
            ThreadPoolExecutor(12) as threads,
            held(server.engine) as gate,
        ):
            told = threads.map(asked, cases)
            until(lambda: server.engine.running + server.engine.waiting > 4)
            gate.open()
            assert list(told) == expected
        assert max(gate.rows) == 4
        assert len(set(expected)) > 6

    def test_metrics_count_what_was_done_and_tell_who_runs_and_who_waits(self, fresh):
        refusal(fresh, extra_body={"n": 0})
        first, again = (fresh.ask(asking("What is the total?", 0)) for _ in range(2))
        told = fields_of(fresh)
        assert told["monkey_requests_totallength"] == 2
        assert told["monkey_requests_total400"] == 1
        assert told["monkey_prompt_tokens_total"] == first.usage.prompt_tokens + again.usage.prompt_tokens
        assert told["monkey_completion_tokens_total"] == 16
        assert told["monkey_request_seconds_count"] == 3
        assert told["monkey_first_piece_seconds_count"] == 2
        assert told["monkey_prefix_cache_hit_tokens_total"] >= fresh.api.answerer.processor.image_tokens
        assert told["monkey_images_encoded_total"] == 1
        assert told["monkey_running_rows"] == told["monkey_waiting_requests"] == 0
        with ThreadPoolExecutor(3) as threads, held(fresh.engine) as gate:
            answers = [threads.submit(fresh.text, "Hello") for _ in range(3)]
            # Two in line may also be the first two, before the engine takes one up.
            until(lambda: (fresh.engine.running, fresh.engine.waiting) == (1, 2))
            told = fields_of(fresh)
            assert (told["monkey_running_rows"], told["monkey_waiting_requests"]) == (1, 2)
            gate.open()
            assert len({answer.result() for answer in answers}) == 1


class TestLeaving:
    def test_leaving_a_stream_ends_the_answer(self, fresh):
        with held(fresh.engine) as gate, fresh.client() as client:
            gate.open()
            stream = client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "Hello"}], max_tokens=480, stream=True
            )
            next(iter(stream))
            stream.close()
            until(lambda: fresh.engine.running == 0 and fresh.api.admission.in_flight == 0)
        until(lambda: fields_of(fresh).get("monkey_requests_totalleft") == 1)
        assert len(gate.rows) < 480

    @pytest.mark.parametrize("is_stream", [False, True])
    def test_leaving_before_the_first_word_ends_the_answer_running_or_in_line(self, fresh, is_stream):
        body = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "stream": is_stream}
        with held(fresh.engine) as gate:
            connections = []
            for number in (1, 2):
                connections.append(sent(fresh, body))
                until(lambda number=number: fresh.engine.running + fresh.engine.waiting == number)
            for connection in connections[::-1]:
                connection.close()
            until(lambda: fresh.api.admission.in_flight == 0)
            gate.open()
            until(lambda: fresh.engine.running + fresh.engine.waiting == 0)
            assert len(gate.rows) < 100
            assert fields_of(fresh)["monkey_requests_totalleft"] == 2
            assert fresh.text("Hello")
