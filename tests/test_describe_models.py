"""The experts that are models: opened from folders by transformers, asked in batches, refused where they do not fit.

The models are tiny and their weights random, so what they say means nothing; that the same comes out alone and in a
batch, in the form of the records, does.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from monkey.describe.blip2 import (
    CaptionSettings,
    Matching,
    MatchingSettings,
    PictureCaptions,
    SegmentCaptionSettings,
    SegmentCrops,
)
from monkey.describe.expert import Failure, Item
from monkey.describe.florence2 import DenseCaptions, DenseCaptionSettings
from monkey.describe.local_llm import LocalModel, LocalSettings
from monkey.describe.masks import pack_mask, unpack_mask
from monkey.describe.records import (
    Candidate,
    Caption,
    Filtered,
    Region,
    Regions,
    Segment,
    SegmentCaptions,
    Segments,
    result_from_json,
    result_to_json,
)
from monkey.describe.sam import AutomaticMasks, SegmentSettings, without_overlaps
from monkey.describe.weights import ModelSettings, folder_digest
from tests.describe_models import write_all, write_causal
from tests.drawn import SAMPLES


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    return write_all(tmp_path_factory.mktemp("models"))


def items(**results) -> list[Item]:
    pictures = [Image.open(path).convert("RGB") for path in sorted((SAMPLES / "images" / "heldout").glob("*.jpg"))]
    pictures[0] = pictures[0].resize((200, 120))
    return [Item(str(number), Path("x.png"), "x.png", (), results, one) for number, one in enumerate(pictures)]


TWO_REGIONS = Regions((Region((0, 0, 0.5, 0.5), "a red sign"), Region((0.5, 0.5, 1, 1), "the blue circle on the left")))
TWO_SEGMENTS = Segments((Segment((0, 0, 1, 1), 0.9, 0.9), Segment((0.2, 0.2, 0.6, 0.6), 0.1, 0.8)))


def same_alone_and_together(expert, given) -> list:
    together = expert(given)
    alone = [expert([item])[0] for item in given]
    assert together == alone
    return together


class TestBlip2:
    def test_captions_are_those_of_each_picture_alone(self, models):
        expert = PictureCaptions(CaptionSettings(model=str(models["blip2"]), max_new_tokens=12))
        found = same_alone_and_together(expert, items())
        assert len({caption.text for caption in found}) > 1

    def test_no_more_tokens_than_asked_for(self, models):
        short, long = (
            PictureCaptions(CaptionSettings(model=str(models["blip2"]), max_new_tokens=count))(items())
            for count in (2, 12)
        )
        assert all(len(one.text.split()) <= 2 for one in short)
        assert any(len(one.text.split()) > 2 for one in long)

    def test_each_segment_of_each_picture_gets_its_own_caption(self, models):
        expert = SegmentCrops(SegmentCaptionSettings(model=str(models["blip2"]), batch_size=3, max_new_tokens=6))
        given = items(segments=TWO_SEGMENTS)
        given[1] = replace(given[1], results={"segments": Segments(())})
        found = same_alone_and_together(expert, given)
        assert [len(one.texts) for one in found] == [2, 0, 2, 2, 2]

    def test_outside_of_a_mask_is_not_seen(self, models):
        item = items()[0]
        mask = np.zeros((item.picture.height, item.picture.width), bool)
        mask[30:90, 50:150] = True
        masked = Segments((Segment((0, 0, 1, 1), 0.3, 0.9, pack_mask(mask)),))
        other = Image.new("RGB", item.picture.size, (200, 30, 90))
        other.paste(item.picture.crop((50, 30, 150, 90)), (50, 30))
        crops = SegmentCrops(SegmentCaptionSettings(model=str(models["blip2"])))
        one, two = (
            next(crops._crops(replace(item, picture=picture, results={"segments": masked})))
            for picture in (item.picture, other)
        )
        assert one.tobytes() == two.tobytes()

    def test_matches_are_probabilities_of_each_crop_with_its_own_text(self, models):
        expert = Matching(MatchingSettings(model=str(models["matcher"]), batch_size=3))
        captions = SegmentCaptions(("a sign", "the picture shows a red circle ."))
        given = items(regions=TWO_REGIONS, segments=TWO_SEGMENTS, segment_captions=captions)
        found = expert(given)
        for one, item in zip(found, given, strict=True):
            alone = expert([item])[0]
            for here, there in zip((*one.regions, *one.segments), (*alone.regions, *alone.segments), strict=True):
                # Texts of one batch are padded to one length; scores have four decimals.
                assert here == pytest.approx(there, abs=2e-4)
                assert 0 <= here <= 1
        assert len({score for one in found for score in (*one.regions, *one.segments)}) > 5

    def test_a_match_is_the_second_class_after_one_softmax(self, models):
        expert = Matching(MatchingSettings(model=str(models["matcher"])))
        item = items()[2]
        inputs = expert._processor(images=item.picture, text="a red sign", return_tensors="pt")
        with torch.inference_mode():
            logits = expert._model(**inputs, use_image_text_matching_head=True).logits_per_image[0]
        whole = Regions((Region((0, 0, 1, 1), "a red sign"),))
        results = {"regions": whole, "segments": Segments(()), "segment_captions": SegmentCaptions(())}
        (found,) = expert([replace(item, results=results)])
        assert found.regions[0] == pytest.approx(1 / (1 + torch.exp(logits[0] - logits[1]).item()), abs=1e-4)


class TestFlorence2:
    def test_places_become_boxes_in_shares_of_each_picture(self, models):
        expert = DenseCaptions(DenseCaptionSettings(model=str(models["florence2"]), max_new_tokens=24))
        found = same_alone_and_together(expert, items())
        for one in found:
            (sign, circle) = one.regions
            assert (sign.text, circle.text) == ("a red sign", "blue circle")
            # Places are thousandths; transformers cuts them to whole pixels, of which there are 120 or more.
            assert sign.box == pytest.approx((0.1, 0.2, 0.5, 0.6), abs=1 / 120)
            assert circle.box == pytest.approx((0.6, 0.0, 1.0, 0.4), abs=1 / 120)


class TestSam:
    def settings(self, models, **changes) -> SegmentSettings:
        loose = {"points_per_side": 4, "least_predicted_overlap": -9.0, "least_stability": 0.0, "most_box_overlap": 1.0}
        return SegmentSettings(model=str(models["sam"]), **{**loose, **changes})

    def test_the_largest_come_first_with_masks_that_fill_their_boxes(self, models):
        for one in AutomaticMasks(self.settings(models, most=5))(items()[:2]):
            assert len(one.segments) == 5
            assert [segment.area for segment in one.segments] == sorted(
                (segment.area for segment in one.segments), reverse=True
            )
            for segment in one.segments:
                mask = unpack_mask(segment.mask)
                rows, columns = np.nonzero(mask)
                edges = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
                height, width = mask.shape
                expected = (edges[0] / width, edges[1] / height, edges[2] / width, edges[3] / height)
                assert segment.box == pytest.approx(expected, abs=0.011)
                assert mask.mean() == pytest.approx(segment.area, abs=0.01)

    def test_batches_of_points_change_nothing(self, models):
        whole, parts = (AutomaticMasks(self.settings(models, batch_size=size))(items()[:2]) for size in (64, 3))
        for one, other in zip(whole, parts, strict=True):
            assert [segment.box for segment in one.segments] == [segment.box for segment in other.segments]

    def test_a_picture_whose_masks_are_all_unsure_has_no_segments(self, models):
        found = AutomaticMasks(self.settings(models, least_predicted_overlap=99.0))(items()[:1])
        assert found == [Segments(())]

    def test_of_boxes_that_overlap_the_best_stays(self):
        boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30], [0, 0, 10, 5]])
        kept = without_overlaps(boxes, torch.tensor([0.8, 0.9, 0.1, 0.7]), most=0.7)
        assert kept.tolist() == [1, 3, 2]


SEEN = {"caption": Caption("a sign"), "filters": Filtered(())}


class TestLocalModel:
    def test_answers_are_those_of_each_question_alone(self, models):
        expert = LocalModel(LocalSettings(model=str(models["causal"]), max_new_tokens=6, retries=0))
        longer = {"caption": Caption("a red sign and a blue circle " * 5), "filters": Filtered(())}
        given = [replace(item, results=longer if number % 2 else SEEN) for number, item in enumerate(items())]
        found = same_alone_and_together(expert, given)
        assert all(one.attempts == 1 for one in found)

    def test_tokens_are_counted(self, models):
        expert = LocalModel(LocalSettings(model=str(models["causal"]), max_new_tokens=6, retries=0))
        expert([replace(item, results=SEEN) for item in items()[:2]])
        prompt = expert._prompt([{"role": "user", "content": "x"}])
        assert prompt.startswith("<|im_start|> user x <|im_end|>")
        assert expert.spent.requests == 2
        assert expert.spent.prompt_tokens > 2 * 100
        assert 0 < expert.spent.completion_tokens <= 12

    def test_a_picture_cannot_write_control_tokens(self, models):
        expert = LocalModel(LocalSettings(model=str(models["causal"])))
        prompt = expert._prompt([{"role": "user", "content": "a <|im_end|> <|endoftext|> b"}])
        assert prompt.count("<|im_end|>") == 1
        assert "<|endoftext|>" not in prompt

    def test_a_model_without_a_template_goes_on_from_a_heading(self, tmp_path):
        expert = LocalModel(
            LocalSettings(model=str(write_causal(tmp_path / "plain", template=False)), max_new_tokens=4)
        )
        assert expert._prompt([{"role": "user", "content": "x"}]) == "x\n\nDescription:"
        assert len(expert([replace(items()[0], results=SEEN)])) == 1

    def test_only_the_question_that_is_too_long_fails(self, models):
        expert = LocalModel(LocalSettings(model=str(models["causal"]), max_new_tokens=4, retries=0))
        expert._model.config.max_position_embeddings = 700
        text = {"caption": Caption("sign " * 60), "filters": Filtered(())}
        many = Filtered(tuple(Candidate("region", n, (0, 0, 1, 1), f"a sign {n}", 0.9) for n in range(60)))
        given = [replace(items()[0], results=SEEN), replace(items()[1], results={**text, "filters": many})]
        good, bad = expert(given)
        assert not isinstance(good, Failure)
        assert "more than the model's 700" in bad.problem


class TestOpening:
    @pytest.mark.parametrize(
        ("kind", "settings", "model", "message"),
        [
            (PictureCaptions, CaptionSettings, "sam", "sam (SamModel) model, and captioning a picture needs Blip2ForC"),
            (PictureCaptions, CaptionSettings, "matcher", "blip-2 (Blip2ForImageTextRetrieval) model, and captioning"),
            (Matching, MatchingSettings, "blip2", "and matching crops with captions needs Blip2ForImageTextRetrieval"),
            (DenseCaptions, DenseCaptionSettings, "blip2", "dense captioning needs Florence2ForConditionalGeneration"),
            (
                AutomaticMasks,
                SegmentSettings,
                "causal",
                "(Qwen2ForCausalLM) model, and segmenting needs SamModel",
            ),
            (LocalModel, LocalSettings, "sam", "sam (SamModel) model, and summarising needs"),
        ],
    )
    def test_a_model_of_another_kind_is_refused_before_it_is_opened(self, models, kind, settings, model, message):
        with pytest.raises(ValueError) as caught:
            kind.identity(settings(model=str(models[model])))
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_a_folder_that_is_missing_or_has_no_weights_is_one_sentence(self, models, tmp_path):
        with pytest.raises(FileNotFoundError, match="no such checkpoint folder"):
            AutomaticMasks.identity(SegmentSettings(model=str(tmp_path / "no")))
        folder = tmp_path / "sam"
        shutil.copytree(models["sam"], folder)
        (folder / "model.safetensors").unlink()
        with pytest.raises(ValueError, match="cannot be opened as SamModel") as caught:
            AutomaticMasks(SegmentSettings(model=str(folder)))
        assert "\n" not in str(caught.value)

    def test_weights_that_are_missing_are_no_random_ones(self, models, tmp_path):
        folder = tmp_path / "blip2"
        shutil.copytree(models["blip2"], folder)
        tensors = load_file(folder / "model.safetensors")
        del tensors["language_projection.weight"]
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(ValueError, match=r"1 of its weights are not there, language_projection\.weight the first"):
            PictureCaptions(CaptionSettings(model=str(folder)))

    def test_other_weights_are_another_identity_and_another_place_is_not(self, models, tmp_path):
        folder = tmp_path / "moved"
        shutil.copytree(models["sam"], folder)
        first = AutomaticMasks.identity(SegmentSettings(model=str(models["sam"])))
        assert AutomaticMasks.identity(SegmentSettings(model=str(folder))) == first
        weights = folder / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-7] ^= 1
        weights.write_bytes(content)
        assert AutomaticMasks.identity(SegmentSettings(model=str(folder))) != first

    def test_large_files_are_told_apart_by_samples(self, tmp_path):
        path = tmp_path / "model.safetensors"
        content = bytearray(np.random.default_rng(0).bytes(5_000_000))
        path.write_bytes(content)
        first = folder_digest(tmp_path)
        # As training does, which changes every weight.
        path.write_bytes(bytes(byte ^ 1 for byte in content))
        assert folder_digest(tmp_path) != first

    def test_a_folder_with_code_of_its_own_runs_none_of_it(self, models, tmp_path):
        folder = tmp_path / "evil"
        shutil.copytree(models["sam"], folder)
        config = json.loads((folder / "config.json").read_text())
        config["auto_map"] = {"AutoModel": "evil.Evil", "AutoConfig": "evil.Config", "AutoProcessor": "evil.Processor"}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
        AutomaticMasks(SegmentSettings(model=str(folder)))
        assert not (tmp_path / "ran").exists()

    def test_half_precision_is_another_setting_and_a_batch_size_is_not(self, models):
        base = ModelSettings(model="x", device="cpu")
        assert base.that_change_results() == replace(base, batch_size=99).that_change_results()
        assert base.that_change_results() != replace(base, dtype="bfloat16").that_change_results()
        assert base.that_change_results() == replace(base, dtype="float32").that_change_results()

    def test_bfloat16_runs(self, models):
        expert = PictureCaptions(CaptionSettings(model=str(models["blip2"]), dtype="bfloat16", max_new_tokens=3))
        assert len(expert(items()[:2])) == 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestGpu:
    """On a GPU in bfloat16, its own choice, every model takes and gives what it does on a CPU."""

    def test_every_model_runs_there(self, models):
        captions = SegmentCaptions(("a sign", "a red circle"))
        given = items(regions=TWO_REGIONS, segments=TWO_SEGMENTS, segment_captions=captions, **SEEN)
        settings = {"max_new_tokens": 8}
        for expert in (
            PictureCaptions(CaptionSettings(model=str(models["blip2"]), **settings)),
            SegmentCrops(SegmentCaptionSettings(model=str(models["blip2"]), **settings)),
            Matching(MatchingSettings(model=str(models["matcher"]))),
            DenseCaptions(DenseCaptionSettings(model=str(models["florence2"]), max_new_tokens=24)),
            AutomaticMasks(TestSam().settings(models)),
            LocalModel(LocalSettings(model=str(models["causal"]), **settings)),
        ):
            assert not any(isinstance(one, Failure) for one in expert(given))


def test_what_models_say_survives_being_written(models):
    masks = AutomaticMasks(TestSam().settings(models))
    captions = DenseCaptions(DenseCaptionSettings(model=str(models["florence2"]), max_new_tokens=24))
    for stage, expert in (("segments", masks), ("regions", captions)):
        (result,) = expert(items()[:1])
        assert result_from_json(stage, json.loads(json.dumps(result_to_json(result)))) == result
