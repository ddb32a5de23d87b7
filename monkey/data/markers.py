"""Finds what in a text is another project's sign for a picture, a place or a turn.

Our tokenizer would read such signs as mere characters, or, where they are Qwen's own control tokens, as those. Signs
that this project trains on (`<img>path</img>`, `<ref>`, `<box>`, `<quad>`) are not among them.
"""

from __future__ import annotations

import re
from typing import NamedTuple

IMAGE, VIDEO, AUDIO, PLACE, CONTROL = "an image", "a video", "a recording", "a place in an image", "a turn or its end"


class Marker(NamedTuple):
    """One sign in a text."""

    text: str
    start: int
    meaning: str
    """One of the constants above."""
    is_certain: bool
    """Whether nobody writes it as text: `<|box_start|>` is certain, `<s>` and `<image>` are HTML or XML as well."""


_FRACTION = r"\s*(?:0?\.\d+|[01](?:\.0*)?)\s*"

# Every alternative begins with a plain character and none is a group: so the search skips other characters quickly.
_MARKERS = (
    (IMAGE, False, r"<image(?:[ _-]?[0-9]{1,4})?>|<image/>|<img\s[^<>]*>"),
    (IMAGE, True, r"<imgpad>|<IMG_CONTEXT>|<ImageHere>|<image_(?:placeholder|soft_token)>|<start_of_image>|\[IMG\]"),
    (IMAGE, True, r"<\|(?:begin_of_|end_of_)?image(?:_\d+|_pad|_start|_end)?\|>|<\|vision_(?:start|end|pad)\|>"),
    (VIDEO, False, r"<video>"),
    (VIDEO, True, r"<\|(?:begin_of_|end_of_)?video(?:_\d+|_pad|_start|_end)?\|>"),
    (AUDIO, False, r"<audio>"),
    (AUDIO, True, r"<\|audio(?:_\d+|_pad|_start|_end|_bos|_eos)?\|>|<\|AUDIO\|>"),
    (PLACE, True, r"<\|(?:box|quad|point|object_ref)_(?:start|end)\|>|<\|/?(?:ref|det|grounding)\|>"),
    (PLACE, True, r"<ref-object>|<bbox\d*>|<loc_?\d+>|<patch_index_\d+>"),
    (PLACE, False, rf"\[{_FRACTION}(?:,{_FRACTION}){{3}}\]|\"(?:bbox|point)_2d\"|<points?\s+x\d*="),
    (CONTROL, True, r"<\|im_(?:start|sep|end)\|>|<\|endoftext\|>|<\|(?:user|assistant|system|end)\|>"),
    (CONTROL, True, r"<\|(?:begin_of_text|end_of_text|eot_id|eom_id|start_header_id|end_header_id|python_tag)\|>"),
    (CONTROL, False, r"\[/?INST\]|<</?SYS>>|</?s>|<[be]os>|<(?:start|end)_of_turn>|<\|\w+\|>"),
    (CONTROL, False, r"USER: |ASSISTANT: |### ?(?:Human|Assistant|Instruction|Response):"),
)
_ANY = re.compile("|".join(pattern for _, _, pattern in _MARKERS))


def find_foreign_markers(text: str) -> list[Marker]:
    """Return the signs of a text in their order; `meaning` says what each stands for elsewhere."""
    return [_classified(match.group(), match.start()) for match in _ANY.finditer(text)]


def _classified(sign: str, start: int) -> Marker:
    meaning, is_certain = next(row[:2] for row in _MARKERS if re.fullmatch(row[2], sign))
    return Marker(sign, start, meaning, is_certain)
