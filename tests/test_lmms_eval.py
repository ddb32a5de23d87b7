"""Monkey as lmms-eval calls it: found by name, the evaluator's answers to the token, options by likelihood, errors."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import tomllib
from pathlib import Path

import pytest
from PIL import Image

from eval.backends import Request
from eval.model_backend import ModelBackend
from eval.questions import read_asked
from eval.tasks import PromptForm, Task
from monkey.integrations import lmms_eval_manifest
from monkey.prompts import VQA_AS_TRAINED
from tests import lmms_eval_interface
from tests.shipped_rows import shipped_rows

REPOSITORY = Path(__file__).resolve().parent.parent
SHIPPED, PAGES = REPOSITORY / "models" / "small", REPOSITORY / "data" / "pages"
IS_INSTALLED = importlib.util.find_spec("lmms_eval") is not None
SETTINGS = {"max_new_tokens": 20, "temperature": 0.0, "do_sample": False, "until": []}

pytestmark = pytest.mark.skipif(not SHIPPED.is_dir(), reason="no small model is shipped in models/small")


@pytest.fixture(scope="module")
def peer():
    """The integration's module, on lmms-eval where it is installed and on what stands in for it elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        if not IS_INSTALLED:
            lmms_eval_interface.stand_in(patch)
        yield importlib.import_module("monkey.integrations.lmms_eval")


@pytest.fixture(scope="module")
def docs() -> list[dict]:
    return shipped_rows()


@pytest.fixture(scope="module")
def opened(peer, docs):
    """A model of each kind and its tasks' documents, both on one answerer."""
    models = {}
    for kind, batch_size in (("MonkeySimple", "4"), ("MonkeyChat", 1)):
        models[kind] = getattr(peer, kind).create_from_arg_string(
            f"pretrained={SHIPPED}", {"batch_size": batch_size, "device": "cpu", "max_batch_size": None}
        )
        models[kind].task_dict = {"made": {"test": docs}}
    yield models
    for model in models.values():
        model.clean()
        assert not hasattr(model, "answerer")


def visuals(doc) -> list[Image.Image]:
    return [Image.open(PAGES / doc["image"]).convert("RGB")]


def messages(doc) -> list[dict]:
    content = [{"type": "image", "url": image} for image in visuals(doc)]
    return [{"role": "user", "content": [*content, {"type": "text", "text": doc["question"]}]}]


def instance(kind: str, arguments: tuple, doc_id: int = 0, idx: int = 0):
    make = importlib.import_module("lmms_eval.api.instance").Instance
    return make(kind, arguments, idx, metadata={"task": "made", "doc_id": doc_id, "repeats": 1, "split": "test"})


def simple(doc_id: int, question: str, settings: dict = SETTINGS, images=visuals):
    return instance("generate_until", (question, dict(settings), images, doc_id, "made", "test"), doc_id)


def chat(doc_id: int, question: str, settings: dict = SETTINGS, read=messages):
    return instance("generate_until", (question, read, dict(settings), doc_id, "made", "test"), doc_id)


def test_lmms_eval_finds_both_kinds_by_the_name_monkey(peer):
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (place,) = project["entry-points"]["lmms_eval.models"].values()
    module, _, name = place.partition(":")
    manifest = getattr(importlib.import_module(module), name)()
    assert manifest == lmms_eval_manifest()
    assert manifest.model_id == "monkey"
    base = importlib.import_module("lmms_eval.api.model").lmms
    for path, is_simple in ((manifest.simple_class_path, True), (manifest.chat_class_path, False)):
        module, _, name = path.rpartition(".")
        found = getattr(importlib.import_module(module), name)
        assert issubclass(found, base)
        assert found.is_simple is is_simple


def test_answers_are_those_of_the_evaluator_token_by_token(opened, docs):
    task = Task("made", str(PAGES / "heldout.jsonl"), "anls", SETTINGS["max_new_tokens"])
    of_id = {question.question_id: question for question in read_asked(PAGES / "heldout.jsonl", None)[0]}
    questions = [of_id[doc["question_id"]] for doc in docs]
    requests = [Request(task, question, PromptForm("as-trained", VQA_AS_TRAINED)) for question in questions]
    backend = ModelBackend(str(SHIPPED), device="cpu", num_workers=0)
    (batch,) = backend.batches(requests, len(requests))
    expected = {answer.row: (answer.raw.strip(), answer.tokens) for answer in backend.generate_answers(batch)}
    for kind, make in (("MonkeySimple", simple), ("MonkeyChat", chat)):
        asked = [make(number, doc["question"]) for number, doc in enumerate(docs)]
        results = opened[kind].generate_until(asked)
        got = [(result.text, result.token_counts.output_tokens) for result in results]
        assert got == [expected[question.row] for question in questions]
        assert all(result.token_counts.input_tokens > 250 for result in results)


def test_images_stand_where_the_task_puts_them(opened, docs):
    # Of one window each, so that both fit the model's positions.
    pair = [image.resize((224, 224)) for image in visuals(docs[0]) + visuals(docs[-1])]

    def between(doc):
        one, other = pair
        parts = [{"type": "text", "text": "First "}, {"type": "image", "url": one}, {"type": "image", "url": other}]
        return [{"role": "user", "content": [*parts, {"type": "text", "text": doc["question"]}]}]

    answerer = opened["MonkeyChat"].answerer
    (mixed,) = opened["MonkeyChat"].generate_until([chat(3, "", read=between)])
    (first,) = opened["MonkeySimple"].generate_until([simple(3, "First " + docs[3]["question"], images=lambda _: pair)])
    given = [
        {**part, "image": part["url"]} if part["type"] == "image" else part for part in between(docs[3])[0]["content"]
    ]
    given = [{key: value for key, value in part.items() if key != "url"} for part in given]
    decoding = importlib.import_module("monkey.integrations.lmms_eval").read_decoding(SETTINGS)
    expected = answerer.chat([{"role": "user", "content": given}], decoding)
    assert mixed.text == expected.text
    # Both images were read in both, each behind the same number of tokens.
    assert mixed.token_counts.input_tokens == expected.prompt_tokens
    assert abs(first.token_counts.input_tokens - expected.prompt_tokens) < 4
    assert expected.prompt_tokens > 2 * 200


def test_the_likeliest_option_has_the_smallest_loss_and_comes_through_what_lmms_eval_does(opened, docs):
    unwrap = importlib.import_module("lmms_eval.api.instance").unwrap_generation_output
    model = opened["MonkeySimple"]
    right = 0
    for number, doc in enumerate(docs[:5]):
        options = [f" {docs[(number + step) % len(docs)]['answer']}" for step in (3, 0, 7)]
        requests = [
            instance("loglikelihood", (doc["question"], option, visuals, number, "made", "test"), number, idx)
            for idx, option in enumerate(options)
        ]
        results = model.loglikelihood(requests)
        losses, is_greedy = zip(*(unwrap(result)[0] for result in results), strict=True)
        assert all(loss > 0 and math.isfinite(loss) for loss in losses)
        right += losses.index(min(losses)) == 1
        (written,) = model.generate_until([simple(number, doc["question"])])
        assert is_greedy == tuple(option.strip() == written.text for option in options)
        # The cache asks what it keeps; a pair would not come back from it as one.
        assert not results[0].text.strip()
    assert right == 5


def test_settings_of_a_task_are_followed_or_refused_before_anything_is_asked(opened, docs, capsys):
    model = opened["MonkeySimple"]
    whole, short, stopped = model.generate_until(
        [
            simple(2, docs[2]["question"]),
            simple(2, docs[2]["question"], {"max_new_tokens": 1}),
            simple(2, docs[2]["question"], {**SETTINGS, "until": [docs[2]["answer"][1:3], ""]}),
        ]
    )
    assert whole.text == docs[2]["answer"]
    assert short.token_counts.output_tokens == 1
    assert stopped.text == docs[2]["answer"][:1]
    asked = model.answerer.engine.stats.requests
    for name, value in (("num_beams", 5), ("repetition_penalty", 1.2)):
        with pytest.raises(ValueError, match=f"made, document 1: it sets {name} to {value}.*--gen_kwargs {name}=1"):
            model.generate_until([simple(0, "What?"), simple(1, "What?", {**SETTINGS, name: value})])
    assert model.answerer.engine.stats.requests == asked
    capsys.readouterr()
    model.generate_until([simple(0, "What?", {**SETTINGS, "image_aspect_ratio": "original", "num_beams": 1})])
    assert "not for this model: image_aspect_ratio" in capsys.readouterr().err


def test_sampled_answers_follow_the_seed_that_lmms_eval_sets(peer):
    import torch

    settings = {"do_sample": True, "temperature": 0.7, "top_p": 0.9}
    torch.manual_seed(5)
    first = [peer.read_decoding(settings) for _ in range(2)]
    torch.manual_seed(5)
    assert [peer.read_decoding(settings) for _ in range(2)] == first
    assert first[0].seed != first[1].seed
    assert (first[0].temperature, first[0].top_p) == (0.7, 0.9)
    greedy = ({"temperature": 0.7, "do_sample": False}, {"do_sample": True, "temperature": 0}, {"top_k": 5}, {})
    assert {peer.read_decoding(one) for one in greedy} == {peer.read_decoding({"until": None})}
    assert peer.read_decoding({"temperature": 0.2}).temperature == 0.2
    with pytest.raises(ValueError, match="top_k"):
        peer.read_decoding({"temperature": 1.0, "top_k": 5})


def test_what_cannot_be_asked_is_named_by_task_and_document(opened, docs):
    def video(doc):
        return [{"role": "user", "content": [{"type": "video", "url": "a.mp4"}, {"type": "text", "text": "What?"}]}]

    with pytest.raises(ValueError, match="task made, document 4: it holds a part of type 'video'"):
        opened["MonkeyChat"].generate_until([chat(4, "", read=video)])
    with pytest.raises(FileNotFoundError, match=r"task made, document 4: .*nowhere\.png"):
        opened["MonkeySimple"].generate_until([simple(4, "What?", images=lambda _: ["nowhere.png"])])
    with pytest.raises(ValueError, match="acc_mutual_info"):
        opened["MonkeySimple"].loglikelihood([instance("loglikelihood", ("", "yes"))])
    with pytest.raises(NotImplementedError, match="several rounds"):
        opened["MonkeyChat"].generate_until_multi_round([])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"grid": "2,3"}, "grid is '2,3'; write rows and columns"),
        ({"grids": "all"}, "grids is 'all'; write up-to-6"),
        ({"form": "prose"}, "form is 'prose', and it is one of"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"pretrained": "no/such"}, "no/such"),
    ],
)
def test_a_wrong_argument_is_one_sentence(peer, arguments, sentence):
    with pytest.raises((ValueError, OSError), match=sentence):
        peer.MonkeyChat(**{"pretrained": str(SHIPPED), "device": "cpu", **arguments})


def test_what_stands_in_for_lmms_eval_is_as_the_package():
    pytest.importorskip("lmms_eval")
    for name, content in lmms_eval_interface.STAND_INS.items():
        real = importlib.import_module(name)
        for ours in content:
            theirs = getattr(real, ours.__name__)
            wanted = inspect.signature(ours).parameters
            assert list(inspect.signature(theirs).parameters)[: len(wanted)] == list(wanted)
            if inspect.isclass(ours):
                assert {own for own in vars(ours) if not own.startswith("_")} <= set(dir(theirs)) | set(wanted)
    unwrap = importlib.import_module("lmms_eval.api.instance").unwrap_generation_output
    for output in ("text", (1.5, True), lmms_eval_interface):
        assert unwrap(output) == lmms_eval_interface.unwrap_generation_output(output)
