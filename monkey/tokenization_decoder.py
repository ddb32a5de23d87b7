"""Any decoder's own tokenizer, with the image span, and with trusted and inert text kept apart.

`DecoderTokenizer` is a fast tokenizer of transformers as its family made it: the same vocabulary, splits, merges and
chat template, in the library's files. `load_tokenizer` makes one of a decoder's, `open_tokenizer` opens a checkpoint's.

A text is read by pipelines that share the family's vocabulary and have none of its added tokens: whatever is typed,
`<|im_start|>`, `<s>` or `<img>`, is spelled like any characters. Control tokens come out of trusted text alone, where
they are looked up before a pipeline sees the rest. Plain text between two control tokens is read as one piece, trusted
or not, so that a conversation of ordinary words has the ids that its chat template has when it is read whole.

An image's span holds `<img>`, one `<imgpad>` a slot, and `</img>`; the path bytes in the slots are Qwen's alone.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import operator
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from monkey.configuration import MonkeyConfig
from monkey.files import check_field, checkpoint_file, location_of, read_json, refused_in_a_sentence, required_file
from monkey.prompts import BOX_MARKERS, CHAT_END, CHAT_START, IMAGE_END, IMAGE_PAD, IMAGE_START
from monkey.tokenization import VOCABULARY_FILE, QwenTokenizer, join_surrogates, split_trusted

TOKENIZER_FILE = "tokenizer.json"
"""What a checkpoint with a decoder's own tokenizer has in place of Qwen's vocabulary."""

OPENING, AFTER_CONTROL, CONTINUING = range(3)
"""Where a plain text stands: at the very beginning, behind a control token, or behind other text."""


@dataclass(frozen=True)
class _Spelling:
    """How text becomes ids, worked out once of a vocabulary."""

    pipelines: tuple[Tokenizer, Tokenizer, Tokenizer]
    """Plain text, by where it stands."""
    blanks: dict[int, int]
    """Ids of added tokens of blanks in the pipelines, to those of the vocabulary."""
    controls: dict[str, int]
    """Every other added token."""
    control: re.Pattern[str]
    """What finds them in trusted text, with the white space that a token takes in."""
    guarded: frozenset[int]
    """Ids of controls, which no plain text may come to."""
    byte_ids: frozenset[int]
    """Ids of tokens such as `<0x0A>`, each a byte of a character that has no token."""


class DecoderTokenizer(PreTrainedTokenizerFast):
    """A decoder's tokenizer with the tokens of image spans; made by `load_tokenizer` or `DecoderTokenizer.of`."""

    # No __init__: with one, the library rebuilds the vocabulary instead of reading tokenizer.json as it is.

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast, boxes: bool = False) -> DecoderTokenizer:
        """Make one of a decoder's own, which stays as it is.

        Args:
            boxes: add the markers of boxes too (`<ref>`, `<box>`, …), one token each, where the vocabulary lacks them.
                Their rows of embedding and head must then be trained. Without, a decoder spells them as any text.

        Raises:
            ValueError: it names no token that ends a text.
        """
        settings: dict[str, Any] = dict(tokenizer.special_tokens_map)
        if tokenizer.eos_token_id is None:
            raise ValueError("the decoder's tokenizer names no eos_token, so that nothing would end an answer")
        for name in ("model_max_length", "truncation_side", "model_input_names", "chat_template", "name_or_path"):
            settings[name] = getattr(tokenizer, name)
        extra = [str(token) for token in tokenizer.extra_special_tokens]
        own = cls(
            tokenizer_object=tokenizer.backend_tokenizer,
            extra_special_tokens=extra,
            padding_side="right",
            clean_up_tokenization_spaces=False,
            **settings,
        )
        wanted = (IMAGE_START, IMAGE_END, IMAGE_PAD, *(BOX_MARKERS if boxes else ()))
        added = [AddedToken(token, special=True, normalized=False) for token in wanted]
        own.add_special_tokens({"extra_special_tokens": added}, replace_extra_special_tokens=False)
        return own

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *init_inputs: Any, **kwargs: Any):
        """Open the tokenizer of a checkpoint.

        Raises:
            FileNotFoundError: no such folder, or no `tokenizer.json` in it.
            ValueError: a file that cannot be read, or a vocabulary without the tokens of image spans.
        """
        location, name = location_of(kwargs), pretrained_model_name_or_path
        required_file(name, TOKENIZER_FILE, "the tokenizer", **location)
        read_json(checkpoint_file(name, "tokenizer_config.json", **location))
        with refused_in_a_sentence(f"{name}: {TOKENIZER_FILE}"):
            try:
                opened = super().from_pretrained(name, *init_inputs, **kwargs)
            except Exception as error:  # what tokenizers itself raises has no type of its own
                if type(error) is not Exception:
                    raise
                raise ValueError(f"{name}: {TOKENIZER_FILE} is no tokenizer ({error}); copy it again") from error
        if None in (opened.image_start_id, opened.image_end_id, opened.image_pad_id):
            raise ValueError(
                f"{name}: {TOKENIZER_FILE} lacks one of {IMAGE_START}, {IMAGE_END} and {IMAGE_PAD}, so it is not that "
                "of a Monkey checkpoint; scripts/new_model.py makes one of a decoder"
            )
        return opened

    def _post_init(self) -> None:
        """Leave the tokens of `tokenizer.json` as they are; the library would add them once more, with other flags."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "spelling"}

    @property
    def image_tokens(self) -> int:
        """Slots of an image span, without its start and end token."""
        return self.init_kwargs.get("image_tokens", 256)

    @image_tokens.setter
    def image_tokens(self, count: int):
        check_field("image_tokens", count, "count")
        self.init_kwargs["image_tokens"] = count  # which `save_pretrained` writes

    @property
    def end_of_text(self) -> str:
        """What ends a text, and an answer in training: the family's own."""
        return str(self.eos_token)

    @property
    def eod_id(self) -> int:
        """Id of the token that ends a text, which also pads."""
        return self.eos_token_id

    @property
    def image_start_id(self) -> int | None:
        return self.spelling.controls.get(IMAGE_START)

    @property
    def image_end_id(self) -> int | None:
        return self.spelling.controls.get(IMAGE_END)

    @property
    def image_pad_id(self) -> int | None:
        return self.spelling.controls.get(IMAGE_PAD)

    @property
    def im_start_id(self) -> int | None:
        """Id of `<|im_start|>`, None where the family has no ChatML."""
        return self.spelling.controls.get(CHAT_START)

    @property
    def im_end_id(self) -> int | None:
        return self.spelling.controls.get(CHAT_END)

    @property
    def opening_ids(self) -> list[int]:
        """Ids that the family puts before a text which is no chat: its beginning of text, or none."""
        encoding = self.backend_tokenizer.encode("a", add_special_tokens=True)
        marked = zip(encoding.ids, encoding.special_tokens_mask, strict=True)
        return [token for token, _ in itertools.takewhile(operator.itemgetter(1), marked)]

    @property
    def control(self) -> re.Pattern[str]:
        """What finds control tokens in trusted text."""
        return self.spelling.control

    @property
    def fingerprint(self) -> str:
        """SHA-256 that stands for how text and conversations become ids."""
        content = [self.backend_tokenizer.to_str(), self.chat_template]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @functools.cached_property
    def spelling(self) -> _Spelling:
        return _find_spelling(self.backend_tokenizer)

    def _add_tokens(self, new_tokens: list[str | AddedToken], special_tokens: bool = False) -> int:
        self.__dict__.pop("spelling", None)
        return super()._add_tokens(new_tokens, special_tokens)

    def encode_text(
        self, text: str, split_special_tokens: bool = False, image_tokens: int | Iterator[int] | None = None
    ) -> list[int]:
        """Ids of a text that stands alone, without a beginning of text; arguments as of `QwenTokenizer.encode_text`.

        Raises:
            ValueError: an unclosed, surplus or nested `<img>` or `</img>` in trusted text, or a character that the
                vocabulary has only as a control token.
        """
        return self.encode_segments([(text, not split_special_tokens)], image_tokens)

    def encode_segments(
        self,
        segments: Iterable[Sequence[Any]],
        image_tokens: int | Iterator[int] | None = None,
        before: Sequence[int] = (),
    ) -> list[int]:
        """Ids of (text, is trusted), read as one text; `before` are the ids that they stand behind.

        Raises:
            ValueError: as of `encode_text`.
        """
        if not isinstance(image_tokens, Iterator):
            image_tokens = itertools.repeat(image_tokens or self.image_tokens)
        spelling = self.spelling
        ids: list[int] = []
        place = OPENING if not before else AFTER_CONTROL if before[-1] in spelling.guarded else CONTINUING
        waiting = ""

        def read_waiting() -> list[int]:
            return self._spell(waiting, place) if waiting else []

        for text, trusted, *_ in segments:
            text = join_surrogates(text)
            if not trusted:
                waiting += text
                continue
            for kind, piece, _ in split_trusted(text, spelling.control):
                if kind == "text":
                    waiting += piece
                    continue
                ids += read_waiting()
                waiting, place = "", AFTER_CONTROL
                if kind == "image":
                    ids += [self.image_start_id, *[self.image_pad_id] * next(image_tokens)]
                    ids.append(self.image_end_id)
                else:
                    # A token that takes in the white space beside it was found together with it.
                    ids.append(spelling.controls.get(piece, spelling.controls.get(piece.strip())))
        return ids + read_waiting()

    def _spell(self, text: str, place: int) -> list[int]:
        """Ids of plain text.

        Some vocabularies have control tokens, or those of single bytes, among the pieces that text can come to. Where
        the characters of one were typed, the text is cut inside them, and each part read by itself.
        """
        spelling = self.spelling
        encoding = spelling.pipelines[place].encode(text, add_special_tokens=False)
        ids = encoding.ids
        if spelling.blanks:
            ids = [spelling.blanks.get(token, token) for token in ids]
        if spelling.guarded.isdisjoint(ids) and spelling.byte_ids.isdisjoint(ids):
            return ids
        cuts = []
        for token, (start, end) in zip(ids, encoding.offsets, strict=True):
            if token in spelling.guarded and end - start < 2:
                raise ValueError(
                    f"the character {text[start:end]!r} is {self.convert_ids_to_tokens(token)!r} in the decoder's "
                    "vocabulary, which steers it; take it out of the text"
                )
            if token in spelling.guarded or (token in spelling.byte_ids and end - start > 1):
                cuts.append(start + 1)
        if not cuts:
            return ids
        parts = [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        first, *others = (part for part in parts if part)
        return [*self._spell(first, place), *(token for part in others for token in self._spell(part, CONTINUING))]

    def _decode(self, token_ids: int | Sequence[int], skip_special_tokens: bool = False, **kwargs: Any) -> str:
        """Text of ids; an image span shows as `<img></img>`, or as nothing with `skip_special_tokens`."""
        ids = [token_ids] if isinstance(token_ids, int) else token_ids
        shown = [token for token in ids if token != self.image_pad_id]
        return super()._decode(shown, skip_special_tokens=skip_special_tokens, **kwargs)


def _find_spelling(backend: Tokenizer) -> _Spelling:
    added = backend.get_added_tokens_decoder()
    # Families have runs of spaces or line breaks as tokens. They steer nothing, and ordinary text is read with them.
    blank = {id_: token for id_, token in added.items() if not token.special and not token.content.strip(" \t\r\n▁")}
    controls = {token.content: id_ for id_, token in added.items() if id_ not in blank}
    pipelines = tuple(_plain_pipeline(backend, place, blank.values()) for place in (OPENING, AFTER_CONTROL, CONTINUING))
    there = {pipelines[0].token_to_id(token.content): id_ for id_, token in blank.items()}
    patterns = [_pattern_of(added[id_]) for _, id_ in sorted(controls.items(), key=lambda one: -len(one[0]))]
    byte_ids = (backend.token_to_id(f"<0x{value:02X}>") for value in range(256))
    # What the family has for a character that it does not know is no control, unless it serves as one too.
    unknown = getattr(backend.model, "unk_token", None)
    return _Spelling(
        pipelines,
        {theirs: ours for theirs, ours in there.items() if theirs != ours},
        controls,
        re.compile("|".join(patterns) or "(?!)"),
        frozenset(id_ for token, id_ in controls.items() if token != unknown),
        frozenset(id_ for id_ in byte_ids if id_ is not None and id_ not in added),
    )


def _pattern_of(token: AddedToken) -> str:
    pattern = re.escape(token.content)
    if token.single_word:
        pattern = rf"(?<!\w){pattern}(?!\w)"
    return r"\s*" * token.lstrip + pattern + r"\s*" * token.rstrip


def _plain_pipeline(backend: Tokenizer, place: int, blank: Iterable[AddedToken]) -> Tokenizer:
    """The tokenizer without its control tokens, for text that stands in `place`; the vocabulary is shared."""
    plain = Tokenizer(backend.model)
    parts = {}
    for name in ("normalizer", "pre_tokenizer"):
        part = getattr(backend, name)
        parts[name] = None if part is None else _without_prefix(json.loads(part.__getstate__()), place)
    model = {"type": "WordLevel", "vocab": {}, "unk_token": ""}
    shell = {"version": "1.0", "added_tokens": [], "post_processor": None, "decoder": None, "model": model}
    rebuilt = Tokenizer.from_str(json.dumps({"truncation": None, "padding": None, **shell, **parts}))
    for name in parts:
        if getattr(rebuilt, name) is not None:
            setattr(plain, name, getattr(rebuilt, name))
    plain.add_tokens(list(blank))
    return plain


def _without_prefix(part: Any, place: int) -> Any:
    """A normaliser or pre-tokeniser, as JSON has it, that puts no blank before a text which does not stand alone.

    Families put one before each text (`Prepend`, `add_prefix_space`, `Metaspace` "always"), which in a whole
    conversation is each text behind a control token too, or before the first alone (`Metaspace` "first").
    """
    if isinstance(part, list):
        return [one for one in (_without_prefix(one, place) for one in part) if one is not None]
    if not isinstance(part, dict) or place == OPENING:
        return part
    kind = part.get("type")
    if kind == "Prepend" and place == CONTINUING:
        return None
    if kind == "Metaspace" and (place == CONTINUING or part["prepend_scheme"] == "first"):
        return {**part, "prepend_scheme": "never"}
    if kind == "ByteLevel" and place == CONTINUING:
        return {**part, "add_prefix_space": False}
    return {key: _without_prefix(value, place) for key, value in part.items()}


class Prepared(NamedTuple):
    """A decoder's tokenizer for a Monkey, and what the model needs to know of it."""

    tokenizer: DecoderTokenizer | QwenTokenizer
    ids: dict[str, int]
    """Fields of `MonkeyConfig`: `image_start_id`, `image_end_id`, `image_pad_id`, `eod_id`."""
    new_ids: list[int]
    """Those of tokens that the vocabulary lacked, whose rows of the embedding mean nothing yet."""
    vocab_size: int
    """Rows that embedding and head need at least."""


def prepare_tokenizer(tokenizer: PreTrainedTokenizerBase, boxes: bool = False) -> Prepared:
    """Make a decoder's tokenizer one of a Monkey's; arguments and errors otherwise as of `DecoderTokenizer.of`.

    Raises:
        ValueError: a tokenizer that is not one of the library `tokenizers`, nor Qwen's.
    """
    if isinstance(tokenizer, QwenTokenizer):
        own: DecoderTokenizer | QwenTokenizer = tokenizer
        known = set(range(len(own)))
    elif isinstance(tokenizer, PreTrainedTokenizerFast):
        own, known = DecoderTokenizer.of(tokenizer, boxes), set(tokenizer.get_vocab().values())
    else:
        raise ValueError(
            f"the decoder's tokenizer is a {type(tokenizer).__name__}, which has no {TOKENIZER_FILE}: save it as a "
            "fast tokenizer of transformers first"
        )
    ids = {name: getattr(own, name) for name in ("image_start_id", "image_end_id", "image_pad_id", "eod_id")}
    every = set(own.get_vocab().values())
    return Prepared(own, ids, sorted(every - known), max(every) + 1)


def load_tokenizer(source: str | os.PathLike, boxes: bool = False, **where: Any) -> Prepared:
    """Open the tokenizer of a decoder (a folder, a hub name, a GGUF file in either by `gguf_file=`) for a Monkey.

    Args:
        where: `gguf_file`, and where it lies (`revision`, `cache_dir`, …).

    Raises:
        FileNotFoundError, ValueError: no such decoder, or a tokenizer that cannot be had of it; one sentence.
    """
    required_file(source, where.get("gguf_file", "config.json"), "the decoder", **location_of(where))
    try:
        with refused_in_a_sentence(f"{source}: the tokenizer"):
            opened = AutoTokenizer.from_pretrained(source, **where)
    except ValueError as error:
        if "gguf_file" in where or checkpoint_file(source, TOKENIZER_FILE, **location_of(where)):
            raise
        raise ValueError(
            f"{source}: no {TOKENIZER_FILE} there, and transformers makes none of the other files: save the decoder's "
            "fast tokenizer beside its config.json"
        ) from error
    return prepare_tokenizer(opened, boxes)


def open_tokenizer(checkpoint: str | os.PathLike, **settings: Any) -> DecoderTokenizer | QwenTokenizer:
    """Open the tokenizer of a checkpoint, Qwen's or a decoder's own; errors as of their `from_pretrained`."""
    location = location_of(settings)
    if checkpoint_file(checkpoint, VOCABULARY_FILE, **location) is None:
        named = read_json(checkpoint_file(checkpoint, "tokenizer_config.json", **location)).get("tokenizer_class")
        if named == DecoderTokenizer.__name__ or checkpoint_file(checkpoint, TOKENIZER_FILE, **location):
            return DecoderTokenizer.from_pretrained(checkpoint, **settings)
    return QwenTokenizer.from_pretrained(checkpoint, **settings)


def register() -> None:
    """Make AutoTokenizer open a decoder's tokenizer in our folders, by the class that `tokenizer_config.json` names."""
    AutoTokenizer.register(
        MonkeyConfig, tokenizer_class=QwenTokenizer, fast_tokenizer_class=DecoderTokenizer, exist_ok=True
    )
