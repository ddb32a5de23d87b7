"""Qwen's tokenizer: byte-pair encoding by tiktoken over NFC-normalised text, special tokens, and the image span.

An image's place in trusted text is `<img>path</img>`, or `<img></img>`: it becomes one start token, `image_tokens`
slots and one end token. The first slots hold the path's UTF-8 bytes as ids 0 to 255, the others `<imgpad>`, as the
tokenizer of `Qwen/Qwen-VL` writes them; the model overwrites the embeddings of all slots, and nothing here opens the
path. With `split_special_tokens=True` every character is plain text, and no special id can come out.

Vocabulary: the ranks of `qwen.tiktoken`, then `SPECIAL_TOKENS` in their published order.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

import tiktoken
from transformers import AutoTokenizer, PreTrainedTokenizer

from monkey.configuration import MonkeyConfig, QwenVLConfig
from monkey.files import check_field, checkpoint_file, location_of, read_json, refused_in_a_sentence, required_file
from monkey.prompts import BOX_MARKERS, CHAT_END, CHAT_START, END_OF_TEXT, IMAGE_END, IMAGE_PAD, IMAGE_START

VOCABULARY_FILE = "qwen.tiktoken"

SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How text is split before byte pairs are merged, as published with Qwen-7B."""

SPECIAL_TOKENS = (
    END_OF_TEXT,
    CHAT_START,
    CHAT_END,
    *(f"<|extra_{number}|>" for number in range(205)),
    *BOX_MARKERS,
    *(IMAGE_START, IMAGE_END, IMAGE_PAD),
)
"""Special tokens in the order of their ids, which follow the last rank."""

LONGEST_WHITESPACE = 100_000
"""Characters of one run of whitespace; the splitter's regular expressions overflow their stack on a much longer one."""

_SPECIAL_TOKEN = re.compile("|".join(re.escape(token) for token in SPECIAL_TOKENS))
_WHITESPACE = re.compile(r"\s+")

# Keys of a saved or published tokenizer_config.json that say nothing to this class: remote code that is never
# executed, library bookkeeping, and a clean-up of spaces that would break byte-exact decoding.
_IGNORED_SETTINGS = (
    "auto_map",
    "clean_up_tokenization_spaces",
    "errors",
    "is_local",
    "local_files_only",
    "tokenizer_file",
    "trust_remote_code",
)


class QwenTokenizer(PreTrainedTokenizer):
    """Text to ids and back, with image spans. Ordinary tokens are `bytes`, special tokens are `str`.

    Args:
        vocab_file: a `qwen.tiktoken` file, one `base64-token rank` a line.
        image_tokens: slots of an image span, without its start and end token.
        model_max_length: length that `tokenizer(…, truncation=True)` cuts to; None for no limit.

    `from_pretrained` takes `image_tokens` from the checkpoint's `config.json` when `tokenizer_config.json` does not
    name it, so that the published folders give the published ids.
    """

    vocab_files_names = {"vocab_file": VOCABULARY_FILE}  # noqa: RUF012 (the library's class attribute)
    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(
        self,
        vocab_file: str | os.PathLike,
        image_tokens: int = 256,
        padding_side: str = "right",
        model_max_length: int | None = None,
        **kwargs: Any,
    ):
        for key in _IGNORED_SETTINGS:
            kwargs.pop(key, None)
        _refuse_new_tokens(str(token) for token in kwargs.pop("added_tokens_decoder", {}).values())
        for key in ("additional_special_tokens", "extra_special_tokens"):
            _refuse_new_tokens(str(token) for token in kwargs.pop(key, None) or ())

        self._ranks = read_ranks(vocab_file)
        self._special_ids = {token: len(self._ranks) + number for number, token in enumerate(SPECIAL_TOKENS)}
        self._tokens = [*self._ranks, *SPECIAL_TOKENS]
        self._encoding = tiktoken.Encoding(
            "qwen", pat_str=SPLIT_PATTERN, mergeable_ranks=self._ranks, special_tokens=self._special_ids
        )
        self.image_tokens = image_tokens
        named = {"pad_token": END_OF_TEXT, "eos_token": END_OF_TEXT}
        named.update({key: token for key, token in kwargs.items() if key in self.SPECIAL_TOKENS_ATTRIBUTES and token})
        _refuse_new_tokens(str(token) for token in named.values())
        kwargs.update(named)
        super().__init__(
            image_tokens=image_tokens, padding_side=padding_side, model_max_length=model_max_length, **kwargs
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *init_inputs: Any, **kwargs: Any):
        """Open a folder or a hub name: our own saves, or the published `QWenTokenizer`, whose code is not executed.

        Raises:
            FileNotFoundError: no such folder, or no `qwen.tiktoken` in it.
            ValueError: a malformed `qwen.tiktoken`, named by file and line.
        """
        if not os.path.isfile(pretrained_model_name_or_path):
            location = location_of(kwargs)
            required_file(pretrained_model_name_or_path, VOCABULARY_FILE, "the tokenizer", **location)
            if kwargs.get("image_tokens") is None:
                kwargs.pop("image_tokens", None)
                kwargs.update(_image_tokens_of(pretrained_model_name_or_path, location))
            for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
                read_json(checkpoint_file(pretrained_model_name_or_path, name, **location))
        with refused_in_a_sentence(f"{pretrained_model_name_or_path}: tokenizer_config.json"):
            return super().from_pretrained(pretrained_model_name_or_path, *init_inputs, **kwargs)

    @property
    def image_tokens(self) -> int:
        """Slots of an image span, without its start and end token."""
        return self._image_tokens

    @image_tokens.setter
    def image_tokens(self, count: int):
        check_field("image_tokens", count, "count")
        self._image_tokens = count

    end_of_text = END_OF_TEXT
    """What ends a text, and an answer in training."""

    opening_ids: tuple[int, ...] = ()
    """What stands before a text: nothing."""

    @property
    def encoding(self) -> tiktoken.Encoding:
        """What merges bytes: the ranks, with the special tokens."""
        return self._encoding

    @property
    def fingerprint(self) -> str:
        """SHA-256 that stands for how text becomes ids."""
        return hashlib.sha256(repr(self.get_vocab()).encode()).hexdigest()

    @property
    def eod_id(self) -> int:
        """Id of `<|endoftext|>`, which also pads."""
        return self._special_ids[END_OF_TEXT]

    @property
    def im_start_id(self) -> int:
        return self._special_ids[CHAT_START]

    @property
    def im_end_id(self) -> int:
        return self._special_ids[CHAT_END]

    @property
    def image_start_id(self) -> int:
        return self._special_ids[IMAGE_START]

    @property
    def image_end_id(self) -> int:
        return self._special_ids[IMAGE_END]

    @property
    def image_pad_id(self) -> int:
        return self._special_ids[IMAGE_PAD]

    @property
    def all_special_tokens(self) -> list[str]:
        return list(SPECIAL_TOKENS)

    @property
    def vocab_size(self) -> int:
        """Ranks and special tokens; the model's embedding may have more rows, which have no text."""
        return len(self._tokens)

    def get_vocab(self) -> dict[bytes | str, int]:
        return {**self._ranks, **self._special_ids}

    def encode_text(
        self, text: str, split_special_tokens: bool = False, image_tokens: int | Iterator[int] | None = None
    ) -> list[int]:
        """Ids of a text; every encoding of this project comes through here.

        Args:
            split_special_tokens: take every character as plain text (for text that comes from users).
            image_tokens: slots of every image span, `self.image_tokens` when None, or an iterator that gives those of
                each, one after the other.

        Raises:
            ValueError: an unclosed, surplus or nested `<img>` or `</img>`, a path longer than the span, or a run of
                whitespace that the splitter cannot take; the message names the character's position.
        """
        text = _normalise(text)
        _refuse_endless_whitespace(text)
        if split_special_tokens:
            return self._encoding.encode_ordinary(text)
        if not isinstance(image_tokens, Iterator):
            image_tokens = itertools.repeat(image_tokens or self.image_tokens)

        ids: list[int] = []
        for kind, piece, position in split_trusted(text, _SPECIAL_TOKEN):
            if kind == "image":
                ids += self._image_span(piece, position, next(image_tokens))
            elif kind == "token":
                ids.append(self._special_ids[piece])
            else:
                ids += self._encoding.encode_ordinary(piece)
        return ids

    def _image_span(self, path: str, position: int, image_tokens: int) -> list[int]:
        """Start token, the path's bytes and pads in `image_tokens` slots, end token."""
        slots = list(path.encode("utf-8"))
        if len(slots) > image_tokens:
            raise ValueError(
                f"the path in the {IMAGE_START} at character {position} of the text is {len(slots)} bytes long, more "
                f"than the {image_tokens} slots of an image span"
            )
        pads = [self.image_pad_id] * (image_tokens - len(slots))
        return [self.image_start_id, *slots, *pads, self.image_end_id]

    def tokenize(self, text: str, **kwargs: Any) -> list[bytes | str]:
        """Tokens of a text; slots of an image span that hold path bytes show as the tokens of those ids."""
        inert = kwargs.get("split_special_tokens", self.split_special_tokens)
        return [self._tokens[token_id] for token_id in self.encode_text(text, split_special_tokens=inert)]

    def convert_tokens_to_ids(self, tokens: bytes | str | Iterable[bytes | str]) -> int | list[int | None] | None:
        if isinstance(tokens, (bytes, str)):
            return self._convert_token_to_id(tokens)
        return [self._convert_token_to_id(token) for token in tokens]

    def _convert_token_to_id(self, token: bytes | str) -> int | None:
        """Id of a token, or None, as the library has it for a tokenizer without an unknown token."""
        if isinstance(token, str):
            if token in self._special_ids:
                return self._special_ids[token]
            token = token.encode("utf-8", "surrogatepass")
        return self._ranks.get(token)

    def _convert_id_to_token(self, index: int) -> bytes | str:
        """Token of an id; an id past the vocabulary (a padding row of the embedding) has no text."""
        if index < 0:
            raise ValueError(f"{index} is not a token id; labels hold such numbers where nothing is supervised")
        return self._tokens[index] if index < len(self._tokens) else b""

    def convert_tokens_to_string(self, tokens: Iterable[bytes | str]) -> str:
        pieces = (token.encode("utf-8") if isinstance(token, str) else token for token in tokens)
        return b"".join(pieces).decode("utf-8", errors="replace")

    def _decode(self, token_ids: int | Iterable[int], skip_special_tokens: bool = False, **kwargs: Any) -> str:
        """Text of ids, byte for byte; what is not UTF-8 (a character cut in half) shows as U+FFFD.

        An image span shows as `<img>path</img>`, or as nothing with `skip_special_tokens`.
        """
        ids = [token_ids] if isinstance(token_ids, int) else [int(token_id) for token_id in token_ids]
        pieces: list[bytes | str] = []
        position = 0
        while position < len(ids):
            end = self._image_span_end(ids, position)
            if end is not None:
                if not skip_special_tokens:
                    path = bytes(token_id for token_id in ids[position + 1 : end] if token_id != self.image_pad_id)
                    pieces += [IMAGE_START, path, IMAGE_END]
                position = end
            else:
                token = self._convert_id_to_token(ids[position])
                if not (skip_special_tokens and isinstance(token, str)):
                    pieces.append(token)
            position += 1
        return self.convert_tokens_to_string(pieces)

    def _image_span_end(self, ids: list[int], start: int) -> int | None:
        """Index of the end token of the image span that begins at `start`, or None when none begins there."""
        if ids[start] != self.image_start_id:
            return None
        position = start + 1
        while position < len(ids) and ids[position] < 256:
            position += 1
        while position < len(ids) and ids[position] == self.image_pad_id:
            position += 1
        return position if position < len(ids) and ids[position] == self.image_end_id else None

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        path = os.path.join(save_directory, (f"{filename_prefix}-" if filename_prefix else "") + VOCABULARY_FILE)
        with open(path, "wb") as file:
            file.writelines(base64.b64encode(token) + b" %d\n" % rank for token, rank in self._ranks.items())
        return (path,)

    def add_special_tokens(self, special_tokens_dict: dict[str, Any], *args: Any, **kwargs: Any) -> int:
        for tokens in special_tokens_dict.values():  # before the library notes any of them
            _refuse_new_tokens(map(str, tokens if isinstance(tokens, (list, tuple)) else [tokens]))
        return super().add_special_tokens(special_tokens_dict, *args, **kwargs)

    def _add_tokens(self, new_tokens: Iterable[Any], special_tokens: bool = False) -> int:
        _refuse_new_tokens(str(token) for token in new_tokens)
        return 0


class QWenTokenizer(QwenTokenizer):
    """The class name in the published `tokenizer_config.json`; opening it gives a `QwenTokenizer`."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *init_inputs: Any, **kwargs: Any):
        return QwenTokenizer.from_pretrained(pretrained_model_name_or_path, *init_inputs, **kwargs)


class Piece(NamedTuple):
    """A piece of a trusted text: plain "text", a control "token", or an "image" with the path in its place."""

    kind: Literal["text", "token", "image"]
    text: str
    position: int
    """Of its first character in the whole text."""


def split_trusted(text: str, control: re.Pattern[str]) -> Iterator[Piece]:
    """Yield the pieces of a trusted text, whose control tokens are what `control` matches.

    Raises:
        ValueError: an unclosed, surplus or nested `<img>` or `</img>`, with its character's position.
    """
    done = 0
    place = None  # the match of the <img> that is open
    for match in control.finditer(text):
        token = match.group()
        if place is not None:
            if token == IMAGE_START:
                raise ValueError(
                    f"the text has {IMAGE_START} at character {match.start()} inside the one opened at character "
                    f"{place.start()}; close that with {IMAGE_END} first"
                )
            if token == IMAGE_END:
                yield Piece("image", text[place.end() : match.start()], place.start())
                place, done = None, match.end()
            continue  # any other special token here is part of the path
        if match.start() > done:
            yield Piece("text", text[done : match.start()], done)
        done = match.end()
        if token == IMAGE_START:
            place = match
        elif token == IMAGE_END:
            raise ValueError(f"the text has {IMAGE_END} at character {match.start()} and no {IMAGE_START} before it")
        else:
            yield Piece("token", token, match.start())
    if place is not None:
        raise ValueError(f"the text has {IMAGE_START} at character {place.start()} and no {IMAGE_END} after it")
    if done < len(text):
        yield Piece("text", text[done:], done)


def read_ranks(vocab_file: str | os.PathLike) -> dict[bytes, int]:
    """Ranks of a tiktoken file: token bytes to rank, counting up from 0.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line that is not `base64-token rank`, a rank out of order, a token twice, or a byte without a
            rank; file and line are named.
    """
    if not os.path.isfile(vocab_file):
        raise FileNotFoundError(f"{os.fspath(vocab_file)}: no such vocabulary file")
    ranks: dict[bytes, int] = {}
    with open(vocab_file, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{os.fspath(vocab_file)}:{number}"
            try:
                encoded, rank_text = line.split()
                token, rank = base64.b64decode(encoded, validate=True), int(rank_text)
            except ValueError as error:
                raise ValueError(f"{where}: {line[:60]!r} is not 'base64-token rank'") from error
            if rank != len(ranks):
                raise ValueError(f"{where}: rank {rank} where {len(ranks)} follows; ranks count up from 0 without gaps")
            if not token or token in ranks:
                raise ValueError(f"{where}: the token {token!r} is {'there twice' if token else 'empty'}")
            ranks[token] = rank
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise ValueError(
            f"{os.fspath(vocab_file)}: {len(missing)} of the 256 single bytes have no rank, first {missing[0]:#04x}"
        )
    return ranks


def _image_tokens_of(checkpoint: str | os.PathLike, location: dict[str, Any]) -> dict[str, int]:
    """`{"image_tokens": n}` from the checkpoint's config.json where tokenizer_config.json does not say, else {}."""
    settings_file = checkpoint_file(checkpoint, "tokenizer_config.json", **location)
    config_file = checkpoint_file(checkpoint, "config.json", **location)
    if config_file is None or "image_tokens" in read_json(settings_file):
        return {}
    if read_json(config_file).get("model_type") not in (MonkeyConfig.model_type, QwenVLConfig.model_type):
        return {}
    return {"image_tokens": MonkeyConfig.from_pretrained(checkpoint, **location).image_tokens}


def _normalise(text: str) -> str:
    """Text in NFC; lone surrogates, which have no bytes, become U+FFFD, and pairs of them one character."""
    return text if text.isascii() else unicodedata.normalize("NFC", join_surrogates(text))


def join_surrogates(text: str) -> str:
    """Text without lone surrogates, which have no bytes and become U+FFFD; pairs of them are one character."""
    if text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _refuse_endless_whitespace(text: str) -> None:
    if len(text) <= LONGEST_WHITESPACE:
        return
    for match in _WHITESPACE.finditer(text):
        length = match.end() - match.start()
        if length > LONGEST_WHITESPACE:
            raise ValueError(
                f"the text has {length:,} whitespace characters in a row at character {match.start()}, more than the "
                f"{LONGEST_WHITESPACE:,} that can be tokenized"
            )


def _refuse_new_tokens(tokens: Iterable[str]) -> None:
    """Raise ValueError for tokens that are not in the vocabulary, which is fixed with the published embedding."""
    new = [token for token in tokens if token not in SPECIAL_TOKENS]
    if new:
        raise ValueError(
            f"the token {new[0]!r} is not in Qwen's vocabulary, which cannot grow; take one of the spare tokens "
            "<|extra_0|> to <|extra_204|> instead"
        )


def register() -> None:
    """Make AutoTokenizer open our folders and the published ones, without remote code."""
    # The second class only makes the published class name known.
    AutoTokenizer.register(
        MonkeyConfig, tokenizer_class=QwenTokenizer, slow_tokenizer_class=QWenTokenizer, exist_ok=True
    )
