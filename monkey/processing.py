"""Conversations and images to the tensors of the model.

Everything goes through `MonkeyProcessor.encode`, which makes ids, labels and the images' sources of a conversation;
`processor(…)`, `apply_chat_template` and `encode_conversation` are doors to it that make the pixels too.

Letters: B texts, T tokens of the longest, H and W the canvas.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

from transformers import AutoProcessor, BatchFeature, ProcessorMixin

from monkey import image_processing
from monkey.boxes import to_canvas
from monkey.chat_template import ChatTemplate
from monkey.checkpoint_files import read_base_record
from monkey.configuration import MonkeyConfig
from monkey.conversation import TEMPLATES, UNSUPERVISED, Conversation, Segment, Template, attach_images, write
from monkey.files import (
    LOCATION_KEYS,
    base_of,
    check_field,
    checkpoint_file,
    location_of,
    read_json,
    required_file,
)
from monkey.grids import expand_grids
from monkey.image_processing import SHAPE_SETTINGS, MonkeyImageProcessor, MonkeyImageSettings, Placement
from monkey.prompts import IMAGE_END, IMAGE_PAD, IMAGE_START
from monkey.tokenization import VOCABULARY_FILE, QwenTokenizer
from monkey.tokenization_decoder import TOKENIZER_FILE, DecoderTokenizer, open_tokenizer

__all__ = ["UNSUPERVISED", "Encoded", "MonkeyImageProcessor", "MonkeyProcessor", "TooLong", "register"]

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


class TooLong(ValueError):
    """A prompt or a sample that does not fit the model, or what was allowed."""


class Encoded(NamedTuple):
    """A conversation as ids, their labels if it is a training sample, and the sources of its images in their order."""

    ids: list[int]
    labels: list[int] | None
    images: list[Any]


class MonkeyProcessor(ProcessorMixin):
    """`processor(text=…, images=…)` gives `input_ids`, `attention_mask` [B, T] and `pixel_values` [images, 3, H, W].

    With a set of grids `pixel_values` and `image_grids` are as of `MonkeyImageProcessor`, and an image has as many
    slots among the ids as its grid makes, for which its size is read from its header.

    Args:
        image_processor: makes the pixels.
        tokenizer: makes the ids.
        image_tokens: slots of an image on the model's grid; `MonkeyConfig.image_tokens` of the model.
        max_positions: longest prompt that the model allows, in tokens; None for no limit.
        window_tokens: slots that each window of an image makes; needed where images lie on grids of their own.
    """

    def __init__(
        self,
        image_processor: MonkeyImageProcessor,
        tokenizer: QwenTokenizer | DecoderTokenizer,
        image_tokens: int,
        max_positions: int | None = None,
        window_tokens: int | None = None,
    ):
        super().__init__(image_processor, tokenizer)
        if image_processor.is_ragged:
            check_field("window_tokens", window_tokens, "count")
        self.window_tokens = window_tokens
        tokenizer.image_tokens = image_tokens
        self.image_tokens = image_tokens
        self.max_positions = max_positions
        # Of prompts: generation continues at the right, whatever side the tokenizer pads for training.
        self.padding_side = "left"

    @classmethod
    def from_config(
        cls, config: MonkeyConfig, tokenizer: QwenTokenizer | DecoderTokenizer, **image_settings: Any
    ) -> MonkeyProcessor:
        """The processor for a model's grid.

        Raises:
            ValueError: a token of the tokenizer's is not the config's, with both ids.
        """
        _check_vocabulary(tokenizer, config)
        return cls(
            MonkeyImageProcessor.from_config(config, **image_settings),
            tokenizer,
            image_tokens=config.image_tokens,
            max_positions=config.text_config.max_position_embeddings,
            window_tokens=config.vision_config.num_queries if config.is_ragged else None,
        )

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        grid: tuple[int, int] | None = None,
        grids: str | Sequence[Sequence[int]] | None = None,
        fit: str | None = None,
        **kwargs: Any,
    ) -> MonkeyProcessor:
        """Open a folder or hub name: our own saves, or the published layout, which has no preprocessor file.

        An adapter folder without a processor has its base's, on the grid that it was trained on.

        Args:
            grid, grids, fit: other than the checkpoint's, as of `MonkeyConfig`; canvas and image tokens follow.
            kwargs: where the checkpoint lies (`revision`, `cache_dir`, …), settings of the image processor
                (`apply_exif=False`, …) and of the tokenizer (`padding_side`, …).

        Raises:
            FileNotFoundError: no such folder, or a file is missing in it.
            ValueError: an unknown argument, or a file that cannot be read.
        """
        location = location_of(kwargs)
        asked = {key: value for key, value in (("grid", grid), ("grids", grids), ("fit", fit)) if value is not None}
        name, layout = _source_of_processor(pretrained_model_name_or_path, asked, location)
        image_settings = {key: kwargs[key] for key in MonkeyImageSettings.__annotations__ if key in kwargs}
        tokenizer_settings = {key: kwargs[key] for key in _TOKENIZER_SETTINGS if key in kwargs}
        unknown = sorted(set(kwargs) - {*LOCATION_KEYS, *image_settings, *tokenizer_settings, *_LIBRARY_ARGUMENTS})
        if unknown:
            raise ValueError(f"MonkeyProcessor.from_pretrained has no argument {unknown[0]!r}")
        processor = cls._open(name, layout, location, image_settings, tokenizer_settings)
        processor.padding_side = kwargs.get("padding_side", "left")
        return processor

    @classmethod
    def _open(cls, name, layout, location, image_settings, tokenizer_settings) -> MonkeyProcessor:
        saved = read_json(checkpoint_file(name, "processor_config.json", **location))
        tokenizer = open_tokenizer(name, **location, **tokenizer_settings)
        image_processor = MonkeyImageProcessor.from_pretrained(name, **location, **image_settings)
        if not layout and "image_tokens" in saved:
            if saved.get("max_positions") is not None:
                check_field("processor_config.json: max_positions", saved["max_positions"], "count")
            counts = (saved.get(key) for key in ("image_tokens", "max_positions", "window_tokens"))
            opened = cls(image_processor, tokenizer, *counts)
            opened._check_config(name, location)
            return opened
        required_file(name, "config.json", "the canvas and the image tokens of a grid", **location)
        config = MonkeyConfig.from_pretrained(name, **layout, **location)
        kept = (key for key in MonkeyImageSettings.__annotations__ if key not in SHAPE_SETTINGS)
        return cls.from_config(config, tokenizer, **{key: getattr(image_processor, key) for key in kept})

    def _check_config(self, name: Any, location: dict[str, Any]) -> None:
        """Raise ValueError where the folder's config.json makes another canvas, number of slots or vocabulary."""
        if checkpoint_file(name, "config.json", **location) is None:
            return
        config = MonkeyConfig.from_pretrained(name, **location)
        _check_vocabulary(self.tokenizer, config)
        pixels, size = self.image_processor, self.image_processor.size
        for field, own, needed in (
            ("size", (size["height"], size["width"]), config.canvas_size),
            ("image_tokens", self.image_tokens, config.image_tokens),
            ("grids", pixels.grids and expand_grids(pixels.grids), config.grids and config.allowed_grids),
            ("fit", pixels.fit, config.fit),
            ("window_size", pixels.window_size, config.window_size if config.is_ragged else None),
            ("window_tokens", self.window_tokens, config.vision_config.num_queries if config.is_ragged else None),
        ):
            if own != needed:
                raise ValueError(
                    f"{name}: processor_config.json has {field}={own}, and config.json makes it {needed}; they belong "
                    "to different grids: `scripts/set_grid.py` writes both"
                )

    def limit_windows(self, max_windows: int | None) -> MonkeyProcessor:
        """Return this processor with `max_windows` for its images; ValueError where no grid has so few."""
        limited = copy.copy(self)
        limited.image_processor = self.image_processor.limit_windows(max_windows)
        return limited

    def tokens_of(self, grid: Sequence[int]) -> int:
        """Slots of an image on a grid."""
        if not self.image_processor.is_ragged:
            return self.image_tokens
        size, side = self.image_processor.size, self.image_processor.window_size
        more = grid[0] * grid[1] - size["height"] * size["width"] // side**2
        return self.image_tokens + more * self.window_tokens

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", *self.image_processor.model_input_names]

    def to_dict(self) -> dict[str, Any]:
        """As the library's; a processor for one grid, as published, is written without our field."""
        return {key: value for key, value in super().to_dict().items() if key != "window_tokens" or value is not None}

    @property
    def form(self) -> Template:
        """How conversations are written that nobody asked for in another form: a decoder's own chat template if it has
        one, else "plain"."""
        return "decoder" if isinstance(self.tokenizer, DecoderTokenizer) and self.tokenizer.chat_template else "plain"

    @property
    def forms(self) -> list[str]:
        """The forms that the tokenizer has the tokens and the template for."""
        lacks = {"decoder"} if self.form != "decoder" else set()
        lacks |= {"chatml"} if self.tokenizer.im_end_id is None else set()
        return [form for form in TEMPLATES if form not in lacks]

    def end_ids(self, template: str | None = None) -> frozenset[int]:
        """Ids that end an answer in a form, `self.form` when None."""
        tokenizer, template = self.tokenizer, template or self.form
        ends = {tokenizer.eod_id}
        if template == "chatml":
            ends |= {tokenizer.im_end_id, tokenizer.im_start_id}
        elif template == "decoder":
            ends.add(tokenizer.convert_tokens_to_ids(self._chat_template().end_of_turn))
        return frozenset(ends)

    def _chat_template(self) -> ChatTemplate:
        if not isinstance(self.tokenizer, DecoderTokenizer):
            raise ValueError("form is 'decoder', and Qwen's tokenizer has no chat template of its own: take chatml")
        return ChatTemplate(self.tokenizer)

    def _write(self, conversation: Conversation, template: str, form: dict[str, Any]) -> list[list[Segment]]:
        """Segments of a conversation in a form, with the arguments of it; those of other forms do nothing."""
        if template == "decoder":
            return [self._chat_template().write(conversation.messages, **_without(form, "picture_labels"))]
        if template == "chatml" and self.tokenizer.im_end_id is None:
            raise ValueError("form is 'chatml', and the decoder's vocabulary has no <|im_start|> and <|im_end|>")
        return write(conversation, template, end_of_text=self.tokenizer.end_of_text, **form)

    def encode(
        self,
        conversation: Conversation,
        template: str | None = None,
        *,
        labels: bool = False,
        max_length: int | None = None,
        truncation: bool = False,
        any_length: bool = False,
        global_tokens: int | None = None,
        name: str | None = None,
        **form: Any,
    ) -> Encoded:
        """Tokenise a conversation, whatever it is for; no image is opened, or its header alone where sizes differ.

        Args:
            template, form: how it is written, `self.form` when None, and the arguments of it; see
                `monkey.conversation.write`.
            labels: it is a training sample: turns alternate and end with an answer, and exactly the answers and what
                ends each are supervised.
            max_length: longest; what the model allows when None.
            truncation: cut what is longer, from the tokenizer's `truncation_side` and never in an image, instead of
                refusing it.
            any_length: refuse nothing for its length, for whoever counts.
            global_tokens: slots of an image that is seen as its global view alone; None refuses such images.
            name: what errors call the conversation.

        Raises:
            TooLong: it is longer than allowed.
            ValueError: an unclosed placeholder in trusted text; with `labels`, turns out of order or an empty answer,
                or none of which a token is left when it is cut.
            FileNotFoundError, ValueError: an image whose size is needed and cannot be read.
        """
        if not isinstance(truncation, bool):
            raise ValueError(f"truncation={truncation!r} is not True or False")
        if labels:
            conversation.check_answers()
        template = template or self.form
        conversation = self._with_boxes_on_canvases(conversation, name)
        written = self._write(conversation, template, form)
        slots = self._slots(conversation, name, global_tokens)
        ids: list[int] = []
        targets: list[int] = []
        for number, segments in enumerate(written, start=1):
            with _naming(f"turn {number}" if len(written) > 1 else name):
                # An answer is read by itself, as the model will write it behind its prompt.
                for is_supervised, run in itertools.groupby(segments, attrgetter("supervised")):
                    own = self.encode_segments(run, slots, before=ids)
                    ids += own
                    targets += own if is_supervised else [UNSUPERVISED] * len(own)
        if template != "decoder":  # which writes it where it belongs
            opening = self.tokenizer.opening_ids
            ids, targets = [*opening, *ids], [*[UNSUPERVISED] * len(opening), *targets]
        name = name or ("the conversation" if labels else "the prompt")
        placed = ids.count(self.tokenizer.image_start_id)
        if placed != len(conversation.images):
            raise ValueError(f"{name} has {placed} placeholders in its text for {len(conversation.images)} images")
        if truncation:
            kept = self._kept_positions(ids, max_length, name)
            ids, targets = [ids[position] for position in kept], [targets[position] for position in kept]
            if labels and all(label == UNSUPERVISED for label in targets):
                raise ValueError(f"no token of an answer is left when the conversation is cut to {len(ids):,} tokens")
        elif not any_length:
            self.check_length(ids, max_length, name)
        return Encoded(ids, targets if labels else None, conversation.images)

    def encode_segments(
        self,
        segments: Iterable[Sequence[Any]],
        image_tokens: int | Iterator[int] | None = None,
        before: Sequence[int] = (),
    ) -> list[int]:
        """Ids of (text, is trusted), a trusted one with special tokens and placeholders.

        Qwen reads each by itself, as its published code does; a decoder's own tokenizer reads them as one text, behind
        the ids in `before`.

        Args:
            image_tokens: slots of every image, those on the model's grid when None, or of each in turn.
        """
        slots = self.image_tokens if image_tokens is None else image_tokens
        if isinstance(self.tokenizer, DecoderTokenizer):
            return self.tokenizer.encode_segments(segments, slots, before)
        ids: list[int] = []
        for text, trusted, *_ in segments:
            ids += self.tokenizer.encode_text(text, split_special_tokens=not trusted, image_tokens=slots)
        return ids

    def _slots(self, conversation: Conversation, name: str | None, global_tokens: int | None) -> int | Iterator[int]:
        """Slots of every image of a conversation, or those of each in turn where they differ."""
        images, global_only = conversation.images, conversation.global_only
        if not self.image_processor.is_ragged and not any(global_only):
            return self.image_tokens
        counts = [self.image_tokens] * len(images)
        if self.image_processor.is_ragged:
            places = self._places(images, name, "how many tokens it has depends on its size")
            counts = [self.tokens_of(place.grid) for place in places]
        if any(global_only):
            if global_tokens is None:
                raise ValueError("an image has the detail 'low', and there is no global view to be seen; leave it out")
            counts = [global_tokens if alone else count for count, alone in zip(counts, global_only, strict=True)]
        # Placeholders that are too many are counted, and told, by whoever asks.
        return itertools.chain(counts, itertools.repeat(self.image_tokens))

    def moves_boxes(self, conversation: Conversation) -> bool:
        """Return whether the text of a conversation is read otherwise for other sizes of its images."""
        texts = (message.text for message in conversation.messages)
        return self.image_processor.fit == "pad" and any("</box>" in text or "</quad>" in text for text in texts)

    def _with_boxes_on_canvases(self, conversation: Conversation, name: str | None) -> Conversation:
        """Return a conversation with its boxes, which are of the images, on the canvases; see `monkey.boxes`."""
        if not self.moves_boxes(conversation):
            return conversation
        places = self._places(conversation.images, name, "where its boxes lie on the canvas depends on its size")
        return to_canvas(conversation, [place.share for place in places])

    def _places(self, images: Sequence[Any], name: str | None, reason: str) -> list[Placement]:
        places = []
        for number, image in enumerate(images, start=1):
            called = f"image {number}{f' of {name}' if name else ''}"
            if image is None:
                raise ValueError(f"{called} is not given, and {reason}")
            places.append(self.image_processor.place(self.image_processor.measure(image, called)))
        return places

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
            images: one image, a flat list in the order of the placeholders over the batch, or one list a text; see
                `monkey.conversation.attach_images`. A text without a placeholder has its images put first.
            text: one prompt or a list; `<img></img>` is an image's placeholder, and so is the published
                `<img>path</img>`, whose path is kept in the span and never opened.
            padding: True or "longest", "max_length", or False.
            padding_side: the processor's own when None: left, where generation needs it.
            truncation: cut prompts to `max_length`, or to what the model allows, from the tokenizer's
                `truncation_side`; image tokens are never cut.
            return_tensors: "pt", "np", or None for lists of ids.
            inert_text: every character of the text is plain text, so images go first. For text that users write.

        Raises:
            ValueError: more or fewer images than placeholders, a prompt that is too long, an empty prompt without
                image, or an unclosed placeholder; one sentence with both numbers and the text's number.
        """
        if text is None:
            if images is None:
                raise ValueError("neither text nor images were given")
            return self.image_processor(images, return_tensors=return_tensors)
        texts = [text] if isinstance(text, str) else list(text)
        if not texts:
            raise ValueError("the list of texts is empty")
        for number, one in enumerate(texts, start=1):
            if not isinstance(one, str):
                raise ValueError(f"text {number} is a {type(one).__name__}, and a string is needed")
        prompts = attach_images([Conversation.from_prompt(one, trusted=not inert_text) for one in texts], images)
        rows = [
            self.encode(prompt, "plain", truncation=truncation, max_length=max_length, name=f"text {number}")
            for number, prompt in enumerate(prompts, start=1)
        ]
        return self._batch(rows, padding, padding_side or self.padding_side, max_length, return_tensors)

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
        """A conversation, or a list of them, in Qwen's ChatML, or in the chat template of a decoder's own tokenizer.

        Messages are as `monkey.conversation.Conversation.from_messages` takes them.

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
            raise ValueError(
                "chat_template: the one template is the tokenizer's own, or Qwen's ChatML, whose control tokens text "
                "cannot forge"
            )
        if not isinstance(conversation, (list, tuple)):
            raise ValueError(f"the conversation is a {type(conversation).__name__}, and a list of messages is needed")
        is_batch = bool(conversation) and isinstance(conversation[0], (list, tuple))
        chats = [Conversation.from_messages(messages) for messages in (conversation if is_batch else [conversation])]
        form = {
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            "picture_labels": picture_labels,
        }
        template = "decoder" if isinstance(self.tokenizer, DecoderTokenizer) else "chatml"
        if not tokenize:
            written = [self._write(chat, template, form) for chat in chats]
            strings = ["".join(segment.text for message in one for segment in message) for one in written]
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
        rows = [
            self.encode(chat, template, max_length=options["max_length"], name=f"text {number}", **form)
            for number, chat in enumerate(_with_images(chats, images), start=1)
        ]
        batch = self._batch(rows, **options)
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
        """One training sample in the published form; arguments as of `Conversation.from_turns` and `encode`.

        Returns:
            `input_ids` and `labels` (lists of the same length), and `pixel_values` [images, 3, H, W] if it has images,
            or those and `image_grids` as of `MonkeyImageProcessor`.
        """
        conversation = Conversation.from_turns(turns, images, trusted=not inert_text)
        ids, labels, sources = self.encode(conversation, labels=True, max_length=max_length, truncation=truncation)
        sample: dict[str, Any] = {"input_ids": ids, "labels": labels}
        if sources:
            sample.update(self.image_processor(sources, return_tensors="pt"))
        return sample

    def collate(self, samples: Sequence[Mapping[str, Any]], padding_side: str = "right") -> dict[str, Any]:
        """Tensors of a batch of samples, padded to the longest.

        Returns:
            `input_ids`, `attention_mask` [B, T] (1 on every token of a sample, its end-of-text included, 0 on padding),
            `labels` [B, T] if the samples have them, and `pixel_values` (and `image_grids`) of the whole batch if any
            sample has some.
        """
        import torch
        from torch.nn.utils.rnn import pad_sequence

        if not samples:
            raise ValueError("the batch is empty")

        def pad(rows: Iterable[Sequence[int]], value: int) -> torch.Tensor:
            return pad_sequence([torch.tensor(list(row)) for row in rows], True, value, padding_side)

        rows = [sample["input_ids"] for sample in samples]
        batch = {
            "input_ids": pad(rows, self.tokenizer.eod_id),
            "attention_mask": pad([[1] * len(row) for row in rows], 0),
        }
        if all("labels" in sample for sample in samples):
            batch["labels"] = pad([sample["labels"] for sample in samples], UNSUPERVISED)
        return batch | join_images(samples)

    def decode_answers(self, generated_ids: Any, prompt_length: int) -> list[str]:
        """Answers of `generate`'s output [B, T], whose first `prompt_length` tokens are the padded prompts."""
        return [
            self.tokenizer.decode(list(row[prompt_length:]), skip_special_tokens=True).strip() for row in generated_ids
        ]

    def check_length(self, ids: Sequence[int], max_length: int | None = None, name: str = "the prompt") -> None:
        """Raise TooLong for ids beyond `max_length`, or beyond what the model allows."""
        limit = self._limit(max_length)
        if limit is not None and len(ids) > limit:
            reason = "max_length" if limit == max_length else "the model's max_positions"
            raise TooLong(
                f"{self.describe_length(ids, name)}, more than the {limit:,} allowed ({reason}); shorten it or give "
                "fewer images"
            )

    def describe_length(self, ids: Sequence[int], name: str = "the prompt") -> str:
        """Say how long ids are, and what of them is images."""
        images = ids.count(self.tokenizer.image_start_id)
        kind = "image" if images == 1 else "images"
        counted = ""
        if images:
            spans = span_lengths(ids, self.tokenizer.image_start_id, self.tokenizer.image_end_id)
            each = f" of {min(spans):,}" + (f" to {max(spans):,}" if min(spans) < max(spans) else "")
            counted = f" with its {images} {kind}{each}"
        return f"{name} is {len(ids):,} tokens long{counted}"

    def _limit(self, max_length: int | None) -> int | None:
        limits = [limit for limit in (max_length, self.max_positions) if limit is not None]
        return min(limits) if limits else None

    def _kept_positions(self, ids: Sequence[int], max_length: int | None, name: str) -> Sequence[int]:
        """Positions that stay when ids are cut to the limit."""
        limit = self._limit(max_length)
        if limit is None:
            return range(len(ids))
        tokenizer = self.tokenizer
        with _naming(name):
            return kept_positions(
                ids, limit, tokenizer.image_start_id, tokenizer.image_end_id, tokenizer.truncation_side
            )

    def _batch(
        self,
        encoded: Sequence[Encoded],
        padding: bool | str,
        padding_side: str,
        max_length: int | None,
        return_tensors: str | None,
    ) -> BatchFeature:
        """Model inputs of encoded texts and their images."""
        rows = [one.ids for one in encoded]
        for number, row in enumerate(rows, start=1):
            if not row:
                raise ValueError(f"text {number} is empty and has no image, so there is nothing to continue")
        length = self._padded_length(rows, padding, max_length, return_tensors)
        masks = [[1] * len(row) for row in rows]
        if length is not None:
            rows = _padded(rows, self.tokenizer.eod_id, length, padding_side)
            masks = _padded(masks, 0, length, padding_side)
        batch: dict[str, Any] = {"input_ids": rows, "attention_mask": masks}
        images = {
            f"image {place} of text {number}": image
            for number, one in enumerate(encoded, start=1)
            for place, image in enumerate(one.images, start=1)
        }
        if images:
            batch.update(self.image_processor(list(images.values()), return_tensors="np", names=list(images)))
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


def join_images(samples: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return `pixel_values`, and `image_grids` where samples have them, of all images of samples, if there are any."""
    import torch

    with_images = [sample for sample in samples if sample.get("pixel_values") is not None]
    names = [name for name in ("pixel_values", "image_grids") if with_images and name in with_images[0]]
    return {name: torch.cat([sample[name] for sample in with_images]) for name in names}


def span_lengths(ids: Sequence[int], image_start_id: int, image_end_id: int) -> list[int]:
    """Return the length of each whole image span among ids, start and end token included."""
    starts = [position for position, token_id in enumerate(ids) if token_id == image_start_id]
    return [ids.index(image_end_id, start) + 1 - start for start in starts]


def _source_of_processor(name: Any, asked: dict[str, Any], location: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return whose processor a checkpoint has, and in which layout if not in its own."""
    base = base_of(name, **location)
    if base is None or any(checkpoint_file(name, file, **location) for file in (VOCABULARY_FILE, TOKENIZER_FILE)):
        return name, asked
    trained = read_base_record(name, **location)
    return base, asked if trained is None else trained.layout | asked


def _check_vocabulary(tokenizer: QwenTokenizer | DecoderTokenizer, config: MonkeyConfig) -> None:
    for field, token in (
        ("image_start_id", IMAGE_START),
        ("image_end_id", IMAGE_END),
        ("image_pad_id", IMAGE_PAD),
        ("eod_id", tokenizer.end_of_text),
    ):
        if getattr(tokenizer, field) != getattr(config, field):
            raise ValueError(
                f"the tokenizer's {token} has the id {getattr(tokenizer, field)} and the config's {field} is "
                f"{getattr(config, field)}; they belong to different checkpoints"
            )


def _without(settings: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != key}


def _with_images(chats: list[Conversation], images: Any) -> list[Conversation]:
    """Chats whose image parts hold their images: their own, or those given beside them, in the parts' order."""
    own = [image for chat in chats for image in chat.images]
    missing = sum(image is None for image in own)
    if images is None:
        if missing:
            raise ValueError(f"{missing} of {len(own)} image parts hold no image; put it under 'image' or pass images=")
        return chats
    if missing < len(own):
        raise ValueError("images were given both in the messages' parts and in images=; use one of the two")
    if not own:
        raise ValueError("images= was given, and the conversation has no image part")
    return attach_images(chats, images)


@contextlib.contextmanager
def _naming(name: str | None) -> Iterator[None]:
    """Put what is wrong with something behind its name, if it has one."""
    try:
        yield
    except ValueError as error:
        if not name:
            raise
        raise ValueError(f"{name}: {error}") from error


def kept_positions(
    ids: Sequence[int], limit: int, image_start_id: int, image_end_id: int, side: str = "right"
) -> list[int]:
    """Positions that stay when `ids` is cut to `limit` tokens from its `side`; image spans stay whole.

    Raises:
        ValueError: the image spans alone are longer than the limit, with both numbers.
    """
    in_span, kept, removable = False, [], []
    for position, token_id in enumerate(ids):
        in_span = in_span or token_id == image_start_id
        (kept if in_span else removable).append(position)
        in_span = in_span and token_id != image_end_id
    if len(kept) > limit:
        raise ValueError(
            f"its images alone are {len(kept):,} tokens, more than the {limit:,} it may have, and image tokens are "
            "never cut; give fewer images or a smaller grid"
        )
    room = limit - len(kept)
    rest = removable[:room] if side == "right" else removable[max(0, len(removable) - room) :]
    return sorted(kept + rest)


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
