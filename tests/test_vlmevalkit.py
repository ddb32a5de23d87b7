"""Monkey as VLMEvalKit calls it: the file that replaces its own, on what stands in for the package here."""

from __future__ import annotations

import importlib.util
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

import monkey
from tests.shipped_rows import shipped_rows

REPOSITORY = Path(__file__).resolve().parent.parent
SHIPPED, PAGES = REPOSITORY / "models" / "small", REPOSITORY / "data" / "pages"
TYPES = {"MMBench_DEV_EN": "MCQ", "POPE": "Y/N", "DocVQA_VAL": "VQA", "HallusionBench": "VQA"}

pytestmark = pytest.mark.skipif(not SHIPPED.is_dir(), reason="no small model is shipped in models/small")


class BaseModel:
    """What VLMEvalKit's `vlmeval.vlm.base.BaseModel` of August 2026 makes of a message before a model gets it."""

    INTERLEAVE = False
    allowed_types = ("text", "image", "video")

    def __init__(self):
        self.dump_image_func = None

    def generate(self, message, dataset=None):
        assert all(item["type"] in self.allowed_types for item in message)
        return self.generate_inner(message, dataset)


@pytest.fixture(scope="module")
def peer():
    with pytest.MonkeyPatch.context() as patch:
        for name in ("vlmeval", "vlmeval.dataset", "vlmeval.vlm", "vlmeval.vlm.base"):
            patch.setitem(sys.modules, name, ModuleType(name))
        sys.modules["vlmeval.dataset"].DATASET_TYPE = lambda name, *, default="MCQ": TYPES.get(name, default)
        sys.modules["vlmeval.vlm.base"].BaseModel = BaseModel
        place = REPOSITORY / "integrations" / "vlmevalkit" / "monkey.py"
        spec = importlib.util.spec_from_file_location("vlmeval.vlm.monkey", place)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def model(peer):
    opened = peer.MonkeyChat(model_path=str(SHIPPED), batch_size=4, device="cpu")
    yield opened
    opened.answerer.close()


@pytest.fixture(scope="module")
def docs() -> list[dict]:
    return shipped_rows()


def message(doc) -> list[dict[str, str]]:
    return [{"type": "image", "value": str(PAGES / doc["image"])}, {"type": "text", "value": doc["question"]}]


def test_questions_that_come_at_once_get_the_answers_of_one_after_the_other(model, docs):
    decoding = monkey.Decoding(512, keep_markers=False)
    expected = [model.answerer.ask(PAGES / doc["image"], doc["question"], decoding).text for doc in docs]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda doc: model.generate(message(doc), "DocVQA_VAL"), docs)) == expected
    assert sum(answer == doc["answer"] for answer, doc in zip(expected, docs, strict=True)) == len(docs)


def test_only_a_model_of_several_questions_calls_itself_a_service(peer, model):
    alone = peer.Monkey(str(SHIPPED), device="cpu", max_new_tokens=3)
    assert (alone.is_api, model.is_api) == (False, True)
    assert (alone.answerer.engine.max_rows, model.answerer.engine.max_rows) == (1, 4)
    assert alone.INTERLEAVE
    alone.answerer.close()


def test_answers_are_as_long_as_the_data_set_allows(peer, model, docs, monkeypatch):
    limits = []

    class Silent:
        text = ""

    def chat(messages, decoding, form):
        limits.append(decoding.max_new_tokens)
        return Silent

    monkeypatch.setattr(model.answerer, "chat", chat)
    for dataset in (*TYPES, "receipts_of_mine", None):
        model.generate(message(docs[0]), dataset)
    assert limits == [peer.SHORT, peer.SHORT, peer.LONG, peer.SHORT, peer.LONG, peer.LONG]


def test_images_stand_where_the_data_set_puts_them(model, docs, tmp_path):
    parts = [{"type": "text", "value": "First "}, *message(docs[0])[:1], *message(docs[-1])]
    for number, part in enumerate(part for part in parts if part["type"] == "image"):
        # Of one window each, so that both fit the model's positions.
        with Image.open(part["value"]) as image:
            image.resize((224, 224)).save(tmp_path / f"{number}.png")
        part["value"] = str(tmp_path / f"{number}.png")
    content = [{"type": part["type"], part["type"]: part["value"]} for part in parts]
    expected = model.answerer.chat([{"role": "user", "content": content}], monkey.Decoding(512, keep_markers=False))
    assert model.generate(parts) == expected.text
    with pytest.raises(ValueError, match="part of type 'video'"):
        model.generate([{"type": "video", "value": "a.mp4"}, {"type": "text", "value": "What?"}])
