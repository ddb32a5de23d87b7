"""The components of the demo's page, and how they lie on it."""

from __future__ import annotations

from collections.abc import Sequence

import gradio as gr

from monkey.checkpoint_card import Sampling
from monkey.serving.demo import view
from monkey.serving.demo.english import ENGLISH
from monkey.serving.demo.examples import Example
from monkey.serving.demo.labels import Labels
from monkey.serving.demo.languages import NAMES
from monkey.serving.demo.opening import Models
from monkey.serving.demo.settings import (
    HIGHEST_TEMPERATURE,
    LARGEST_SEED,
    LONGEST_QUESTION,
    MOST_NEW_TOKENS,
)
from monkey.serving.demo.style import CHOOSE

MOST_TO_TRY = 6
"""Questions of the card that have a button."""


class Page:
    """Laid out in the Blocks that are open when it is made.

    Args:
        models: one, or two that answer side by side.
        examples: pictures to try it with.
    """

    def __init__(self, models: Models, examples: Sequence[Example]):
        self.labels = Labels()
        self.conversation = gr.State(())
        self._lay_out_head(models)
        # On a phone the parts of both columns lie below each other in another order, see the style.
        with gr.Row(elem_id="main"):
            with gr.Column(scale=3, min_width=290):
                with gr.Column(elem_id="pictures"):
                    self._lay_out_pictures(examples)
                with gr.Column(elem_id="drawers"):
                    self._lay_out_drawers(models)
            with gr.Column(scale=7, min_width=320):
                with gr.Column(elem_id="chats"):
                    self._lay_out_chats(models)
                with gr.Column(elem_id="composer"):
                    self._lay_out_composer(models)
                with gr.Column(elem_id="actions"), gr.Row():
                    for name in ("retry", "edit", "clear", "copy", "download_markdown", "download_json"):
                        setattr(self, name, self._button(name, size="sm", min_width=70))
                    self.taken_along = gr.Textbox(visible=False)
        self._lay_out_inside()
        with self.labels.make(gr.Accordion, {"label": "guide_title"}, open=False, elem_id="guide"):
            self.labels.make(gr.Markdown, {"value": "guide"})
        self.terms = gr.HTML(view.terms(models, ENGLISH), padding=False, elem_id="terms")
        self.labels.make(gr.Markdown, {"value": "caution"}, elem_id="caution")

    def _lay_out_head(self, models: Models) -> None:
        with gr.Row(equal_height=True, elem_id="head"):
            with gr.Column(min_width=240):
                self.labels.make(gr.Markdown, {"value": "heading"}, elem_id="heading")
            self.language = gr.Radio(
                NAMES, value="en", show_label=False, container=False, scale=0, min_width=230, elem_id="language"
            )
        self.model = gr.HTML(view.about(models, ENGLISH), padding=False, elem_id="model")
        self.abilities = gr.HTML(view.abilities(models, ENGLISH), padding=False, elem_id="abilities")
        self.clock = gr.Timer(1.0)

    def _lay_out_pictures(self, examples: Sequence[Example]) -> None:
        self.intake = self.labels.make(
            gr.Image,
            {"label": "picture", "placeholder": "intake"},
            show_label=False,
            sources=["upload", "webcam", "clipboard"],
            webcam_options=gr.WebcamOptions(mirror=False),
            buttons=[],
            height=210,
            type="filepath",
            elem_id="intake",
        )
        # Where the browser puts several files that are dropped, or chosen, at once: an Image takes one.
        self.several = gr.File(file_count="multiple", visible="hidden", elem_id="several")
        with gr.Column(visible=False, elem_id="tray-area") as self.tray_area:
            self.labels.make(gr.Markdown, {"value": "tray"}, elem_classes=["caption"])
            self.tray = gr.Gallery(
                show_label=False,
                interactive=True,
                file_types=["file"],  # whatever it is, we say what is wrong with it
                sources=["upload"],
                columns=3,
                height="auto",
                object_fit="contain",
                buttons=[],
                elem_id="tray",
            )
        with gr.Column(visible=bool(examples)):
            self.labels.make(gr.Markdown, {"value": "examples"}, elem_classes=["caption"])
            self.examples = gr.HTML(
                view.buttons_of(examples), js_on_load=CHOOSE, apply_default_css=False, padding=False, elem_id="examples"
            )

    def _lay_out_chats(self, models: Models) -> None:
        self.chats: list[gr.Chatbot] = []
        with gr.Row(equal_height=True):
            for place, name in enumerate(models.names):
                with gr.Column(min_width=240):
                    if len(models.names) > 1:
                        gr.HTML(view.paragraphs([name]), padding=False, elem_classes=["caption"])
                    chat = self.labels.make(
                        gr.Chatbot,
                        {"placeholder": "conversation_hint"},
                        label=name,
                        show_label=False,
                        height=430,
                        buttons=[],
                        feedback_options=None,
                        render_markdown=False,
                        sanitize_html=True,
                        allow_tags=False,
                        latex_delimiters=[],
                        elem_id=f"chat-{place}",
                        elem_classes=["conversation"],
                    )
                self.chats.append(chat)

    def _lay_out_composer(self, models: Models) -> None:
        self.notice = gr.HTML(visible=False, padding=False, elem_id="notice")
        self.question = self.labels.make(
            gr.Textbox,
            {"label": "question", "placeholder": "question_hint"},
            show_label=False,
            max_lines=6,
            max_length=LONGEST_QUESTION,
            elem_id="question",
        )
        with gr.Row():
            self.ask = self._button("ask", variant="primary", scale=3, min_width=90)
            self.describe = self._button("describe", scale=3, min_width=90)
            self.stop = self._button("stop", scale=2, min_width=60)
        to_try = models.card.questions[:MOST_TO_TRY]
        with gr.Column(visible=bool(to_try), elem_id="to-try"):
            self.labels.make(gr.Markdown, {"value": "to_try"}, elem_classes=["caption"])
            with gr.Row():
                self.to_try = [gr.Button(question, size="sm", min_width=120) for question in to_try]

    def _button(self, name: str, **settings) -> gr.Button:
        return self.labels.make(gr.Button, {"value": name}, elem_id=name.replace("_", "-"), **settings)

    def _lay_out_inside(self) -> None:
        with self.labels.make(gr.Accordion, {"label": "sees"}, open=True, elem_id="sees"):
            with gr.Row():
                self.show_views = self._button("show_views", size="sm", min_width=150)
                self.show_heat = self._button("show_heat", size="sm", min_width=150)
            self.counts = gr.HTML(view.paragraphs([ENGLISH.sees_hint]), padding=False, elem_id="counts")
            self.inside = gr.HTML(padding=False, elem_id="inside")

    def _lay_out_drawers(self, models: Models) -> None:
        prompts = list(dict.fromkeys(prompt for choice in models.choices for prompt in choice.card.description_prompts))
        with self.labels.make(gr.Accordion, {"label": "prompt_title"}, open=False, elem_id="prompts"):
            self.prompt_choice = self.labels.make(
                gr.Dropdown,
                {"label": "prompt_choice"},
                choices=prompts,
                value=prompts[0],
                elem_id="prompt-choice",
            )
            self.prompt = self.labels.make(
                gr.Textbox,
                {"label": "prompt"},
                value=prompts[0],
                max_lines=4,
                max_length=LONGEST_QUESTION,
                elem_id="prompt",
            )
        with self.labels.make(gr.Accordion, {"label": "settings"}, open=False, elem_id="settings"):
            card = models.card
            self.settings = [
                *self._sampling("answers", card.answers),
                *self._sampling("descriptions", card.descriptions),
            ]
            self.settings.append(
                self.labels.make(
                    gr.Number,
                    {"label": "seed", "info": "seed_hint"},
                    value=card.descriptions.seed,
                    minimum=0,
                    maximum=LARGEST_SEED,
                    elem_id="seed",
                )
            )

    def _sampling(self, of: str, default: Sampling) -> list[gr.Slider]:
        """Temperature, top_p and longest answer."""
        self.labels.make(gr.Markdown, {"value": f"for_{of}"})
        with gr.Row():
            return [
                self.labels.make(
                    gr.Slider,
                    {"label": field, "info": f"{field}_hint"},
                    minimum=least,
                    maximum=most,
                    step=step,
                    value=value,
                    min_width=180,
                    elem_id=f"{of}-{field}",
                )
                for field, least, most, step, value in (
                    ("temperature", 0, HIGHEST_TEMPERATURE, 0.05, default.temperature),
                    ("top_p", 0.05, 1, 0.05, default.top_p),
                    ("longest", 1, MOST_NEW_TOKENS, 1, default.max_new_tokens),
                )
            ]
