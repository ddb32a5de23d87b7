"""Evaluation sets as the hub has them, in the columns of each set, are asked and scored as files are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import evaluate_vqa
from eval.questions import load_question_set, unanswered_item
from eval.score import part_of
from eval.stored_questions import stored_question_file
from eval.tasks import GROUPS, TASKS, select_tasks
from monkey.data.records import BAD
from tests.made_shards import png, write_hub_set, write_table, write_tar


def image(shade: int, path: str | None = None) -> dict:
    return {"bytes": png(shade), "path": path}


YES_OR_NO = "Please answer yes or no."
QUERY = """\
Hint: Please answer the question and provide the correct option letter, e.g., A, B, C, D, at the end.
Question: How large?
Choices:
(A) 5°
(B) 6°"""
SUITE_ROWS = {
    "pope": [
        {"id": str(number), "question_id": "1", "question": "Is there a dog in the image?", "answer": answer}
        | {"image_source": "COCO_val2014_1", "image": image(1), "category": category}
        for number, (answer, category) in enumerate((("yes", "random"), ("yes", "adversarial")))
    ],
    "mme": [
        {"question_id": "count/1.png", "image": image(1), "question": f'Is it "{thing}"? {YES_OR_NO}', "answer": answer}
        | {"category": "count"}
        for thing, answer in (("a", "Yes"), ("b", "No"))
    ],
    "mmbench": [
        {"index": str(index), "question": "Which?", "hint": "nan", "answer": answer, "A": one, "B": two, "C": None}
        | {"category": "scene", "image": image(1), "source": "x", "L2-category": "coarse", "split": "dev"}
        for index, answer, one, two in ((4, "B", "moon", "sun"), (1_000_004, "A", "sun", "moon"))
    ],
    "hallusionbench": [
        {"category": "VD", "subcategory": "math", "visual_input": "1", "set_id": "0", "figure_id": "0"}
        | {"sample_note": "x", "question_id": number, "question": f"Is it {number}?", "gt_answer": gold}
        | {"gt_answer_details": "It is.", "filename": "./VD/math/0_0.png", "image": image(1)}
        for number, gold in (("0", "1"), ("1", "0"))
    ],
    "seedbench": [
        {"answer": "B", "choice_a": "One", "choice_b": "Two", "choice_c": "Three", "choice_d": "Four"}
        | {"data_id": ["1_1"], "data_type": kind, "question": "How many?", "question_id": str(number)}
        | {"question_type_id": number, "image": [image(shade) for shade in images], "segment": ["1"]}
        for kind, number, images in (("image", 5, [1]), ("video", 10, [2, 3]), ("image", 9, [4]))
    ],
    "mathvista_choice": [
        {"pid": pid, "question": "How large?", "image": "images/1.jpg", "decoded_image": image(1), "choices": choices}
        | {"unit": None, "precision": None, "answer": answer, "question_type": kind, "answer_type": "text"}
        | {"metadata": {"source": "GeoQA+", "task": "geometry problem solving", "language": "english"}, "query": QUERY}
        for pid, choices, answer, kind in (
            ("1", ["5°", "6°"], "6°", "multi_choice"),
            ("2", None, "3", "free_form"),
        )
    ],
}
"""Rows of the suites' hub forms, in the columns that lmms-eval reads, by metric."""

PEOPLE = [{"answer": "red", "answer_confidence": "yes", "answer_id": number} for number in range(1, 11)]
ROWS = {
    "vqav2_hub": {"question_type": "what color", "multiple_choice_answer": "red", "answers": PEOPLE, "image_id": 42}
    | {"answer_type": "other", "question_id": 42000, "question": "What color?", "image": image(1)},
    "okvqa_hub": {"question_id": "1", "image": image(1), "question": "What?", "answers": ["red"] * 10}
    | {"question_type": "one", "answer_type": "other"},
    "textvqa_hub": {
        "image_id": "a",
        "question_id": 3,
        "question": "what?",
        "question_tokens": ["what"],
        "image": image(1),
    }
    | {"image_width": 20, "answers": ["red"] * 10, "ocr_tokens": ["red"]},
    "vizwiz_hub": {"question_id": "VizWiz_val_0", "image": image(1), "question": "?", "answers": ["red"] * 10}
    | {"category": "other"},
    "docvqa_hub": {"questionId": "49153", "question": "Who?", "question_types": ["form"], "image": image(1)}
    | {"docId": 14465, "ucsf_document_page_no": "4", "answers": ["red", "Red"], "data_split": "val"},
    "infovqa_hub": {"questionId": "98313", "question": "Who?", "answers": ["red"], "image": image(1)},
    "chartqa_hub": {"type": "human_test", "question": "How many?", "answer": "14", "image": image(1)},
    "ai2d_hub": {"question": "Which?", "options": ["a leaf", "a root"], "answer": "1", "image": image(1)},
    "scienceqa_hub": {"image": image(1), "question": "Which?", "choices": ["a leaf", "a root"], "answer": 1, "hint": ""}
    | {"task": "closed choice", "grade": "grade2", "subject": "natural science", "topic": "x", "solution": "y"},
    "ocrbench_hub": {"dataset": "HME100k", "question": "Write it.", "question_type": "Handwritten", "image": image(1)}
    | {"answer": ["x ^ 2"]},
    **{name: SUITE_ROWS[TASKS[name].metric][0] for name in GROUPS["hub"] if TASKS[name].metric in SUITE_ROWS},
    "textcaps_hub": {"question_id": "x", "question": "Please carefully observe", "image": image(1), "image_id": "9"}
    | {"caption_id": [1, 2], "caption_str": ["a red box", "a box"], "reference_strs": ["a red box", "a box"]},
}
"""A row of each set that a task names, in the columns that lmms-eval reads."""

ASKED = {
    "ai2d_hub": ("Which?\na leaf\na root", ("a root",)),
    "scienceqa_hub": ("Context: N/A\nQuestion: Which?\nOptions: A. a leaf\nB. a root", ("B", "a root")),
    "textcaps_hub": ("Generate the caption in English:", ("a red box", "a box")),
    "docvqa_hub": ("Who?", ("red", "Red")),
    "chartqa_hub": ("How many?", ("14",)),
    "vqav2_hub": ("What color?", ("red",) * 10),
    "pope_hub": ("Is there a dog in the image?", ("yes",)),
    "mme_hub": ('Is it "a"? Please answer yes or no.', ("Yes",)),
    "hallusionbench_hub": ("Is it 0?", ("Yes",)),
    "mathvista_hub": (QUERY, ("B",)),
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A hub cache with every set of the group."""
    from huggingface_hub import constants

    folder = tmp_path_factory.mktemp("hub")
    files: dict[str, dict[str, list]] = {}
    for name in GROUPS["hub"]:
        repository, config, split = parts_of(TASKS[name].file)
        files.setdefault(repository, {})[f"{config}/{split}-00000-of-00001.parquet"] = [ROWS[name]]
    for repository, own in files.items():
        card = "---\nconfigs:\n" + "".join(
            f"- config_name: {path.partition('/')[0]}\n  data_files: [{{split: {split_of(path)}, path: {path}}}]\n"
            for path in own
        )
        write_hub_set(folder, repository, own, f"{card}---\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_CACHE", str(folder))
        yield folder


def parts_of(file: str) -> tuple[str, str, str]:
    name, split = file.removeprefix("hub:").split(":")
    owner, repository, *config = name.split("/")
    return f"{owner}/{repository}", config[0] if config else "default", split


def split_of(path: str) -> str:
    return Path(path).name.partition("-")[0]


def test_every_set_of_the_group_has_a_row_here():
    assert set(ROWS) == set(GROUPS["hub"])


@pytest.mark.parametrize("name", ROWS)
def test_a_set_of_the_hub_is_read_with_its_metric_and_parts(hub, name):
    one = load_question_set(TASKS[name])
    (question,) = one.questions
    assert question.image.read_bytes() == png(1)
    if name in ASKED:
        assert (question.question, question.answers) == ASKED[name]
    for part in TASKS[name].parts:
        assert part_of(TASKS[name].metric, part, unanswered_item(question)) is not None
    if name == "ocrbench_hub":
        assert question.more["dataset_name"] == "HME100k"


def test_the_evaluator_asks_and_scores_it(hub, tmp_path, capsys):
    words = ["--backend", "oracle", "--output-dir", str(tmp_path), "--save_name", "run"]
    dataset = "hub:lmms-lab/DocVQA:validation"
    assert evaluate_vqa.main([*words, "--dataset", dataset, "--metric", "anls"]) == 0
    results = json.loads((tmp_path / "run/DocVQA_validation/results.json").read_text())
    assert results["n"] == 1
    assert evaluate_vqa.main(["--check-data", "--dataset", dataset, "--metric", "anls"]) == 0
    assert "1 images" in capsys.readouterr().out
    assert evaluate_vqa.main([*words, "--dataset", "ai2d_hub,textvqa_hub"]) == 0


def write_questions(path: Path) -> Path:
    rows = [{"image": image(n), "question": f"{n}?", "answer": str(n), "question_id": n} for n in (4, 5)]
    if path.suffix == ".parquet":
        return write_table(path, rows)
    members = []
    for number, row in enumerate(rows):
        fields = {key: value for key, value in row.items() if key != "image"}
        members += [(f"{number}.png", row["image"]["bytes"]), (f"{number}.json", json.dumps(fields).encode())]
    return write_tar(path, members)


@pytest.mark.parametrize("name", ["mine.parquet", "mine.tar"])
def test_a_table_or_tar_of_ones_own_is_a_file_of_questions(tmp_path, name):
    path = write_questions(tmp_path / name)
    (task,) = select_tasks(str(path), "accuracy")
    one = load_question_set(task, tmp_path)
    assert [question.question_id for question in one.questions] == [4, 5]
    assert [question.image.read_bytes() for question in one.questions] == [png(4), png(5)]
    assert stored_question_file(str(path)) == one.file


def test_rows_that_are_left_out_are_counted(tmp_path, capsys):
    rows = [{"image": image(n) if n else None, "question": "?", "answer": str(n)} for n in (1, 0, 2)]
    path = write_table(tmp_path / "mine.parquet", rows)
    assert len(stored_question_file(str(path)).read_text().splitlines()) == 2
    assert f"note: {path}: 1 of 3 rows have no image, or are not asked, and are left out\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"image": image(1), "answer": "x"}, "there is no column 'question'; there are 'image', 'answer'"),
        ({"image": image(1), "question": "?"}, "there is no column 'answers' or 'answer'; a split without answers"),
        ({"image": image(1), "question": 5, "answer": "x"}, "'question' must be a text, found a whole number"),
        ({"image": "a.png", "question": "?", "answer": "x"}, "'a.png' stands in the place of an image and no bytes"),
        ({"image": {"bytes": None, "path": None}, "question": "?", "answer": "x"}, "neither bytes nor a path"),
        (
            {"image": image(1) | {"bytes": b"GIF89a"}, "question": "?", "answer": "x"},
            "is not an image that can be read",
        ),
        (
            {"images": [image(1), image(2)], "question": "?", "answer": "x"},
            "there are 2 images, and a question has one",
        ),
        ({"question": "?", "answer": "x"}, "none of its 1 rows has an image"),
        ({"image": image(1), "question": "?", "options": ["a"], "answer": 3}, "'answer' is 3, and there are 1 options"),
    ],
)
def test_a_row_that_is_no_question_is_named(tmp_path, row, sentence):
    path = write_table(tmp_path / "x.parquet", [row])
    with pytest.raises(BAD) as caught:
        stored_question_file(str(path))
    assert str(caught.value).startswith(str(path))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_set_that_is_not_in_the_offline_cache_is_one_sentence(hub, capsys):
    words = ["--dataset", "hub:lmms-lab/GQA:testdev", "--metric", "accuracy", "--backend", "oracle", "--save_name", "x"]
    assert evaluate_vqa.main(words) == 2
    assert "hub:lmms-lab/GQA:testdev: lmms-lab/GQA is not in the hub's offline cache" in capsys.readouterr().err
