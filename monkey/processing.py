"""Text and pictures to the tensors of the model: prompts, training conversations and chats, all made here.

Everything goes through `MonkeyProcessor.encode_segments`: a text is a list of segments, each either trusted, so that
`<img></img>` is an image's place and `<|im_start|>` a control token, or inert, so that every character is plain text.

Letters: B texts, T tokens of the longest, H and W the canvas.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import AutoProcessor, BatchFeature, ProcessorMixin

from monkey import image_processing
from monkey.chat import Segment, chat_segments, check_turns, images_of_chats, rendered
from monkey.configuration import MonkeyConfig
from monkey.image_processing import MonkeyImageProcessor, MonkeyImageSettings
from monkey.location import LOCATION_KEYS, checkpoint_file, location_of, read_json, required_file
from monkey.places import kept_positions, share_images
from monkey.prompts import IMAGE_PLACE
from monkey.published_config import check_field
from monkey.tokenization import QwenTokenizer

__all__ = ["UNSUPERVISED", "MonkeyImageProcessor", "MonkeyProcessor", "register"]

UNSUPERVISED = -100
"""Label of a position that the loss leaves out."""

_TOKENIZER_SETTINGS = ("model_max_length", "padding_side", "truncation_side")

# What the Auto classes and pipelines pass along to every `from_pretrained`.
_LIBRARY_ARGUMENTS = (
    "_commit_hash",
    "_from_auto",
    "_from_pipeline",
    "backend",
    "code_revision",
    "trust_remote_code",
    "use_fast",
)


class MonkeyProcessor(ProcessorMixin):
    """`processor(text=…, images=…)` gives `input_ids`, `attention_mask` [B, T] and `pixel_values` [images, 3, H, W].

    Args:
        image_processor: makes the pixels.
        tokenizer: makes the ids.
        image_tokens: slots of one image among the ids; `MonkeyConfig.image_tokens` of the model.
        max_positions: longest prompt that the model allows, in tokens; None for no limit.
    """

    def __init__(
        self,
        image_processor: MonkeyImageProcessor,
        tokenizer: QwenTokenizer,
        image_tokens: int,
        max_positions: int | None = None,
    ):
        super().__init__(image_processor, tokenizer)
        tokenizer.image_tokens = image_tokens
        self.image_tokens = image_tokens
        self.max_positions = max_positions
        # Of prompts: generation continues at the right, whatever side the tokenizer pads for training.
        self.padding_side = "left"

    @classmethod
    def from_config(cls, config: MonkeyConfig, tokenizer: QwenTokenizer, **image_settings: Any) -> MonkeyProcessor:
        """The processor for a model's grid.

        Raises:
            ValueError: the tokenizer's `<img>` is not the config's, with both ids.
        """
        _check_vocabulary(tokenizer, config)
        return cls(
            MonkeyImageProcessor.from_config(config, **image_settings),
            tokenizer,
            image_tokens=config.image_tokens,
            max_positions=config.text_config.max_position_embeddings,
        )

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike, grid: tuple[int, int] | None = None, **kwargs: Any
    ) -> MonkeyProcessor:
        """Open a folder or hub name: our own saves, or the published layout, which has no preprocessor file.

        Args:
            grid: rows and columns of windows other than the checkpoint's; canvas and image tokens follow.
            kwargs: where the checkpoint lies (`revision`, `cache_dir`, …), settings of the image processor
                (`apply_exif=False`, …) and of the tokenizer (`padding_side`, …).

        Raises:
            FileNotFoundError: no such folder, or a file is missing in it.
            ValueError: an unknown argument, or a file that cannot be read.
        """
        location = location_of(kwargs)
        image_settings = {key: kwargs[key] for key in MonkeyImageSettings.__annotations__ if key in kwargs}
        tokenizer_settings = {key: kwargs[key] for key in _TOKENIZER_SETTINGS if key in kwargs}
        unknown = sorted(set(kwargs) - {*LOCATION_KEYS, *image_settings, *tokenizer_settings, *_LIBRARY_ARGUMENTS})
        if unknown:
            raise ValueError(f"MonkeyProcessor.from_pretrained has no argument {unknown[0]!r}")
        processor = cls._opened(pretrained_model_name_or_path, grid, location, image_settings, tokenizer_settings)
        processor.padding_side = kwargs.get("padding_side", "left")
        return processor

    @classmethod
    def _opened(cls, name, grid, location, image_settings, tokenizer_settings) -> MonkeyProcessor:
        saved = read_json(checkpoint_file(name, "processor_config.json", **location))
        tokenizer = QwenTokenizer.from_pretrained(name, **location, **tokenizer_settings)
        image_processor = MonkeyImageProcessor.from_pretrained(name, **location, **image_settings)
        if grid is None and "image_tokens" in saved:
            if saved.get("max_positions") is not None:
                check_field("processor_config.json: max_positions", saved["max_positions"], "count")
            opened = cls(image_processor, tokenizer, saved["image_tokens"], saved.get("max_positions"))
            opened._check_config(name, location)
            return opened
        required_file(name, "config.json", "the canvas and the image tokens of a grid", **location)
        config = MonkeyConfig.from_pretrained(name, grid=grid, **location)
        settings = {key: getattr(image_processor, key) for key in MonkeyImageSettings.__annotations__ if key != "size"}
        return cls.from_config(config, tokenizer, **settings)

    def _check_config(self, name: Any, location: dict[str, Any]) -> None:
        """Raise ValueError where the folder's config.json makes another canvas, number of slots or vocabulary."""
        if checkpoint_file(name, "config.json", **location) is None:
            return
        config = MonkeyConfig.from_pretrained(name, **location)
        _check_vocabulary(self.tokenizer, config)
        size = self.image_processor.size
        for field, own, needed in (
            ("size", (size["height"], size["width"]), config.canvas_size),
            ("image_tokens", self.image_tokens, config.image_tokens),
        ):
            if own != needed:
                raise ValueError(
                    f"{name}: processor_config.json has {field}={own}, and config.json makes it {needed}; they belong "
                    "to different grids: `scripts/set_grid.py` writes both"
                )

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values"]

    def encode_segments(self, segments: Sequence[Segment]) -> list[int]:
        """Ids of segments; each is encoded by itself, a trusted one with special tokens and image places."""
        ids: list[int] = []
        for text, trusted in segments:
            ids += self.tokenizer.encode_text(text, split_special_tokens=not trusted, image_tokens=self.image_tokens)
        return ids

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        *,
        padding: bool | str = False,
        padding_side: str | None = None,
        truncation: bool = False,
        max_length: int | None = None,
        return_tensors: str | None = "pt",
        inert_text: bool = False,
    ) -> BatchFeature:
        """Prompts for generation.

        Args:
            images: one image, a flat list in the order of the places over the batch, or one list a text; see
                `monkey.places.share_images`. A text without a place has its images put first.
            text: one prompt or a list; `<img></img>` is an image's place, and so is the published `<img>path</img>`,
                whose path is kept in the span and never opened.
            padding: True or "longest", "max_length", or False.
            padding_side: the processor's own when None: left, where generation needs it.
            truncation: cut prompts to `max_length`, or to what the model allows, from the tokenizer's
                `truncation_side`; image tokens are never cut.
            return_tensors: "pt", "np", or None for lists of ids.
            inert_text: every character of the text is plain text, so images go first. For text that users write.

        Raises:
            ValueError: more or fewer images than places, a prompt that is too long, an empty prompt without image,
                or an unclosed place; one sentence with both numbers and the text's number.
        """
        if text is None:
            if images is None:
                raise ValueError("neither text nor images were given")
            return self.image_processor(images, return_tensors=return_tensors)
        texts = [text] if isinstance(text, str) else list(text)
        if not texts:
            raise ValueError("the list of texts is empty")
        rows = [
            self._encode_numbered(one, not inert_text, f"text {number}") for number, one in enumerate(texts, start=1)
        ]
        places = [row.count(self.tokenizer.image_start_id) for row in rows]
        shared = share_images(places, images)
        place = self.encode_segments([(IMAGE_PLACE, True)])
        rows = [row if count else place * len(own) + row for row, count, own in zip(rows, places, shared, strict=True)]
        _check_truncation(truncation)
        if truncation:
            rows = [self._cut(row, max_length, f"text {number}") for number, row in enumerate(rows, start=1)]
        return self._batch(rows, shared, padding, padding_side or self.padding_side, max_length, return_tensors)

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        chat_template: str | None = None,
        *,
        images: Any = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        picture_labels: bool = True,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = "pt",
        padding: bool | str = False,
        padding_side: str = "left",
        max_length: int | None = None,
        processor_kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """A conversation, or a list of them, in Qwen's ChatML; the form of messages is in `monkey.chat.chat_segments`.

        The content is always inert: `<img>` and `<|im_start|>` in it are plain text, the markers of boxes alone tokens.
        That holds for the ids (`tokenize=True`); the string of `tokenize=False` is for reading, and must not be
        encoded again as trusted.

        Args:
            images: the images of the image parts in their order over the batch, where the parts hold none themselves.
            tokenize: give ids instead of the string.
            return_dict: give the model's inputs, with `pixel_values`, instead of the ids alone.
            processor_kwargs: `padding`, `padding_side`, `max_length` and `return_tensors`, as transformers passes them.
        """
        if chat_template is not None:
            raise ValueError("chat_template: the one template is Qwen's ChatML, whose control tokens text cannot forge")
        if not isinstance(conversation, (list, tuple)):
            raise ValueError(f"the conversation is a {type(conversation).__name__}, and a list of messages is needed")
        is_batch = bool(conversation) and isinstance(conversation[0], (list, tuple))
        chats = [
            chat_segments(
                messages,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                picture_labels=picture_labels,
            )
            for messages in (conversation if is_batch else [conversation])
        ]
        if not tokenize:
            strings = [rendered(segments) for segments, _ in chats]
            return strings if is_batch else strings[0]
        options = {
            "padding": padding,
            "padding_side": padding_side,
            "max_length": max_length,
            "return_tensors": return_tensors,
        }
        unknown = sorted(set(processor_kwargs or ()) - set(options))
        if unknown:
            raise ValueError(f"processor_kwargs has {unknown[0]!r}; it may hold {', '.join(options)}")
        options.update(processor_kwargs or {})
        rows = [self.encode_segments(segments) for segments, _ in chats]
        batch = self._batch(rows, images_of_chats([own for _, own in chats], images), **options)
        if return_dict:
            return batch
        return batch["input_ids"] if is_batch or options["return_tensors"] else batch["input_ids"][0]

    def encode_conversation(
        self,
        turns: Sequence[Mapping[str, str]],
        images: Any = None,
        *,
        inert_text: bool = False,
        max_length: int | None = None,
        truncation: bool = False,
    ) -> dict[str, Any]:
        """One training sample in the published form, without chat template.

        Supervised are exactly each assistant's turn and one `<|endoftext|>` after it.

        Args:
            turns: `{"role": "user" | "assistant", "text": …}`, alternating from a user's to an assistant's.
            images: in the order of the places in the users' turns; without any place they go first.
            inert_text: every character of the turns is plain text.
            max_length: longest sample; what the model allows when None.
            truncation: cut a longer sample at its end, never in an image, instead of refusing it.

        Returns:
            `input_ids` and `labels` (lists of the same length), and `pixel_values` [images, 3, H, W] if it has images.

        Raises:
            ValueError: turns out of order, an empty answer, more or fewer images than places, or a sample that is too
                long or whose answers would be cut off whole.
        """
        check_turns(turns)
        _check_truncation(truncation)
        ids: list[int] = []
        labels: list[int] = []
        for number, turn in enumerate(turns, start=1):
            own = self._encode_numbered(turn["text"], not inert_text, f"turn {number}")
            if turn["role"] == "user":
                labels += [UNSUPERVISED] * len(own)
            elif self.tokenizer.image_start_id in own:
                raise ValueError(f"turn {number} is the assistant's and has a place for an image; only users have them")
            else:
                own = [*own, self.tokenizer.eod_id]
                labels += own
            ids += own
        (pictures,) = share_images([ids.count(self.tokenizer.image_start_id)], images)
        if self.tokenizer.image_start_id not in ids:
            place = self.encode_segments([(IMAGE_PLACE, True)]) * len(pictures)
            ids, labels = place + ids, [UNSUPERVISED] * len(place) + labels
        if truncation:
            kept = self._kept(ids, max_length, "the conversation")
            ids, labels = [ids[position] for position in kept], [labels[position] for position in kept]
            if all(label == UNSUPERVISED for label in labels):
                raise ValueError(f"no token of an answer is left when the conversation is cut to {len(ids):,} tokens")
        self._check_length(ids, max_length, "the conversation")
        sample: dict[str, Any] = {"input_ids": ids, "labels": labels}
        if pictures:
            sample.update(self.image_processor(pictures, return_tensors="pt"))
        return sample

    def collate(self, samples: Sequence[Mapping[str, Any]], padding_side: str = "right") -> dict[str, Any]:
        """Tensors of a batch of samples, padded to the longest.

        Returns:
            `input_ids`, `attention_mask` [B, T] (1 on every token of a sample, its end-of-text included, 0 on padding),
            `labels` [B, T] if the samples have them, and `pixel_values` [images, 3, H, W] of the whole batch if any
            sample has one.
        """
        import torch

        if not samples:
            raise ValueError("the batch is empty")
        rows = [list(sample["input_ids"]) for sample in samples]
        length = max(len(row) for row in rows)
        batch = {
            "input_ids": torch.tensor(_padded(rows, self.tokenizer.eod_id, length, padding_side)),
            "attention_mask": torch.tensor(_padded([[1] * len(row) for row in rows], 0, length, padding_side)),
        }
        if all("labels" in sample for sample in samples):
            labels = [list(sample["labels"]) for sample in samples]
            batch["labels"] = torch.tensor(_padded(labels, UNSUPERVISED, length, padding_side))
        pixels = [sample["pixel_values"] for sample in samples if sample.get("pixel_values") is not None]
        if pixels:
            batch["pixel_values"] = torch.cat(pixels)
        return batch

    def decode_answers(self, generated_ids: Any, prompt_length: int) -> list[str]:
        """Answers of `generate`'s output [B, T], whose first `prompt_length` tokens are the padded prompts."""
        return [
            self.tokenizer.decode(list(row[prompt_length:]), skip_special_tokens=True).strip() for row in generated_ids
        ]

    def _encode_numbered(self, text: Any, trusted: bool, where: str) -> list[int]:
        """Ids of one of several texts, which errors call `where`."""
        if not isinstance(text, str):
            raise ValueError(f"{where} is a {type(text).__name__}, and a string is needed")
        try:
            return self.encode_segments([(text, trusted)])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error

    def _limit(self, max_length: int | None) -> int | None:
        limits = [limit for limit in (max_length, self.max_positions) if limit is not None]
        return min(limits) if limits else None

    def _check_length(self, ids: Sequence[int], max_length: int | None, where: str) -> None:
        limit = self._limit(max_length)
        if limit is not None and len(ids) > limit:
            images = ids.count(self.tokenizer.image_start_id)
            reason = "max_length" if limit == max_length else "the model's max_positions"
            raise ValueError(
                f"{where} is {len(ids):,} tokens long with its {images} images of {self.image_tokens + 2:,}, more than "
                f"the {limit:,} allowed ({reason}); shorten it or give fewer images"
            )

    def _kept(self, ids: list[int], max_length: int | None, where: str) -> list[int]:
        """Positions that stay when ids are cut to the limit."""
        limit = self._limit(max_length)
        if limit is None:
            return list(range(len(ids)))
        tokenizer = self.tokenizer
        try:
            return kept_positions(
                ids, limit, tokenizer.image_start_id, tokenizer.image_end_id, tokenizer.truncation_side
            )
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error

    def _cut(self, ids: list[int], max_length: int | None, where: str) -> list[int]:
        return [ids[position] for position in self._kept(ids, max_length, where)]

    def _batch(
        self,
        rows: list[list[int]],
        images: list[list[Any]],
        padding: bool | str,
        padding_side: str,
        max_length: int | None,
        return_tensors: str | None,
    ) -> BatchFeature:
        """Model inputs of encoded texts and their images."""
        for number, row in enumerate(rows, start=1):
            if not row:
                raise ValueError(f"text {number} is empty and has no image, so there is nothing to continue")
            self._check_length(row, max_length, f"text {number}")
        length = self._padded_length(rows, padding, max_length, return_tensors)
        masks = [[1] * len(row) for row in rows]
        if length is not None:
            rows = _padded(rows, self.tokenizer.eod_id, length, padding_side)
            masks = _padded(masks, 0, length, padding_side)
        batch: dict[str, Any] = {"input_ids": rows, "attention_mask": masks}
        names = [
            f"image {number} of text {text}"
            for text, own in enumerate(images, start=1)
            for number in range(1, len(own) + 1)
        ]
        pictures = [picture for own in images for picture in own]
        if pictures:
            batch.update(self.image_processor(pictures, return_tensors="np", names=names))
        return BatchFeature(batch, tensor_type=return_tensors)

    def _padded_length(
        self, rows: list[list[int]], padding: bool | str, max_length: int | None, return_tensors: str | None
    ) -> int | None:
        """Length that the texts are padded to, or None when they are not."""
        lengths = sorted(len(row) for row in rows)
        if padding in (True, "longest"):
            return lengths[-1]
        if padding == "max_length":
            limit = max_length if max_length is not None else self.max_positions
            if limit is None:
                raise ValueError("padding='max_length' needs max_length")
            return limit
        if padding not in (False, "do_not_pad"):
            raise ValueError(f"padding={padding!r} is not True, 'longest', 'max_length' or False")
        if return_tensors is not None and lengths[0] != lengths[-1]:
            raise ValueError(
                f"the texts are {lengths[0]} to {lengths[-1]} tokens long and cannot be one tensor; pass padding=True, "
                "or return_tensors=None for lists"
            )
        return None


def _check_vocabulary(tokenizer: QwenTokenizer, config: MonkeyConfig) -> None:
    if tokenizer.image_start_id != config.image_start_id:
        raise ValueError(
            f"the tokenizer's <img> has the id {tokenizer.image_start_id} and the config's image_start_id is "
            f"{config.image_start_id}; they belong to different checkpoints"
        )


def _check_truncation(truncation: Any) -> None:
    if not isinstance(truncation, bool):
        raise ValueError(f"truncation={truncation!r} is not True or False")


def _padded(rows: list[list[int]], value: int, length: int, side: str) -> list[list[int]]:
    """Rows filled with `value` up to `length` on one side."""
    if side not in ("left", "right"):
        raise ValueError(f"padding_side={side!r} is not 'left' or 'right'")
    if side == "left":
        return [[value] * (length - len(row)) + row for row in rows]
    return [row + [value] * (length - len(row)) for row in rows]


def register() -> None:
    """Make AutoProcessor and AutoImageProcessor open our folders, and AutoProcessor the published ones."""
    image_processing.register()
    AutoProcessor.register(MonkeyConfig, MonkeyProcessor, exist_ok=True)
