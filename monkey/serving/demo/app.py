"""The demo's page in motion: which event of its components calls what of `Handlers`."""

from __future__ import annotations

import os
from collections.abc import Sequence

# Read when gradio is imported: with it on, the demo would call its makers' servers at every start.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr

from monkey.serving.demo.examples import Example
from monkey.serving.demo.handlers import Handlers
from monkey.serving.demo.languages import wording_of
from monkey.serving.demo.opening import Models
from monkey.serving.demo.page import Page
from monkey.serving.demo.pictures import PictureStore
from monkey.serving.demo.style import (
    AT_LOADING,
    COPY,
    DOWNLOAD_JSON,
    DOWNLOAD_MARKDOWN,
    LANGUAGE,
    SHOW_CHATS,
    SHOW_COMPOSER,
)

LONGEST_LINE = 32
"""People whose questions wait at the same time; whoever comes after is told that the queue is full."""

LOOKING_AT_ONCE = 2
"""How many may have pictures of attention made at the same time."""

# preprocess=False: gradio would decode a picture before it calls us, and show its own error where ours is a sentence.
# That an uploaded file is what a picture names is checked by gradio all the same.
OF_THE_PAGE = {"queue": False, "show_progress": "hidden", "api_visibility": "private", "preprocess": False}


def build_app(
    models: Models, store: PictureStore, examples: Sequence[Example] = (), answers_at_once: int = 8
) -> gr.Blocks:
    """The page.

    Args:
        answers_at_once: questions that the models are asked at the same time; others wait in line.
    """
    do = Handlers(models, store, examples)
    with gr.Blocks(title="Monkey", analytics_enabled=False) as app:
        page = Page(models, examples)
        answers = _connect_answers(page, do, answers_at_once)
        _connect_conversation(page, do, answers)
        _connect_pictures(page, do)
        _connect_inside(page, do)
        _connect_language(app, page, do)
        app.unload(do.leave)
        app.load(None, None, None, js=AT_LOADING)
    return app.queue(max_size=LONGEST_LINE)


def _connect_answers(page: Page, do: Handlers, answers_at_once: int) -> list:
    """What makes the models answer; their events, to be cancelled."""
    shown = [*page.chats, page.conversation, page.notice, page.question, page.tray, page.tray_area]
    of_the_models = {
        "concurrency_limit": answers_at_once,
        "concurrency_id": "models",
        "preprocess": False,
        "show_progress": "minimal",
        "show_progress_on": page.chats,
        "trigger_mode": "once",
    }
    rest = [page.conversation, page.language, *page.settings]
    asked = gr.on(
        [page.ask.click, page.question.submit],
        do.ask,
        [page.tray, page.question, *rest],
        shown,
        api_name="ask",
        **of_the_models,
    )
    described = page.describe.click(
        do.describe, [page.tray, page.prompt, *rest], shown, api_name="describe", **of_the_models
    )
    retried = page.retry.click(do.retry, rest, shown, api_name="retry", **of_the_models)
    gr.on([page.ask.click, page.question.submit, page.describe.click, page.retry.click], None, js=SHOW_CHATS)
    return [asked, described, retried]


def _connect_conversation(page: Page, do: Handlers, answers: list) -> None:
    shown = [*page.chats, page.conversation, page.notice, page.question, page.tray, page.tray_area]
    page.stop.click(None, cancels=answers).then(
        do.stop, [page.conversation, page.language], [*page.chats, page.conversation], **OF_THE_PAGE
    )
    page.edit.click(None, cancels=answers).then(
        do.edit, [page.conversation, page.language], [*shown, page.prompt], **OF_THE_PAGE
    ).then(do.show_views, [page.tray, page.conversation, page.language], [page.inside, page.counts], **OF_THE_PAGE)
    # The bin in the corner of a chat empties what is seen; what is remembered has to follow.
    for event in (page.clear.click, *(chat.clear for chat in page.chats)):
        event(None, cancels=answers).then(do.clear, page.language, [*shown, page.inside, page.counts], **OF_THE_PAGE)
    for button in page.to_try:
        button.click(lambda question=button.value: question, None, page.question, **OF_THE_PAGE).then(
            None, None, None, js=SHOW_COMPOSER
        )
    page.prompt_choice.input(lambda prompt: prompt, page.prompt_choice, page.prompt, **OF_THE_PAGE)
    page.copy.click(do.markdown, [page.conversation, page.language], page.taken_along, **OF_THE_PAGE).then(
        None, page.taken_along, None, js=COPY
    ).then(do.copied, page.language, page.notice, **OF_THE_PAGE)
    page.download_markdown.click(do.markdown, [page.conversation, page.language], page.taken_along, **OF_THE_PAGE).then(
        None, page.taken_along, None, js=DOWNLOAD_MARKDOWN
    )
    page.download_json.click(do.json, page.conversation, page.taken_along, **OF_THE_PAGE).then(
        None, page.taken_along, None, js=DOWNLOAD_JSON
    )


def _connect_pictures(page: Page, do: Handlers) -> None:
    gr.on(
        [page.intake.input, page.several.upload, page.tray.upload],
        do.take,
        [page.intake, page.several, page.tray, page.language],
        [page.intake, page.several, page.tray, page.tray_area, page.notice],
        **OF_THE_PAGE,
    )
    page.examples.select(
        do.take_example,
        [page.tray, page.language],
        [page.tray, page.tray_area, page.question, page.notice],
        **OF_THE_PAGE,
    ).then(None, None, None, js=SHOW_COMPOSER)
    page.tray.change(lambda tray: gr.update(visible=bool(tray)), page.tray, page.tray_area, **OF_THE_PAGE)
    # Where the last answer looked is old as soon as there is another question; the windows of the pictures are not.
    gr.on(
        [page.tray.change, page.ask.click, page.question.submit, page.describe.click, page.retry.click],
        do.show_views,
        [page.tray, page.conversation, page.language],
        [page.inside, page.counts],
        **OF_THE_PAGE,
    )


def _connect_inside(page: Page, do: Handlers) -> None:
    of_looking = {
        "concurrency_limit": LOOKING_AT_ONCE,
        "concurrency_id": "looking",
        "preprocess": False,
        "show_progress_on": page.inside,
        "trigger_mode": "once",
    }
    shown = [page.inside, page.counts]
    page.show_views.click(
        do.show_views, [page.tray, page.conversation, page.language], shown, api_name="views", **of_looking
    )
    page.show_heat.click(do.show_heat, [page.conversation, page.language], shown, api_name="heat", **of_looking)


def _connect_language(app: gr.Blocks, page: Page, do: Handlers) -> None:
    page.language.change(
        lambda language: page.labels.updates(wording_of(language)),
        page.language,
        page.labels.components,
        **OF_THE_PAGE,
    )
    gr.on(
        [page.language.change, app.load],
        do.cards,
        page.language,
        [page.abilities, page.terms],
        **OF_THE_PAGE,
    ).then(None, page.language, None, js=LANGUAGE)
    gr.on(
        [page.clock.tick, page.language.change, app.load],
        do.status,
        page.language,
        [page.model, page.clock],
        **OF_THE_PAGE,
    )
    app.load(do.language_of, None, page.language, **OF_THE_PAGE)
