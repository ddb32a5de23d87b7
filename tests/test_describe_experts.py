"""The experts that look at images: opened, asked in batches, refused where they do not fit; and a run with all of them.

The models are tiny and their weights random, so what they say means nothing; that the same comes out alone and in a
batch, in the form of the records, does.
"""

from __future__ import annotations

import json
import random
import shutil
import socket
from collections.abc import Sequence
from dataclasses import asdict, replace
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import load_file, save_file

from monkey.data.pages.drawing import Limits, draw_page
from monkey.data.pages.facts import Word
from monkey.describe import experts
from monkey.describe.experts import Failure, Item, folder_digest
from monkey.describe.findings import (
    RESULTS,
    Caption,
    Filtered,
    Lines,
    Region,
    Regions,
    Segment,
    SegmentCaptions,
    Segments,
    decode,
    pack_mask,
    unpack_mask,
)
from monkey.describe.output import FinishedRun
from monkey.describe.writers import LocalModel
from tests.describe_models import write_all
from tests.test_describe_run import IMAGES, REPOSITORY, describe, outputs_of, refusal


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    return write_all(tmp_path_factory.mktemp("models"))


def opened(kind, model: Path, **settings):
    return kind(kind.Settings(model=str(model), **settings))


def items(**results) -> list[Item]:
    images = [Image.open(path).convert("RGB") for path in sorted((IMAGES / "heldout").glob("*.jpg"))]
    images[0] = images[0].resize((200, 120))
    return [Item(str(number), Path("x.png"), "x.png", (), results, one) for number, one in enumerate(images)]


def ask_alone_and_together(expert, given) -> list:
    together = expert(given)
    assert together == [expert([item])[0] for item in given]
    return together


TWO_REGIONS = Regions((Region((0, 0, 0.5, 0.5), "a red sign"), Region((0.5, 0.5, 1, 1), "the blue circle on the left")))
TWO_SEGMENTS = Segments((Segment((0, 0, 1, 1), 0.9, 0.9), Segment((0.2, 0.2, 0.6, 0.6), 0.1, 0.8)))
LOOSE = {"points_per_side": 4, "least_predicted_overlap": -9.0, "least_stability": 0.0, "most_box_overlap": 1.0}


class TestBlip2:
    def test_captions_are_those_of_each_image_alone_and_no_longer_than_asked_for(self, models):
        found = ask_alone_and_together(opened(experts.Blip2Captions, models["blip2"], max_new_tokens=12), items())
        assert len({caption.text for caption in found}) > 1
        assert max(len(one.text.split()) for one in found) > 2
        short = opened(experts.Blip2Captions, models["blip2"], max_new_tokens=2, dtype="bfloat16")(items())
        assert all(len(one.text.split()) <= 2 for one in short)

    def test_each_segment_of_each_image_gets_its_own_caption(self, models):
        expert = opened(experts.Blip2SegmentCaptions, models["blip2"], batch_size=3, max_new_tokens=6)
        given = items(segments=TWO_SEGMENTS)
        given[1] = replace(given[1], results={"segments": Segments(())})
        assert [len(one.texts) for one in ask_alone_and_together(expert, given)] == [2, 0, 2, 2, 2]

    def test_outside_of_a_mask_is_not_seen(self, models):
        image = items()[0].image
        mask = np.zeros((image.height, image.width), bool)
        mask[30:90, 50:150] = True
        masked = Segments((Segment((0, 0, 1, 1), 0.3, 0.9, pack_mask(mask)),))
        other = Image.new("RGB", image.size, (200, 30, 90))
        other.paste(image.crop((50, 30, 150, 90)), (50, 30))
        expert = opened(experts.Blip2SegmentCaptions, models["blip2"])
        one, two = (
            next(expert.crops(replace(items()[0], image=each, results={"segments": masked}))) for each in (image, other)
        )
        assert one.tobytes() == two.tobytes()

    def test_matches_are_probabilities_of_each_crop_with_its_own_text(self, models):
        expert = opened(experts.Blip2Matching, models["matcher"], batch_size=3)
        captions = SegmentCaptions(("a sign", "the picture shows a red circle ."))
        given = items(regions=TWO_REGIONS, segments=TWO_SEGMENTS, segment_captions=captions)
        found, alone = expert(given), [expert([item])[0] for item in given]
        for one, other in zip(found, alone, strict=True):
            # Texts of one batch are padded to one length; scores have four decimals.
            assert one.regions == pytest.approx(other.regions, abs=2e-4)
            assert one.segments == pytest.approx(other.segments, abs=2e-4)
        assert len({score for one in found for score in (*one.regions, *one.segments)}) > 5

    def test_a_match_is_the_second_class_after_one_softmax(self, models):
        expert, item = opened(experts.Blip2Matching, models["matcher"]), items()[2]
        inputs = expert.processor(images=item.image, text="a red sign", return_tensors="pt")
        with torch.inference_mode():
            logits = expert.model(**inputs, use_image_text_matching_head=True).logits_per_image[0]
        whole = Regions((Region((0, 0, 1, 1), "a red sign"),))
        results = {"regions": whole, "segments": Segments(()), "segment_captions": SegmentCaptions(())}
        (found,) = expert([replace(item, results=results)])
        assert found.regions[0] == pytest.approx(1 / (1 + torch.exp(logits[0] - logits[1]).item()), abs=1e-4)


def test_places_of_florence_become_boxes_in_shares_of_each_image(models):
    expert = opened(experts.Florence2Regions, models["florence2"], max_new_tokens=24)
    found = ask_alone_and_together(expert, items())
    for one in found:
        sign, circle = one.regions
        assert (sign.text, circle.text) == ("a red sign", "blue circle")
        # Places are thousandths; transformers cuts them to whole pixels, of which there are 120 or more.
        assert sign.box == pytest.approx((0.1, 0.2, 0.5, 0.6), abs=1 / 120)
        assert circle.box == pytest.approx((0.6, 0.0, 1.0, 0.4), abs=1 / 120)
    assert decode(RESULTS["regions"], json.loads(json.dumps(asdict(found[0])))) == found[0]


class TestSam:
    def test_the_largest_come_first_with_masks_that_fill_their_boxes(self, models):
        for one in opened(experts.SamSegments, models["sam"], most=5, **LOOSE)(items()[:2]):
            areas = [segment.area for segment in one.segments]
            assert len(areas) == 5
            assert areas == sorted(areas, reverse=True)
            for segment in one.segments:
                mask = unpack_mask(segment.mask)
                rows, columns = np.nonzero(mask)
                edges = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
                assert segment.box == pytest.approx(edges / np.tile(mask.shape[::-1], 2), abs=0.011)
                assert mask.mean() == pytest.approx(segment.area, abs=0.01)
            assert decode(RESULTS["segments"], json.loads(json.dumps(asdict(one)))) == one

    def test_batches_of_points_change_nothing_and_unsure_masks_are_none(self, models):
        whole, parts = (
            opened(experts.SamSegments, models["sam"], batch_size=size, **LOOSE)(items()[:2]) for size in (64, 3)
        )
        for one, other in zip(whole, parts, strict=True):
            assert [segment.box for segment in one.segments] == [segment.box for segment in other.segments]
        strict = opened(experts.SamSegments, models["sam"], **{**LOOSE, "least_predicted_overlap": 99.0})
        assert strict(items()[:1]) == [Segments(())]

    def test_of_boxes_that_overlap_the_best_stays(self):
        boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30], [0, 0, 10, 5]])
        kept = experts.drop_overlapping(boxes, torch.tensor([0.8, 0.9, 0.1, 0.7]), most=0.7)
        assert kept.tolist() == [1, 3, 2]


def test_a_monkey_checkpoint_describes_as_its_card_says():
    kind = experts.MonkeyCaptions
    checkpoint = REPOSITORY / "models" / "small"
    assert kind.identity(kind.Settings(model=str(checkpoint))).keys() == {"weights"}
    whole = opened(kind, checkpoint)
    found = whole(items()[1:3])
    asked = whole._model.describe(items()[1].image).text
    whole.close()
    assert found[0].text == " ".join(asked.split())
    assert found[0] != found[1]
    short = opened(kind, checkpoint, max_new_tokens=2)
    assert found[0].text.startswith(short(items()[1:2])[0].text)
    short.close()


class TestOpening:
    @pytest.mark.parametrize(
        ("kind", "model", "message"),
        [
            (experts.Blip2Captions, "sam", "sam (SamModel) model, and captioning an image needs Blip2ForC"),
            (experts.Blip2Captions, "matcher", "blip-2 (Blip2ForImageTextRetrieval) model, and captioning"),
            (experts.Blip2Matching, "blip2", "and matching crops with captions needs Blip2ForImageTextRetrieval"),
            (experts.Florence2Regions, "blip2", "dense captioning needs Florence2ForConditionalGeneration"),
            (experts.SamSegments, "causal", "(Qwen2ForCausalLM) model, and segmenting needs SamModel"),
            (experts.MonkeyCaptions, "sam", "sam (SamModel) model, and describing an image needs monkey or qwen"),
            (LocalModel, "sam", "sam (SamModel) model, and summarising needs"),
        ],
    )
    def test_a_model_of_another_kind_is_refused_before_it_is_opened(self, models, kind, model, message):
        with pytest.raises(ValueError) as caught:
            kind.identity(kind.Settings(model=str(models[model])))
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_folder_that_is_missing_or_lacks_weights_is_one_sentence(self, models, tmp_path):
        kind = experts.SamSegments
        with pytest.raises(FileNotFoundError, match="no such checkpoint folder"):
            kind.identity(kind.Settings(model=str(tmp_path / "no")))
        folder = shutil.copytree(models["sam"], tmp_path / "sam")
        (folder / "model.safetensors").unlink()
        with pytest.raises(ValueError, match=r"cannot be opened as SamModel \([^\n]+\)$"):
            opened(kind, folder)
        folder = shutil.copytree(models["blip2"], tmp_path / "blip2")
        tensors = load_file(folder / "model.safetensors")
        del tensors["language_projection.weight"]
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=r"1 of its weights are not there, language_projection\.weight the first"):
            opened(experts.Blip2Captions, folder)

    def test_other_weights_are_another_identity_and_another_place_is_not(self, models, tmp_path):
        folder = shutil.copytree(models["sam"], tmp_path / "moved")
        assert folder_digest(folder) == folder_digest(models["sam"])
        content = bytearray((folder / "model.safetensors").read_bytes())
        content[-7] ^= 1
        (folder / "model.safetensors").write_bytes(content)
        assert folder_digest(folder) != folder_digest(models["sam"])

    def test_large_files_are_told_apart_by_samples(self, tmp_path):
        content = np.random.default_rng(0).integers(0, 256, 5_000_000, np.uint8)
        digests = set()
        for weights in (content, content ^ 1):  # as training does, which changes every weight
            (tmp_path / "model.safetensors").write_bytes(weights.tobytes())
            digests.add(folder_digest(tmp_path))
        assert len(digests) == 2

    def test_a_folder_with_code_of_its_own_runs_none_of_it(self, models, tmp_path):
        folder = shutil.copytree(models["sam"], tmp_path / "evil")
        config = json.loads((folder / "config.json").read_text())
        config["auto_map"] = {"AutoModel": "evil.Evil", "AutoConfig": "evil.Config", "AutoProcessor": "evil.Processor"}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
        opened(experts.SamSegments, folder)
        assert not (tmp_path / "ran").exists()

    def test_half_precision_changes_results_and_a_batch_size_does_not(self):
        base = experts.ModelSettings(model="x", device="cpu")
        assert base.that_change_results() == replace(base, batch_size=99, dtype="float32").that_change_results()
        assert base.that_change_results() != replace(base, dtype="bfloat16").that_change_results()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_in_bfloat16_every_model_takes_and_gives_what_it_does_on_a_cpu(models):
    captions = SegmentCaptions(("a sign", "a red circle"))
    seen = {"caption": Caption("a sign"), "filters": Filtered(())}
    given = items(regions=TWO_REGIONS, segments=TWO_SEGMENTS, segment_captions=captions, **seen)
    for kind, model, settings in (
        (experts.Blip2Captions, "blip2", {"max_new_tokens": 8}),
        (experts.Blip2SegmentCaptions, "blip2", {"max_new_tokens": 8}),
        (experts.Blip2Matching, "matcher", {}),
        (experts.Florence2Regions, "florence2", {"max_new_tokens": 24}),
        (experts.SamSegments, "sam", LOOSE),
        (LocalModel, "causal", {"max_new_tokens": 8}),
    ):
        assert not any(isinstance(one, Failure) for one in opened(kind, models[model], **settings)(given))


# RapidOCR, by character against what was drawn


@pytest.fixture(scope="module")
def reader() -> experts.RapidOcrText:
    pytest.importorskip("rapidocr", reason="rapidocr is not installed (pip install 'monkey[describe]')")
    return experts.RapidOcrText(experts.ReaderSettings(threads=1))


def read_page(reader: experts.RapidOcrText, image: Image.Image, words: Sequence[Word]) -> tuple[Lines, int, int]:
    """What was read, characters of the words that were read at their place, in order, and all of the words'."""
    (found,), right = reader([Item("0" * 64, Path("page.png"), "page.png", (), {}, image)]), 0
    for word in words:
        x, y = (word.box[0] + word.box[2]) / 2 / image.width, (word.box[1] + word.box[3]) / 2 / image.height
        inside = [one.text for one in found.lines if one.box[0] <= x <= one.box[2] and one.box[1] <= y <= one.box[3]]
        text = inside[0] if inside else ""
        match = SequenceMatcher(None, text, word.text, autojunk=False).find_longest_match()
        right += match.size
    return found, right, sum(len(word.text) for word in words)


def test_what_is_drawn_is_read_where_it_stands_without_a_network(reader, monkeypatch):
    def refuse(*_):
        raise AssertionError("the reader asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse, raising=False)
    image, words = Image.new("RGB", (224, 224), "white"), []
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(30)
    for line, (y, text) in enumerate(((20, "HARVEST"), (80, "3.20"), (140, "Garden"))):
        draw.text((20, y), text, fill="black", font=font)
        words.append(Word(text, draw.textbbox((20, y), text, font=font), line, 21))
    found, right, total = read_page(reader, image, words)
    assert right == total, found
    assert all(0.85 < line.score <= 1 for line in found.lines)
    image = Image.new("RGB", (224, 224), "white")
    ImageDraw.Draw(image).ellipse((40, 40, 160, 160), fill=(200, 30, 30))
    assert read_page(reader, image, ())[0] == Lines(())


@pytest.mark.slow
def test_rapidocr_reads_four_of_five_characters_of_pages(reader):
    kinds = ("receipt", "label", "form", "table", "card", "sign")
    pages = [draw_page(kind, random.Random(5), "heldout", Limits(224, 4), clean=True) for kind in kinds]
    counts = [read_page(reader, page.image, page.words)[1:] for page in pages]
    right, total = map(sum, zip(*counts, strict=True))
    assert total > 200
    assert right / total > 0.8


# A run with a model in every stage


@pytest.fixture
def config(models) -> dict:
    def model(expert: str, name: str, **settings) -> dict:
        return {"expert": expert, "model": str(models[name]), **settings}

    return {
        "stages": {
            "caption": model("blip2", "blip2", max_new_tokens=6, batch_size=2),
            "regions": model("florence2", "florence2", max_new_tokens=24, batch_size=2),
            "segments": model("sam", "sam", **{**LOOSE, "points_per_side": 3, "most": 4}),
            "segment_captions": model("blip2", "blip2", max_new_tokens=6, batch_size=3),
            "matching": model("blip2", "matcher", batch_size=5),
            "filters": {"region_score": 0.2, "segment_score": 0.2},
            "summary": model("transformers", "causal", max_new_tokens=12, batch_size=2),
        }
    }


@pytest.mark.slow
def test_every_stage_opens_its_model_once_and_a_stopped_run_makes_the_same_bytes(config, tmp_path, monkeypatch):
    names, whole = [], experts.open_model

    def noted(name, settings):
        names.append(name)
        return whole(name, settings)

    monkeypatch.setattr(experts, "open_model", noted)
    run = tmp_path / "run"
    assert describe(IMAGES, run, config) == 0
    kinds = ["Blip2ForConditionalGeneration", "Florence2ForConditionalGeneration", "SamModel"]
    assert names == [*kinds, kinds[0], "Blip2ForImageTextRetrieval", "AutoModelForCausalLM"]
    for image in FinishedRun(run).images():
        assert len(image["regions"].regions) == 2
        assert len(image["segments"].segments) == len(image["segment_captions"].texts) == 4
        assert len(image["filters"].candidates) == 6
    entry = FinishedRun(run).manifest["stages"]["summary"]
    assert entry["prompt_tokens"] > 1000
    assert entry["loading_seconds"] > 0
    names.clear()
    first = outputs_of(run)
    assert describe(IMAGES, run, config) == 0
    assert (names, outputs_of(run)) == ([], first)
    for path in (run / "journals").glob("*.jsonl"):
        # As a kill would leave it: two images are there, and half a line.
        lines = path.read_bytes().splitlines(keepends=True)
        if "images" not in path.name and "usage" not in path.name:
            path.write_bytes(b"".join(lines[:2]) + lines[2][:20])
    assert describe(IMAGES, run, config) == 0
    assert outputs_of(run) == first


@pytest.mark.slow
def test_a_model_that_does_not_fit_stops_the_run_in_one_sentence(config, models, tmp_path, capsys):
    matching, run = config["stages"]["matching"], tmp_path / "run"
    matching["model"] = str(models["sam"])
    assert "stages.matching: " in refusal(capsys, describe(IMAGES, run, config))
    assert not run.exists()
    matching["model"] = str(shutil.copytree(models["matcher"], tmp_path / "matcher"))
    (tmp_path / "matcher" / "model.safetensors").write_bytes(b"x" * 100)
    error = refusal(capsys, describe(IMAGES, run, config))
    assert "stages.matching: " in error
    assert "cannot be opened as Blip2ForImageTextRetrieval" in error
    assert len((run / "journals" / "segment_captions.0-of-1.jsonl").read_bytes().splitlines()) == 5
