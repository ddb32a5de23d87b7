"""The demo's page: upload a picture, ask about it, have it described.

What users and the model write is shown as plain text. gradio's Chatbot puts text into the page as HTML, even with
`render_markdown=False`, and its sanitiser only drops what is dangerous: `<script>` would vanish from an answer and
`<b>` turn bold. So every text is escaped first; the sanitiser stays on behind that.
"""

from __future__ import annotations

import html
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Read when gradio is imported: with it on, the demo would call its makers' servers at every start.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr

from monkey.serving.session import FOR_DESCRIPTIONS
from monkey.serving.uploads import CHECK_EVERY_SECONDS, KEEP_SECONDS
from monkey.serving.wording import ENGLISH, NAMES, Wording, preferred_language, wording_of

if TYPE_CHECKING:
    from monkey.serving.session import Answerer

LONGEST_QUESTION = 4000
"""Characters of a question."""

LONGEST_LINE = 16
"""People whose questions wait at the same time; whoever comes after is told that the queue is full."""

LARGEST_SEED = 2**32 - 1

FONTS = ("system-ui", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif")
"""Fonts of the reader's own machine, so that none is fetched."""

CSS = """
.gradio-container { max-width: 1080px !important; margin: 0 auto !important; }
#heading h1 { margin-bottom: 0.1em; }
#language .wrap { flex-wrap: nowrap; justify-content: flex-end; }
#notice .html-container, #model .html-container { padding: 0; }
#notice .sentence { margin: 0; padding: 0.6em 0.9em; border: 1px solid var(--border-color-primary);
    border-left: 5px solid #d97706; border-radius: 6px; background: var(--block-background-fill);
    color: var(--body-text-color); overflow-wrap: anywhere; }
#conversation .md { white-space: pre-wrap; overflow-wrap: anywhere; }
#describe { white-space: nowrap; padding-inline: 0.6em; }
#model, #terms { font-size: 0.85em; opacity: 0.85; }
footer { display: none !important; }
@media (max-width: 640px) {
    .gradio-container { padding: 8px !important; }
    #language .wrap { justify-content: flex-start; }
    #picture { height: 260px !important; }
    #conversation { height: 280px !important; }
}
"""


@dataclass(frozen=True)
class Exchange:
    """One question, or wish for a description, and what came of it."""

    asked: str
    answer: str = ""
    is_finished: bool = False


Conversation = tuple[Exchange, ...]


class Refusal(Exception):
    """A sentence for the page, in the reader's language, about something that cannot be done."""


def build_app(answerer: Answerer) -> gr.Blocks:
    """The page for an open model.

    Nothing about a user is kept outside the page's own session state, which ends with the session. Questions of all
    users wait in one line for the one model.
    """

    def ask(uploaded: Any, question: Any, conversation: Conversation, language: Any) -> Iterator[tuple]:
        """Answer a question about a picture. Gives conversation, notice and question box after every piece."""
        words = wording_of(language)
        try:
            picture = _opened(answerer, uploaded, words)
            question = _checked_question(question, words)
            exchanges = _conversed(question, lambda: answerer.ask(picture, question), conversation, words)
            for conversation in exchanges:
                yield *_shown(conversation), _no_notice(), ""
        except Refusal as refusal:
            yield *_shown(_finished(conversation)), _notice(str(refusal)), gr.skip()

    def describe(uploaded: Any, seed: Any, conversation: Conversation, language: Any) -> Iterator[tuple]:
        """Describe a picture in detail. Gives conversation and notice after every piece."""
        words = wording_of(language)
        try:
            picture = _opened(answerer, uploaded, words)
            decoding = replace(FOR_DESCRIPTIONS, seed=_checked_seed(seed, words))
            asked = words.described if decoding.seed is None else f"{words.described} ({words.seed} {decoding.seed})"
            exchanges = _conversed(asked, lambda: answerer.describe(picture, decoding=decoding), conversation, words)
            for conversation in exchanges:
                yield *_shown(conversation), _no_notice()
        except Refusal as refusal:
            yield *_shown(_finished(conversation)), _notice(str(refusal))

    def take_picture(uploaded: Any, language: Any) -> tuple:
        """Check a picture as it arrives: a new conversation if it is good, a sentence and no picture if not."""
        try:
            _opened(answerer, uploaded, wording_of(language))
        except Refusal as refusal:
            return None, [], (), _notice(str(refusal))
        return gr.skip(), [], (), _no_notice()

    with gr.Blocks(title="Monkey", analytics_enabled=False, delete_cache=(CHECK_EVERY_SECONDS, KEEP_SECONDS)) as app:
        conversation = gr.State(())
        with gr.Row(equal_height=True):
            with gr.Column(min_width=240):
                heading = gr.Markdown(ENGLISH.heading, elem_id="heading")
            language = gr.Radio(
                NAMES, value="en", show_label=False, container=False, scale=0, min_width=230, elem_id="language"
            )
        with gr.Row():
            with gr.Column(scale=4, min_width=320):
                picture = gr.Image(
                    label=ENGLISH.picture,
                    show_label=False,
                    sources=["upload", "clipboard"],
                    buttons=[],
                    height=500,
                    type="filepath",
                    elem_id="picture",
                )
            with gr.Column(scale=5, min_width=320):
                messages = gr.Chatbot(
                    label=ENGLISH.conversation,
                    show_label=False,
                    placeholder=ENGLISH.conversation_hint,
                    height=340,
                    buttons=[],
                    feedback_options=None,
                    render_markdown=False,
                    sanitize_html=True,
                    allow_tags=False,
                    latex_delimiters=[],
                    elem_id="conversation",
                )
                notice = gr.HTML(visible=False, padding=False, elem_id="notice")
                question = gr.Textbox(
                    label=ENGLISH.question,
                    placeholder=ENGLISH.question_hint,
                    max_lines=6,
                    max_length=LONGEST_QUESTION,
                    elem_id="question",
                )
                with gr.Row():
                    ask_button = gr.Button(ENGLISH.ask, variant="primary", scale=2, min_width=80, elem_id="ask")
                    describe_button = gr.Button(ENGLISH.describe, scale=5, min_width=200, elem_id="describe")
                    stop_button = gr.Button(ENGLISH.stop, scale=2, min_width=80, elem_id="stop")
                    clear_button = gr.Button(ENGLISH.clear, scale=2, min_width=80, elem_id="clear")
        with gr.Accordion(ENGLISH.settings, open=False, elem_id="settings") as settings:
            seed = gr.Number(FOR_DESCRIPTIONS.seed, label=ENGLISH.seed, info=ENGLISH.seed_hint, elem_id="seed")
        with gr.Accordion(ENGLISH.guide_title, open=True) as guide_title:
            guide = gr.Markdown(ENGLISH.guide)
        model = gr.HTML(_about(answerer, ENGLISH), padding=False, elem_id="model")
        terms = gr.Markdown(ENGLISH.terms, elem_id="terms")

        labels: dict[Any, Callable[[Wording], dict]] = {
            heading: lambda words: gr.update(value=words.heading),
            picture: lambda words: gr.update(label=words.picture),
            describe_button: lambda words: gr.update(value=words.describe),
            settings: lambda words: gr.update(label=words.settings),
            seed: lambda words: gr.update(label=words.seed, info=words.seed_hint),
            messages: lambda words: gr.update(label=words.conversation, placeholder=words.conversation_hint),
            question: lambda words: gr.update(label=words.question, placeholder=words.question_hint),
            ask_button: lambda words: gr.update(value=words.ask),
            stop_button: lambda words: gr.update(value=words.stop),
            clear_button: lambda words: gr.update(value=words.clear),
            guide_title: lambda words: gr.update(label=words.guide_title),
            guide: lambda words: gr.update(value=words.guide),
            model: lambda words: gr.update(value=_about(answerer, words)),
            terms: lambda words: gr.update(value=words.terms),
        }

        # preprocess=False: gradio would decode the picture before it calls us, and show its own error where ours is
        # a sentence. That an uploaded file is what the picture names is checked by gradio all the same.
        of_the_model = {"concurrency_limit": 1, "concurrency_id": "model", "preprocess": False}
        of_the_page = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        asked = gr.on(
            [ask_button.click, question.submit],
            ask,
            [picture, question, conversation, language],
            [messages, conversation, notice, question],
            api_name="ask",
            show_progress="minimal",
            show_progress_on=messages,
            trigger_mode="once",
            **of_the_model,
        )
        described = describe_button.click(
            describe,
            [picture, seed, conversation, language],
            [messages, conversation, notice],
            api_name="describe",
            show_progress="minimal",
            show_progress_on=messages,
            **of_the_model,
        )
        stop_button.click(None, cancels=[asked, described]).then(
            lambda conversation, language: _shown(_stopped(conversation, wording_of(language))),
            [conversation, language],
            [messages, conversation],
            **of_the_page,
        )
        clear_button.click(None, cancels=[asked, described]).then(
            lambda: (None, [], (), _no_notice(), ""),
            None,
            [picture, messages, conversation, notice, question],
            **of_the_page,
        )
        picture.upload(None, cancels=[asked, described]).then(
            take_picture,
            [picture, language],
            [picture, messages, conversation, notice],
            preprocess=False,
            **of_the_page,
        )
        # The bin in the conversation's corner empties what is seen; what is remembered has to follow.
        messages.clear(lambda: ((), _no_notice()), None, [conversation, notice], **of_the_page)
        picture.clear(None, cancels=[asked, described]).then(
            lambda: ([], (), _no_notice()), None, [messages, conversation, notice], **of_the_page
        )
        language.change(
            lambda language: [label(wording_of(language)) for label in labels.values()],
            language,
            list(labels),
            **of_the_page,
        )
        app.load(_language_of, None, language, **of_the_page)
    return app.queue(max_size=LONGEST_LINE)


def _language_of(request: gr.Request) -> str:
    return preferred_language(request.headers.get("accept-language"))


def _opened(answerer: Answerer, uploaded: Any, words: Wording) -> Any:
    """The picture that gradio's record of an upload names, opened."""
    if not uploaded or not uploaded.get("path"):
        raise Refusal(words.no_picture)
    name = uploaded.get("orig_name") or words.picture
    try:
        return answerer.open_picture(Path(uploaded["path"]).read_bytes(), name=name)
    except FileNotFoundError as error:
        raise Refusal(words.gone_picture) from error
    except ValueError as error:
        raise Refusal(words.bad_picture.format(reason=error)) from error


def _checked_question(question: Any, words: Wording) -> str:
    question = question.strip() if isinstance(question, str) else ""
    if not question:
        raise Refusal(words.no_question)
    if len(question) > LONGEST_QUESTION:
        raise Refusal(words.long_question.format(length=f"{len(question):,}", limit=f"{LONGEST_QUESTION:,}"))
    return question


def _checked_seed(seed: Any, words: Wording) -> int | None:
    if seed is None:
        return None
    if not isinstance(seed, (int, float)) or seed != int(seed) or not 0 <= seed <= LARGEST_SEED:
        raise Refusal(words.bad_seed.format(limit=f"{LARGEST_SEED:,}"))
    return int(seed)


def _conversed(
    asked: str, begin: Callable[[], Iterator[str]], conversation: Conversation, words: Wording
) -> Iterator[Conversation]:
    """The conversation with one more exchange, after every piece of its answer.

    Raises:
        Refusal: whatever the model could not do, in a sentence.
    """
    answer = ""
    try:
        pieces = begin()
        yield (*conversation, Exchange(asked))
        for piece in pieces:
            answer += piece
            yield (*conversation, Exchange(asked, answer))
    except ValueError as error:
        raise Refusal(words.refused.format(reason=error)) from error
    except TimeoutError as error:
        raise Refusal(words.timed_out.format(reason=error)) from error
    except MemoryError as error:
        raise Refusal(words.out_of_memory) from error
    yield (*conversation, Exchange(asked, answer or words.no_answer, is_finished=True))


def _finished(conversation: Conversation) -> Conversation:
    """The conversation without an exchange that came to nothing, and with a broken one as it is."""
    answered = (exchange for exchange in conversation if exchange.answer)
    return tuple(replace(exchange, is_finished=True) for exchange in answered)


def _stopped(conversation: Conversation, words: Wording) -> Conversation:
    """The conversation with its unfinished exchange marked as stopped."""
    return tuple(
        exchange
        if exchange.is_finished
        else replace(exchange, answer=f"{exchange.answer} {words.stopped}".strip(), is_finished=True)
        for exchange in conversation
    )


def _shown(conversation: Conversation) -> tuple[list[dict], Conversation]:
    """Values of the Chatbot and of the state."""
    messages = []
    for exchange in conversation:
        messages.append({"role": "user", "content": _plain(exchange.asked)})
        messages.append({"role": "assistant", "content": _plain(exchange.answer or "…")})
    return messages, conversation


def _plain(text: str) -> dict[str, str]:
    """A message that shows `text` to the letter."""
    return {"type": "text", "text": html.escape(text)}


def _notice(sentence: str) -> dict:
    return gr.update(value=f'<p class="sentence" role="alert">{_literal(sentence)}</p>', visible=True)


def _no_notice() -> dict:
    return gr.update(value="", visible=False)


def _about(answerer: Answerer, words: Wording) -> str:
    """A line about the open model, as HTML."""
    config = answerer.model.config
    (height, width), (rows, columns) = config.canvas_size, config.grid
    return _literal(
        words.model.format(
            name=answerer.name,
            height=height,
            width=width,
            rows=rows,
            columns=columns,
            tokens=f"{config.image_tokens:,}",
            device=str(answerer.model.device).upper(),
        )
    )


def _literal(text: str) -> str:
    """HTML of plain text for `gr.HTML`, which also reads `${…}` and `{{…}}` as templates."""
    return html.escape(text).translate({ord(character): f"&#{ord(character)};" for character in "{}$"})
