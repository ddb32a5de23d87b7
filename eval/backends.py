"""Who answers: the protocol of a backend, and those that need no model here.

`oracle` answers with the best reference and `echo` with the question: they run everything but the model, so that a
run's accounting, journal and ceilings can be tried and tested in seconds. `replay` scores answers that stand in a file,
and `openai` asks a server. `hf`, the default, is `eval.model_backend` for Monkey and `eval.chat_backend` for others'
models; it is imported where it is asked for.
"""

from __future__ import annotations

import base64
import functools
import io
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from eval.metrics import best_answer
from eval.run_folder import PREDICTIONS, STOPPED_AT_END, STOPPED_AT_LENGTH
from eval.tasks import PromptForm, Task
from monkey.completions_client import CompletionsClient, ServerGone
from monkey.conversation import Conversation, Image, Message, Part, Text
from monkey.data.records import Question
from monkey.data.rows import IndexedRows
from monkey.images import FORMATS, open_image
from monkey.prompts import IMAGE_PLACE
from monkey.provenance import file_digest


@dataclass(frozen=True)
class Shot:
    """An example that is shown before a question: an image, what is asked about it, and the answer."""

    image: Path
    question: str
    answer: str


@dataclass(frozen=True)
class Request:
    """One question to be answered: a row of a task with the form of its prompt, and examples to show before it."""

    task: Task
    question: Question
    form: PromptForm
    shots: tuple[Shot, ...] = ()

    @property
    def row(self) -> int:
        return self.question.row

    @property
    def prompt(self) -> str:
        """The exact prompt, with each image's place as `<img></img>`."""
        return self.conversation.messages[0].text

    @property
    def images(self) -> tuple[Path, ...]:
        """The images in the order of their places; the question's own is the last."""
        return tuple(self.conversation.images)

    @functools.cached_property
    def conversation(self) -> Conversation:
        """One message: each example with its answer behind its image, then the question behind its own.

        As in the published evaluator an answer stands after a blank, and nothing stands between examples and question.
        Control tokens are the images' places and the marks that the prompt's form holds; what users wrote is inert.
        """
        parts: list[Part] = []
        for shot in self.shots:
            asked = self.form.ask(shot.question)
            blank = "" if asked[-1:].isspace() else " "
            parts += [Image(shot.image), Text(f"{asked}{blank}{shot.answer}".removeprefix(IMAGE_PLACE))]
        return Conversation((Message("user", (*parts, *self._ask(self.question.image, self.question.question))),))

    @property
    def turns(self) -> Conversation:
        """The same for a chat template: each example is a turn of the user's and one of the assistant's."""
        messages = []
        for shot in self.shots:
            messages.append(Message("user", self._ask(shot.image, shot.question)))
            messages.append(Message("assistant", (Text(shot.answer),)))
        return Conversation((*messages, Message("user", self._ask(self.question.image, self.question.question))))

    def _ask(self, image: Path, question: str) -> tuple[Part, ...]:
        return Image(image), *self.form.parts(question)


def parts_of(message: Message) -> list[Path | str]:
    """Return a message as images and texts in their order, for models that know no marks of ours."""
    parts: list[Path | str] = []
    for part in message.parts:
        if isinstance(part, Image):
            parts.append(part.source)
        elif parts and isinstance(parts[-1], str):
            parts[-1] += part.text
        else:
            parts.append(part.text)
    return parts


@dataclass(frozen=True)
class Answer:
    """What a backend answered to a row.

    `raw` is the text as generated, `tokens` its length without the end-of-text token, `stop` why it ended: 'end' or
    'length'.
    """

    row: int
    raw: str
    tokens: int
    stop: str


@dataclass(frozen=True)
class Failure:
    """A row that could not be asked, and why, in a sentence."""

    row: int
    reason: str


class Backend(Protocol):
    """What a run needs of whoever answers.

    `settings` is everything but prompt and model that an answer depends on; it is recorded and is part of an answer's
    key. `fingerprint` stands for the model's bytes. `device` is recorded only; None without a model.

    A backend may have `work`, figures that only grow (`vision_seconds`, `prefill_tokens`, …): a run records by how
    much they grew, and those named `peak_…` as they are. One that reads answers from a file may have
    `foreign_answers(task, ids, count)`: the ids there that are not among the `ids` of the task's `count` questions. One
    whose images differ in shape may have `image_grids(images)`: rows and columns of the windows of each. One that asks
    through a chat template has `asks_in_turns`, and shows examples as turns.

    `torch.OutOfMemoryError` from `generate_answers` makes a run go on with smaller batches.
    """

    name: str
    settings: dict[str, Any]
    fingerprint: str
    device: str | None

    def batches(self, requests: Sequence[Request], batch_size: int) -> Iterable[Any]:
        """The requests in batches, each prepared as far as it can be ahead of its turn."""
        ...

    def generate_answers(self, batch: Any) -> list[Answer | Failure]:
        """An answer or a failure for every request of a batch."""
        ...


def growth(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """By how much each figure of a backend's `work` grew; a peak stays as it is."""
    return {name: value if name.startswith("peak_") else value - before.get(name, 0) for name, value in after.items()}


def in_batches(requests: Sequence[Request], batch_size: int) -> Iterator[Sequence[Request]]:
    for start in range(0, len(requests), batch_size):
        yield requests[start : start + batch_size]


class OracleBackend:
    """Answers with the reference that scores best under the task's headline variant."""

    name = fingerprint = "oracle"
    device = None

    def __init__(self) -> None:
        self.settings: dict[str, Any] = {}

    def batches(self, requests: Sequence[Request], batch_size: int) -> Iterable[Sequence[Request]]:
        return in_batches(requests, batch_size)

    def generate_answers(self, batch: Sequence[Request]) -> list[Answer | Failure]:
        return [self._answer(request) for request in batch]

    def _answer(self, request: Request) -> Answer:
        text, _ = best_answer(request.task.metric, request.task.headline, request.question.answers)
        return Answer(request.row, text, len(text.split()), STOPPED_AT_END)


class EchoBackend(OracleBackend):
    """Answers with the question."""

    name = fingerprint = "echo"

    def _answer(self, request: Request) -> Answer:
        text = request.question.question
        return Answer(request.row, text, len(text.split()), STOPPED_AT_END)


# Answers that stand in a file

ID_KEYS = ("question_id", "questionId", "qid", "id", "image")
"""What an id is called, by precedence; the published script writes the ids of some tasks under `image`."""

ANSWER_KEYS = ("raw", "answer", "prediction", "response")


class Prediction(NamedTuple):
    """An answer of a file. `question_id` is the id's text, None where answers come in the order of the questions."""

    question_id: str | None
    raw: str
    tokens: int
    stop: str
    references: tuple[str, ...] | None
    source: str


class ReplayBackend(OracleBackend):
    """Answers with what a file says, whoever wrote it: none where it has none, two where it has two.

    Read are our predictions.jsonl, the published script's `<task>.json`, and any JSON list or JSONL of objects with an
    id and an answer.

    Args:
        place: a file for one task, or a folder: a run's, or one that holds `<task>.json` or `<task>.jsonl`.
        task_names: the tasks that will be asked.

    Raises:
        FileNotFoundError: no such file, or a task's is not in the folder.
        ValueError: a row without an answer, rows of which only some have an id, or a file for several tasks.
    """

    name = "replay"

    def __init__(self, place: Path, task_names: Sequence[str]):
        super().__init__()
        files = {name: find_predictions(place, name, len(task_names)) for name in task_names}
        self._predictions = {name: read_anyones_predictions(path) for name, path in files.items()}
        digests = {name: file_digest(path) for name, path in files.items()}
        self.fingerprint = next(iter(digests.values())) if len(digests) == 1 else json.dumps(digests, sort_keys=True)

    def generate_answers(self, batch: Sequence[Request]) -> list[Answer | Failure]:
        return [answer for request in batch for answer in self._answers_to(request)]

    def foreign_answers(self, task: str, ids: frozenset[str], count: int) -> list[str]:
        """Ids, and places beyond the last question, that no question of the task's file has, selected or not."""
        found = self._predictions[task]
        beyond = [found[key][0].source for key in found if isinstance(key, int) and key >= count]
        return [*sorted(key for key in found if isinstance(key, str) and key not in ids), *beyond]

    def _answers_to(self, request: Request) -> list[Answer]:
        found, asked = self._predictions[request.task.name], request.question
        by_place = found.get(request.row, [])
        for one in by_place:
            # Without an id only the references tell that a file is of these questions and in their order.
            if one.references not in (None, asked.answers):
                raise ValueError(
                    f"{one.source}: its references are {list(one.references)} and those of {asked.source} "
                    f"{list(asked.answers)}; answers without an id must be in the order of the questions"
                )
        given = [*by_place, *found.get(str(asked.question_id), [])]
        return [Answer(request.row, one.raw, one.tokens, one.stop) for one in given]


def find_predictions(place: Path, task_name: str, number_of_tasks: int) -> Path:
    """Return the file with the answers to a task."""
    if place.is_dir():
        candidates = [place / task_name / PREDICTIONS, place / f"{task_name}.jsonl", place / f"{task_name}.json"]
        for path in candidates:
            if path.is_file():
                return path
        raise FileNotFoundError(f"--predictions {place} has none of {', '.join(map(str, candidates))}")
    if not place.is_file():
        raise FileNotFoundError(f"--predictions {place}: no such file or folder")
    if number_of_tasks > 1:
        raise ValueError(f"--predictions {place} is one file for {number_of_tasks} tasks; give a folder of <task>.json")
    return place


def read_anyones_predictions(path: Path) -> Mapping[str | int, list[Prediction]]:
    """Return the answers of a file by the id's text or, where there are no ids, by their place.

    Raises ValueError naming file and line.
    """
    read = [_read_prediction(fields, source) for source, fields in IndexedRows(path)]
    found: dict[str | int, list[Prediction]] = {}
    for place, one in enumerate(read):
        if (one.question_id is None) != (read[0].question_id is None):
            raise ValueError(
                f"{one.source}: some rows have an id and some none; it is called one of {', '.join(ID_KEYS)}"
            )
        found.setdefault(place if one.question_id is None else one.question_id, []).append(one)
    return found


def _read_prediction(fields: Any, source: str) -> Prediction:
    if not isinstance(fields, dict):
        raise ValueError(f"{source}: expected an object with an id and an answer, found {type(fields).__name__}")
    key = next((key for key in ANSWER_KEYS if key in fields), None)
    if key is None:
        raise ValueError(f"{source}: there is no answer; it is called one of {', '.join(ANSWER_KEYS)}")
    raw = fields[key]
    if type(raw) not in (str, int):
        hint = f" ({raw}); write it in quotes" if isinstance(raw, float) else ""
        raise ValueError(f"{source}: {key!r} must be a text, found {type(raw).__name__}{hint}")
    id_key = next((key for key in ID_KEYS if key in fields), None)
    identifier = fields.get(id_key)
    if type(identifier) not in (int, str, type(None)):
        raise ValueError(f"{source}: {id_key!r} must be a text or a whole number, found {type(identifier).__name__}")
    references, tokens, stop = fields.get("annotation"), fields.get("tokens"), fields.get("stop")
    references = [references] if isinstance(references, str) else references
    return Prediction(
        None if identifier is None else str(identifier),
        str(raw),
        tokens if isinstance(tokens, int) else len(str(raw).split()),
        stop if stop in (STOPPED_AT_END, STOPPED_AT_LENGTH) else STOPPED_AT_END,
        tuple(references) if isinstance(references, list) else None,
        source,
    )


# A server

SENT_AS_THEY_ARE = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif"}


class OpenAIBackend:
    """Answers of a model behind a server that speaks OpenAI's chat completions: vLLM, SGLang, llama.cpp, hosted ones.

    Images are sent as base64, requests run side by side. The key is sent to the given address only, and stands in no
    file and no message.

    Args:
        base_url: the address up to and without `/chat/completions`, for example http://localhost:8000/v1.
        model: the name that the server knows it by; None takes the only one that it lists.
        api_key: sent as a bearer token; None sends none.
        concurrency: requests at a time.
        attempts: how often a request is sent at most.
        timeout: seconds until an answer must have come.

    Raises:
        ValueError: the address is not of http or https, or the server lists several models and none is named.
        ServerGone: nothing answers there, or the key is refused.
    """

    name = "openai"
    device = None

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        api_key: str | None = None,
        concurrency: int = 8,
        attempts: int = 6,
        timeout: float = 300.0,
    ):
        self._client = CompletionsClient(base_url, api_key, attempts, timeout)
        self.base_url = self._client.base_url
        listed = self._client.listed_models()
        if model is None:
            if len(listed) != 1:
                found = f"{len(listed)} models ({', '.join(listed[:9])})" if listed else "no model"
                raise ValueError(
                    f"{self.base_url} lists {found}; name one as --served-model{self._client.ending_missing}"
                )
            model = listed[0]
        self.model = model
        # What stands behind a name can change without a sign; the address and the name are all there is to tell.
        self.fingerprint = f"{self.base_url} {model}"
        described = self._client.described_model(model)
        is_ours = isinstance(described, dict) and "plain" in (described.get("forms") or ())
        # With these our own server writes a prompt as `hf` does and leaves out what it does; other servers know none.
        as_asked = {"form": "decoder" if "decoder" in described["forms"] else "plain"} if is_ours else {}
        plain = {**as_asked, "skip_special_tokens": True} if is_ours else {}
        self.settings: dict[str, Any] = {"temperature": 0, **plain}
        self.asks_in_turns = self.settings.get("form") != "plain"
        self._concurrency = concurrency
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="openai")

    def batches(self, requests: Sequence[Request], batch_size: int) -> Iterator[list[Future]]:
        """Batches of answers on their way; as many requests ahead as keep the server busy."""
        ahead: deque[list[Future]] = deque()
        try:
            for batch in in_batches(requests, batch_size):
                ahead.append([self._pool.submit(self._answer, request) for request in batch])
                while sum(map(len, ahead)) - len(ahead[0]) >= self._concurrency:
                    yield ahead.popleft()
            while ahead:
                yield ahead.popleft()
        finally:
            for future in (future for futures in ahead for future in futures):
                future.cancel()

    def generate_answers(self, batch: Sequence[Future]) -> list[Answer | Failure]:
        try:
            return [future.result() for future in batch]
        finally:
            for future in batch:
                future.cancel()

    def _answer(self, request: Request) -> Answer | Failure:
        client = self._client
        try:
            asked = request.turns if self.asks_in_turns else request.conversation
            messages = [{"role": message.role, "content": message_content(message)} for message in asked.messages]
            limits = {"max_tokens": request.task.max_new_tokens, **self.settings}
            status, reply = client.complete({"model": self.model, "messages": messages, **limits})
            if status == 200:
                return _read_completion(request.row, reply)
            reason = f"{self.base_url} answers {status}: {client.said(reply)}"
        except ServerGone:
            raise
        except TimeoutError:
            reason = f"no answer within {client.timeout:g} seconds, {client.attempts} times"
        except (OSError, ValueError) as error:
            reason = str(error)
        return Failure(request.row, f"{request.question.source}: {reason}")


def _read_completion(row: int, reply: bytes) -> Answer:
    """Return the answer in a chat completion; ValueError where it is none."""
    try:
        completion = json.loads(reply)
        choice = completion["choices"][0]
        text = choice["message"]["content"] or ""
        tokens = (completion.get("usage") or {}).get("completion_tokens", len(text.split()))
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"the server's answer is not a chat completion ({error})") from error
    return Answer(row, text, tokens, STOPPED_AT_LENGTH if choice.get("finish_reason") == "length" else STOPPED_AT_END)


def message_content(message: Message) -> str | list[dict[str, Any]]:
    """Return a message's content in OpenAI's form: an assistant's text, or images and texts in their order.

    Raises OSError or ValueError when an image does not open.
    """
    if message.role == "assistant":
        return message.text
    return [
        {"type": "image_url", "image_url": {"url": data_url(part)}}
        if isinstance(part, Path)
        else {"type": "text", "text": part}
        for part in parts_of(message)
    ]


def data_url(path: Path) -> str:
    """Return an image file as a URL that holds it: its own bytes where servers read the format, else as PNG."""
    from PIL import Image

    with Image.open(path, formats=FORMATS) as image:
        image.load()
        kind = SENT_AS_THEY_ARE.get(image.format or "")
    if kind is not None:
        content = path.read_bytes()
    else:
        kind, stream = "image/png", io.BytesIO()
        open_image(path).save(stream, "PNG")
        content = stream.getvalue()
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"
