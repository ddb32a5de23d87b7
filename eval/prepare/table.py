"""The preparers, one row a task: what reads the release, what the user has to have, and under whose terms.

The terms are given from memory as a first orientation and were not verified, as those in data/README.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from eval.metrics import nearest
from eval.prepare import (
    chartqa,
    coco,
    documents,
    due,
    flickr30k,
    gqa,
    multiple_choice,
    ocr,
    scene_text,
    table_questions,
    textvqa,
    visualmrc,
    vizwiz,
)
from eval.prepare.release import Prepared, Release
from eval.tasks import TASKS, Task


@dataclass(frozen=True)
class Preparer:
    """How the files of one task are made. `version` goes up whenever the same release would give other files."""

    read: Callable[[Release], Prepared]
    needs: str
    source: str
    terms: str
    version: int = 1


_RRC = "rrc.cvc.uab.es"
_RRC_TERMS = "on registration, under the site's terms"
_COCO_TERMS = "annotations CC BY 4.0; pictures under Flickr's terms"
_OPEN_IMAGES_TERMS = "CC BY 4.0; pictures from Open Images, CC BY 2.0"
_EACH_ITS_OWN = "each set of the benchmark under its own"
_DUE = "github.com/due-benchmark"

PREPARERS: Mapping[str, Preparer] = {
    "estvqa_test": Preparer(
        scene_text.estvqa,
        "annotations/train.json, images/train/; for the published rows ESTVQA_EN.json of the OCRBench authors",
        "github.com/xinke-wang/EST-VQA; old commits of github.com/Yuliang-Liu/MultimodalOCR, answer_save/",
        "see the repositories",
    ),
    "estvqa_official": Preparer(
        scene_text.estvqa_official,
        "annotations/test.json (the released answers), images/test/, and test_images.json, a list of question_id and "
        "image, where the answers do not name their pictures",
        "github.com/xinke-wang/EST-VQA",
        "see the repository",
    ),
    "docvqa_test": Preparer(
        documents.docvqa,
        "test/document.jsonl and png/ of the DUE package, or test_v1.0.json with answers, or val_v1.0_withQT.json",
        f"{_DUE}; {_RRC}/?ch=17",
        _RRC_TERMS,
    ),
    "chartqa": Preparer(
        chartqa.chartqa,
        "test/test_human.json, test/test_augmented.json, test/png/",
        "github.com/vis-nlp/ChartQA",
        "GPL-3.0",
    ),
    "infovqa_test": Preparer(
        documents.infovqa,
        "test/document.jsonl and png/ of the DUE package, or infographicsVQA_test_v1.0.json with answers, or "
        "infographicsVQA_val_v1.0_withQT.json",
        f"{_DUE}; {_RRC}/?ch=17",
        _RRC_TERMS,
    ),
    "vizwiz_val": Preparer(vizwiz.vizwiz, "Annotations/val.json, val/", "vizwiz.org", "CC BY 4.0"),
    "deepform": Preparer(due.deepform, "test/document.jsonl, png/", _DUE, _EACH_ITS_OWN),
    "KLC": Preparer(due.kleister_charity, "test/document.jsonl, png/", _DUE, _EACH_ITS_OWN),
    "WTQ": Preparer(
        table_questions.wtq,
        "tagged/data/pristine-unseen-tables.tagged (else data/pristine-unseen-tables.tsv, else test/document.jsonl of "
        "the DUE package), and pictures of the tables in png/",
        f"github.com/ppasupat/WikiTableQuestions; pictures: {_DUE}",
        "CC BY-SA 4.0",
        version=2,
    ),
    "gqa_testdev": Preparer(
        gqa.gqa, "testdev_balanced_questions.json, images/", "cs.stanford.edu/people/dorarad/gqa", "CC BY 4.0"
    ),
    "okvqa_val": Preparer(
        coco.okvqa,
        "OpenEnded_mscoco_val2014_questions.json, mscoco_val2014_annotations.json, val2014/",
        "okvqa.allenai.org; cocodataset.org",
        "on COCO pictures; see the page",
    ),
    "textvqa_val": Preparer(
        textvqa.textvqa,
        "TextVQA_0.5.1_val.json, train_images/; Open Images' train-images-boxable-with-rotation.csv, to turn pictures "
        "upright",
        "textvqa.org; storage.googleapis.com/openimages",
        _OPEN_IMAGES_TERMS,
    ),
    "stvqa_test": Preparer(
        scene_text.stvqa,
        "train_task_3.json and the pictures by set; for the published rows STVQA.json of the OCRBench authors",
        f"{_RRC}/?ch=11; old commits of github.com/Yuliang-Liu/MultimodalOCR, answer_save/",
        _RRC_TERMS,
    ),
    "ai2diagram_test": Preparer(
        multiple_choice.ai2d,
        "questions/, annotations/, images/ (abc_images/ where there is one), ai2d_test_ids.csv",
        "allenai.org",
        "see the page; diagrams were collected from the web",
    ),
    "vqav2_val": Preparer(
        coco.vqav2,
        "v2_OpenEnded_mscoco_val2014_questions.json, v2_mscoco_val2014_annotations.json, val2014/",
        "visualqa.org; cocodataset.org",
        _COCO_TERMS,
    ),
    "flickr30k": Preparer(
        flickr30k.flickr30k,
        "dataset_flickr30k.json (Karpathy's split), flickr30k-images/",
        "shannon.cs.illinois.edu/DenotationGraph; cs.stanford.edu/people/karpathy/deepimagesent",
        "for research and education, not for commercial use",
    ),
    "textcaps_val": Preparer(
        textvqa.textcaps,
        "TextCaps_0.1_val.json, train_images/; Open Images' train-images-boxable-with-rotation.csv, to turn pictures "
        "upright",
        "textvqa.org/textcaps; storage.googleapis.com/openimages",
        _OPEN_IMAGES_TERMS,
    ),
    "scienceqa_img": Preparer(
        multiple_choice.scienceqa,
        "problems.json, test/",
        "scienceqa.github.io",
        "CC BY-NC-SA 4.0: not for commercial use",
    ),
    "tabfact": Preparer(
        table_questions.tabfact,
        "tokenized_data/test_examples.json, data/simple_test_id.json and complex_test_id.json, and pictures of the "
        "tables in png/",
        f"github.com/wenhuchen/Table-Fact-Checking; pictures: {_DUE}",
        "CC BY 4.0",
    ),
    "visualmrc": Preparer(
        visualmrc.visualmrc,
        "test.jsonl, and images/, which the publisher gives on request; copies on the hub are parquet files, to be "
        "written out in this form",
        "github.com/nttmdlab-nlp/VisualMRC; huggingface.co/datasets/jeepliu/VisualMRC",
        "for research only",
    ),
    "ocrvqa": Preparer(
        ocr.ocrvqa,
        "dataset.json, images/",
        "ocr-vqa.github.io",
        "for research; covers belong to their publishers",
    ),
    "ocrbench": Preparer(
        ocr.ocrbench,
        "OCRBench/OCRBench.json of the repository, OCRBench_Images/",
        "github.com/Yuliang-Liu/MultimodalOCR",
        "those of the sets it was drawn from",
    ),
}


def target_of(name: str) -> Task:
    """The task whose files a preparer makes."""
    preparer_named(name)
    return TASKS[name]


def preparer_named(name: str) -> Preparer:
    """The row of that name, or ValueError offering the nearest names."""
    if name not in PREPARERS:
        raise ValueError(f"no preparer for {name!r}; {nearest(name, PREPARERS)}")
    return PREPARERS[name]
