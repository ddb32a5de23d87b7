"""The demo: a page in the browser to ask one model, or two side by side, about images; for many people at once."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Read when gradio is imported: with it on, the demo would call its makers' servers at every start.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr
from PIL import Image
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from monkey.boxes import drawn, located
from monkey.decoding import Decoding, decoding_of
from monkey.serving import demo_page as view
from monkey.serving.access import Access, bind
from monkey.serving.attention_maps import draw_heat, draw_views, grid_of
from monkey.serving.demo_answers import (
    FAULTS,
    REDUCED_NEW_TOKENS,
    Answer,
    Choice,
    Exchange,
    FileSet,
    ImageStore,
    KeptImage,
    Models,
    as_json,
    as_markdown,
    grow_answers,
    last_images,
    messages_for,
)
from monkey.serving.demo_texts import say

if TYPE_CHECKING:
    from monkey.serving.session import Answerer

MOST_IMAGES = 8
"""Images of one question."""

LONGEST_LINE = 32
"""People whose questions wait at the same time; whoever comes after is told that the queue is full."""

HEAT_AT_ONCE = 2
"""How many may have images of attention made at the same time."""

SHOW_EVERY_SECONDS, LOOK_AGAIN_SECONDS = 0.05, 0.25
"""How often a page is told of a growing answer at most, and how often a question looks whether the model is open."""

KEEP_SECONDS, CHECK_EVERY_SECONDS = 3600, 60
"""How old files get, and how often old ones are looked for."""

SHOW_ERROR_SECONDS = 2.5
"""Pages that are open ask every second how far the model is."""

MAX_BODY_BYTES = 2**20
"""Longest body of a request that brings no files: a question has a few thousand characters."""

UPLOAD_PATH = "/gradio_api/upload"
"""gradio's route for uploads, which reads files out of a form and never a JSON body. It bounds their size itself."""

LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")

# preprocess=False: gradio would decode an image before it calls us, and show its own error where ours is a sentence.
# That an uploaded file is what an image names is checked by gradio all the same.
OF_THE_PAGE = {"queue": False, "show_progress": "hidden", "api_visibility": "private", "preprocess": False}


class Refusal(Exception):
    """A sentence for the page, in the reader's language, about something that cannot be done."""


class Demo:
    """What happens when people act: events of the page give new values by component.

    Nothing about a person is kept outside the page's own session state but their images, which `ImageStore` keeps under
    the name of the session.

    Args:
        models: one, or two that answer side by side; may still be on their way.
        answers_at_once: questions that the models are asked at the same time; others wait in line.
    """

    def __init__(self, models: Models, images: ImageStore, answers_at_once: int = 8):
        self.models, self.images = models, images
        delete_cache = (CHECK_EVERY_SECONDS, KEEP_SECONDS)
        with gr.Blocks(title="Monkey", analytics_enabled=False, delete_cache=delete_cache) as self.app:
            self.page = view.Page(models)
            self._connect_answers(answers_at_once)
            self._connect_conversation()
            self._connect_images()
        self._list_files()
        self.app.queue(max_size=LONGEST_LINE)

    def _list_files(self) -> None:
        """Tell gradio which files it deletes when they are old; its own plain sets would stop it while they grow."""
        self.app.upload_file_set = FileSet()
        self.app.temp_file_sets = [self.app.upload_file_set, self.images.files]
        for block in self.app.blocks.values():
            block.temp_files = FileSet(block.temp_files)
            self.app.temp_file_sets.append(block.temp_files)

    def _connect_answers(self, at_once: int) -> None:
        """Connect what makes the models answer, and what ends it."""
        page = self.page
        shown = [*page.chats, page.conversation, page.notice, page.question, page.tray]
        rest = [page.conversation, page.language, *page.settings]
        of_the_models = {
            "concurrency_limit": at_once,
            "concurrency_id": "models",
            "preprocess": False,
            "show_progress": "minimal",
            "show_progress_on": page.chats,
            "trigger_mode": "once",
        }
        answers = [
            gr.on(triggers, do, [*given, *rest], shown, api_name=name, **of_the_models)
            for name, triggers, do, given in (
                ("ask", [page.ask.click, page.question.submit], self.ask, [page.tray, page.question]),
                ("describe", [page.describe.click], self.describe, [page.tray, page.prompt]),
                ("retry", [page.retry.click], self.retry, []),
            )
        ]
        begun = [page.ask.click, page.question.submit, page.describe.click, page.retry.click]
        gr.on(begun, None, js=view.SHOW_CHATS)
        # Where the last answer looked is old as soon as there is another question; the windows of images are not.
        asked, inside = [page.tray, page.conversation, page.language], [page.inside, page.counts]
        gr.on([*begun, page.tray.change], self.show_views, asked, inside, **OF_THE_PAGE)
        told = [page.conversation, page.language]
        for button, do, given, changed in (
            (page.stop, self.stop, told, shown),
            (page.edit, self.edit, told, [*shown, page.prompt]),
            (page.clear, self.clear, [page.language], [*shown, *inside]),
        ):
            button.click(None, cancels=answers).then(do, given, changed, **OF_THE_PAGE)

    def _connect_conversation(self) -> None:
        page = self.page
        for button in page.to_try:
            button.click(None, button, page.question, js="(question) => question")
            button.click(None, js=view.SHOW_COMPOSER)
        for button, do, given, kind, name in (
            (page.markdown, self.markdown, [page.conversation, page.language], "text/markdown", "conversation.md"),
            (page.json, self.json, [page.conversation], "application/json", "conversation.json"),
        ):
            button.click(do, given, page.taken_along, **OF_THE_PAGE).then(
                None, page.taken_along, js=view.DOWNLOAD % (kind, name)
            )
        self.app.load(None, None, page.language, js=view.AT_LOADING)
        status = [page.model, page.clock]
        gr.on([page.clock.tick, page.language.change], self.status, page.language, status, **OF_THE_PAGE)

    def _connect_images(self) -> None:
        page = self.page
        page.tray.upload(self.take, [page.tray, page.language], [page.tray, page.notice], **OF_THE_PAGE)
        chosen = [page.tray, page.question, page.notice, page.examples]
        page.examples.select(self.take_example, [page.tray, page.language], chosen, **OF_THE_PAGE).then(
            None, js=view.SHOW_COMPOSER
        )
        asked, inside = [page.tray, page.conversation, page.language], [page.inside, page.counts]
        drawing = {"concurrency_limit": HEAT_AT_ONCE, "concurrency_id": "inside", "trigger_mode": "once"}
        drawing |= {"preprocess": False, "show_progress_on": page.inside}
        page.show_views.click(self.show_views, asked, inside, api_name="views", **drawing)
        page.show_heat.click(self.show_heat, asked[1:], inside, api_name="heat", **drawing)
        self.app.unload(self.leave)

    # Questions

    def ask(
        self, request: gr.Request, tray: Any, question: Any, conversation: list[Exchange], language: Any, *settings: Any
    ) -> Iterator[dict]:
        """Answer a question about the images of the tray and of the conversation."""
        yield from self._answer(request, tray, question, conversation, language, settings, is_description=False)

    def describe(
        self, request: gr.Request, tray: Any, prompt: Any, conversation: list[Exchange], language: Any, *settings: Any
    ) -> Iterator[dict]:
        """Describe the images of the tray, or those that were shown last."""
        yield from self._answer(request, tray, prompt, conversation, language, settings, is_description=True)

    def _answer(
        self, request: gr.Request, tray: Any, text: Any, conversation: list[Exchange], language: Any,
        settings: Sequence[Any], is_description: bool,
    ) -> Iterator[dict]:  # fmt: skip
        """Give the page after every piece of an answer, or with what is wrong with the question."""
        with self._person(request) as person:
            try:
                asked = _checked_question(text, "no_prompt" if is_description else "no_question", language)
                decoding = self._decoding(settings, is_description, language)
                images = self._images(person, tray, language)
                if not images and not last_images(conversation):
                    raise Refusal(say(language, "no_image"))
            except Refusal as refusal:
                yield self._show(conversation, language, str(refusal))
            else:
                exchange = Exchange(asked, tuple(images), decoding, is_description, [])
                yield from self._converse(person, conversation, exchange, conversation, language)

    def retry(self, request: gr.Request, conversation: list[Exchange], language: Any, *settings: Any) -> Iterator[dict]:
        """Answer the last question once more, with the settings of now."""
        try:
            if not conversation:
                raise Refusal(say(language, "nothing_to_repeat"))
            last = conversation[-1]
            decoding = self._decoding(settings, last.is_description, language)
        except Refusal as refusal:
            yield self._show(conversation, language, str(refusal))
        else:
            again = replace(last, decoding=decoding, answers=[])
            with self._person(request) as person:
                yield from self._converse(person, conversation[:-1], again, conversation, language)

    def _converse(
        self, person: str, earlier: list[Exchange], exchange: Exchange, before: list[Exchange], language: Any
    ) -> Iterator[dict]:
        """Give the conversation as the answers grow, or `before` and the question where there is none in the end."""
        page, conversation = self.page, [*earlier, exchange]
        exchange.answers = [Answer() for _ in self.models.choices]
        boxes = {} if exchange.is_description else {page.question: ""}
        yield {**self._show(conversation, language), page.tray: [], **boxes}
        try:
            while self.models.is_opening:
                yield self._show(conversation, language, view.opening(self.models, language))
                time.sleep(LOOK_AGAIN_SECONDS)
            shown_at = 0.0
            for _ in grow_answers(self._open_models(language), conversation):
                if time.monotonic() - shown_at >= SHOW_EVERY_SECONDS:
                    shown_at = time.monotonic()
                    yield self._show(conversation, language)
            fault = " ".join(self._faults(exchange, language))
            self._draw_boxes(person, conversation, language)
        except Refusal as refusal:
            fault = str(refusal)
        if fault and exchange.is_empty:
            boxes = {} if exchange.is_description else {page.question: exchange.asked}
            yield {**self._show(before, language, fault), page.tray: view.tray_of(exchange.images), **boxes}
        else:
            yield self._show(conversation, language, fault)

    def _faults(self, exchange: Exchange, language: Any) -> Iterator[str]:
        for place, answer in enumerate(exchange.answers):
            if answer.is_reduced and answer.fault is None:
                yield self._name(place, say(language, "reduced", limit=REDUCED_NEW_TOKENS))
            elif answer.fault is not None:
                text = next(text for kind, text in FAULTS.items() if isinstance(answer.fault, kind))
                yield self._name(place, say(language, text, reason=answer.fault))

    def _draw_boxes(self, person: str, conversation: list[Exchange], language: Any) -> None:
        """Draw the boxes of the last answers on the image that was shown last, as Qwen-VL's code draws them."""
        for answer in conversation[-1].answers:
            if boxes := located(answer.text):
                image = self._open_kept(last_images(conversation)[-1], language)
                with contextlib.suppress(FileNotFoundError):  # cleared meanwhile
                    answer.drawn = str(self.images.draw(person, drawn(image, boxes)))

    def stop(self, conversation: list[Exchange], language: Any) -> dict:
        """Mark as stopped what is not finished."""
        for answer in conversation[-1].answers if conversation else ():
            answer.is_stopped |= not answer.is_finished
            answer.is_finished = True
        return self._show(conversation, language)

    def edit(self, conversation: list[Exchange], language: Any) -> dict:
        """Take the last question back into the box it came from."""
        if not conversation:
            return self._show(conversation, language, say(language, "nothing_to_repeat"))
        last, box = conversation[-1], self.page.prompt if conversation[-1].is_description else self.page.question
        return {**self._show(conversation[:-1], language), self.page.tray: view.tray_of(last.images), box: last.asked}

    def clear(self, request: gr.Request, language: Any) -> dict:
        """Forget the conversation and delete its images."""
        self.leave(request)
        page = self.page
        emptied = {
            page.question: "",
            page.tray: [],
            page.inside: "",
            page.counts: view.lines([say(language, "sees_hint")]),
        }
        return {**self._show([], language), **emptied}

    def leave(self, request: gr.Request) -> None:
        """Delete the images of somebody who goes."""
        self.images.forget(request.session_hash or "")

    # Images

    def take(self, request: gr.Request, tray: Any, language: Any) -> dict:
        """Keep the images that have just come into the tray, and say what is wrong with the others."""
        faults, kept = [], []
        with self._person(request) as person:
            for file in _files(tray):
                try:
                    kept.append(self._keep(person, file, language))
                except Refusal as refusal:
                    faults.append(str(refusal))
        if len(kept) > MOST_IMAGES:
            faults.append(say(language, "many_images", count=len(kept), limit=MOST_IMAGES))
        shown = view.tray_of(kept[:MOST_IMAGES])
        return {self.page.tray: shown, self.page.notice: view.notice_of(" ".join(faults))}

    def take_example(self, request: gr.Request, chosen: gr.EventData, tray: Any, language: Any) -> dict:
        """Put an example into the tray, and its question into the box."""
        path, question = view.examples()[chosen.index]
        again = {self.page.examples: gr.Gallery(selected_index=None)}  # it can be chosen once more
        with self._person(request) as person:
            try:
                kept = self._images(person, tray, language, more=1)
            except Refusal as refusal:
                return {**again, self.page.notice: view.notice_of(str(refusal))}
            kept.append(self.images.add(person, path.read_bytes(), path.name, self.models.open_image))
        shown = {self.page.tray: view.tray_of(kept), self.page.question: question}
        return {**again, **shown, self.page.notice: view.notice_of("")}

    def show_views(self, request: gr.Request, tray: Any, conversation: list[Exchange], language: Any) -> dict:
        """Draw the views of the images of the tray, or of those that were shown last."""
        shown, counts = [], []
        with self._person(request) as person:
            try:
                images = self._images(person, tray, language) or last_images(conversation)
                if not images:
                    raise Refusal(say(language, "sees_nothing"))
                for place, answerer in enumerate(self._open_models(language)):
                    drawn_views, told = self._views(answerer, images, language)
                    shown += [(sheet, self._name(place, caption)) for sheet, caption in drawn_views]
                    counts.append(self._name(place, told))
            except Refusal as refusal:
                shown, counts = [], [str(refusal)]
            return self._look(person, shown, counts)

    def _views(
        self, answerer: Answerer, images: Sequence[KeptImage], language: Any
    ) -> tuple[list[tuple[Image.Image, str]], str]:
        """Return the views of images with their captions, and the sentence that counts windows and tokens."""
        config, sheets, windows, total = answerer.model.config, [], 0, 0
        limit = answerer.processor.image_processor.max_windows
        for kept in images:
            image = self._open_kept(kept, language)
            grid = grid_of(image.size, config, limit)
            rows, columns = grid
            windows, total = windows + rows * columns, total + config.tokens_of(grid)
            sizes = {"name": kept.name, "width": kept.size[0], "height": kept.size[1]}
            text, more = "views_of", {}
            if config.is_ragged:
                text, more = "views_on_grid", {"rows": rows, "columns": columns, "tokens": config.tokens_of(grid)}
            sheets.append((draw_views(image, config, max_windows=limit), say(language, text, **sizes, **more)))
        counts = {"images": len(images), "side": config.window_size, "total": total}
        if config.is_ragged:
            return sheets, say(language, "sees_counts_of_grids", windows=windows, **counts)
        text = "sees_counts" if config.fit == "stretch" else "sees_counts_padded"
        sizes = {"windows": config.num_windows, "views": config.num_views, "tokens": config.image_tokens}
        return sheets, say(language, text, **counts, **sizes)

    def show_heat(self, request: gr.Request, conversation: list[Exchange], language: Any) -> dict:
        """Draw where the models looked for their last answers, on the images that were shown last."""
        shown, counts = [], []
        try:
            if not conversation or conversation[-1].is_empty:
                raise Refusal(say(language, "no_heat"))
            counts.append(f"“{conversation[-1].asked}”")
            for place, answerer in enumerate(self._open_models(language)):
                if conversation[-1].answers[place].text:
                    shown += self._heat(answerer, place, conversation, language)
                counts.append(self._count(conversation[-1].answers[place], place, language))
        except Refusal as refusal:
            shown, counts = [], [str(refusal)]
        except (ValueError, FileNotFoundError, TimeoutError, MemoryError) as error:
            shown, counts = [], [say(language, "busy_heat", reason=error)]
        with self._person(request) as person:
            return self._look(person, shown, counts)

    def _heat(
        self, answerer: Answerer, place: int, conversation: list[Exchange], language: Any
    ) -> Iterator[tuple[Image.Image, str]]:
        messages = messages_for(conversation, place, answerer.form)
        maps = answerer.attention_maps(messages, conversation[-1].answers[place].text)
        images, config = last_images(conversation), answerer.model.config
        limit = answerer.processor.image_processor.max_windows
        of_queries = self._name(place, say(language, "heat_of_queries"))
        for kept, attention in zip(images, maps[-len(images) :], strict=True):
            image = self._open_kept(kept, language)
            of_answer = self._name(place, say(language, "heat_of_answer", share=attention.share))
            yield draw_heat(image, attention.answer_on_windows, covered=attention.covered), of_answer
            yield draw_views(image, config, attention.answer, limit), of_answer
            yield draw_views(image, config, attention.queries, limit), of_queries

    def _count(self, answer: Answer, place: int, language: Any) -> str:
        """Tell the tokens of an answer, and how sure the model was."""
        name, tokens = self.models.names[place], {"prompt": answer.prompt_tokens, "answer": answer.new_tokens}
        is_sure = answer.confidence is not None
        confidence = say(language, "confidence", confidence=answer.confidence) if is_sure else ""
        return say(language, "answer_counts", name=name, **tokens) + confidence

    def _look(self, person: str, shown: Sequence[tuple[Image.Image, str]], counts: Sequence[str]) -> dict:
        """Give what is inside, as files of whoever asked."""
        try:
            files = [(self.images.draw(person, image), caption) for image, caption in shown]
        except FileNotFoundError:  # cleared meanwhile
            files = []
        return {self.page.inside: view.figures(files), self.page.counts: view.lines(counts)}

    # The page

    @contextlib.contextmanager
    def _person(self, request: gr.Request) -> Iterator[str]:
        """Give the name of a session; whoever calls without one has a name for this call, and is forgotten after it."""
        person = request.session_hash or secrets.token_hex(8)
        try:
            yield person
        finally:
            if not request.session_hash:
                self.images.forget(person)

    def markdown(self, conversation: list[Exchange], language: Any) -> str:
        return as_markdown(conversation, self.models.names, language)

    def json(self, conversation: list[Exchange]) -> str:
        return as_json(conversation, self.models.facts())

    def status(self, language: Any) -> list:
        """Tell about the models, and whether they are to be asked for again."""
        return [view.about(self.models, language), gr.Timer(active=self.models.is_opening)]

    def _show(self, conversation: list[Exchange], language: Any, sentence: str = "") -> dict:
        chats = {chat: view.chat_of(conversation, place, language) for place, chat in enumerate(self.page.chats)}
        return {**chats, self.page.conversation: conversation, self.page.notice: view.notice_of(sentence)}

    def _name(self, place: int, sentence: str) -> str:
        """Put the name of a model before a sentence about it where there are two."""
        return f"{self.models.names[place]}: {sentence}" if len(self.models.names) > 1 else sentence

    def _open_models(self, language: Any) -> tuple[Answerer, ...]:
        if self.models.error is not None:
            raise Refusal(say(language, "not_opened", reason=self.models.error))
        if self.models.is_opening:
            raise Refusal(view.opening(self.models, language))
        return self.models.answerers

    def _images(self, person: str, tray: Any, language: Any, more: int = 0) -> list[KeptImage]:
        """Return the images of the tray, unless there are too many with so many more."""
        kept = [self._keep(person, file, language) for file in _files(tray)]
        if len(kept) + more > MOST_IMAGES:
            raise Refusal(say(language, "many_images", count=len(kept) + more, limit=MOST_IMAGES))
        return kept

    def _keep(self, person: str, file: Mapping[str, Any], language: Any) -> KeptImage:
        """Return a person's own image that the page names, or keep one that was just uploaded."""
        known = self.images.find(person, file["path"])
        if known is not None:
            return known
        name = _spell_out(file.get("orig_name") or say(language, "image"))
        try:
            return self.images.take(person, Path(file["path"]), name, self.models.open_image)
        except FileNotFoundError as error:
            raise Refusal(say(language, "gone_image")) from error
        except ValueError as error:
            raise Refusal(say(language, "bad_image", reason=error)) from error

    def _open_kept(self, image: KeptImage, language: Any) -> Image.Image:
        try:
            return self.models.open_image(image.file.read_bytes(), image.name)
        except FileNotFoundError as error:
            raise Refusal(say(language, "gone_image")) from error

    def _decoding(self, settings: Sequence[Any], is_description: bool, language: Any) -> Decoding:
        """Return what the settings say of answers or of descriptions. What is empty is as the card says."""
        card = self.models.card
        chosen: dict[str, Any] = {"seed": None, "confidence": True}
        sampling = settings[3:6] if is_description else settings[:3]
        for value, (name, field, least, most, step) in zip((*sampling, settings[6]), view.SETTINGS, strict=True):
            if value is None:
                continue
            is_within = isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most
            if not is_within or (step == 1 and value != int(value)):
                text = "bad_whole_number" if step == 1 else "bad_number"
                raise Refusal(say(language, text, name=say(language, name), least=least, most=most))
            chosen[field] = int(value) if step == 1 else value
        try:
            return replace(decoding_of(card.descriptions if is_description else card.answers), **chosen)
        except ValueError as error:  # a temperature just above 0
            raise Refusal(say(language, "refused", reason=error)) from error


def _checked_question(text: Any, missing: str, language: Any) -> str:
    """Return the text without white space around it, or raise Refusal where there is none, too much or half of it."""
    text = text.strip() if isinstance(text, str) else ""
    if not text:
        raise Refusal(say(language, missing))
    if len(text) > view.LONGEST_QUESTION:
        raise Refusal(say(language, "long_question", length=len(text), limit=view.LONGEST_QUESTION))
    if text != _spell_out(text):
        raise Refusal(say(language, "half_character"))
    return text


def _spell_out(text: Any) -> str:
    """Return a text with question marks for halves of characters, which nothing can write."""
    return str(text).encode("utf-8", "replace").decode()


def _files(value: Any) -> list[dict]:
    """Return gradio's records of files out of the value of a Gallery."""
    items = value if isinstance(value, list) else []
    files = [item.get("image") or item.get("video") for item in items if isinstance(item, dict)]
    return [file for file in files if isinstance(file, dict) and isinstance(file.get("path"), str)]


class UploadsOnly:
    """ASGI middleware that refuses requests with an address where the path of an uploaded file belongs.

    gradio itself refuses the paths of files that nobody uploaded, but it would download an address. The route alone
    decides which bodies are looked at: what headers say about a body, gradio may read otherwise.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] != UPLOAD_PATH:
            body, has_more = b"", True
            while has_more and len(body) <= MAX_BODY_BYTES:
                message = await receive()
                body, has_more = body + message.get("body", b""), message.get("more_body", False)
            refusal = _find_refusal(body)
            if refusal is not None:
                return await refusal(scope, receive, send)
            receive = _replay(body, receive)
        return await self.app(scope, receive, send)


def _replay(body: bytes, receive: Receive) -> Receive:
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return waiting.pop() if waiting else await receive()

    return receive_again


def _find_refusal(body: bytes) -> JSONResponse | None:
    """Refuse a body that is too long or holds `"path": "…://…"` anywhere. What is no JSON is left for gradio."""
    if len(body) > MAX_BODY_BYTES:
        return JSONResponse({"detail": f"the request is longer than the {MAX_BODY_BYTES:,} bytes allowed"}, 413)
    paths = []
    with contextlib.suppress(UnicodeDecodeError, json.JSONDecodeError, RecursionError):
        json.loads(body, object_hook=lambda value: paths.append(str(value.get("path", ""))))
    if any(re.match(r"\s*[a-z][a-z0-9+.-]*://", path, re.IGNORECASE) for path in paths):
        return JSONResponse({"detail": "images are uploaded here, not fetched from an address"}, 400)
    return None


def choose_models(
    checkpoint: str | Path,
    grid: tuple[int, int] | None,
    compared: str | Path | None,
    compared_grid: tuple[int, int] | None,
    device: str,
    max_rows: int,
    max_windows: int | None = None,
) -> Models:
    """Return the model of a checkpoint, and the one that it is compared with where another or another grid is given.

    Args:
        max_windows: of an image, for both models; each needs grids to choose from.
    """
    wanted = [(checkpoint, grid)]
    if compared is not None or compared_grid is not None:
        wanted.append((compared or checkpoint, compared_grid))
    choices = [Choice.of(checkpoint, device, grid, max_rows, max_windows) for checkpoint, grid in wanted]
    if len({choice.name for choice in choices}) < len(choices):
        choices = [replace(choice, name=f"{choice.name} ({mark})") for choice, mark in zip(choices, "AB", strict=True)]
    return Models(choices)


def read_people(given: Sequence[str], file: Path | None, environment: str) -> list[tuple[str, str]]:
    """Return names and passwords from all three places together; none when everybody may come in.

    Args:
        given: of --auth, each `user:password`.
        file: of --auth-file, one `user:password` a line; empty lines and lines that begin with # are left out.
        environment: the same lines, of the variable MONKEY_DEMO_AUTH.

    Raises:
        ValueError: something that is not `user:password`, named by its place and never by its text, or no text.
        FileNotFoundError: no such file.
    """
    texts = [("--auth", text) for text in given]
    if file is not None:
        try:
            in_file = _read_lines(file.read_text(encoding="utf-8"), str(file))
        except FileNotFoundError:
            raise FileNotFoundError(f"--auth-file {file}: no such file") from None
        except (OSError, UnicodeDecodeError):  # the second names a byte of a password
            raise ValueError(f"--auth-file {file} cannot be read as text in UTF-8") from None
        if not in_file:
            raise ValueError(f"--auth-file {file} names nobody; write user:password on a line")
        texts += in_file
    people = []
    for place, text in [*texts, *_read_lines(environment, "MONKEY_DEMO_AUTH")]:
        user, _, password = text.partition(":")
        if not (user and password):
            raise ValueError(f"{place} is not user:password, two words with a colon between")
        people.append((user, password))
    return people


def _read_lines(text: str, place: str) -> list[tuple[str, str]]:
    numbered = [(f"{place}:{number}", line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
    return [(where, line) for where, line in numbered if line and not line.startswith("#")]


def check_address(server_name: str, server_port: int) -> None:
    """Raise ValueError when nothing can listen at that address, so that no model is opened in vain."""
    bind(server_name, server_port, "demo", ("--server-name", "--server-port")).close()


@contextlib.contextmanager
def running_demo(
    models: Models,
    server_name: str,
    server_port: int,
    *,
    people: Sequence[tuple[str, str]] = (),
    answers_at_once: int = 8,
    **settings: bool,
) -> Iterator[gr.Blocks]:
    """Run the demo in threads of its own inside the block; its uploads are gone after it.

    Args:
        people: names and passwords of those who may come in; empty for everybody.
        settings: `share` and `inbrowser`, as gradio takes them.

    Raises:
        ValueError: nothing can listen at that address.
    """
    check_address(server_name, server_port)
    # Uploads go to a folder that only this user can read and that ends with the demo. A proxy cannot know our own
    # address, which gradio calls to see whether the page answers.
    with tempfile.TemporaryDirectory(prefix="monkey-demo-", ignore_cleanup_errors=True) as folder:
        gr.routes.DEFAULT_TEMP_DIR = folder  # read from the environment when gradio was imported
        own = ",".join((*LOOPBACK[:2], server_name))
        without_proxy = {name: ",".join(filter(None, (os.environ.get(name), own))) for name in ("no_proxy", "NO_PROXY")}
        with _environment({"GRADIO_TEMP_DIR": folder, **without_proxy}):
            demo = Demo(models, ImageStore(Path(folder)), answers_at_once)
            # Whoever is asked for a password, or reaches it through a public link, comes by other names.
            is_own = server_name in LOOPBACK and not settings.get("share") and not people
            middleware = [Middleware(Access, keys=(), is_loopback=is_own), Middleware(UploadsOnly)]
            try:
                demo.app.launch(
                    server_name=f"[{server_name.strip('[]')}]" if ":" in server_name else server_name,
                    server_port=server_port,
                    auth=list(people) or None,
                    max_file_size=models.max_bytes,
                    i18n=demo.page.i18n,
                    app_kwargs={"middleware": middleware, "docs_url": None, "redoc_url": None},
                    **LAUNCH,
                    **settings,
                )
                yield demo.app
            finally:
                demo.app.close(verbose=False)


LAUNCH = {
    "prevent_thread_lock": True,
    "quiet": True,
    "theme": gr.themes.Soft(primary_hue="indigo", font=list(view.FONTS), font_mono=["ui-monospace", "monospace"]),
    "css": view.CSS,
    "head": view.HEAD,
    "footer_links": [],
    "run_history": False,
    "ssr_mode": False,
    "mcp_server": False,
    "enable_monitoring": False,
    "pwa": False,
    "num_workers": 0,
}
"""How gradio serves every demo: quietly, with nothing beside the page."""


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables, and leave them as they were before."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def serve(models: Models, server_name: str, server_port: int, *, share: bool = False, **settings: Any) -> None:
    """Open the models and run the demo until Ctrl-C or a termination signal; `settings` as of `running_demo`.

    Raises:
        Exception: what opening the models raised, after open pages had the time to show it.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with (
        contextlib.suppress(KeyboardInterrupt),
        contextlib.closing(models),
        running_demo(models, server_name, server_port, share=share, **settings) as app,
    ):
        _announce(app, models, server_name, share, bool(settings.get("people")))
        try:
            models.open()
        except Exception:
            time.sleep(SHOW_ERROR_SECONDS)
            raise
        print("the model is open", flush=True)
        while True:
            time.sleep(0.5)  # waiting without a limit would not hear Ctrl-C on Windows
    print("the demo has ended", flush=True)


def _announce(app: gr.Blocks, models: Models, server_name: str, share: bool, asks_for_password: bool) -> None:
    print(f"the demo is at {app.local_url} (Ctrl-C ends it); opening {' and '.join(models.names)}", flush=True)
    if server_name not in LOOPBACK:
        print("it can be reached from other machines; --server-name 127.0.0.1 keeps it to this one", flush=True)
    if share and app.share_url:
        print(f"it can be reached from everywhere, through gradio's servers, at {app.share_url}", flush=True)
    elif share:
        print("no public link could be made; the demo runs without one", flush=True)
    if not asks_for_password and (share or server_name not in LOOPBACK):
        print("everybody who reaches it may come in; --auth-file asks for names and passwords", flush=True)
