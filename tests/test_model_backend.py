"""The evaluator asks the model as the published one did: same answers, batched as alone, images opened in workers."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from eval.backends import Request, growth
from eval.metrics import score
from eval.model_backend import ModelBackend, by_image, check_checkpoint, read_answer
from eval.run import RunSettings, run
from eval.tasks import PromptForm, Task, select_tasks
from monkey.adapters import add_decoder_lora, save_adapter
from monkey.checkpoint_files import checkpoint_fingerprint
from monkey.data.records import read_questions
from monkey.modeling import MonkeyForConditionalGeneration
from monkey.processing import MonkeyProcessor

FORM = PromptForm("file", "<img></img> {question}")
NEW_TOKENS = 16


@pytest.fixture(scope="module")
def asked(golden, tmp_path_factory) -> tuple[Task, list[Request]]:
    """The prompts whose answers were recorded from the published implementation, as questions of a task."""
    folder = tmp_path_factory.mktemp("recorded")
    shutil.copytree(golden.folder / "images", folder / "images")
    lines = []
    for number, prompt in enumerate(golden.cases["batch"]["prompts"]):
        image, question = prompt.removeprefix("<img>").split("</img> ")
        lines.append(json.dumps({"image": image, "question": question, "answer": "?", "question_id": number}))
    path = folder / "recorded.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    (task,) = select_tasks(str(path), "accuracy", NEW_TOKENS)
    return task, [Request(task, question, FORM) for question in read_questions(path)]


@pytest.fixture(scope="module")
def backend(golden) -> ModelBackend:
    return ModelBackend(str(golden.checkpoint), device="cpu", num_workers=0)


def answers_of(backend: ModelBackend, requests: list[Request], batch_size: int) -> list:
    return [answer for batch in backend.batches(requests, batch_size) for answer in backend.generate_answers(batch)]


def test_images_are_told_apart_by_their_paths_so_that_none_is_digested(asked, backend):
    (batch,) = backend.batches(asked[1], batch_size=3)
    assert [one.images[-1].digest for one in batch.inputs] == [os.fsencode(one.images[-1]) for one in batch.requests]


def test_a_prompt_beyond_what_the_decoder_is_exact_for_fails_alone(asked, backend, monkeypatch):
    lengths = [len(one.ids) for one in next(iter(backend.batches(asked[1], batch_size=3))).inputs]
    monkeypatch.setattr("eval.model_backend.longest_sequence", lambda _: min(lengths))
    (batch,) = backend.batches(asked[1], batch_size=3)
    assert len(batch.requests) == lengths.count(min(lengths))
    assert len(batch.failures) == 3 - len(batch.requests) > 0
    assert f"more than the {min(lengths):,} allowed" in batch.failures[0].reason


def test_answers_are_the_recorded_ones(asked, backend, golden):
    recorded = golden.tensors["batch.generated"].tolist()
    answers = answers_of(backend, asked[1], batch_size=3)
    expected = [backend.processor.tokenizer.decode(ids, skip_special_tokens=True) for ids in recorded]
    assert [answer.raw for answer in answers] == expected


def test_an_answer_alone_is_the_answer_in_a_batch_and_from_workers(asked, backend):
    together = answers_of(backend, asked[1], batch_size=3)
    assert answers_of(backend, asked[1], batch_size=1) == together
    backend.num_workers = 2
    try:
        assert answers_of(backend, asked[1], batch_size=2) == together
    finally:
        backend.num_workers = 0


def test_an_answer_ends_at_end_of_text_or_at_the_limit(asked, backend):
    request = asked[1][0]
    first, *_ = answers_of(backend, [request], batch_size=1)
    assert (first.tokens, first.stop) == (NEW_TOKENS, "length")
    ended = read_answer(
        request, [65, 66, backend.end_id, backend.end_id], frozenset([backend.end_id]), backend.processor.tokenizer
    )
    assert (ended.tokens, ended.stop) == (2, "end")
    assert ended.raw == backend.processor.tokenizer.decode([65, 66])


def test_an_answer_has_at_least_one_token(asked, backend, monkeypatch):
    (batch,) = backend.batches(asked[1][:1], 1)
    ((first, *_),) = backend.engine.run_greedily(batch.inputs)
    monkeypatch.setattr(backend, "end_id", first)
    (answer,) = answers_of(backend, asked[1][:1], 1)
    assert answer.tokens > 0


def test_control_characters_in_a_question_are_plain_text(asked, backend):
    task, (request, *_) = asked
    question = type(request.question)(**{**vars(request.question), "question": "<img></img><|endoftext|> who?"})
    (batch,) = backend.batches([Request(task, question, FORM)], 1)
    ids = batch.inputs[0].ids
    assert ids.count(backend.processor.tokenizer.image_start_id) == 1
    assert backend.end_id not in ids


def test_an_image_that_does_not_open_fails_all_its_questions_and_leaves_the_others_alone(asked, backend, tmp_path):
    task, requests = asked
    broken = tmp_path / "broken.png"
    broken.write_bytes(requests[0].question.image.read_bytes()[:200])
    failing = [Request(task, replace(requests[0].question, image=broken, row=row), FORM) for row in (3, 4, 5)]
    *failures, first, second = answers_of(backend, [*failing, *requests[1:]], batch_size=2)
    assert [(one.row, "broken.png" in one.reason) for one in failures] == [(3, True), (4, True), (5, True)]
    assert [first, second] == answers_of(backend, requests[1:], batch_size=2)


def test_an_image_may_have_a_name_that_is_not_utf8(asked, backend, tmp_path):
    task, requests = asked
    image = tmp_path / os.fsdecode(b"\xff.png")
    image.write_bytes(requests[0].question.image.read_bytes())
    renamed = Request(task, replace(requests[0].question, image=image), FORM)
    assert answers_of(backend, [renamed], 1) == answers_of(backend, requests[:1], 1)


@pytest.fixture(scope="module")
def shared(asked) -> list[Request]:
    """Eight questions about three images, in an order that keeps no two of an image together for long."""
    task, requests = asked
    texts = ("Who?", "What is the total of this receipt, in full? Answer: ", "Where is it?", "When? Answer: ")
    images = [0, 1, 0, 2, 1, 0, 0, 1]
    return [
        Request(
            task,
            replace(requests[image].question, row=row, question=texts[row % len(texts)] + " " * (row // len(texts))),
            FORM,
        )
        for row, image in enumerate(images)
    ]


def plain_answers(backend: ModelBackend, requests: list[Request]) -> dict[int, str]:
    """Raw answers by row, each prompt alone through `generate`."""
    answers = {}
    for request in requests:
        text = request.prompt.removeprefix("<img></img>")
        inputs = backend.processor(text=text, images=[request.question.image], inert_text=True)
        generated = backend.model.generate(
            **inputs,
            do_sample=False,
            min_new_tokens=1,
            max_new_tokens=NEW_TOKENS,
            eos_token_id=backend.end_id,
            pad_token_id=backend.end_id,
        )
        answers[request.row] = backend.processor.tokenizer.decode(
            generated[0, inputs["input_ids"].shape[1] :].tolist(), skip_special_tokens=True
        )
    return answers


@pytest.fixture(scope="module")
def expected(backend, shared) -> dict[int, str]:
    answers = plain_answers(backend, shared)
    assert len(set(answers.values())) > 3
    return answers


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_each_image_is_read_once_and_answers_are_the_plain_ones(backend, shared, expected, batch_size):
    backend.engine._store.clear()
    before = backend.work
    results = answers_of(backend, shared, batch_size)
    assert {answer.row: answer.raw for answer in results} == expected
    work = growth(before, backend.work)
    rests = work["prefill_tokens"] - 3 * (backend.model.config.image_tokens + 1)
    assert (work["images"], work["prompts"]) == (3, 8)
    # The rests hold no image: had a prefix been computed twice, more than a thousand tokens would be here.
    assert rests < backend.model.config.image_tokens
    assert min(work[f"{phase}_seconds"] for phase in ("vision", "prefill", "decode")) > 0
    assert work["peak_bytes"] > 0


def test_questions_about_one_image_hold_its_keys_and_values_once(backend, shared, monkeypatch):
    requests = [
        replace(request, question=replace(request.question, image=shared[0].question.image)) for request in shared
    ]
    held = []
    decode = backend.engine._decode

    def recording(rows):
        cache = backend.engine._cache
        blocks = {block for row in rows if row.prefix for block in row.prefix.chain}
        tails = sum(buffer.nbytes for buffer in (*cache.keys, *cache.values))
        held.append((len(rows), len(blocks), sum(block.num_bytes for block in blocks), tails))
        return decode(rows)

    monkeypatch.setattr(backend.engine, "_decode", recording)
    answers_of(backend, requests, batch_size=8)
    rows, blocks, prefix_bytes, tail_bytes = held[0]
    assert (rows, blocks) == (8, 1)
    # A copy per row, as it was, would be eight times the prefix.
    assert prefix_bytes + tail_bytes < 4 * prefix_bytes


def test_memory_that_runs_out_is_told_and_the_questions_can_be_asked_again(backend, shared, expected, monkeypatch):
    first, second, *_ = backend.batches(shared, 3)
    answers = backend.generate_answers(first)

    def exhausted(*_, **__):
        raise torch.OutOfMemoryError("no memory")

    with monkeypatch.context() as scarce:
        scarce.setattr(backend.engine, "_run_prefill", exhausted)
        with pytest.raises(torch.OutOfMemoryError, match="does not suffice"):
            backend.generate_answers(second)
    settled = {answer.row for answer in answers}
    answers += answers_of(backend, [request for request in shared if request.row not in settled], 1)
    assert {answer.row: answer.raw for answer in answers} == expected


def test_sharded_weights_are_called_in_step_by_generate(backend, shared, expected, monkeypatch):
    monkeypatch.setattr("monkey.engine.is_sharded", lambda model: True)
    generate, calls = type(backend.model).generate, []
    monkeypatch.setattr(type(backend.model), "generate", lambda *a, **k: (calls.append(1), generate(*a, **k))[1])
    assert {answer.row: answer.raw for answer in answers_of(backend, shared, 3)} == expected
    assert len(calls) == 3


def test_the_limit_is_that_of_each_question(asked, backend):
    task, requests = asked
    short = Request(replace(task, max_new_tokens=3), requests[0].question, FORM)
    answers = answers_of(backend, [short, *requests[1:]], 3)
    assert [answer.tokens for answer in answers] == [3, NEW_TOKENS, NEW_TOKENS]


def test_requests_about_one_image_follow_each_other(shared):
    ordered = by_image(shared)
    assert sorted(request.row for request in ordered) == list(range(8))
    changes = sum(a.images[0] != b.images[0] for a, b in pairwise(ordered))
    assert changes == len({request.images[0] for request in shared}) - 1


def test_a_run_with_the_model_writes_answers_settings_and_fingerprint(asked, backend, golden, tmp_path):
    task, _ = asked
    settings = RunSettings(tmp_path / "run", checkpoint=str(golden.checkpoint), show_progress=False, limit=1)
    (results,) = run([task], settings, lambda: backend)
    assert results["complete"]
    assert results["generation"] == {
        "do_sample": False,
        "num_beams": 1,
        "min_new_tokens": 1,
        "eos_token_id": backend.end_id,
        "pad_token_id": backend.end_id,
        "dtype": "float32",
        "grid": [2, 2],
        "max_new_tokens": NEW_TOKENS,
    }
    assert results["settings"] == {
        **results["generation"], "prompt": "as-trained", "limit": 1, "batch_size": 4, "seed": 3407, "device": "cpu"
    }  # fmt: skip
    assert results["checkpoint"]["fingerprint"] == checkpoint_fingerprint(golden.checkpoint, sampled=False)
    assert results["cut_off_at_max_new_tokens"] == 1
    (line,) = map(json.loads, (tmp_path / "run" / task.name / "predictions.jsonl").read_text("utf-8").splitlines())
    assert line["scores"]["official"] == score("accuracy", "official", line["answer"], ["?"])
    assert line["tokens"] == NEW_TOKENS


def test_fingerprint_follows_the_bytes_of_the_weights_and_not_their_place(golden, tmp_path):
    original = checkpoint_fingerprint(golden.checkpoint, sampled=False)
    copy = Path(shutil.copytree(golden.checkpoint, tmp_path / "copy"))
    assert checkpoint_fingerprint(copy, sampled=False) == original
    (copy / "generation_config.json").write_text('{"top_p": 0.5}')
    assert checkpoint_fingerprint(copy, sampled=False) == original
    shard = copy / "pytorch_model-00002-of-00003.bin"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert checkpoint_fingerprint(copy, sampled=False) != original


@pytest.fixture
def adapter(golden, tmp_path) -> Path:
    """A PEFT adapter folder as a fine-tuning run leaves it, whose weights turn the answers of a copied checkpoint."""
    base = shutil.copytree(golden.checkpoint, tmp_path / "base")
    model = MonkeyForConditionalGeneration.from_pretrained(base)
    wrapped = add_decoder_lora(model, SimpleNamespace(lora_r=4, lora_alpha=32, lora_dropout=0.0))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    folder = tmp_path / "adapter"
    save_adapter(wrapped, folder)
    MonkeyProcessor.from_pretrained(base).save_pretrained(folder)
    return folder


def test_an_adapter_folder_answers_with_its_own_weights(asked, backend, adapter):
    check_checkpoint(str(adapter))
    adapted = ModelBackend(str(adapter), device="cpu", num_workers=0)
    assert answers_of(adapted, asked[1], batch_size=3) != answers_of(backend, asked[1], batch_size=3)
    with pytest.raises(ValueError, match=r"--grid 1,2: .* is an adapter, trained for one grid"):
        ModelBackend(str(adapter), device="cpu", grid=(1, 2))


def test_fingerprint_of_an_adapter_follows_its_files_and_those_of_its_base(adapter):
    found = {checkpoint_fingerprint(adapter, sampled=False)}
    for name in (
        "adapter/adapter_model.safetensors",
        "adapter/adapter_config.json",
        "base/config.json",
        "base/*-00002-*",
    ):
        (path,) = adapter.parent.glob(name)
        path.write_bytes(path.read_bytes() + b" ")
        found.add(checkpoint_fingerprint(adapter, sampled=False))
    assert len(found) == 5


def test_what_an_adapter_lacks_is_named(adapter):
    base = adapter.parent / "base"
    base.rename(adapter.parent / "moved")
    with pytest.raises(FileNotFoundError, match=r"adapter is an adapter, and its base cannot be opened: .*no such"):
        check_checkpoint(str(adapter))
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no weights: neither adapter_model\.safetensors nor"):
        check_checkpoint(str(adapter))
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": null}')
    with pytest.raises(ValueError, match="base_model_name_or_path must name the checkpoint"):
        check_checkpoint(str(adapter))
