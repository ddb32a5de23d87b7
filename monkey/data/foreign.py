"""Reads the records that other projects publish, by turning each into a record of ours.

    record, form, notes = to_our_record(row, "train.json[0]", size_of)

A form is told by its keys; `FORMS` has them all, and each is a function from a row to its turns. What is common to them
follows: images take the places of `<image>`, numbered or not, boxes become `<box>(x1,y1),(x2,y2)</box>`. A sign of an
image, a box or a role that is left over is a fault that says what to change. Texts are otherwise kept to the byte.

Forms as published: haotian-liu/LLaVA docs/Finetune_Custom_Data.md, QwenLM/Qwen3-VL qwen-vl-finetune, OpenGVLab/InternVL
(chat data), hiyouga/LLaMA-Factory data/README.md, modelscope/ms-swift Custom-dataset.md, huggingface/trl
dataset_formats.md, OpenAI's chat messages.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, NoReturn

from monkey.boxes import marked
from monkey.data.rows import fail, field_of, kind_of, text_of
from monkey.prompts import CAPTION_AS_TRAINED, DETAILED_CAPTION_AS_TRAINED, IMAGE_PLACE

ROLES = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter"),
    "assistant": ("assistant", "gpt", "bot", "model", "chatgpt"),
}
"""Names that a record may use for each side, in any case."""

_ROLES = {name: role for role, names in ROLES.items() for name in names}

SizeOf = Callable[[str, str], tuple[int, int]]
"""Gives width and height of the image of a path; its second argument begins the messages of errors."""

_PLACE = re.compile(r"<image(?:[ _-]?([0-9]{1,4}))?>")
_OWN_IMAGE = re.compile(r"<img>(.*?)</img>", re.DOTALL)
_CORNERS = r"\[\s*" + r"\s*,\s*".join([r"([0-9]{1,6})"] * 4) + r"\s*\]"
_BRACKETS = re.compile(r"<box>\s*\[\s*CORNERS(?:\s*,\s*CORNERS)*\s*\]\s*</box>".replace("CORNERS", _CORNERS))
_OBJECT = re.compile(r"<ref-object>|<bbox>")
_MARKUP = re.compile(r"</?(?:ref|box|quad|img)>")

_IMAGE_KEY = re.compile(r"(?:image|img|picture|photo)s?(?:_?(?:path|file|file_?name|name|url|list)s?)?", re.IGNORECASE)
_BOX_KEYS = ("objects", "bbox", "bboxes", "boxes", "box")
_IMAGE_FILE = re.compile(r".*\.(?:jpe?g|png|webp|gif|bmp|tiff?)", re.IGNORECASE | re.DOTALL)
_NOTHING = (None, "", [], {}, "[]")
_OPTIONAL = ("image", "images", "system", "objects")
_OTHER_MEDIA = {"video": "a video", "videos": "videos", "audio": "a recording", "audios": "recordings"}
_OTHER_TASKS = {
    "tools": "tools",
    "functions": "tools",
    "tool_calls": "calls of tools",
    "function_call": "a call of a tool",
    "chosen": "preferences between answers",
    "rejected": "preferences between answers",
    "rejected_response": "preferences between answers",
    "kto_tag": "preferences between answers",
}


class OurRecord(NamedTuple):
    """A row as a record of ours."""

    record: Any
    """A new object, whose turns were read but not checked; what is no object is the row itself."""
    form: str
    """Whose form it was: `LLaVA's form ('image' and <image>)`; empty for ours."""
    notes: list[str]
    """Sentences about what may not be meant so."""


def role_of(name: str) -> str | None:
    """Return "system", "user" or "assistant" for a role by any of its names, and None for another."""
    return _ROLES.get(name.lower())


def to_our_record(row: Any, where: str, size_of: SizeOf) -> OurRecord:
    """Turn a row of any known form into `{"id", "system", "conversations": [{"from", "value"}, …]}`.

    Raises:
        RowFault: a row that is nearly of a known form; `where` begins the sentence.
        ValueError, FileNotFoundError: by `size_of`, for the images of boxes in pixels.
    """
    if isinstance(row, list):
        fail(where, "the row is a list; give each record a row of its own")
    if not isinstance(row, dict):
        return OurRecord(row, "", [])
    _refuse_other_tasks(row, where)
    form = find_form(row)
    if form is None:
        found = ", ".join(map(repr, row)) or "none"
        fail(where, f"the key 'conversations' is missing; there are {found}; {_advise(row)}")
    return _Conversion(row, where, size_of).convert(form)


def _advise(row: Mapping[str, Any]) -> str:
    """Say what to change in a row of no form."""
    pairs = ((("query", "question", "prompt", "instruction"), "query"), (("response", "answer", "output"), "response"))
    given = [(next((name for name in names if name in row), None), name) for names, name in pairs]
    if any(own is None for own, _ in given):
        return "forms that are read: data/README.md"
    changes = " and ".join(f"{own!r} to {name!r}" for own, name in given if own != name)
    return f"a question and its answer are read from 'query' and 'response': rename {changes}"


# Forms


class Form(NamedTuple):
    """How a form is called, the keys that tell it, and what reads its turns.

    `read` gets a row, what messages begin with, and a list for the paths that stand in the turns themselves.
    """

    name: str
    keys: tuple[str, ...]
    read: Callable[[Mapping[str, Any], str, list[str]], list[Any]]


def find_form(row: Any) -> Form | None:
    """Return the first form of `FORMS` whose keys a row has, `image` and the like with something in them."""
    if not isinstance(row, dict):
        return None
    given = {key for key in row if key not in _OPTIONAL or row[key] not in _NOTHING}
    return next((form for form in FORMS if given.issuperset(form.keys)), None)


def _read_turns(row: Mapping[str, Any], where: str, named: list[str]) -> list[Any]:
    """Turns under `conversations`, `conversation` or `messages`: from/value or role/content, or pairs of two sides."""
    key = next(key for key in ("conversations", "messages", "conversation", "texts") if key in row)
    turns: list[Any] = []
    for entry in field_of(row, key, (list,), where):
        turns += _read_entry(entry, f"{where}, turn {len(turns)}", named)
    return turns


def _read_entry(entry: Any, where: str, named: list[str]) -> list[Any]:
    """One entry of a list of turns; what is no turn is left for the reader of our records to name."""
    if not isinstance(entry, dict) or entry.keys() == {"from", "value"}:
        return [entry]
    _refuse_other_tasks(entry, where)
    for key, value in entry.items():
        if value and (_IMAGE_KEY.fullmatch(key) or key in _OTHER_MEDIA):
            fail(where, f"the turn has a key {key!r}, which is not read; name images in the record's 'images'")
    first = next((key for key in ("human", "user") if key in entry and "assistant" in entry), None)
    if first is not None:
        return [_turn(side, text_of(entry, key, where)) for side, key in (("user", first), ("assistant", "assistant"))]
    if "role" not in entry or "from" in entry:
        return [entry]
    role = text_of(entry, "role", where)
    if role_of(role) == "assistant" and (entry.get("weight") == 0 or entry.get("loss") is False):
        fail(where, "the answer asks not to be learnt, and every answer is; leave the turn out")
    if isinstance(entry.get("content"), list):
        return [_turn(role, "".join(_read_part(part, where, named) for part in entry["content"]))]
    return [_turn(role, text_of(entry, "content", where))]


def _read_part(part: Any, where: str, named: list[str]) -> str:
    """One part of a message's content as text; an image is `<image>`, and its path, if it has one, goes to `named`."""
    kind = text_of(part, "type", where)
    if kind in ("text", "input_text", "output_text"):
        return text_of(part, "text", where)
    if kind not in ("image", "image_url", "input_image"):
        fail(where, f"a part of the type {kind!r} is not read; parts are 'text', 'image' and 'image_url'")
    source = next((part[key] for key in ("image", "image_url", "url", "path") if part.get(key)), None)
    if isinstance(source, dict):
        source = text_of(source, "url" if "url" in source else "path", where)
    if source is not None:
        named.append(_path_of(source, kind, where).removeprefix("file://"))
    return "<image>"


def _read_pairs(question: tuple[str, ...], answer: str) -> Callable[[Mapping[str, Any], str, list[str]], list[Any]]:
    """Reader of a form that has its last question and answer under keys of their own, and earlier ones in `history`."""

    def read(row: Mapping[str, Any], where: str, named: list[str]) -> list[Any]:
        turns = []
        for pair in field_of(row, "history", (list,), where) if row.get("history") else ():
            if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
                fail(where, "'history' must be a list of [question, answer]")
            turns += [_turn("user", pair[0]), _turn("assistant", pair[1])]
        asked = [text_of(row, key, where) for key in question if row.get(key) not in (None, "")]
        return [*turns, _turn("user", "\n".join(asked)), _turn("assistant", text_of(row, answer, where))]

    return read


def _read_prompt(row: Mapping[str, Any], where: str, named: list[str]) -> list[Any]:
    """TRL's prompt and completion, each a text or a list of messages."""
    turns: list[Any] = []
    for key, role in (("prompt", "user"), ("completion", "assistant")):
        value = field_of(row, key, (str, list), where)
        entries = [_turn(role, value)] if isinstance(value, str) else value
        for entry in entries:
            turns += _read_entry(entry, f"{where}, {key!r}", named)
    return turns


def _read_caption(row: Mapping[str, Any], where: str, named: list[str]) -> list[Any]:
    """A description as echo840/Detailed_Caption has it, with the question that it was trained with."""
    image = text_of(row, "img_id", where)
    if not image.strip():
        fail(where, "'img_id' is empty")
    question = DETAILED_CAPTION_AS_TRAINED.replace(IMAGE_PLACE, f"<img>{image}</img>")
    return [_turn("user", question), _turn("assistant", text_of(row, "detailed_caption", where))]


def _read_short_caption(row: Mapping[str, Any], where: str, named: list[str]) -> list[Any]:
    """An image and its caption, as tars of images from the web have them, with the question that asks for one."""
    question = CAPTION_AS_TRAINED.replace(IMAGE_PLACE, f"<img>{text_of(row, 'img_id', where)}</img>")
    return [_turn("user", question), _turn("assistant", text_of(row, "caption", where))]


def _turn(role: str, text: str) -> dict[str, str]:
    return {"from": role, "value": text}


FORMS = (
    Form("LLaVA's form ('image' and <image>)", ("conversations", "image"), _read_turns),
    Form("ShareGPT's form ('images' and <image>)", ("conversations", "images"), _read_turns),
    Form("ShareGPT's form ('system')", ("conversations", "system"), _read_turns),
    Form("", ("conversations",), _read_turns),
    Form("ms-swift's form ('messages', 'objects' and <image>)", ("messages", "objects"), _read_turns),
    Form("LLaMA-Factory's and ms-swift's form ('messages', 'images' and <image>)", ("messages", "images"), _read_turns),
    Form("OpenAI's form ('messages')", ("messages",), _read_turns),
    Form("ms-swift's form ('conversation')", ("conversation",), _read_turns),
    Form("FineVision's form ('texts')", ("texts",), _read_turns),
    Form("ms-swift's form ('query' and 'response')", ("query", "response"), _read_pairs(("query",), "response")),
    Form("Alpaca's form", ("instruction", "output"), _read_pairs(("instruction", "input"), "output")),
    Form("TRL's form ('prompt' and 'completion')", ("prompt", "completion"), _read_prompt),
    Form("Detailed_Caption's form ('img_id' and 'detailed_caption')", ("img_id", "detailed_caption"), _read_caption),
    Form("img2dataset's form (an image and its .txt)", ("img_id", "caption"), _read_short_caption),
)
"""Every form that is read; ours has no name. A form with more keys stands before one with fewer of them."""


# What is common to them


def _refuse_other_tasks(row: Mapping[str, Any], where: str) -> None:
    for key, value in row.items():
        if key in _OTHER_TASKS and value not in _NOTHING:
            fail(where, f"{key!r} holds {_OTHER_TASKS[key]}, and training knows nothing of it; leave such records out")
    if row.get("label") is False and ("messages" in row or "completion" in row):
        fail(where, "'label' is false, which marks its answer as a bad one; leave such records out")
    if "conversations" in row and "messages" in row:
        fail(where, "both 'conversations' and 'messages' are there; keep one of them")


def _images_of(row: Mapping[str, Any], where: str) -> list[str]:
    """Paths under `image` or `images`: a path, an object with one, a list of these, or `{"<image_00>": …}`."""
    keys = [key for key in ("image", "images") if row.get(key) not in _NOTHING]
    if not keys:
        return []
    if len(keys) == 2 and row["image"] != row["images"]:
        fail(where, "both 'image' and 'images' name images; keep one of them")
    key, value = keys[0], row[keys[0]]
    if isinstance(value, dict) and all(_PLACE.fullmatch(place) for place in value):
        value = [value[place] for place in sorted(value)]
    return [_path_of(one, key, where) for one in (value if isinstance(value, list) else [value])]


def _path_of(value: Any, key: str, where: str) -> str:
    if isinstance(value, dict):
        if value.get("bytes") or "path" not in value:
            fail(where, f"{key!r} holds an image itself, not its path; save it to a file and give {{'path': …}}")
        value = value["path"]
    if not isinstance(value, str):
        fail(where, f"{key!r} must hold the paths of images, found {kind_of(value)}")
    if "<img>" in value or "</img>" in value:
        fail(where, f"the path {value!r} in {key!r} holds <img> or </img>; rename the file")
    return value


class _Conversion:
    """One row on its way to a record of ours: its turns, and what stands in them for images and boxes."""

    def __init__(self, row: Mapping[str, Any], where: str, size_of: SizeOf) -> None:
        self.row = row
        self.where = where
        self.size_of = size_of
        self.notes: list[str] = []
        self.turns: list[dict[str, str]] = []
        """Those that have a role and a text; what is wrong with another is told when the record is read."""

    def convert(self, form: Form) -> OurRecord:
        images, named = _images_of(self.row, self.where), []  # those of the record's own keys, and those in its turns
        turns = [dict(turn) if isinstance(turn, dict) else turn for turn in form.read(self.row, self.where, named)]
        if images and named:
            self._fail(
                "images are named both in parts of messages and under a key of the record; name them in one place"
            )
        self.turns = [
            turn
            for turn in turns
            if isinstance(turn, dict) and all(isinstance(turn.get(key), str) for key in ("from", "value"))
        ]
        images, name = images or named, form.name
        own = [path for turn in self.turns for path in _OWN_IMAGE.findall(turn["value"])]
        if images and own == images:  # a record of ours that says them twice
            images, name = [], ""
        elif images and own:
            self._fail("<img> stands in a text beside images that are named otherwise; name all in one way")
        if self._place_boxes():
            name = name or "InternVL's form (<box>[[x1, y1, x2, y2]]</box>)"
        self._place_objects(images or own)
        if images:
            self._place_images(images)
        else:
            self._refuse_unread_images(bool(own))
        record = {key: self.row[key] for key in ("id", "system") if self.row.get(key) not in (None, "")}
        return OurRecord({**record, "conversations": turns}, name, self.notes)

    def _fail(self, sentence: str) -> NoReturn:
        fail(self.where, sentence)

    def _note(self, sentence: str) -> None:
        self.notes.append(f"{self.where}: {sentence}")

    def _said_by(self, role: str) -> list[dict[str, str]]:
        return [turn for turn in self.turns if role_of(turn["from"]) == role]

    def _place_boxes(self) -> bool:
        """Write InternVL's `<box>[[x1, y1, x2, y2], …]</box>`, thousandths too, as ours; return whether any was."""

        def ours(match: re.Match) -> str:
            boxes = re.findall(_CORNERS, match[0])
            return "".join(f"<box>({left},{top}),({right},{bottom})</box>" for left, top, right, bottom in boxes)

        changed = 0
        for turn in self.turns:
            turn["value"], count = _BRACKETS.subn(ours, turn["value"])
            changed += count
        return changed > 0

    def _place_objects(self, images: list[str]) -> None:
        """Write the names and boxes of ms-swift's `objects` in the places of `<ref-object>` and `<bbox>`."""
        places = [mark for turn in self.turns for mark in _OBJECT.findall(turn["value"])]
        if not places:
            unread = [key for key in _BOX_KEYS if self.row.get(key)]
            if unread:
                self._note(f"{unread[0]!r} is not read, and no <bbox> in the texts stands for a box of it")
            return
        objects = field_of(self.row, "objects", (dict,), self.where) if self.row.get("objects") else {}
        names, boxes = objects.get("ref") or [], objects.get("bbox") or []
        for mark, given, key in (("<ref-object>", names, "ref"), ("<bbox>", boxes, "bbox")):
            if not isinstance(given, list) or len(given) != places.count(mark):
                count = len(given) if isinstance(given, list) else f"no list of {key}"
                self._fail(f"{places.count(mark)} {mark} in the texts and {count} in 'objects'; give one for each")
        written = {
            "<ref-object>": iter([self._written_name(name) for name in names]),
            "<bbox>": iter([self._written_box(objects, number, images) for number in range(len(boxes))]),
        }
        for turn in self.turns:
            turn["value"] = _OBJECT.sub(lambda match: next(written[match[0]]), turn["value"])

    def _written_name(self, name: Any) -> str:
        if not isinstance(name, str) or _MARKUP.search(name):
            self._fail(f"'ref' in 'objects' must hold names without markup, found {name!r}")
        return f"<ref>{name}</ref>"

    def _written_box(self, objects: Mapping[str, Any], number: int, images: list[str]) -> str:
        """Return a box of `objects`, given in pixels of its image (`bbox_type` "real") or in shares ("norm1")."""
        box = objects["bbox"][number]
        if not (isinstance(box, list) and len(box) == 4 and all(type(value) in (int, float) for value in box)):
            self._fail(
                f"'bbox' in 'objects' holds {box!r}; a box is [left, top, right, bottom], and points are not read"
            )
        kind = objects.get("bbox_type") or "real"
        if kind not in ("real", "norm1"):
            self._fail(f"'bbox_type' is {kind!r}; 'real' (pixels) and 'norm1' (shares of 1) are read")
        width, height = 1, 1
        if kind == "real":
            chosen = objects.get("image_id") or [0] * len(objects["bbox"])
            index = chosen[number] if isinstance(chosen, list) and number < len(chosen) else None
            if type(index) is not int or not 0 <= index < len(images):
                self._fail(f"box {number} of 'objects' is of image {index}, and there are {len(images)} (from 0)")
            width, height = self.size_of(images[index], self.where)
        left, top, right, bottom = box
        if not (0 <= left <= right <= width and 0 <= top <= bottom <= height):
            self._fail(f"the box {box} in 'objects' is no [left, top, right, bottom] inside of its {width}×{height}")
        return marked(None, box, (width, height))

    def _place_images(self, images: list[str]) -> None:
        """Write the images in the places of `<image>` in the users' turns; first of all where there is no place."""
        users = self._said_by("user")
        places = [match for turn in users for match in _PLACE.finditer(turn["value"])]
        answered = any(_PLACE.search(turn["value"]) for turn in self._said_by("assistant"))
        if answered and len(places) != len(images):
            self._fail("an answer holds <image>; images stand in the users' turns, for the model writes text alone")
        if places:
            order = iter(self._order(places, images))
            for turn in users:
                turn["value"] = _PLACE.sub(lambda match: f"<img>{next(order)}</img>", turn["value"])
        elif users:
            users[0]["value"] = "".join(f"<img>{path}</img>" for path in images) + "\n" + users[0]["value"]
            which = "its image is" if len(images) == 1 else f"its {len(images)} images are"
            self._note(f"no <image> in the users' turns, so {which} put first")

    def _order(self, places: list[re.Match], images: list[str]) -> list[str]:
        """Return the images in the order of their places, which may be numbered from 1 or from 0."""
        if len(places) != len(images):
            self._fail(f"{len(places)} <image> in the users' turns and {len(images)} images; give one for each")
        numbers = [int(place[1]) for place in places if place[1]]
        if not numbers:
            return images
        first = min(numbers)
        if first > 1 or sorted(numbers) != list(range(first, first + len(images))):
            written = ", ".join(place[0] for place in places)
            self._fail(f"the places {written} do not name each of the {len(images)} images once; number them from 1")
        return [images[number - first] for number in numbers]

    def _refuse_unread_images(self, own: bool) -> None:
        """Fail where a row without images under a known key seems to have some; `own`: it names others by `<img>`."""
        named = None if own else next((key for key in self.row if self.row[key] and _IMAGE_KEY.fullmatch(key)), None)
        places = sum(len(_PLACE.findall(turn["value"])) for turn in self._said_by("user"))
        if places:
            hint = f"rename {named!r} to 'images'" if named else "name them in 'images', or write <img>path</img>"
            self._fail(f"{places} <image> in the users' turns and no image for it; {hint}")
        if named:
            self._fail(f"{named!r} seems to name an image and is not read; rename it to 'images'")
        if own:
            return
        media = next((key for key in _OTHER_MEDIA if self.row.get(key)), None)
        if media:
            self._fail(f"{media!r} names {_OTHER_MEDIA[media]}, and only images are trained on; leave such records out")
        for key, value in self.row.items():
            first = value[0] if isinstance(value, list) and value else value
            if key != "id" and isinstance(first, str) and _IMAGE_FILE.fullmatch(first):
                self._note(f"{key!r} names {first[:80]!r}, which may be an image, and is not read")


# Other projects' signs in a text

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
_ANY_MARKER = re.compile("|".join(pattern for _, _, pattern in _MARKERS))


def find_foreign_markers(text: str) -> list[Marker]:
    """Return the signs of a text in their order; `meaning` says what each stands for elsewhere.

    Our tokenizer would read such signs as mere characters, or, where they are Qwen's own control tokens, as those.
    Signs that this project trains on (`<img>path</img>`, `<ref>`, `<box>`, `<quad>`) are not among them.
    """
    return [_classify(match.group(), match.start()) for match in _ANY_MARKER.finditer(text)]


def _classify(sign: str, start: int) -> Marker:
    meaning, is_certain = next(row[:2] for row in _MARKERS if re.fullmatch(row[2], sign))
    return Marker(sign, start, meaning, is_certain)
