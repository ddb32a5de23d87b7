"""Where things are: the boxes that answers name, in pixels of an image, and back into the text that models read.

`<ref>the dog</ref><box>(112,430),(385,871)</box>` says that the dog is in the rectangle between two corners. Several
boxes may follow one name, a box may stand without a name, and `<quad>` has four corners in the place of two. Numbers
are thousandths of the width and height of the image, which is upright, as people see it.

The model itself reads and writes thousandths of the canvas. Where the image is stretched over it, they are the same.
Where it is padded, the image covers a share of the canvas, from the upper left corner on: numbers are multiplied by it
on their way in (`to_canvas`) and divided by it on their way out (`to_image`, `BoxStream`). Records, questions and
answers hold thousandths of the image everywhere else.

Markup: Qwen-VL, arXiv 2308.12966, section 3.2. Text that only resembles it stays text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, groupby

from PIL import Image, ImageDraw, ImageFont

from monkey.conversation import Conversation, Text
from monkey.images import open_image

GRID = 1000
"""Steps of the coordinates over the width, and over the height."""

Point = tuple[int, int]

Share = tuple[float, float]
"""Parts of a canvas's width and height that its image covers, above 0 and up to 1."""

WHOLE: Share = (1.0, 1.0)
"""The image covers the whole canvas."""

_POINT = r"\(\s*(-?\d{1,6})\s*,\s*(-?\d{1,6})\s*\)"
_BOX = re.compile(rf"<box>\s*{_POINT}\s*,\s*{_POINT}\s*</box>")
_QUAD = re.compile(r"<quad>\s*" + r"\s*,\s*".join([_POINT] * 4) + r"\s*</quad>")
_PLACE = re.compile(f"{_BOX.pattern}|{_QUAD.pattern}")
_NUMBER = re.compile(r"-?\d+")
_MARKER = re.compile(r"</?(?:ref|box|quad)>")
_BOX_MARKER = re.compile(r"</?(?:box|quad)>")
_REF = re.compile(r"<ref>((?:(?!</?(?:ref|box|quad)>).)*)</ref>", re.DOTALL)
# What may become a box with the text that follows; longer ones never do.
_BEGUN = re.compile(r"<(?:b|bo|box|q|qu|qua|quad)?$|<(?:box|quad)>[\s\d(),-]{0,200}(?:</?[a-z]{0,4})?$")

# From places of the upright image to those of the image as stored, both from 0 to 1, by EXIF orientation.
_STORED = {
    1: lambda x, y: (x, y),
    2: lambda x, y: (1 - x, y),
    3: lambda x, y: (1 - x, 1 - y),
    4: lambda x, y: (x, 1 - y),
    5: lambda x, y: (y, x),
    6: lambda x, y: (y, 1 - x),
    7: lambda x, y: (1 - y, 1 - x),
    8: lambda x, y: (1 - y, x),
}
# Quarter turns are undone by each other; all else is undone by itself.
_UPRIGHT = {**_STORED, 6: _STORED[8], 8: _STORED[6]}

COLOURS = ("#e6194b", "#0082c8", "#f58231", "#3cb44b", "#911eb4", "#008080", "#aa6e28", "#d2007f")
"""Of drawn boxes, one a name."""

LONGEST_DRAWN = 40
"""Characters of a name that are drawn."""


@dataclass(frozen=True)
class Located:
    """Something that a text says is in an image, and where.

    Attributes:
        label: its name; None where the text gives none.
        box: left, top, right and bottom in thousandths of the image's width and height, in order and in 0…1000.
        start, end: place in the text of `<box>…</box>`, without the name, which may be that of several boxes.
        corners: the four of a `<quad>`, as they were written; None for a box.
    """

    label: str | None
    box: tuple[int, int, int, int]
    start: int = 0
    end: int = 0
    corners: tuple[Point, ...] | None = None

    @property
    def outline(self) -> tuple[Point, ...]:
        """Four corners on the grid, round about."""
        left, top, right, bottom = self.box
        return self.corners or ((left, top), (right, top), (right, bottom), (left, bottom))

    def in_pixels(self, size: tuple[int, int]) -> tuple[float, float, float, float]:
        """Left, top, right and bottom in an image of `size` (width, height) that is upright."""
        return self.in_stored_pixels(size, 1)

    def in_stored_pixels(self, size: tuple[int, int], exif_orientation: int) -> tuple[float, float, float, float]:
        """The same in the image as its file stores it, before EXIF turns it upright.

        Args:
            size: width and height as stored, PIL's `Image.open(file).size`.
            exif_orientation: 1 to 8; ValueError for another number.
        """
        return _turned(tuple(value / GRID for value in self.box), _turn(_STORED, exif_orientation), size)


def located(answer: str) -> list[Located]:
    """Every box of a text, in its order.

    A name is that of the boxes behind it, with nothing but white space between. Corners that are swapped are put in
    order, and numbers beyond the image are moved to its edge. What is not complete, such as `<box>(1,2)</box>`, or
    has other than whole numbers of up to six digits, is text.
    """
    return [found for found in _parts(answer) if isinstance(found, Located)]


def find_box_fault(text: str) -> str | None:
    """Say what is wrong with the first box or quad of a text that `located` would have to guess at or pass over."""
    place = 0
    while marker := _BOX_MARKER.search(text, place):
        match = _BOX.match(text, marker.start()) or _QUAD.match(text, marker.start())
        if match is None:
            shown = text[marker.start() : marker.start() + 60]
            return f"{shown!r} is no box; write <box>(x1,y1),(x2,y2)</box>, whole numbers from 0 to {GRID}"
        numbers = [int(number) for number in match.groups()]
        outside = [number for number in numbers if not 0 <= number <= GRID]
        if outside:
            return f"{match[0]} holds {outside[0]}; coordinates are thousandths of width and height, from 0 to {GRID}"
        if match.re is _BOX and (numbers[0] > numbers[2] or numbers[1] > numbers[3]):
            return f"the corners of {match[0]} are swapped; write the upper left one first, then the lower right one"
        place = match.end()
    return None


def without_markup(answer: str) -> str:
    """A text as people read it: names stay, their boxes go, and of a box without a name the numbers stay."""
    return "".join(_readable(part) for part in _parts(answer))


def marked(label: str | None, pixel_box: Sequence[float], size: tuple[int, int], exif_orientation: int = 1) -> str:
    """The markup of a box in pixels; `located` gives it back to within half a step of the grid.

    Args:
        pixel_box: left, top, right, bottom; what is beyond the image is moved to its edge.
        size: width and height of the image.
        exif_orientation: other than 1 where box and size are those of the file as stored.

    Raises:
        ValueError: a label that holds a marker, four numbers that are no box, or a size without pixels.
    """
    width, height = size
    if width < 1 or height < 1:
        raise ValueError(f"the image is {width}×{height} pixels, and a box needs at least one each way")
    if len(pixel_box) != 4 or not all(abs(value) < float("inf") for value in pixel_box):
        raise ValueError(f"the box is {list(pixel_box)}, and left, top, right, bottom in pixels are needed")
    left, top, right, bottom = pixel_box
    shares = left / width, top / height, right / width, bottom / height
    turned = _turned(shares, _turn(_UPRIGHT, exif_orientation), (GRID, GRID))
    (first, last) = _points([round(value) for value in turned])
    return written([Located(label, (*first, *last))])


def written(boxes: Sequence[Located]) -> str:
    """The markup of boxes, which `located` reads as the same; neighbours of one name stand behind it together."""
    groups = []
    for label, group in groupby(boxes, key=lambda box: box.label):
        name = "" if label is None else f"<ref>{_checked(label)}</ref>"
        groups.append(name + "".join(map(_written, group)))
    # A comma, so that a box without a name is not taken for one more of the name before it.
    return ", ".join(groups)


def to_canvas(conversation: Conversation, shares: Sequence[Share]) -> Conversation:
    """Return a conversation whose boxes are of the canvases; each box is of the image that stands last before it.

    One that stands before all images, as where a question comes before its image, is of the first.

    Texts stay as they are but for the numbers of complete boxes. Where the markers of a box are no trusted text, they
    are characters like others, and so are its numbers.

    Args:
        shares: of the images, in their order.
    """
    if all(share == WHOLE for share in shares):
        return conversation
    messages = [list(message.parts) for message in conversation.messages]
    share, behind = shares[0], []  # the texts behind an image, which may be those of several messages
    upcoming = iter(shares)
    for parts in messages:
        for place, part in enumerate(parts):
            if isinstance(part, Text):
                behind.append((parts, place))
            else:
                _move_boxes(behind, share)
                share, behind = next(upcoming), []
    _move_boxes(behind, share)
    return Conversation(
        tuple(replace(one, parts=tuple(parts)) for one, parts in zip(conversation.messages, messages, strict=True))
    )


def _move_boxes(places: Sequence[tuple[list, int]], share: Share) -> None:
    """Put the boxes of texts, each given by its list of parts and its place there, on the canvas of their image."""
    if share == WHOLE:
        return
    texts = [parts[place] for parts, place in places]
    owners = [text for text in texts for _ in text.text]
    joined = "".join(text.text for text in texts)
    boxes = [box for box in _PLACE.finditer(joined) if owners[box.start()].trusted and owners[box.end() - 1].trusted]
    changes = [change for box in boxes for change in _moved_numbers(box, share)]
    start = 0
    for (parts, place), text in zip(places, texts, strict=True):
        end, own, done = start + len(text.text), "", start
        for first, beyond, number in changes:
            if first < end and beyond > start:
                # A number across two texts goes into the first.
                own += joined[done:first] + (number if first >= start else "")
                done = min(beyond, end)
        parts[place] = replace(text, text=own + joined[done:end])
        start = end


def to_image(text: str, share: Share) -> str:
    """Return a text about a canvas as one about its image; what lies in the padding is moved to the image's edge.

    Only numbers of complete boxes change. `to_canvas` makes the same text of it again, the padding aside.
    """
    if share == WHOLE:
        return text
    across, down = share
    pieces, place = [], 0
    for box in _PLACE.finditer(text):
        for first, beyond, number in _moved_numbers(box, (1 / across, 1 / down)):
            pieces += [text[place:first], number]
            place = beyond
    return "".join([*pieces, text[place:]])


def _moved_numbers(box: re.Match, factors: tuple[float, float]) -> Iterator[tuple[int, int, str]]:
    """Yield start, end and new text of each number of a box, multiplied across and down by turns."""
    for number, factor in zip(_NUMBER.finditer(box.string, box.start(), box.end()), cycle(factors), strict=False):
        yield number.start(), number.end(), str(min(max(round(int(number[0]) * factor), 0), GRID))


class BoxStream:
    """`to_image` of a text that comes piece by piece: what may become a box is held back until that is certain."""

    def __init__(self, share: Share):
        self._share, self._held = share, ""

    def push(self, piece: str) -> str:
        """Return what is certain with one more piece."""
        text = self._held + piece
        begun = _BEGUN.search(text)
        certain = len(text) if begun is None else begun.start()
        self._held = text[certain:]
        return to_image(text[:certain], self._share)

    def finish(self) -> str:
        """Return the rest, at the end."""
        rest, self._held = self._held, ""
        return rest


def drawn(image: Image.Image, boxes: Sequence[Located]) -> Image.Image:
    """A copy of an upright image, RGB, with boxes and names drawn on it, a colour a name.

    A name that the font cannot show, of Chinese characters for one, is drawn as the number of its box, from 1.
    """
    sheet = open_image(image, apply_exif=False)
    width, height = sheet.size
    draw = ImageDraw.Draw(sheet)
    line = max(1, round(min(width, height) / 150))
    font = ImageFont.load_default(max(10, min(width, height) // 28))
    names = list(dict.fromkeys(box.label for box in boxes))
    for number, box in enumerate(boxes, start=1):
        colour = COLOURS[names.index(box.label) % len(COLOURS)]
        corners = [(round(x * (width - 1) / GRID), round(y * (height - 1) / GRID)) for x, y in box.outline]
        draw.line([*corners, corners[0]], fill=colour, width=line, joint="curve")
        if box.label is None:
            continue
        text = box.label[:LONGEST_DRAWN] if _can_show(font, box.label) else str(number)
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        # Above the box, or inside of it where the image ends.
        x = max(0, min(corners[0][0], width - (right - left) - 2 * line))
        y = min(y for _, y in corners) - (bottom - top) - 2 * line
        y = y if y >= 0 else min(y for _, y in corners)
        draw.rectangle((x, y, x + right - left + 2 * line, y + bottom - top + 2 * line), fill=colour)
        draw.text((x + line - left, y + line - top), text, fill="white", font=font)
    return sheet


def _can_show(font: ImageFont.FreeTypeFont, text: str) -> bool:
    """Whether a font has a form of its own for every character."""
    missing = bytes(font.getmask("\U0010ffff"))
    return all(character.isspace() or bytes(font.getmask(character)) != missing for character in text)


def _parts(answer: str) -> Iterator[str | Located | re.Match]:
    """A text in pieces that make it up: plain ones, names (`<ref>…</ref>`), and boxes.

    White space between a name and its boxes belongs to none of them and is left out.
    """
    place, plain, label = 0, 0, None
    while marker := _MARKER.search(answer, place):
        begins = marker.start()
        if answer[plain:begins].strip():
            label = None
        name = _REF.match(answer, begins)
        box = _box_at(answer, begins, label)
        if name is None and box is None:
            place = marker.end()
            continue
        if not (box is not None and label is not None) and plain < begins:
            yield answer[plain:begins]
        if name is not None:
            label = name[1].strip() or None
            yield name
        else:
            yield box
        place = plain = name.end() if name is not None else box.end
    if plain < len(answer):
        yield answer[plain:]


def _box_at(answer: str, start: int, label: str | None) -> Located | None:
    """The box or quad that begins at a place of a text."""
    for pattern in (_BOX, _QUAD):
        if match := pattern.match(answer, start):
            points = _points([int(number) for number in match.groups()])
            across, down = zip(*points, strict=True)
            box = min(across), min(down), max(across), max(down)
            return Located(label, box, start, match.end(), points if pattern is _QUAD else None)
    return None


def _points(numbers: Sequence[int]) -> tuple[Point, ...]:
    """Pairs of numbers, those beyond the grid moved to its edge."""
    inside = [min(max(number, 0), GRID) for number in numbers]
    return tuple(zip(inside[::2], inside[1::2], strict=True))


def _readable(part: str | Located | re.Match) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, re.Match):
        return part[1]
    return "" if part.label is not None else _written(part).split(">")[1].split("<")[0]


def _written(box: Located) -> str:
    points = ",".join(f"({x},{y})" for x, y in (box.corners or (box.box[:2], box.box[2:])))
    return f"<box>{points}</box>" if box.corners is None else f"<quad>{points}</quad>"


def _checked(label: str) -> str:
    if found := _MARKER.search(label):
        raise ValueError(f"the name {label!r} holds {found[0]}, which belongs to the markup; leave it out")
    return label


def _turn(table, exif_orientation: int):
    if exif_orientation not in table:
        raise ValueError(f"exif_orientation is {exif_orientation!r}, and it is 1 to 8; 1 is upright")
    return table[exif_orientation]


def _turned(box: Sequence[float], turn, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Left, top, right, bottom, each a share from 0 to 1, turned and scaled to a size."""
    (x1, y1), (x2, y2) = turn(*box[:2]), turn(*box[2:])
    width, height = size
    return min(x1, x2) * width, min(y1, y2) * height, max(x1, x2) * width, max(y1, y2) * height
