"""SAM's automatic masks: a grid of points is asked about, and of what comes back the largest are taken.

The steps and thresholds are those of segment-anything's automatic mask generator, through transformers' model and
image processor, whose last step, dropping masks that overlap a better one, is done here: transformers' own needs
torchvision. Masks become boxes and small grids (masks.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from monkey.describe.boxes import as_shares
from monkey.describe.expert import Expert, Failure, Item
from monkey.describe.masks import pack_mask
from monkey.describe.records import Result, Segment, Segments
from monkey.describe.weights import ModelSettings, device_of, dtype_of, model_identity, open_model

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class SegmentSettings(ModelSettings):
    """`batch_size` counts points, of which each picture has `points_per_side` squared."""

    model: str = "facebook/sam-vit-huge"
    most: int = 20
    points_per_side: int = 32
    least_predicted_overlap: float = 0.88
    least_stability: float = 0.95
    most_box_overlap: float = 0.7

    def check(self) -> None:
        super().check()
        for name in ("most", "points_per_side"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, and 1 or more is needed")


class AutomaticMasks(Expert):
    """The largest masks of each picture. Pictures go one by one, their points in batches, as masks take the memory."""

    Settings = SegmentSettings

    def __init__(self, settings: SegmentSettings):
        super().__init__(settings)
        self._model, self._processor = open_model("SamModel", settings)

    @classmethod
    def identity(cls, settings: SegmentSettings) -> Mapping[str, Any]:
        return model_identity(settings, {"sam": ("SamModel",)}, "segmenting")

    def __call__(self, items: Sequence[Item]) -> list[Result | Failure]:
        return [self._segments(item) for item in items]

    def _segments(self, item: Item) -> Segments:
        import torch

        width, height = item.picture.size
        with torch.inference_mode():
            masks, scores, boxes = self._predicted(item)
            if not len(boxes):
                return Segments(())
            kept = without_overlaps(boxes, scores, self.settings.most_box_overlap).tolist()
        found = []
        for index in kept:
            mask = _whole(masks[index])
            # The right and lower edge of a box are those of its last pixels.
            left, top, right, bottom = boxes[index].tolist()
            box = as_shares((left, top, right + 1, bottom + 1), width, height)
            found.append(Segment(box, round(float(mask.mean()), 5), round(scores[index].item(), 4), pack_mask(mask)))
        found.sort(key=lambda segment: -segment.area)
        return Segments(tuple(found[: self.settings.most]))

    def _predicted(self, item: Item) -> tuple[list[Any], torch.Tensor, torch.Tensor]:
        """Masks as run lengths, their scores [N] and boxes [N, 4] in pixels, of all points."""
        import torch

        images, device = self._processor.image_processor, device_of(self.settings)
        dtype = getattr(torch, dtype_of(self.settings))
        crops, points, pictures, labels = images.generate_crop_boxes(
            item.picture, images.size["longest_edge"], points_per_crop=self.settings.points_per_side
        )
        inputs = images(images=pictures, return_tensors="pt")
        embeddings = self._model.get_image_embeddings(inputs["pixel_values"].to(device, dtype))
        sizes = inputs["original_sizes"].tolist(), inputs["reshaped_input_sizes"].tolist()
        masks, scores, boxes = [], [], []
        for start in range(0, points.shape[1], self.settings.batch_size):
            chosen = slice(start, start + self.settings.batch_size)
            output = self._model(
                image_embeddings=embeddings,
                input_points=points[:, chosen].to(device, dtype),
                input_labels=labels[:, chosen].to(device),
            )
            # Masks stay logits until their stability is known.
            full = images.post_process_masks(output.pred_masks.float(), *sizes, binarize=False)
            some = images.filter_masks(
                full[0],
                output.iou_scores.float()[0],
                sizes[0][0],
                crops[0].cpu(),
                self.settings.least_predicted_overlap,
                self.settings.least_stability,
            )
            masks.extend(some[0])
            scores.append(some[1].cpu())
            boxes.append(some[2].cpu())
        return masks, torch.cat(scores), torch.cat(boxes)


def without_overlaps(boxes: torch.Tensor, scores: torch.Tensor, most: float) -> torch.Tensor:
    """Indices of the boxes that stay, the best first: none overlaps a better one by more than `most`.

    Args:
        boxes: [N, 4], left, top, right, bottom.
        scores: [N].
    """
    import torch

    boxes = boxes.float()
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order = scores.argsort(descending=True, stable=True)
    kept = []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(best)
        low = torch.maximum(boxes[best, :2], boxes[order, :2])
        high = torch.minimum(boxes[best, 2:], boxes[order, 2:])
        common = (high - low).clamp(min=0).prod(dim=1)
        union = areas[best] + areas[order] - common
        order = order[common <= most * union.clamp(min=1e-9)]
    return torch.stack(kept)


def _whole(runs: Mapping[str, Any]) -> Any:
    """Mask [H, W] of bool from run lengths down the columns, the first run being of False."""
    import numpy as np

    height, width = runs["size"]
    counts = np.asarray([int(count) for count in runs["counts"]])
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(width, height).T
