"""Evaluation while training: the evaluator's own figures, training undisturbed to the bit."""

from __future__ import annotations

import contextlib
import json
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from transformers import GenerationConfig

from eval.backends import Failure, Request
from eval.in_training import InTrainingEval, _SharedBackend, draw
from eval.model_backend import ModelBackend
from eval.questions import Selection, load_question_set
from eval.run import RunSettings, run
from eval.tasks import AS_TRAINED, Task, prompt_form, select_tasks
from monkey.adapters import add_decoder_lora
from monkey.training.trainer import BestCheckpoint, MonkeyTrainer, undisturbed
from tests import forked
from tests.conftest import random_model
from tests.small_processor import refusal, small_config, small_processor

NEW_TOKENS = 6


def scoring_of(evaluator, processor, output_dir: Path, dtype: torch.dtype | None = None):
    """What the trainer does with an evaluator, without a run: (model, step) to scores in percent by task."""

    def scores(model, step: int) -> dict[str, float]:
        arguments = SimpleNamespace(output_dir=output_dir, bf16=dtype == torch.bfloat16, fp16=False)
        arguments.device = torch.device("cpu")
        trainer = SimpleNamespace(
            evaluator=evaluator, processing_class=processor, args=arguments, is_deepspeed_enabled=False,
            state=SimpleNamespace(global_step=step), _evaluated_model=lambda: model,
        )  # fmt: skip
        return MonkeyTrainer._scores(trainer)

    return scores


def _write_questions(folder: Path, count: int = 7, name: str = "colours.jsonl") -> Path:
    (folder / "images").mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(count):
        image = folder / "images" / f"{number}.png"
        Image.new("RGB", (20 + number, 16), (30 * number, 90, 200)).save(image)
        question = "What" + " is" * (number % 3) + "?"
        lines.append({"image": f"images/{number}.png", "question": question, "answer": "?", "question_id": number})
    path = folder / name
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    task = f'file = "{name}"\nmetric = "accuracy"\nmax_new_tokens = {NEW_TOKENS}\n'
    path.with_suffix(".toml").write_text(task, encoding="utf-8")
    return path


@pytest.fixture
def questions(tmp_path) -> Path:
    return _write_questions(tmp_path / "data")


def _evaluator(path: Path, **changes):
    """Of the task beside a file of questions."""
    return InTrainingEval(str(path.with_suffix(".toml")), **{"batch_size": 2, "num_workers": 0, **changes})


def _task(path: Path) -> Task:
    (task,) = select_tasks(str(path.with_suffix(".toml")))
    return task


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class TestScores:
    def test_they_are_those_that_the_evaluator_gives_the_saved_checkpoint(self, questions, tmp_path):
        model, processor = random_model(small_config()), small_processor()
        # Settings that belong to a chat must not reach the answers.
        model.generation_config = GenerationConfig(do_sample=True, temperature=5.0, eos_token_id=7)
        model.save_pretrained(tmp_path / "saved")
        processor.save_pretrained(tmp_path / "saved")
        task = _task(questions)
        settings = RunSettings(tmp_path / "run", show_progress=False, batch_size=3)
        (alone,) = run([task], settings, lambda: ModelBackend(str(tmp_path / "saved"), "cpu", num_workers=0))

        scoring = scoring_of(_evaluator(questions, limit=None), processor, tmp_path / "out")
        scores = scoring(model.train(), step=5)
        folder = tmp_path / "out" / "scores" / "step-5"
        inside = json.loads((folder / "colours" / "results.json").read_text())
        assert scores == {"colours": alone["scores"]["official"]["value"]}
        assert inside["scores"] == alone["scores"]
        assert inside["generation"] == alone["generation"]
        assert inside["prompt"] == alone["prompt"]
        kept = _lines(folder / "colours" / "predictions.jsonl")
        assert kept == _lines(tmp_path / "run" / "colours" / "predictions.jsonl")
        assert len({line["raw"] for line in kept}) > 1
        assert json.loads((folder / "scores.json").read_text())["scores"] == scores
        assert sorted(path.name for path in folder.iterdir()) == ["colours", "scores.json", "summary.json"]

    def test_a_model_wrapped_by_peft_answers_with_its_adapters(self, questions, tmp_path):
        def predictions(model, name):
            scoring_of(_evaluator(questions, limit=None), small_processor(), tmp_path / name)(model, step=1)
            lines = _lines(tmp_path / name / "scores" / "step-1" / "colours" / "predictions.jsonl")
            return [line["raw"] for line in lines]

        plain = predictions(random_model(small_config()), "plain")
        wrapped = add_decoder_lora(
            random_model(small_config()), SimpleNamespace(lora_r=4, lora_alpha=8, lora_dropout=0.5)
        )
        assert predictions(wrapped.train(), "zero") == plain
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
        adapted = predictions(wrapped.train(), "adapted")
        assert adapted != plain
        assert adapted == predictions(wrapped.merge_and_unload(), "merged")

    def test_narrowed_steps_answer_narrowed_and_the_record_says_so(self, questions, tmp_path):
        model = random_model(small_config())
        evaluator = _evaluator(questions, limit=2)
        scoring_of(evaluator, small_processor(), tmp_path, torch.bfloat16)(model, step=3)
        results = json.loads((tmp_path / "scores" / "step-3" / "colours" / "results.json").read_text())
        assert results["generation"]["dtype"] == "float32, computed in bfloat16"
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}

    def test_the_same_questions_are_drawn_whatever_the_order_of_the_file(self, questions):
        whole = load_question_set(_task(questions))
        chosen = draw(whole, 3, seed=1)
        assert len(chosen.questions) == 3
        assert [q.row for q in chosen.questions] == sorted(q.row for q in chosen.questions)
        assert set(chosen.image_digests) == {q.image for q in chosen.questions}
        lines = questions.read_text().splitlines()
        questions.write_text("\n".join(reversed(lines)) + "\n")
        again = draw(load_question_set(_task(questions)), 3, seed=1)
        assert {q.question_id for q in again.questions} == {q.question_id for q in chosen.questions}
        draws = [{q.question_id for q in draw(whole, 3, seed=seed).questions} for seed in range(8)]
        assert any(draw != draws[0] for draw in draws)
        assert draw(whole, None, seed=1) is whole

    def test_nothing_half_written_is_left_when_scoring_fails(self, questions, tmp_path, monkeypatch):
        scoring = scoring_of(_evaluator(questions, limit=2), small_processor(), tmp_path)

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("eval.run_folder.write_lines", full)
        model = random_model(small_config()).train()
        with pytest.raises(OSError, match="No space left"):
            scoring(model, step=1)
        assert not list((tmp_path / "scores").iterdir())
        assert model.training


class TestWrongData:
    def test_unknown_task_and_missing_file_stop_before_anything(self, tmp_path):
        assert "unknown task 'textvqa'" in refusal(lambda: InTrainingEval("textvqa"))
        message = refusal(lambda: InTrainingEval("textvqa_val", data_root=tmp_path), FileNotFoundError)
        assert "textvqa_val.jsonl is missing; --data-root" in message

    def test_what_cannot_be_asked_is_named_by_the_check(self, questions):
        (questions.parent / "images" / "4.png").write_text("not a picture")
        evaluator, processor = _evaluator(questions, limit=None), small_processor()
        assert refusal(lambda: evaluator.check(processor)).startswith(f"{questions}:5: ")
        processor.max_positions = 12
        assert "more than the 12 allowed" in refusal(lambda: evaluator.check(processor))

    def test_a_picture_that_goes_away_during_the_run_is_no_silent_zero(self, questions, tmp_path):
        evaluator = _evaluator(questions, limit=None)
        (questions.parent / "images" / "4.png").unlink()
        scoring = scoring_of(evaluator, small_processor(), tmp_path / "out")
        message = refusal(lambda: scoring(random_model(small_config()), step=1))
        assert message.startswith(f"1 of 7 questions could not be asked: {questions}:5: ")
        assert not list((tmp_path / "out" / "scores").iterdir())


def _steps(model, evaluate=None) -> list[float]:
    """Losses of eight steps with dropout, batches draw by Python, NumPy and PyTorch in turn."""
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    processor = small_processor()
    samples = [
        processor.encode_conversation(
            [{"role": "user", "text": f"<img></img> {word}? "}, {"role": "assistant", "text": word}],
            [Image.new("RGB", (8, 8), word)],
        )
        for word in ("red", "green", "blue", "black")
    ]
    draws = (lambda: random.randrange(4), lambda: int(np.random.randint(4)), lambda: int(torch.randint(4, ())))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    losses = []
    for step in range(8):
        batch = processor.collate([samples[draws[step % 3]()], samples[draws[(step + 1) % 3]()]])
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if evaluate is not None and step % 2:
            evaluate(model, step)
    return losses


class TestUndisturbed:
    @pytest.fixture
    def config(self):
        return small_config(adapter_rank=4, adapter_dropout=0.2)

    @pytest.mark.parametrize("checkpointing", [False, True])
    def test_training_goes_on_bit_for_bit(self, config, questions, tmp_path, checkpointing):
        models = [random_model(config) for _ in range(2)]
        if checkpointing:
            for model in models:
                model.activation_checkpointing_enable({"use_reentrant": False})
        straight = _steps(models[0])
        scoring = scoring_of(_evaluator(questions, limit=3, num_workers=1), small_processor(), tmp_path)
        assert _steps(models[1], scoring) == straight
        assert len(set(straight)) == len(straight)
        pairs = zip(models[0].state_dict().values(), models[1].state_dict().values(), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
        assert len(list((tmp_path / "scores").iterdir())) == 4

    def test_modes_settings_and_random_states_come_back_even_after_an_error(self, config):
        model = random_model(config).train()
        model.model.visual.eval()
        model.generation_config.temperature = 0.5
        modes, settings = [module.training for module in model.modules()], model.generation_config
        torch.manual_seed(5), np.random.seed(5), random.seed(5)

        def broken_off():
            with undisturbed(model):
                assert not any(module.training for module in model.modules())
                assert model.generation_config.temperature is None
                torch.rand(3), np.random.rand(3), random.random()
                raise KeyError

        with pytest.raises(KeyError):
            broken_off()
        assert [module.training for module in model.modules()] == modes
        assert model.generation_config is settings
        after = torch.rand(()).item(), np.random.rand(), random.random()
        torch.manual_seed(5), np.random.seed(5), random.seed(5)
        assert after == (torch.rand(()).item(), np.random.rand(), random.random())


def _processes(rank: int, size: int, folder: str, wrapped: bool) -> None:
    """One process of a test: its scores go to a file of its own."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    try:
        model = random_model(small_config())
        if wrapped:
            model = torch.nn.parallel.DistributedDataParallel(model)
        place = Path(folder)
        scoring = scoring_of(_evaluator(place / "data" / "colours.jsonl", limit=5), small_processor(), place / "shared")
        scores = scoring(model, step=2)
        best = BestCheckpoint(place / "shared", "score", greater_is_better=True)
        saved = []
        # Figures that differ between processes must not part them.
        metrics = {"eval_score": [50.0, 0.0][rank]}
        kept = best.keep(2, metrics, lambda aside: (saved.append(rank), (aside / f"shard-{rank}").touch()))
        kept = [kept, best.keep(3, {"eval_score": [40.0, 99.0][rank]}, lambda aside: saved.append(rank))]
        (place / f"seen-{rank}.json").write_text(json.dumps([scores, kept, saved]))
    finally:
        dist.destroy_process_group()


class TestProcesses:
    def test_two_processes_share_the_questions_and_agree(self, tmp_path):
        _write_questions(tmp_path / "data")
        forked.start_server()
        torch.multiprocessing.start_processes(_processes, (2, str(tmp_path), True), nprocs=2, start_method="forkserver")
        scoring = scoring_of(
            _evaluator(tmp_path / "data" / "colours.jsonl", limit=5), small_processor(), tmp_path / "alone"
        )
        scores = scoring(random_model(small_config()), step=2)
        seen = [json.loads((tmp_path / f"seen-{rank}.json").read_text()) for rank in range(2)]
        assert seen == [[scores, [True, False], [0]], [scores, [True, False], [1]]]
        one, other = (
            _lines(tmp_path / name / "scores" / "step-2" / "colours" / "predictions.jsonl")
            for name in ("shared", "alone")
        )
        assert one == other
        kept = tmp_path / "shared" / "best"
        assert sorted(path.name for path in kept.iterdir()) == ["best.json", "shard-0", "shard-1"]

    @pytest.mark.parametrize(("count", "size"), [(5, 2), (1, 4), (7, 3)])
    def test_all_processes_make_the_same_number_of_batches_and_ask_each_row_once(
        self, questions, monkeypatch, count, size
    ):
        """Else one would wait for ever for the others' part of a sharded weight."""
        task = _task(questions)
        form = prompt_form(task, AS_TRAINED)
        chosen = load_question_set(task, selection=Selection(limit=count))
        requests = [Request(task, question, form) for question in chosen.questions]
        asked, kept = [], []
        for rank in range(size):
            batches = []
            fake = _FakeBackend(batches)
            monkeypatch.setattr("eval.in_training._rank_and_size", lambda rank=rank: (rank, size))
            monkeypatch.setattr("eval.in_training.gathered", lambda own: (kept.append(own), [own])[1])
            with pytest.raises(ValueError, match="because") if rank < count else contextlib.nullcontext():
                list(_SharedBackend(fake).batches(requests, batch_size=2))
            asked.append(len(batches))
        assert set(asked) == {asked[0]}
        assert asked[0] > 0
        rows = [result.row for own in kept for result in own]
        assert sorted(rows) == [request.row for request in requests]


class _FakeBackend:
    """Fails every request, which is the shortest result that names its row."""

    name, settings, fingerprint, device = "fake", {}, "fake", None

    def __init__(self, seen: list):
        self.seen = seen

    def batches(self, requests, batch_size):
        return [requests[start : start + batch_size] for start in range(0, len(requests), batch_size)]

    def generate_answers(self, batch):
        self.seen.append(batch)
        return [Failure(request.row, "because") for request in batch]
