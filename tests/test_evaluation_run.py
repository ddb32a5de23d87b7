"""What a run asks, counts and leaves behind: selections, images that are missing, memory that runs out, its files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import evaluate_vqa
from eval.asking import MAX_TOGETHER, Asker, describe_throughput, shard, throughput
from eval.backends import EchoBackend, OracleBackend, Request
from eval.questions import Selection, load_question_set
from eval.run import open_journal, run
from eval.run_folder import incompleteness, is_complete
from eval.tables import notes
from eval.tasks import TASKS, PromptForm
from monkey.data.records import Question
from tests.test_evaluation import lines_of, own_task, program, row, run_one, settings, write_set

FORM = PromptForm("file", "<img></img> {question}")


@pytest.fixture
def sums(tmp_path) -> Path:
    return write_set(tmp_path / "data", [row(number) for number in range(10)])


def asked_rows(folder: Path) -> list[int]:
    return [line["row"] for line in lines_of(folder / "sums" / "predictions.jsonl")]


def requests_of(images: list[int], lengths: list[int]) -> list[Request]:
    task = own_task(Path("x.jsonl"))
    return [
        Request(task, Question(row, row, Path(f"{image}.png"), "q" * length, ("a",), f"x.jsonl:{row + 1}"), FORM)
        for row, (image, length) in enumerate(zip(images, lengths, strict=True))
    ]


class TestSelections:
    def test_a_sample_takes_whole_images_the_same_each_time_and_another_for_another_seed(self, sums, tmp_path):
        def drawn(seed: int) -> tuple[int, ...]:
            chosen = load_question_set(own_task(sums), selection=Selection(sample=4, seed=seed))
            return tuple(question.row for question in chosen.questions)

        run_one(sums, tmp_path / "run", sample=4, seed=1)
        assert asked_rows(tmp_path / "run") == sorted(drawn(1)) == list(drawn(1))
        samples = {drawn(seed) for seed in range(8)}
        assert len(samples) > 1
        # Row r shows image r % 3, so four rows are an image and a part of another, or image 0 alone.
        assert all(len({row % 3 for row in sample}) <= 2 for sample in samples)

    def test_ids_of_a_file_are_asked_in_the_order_of_the_questions_and_unknown_ones_named(self, sums, tmp_path):
        ids = tmp_path / "ids.txt"
        ids.write_text("107\n\n 101 \n107\n")
        results = run_one(sums, tmp_path / "run", ids=ids)
        assert asked_rows(tmp_path / "run") == [1, 7]
        assert (results["n"], results["dataset"]["rows_in_file"], results["dataset"]["ids"]) == (2, 10, str(ids))
        assert "2 of 10 questions were asked." in notes(results)
        ids.write_text("101\n999\n")
        with pytest.raises(ValueError, match=r"ids\.txt:2: no question of .*sums\.jsonl has the id '999'"):
            run_one(sums, tmp_path / "run", ids=ids)
        ids.write_text("\n")
        with pytest.raises(ValueError, match=r"holds no id; write one a line"):
            run_one(sums, tmp_path / "run", ids=ids)


def test_missing_images_stop_a_run_or_are_counted_and_made_good_once_they_are_there(tmp_path, capsys):
    holed = write_set(tmp_path / "data", [row(0), row(1, image="images/none.png"), row(2)])
    assert program(holed, tmp_path / "result") == 2
    assert "sums.jsonl:2: no image images/none.png" in (error := capsys.readouterr().err)
    assert "--allow-missing goes on without it" in error

    assert program(holed, tmp_path / "result", "--allow-missing") == 0
    results = json.loads((tmp_path / "result" / "run" / "sums" / "results.json").read_text())
    assert (results["complete"], results["n"], results["n_expected"], results["missing"]) == (False, 2, 3, [101])
    assert [failure["question_id"] for failure in results["failed"]] == [101]
    assert "left out: sums: " in (error := capsys.readouterr().err)
    assert "no image images/none.png" in error

    class Dropping(OracleBackend):
        def generate_answers(self, batch):
            return super().generate_answers(batch)[1:]

    # Nothing else that is missing is allowed with them.
    results = run([own_task(holed)], settings(tmp_path / "run", allow_missing=True), Dropping)
    assert not is_complete(results, allow_missing=True)
    (holed.parent / "images" / "none.png").write_bytes((holed.parent / "images" / "0.png").read_bytes())
    assert run_one(holed, tmp_path / "run")["complete"]


def test_a_lone_empty_reference_is_scored_and_counted(tmp_path):
    """The published ESTVQA has three; they are among the 5,000 of its published scores."""
    path = write_set(tmp_path / "data", [row(0, answer=""), row(1, answer=["", " "]), row(2)])
    results = run_one(path, tmp_path / "run")
    assert (results["complete"], results["n"], results["without_reference"]) == (True, 3, 2)
    assert lines_of(tmp_path / "run" / "sums" / "predictions.jsonl")[1]["references"] == ["", " "]


class TestSharing:
    @pytest.mark.parametrize("size", [1, 3])
    @pytest.mark.parametrize("count", [0, 1, 200])
    def test_every_row_is_in_one_share_and_no_image_is_split(self, size, count):
        requests = requests_of([row // 5 for row in range(count)], [row % 7 for row in range(count)])
        shares = [[request.row for request in share] for share in shard(requests, size)]
        assert len(shares) == size
        assert sorted(row for share in shares for row in share) == list(range(count))
        for image in range(count // 5):
            assert sum(any(row // 5 == image for row in share) for share in shares) == 1
        assert max(map(len, shares)) - min(map(len, shares)) <= 5

    def test_long_prompts_come_first_and_very_many_questions_on_one_image_are_shared(self):
        (share,) = shard(requests_of([0, 1, 0, 2, 1], [3, 5, 9, 9, 5]), 1)
        assert [request.row for request in share] == [2, 0, 3, 1, 4]
        count = 3 * MAX_TOGETHER
        assert [len(share) for share in shard(requests_of([0] * count, [1] * count), 3)] == [MAX_TOGETHER] * 3


class ScarceBackend(EchoBackend):
    """Echo on a device whose memory holds only so many questions, or whose memory a row exceeds by itself."""

    def __init__(self, holds: int, too_large: int | None = None, later: int | None = None):
        super().__init__()
        self.holds, self.too_large, self.later = holds, too_large, later
        self.sizes: list[int] = []

    def generate_answers(self, batch):
        holds = self.later if self.later and self.sizes else self.holds
        if len(batch) > holds or any(request.row == self.too_large for request in batch):
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.sizes.append(len(batch))
        return super().generate_answers(batch)


class TestMemory:
    @pytest.mark.parametrize(
        ("backend", "batch_size", "sizes"),
        [(ScarceBackend(holds=3), 8, [2] * 5), (ScarceBackend(holds=4, later=1), 4, [4, *[1] * 6])],
    )
    def test_running_out_halves_the_batch_and_goes_on_with_what_is_left(
        self, sums, tmp_path, backend, batch_size, sizes
    ):
        assert run_one(sums, tmp_path / "run", lambda: backend, batch_size=batch_size)["complete"]
        assert backend.sizes == sizes
        run_one(sums, tmp_path / "plenty", EchoBackend, batch_size=8)
        one, other = (tmp_path / name / "sums" / "predictions.jsonl" for name in ("run", "plenty"))
        assert one.read_bytes() == other.read_bytes()

    def test_a_question_too_large_by_itself_is_named_and_leaves_the_others_alone(self, sums, tmp_path):
        results = run_one(sums, tmp_path / "run", lambda: ScarceBackend(holds=8, too_large=4))
        assert (results["n"], results["missing"]) == (9, [104])
        assert any("sums.jsonl:5: out of memory with this question alone" in line for line in incompleteness(results))

    def test_memory_that_runs_out_while_batches_are_made_ends_the_run(self, sums, tmp_path):
        """A backend that shares its questions among processes answers there; one process cannot ask again alone."""

        class Shared(EchoBackend):
            def batches(self, requests, batch_size):
                raise torch.OutOfMemoryError("CUDA out of memory")

        with pytest.raises(torch.OutOfMemoryError):
            run_one(sums, tmp_path / "run", Shared)


class TestFiles:
    def test_a_file_that_cannot_be_written_is_one_sentence(self, sums, tmp_path):
        (tmp_path / "run" / "sums" / "predictions.jsonl" / "in the way").mkdir(parents=True)
        with pytest.raises(OSError, match=r"sums: results cannot be written \(Is a directory\); make room and give"):
            run_one(sums, tmp_path / "run")

    def test_files_do_not_tell_in_how_many_starts_they_were_made(self, sums, tmp_path):
        whole, parts = tmp_path / "whole", tmp_path / "parts"
        run_one(sums, whole)
        run_one(sums, parts, limit=3)
        run_one(sums, parts)
        names = {path.relative_to(whole) for path in whole.rglob("*") if path.is_file()}
        assert {path.name for path in names} == {
            "predictions.jsonl", "results.json", "journal.jsonl", "sums.json", "sums.txt", "timing.jsonl",
            "summary.json", "summary.md", "summary.csv", "summary.tex",
        }  # fmt: skip
        for name in names:
            if name.name not in ("journal.jsonl", "timing.jsonl"):
                assert (whole / name).read_bytes() == (parts / name).read_bytes(), name

    def test_timing_has_rates_of_questions_images_and_tokens_and_of_the_backends_stages(self, sums, tmp_path):
        class Working(EchoBackend):
            def __init__(self):
                super().__init__()
                self.work = {"vision_seconds": 7.0, "decode_seconds": 1.0}

            def generate_answers(self, batch):
                self.work["vision_seconds"] += 0.75
                self.work["decode_seconds"] += 0.25
                self.work["peak_bytes"] = 3 * 2**30
                return super().generate_answers(batch)

        run_one(sums, tmp_path / "run", Working, batch_size=5)
        (line,) = lines_of(tmp_path / "run" / "timing.jsonl")
        asked = line["asked"]
        assert (asked["questions"], asked["images"], asked["tokens"], asked["processes"]) == (10, 3, 50, 1)
        assert asked["work"] == {"vision_seconds": 1.5, "decode_seconds": 0.5, "peak_bytes": 3 * 2**30}
        assert describe_throughput(asked).endswith("vision 75%, decode 25%, 3.0 GiB at most")

    def test_nothing_asked_and_signs_that_stay_characters_are_said(self, tmp_path, capsys):
        path = write_set(tmp_path, [row(0), row(1, question="Where is <ref>it</ref>?")])
        for _ in range(2):
            assert program(path, tmp_path / "result") == 0
        said = capsys.readouterr()
        assert "asked no question: the answers were there" in said.out
        sentence = f"note: task {path.stem}: 1 of 2 questions; {path}:2: the question holds '<ref>', which is read"
        assert sentence in said.err
        assert 'prompt = "region"' in said.err
        figures = throughput([])
        assert describe_throughput(figures, 1) == "asked no question: none of the 1 that were left could be asked"


def test_an_answer_is_in_the_journal_before_the_next_batch_begins(tmp_path):
    path = tmp_path / "journal.jsonl"
    seen = []

    class Looking(EchoBackend):
        def generate_answers(self, batch):
            seen.append(len(path.read_bytes().splitlines()))
            return super().generate_answers(batch)

    requests = requests_of([0] * 6, [1] * 6)
    with open_journal(path) as journal:
        Asker(Looking(), 2).ask(requests, {request.row: str(request.row) for request in requests}, journal)
    assert seen == [0, 2, 4]


def test_check_data_reads_the_questions_and_needs_no_model(sums, capsys):
    command = ["--check-data", "--dataset", str(sums), "--metric", "accuracy", "--num-workers", "0"]
    assert evaluate_vqa.main(command) == 0
    (sums.parent / "images" / "1.png").write_text("no picture")
    assert evaluate_vqa.main(command) == 1
    assert "1.png" in capsys.readouterr().out


def test_ten_answers_of_the_annotation_file_replace_the_one_of_the_questions(tmp_path):
    task = TASKS["textvqa_val"]
    write_set(tmp_path, [row(0, answer="nike")], task.file)
    with pytest.raises(ValueError, match=r"jsonl:1: vqa_score needs at least 4 answers, and there are 1; .*"):
        load_question_set(task, tmp_path)
    people = [{"answer": "nike", "answer_id": number} for number in range(10)]
    annotations = tmp_path / task.annotations
    annotations.write_text(json.dumps({"annotations": [{"question_id": 100, "answers": people}]}))
    question_set = load_question_set(task, tmp_path)
    assert question_set.questions[0].answers == ("nike",) * 10
    assert question_set.annotations == annotations
    annotations.write_text(json.dumps({"annotations": [{"question_id": 99, "answers": people}]}))
    with pytest.raises(ValueError, match=r"jsonl:1: question_id 100 has no answers in .*annotations\.json"):
        load_question_set(task, tmp_path)
    annotations.write_text("[]")
    with pytest.raises(ValueError, match="is not a VQA annotation file"):
        load_question_set(task, tmp_path)
