"""What an expert is, and those that look at images: BLIP-2, Florence-2, SAM, RapidOCR, and a Monkey checkpoint.

An expert is a class with its settings' class. It is opened with settings, which loads its weights, asked about a batch
of images, and closed. No code of a checkpoint ever runs (`trust_remote_code` is never set), and PyTorch files are read
with `weights_only`, which is transformers' way.
"""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from PIL import Image

from monkey.cli import library_bars
from monkey.describe.findings import (
    Caption,
    Line,
    Lines,
    Region,
    Regions,
    Result,
    Scores,
    Segment,
    SegmentCaptions,
    Segments,
    area,
    as_shares,
    crop,
    decode,
    field_kinds,
    pack_mask,
    unpack_mask,
    whiten_outside,
)
from monkey.files import read_json, required_file

if TYPE_CHECKING:
    import torch

# Settings


def setting(
    default: Any,
    *,
    least: float | None = None,
    most: float | None = None,
    among: Sequence[str] = (),
    is_needed: bool = False,
    changes_result: bool = True,
) -> Any:
    """Declare a setting of an expert with its bounds.

    Args:
        is_needed: an empty text is refused.
        changes_result: False for how the work is done; with another value nothing is done anew.
    """
    limits = {"least": least, "most": most, "among": among, "is_needed": is_needed}
    return field(default=default, metadata={**limits, "changes_result": changes_result})


@dataclass(frozen=True)
class ExpertSettings:
    """`batch_size` is what a model sees at a time: images, or crops of them."""

    batch_size: int = setting(8, least=1, changes_result=False)

    def that_change_results(self) -> dict[str, Any]:
        return {
            entry.name: getattr(self, entry.name)
            for entry in dataclasses.fields(self)
            if entry.metadata.get("changes_result", True)
        }


def read_settings(kind: type[ExpertSettings], given: Mapping[str, Any], where: str) -> ExpertSettings:
    """Return settings with a configuration's values. Raises ValueError naming the place and what is allowed."""
    kinds, values = dict(field_kinds(kind)), {}
    for name, value in given.items():
        if name not in kinds:
            raise ValueError(f"{where} has no setting {name!r}; there is {', '.join(kinds)}")
        try:
            values[name] = decode(kinds[name], value)
        except TypeError as error:
            raise ValueError(f"{where}.{name} is {error}") from None
    settings = kind(**values)
    for entry in dataclasses.fields(kind):
        _check_limits(getattr(settings, entry.name), entry.metadata, f"{where}.{entry.name}")
    return settings


def _check_limits(value: Any, limits: Mapping[str, Any], where: str) -> None:
    least, most = limits.get("least"), limits.get("most")
    if value == "" and limits.get("is_needed"):
        raise ValueError(f"{where} is missing")
    if limits.get("among") and value not in limits["among"]:
        raise ValueError(f"{where} is {value!r}, and one of {', '.join(limits['among'])} is needed")
    if value is None or least is None:
        return
    if value < least or (most is not None and value > most):
        wanted = f"{least} or more" if most is None else f"a number from {least} to {most}"
        raise ValueError(f"{where} is {value}, and {wanted} is needed")


# Experts


@dataclass(frozen=True)
class Item:
    """One image as an expert is given it.

    Attributes:
        digest: SHA-256 of the file's bytes.
        file, also: its names in the folder of the images.
        results: of the stages that the expert's own needs.
        image: None where the expert looks at no image (`Expert.needs_image`).
    """

    digest: str
    path: Path
    file: str
    also: tuple[str, ...]
    results: Mapping[str, Any]
    image: Image.Image | None = None


@dataclass(frozen=True)
class Failure:
    """No result for an image, and why, as a sentence. `stops`: nor would there be one for any other image."""

    problem: str
    stops: bool = False


@dataclass
class Spent:
    """What was asked of a language model."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, requests: int, prompt_tokens: int, completion_tokens: int) -> None:
        self.requests += requests
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens

    def cost(self, settings: Any) -> float | None:
        """Return the cost in the currency of the settings' prices for a million tokens; None without prices."""
        prices = getattr(settings, "prompt_price", None), getattr(settings, "completion_price", None)
        if None in prices:
            return None
        return round((self.prompt_tokens * prices[0] + self.completion_tokens * prices[1]) / 1_000_000, 6)


class Expert:
    """Opening one loads its weights; `close` frees them.

    A subclass has `find` for one image, or `__call__` for a batch. `version` goes up when its code makes other results
    than before.
    """

    Settings: ClassVar[type[ExpertSettings]] = ExpertSettings
    version: ClassVar[int] = 1
    needs_image: ClassVar[bool] = True

    def __init__(self, settings: Any):
        self.settings = settings
        self.spent = Spent()

    @classmethod
    def identity(cls, settings: Any) -> Mapping[str, Any]:
        """Return what results depend on beside version and settings: weights, for one. Loads nothing.

        Raises ValueError or FileNotFoundError for a model that is missing or of another kind.
        """
        return {}

    def find(self, item: Item) -> Result | Failure:
        raise NotImplementedError

    def __call__(self, items: Sequence[Item]) -> list[Result | Failure]:
        """Return a result or a failure for each image, in their order."""
        return [self.find(item) for item in items]

    def close(self) -> None:
        """Stop what the expert has started. Nothing, for most."""


def leave_out(finding: Callable[[Item], Result]) -> type[Expert]:
    """Return the expert of a stage that is left out: it looks at no image, and `finding` has nothing in it."""
    return type("LeftOut", (Expert,), {"needs_image": False, "find": lambda _, item: finding(item)})


NO_REGIONS = leave_out(lambda _: Regions(()))
NO_TEXT = leave_out(lambda _: Lines(()))
NO_SEGMENTS = leave_out(lambda _: Segments(()))
# The filters drop what has no caption, and what has a score of 0.
NO_SEGMENT_CAPTIONS = leave_out(lambda item: SegmentCaptions(("",) * len(item.results["segments"].segments)))
NO_MATCHING = leave_out(
    lambda item: Scores(*((0.0,) * len(getattr(item.results[stage], stage)) for stage in ("regions", "segments")))
)


# Models of transformers

_SAMPLES, _SAMPLE_BYTES = 16, 65536
_WEIGHT_FILES = ("*.json", "*.safetensors", "*.bin", "*.txt", "*.model", "*.jinja")


@dataclass(frozen=True)
class ModelSettings(ExpertSettings):
    """`model` is a hub name or a folder, `revision` a commit or branch of the hub.

    `dtype` "auto" is a GPU's half precision and float32 elsewhere; `device` "auto" is a GPU where there is one, for
    each process of a machine its own.
    """

    model: str = setting("", is_needed=True)
    revision: str | None = setting(None, changes_result=False)
    dtype: str = setting("auto", among=("auto", "float32", "bfloat16", "float16"))
    device: str = setting("auto", changes_result=False)

    def that_change_results(self) -> dict[str, Any]:
        # The same configuration on a GPU and on a CPU makes results of other precision.
        return {**super().that_change_results(), "dtype": self.dtype_name}

    @property
    def device_name(self) -> str:
        import torch

        if self.device != "auto":
            return self.device
        if not torch.cuda.is_available():
            return "cpu"
        return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"

    @property
    def dtype_name(self) -> str:
        from monkey.devices import choose_dtype

        return choose_dtype(None if self.dtype == "auto" else self.dtype, self.device_name)


@dataclass(frozen=True)
class GenerationSettings(ModelSettings):
    max_new_tokens: int = setting(30, least=1)
    num_beams: int = setting(1, least=1)


class ModelExpert(Expert):
    """An expert whose model and processor transformers opens.

    `families` are the model types of `config.json` that it can use, each with the architectures that are meant (none:
    any of the type), and `purpose` is what messages say it is for.
    """

    opened_as: ClassVar[str]
    families: ClassVar[Mapping[str, Sequence[str]]]
    purpose: ClassVar[str]

    def __init__(self, settings: Any):
        super().__init__(settings)
        self.model, self.processor = open_model(self.opened_as, settings)

    @classmethod
    def identity(cls, settings: Any) -> Mapping[str, Any]:
        return model_identity(settings, cls.families, cls.purpose)

    def close(self) -> None:
        self.model = self.processor = None
        free_memory()

    def prepare(self, **given: Any) -> Any:
        """Return the processor's inputs on the model's device, pixels in its precision."""
        import torch

        inputs = self.processor(**given, return_tensors="pt").to(self.settings.device_name)
        inputs["pixel_values"] = inputs["pixel_values"].to(getattr(torch, self.settings.dtype_name))
        return inputs

    def generate(self, **inputs: Any) -> torch.Tensor:
        import torch

        length = {"max_new_tokens": self.settings.max_new_tokens, "num_beams": self.settings.num_beams}
        with torch.inference_mode():
            return self.model.generate(**inputs, **length, do_sample=False)


def model_identity(settings: ModelSettings, families: Mapping[str, Sequence[str]], purpose: str) -> dict[str, str]:
    """Return what stands for the model's bytes, after checking that the stage can use a model of its kind.

    Raises FileNotFoundError for no such folder or hub name, ValueError for a model of another kind.
    """
    location = {"revision": settings.revision} if settings.revision else {}
    path = required_file(settings.model, "config.json", purpose, **location)
    config = read_json(path)
    kind, architectures = config.get("model_type"), config.get("architectures") or []
    wanted = families.get(kind)
    if wanted is None or (wanted and architectures and not set(wanted) & set(architectures)):
        found = f"{kind} ({', '.join(architectures)})" if architectures else str(kind)
        names = " or ".join(name for family, names in families.items() for name in (names or [family]))
        raise ValueError(f"{settings.model} is a {found} model, and {purpose} needs {names}")
    if os.path.isdir(settings.model):
        return {"weights": folder_digest(Path(settings.model))}
    from transformers.utils.hub import extract_commit_hash

    return {"model": settings.model, "commit": extract_commit_hash(str(path), None) or str(settings.revision)}


def folder_digest(folder: Path) -> str:
    """Return the SHA-256 over names and sizes of a model's files, all of the small ones and samples of the large ones.

    Samples spread over a file tell apart what training tells apart, at a cost that does not grow with the weights.
    """
    digest = hashlib.sha256()
    for path in sorted({path for pattern in _WEIGHT_FILES for path in folder.glob(pattern)}):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}\n".encode())
        with path.open("rb") as stream:
            if size <= _SAMPLES * _SAMPLE_BYTES:
                digest.update(stream.read())
                continue
            for number in range(_SAMPLES):
                stream.seek(number * (size - _SAMPLE_BYTES) // (_SAMPLES - 1))
                digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def open_model(class_name: str, settings: ModelSettings) -> tuple[Any, Any]:
    """Return model and processor (or tokenizer, for a model of text alone), the model ready to be asked.

    Raises ValueError in one sentence when the weights do not fit the class or the device.
    """
    import torch
    import transformers
    from safetensors import SafetensorError

    where = {"revision": settings.revision} if settings.revision else {}
    of_text = class_name == "AutoModelForCausalLM"
    reader = transformers.AutoTokenizer if of_text else transformers.AutoProcessor
    # By Pillow, as published: where torchvision is installed, transformers resizes by that, and scores are others.
    how = {} if of_text else {"backend": "pil"}
    dtype, device = getattr(torch, settings.dtype_name), settings.device_name
    try:
        with library_bars(False):  # which would break the stage's own
            model, loaded = getattr(transformers, class_name).from_pretrained(
                settings.model, dtype=dtype, output_loading_info=True, **where
            )
            processor = reader.from_pretrained(settings.model, **where, **how)
        if missing := sorted(loaded["missing_keys"]):
            # They would be random, and what the expert says with them.
            raise ValueError(f"{len(missing)} of its weights are not there, {missing[0]} the first")
        return model.to(device).eval(), processor
    except torch.OutOfMemoryError as error:
        raise ValueError(f"{settings.model} does not fit into the memory of {device}") from error
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{settings.model} cannot be opened as {class_name} ({reason})") from error


def free_memory() -> None:
    """Give back what a model that nobody holds any more took."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def one_line(text: str) -> str:
    """Return text without line breaks, control characters and doubled spaces, as a record holds it."""
    return " ".join("".join(one if one.isprintable() else " " for one in text).split())


def in_batches(entries: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(entries), size):
        yield entries[start : start + size]


# BLIP-2, with the settings of the published scripts: blip2-opt-2.7b, one beam, 30 tokens


@dataclass(frozen=True)
class CaptionSettings(GenerationSettings):
    model: str = setting("Salesforce/blip2-opt-2.7b", is_needed=True)


class Blip2Captions(ModelExpert):
    """A caption of each whole image."""

    Settings = CaptionSettings
    opened_as = "Blip2ForConditionalGeneration"
    families: ClassVar = {"blip-2": ("Blip2ForConditionalGeneration", "Blip2Model")}
    purpose = "captioning an image"

    def __call__(self, items: Sequence[Item]) -> list[Result | Failure]:
        return [Caption(text) for text in self.caption([item.image for item in items])]

    def caption(self, images: Sequence[Image.Image]) -> list[str]:
        ids = self.generate(pixel_values=self.prepare(images=list(images))["pixel_values"])
        return [one_line(text) for text in self.processor.batch_decode(ids, skip_special_tokens=True)]


@dataclass(frozen=True)
class SegmentCaptionSettings(CaptionSettings):
    """`white_outside`: what is not of the segment is white in its crop, where the segmenter left a mask."""

    white_outside: bool = setting(True)


class Blip2SegmentCaptions(Blip2Captions):
    """A caption of each segment's crop, on white as in the published sam_blip.py."""

    Settings = SegmentCaptionSettings
    purpose = "captioning segments"

    def __call__(self, items: Sequence[Item]) -> list[Result | Failure]:
        crops = [one for item in items for one in self.crops(item)]
        texts = iter([text for some in in_batches(crops, self.settings.batch_size) for text in self.caption(some)])
        return [SegmentCaptions(tuple(next(texts) for _ in item.results["segments"].segments)) for item in items]

    def crops(self, item: Item) -> Iterator[Image.Image]:
        for segment in item.results["segments"].segments:
            image = item.image
            if self.settings.white_outside and segment.mask is not None:
                image = whiten_outside(image, unpack_mask(segment.mask))
            yield crop(image, segment.box)


@dataclass(frozen=True)
class MatchingSettings(ModelSettings):
    model: str = setting("Salesforce/blip2-itm-vit-g", is_needed=True)


class Blip2Matching(ModelExpert):
    """The match of each region's and each segment's crop with its caption, by the whole box.

    As in the published image_text_matching.py, it is the probability of the second class of the image-text-matching
    head, after one softmax.
    """

    Settings = MatchingSettings
    opened_as = "Blip2ForImageTextRetrieval"
    families: ClassVar = {"blip-2": ("Blip2ForImageTextRetrieval",)}
    purpose = "matching crops with captions"

    def __call__(self, items: Sequence[Item]) -> list[Result | Failure]:
        pairs = [pair for item in items for pair in _captioned_crops(item)]
        scores = iter([score for some in in_batches(pairs, self.settings.batch_size) for score in self._score(some)])
        return [
            Scores(
                tuple(next(scores) for _ in item.results["regions"].regions),
                tuple(next(scores) for _ in item.results["segments"].segments),
            )
            for item in items
        ]

    def _score(self, pairs: Sequence[tuple[Image.Image, str]]) -> list[float]:
        import torch

        crops, texts = map(list, zip(*pairs, strict=True))
        inputs = self.prepare(images=crops, text=texts, padding=True, truncation=True, max_length=512)
        with torch.inference_mode():
            logits = self.model(**inputs, use_image_text_matching_head=True).logits_per_image
        return [round(score, 4) for score in logits.float().softmax(dim=1)[:, 1].tolist()]


def _captioned_crops(item: Item) -> Iterator[tuple[Image.Image, str]]:
    """Yield crop and caption of each region, then of each segment."""
    for region in item.results["regions"].regions:
        yield crop(item.image, region.box), region.text
    captions = item.results["segment_captions"].texts
    for segment, text in zip(item.results["segments"].segments, captions, strict=True):
        yield crop(item.image, segment.box), text


# Florence-2, in the place of the paper's GRiT, which needs an unkept fork of Detectron2. The checkpoints that
# transformers opens by itself are those of florence-community.

_DENSE_CAPTIONS = "<DENSE_REGION_CAPTION>"


@dataclass(frozen=True)
class DenseCaptionSettings(GenerationSettings):
    model: str = setting("florence-community/Florence-2-large", is_needed=True)
    max_new_tokens: int = setting(1024, least=1)
    num_beams: int = setting(3, least=1)


class Florence2Regions(ModelExpert):
    """Regions with a caption each."""

    Settings = DenseCaptionSettings
    opened_as = "Florence2ForConditionalGeneration"
    families: ClassVar = {"florence2": ("Florence2ForConditionalGeneration",)}
    purpose = "dense captioning"

    def __call__(self, items: Sequence[Item]) -> list[Result | Failure]:
        images, tasks = [item.image for item in items], [_DENSE_CAPTIONS] * len(items)
        ids = self.generate(**self.prepare(images=images, text=tasks, padding=True))
        texts = self.processor.batch_decode(ids, skip_special_tokens=False)
        return [self._regions(text, item) for text, item in zip(texts, items, strict=True)]

    def _regions(self, text: str, item: Item) -> Regions:
        size = item.image.size
        # Without the padding of shorter answers in a batch, which is no part of a caption.
        text = text.replace(self.processor.tokenizer.pad_token, "")
        task = _DENSE_CAPTIONS
        found = self.processor.post_process_generation(text=text, task=task, image_size=size)[task]
        pairs = zip(found["bboxes"], found["labels"], strict=True)
        regions = [Region(as_shares(box, *size), one_line(label)) for box, label in pairs]
        return Regions(tuple(region for region in regions if area(region.box) > 0 and region.text))


# SAM


@dataclass(frozen=True)
class SegmentSettings(ModelSettings):
    """`batch_size` counts points, of which each image has `points_per_side` squared."""

    model: str = setting("facebook/sam-vit-huge", is_needed=True)
    most: int = setting(20, least=1)
    points_per_side: int = setting(32, least=1)
    least_predicted_overlap: float = setting(0.88)
    least_stability: float = setting(0.95)
    most_box_overlap: float = setting(0.7)


class SamSegments(ModelExpert):
    """The largest masks of each image, of those that a grid of points is answered with.

    The steps and thresholds are those of segment-anything's automatic mask generator, through transformers' model and
    image processor, whose last step, dropping masks that overlap a better one, is done here: transformers' own needs
    torchvision. Images go one by one, their points in batches, as masks take the memory.
    """

    Settings = SegmentSettings
    opened_as = "SamModel"
    families: ClassVar = {"sam": ("SamModel",)}
    purpose = "segmenting"

    def find(self, item: Item) -> Segments:
        import torch

        with torch.inference_mode():
            masks, scores, boxes = self._predict(item.image)
            kept = drop_overlapping(boxes, scores, self.settings.most_box_overlap).tolist() if len(boxes) else ()
        found = []
        for index in kept:
            mask = _decode_run_lengths(masks[index])
            # The right and lower edge of a box are those of its last pixels.
            left, top, right, bottom = boxes[index].tolist()
            box = as_shares((left, top, right + 1, bottom + 1), *item.image.size)
            found.append(Segment(box, round(float(mask.mean()), 5), round(scores[index].item(), 4), pack_mask(mask)))
        found.sort(key=lambda segment: -segment.area)
        return Segments(tuple(found[: self.settings.most]))

    def _predict(self, image: Image.Image) -> tuple[list[Any], torch.Tensor, torch.Tensor]:
        """Return masks as run lengths, their scores [N] and boxes [N, 4] in pixels, of all points."""
        import torch

        images, device = self.processor.image_processor, self.settings.device_name
        dtype = getattr(torch, self.settings.dtype_name)
        crops, points, views, labels = images.generate_crop_boxes(
            image, images.size["longest_edge"], points_per_crop=self.settings.points_per_side
        )
        inputs = images(images=views, return_tensors="pt")
        embeddings = self.model.get_image_embeddings(inputs["pixel_values"].to(device, dtype))
        sizes = inputs["original_sizes"].tolist(), inputs["reshaped_input_sizes"].tolist()
        masks, scores, boxes = [], [], []
        for start in range(0, points.shape[1], self.settings.batch_size):
            chosen = slice(start, start + self.settings.batch_size)
            output = self.model(
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


def drop_overlapping(boxes: torch.Tensor, scores: torch.Tensor, most: float) -> torch.Tensor:
    """Return indices of the boxes that stay, the best first: none overlaps a better one by more than `most`.

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


def _decode_run_lengths(runs: Mapping[str, Any]) -> np.ndarray:
    """Return a mask [H, W] of bool from run lengths down the columns, the first run being of False."""
    height, width = runs["size"]
    counts = np.asarray([int(count) for count in runs["counts"]])
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T


# RapidOCR: PP-OCR's models, which the paper's PaddleOCR has too and which come with the package, on onnxruntime


@dataclass(frozen=True)
class ReaderSettings(ExpertSettings):
    """`threads` of onnxruntime; 0 leaves the number to it."""

    threads: int = setting(0, least=0, changes_result=False)


class RapidOcrText(Expert):
    """Lines of text with boxes, in reading order, without a network."""

    Settings = ReaderSettings

    def __init__(self, settings: ReaderSettings):
        super().__init__(settings)
        from rapidocr import RapidOCR

        threads = ("intra_op_num_threads", "inter_op_num_threads")
        params = {f"EngineConfig.onnxruntime.{name}": settings.threads or -1 for name in threads}
        self._read = RapidOCR(params={"Global.log_level": "error", **params})

    @classmethod
    def identity(cls, settings: ReaderSettings) -> Mapping[str, Any]:
        try:
            return {package: metadata.version(package) for package in ("rapidocr", "onnxruntime")}
        except metadata.PackageNotFoundError as error:
            raise ValueError(
                f"reading text with rapidocr needs the package {error.name}: pip install 'monkey[describe]', or choose "
                "another expert"
            ) from error

    def find(self, item: Item) -> Lines:
        # Colours in OpenCV's order, as the models were trained.
        found = self._read(np.ascontiguousarray(np.asarray(item.image)[:, :, ::-1]))
        if found.boxes is None:
            return Lines(())
        lines = []
        for corners, text, score in zip(found.boxes, found.txts, found.scores, strict=True):
            edges = (*corners.min(axis=0), *corners.max(axis=0))
            lines.append(Line(as_shares(edges, *item.image.size), one_line(text), round(score, 4)))
        return Lines(tuple(lines))


# A Monkey checkpoint, asked and decoded as its card says


@dataclass(frozen=True)
class DescriptionSettings(ModelSettings):
    """`prompt` null asks for what the checkpoint's card says; `max_new_tokens` null has the card's length."""

    model: str = setting("echo840/Monkey", is_needed=True)
    prompt: str | None = setting(None)
    max_new_tokens: int | None = setting(None, least=1)


class MonkeyCaptions(Expert):
    """A description of each whole image, which stands where the paper has a caption."""

    Settings = DescriptionSettings

    def __init__(self, settings: DescriptionSettings):
        super().__init__(settings)
        import monkey

        rows = settings.batch_size
        self._model = monkey.load(settings.model, settings.device_name, settings.dtype_name, max_rows=rows)
        self._decoding = self._model.for_descriptions
        if settings.max_new_tokens is not None:
            self._decoding = replace(self._decoding, max_new_tokens=settings.max_new_tokens)

    @classmethod
    def identity(cls, settings: DescriptionSettings) -> Mapping[str, Any]:
        return model_identity(settings, {"monkey": (), "qwen": ()}, "describing an image")

    def __call__(self, items: Sequence[Item]) -> list[Result | Failure]:
        # All are being worked on before the first is waited for.
        replies = [self._model.describe(item.image, self.settings.prompt, self._decoding) for item in items]
        return [Caption(one_line(reply.text)) for reply in replies]

    def close(self) -> None:
        self._model.close()
        free_memory()
