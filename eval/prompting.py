"""Which prompt a task is asked with: the one as trained, the one of the published script, or the user's own."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from eval.tasks import Task
from monkey.conversation import Text, split_box_markers
from monkey.data.foreign import IMAGE, PLACE, find_foreign_markers
from monkey.prompts import AS_TRAINED, IMAGE_PLACE, PUBLISHED

QUESTION_PLACE = "{question}"
_MARKS = re.compile("(</?(?:ref|box|quad)>)")
"""Control tokens that a form may hold, Qwen-VL's marks of what is asked for and of where it is."""

_HOW_TO_ASK_FOR_BOXES = (
    'to ask for a box, make the bare phrase the question and give the set prompt = "region" in a .toml file'
)


@dataclass(frozen=True)
class PromptForm:
    """A prompt with the place of its question open. Every byte matters, spaces at the ends included."""

    name: str
    text: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode("utf-8")).hexdigest()

    def ask(self, question: str) -> str:
        """The prompt with the question in its place; braces in the question mean nothing."""
        return self.text.replace(QUESTION_PLACE, question)

    def parts(self, question: str) -> list[Text]:
        """The prompt behind the image's place.

        Control tokens are the marks that the form itself holds; in the question they are characters like any other.
        """
        parts = split_box_markers(self.text.removeprefix(IMAGE_PLACE))
        return [part if part.trusted else Text(part.text.replace(QUESTION_PLACE, question)) for part in parts]


def find_inert_sign(question: str) -> str | None:
    """A sentence on the first sign in a question that models know and that stays characters here; None without one."""
    own = [(found.start(), found.group(), PLACE) for found in _MARKS.finditer(question)]
    signs = [*own, *((found.start, found.text, found.meaning) for found in find_foreign_markers(question))]
    if not signs:
        return None
    _, sign, meaning = min(signs)
    ways_out = {IMAGE: "the image stands in 'image': leave the sign out", PLACE: _HOW_TO_ASK_FOR_BOXES}
    return f"the question holds {sign!r}, which is read as characters; {ways_out.get(meaning, 'leave it out')}"


def asks_for_boxes_in_vain(task: Task) -> str | None:
    """A sentence on a task whose answers should be boxes and whose prompt does not ask for any; None for another."""
    if task.metric != "box_overlap" or "<ref>" in task.forms[AS_TRAINED]:
        return None
    return f"task {task.name}: its metric is box_overlap, and its prompt has no <ref>; {_HOW_TO_ASK_FOR_BOXES}"


def prompt_form(task: Task, choice: str) -> PromptForm:
    """The form that `--prompt` chooses for a task: 'as-trained', 'published', or the path of a text file.

    A file is taken to the byte, but for one line break at its end, which editors add unasked. A user's task that has a
    prompt of its own is asked with it unless a file is given. The place of the question may be missing only where the
    task's own prompt has none either, as for captions.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the prompt does not begin with the image's place, or does not hold the question's place once.
    """
    ours = task.forms
    if choice in ours:
        text, source = ours[choice], f"task {task.name}: its prompt"
    else:
        text, source = _read_prompt(Path(choice)), f"--prompt {choice}"
    if not text.startswith(IMAGE_PLACE) or text.count(IMAGE_PLACE) != 1:
        raise ValueError(f"{source} must begin with the image's place, {IMAGE_PLACE}, and hold it only there")
    places = text.count(QUESTION_PLACE)
    if task.prompt_text is None and QUESTION_PLACE not in ours[AS_TRAINED]:
        if places:
            raise ValueError(f"{source} holds {QUESTION_PLACE}, and {task.name} asks for a caption without a question")
    elif places != 1:
        raise ValueError(f"{source} must hold {QUESTION_PLACE} once; it holds it {places} times")
    return PromptForm(choice, text)


def _read_prompt(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"--prompt {path}: neither {AS_TRAINED!r} nor {PUBLISHED!r} nor a text file")
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompt {path} is not UTF-8 text ({error})") from error
    return text.removesuffix("\n").removesuffix("\r")
