"""Small releases in the official formats of the data sets, as `eval.prepare` reads them: a few rows, tiny pictures.

`RELEASES[task](folder)` writes one and returns how many questions it gives, and what the first line of the task's
question file must hold beside its picture.
"""

from __future__ import annotations

import base64
import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eval.metrics.yes_no import SUBTASKS
from eval.tasks import TASKS

Made = tuple[int, dict[str, Any]]
TEN = ["red", "red", "red", "blue", "red", "dark red", "red", "red", "red", ""]


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (12, 8)) -> Path:
    """A picture of noise, width × height, whose pixels depend on the seed alone where its format loses none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _people(answers: list[str], **more: str) -> list[dict[str, Any]]:
    return [
        {"answer": answer, "answer_confidence": "yes", "answer_id": number, **more}
        for number, answer in enumerate(answers, 1)
    ]


def _coco(folder: Path, prefix: str, people: list[dict[str, Any]]) -> None:
    questions = [
        {"image_id": 42, "question": "What colour is it?", "question_id": 42000},
        {"image_id": 42, "question": "Which one?", "question_id": 42001},
        {"image_id": 73, "question": "How many?", "question_id": 73000},
    ]
    content = {"info": {}, "data_subtype": "val2014", "license": {}, "questions": questions}
    write_json(folder / f"{prefix}OpenEnded_mscoco_val2014_questions.json", content)
    annotations = [
        {
            "question_id": row["question_id"],
            "image_id": row["image_id"],
            "question_type": "what",
            "answer_type": "other",
            "answers": people,
        }
        for row in reversed(questions)
    ]
    write_json(folder / f"{prefix}mscoco_val2014_annotations.json", {"annotations": annotations})
    for number in (42, 73):
        picture(folder / f"val2014/COCO_val2014_{number:012d}.jpg", number)


def vqav2(folder: Path) -> Made:
    _coco(folder, "v2_", _people(TEN))
    return 3, {"question": "What colour is it?", "answer": TEN, "question_id": 42000}


def okvqa(folder: Path) -> Made:
    _coco(folder, "", _people(["race"] * 10, raw_answer="racing"))
    return 3, {"question_id": 42000, "answer": ["race"] * 10, "raw_answers": ["racing"] * 10}


def textvqa(folder: Path) -> Made:
    rows = [
        {"question_id": 34602, "question": "what is the brand?", "image_id": "003a8ae2ef43b901", "answers": TEN},
        {"question_id": 34603, "question": "what is read?", "image_id": "0054c91397f2fe05", "answers": ["no"] * 10},
    ]
    write_json(folder / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "dataset_version": "0.5.1", "data": rows})
    for number, row in enumerate(rows):
        picture(folder / f"train_images/{row['image_id']}.jpg", number)
    return 2, {"question": "what is the brand?", "answer": TEN, "question_id": 34602}


def rotations(folder: Path, **degrees: str) -> None:
    """Open Images' list, with columns that are not read; a picture it does not know is upright."""
    lines = ["ImageID,Subset,Title,Rotation", *(f'{key[1:]},train,"a, b",{text}' for key, text in degrees.items())]
    (folder / "train-images-boxable-with-rotation.csv").write_text("\n".join(lines) + "\n")


def textcaps(folder: Path) -> Made:
    references = {
        name: [f"a {thing} that says {number}" for number in range(5)]
        for name, thing in (("0aa1", "sign"), ("0bb2", "bottle"))
    }
    rows = [
        {"image_id": name, "image_name": name, "caption_id": number, "caption_str": one, "reference_strs": five}
        for name, five in references.items()
        for number, one in enumerate(five)
    ]
    write_json(folder / "TextCaps_0.1_val.json", {"data": rows})
    for number, name in enumerate(("0aa1", "0bb2")):
        picture(folder / f"train_images/{name}.jpg", number)
    return 2, {"answer": references["0aa1"], "question_id": "0aa1"}


def vizwiz(folder: Path) -> Made:
    people = [{"answer": answer, "answer_confidence": "maybe"} for answer in TEN]
    rows = [
        {"image": f"VizWiz_val_{number:08d}.jpg", "question": "What is it?", "answers": people, "answer_type": "other"}
        | {"answerable": 1}
        for number in (0, 17)
    ]
    write_json(folder / "Annotations/val.json", rows)
    for number in (0, 17):
        picture(folder / f"val/VizWiz_val_{number:08d}.jpg", number)
    return 2, {"question_id": 0, "answer": TEN, "answerable": 1}


def gqa(folder: Path) -> Made:
    def entry(**changes: Any) -> dict[str, Any]:
        types = {"structural": "verify", "semantic": "obj", "detailed": "exist"}
        return {"question": "Is it?", "imageId": "n1", "answer": "yes", "isBalanced": True, "types": types} | changes

    questions = {"201": entry(), "202": entry(isBalanced=False), "203": entry(imageId="n2", answer="no")}
    write_json(folder / "testdev_balanced_questions.json", questions)
    picture(folder / "images/n1.jpg", 1)
    picture(folder / "images/n2.jpg", 2)
    return 2, {"question_id": "201", "answer": "yes"}


def documents(folder: Path, file: str, key: str, pictures: str, with_answers: bool = True) -> Made:
    """The Robust Reading Competition's form."""
    rows = [
        {"questionId": 337, "question": "what is the date?", key: "documents/x_1.png", "answers": ["1/8/93", "1-8-93"]},
        {"questionId": 338, "question": "what is confidential?", key: "documents/x_2.png", "answers": ["yes"]},
    ]
    for number, row in enumerate(rows):
        picture(folder / pictures / row[key], number)
        if not with_answers:
            del row["answers"]
    write_json(folder / file, {"dataset_name": "SP-DocVQA", "data": rows})
    return 2, {"question_id": 337, "answer": ["1/8/93", "1-8-93"]}


def docvqa(folder: Path) -> Made:
    return documents(folder, "test_v1.0.json", "image", "test")


def infovqa(folder: Path) -> Made:
    return documents(folder, "infographicsVQA_test_v1.0.json", "image_local_name", "images")


def due_questions(folder: Path) -> Made:
    """The DUE package of DocVQA: document names, questions as keys, one picture a document."""
    values = [{"value": "memo", "value_variants": ["memo", "MEMO"]}]
    annotation = {"id": "44818", "key": "What is it?", "values": values, "metadata": {"question_id": 16365}}
    rows = [{"name": "lflm0081_1", "language": "en", "annotations": [annotation], "split": "test"}]
    write_lines(folder / "test/document.jsonl", rows)
    picture(folder / "png/lflm0081_1/0.png")
    return 1, {"question_id": 16365, "answer": ["memo", "MEMO"], "question": "What is it?"}


def chartqa(folder: Path) -> Made:
    for part, labels in (("human", ["14", "0.57"]), ("augmented", ["23"])):
        rows = [{"imgname": f"{part}.png", "query": f"How much {part}?", "label": label} for label in labels]
        write_json(folder / f"ChartQA Dataset/test/test_{part}.json", rows)
        picture(folder / f"ChartQA Dataset/test/png/{part}.png", len(labels))
    return 3, {"question_id": 0, "question": "How much human?", "answer": "14", "part": "human"}


def stvqa(folder: Path) -> Made:
    rows = [
        {"question_id": 9000 + number, "question": f"What is {number}?", "answers": [f"number {number}", str(number)]}
        | {"dataset": "coco-text", "file_name": f"COCO_train2014_{number}.jpg"}
        | {"file_path": f"coco-text/COCO_train2014_{number}.jpg"}
        for number in range(3)
    ]
    write_json(folder / "train_task_3.json", {"task": 3, "data": rows})
    for number in range(3):
        picture(folder / f"coco-text/COCO_train2014_{number}.jpg", number)
    return 3, {"question_id": 0, "question": "What is 0?", "answer": ["number 0", "0"], "train_question_id": 9000}


def stvqa_predictions(folder: Path) -> Made:
    """What the authors of OCRBench published of the subset: a model's predictions."""
    images = ("VisualGenome/1/2341689.jpg", "coco-text/COCO_train2014_0.jpg")
    rows = [
        {"question": f"What is {number}?", "answer": "a cat", "gt_answers": [str(number)], "model_name": "BLIP2"}
        | {"image_path": f"./data/STVQA/{image}"}
        for number, image in zip((2, 0), images, strict=True)
    ]
    picture(folder / images[0])
    write_json(folder / "answer_save/T5/STVQA.json", rows)
    return 2, {"question_id": 0, "question": "What is 2?", "answer": ["2"]}


def estvqa(folder: Path) -> Made:
    rows = [
        {"image": "011364.jpg", "annotation": [{"question": "What is this store?", "answer": "pizzeria"}]},
        {"image": "011365.jpg", "annotation": [{"question": "这家店的名字是什么?", "answer": "佳霓"}]},
        {"image": "011366.jpg", "annotation": [{"question": "What number?", "answer": "9"}]},
    ]
    write_json(folder / "annotations/train.json", rows)
    for number, row in enumerate(rows):
        picture(folder / "images/train" / row["image"], number)
    return 2, {"question": "What is this store?", "answer": "pizzeria", "question_id": 0}


def estvqa_official(folder: Path) -> Made:
    box = ["53", "680", "50", "727", "415", "711", "414", "661"]
    rows = [
        {"question_id": 0, "question": "这家店的名字是什么?", "answer": "禾不锈钢", "evidence": box},
        {"question_id": 1, "question": "What number?", "answer": "9", "evidence": box},
    ]
    write_json(folder / "annotations/test.json", rows)
    write_json(folder / "test_images.json", [{"question_id": number, "image": f"{number}.jpg"} for number in (1, 0)])
    for number in range(2):
        picture(folder / f"images/test/{number}.jpg", number)
    return 2, {**rows[0], "language": "Chinese"}


def estvqa_predictions(folder: Path) -> Made:
    rows = [
        {"question": "What number?", "answer": "7", "gt_answers": "9", "model_name": "BLIP2"}
        | {"image_path": "./data/ESTVQA/images/train/011366.jpg"}
    ]
    write_json(folder / "ESTVQA_EN.json", rows)
    return 1, {"question": "What number?", "answer": "9", "question_id": 0}


def ai2d(folder: Path) -> Made:
    def entry(number: int, abc: bool) -> dict[str, Any]:
        options = ["A", "B", "C", "D"] if abc else ["moon", "sun", "star", "earth"]
        return {"questionId": f"1.png-{number}", "answerTexts": options, "correctAnswer": number, "abcLabel": abc}

    questions = {"Which is it?": entry(1, abc=False), "Which letter is it?": entry(0, abc=True)}
    write_json(folder / "questions/1.png.json", {"imageName": "1.png", "questions": questions})
    write_json(folder / "questions/2.png.json", {"imageName": "2.png", "questions": questions})
    label = {"rectangle": [[4, 4], [36, 26]], "replacementText": "A", "value": "sun"}
    write_json(folder / "annotations/1.png.json", {"text": {"T0": label}})
    picture(folder / "images/1.png", 1, (64, 48))
    (folder / "ai2d_test_ids.csv").write_text("1\n")
    more = {"options": ["moon", "sun", "star", "earth"]}
    return 2, {"question": "Which is it?\nmoon\nsun\nstar\nearth", "answer": "sun", "question_id": "1.png-1", **more}


def scienceqa(folder: Path) -> Made:
    def problem(**changes: Any) -> dict[str, Any]:
        base = {"question": "Which is it?", "choices": ["moon", "sun"], "answer": 1, "hint": "", "image": "image.png"}
        return base | {"subject": "natural science", "grade": "grade4", "split": "test"} | changes

    problems = {"5": problem(), "11": problem(image=None), "12": problem(split="train"), "20": problem(hint="Look.")}
    write_json(folder / "problems.json", problems)
    for number in ("5", "20"):
        picture(folder / f"test/{number}/image.png", int(number))
    asked = "Context: N/A\nQuestion: Which is it?\nOptions: A. moon\nB. sun"
    return 2, {"question": asked, "answer": ["B", "sun"], "question_id": "5", "options": ["moon", "sun"]}


def _forms(folder: Path, key: str, other: str) -> None:
    def annotation(name: str, *values: list[str]) -> dict[str, Any]:
        found = [{"value": variants[0], "value_variants": variants} for variants in values]
        return {"id": "1", "key": name, "values": found}

    rows = [
        {"name": "460014-big", "annotations": [annotation(key, ["A & B", "a&b"]), annotation("not_asked", ["x"])]},
        {"name": "4701", "annotations": [annotation(other, ["12.00"], ["13.00"])]},
    ]
    write_lines(folder / "test/document.jsonl", rows)
    for page in (10, 2):
        picture(folder / f"png/460014-big/{page}.png", page)
    picture(folder / "png/4701.png", 7)


def deepform(folder: Path) -> Made:
    _forms(folder, "advertiser", "gross_amount")
    asked = "What is the value for the advertiser?"
    more = {"document": "460014-big", "key": "advertiser", "values": [["A & B", "a&b"]]}
    return 10, {"question": asked, "answer": ["A & B", "a&b"], "question_id": 0, **more}


def kleister(folder: Path) -> Made:
    _forms(folder, "charity_name", "report_date")
    asked = "What is the value for the address__post_town?"
    return 16, {"question": asked, "answer": ["None"], "document": "460014-big", "values": []}


def wtq(folder: Path) -> Made:
    lines = [
        "id\tutterance\tcontext\ttargetValue",
        'nu-0\twhich "country" had more?\tcsv/203-csv/733.csv\tItaly|San Marino',
        "nu-1\twhat is a\\pb?\tcsv/204-csv/836.csv\t1,000",
    ]
    (folder / "data").mkdir(parents=True)
    (folder / "data/pristine-unseen-tables.tsv").write_text("\n".join(lines) + "\n")
    picture(folder / "png/203-csv_733.png", 1)
    picture(folder / "png/204_836.png", 2)
    return 2, {"question": 'which "country" had more?', "answer": ["Italy", "San Marino"], "question_id": "nu-0"}


def tabfact(folder: Path) -> Made:
    tables = {
        "1-24143253-5.html.csv": [["it be five", "it be six"], [1, 0], "a caption"],
        "2-12206319-1.html.csv": [["all be two"], [0], "another"],
    }
    write_json(folder / "tokenized_data/test_examples.json", tables)
    write_json(folder / "data/simple_test_id.json", ["1-24143253-5.html.csv"])
    write_json(folder / "data/complex_test_id.json", ["2-12206319-1.html.csv"])
    picture(folder / "png/1-24143253-5.png", 1)
    picture(folder / "png/2-12206319-1.html.csv.png", 2)
    return 3, {"question": "it be five, Yes or No?", "answer": "Yes", "part": "simple", "question_id": 0}


def visualmrc(folder: Path) -> Made:
    pairs = [
        {"question": {"text": "Who?"}, "answer": {"text": answer, "relevant": [1]}}
        for answer in ("A man with a hat.", "Two dogs on the grass.")
    ]
    write_lines(
        folder / "test.jsonl", [{"id": "p1", "image_filename": "p1.png", "bounding_boxes": [], "qa_data": pairs}]
    )
    picture(folder / "images/p1.png")
    return 2, {"question": "Who?", "answer": "A man with a hat.", "question_id": 0}


def ocrvqa(folder: Path) -> Made:
    def book(split: int, ending: str) -> dict[str, Any]:
        asked = {"questions": ["Who wrote this?", "Is it a novel?"], "answers": ["A. Author", "No"]}
        return {"imageURL": f"http://images.example/I/51{ending}", "title": "T", "split": split} | asked

    write_json(folder / "dataset.json", {"076": book(1, ".jpg"), "031": book(3, ".jpg"), "042": book(3, ".gif")})
    picture(folder / "images/031.jpg", 1)
    picture(folder / "images/042.gif", 2)
    return 4, {"question": "Who wrote this?", "answer": "A. Author", "question_id": 0}


def ocrbench(folder: Path) -> Made:
    rows = [
        {"dataset_name": "IIIT5K", "type": "Regular Text Recognition", "id": 0, "image_path": "IIIT5K/1.png"}
        | {"question": "what is written in the image?", "answers": ["CENTRE"]},
        {"dataset_name": "FUNSD", "type": "Key Information Extraction", "id": 1, "image_path": "FUNSD/2.png"}
        | {"question": "what is the total?", "answers": "2.50"},
    ]
    write_json(folder / "json_files/OCRBench.json", rows)
    for number, row in enumerate(rows):
        picture(folder / "OCRBench_Images" / row["image_path"], number)
    more = {"type": "Regular Text Recognition", "dataset_name": "IIIT5K"}
    return 2, {"question": "what is written in the image?", "answer": ["CENTRE"], "question_id": 0, **more}


def ocrbench_v2_rows() -> list[dict[str, Any]]:
    def row(kind: str, answers: list[Any], question: str = "what is it?", **more: Any) -> dict[str, Any]:
        return {"dataset_name": "X", "type": kind, "question": question, "answers": answers, **more}

    rows = [
        row("cognition VQA en", ["a red bus", "bus"]),
        row("table parsing en", ["<table></table>"]),
        row("science QA en", ["B"], eval="multiple choice"),
        row("text counting en", [12], eval="regression"),
        row("handwritten answer extraction cn", ["长"], "简答题"),
        row("handwritten answer extraction cn", ["ABD"], "选择题"),
        row("formula recognition cn", ["x^2"]),
    ]
    return [{**one, "id": number, "image_path": f"EN_part/x/{number}.png"} for number, one in enumerate(rows)]


def ocrbench_v2(folder: Path) -> Made:
    rows = ocrbench_v2_rows()
    write_json(folder / "OCRBench_v2/OCRBench_v2.json", rows)
    for number, row in enumerate(rows):
        picture(folder / "OCRBench_v2" / row["image_path"], number)
    return 5, {"question_id": 0, "answer": ["a red bus", "bus"], "type": "cognition VQA en", "dataset_name": "X"}


def funsd(folder: Path) -> Made:
    def entity(number: int, label: str, text: str, *links: tuple[int, int]) -> dict[str, Any]:
        return {"id": number, "label": label, "text": text, "linking": links, "box": [1, 2, 3, 4], "words": []}

    page = [
        entity(0, "question", "DATE:", (0, 2), (0, 1)),
        entity(1, "answer", "1998", (0, 1)),
        entity(2, "answer", "12/10", (0, 2)),
        entity(3, "header", "FAX", (3, 0)),
        entity(4, "question", 'the "TO" line', (4, 5)),
        entity(5, "answer", " ", (4, 5)),
        entity(6, "question", "NO.", (3, 6)),
    ]
    inside = folder / "testing_data"
    write_json(inside / "annotations/82.json", {"form": page})
    write_json(inside / "annotations/81.json", {"form": [entity(0, "question", "A", (0, 1)), entity(1, "answer", "b")]})
    picture(inside / "images/82.png", 1)
    picture(inside / "images/81.png", 2)
    return 2, {"question": 'what is "A" information in the image?', "answer": "b", "question_id": 0, "key": "A"}


def _receipt(path: Path, seed: int, **keys: str) -> None:
    write_json(path, keys)
    picture(path.parents[1] / "img" / f"{path.stem}.jpg", seed)


def sroie(folder: Path) -> Made:
    _receipt(folder / "data/key/001.json", 1, total="9.00", company="BOOK TA .K", date="25/12/2018", address="NO.53")
    _receipt(folder / "data/key/000.json", 0, company="OJC", date="15/01/2019", total="193.00")
    _receipt(folder / "data/key/001(1).json", 2, company="again")
    question = "what is the name of the company that issued this invoice?"
    return 7, {"question": question, "answer": "OJC", "question_id": 0, "key": "company"}


def sroie_test(folder: Path) -> Made:
    keys = {"company": "MYDIN", "date": "1/08/2017", "address": "4-20", "total": "109.90"}
    _receipt(folder / "test/entities/X51.txt", 1, **keys)
    _receipt(folder / "train/entities/X50.txt", 2, **keys)
    return 4, {"answer": "MYDIN", "key": "company", "image": "data/sroie_official/images/X51.jpg"}


def poie(folder: Path) -> Made:
    rows = [
        {"file_name": "image_files/nf1.jpg", "entity_dict": {"SS": "1 cup (85 g)", "TF-P1": "4g"}, "annotations": []},
        {"file_name": "image_files/UK_5.jpg", "entity_dict": {"CE-PP": "(412 kJ) 98 kcal"}, "annotations": []},
    ]
    write_lines(folder / "test.txt", rows)
    for number, row in enumerate(rows):
        picture(folder / row["file_name"], number)
    asked = "what is Serving size in the image?"
    return 3, {"question": asked, "answer": ["85 g", "1 cup"], "question_id": 0, "key": "Serving size"}


def flickr30k(folder: Path) -> Made:
    def entry(number: int, split: str) -> dict[str, Any]:
        sentences = [{"raw": f"A man {number} {one}.", "tokens": ["a", "man"]} for one in range(5)]
        return {"filename": f"{number}.jpg", "split": split, "sentids": [0], "imgid": number, "sentences": sentences}

    rows = [entry(1, "train"), entry(2, "test"), entry(3, "val"), entry(4, "test")]
    write_json(folder / "dataset_flickr30k.json", {"dataset": "flickr30k", "images": rows})
    for number in (2, 4):
        picture(folder / f"flickr30k-images/{number}.jpg", number)
    return 2, {"answer": [f"A man 2 {one}." for one in range(5)], "question_id": 2}


RELEASES: dict[str, Callable[[Path], Made]] = {
    "estvqa_test": estvqa,
    "estvqa_official": estvqa_official,
    "docvqa_test": docvqa,
    "chartqa": chartqa,
    "infovqa_test": infovqa,
    "vizwiz_val": vizwiz,
    "deepform": deepform,
    "KLC": kleister,
    "WTQ": wtq,
    "gqa_testdev": gqa,
    "okvqa_val": okvqa,
    "textvqa_val": textvqa,
    "stvqa_test": stvqa,
    "ai2diagram_test": ai2d,
    "vqav2_val": vqav2,
    "flickr30k": flickr30k,
    "textcaps_val": textcaps,
    "scienceqa_img": scienceqa,
    "tabfact": tabfact,
    "visualmrc": visualmrc,
    "ocrvqa": ocrvqa,
    "ocrbench": ocrbench,
    "ocrbench_v2": ocrbench_v2,
    "FUNSD": funsd,
    "SROIE_test": sroie,
    "sroie_official": sroie_test,
    "POIE": poie,
}


# Suites in their original files


def pope(folder: Path) -> Made:
    for number, category in enumerate(("random", "popular", "adversarial")):
        rows = [
            {"question_id": row, "image": f"COCO_val2014_{row}.jpg", "text": f"Is there a {thing} in the image?"}
            | {"label": label}
            for row, (thing, label) in enumerate((("dog", "yes"), (f"cat {number}", "no")), start=1)
        ]
        write_lines(folder / f"output/coco/coco_pope_{category}.json", rows)
    for row in (1, 2):
        picture(folder / f"val2014/COCO_val2014_{row}.jpg", row)
    more = {"question_id": "random-1", "category": "random"}
    return 6, {"question": "Is there a dog in the image?", "answer": "yes", **more}


def mme(folder: Path) -> Made:
    root = folder / "MME_Benchmark_release_version"
    asked = 'Is it "a"? Please answer yes or no.\tYes\nIs it "b"? Please answer yes or no.\tNo\n\n'
    for number, subtask in enumerate(SUBTASKS):
        apart = subtask in ("posters", "celebrity", "scene", "landmark", "artwork")
        texts, images = ("questions_answers_YN/", "images/") if apart else ("", "")
        picture(root / subtask / f"{images}0001.{'jpg' if apart else 'png'}", number)
        (root / subtask / texts).mkdir(exist_ok=True)
        (root / subtask / f"{texts}0001.txt").write_text(asked)
    more = {"category": "existence", "pair": "existence/0001", "question_id": 0}
    return 28, {"question": 'Is it "a"? Please answer yes or no.', "answer": "Yes", **more}


def mmbench(folder: Path) -> Made:
    def cell(seed: int) -> str:
        return base64.b64encode(picture(folder / f"{seed}.png", seed).read_bytes()).decode()

    heads = ("index", "question", "hint", *"ABCD", "answer", "category", "image", "l2-category", "split")
    rows = [
        (0, 'Which "one"?', "Look.", "moon", "sun", "", "", "B", "scene", cell(1), "coarse", "dev"),
        (1, "How many?", "nan", "1", "2", "3", "4", "A", "count", cell(2), "fine", "dev"),
        (1_000_000, 'Which "one"?', "Look.", "sun", "moon", "", "", "A", "scene", "0", "coarse", "dev"),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "MMBench_DEV_EN.tsv").open("w", newline="") as file:
        csv.writer(file, delimiter="\t", lineterminator="\n").writerows([heads, *rows])
    asked = (
        'Hint: Look.\nQuestion: Which "one"?\nOptions:\nA. moon\nB. sun\n'
        "Please select the correct answer from the options above."
    )
    more = {"options": ["moon", "sun"], "group": 0, "rotation": 0, "category": "scene", "l2-category": "coarse"}
    return 3, {"question": asked, "answer": "B", "question_id": 0, **more}


def hallusionbench(folder: Path) -> Made:
    def row(figure: str, number: str, **more: Any) -> dict[str, Any]:
        base = {"category": "VD", "subcategory": "math", "visual_input": "1", "set_id": "0", "figure_id": figure}
        base |= {"question_id": number, "question": f"Is it {number}?", "gt_answer": "1", "gt_answer_details": "It is."}
        return base | {"filename": f"./VD/math/0_{figure}.png"} | more

    none = {"category": "VS", "visual_input": "0", "filename": None}
    rows = [row("0", "0"), row("0", "1", gt_answer="0"), row("1", "0", visual_input="2"), row("0", "0", **none)]
    write_json(folder / "HallusionBench.json", rows)
    for figure in (0, 1):
        picture(folder / f"hallusion_bench/VD/math/0_{figure}.png", figure)
    return 3, {"question": "Is it 0?", "answer": "Yes", "question_id": "VD_math_0_0_0", "document": "VD_math_0"}


def seedbench(folder: Path) -> Made:
    def row(number: int, **more: Any) -> dict[str, Any]:
        base = {"answer": "B", "choice_a": "One", "choice_b": "Two", "choice_c": "Three", "choice_d": "Four"}
        base |= {"data_id": f"1_{number}", "data_type": "image", "question": "How many?", "question_id": str(number)}
        return base | {"question_type_id": 5} | more

    rows = [row(0), row(1, question_type_id=9), row(2, data_type="video", question_type_id=10, data_id="2.webm")]
    write_json(folder / "SEED-Bench.json", {"questions": rows, "question_type": {"Instances Counting": 5}})
    for number in (0, 1):
        drawn = picture(folder / f"SEED-Bench-image/1_{number}.png", number)
        drawn.rename(drawn.with_suffix(""))  # the release's images have no ending
    letters = "Answer with the option's letter from the given choices directly."
    asked = f"How many?\nA. One\nB. Two\nC. Three\nD. Four\n{letters}"
    return 2, {"question": asked, "answer": "B", "question_type": "Instances Counting"}


def mathvista(folder: Path) -> Made:
    about = {"split": "testmini", "source": "GeoQA+", "task": "geometry problem solving", "language": "english"}
    chosen = {"question": "How large?", "image": "images/1.jpg", "choices": ["5°", "6°"], "answer": "6°", "pid": "1"}
    chosen |= {"question_type": "multi_choice", "answer_type": "text", "unit": None, "metadata": about}
    free = {
        **chosen,
        "question_type": "free_form",
        "answer_type": "integer",
        "choices": None,
        "answer": "3",
        "pid": "2",
    }
    write_json(folder / "data/testmini.json", {"1": chosen, "2": free})
    picture(folder / "images/1.jpg", 1)
    hint = "Hint: Please answer the question and provide the correct option letter, e.g., A, B, C, D, at the end."
    asked = f"{hint}\nQuestion: How large?\nChoices:\n(A) 5°\n(B) 6°"
    return 1, {"question": asked, "answer": "B", "question_id": "1", "options": ["5°", "6°"], "source": "GeoQA+"}


RELEASES |= {
    "pope": pope,
    "mme": mme,
    "mmbench_dev_en": mmbench,
    "hallusionbench": hallusionbench,
    "seedbench_image": seedbench,
    "mathvista_choice": mathvista,
}


def question_file(root: Path, task: str) -> Path:
    return root / TASKS[task].file


def lines(root: Path, task: str) -> list[dict]:
    return [json.loads(line) for line in question_file(root, task).read_text(encoding="utf-8").splitlines()]


def files_below(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, without the dates of manifests."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(".manifest.json")
    }
