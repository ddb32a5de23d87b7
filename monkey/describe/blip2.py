"""BLIP-2: captions of whole pictures and of segments, and how well a crop and its caption match.

Settings of the published scripts: blip2-opt-2.7b, one beam, 30 tokens; segments are shown on white, as the published
sam_blip.py does, and matched by their whole box, as image_text_matching.py does. A match is the probability of the
second class of the image-text-matching head, after one softmax.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from monkey.describe.boxes import crop
from monkey.describe.checks import one_line
from monkey.describe.expert import Expert, Failure, Item
from monkey.describe.masks import on_white, unpack_mask
from monkey.describe.records import Caption, Result, Scores, SegmentCaptions
from monkey.describe.weights import ModelSettings, device_of, dtype_of, model_identity, open_model

CAPTIONER = {"blip-2": ("Blip2ForConditionalGeneration", "Blip2Model")}
MATCHER = {"blip-2": ("Blip2ForImageTextRetrieval",)}


@dataclass(frozen=True)
class CaptionSettings(ModelSettings):
    model: str = "Salesforce/blip2-opt-2.7b"
    max_new_tokens: int = 30
    num_beams: int = 1

    def check(self) -> None:
        super().check()
        for name in ("max_new_tokens", "num_beams"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, and 1 or more is needed")


class _Captioner(Expert):
    Settings = CaptionSettings

    def __init__(self, settings: CaptionSettings):
        super().__init__(settings)
        self._model, self._processor = open_model("Blip2ForConditionalGeneration", settings)

    def _captions(self, pictures: Sequence[Image.Image]) -> list[str]:
        import torch

        inputs = self._processor(images=list(pictures), return_tensors="pt")
        pixels = inputs["pixel_values"].to(device_of(self.settings), getattr(torch, dtype_of(self.settings)))
        with torch.inference_mode():
            ids = self._model.generate(
                pixel_values=pixels,
                max_new_tokens=self.settings.max_new_tokens,
                num_beams=self.settings.num_beams,
                do_sample=False,
            )
        texts = self._processor.batch_decode(ids, skip_special_tokens=True)
        return [one_line(text) for text in texts]


class PictureCaptions(_Captioner):
    """A caption of each whole picture."""

    @classmethod
    def identity(cls, settings: CaptionSettings) -> Mapping[str, Any]:
        return model_identity(settings, CAPTIONER, "captioning a picture")

    def __call__(self, items: Sequence[Item]) -> list[Result | Failure]:
        return [Caption(text) for text in self._captions([item.picture for item in items])]


@dataclass(frozen=True)
class SegmentCaptionSettings(CaptionSettings):
    """`white_outside`: what is not of the segment is white in its crop, where the segmenter left a mask."""

    white_outside: bool = True


class SegmentCrops(_Captioner):
    """A caption of each segment's crop."""

    Settings = SegmentCaptionSettings

    @classmethod
    def identity(cls, settings: CaptionSettings) -> Mapping[str, Any]:
        return model_identity(settings, CAPTIONER, "captioning segments")

    def __call__(self, items: Sequence[Item]) -> list[Result | Failure]:
        crops = [crop_ for item in items for crop_ in self._crops(item)]
        texts = iter([text for some in in_batches(crops, self.settings.batch_size) for text in self._captions(some)])
        return [SegmentCaptions(tuple(next(texts) for _ in item.results["segments"].segments)) for item in items]

    def _crops(self, item: Item) -> Iterator[Image.Image]:
        for segment in item.results["segments"].segments:
            picture = item.picture
            if self.settings.white_outside and segment.mask is not None:
                picture = on_white(picture, unpack_mask(segment.mask))
            yield crop(picture, segment.box)


@dataclass(frozen=True)
class MatchingSettings(ModelSettings):
    model: str = "Salesforce/blip2-itm-vit-g"


class Matching(Expert):
    """The match of each region's and each segment's crop with its caption."""

    Settings = MatchingSettings

    def __init__(self, settings: MatchingSettings):
        super().__init__(settings)
        self._model, self._processor = open_model("Blip2ForImageTextRetrieval", settings)

    @classmethod
    def identity(cls, settings: MatchingSettings) -> Mapping[str, Any]:
        return model_identity(settings, MATCHER, "matching crops with captions")

    def __call__(self, items: Sequence[Item]) -> list[Result | Failure]:
        pairs = [pair for item in items for pair in _pairs(item)]
        scores = iter([score for some in in_batches(pairs, self.settings.batch_size) for score in self._scores(some)])
        return [
            Scores(
                tuple(next(scores) for _ in item.results["regions"].regions),
                tuple(next(scores) for _ in item.results["segments"].segments),
            )
            for item in items
        ]

    def _scores(self, pairs: Sequence[tuple[Image.Image, str]]) -> list[float]:
        import torch

        crops, texts = zip(*pairs, strict=True)
        inputs = self._processor(
            images=list(crops), text=list(texts), padding=True, truncation=True, max_length=512, return_tensors="pt"
        ).to(device_of(self.settings))
        inputs["pixel_values"] = inputs["pixel_values"].to(getattr(torch, dtype_of(self.settings)))
        with torch.inference_mode():
            logits = self._model(**inputs, use_image_text_matching_head=True).logits_per_image
        return [round(score, 4) for score in logits.float().softmax(dim=1)[:, 1].tolist()]


def _pairs(item: Item) -> Iterator[tuple[Image.Image, str]]:
    """Crop and caption of each region, then of each segment."""
    for region in item.results["regions"].regions:
        yield crop(item.picture, region.box), region.text
    captions = item.results["segment_captions"].texts
    for segment, text in zip(item.results["segments"].segments, captions, strict=True):
        yield crop(item.picture, segment.box), text


def in_batches(entries: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(entries), size):
        yield entries[start : start + size]
