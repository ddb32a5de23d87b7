"""Florence-2's dense region captions, in the place of the paper's GRiT, which needs an unkept fork of Detectron2.

The task is <DENSE_REGION_CAPTION>; the checkpoints that transformers opens by itself are those of florence-community.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from monkey.describe.boxes import area, as_shares
from monkey.describe.checks import one_line
from monkey.describe.expert import Expert, Failure, Item
from monkey.describe.records import Region, Regions, Result
from monkey.describe.weights import ModelSettings, device_of, dtype_of, model_identity, open_model

TASK = "<DENSE_REGION_CAPTION>"


@dataclass(frozen=True)
class DenseCaptionSettings(ModelSettings):
    model: str = "florence-community/Florence-2-large"
    max_new_tokens: int = 1024
    num_beams: int = 3

    def check(self) -> None:
        super().check()
        for name in ("max_new_tokens", "num_beams"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, and 1 or more is needed")


class DenseCaptions(Expert):
    """Regions with a caption each."""

    Settings = DenseCaptionSettings

    def __init__(self, settings: DenseCaptionSettings):
        super().__init__(settings)
        self._model, self._processor = open_model("Florence2ForConditionalGeneration", settings)

    @classmethod
    def identity(cls, settings: DenseCaptionSettings) -> Mapping[str, Any]:
        return model_identity(settings, {"florence2": ("Florence2ForConditionalGeneration",)}, "dense captioning")

    def __call__(self, items: Sequence[Item]) -> list[Result | Failure]:
        import torch

        inputs = self._processor(
            images=[item.picture for item in items], text=[TASK] * len(items), return_tensors="pt", padding=True
        ).to(device_of(self.settings))
        inputs["pixel_values"] = inputs["pixel_values"].to(getattr(torch, dtype_of(self.settings)))
        with torch.inference_mode():
            ids = self._model.generate(
                **inputs,
                max_new_tokens=self.settings.max_new_tokens,
                num_beams=self.settings.num_beams,
                do_sample=False,
            )
        texts = self._processor.batch_decode(ids, skip_special_tokens=False)
        return [self._regions(text, item) for text, item in zip(texts, items, strict=True)]

    def _regions(self, text: str, item: Item) -> Regions:
        width, height = item.picture.size
        # Without the padding of shorter answers in a batch, which is no part of a caption.
        text = text.replace(self._processor.tokenizer.pad_token, "")
        found = self._processor.post_process_generation(text=text, task=TASK, image_size=(width, height))[TASK]
        regions = [
            Region(as_shares(box, width, height), one_line(label))
            for box, label in zip(found["bboxes"], found["labels"], strict=True)
        ]
        return Regions(tuple(region for region in regions if area(region.box) > 0 and region.text))
