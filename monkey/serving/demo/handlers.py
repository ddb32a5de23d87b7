"""What happens when people act: each method is an event of the page, and gives values of its components.

Nothing about a person is kept outside the page's own session state but their pictures, which `PictureStore` keeps
under the name of the session.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from monkey.boxes import drawn, located
from monkey.serving.demo import looking, view
from monkey.serving.demo.answering import answered
from monkey.serving.demo.conversation import Conversation, Exchange, begun, last_pictures, settled, stopped
from monkey.serving.demo.examples import Example
from monkey.serving.demo.languages import preferred_language, wording_of
from monkey.serving.demo.opening import Models
from monkey.serving.demo.pictures import KeptPicture, PictureStore
from monkey.serving.demo.settings import MOST_PICTURES, Refusal, checked_decoding, checked_question
from monkey.serving.demo.transcript import as_json, as_markdown
from monkey.serving.demo.wording import Wording

LOOK_AGAIN_SECONDS = 0.25
"""How often a question that waits for a model says how far that is."""


class Handlers:
    """Events of one page over its models and its store of pictures.

    Those that change the conversation give, in this order: a chat for each model, the conversation, the notice, the
    question, the tray of pictures for the next question, and whether it is there.
    """

    def __init__(self, models: Models, store: PictureStore, examples: Sequence[Example]):
        self.models, self.store, self.examples = models, store, tuple(examples)

    # Questions

    def ask(
        self, request: gr.Request, tray: Any, question: Any, conversation: Conversation, language: Any, *settings: Any
    ) -> Iterator[list]:
        """Answer a question about the pictures of the tray and of the conversation."""
        yield from self._answered(request, tray, question, conversation, language, settings, is_description=False)

    def describe(
        self, request: gr.Request, tray: Any, prompt: Any, conversation: Conversation, language: Any, *settings: Any
    ) -> Iterator[list]:
        """Describe the pictures of the tray, or those that were shown last."""
        yield from self._answered(request, tray, prompt, conversation, language, settings, is_description=True)

    def _answered(
        self,
        request: gr.Request,
        tray: Any,
        text: Any,
        conversation: Conversation,
        language: Any,
        settings: Sequence[Any],
        is_description: bool,
    ) -> Iterator[list]:
        """The page after every piece of an answer, or with what is wrong with the question."""
        words = wording_of(language)
        with _Person(request, self.store) as person:
            try:
                text = checked_question(text, words.no_prompt if is_description else words.no_question, words)
                wanted = self._begun(person, tray, conversation, text, settings, is_description, words)
            except Refusal as refusal:
                yield self._refused(conversation, refusal, words)
            else:
                yield from self._converse(person, wanted, conversation, words)

    def retry(self, request: gr.Request, conversation: Conversation, language: Any, *settings: Any) -> Iterator[list]:
        """Answer the last question once more, with the settings of now."""
        words = wording_of(language)
        with _Person(request, self.store) as person:
            try:
                if not conversation:
                    raise Refusal(words.nothing_to_repeat)
                last = conversation[-1]
                decoding = checked_decoding(settings, last.is_description, self.models.card, words)
            except Refusal as refusal:
                yield self._refused(conversation, refusal, words)
                return
            again = begun(
                conversation[:-1], last.asked, last.pictures, decoding, len(self.models.choices), last.is_description
            )
            yield from self._converse(person, again, conversation, words)

    def stop(self, conversation: Conversation, language: Any) -> list:
        """Mark as stopped what is not finished. Gives the chats and the conversation."""
        conversation = stopped(conversation)
        return [*self._chats(conversation, wording_of(language)), conversation]

    def edit(self, conversation: Conversation, language: Any) -> list:
        """Take the last question back into the box it came from. Gives the prompt of descriptions, too."""
        words = wording_of(language)
        if not conversation:
            return [*self._refused(conversation, Refusal(words.nothing_to_repeat), words), gr.skip()]
        last, rest = conversation[-1], conversation[:-1]
        question, prompt = (gr.skip(), last.asked) if last.is_description else (last.asked, gr.skip())
        return [*self._shown(rest, words), view.notice(""), question, *view.tray_of(last.pictures), prompt]

    def clear(self, request: gr.Request, language: Any) -> list:
        """Forget the conversation and delete its pictures. Gives what `look` gives, too."""
        self.leave(request)
        words = wording_of(language)
        emptied = [view.notice(""), "", *view.tray_of(()), "", view.paragraphs([words.sees_hint])]
        return [*self._shown((), words), *emptied]

    def leave(self, request: gr.Request) -> None:
        """Delete the pictures of somebody who goes."""
        if request.session_hash:
            self.store.release(request.session_hash)

    # Pictures

    def take(self, request: gr.Request, intake: Any, several: Any, tray: Any, language: Any) -> list:
        """Put pictures that have just come into the tray: one of `intake`, or `several` that were dropped together.
        Gives both, tray, whether it is there, and notice."""
        words = wording_of(language)
        faults: list[str] = []
        pictures: list[KeptPicture] = []
        for uploaded in [*_files(tray), *_files(intake), *_files(several)]:
            try:
                pictures.append(self._picture(request.session_hash, uploaded, words))
            except Refusal as refusal:
                faults.append(str(refusal))
        if len(pictures) > MOST_PICTURES:
            faults.append(words.many_pictures.format(count=len(pictures), limit=MOST_PICTURES))
            pictures = pictures[:MOST_PICTURES]
        return [None, None, *view.tray_of(pictures), view.notice(" ".join(faults))]

    def take_example(self, request: gr.Request, chosen: gr.EventData, tray: Any, language: Any) -> list:
        """Put an example into the tray, and its question into the box. Gives tray, whether it is there, question and
        notice."""
        words = wording_of(language)
        example = self.examples[chosen.index]
        try:
            pictures = [self._picture(request.session_hash, uploaded, words) for uploaded in _files(tray)]
        except Refusal as refusal:
            return [*view.tray_of(()), gr.skip(), view.notice(str(refusal))]
        if len(pictures) >= MOST_PICTURES:
            sentence = words.many_pictures.format(count=len(pictures) + 1, limit=MOST_PICTURES)
            return [gr.skip(), gr.skip(), gr.skip(), view.notice(sentence)]
        content = example.picture.read_bytes()
        added = self.store.add(request.session_hash, content, example.name, self.models.open_picture)
        return [*view.tray_of([*pictures, added]), example.question, view.notice("")]

    # What the model sees

    def show_views(self, request: gr.Request, tray: Any, conversation: Conversation, language: Any) -> list:
        """The views of the pictures of the tray, or of those that were shown last. Gives pictures and sentences."""
        words = wording_of(language)
        with _Person(request, self.store) as person:
            try:
                pictures = self._pictures(person, tray, words) or last_pictures(conversation)
                if not pictures:
                    raise Refusal(words.sees_nothing)
                answerers = self._open_models(words)
                shown = [
                    self._of_model(place, looking.views_of(answerer, self._opened(picture, words), picture, words))
                    for place, answerer in enumerate(answerers)
                    for picture in pictures
                ]
            except Refusal as refusal:
                return ["", view.paragraphs([str(refusal)])]
            counts = [
                self._named(place, looking.counts_of(answerer, len(pictures), words))
                for place, answerer in enumerate(answerers)
            ]
            return [self._kept(person, shown), view.paragraphs(counts)]

    def show_heat(self, request: gr.Request, conversation: Conversation, language: Any) -> list:
        """Where the models looked for their last answers. Gives pictures and sentences."""
        words = wording_of(language)
        with _Person(request, self.store) as person:
            try:
                if not conversation or conversation[-1].is_empty:
                    raise Refusal(words.no_heat)
                shown: list[looking.Captioned] = []
                sentences = [f"“{conversation[-1].asked}”"]
                for place, answerer in enumerate(self._open_models(words)):
                    if conversation[-1].answers[place].text:
                        heat = looking.heat_of(
                            answerer, place, conversation, lambda picture: self._opened(picture, words), words
                        )
                        shown += [self._of_model(place, picture) for picture in heat]
                    name = self.models.names[place]
                    sentences.append(looking.answer_counts(conversation, place, name, words))
            except Refusal as refusal:
                return ["", view.paragraphs([str(refusal)])]
            except (ValueError, FileNotFoundError, TimeoutError, MemoryError) as error:
                return ["", view.paragraphs([words.busy_heat.format(reason=error)])]
            return [self._kept(person, shown), view.paragraphs(sentences)]

    # The conversation to take along

    def markdown(self, conversation: Conversation, language: Any) -> str:
        return as_markdown(conversation, self.models.names, wording_of(language))

    def copied(self, language: Any) -> dict:
        return view.notice(wording_of(language).copied)

    def json(self, conversation: Conversation) -> str:
        pairs = zip(self.models.answerers, self.models.names, strict=False)
        records = [view.record_of(answerer, name) for answerer, name in pairs]
        return as_json(conversation, records or [{"name": name} for name in self.models.names])

    # The page

    def status(self, language: Any) -> list:
        """Lines about the models, and whether they are to be asked for again."""
        is_over = self.models.wait(0)
        return [view.about(self.models, wording_of(language)), gr.Timer(active=not is_over)]

    def cards(self, language: Any) -> list[str]:
        """What the models can do, and their terms."""
        words = wording_of(language)
        return [view.abilities(self.models, words), view.terms(self.models, words)]

    @staticmethod
    def language_of(request: gr.Request) -> str:
        return preferred_language(request.headers.get("accept-language"))

    def _begun(
        self,
        person: str,
        tray: Any,
        conversation: Conversation,
        asked: str,
        settings: Sequence[Any],
        is_description: bool,
        words: Wording,
    ) -> Conversation:
        decoding = checked_decoding(settings, is_description, self.models.card, words)
        pictures = self._pictures(person, tray, words)
        if not pictures and not last_pictures(conversation):
            raise Refusal(words.no_picture)
        return begun(conversation, asked, pictures, decoding, len(self.models.choices), is_description)

    def _converse(
        self, person: str, conversation: Conversation, before: Conversation, words: Wording
    ) -> Iterator[list]:
        """The conversation as the answers to its last question grow, or `before` where there is none in the end."""
        asked = conversation[-1]
        emptied = ["" if not asked.is_description else gr.skip(), *view.tray_of(())]
        yield [*self._shown(conversation, words), view.notice(""), *emptied]
        try:
            while not self.models.wait(LOOK_AGAIN_SECONDS if not self.models.is_open else 0):
                sentence = view.opening(self.models.progress, words)
                yield [*self._shown(conversation, words), view.notice(sentence), *emptied]
            pieces = answered(self._open_models(words), self.models.names, conversation, words)
            for conversation, note in pieces:
                yield [*self._shown(conversation, words), view.notice(note), *emptied]
            conversation = (*conversation[:-1], self._with_boxes(person, conversation, words))
            yield [*self._shown(conversation, words), view.notice(note), *emptied]
        except Refusal as refusal:
            if conversation[-1].is_empty:
                question = gr.skip() if asked.is_description else asked.asked
                restored = [question, *view.tray_of(asked.pictures)]
                yield [*self._shown(before, words), view.notice(str(refusal)), *restored]
            else:
                yield [*self._shown(settled(conversation), words), view.notice(str(refusal)), *emptied]

    def _with_boxes(self, person: str, conversation: Conversation, words: Wording) -> Exchange:
        """The last exchange with its boxes drawn on the picture that was shown last, as Qwen-VL's code draws them."""
        exchange = conversation[-1]
        answers = []
        for answer in exchange.answers:
            boxes = located(answer.text)
            if boxes:
                image = self._opened(last_pictures(conversation)[-1], words)
                with contextlib.suppress(FileNotFoundError):  # cleared meanwhile
                    answer = replace(answer, drawn=str(self.store.keep_image(person, drawn(image, boxes))))
            answers.append(answer)
        return replace(exchange, answers=tuple(answers))

    def _open_models(self, words: Wording) -> tuple:
        if self.models.error is not None:
            raise Refusal(words.not_opened.format(reason=self.models.error))
        if not self.models.is_open:
            raise Refusal(view.opening(self.models.progress, words))
        return self.models.answerers

    def _pictures(self, person: str, tray: Any, words: Wording) -> list[KeptPicture]:
        pictures = [self._picture(person, uploaded, words) for uploaded in _files(tray)]
        if len(pictures) > MOST_PICTURES:
            raise Refusal(words.many_pictures.format(count=len(pictures), limit=MOST_PICTURES))
        return pictures

    def _picture(self, person: str, uploaded: dict, words: Wording) -> KeptPicture:
        """A person's own picture that the page names, or one that was just uploaded."""
        known = self.store.find(person, uploaded["path"])
        if known is not None:
            return known
        name = str(uploaded.get("orig_name") or words.picture).encode("utf-8", "replace").decode()
        try:
            return self.store.take(person, Path(uploaded["path"]), name, self.models.open_picture)
        except FileNotFoundError as error:
            raise Refusal(words.gone_picture) from error
        except ValueError as error:
            raise Refusal(words.bad_picture.format(reason=error)) from error

    def _opened(self, picture: KeptPicture, words: Wording) -> Image.Image:
        try:
            return self.models.open_picture(picture.file.read_bytes(), picture.name)
        except FileNotFoundError as error:
            raise Refusal(words.gone_picture) from error

    def _named(self, place: int, sentence: str) -> str:
        """A sentence about one model, with its name where there are two."""
        return f"{self.models.names[place]}: {sentence}" if len(self.models.names) > 1 else sentence

    def _of_model(self, place: int, shown: looking.Captioned) -> looking.Captioned:
        image, caption = shown
        return image, self._named(place, caption)

    def _kept(self, person: str, shown: Sequence[looking.Captioned]) -> str:
        try:
            return view.figures([(self.store.keep_image(person, image), caption) for image, caption in shown])
        except FileNotFoundError:  # cleared meanwhile
            return ""

    def _chats(self, conversation: Conversation, words: Wording) -> list[list[dict]]:
        return [view.chat_of(conversation, place, words) for place in range(len(self.models.choices))]

    def _shown(self, conversation: Conversation, words: Wording) -> list:
        return [*self._chats(conversation, words), conversation]

    def _refused(self, conversation: Conversation, refusal: Refusal, words: Wording) -> list:
        return [*self._shown(conversation, words), view.notice(str(refusal)), gr.skip(), gr.skip(), gr.skip()]


class _Person:
    """Whose pictures an event is about: those of a session; without one, pictures last no longer than the event."""

    def __init__(self, request: gr.Request, store: PictureStore):
        self._session, self._store = request.session_hash, store
        self.name = self._session or secrets.token_hex(8)

    def __enter__(self) -> str:
        return self.name

    def __exit__(self, *exception: object) -> None:
        if self._session is None:
            self._store.release(self.name)


def _files(value: Any) -> list[dict]:
    """gradio's records of files, out of the value of an Image or of a Gallery."""
    items = value if isinstance(value, list) else [value] if value else []
    files = [item.get("image") or item.get("video") or item for item in items if isinstance(item, dict)]
    return [file for file in files if isinstance(file, dict) and isinstance(file.get("path"), str)]
