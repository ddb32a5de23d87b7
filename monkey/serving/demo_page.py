"""The demo's page: its components, how it looks, and values of its components.

What users and the model write is shown as plain text. gradio puts the text of a conversation into the page as HTML,
even with `render_markdown=False`, and its sanitiser only drops what is dangerous: `<script>` would vanish from an
answer and `<b>` turn bold. So every text is escaped first; the sanitiser stays on behind that.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import gradio as gr
from PIL import Image

from monkey.boxes import without_markup
from monkey.checkpoint_card import Sampling
from monkey.files import project_folder
from monkey.serving.demo_answers import Answer, Exchange, KeptImage, Models
from monkey.serving.demo_texts import TEXTS, say

if TYPE_CHECKING:
    from monkey.serving.session import Answerer

LONGEST_QUESTION = 4000
"""Characters of a question."""

SETTINGS = (
    ("temperature", "temperature", 0, 2, 0.05),
    ("top_p", "top_p", 0.01, 1, 0.01),
    ("longest", "max_new_tokens", 1, 2048, 1),
    ("seed", "seed", 0, 2**32 - 1, 1),
)
"""Name on the page, field of `Decoding`, least, most, step. All but the seed exist for answers and for descriptions."""

MOST_TO_TRY = 6
"""Questions of the card that have a button."""

HELD_OUT = project_folder() / "data" / "pages" / "images" / "heldout"
"""Images that come with the project; where somebody took them away, the demo goes without examples."""

EXAMPLES = {
    "000001.jpg": "What is the name of the shop?",
    "000014.jpg": "What is the time of Stoureart Thearirt?",
    "000005.jpg": "What is the value of M?",
    "000017.jpg": "What colour is the title?",
    "000015.jpg": "What is the title?",
    "000009.jpg": "Which costs more, Similar basket or Gourt?",
    "000018.jpg": "In which year was it written?",
    "000002.jpg": "What is the year of the first day of validity?",
    "000006.jpg": "What is the name of the horizontal axis?",
    "000016.jpg": "What does the blue series stand for?",
    "000019.jpg": "What kind of document is this?",
    "000004.jpg": "What is the name of the seller?",
}
"""Of many kinds of page an image that no training has seen, with a question."""


def examples(folder: Path = HELD_OUT) -> list[tuple[Path, str]]:
    """Return the images to try the demo with, each with its question; those that are not there are left out."""
    return [(folder / name, question) for name, question in EXAMPLES.items() if (folder / name).is_file()]


class Page:
    """The components, laid out in the Blocks that are open when it is made.

    Args:
        models: one, or two that answer side by side; may still be on their way.

    Attributes:
        i18n: every text of the page in both languages; the browser's own is shown.
    """

    def __init__(self, models: Models):
        self.models = models
        of_cards = {tag: {"abilities": abilities(models, tag), "terms": terms(models, tag)} for tag in TEXTS}
        self.i18n = gr.I18n(**{tag: {**texts, **of_cards[tag]} for tag, texts in TEXTS.items()})
        text = self.i18n
        self.conversation = gr.State([])
        self.language = gr.Textbox("en", visible=False)
        self.taken_along = gr.Textbox(visible=False)
        gr.Markdown(text("heading"), elem_id="heading")
        self.model = gr.HTML(about(self.models, "en"), padding=False, elem_id="model", elem_classes="lines")
        can_tell = any(choice.card.abilities or choice.card.languages for choice in self.models.choices)
        gr.HTML(text("abilities"), visible=can_tell, padding=False, elem_id="abilities", elem_classes="lines")
        self.clock = gr.Timer(1.0)
        # On a phone the parts of both columns lie below each other in another order, see the style.
        with gr.Row(elem_id="main"):
            with gr.Column(scale=3, min_width=290):
                with gr.Column(elem_id="images"):
                    self._lay_out_images()
                with gr.Column(elem_id="drawers"), gr.Accordion(text("settings"), open=False, elem_id="settings"):
                    self._lay_out_settings()
            with gr.Column(scale=7, min_width=320):
                with gr.Column(elem_id="chats"), gr.Row(equal_height=True):
                    self.chats = [self._lay_out_chat(place, name) for place, name in enumerate(self.models.names)]
                with gr.Column(elem_id="composer"):
                    self._lay_out_composer()
                with gr.Column(elem_id="actions"), gr.Row():
                    self.retry, self.edit, self.clear = map(self._button, ("retry", "edit", "clear"))
                    self.markdown = gr.Button("Markdown", size="sm", min_width=70, elem_id="download-markdown")
                    self.json = gr.Button("JSON", size="sm", min_width=70, elem_id="download-json")
        with gr.Accordion(text("sees"), elem_id="sees"):
            with gr.Row():
                self.show_views, self.show_heat = map(self._button, ("show_views", "show_heat"))
            self.counts = gr.HTML(f"<p>{text('sees_hint')}</p>", padding=False, elem_id="counts", elem_classes="lines")
            self.inside = gr.HTML(padding=False, elem_id="inside")
        with gr.Accordion(text("guide_title"), open=False, elem_id="guide"):
            gr.Markdown(text("guide"))
        gr.HTML(text("terms"), padding=False, elem_id="terms", elem_classes="lines")
        gr.Markdown(text("caution"), elem_id="caution")

    def _lay_out_images(self) -> None:
        self.tray = gr.Gallery(
            label=self.i18n("images"),
            interactive=True,
            file_types=["image", "file"],  # whatever it is, we say what is wrong with it
            sources=["upload", "webcam", "clipboard"],
            height="auto",
            object_fit="contain",
            buttons=[],
            elem_id="tray",
        )
        shown = []
        for path, question in examples():
            with Image.open(path) as image:  # not as a path, which the page would tell
                shown.append((image.copy(), question))
        with gr.Column(visible=bool(shown)):
            gr.Markdown(self.i18n("examples"), elem_classes="caption")
            self.examples = gr.Gallery(
                shown, show_label=False, interactive=False, allow_preview=False, buttons=[], height="auto",
                elem_id="examples",
            )  # fmt: skip

    def _lay_out_chat(self, place: int, name: str) -> gr.Chatbot:
        with gr.Column(min_width=240):
            if len(self.models.names) > 1:
                gr.HTML(lines([name]), padding=False, elem_classes="lines")
            return gr.Chatbot(
                label=name,
                show_label=False,
                placeholder=self.i18n("conversation_hint"),
                height=430,
                buttons=[],
                feedback_options=None,
                render_markdown=False,
                sanitize_html=True,
                allow_tags=False,
                latex_delimiters=[],
                elem_id=f"chat-{place}",
                elem_classes="conversation",
            )

    def _lay_out_composer(self) -> None:
        self.notice = gr.HTML(visible=False, padding=False, elem_id="notice")
        self.question = gr.Textbox(
            label=self.i18n("question"),
            placeholder=self.i18n("question_hint"),
            show_label=False,
            max_lines=6,
            max_length=LONGEST_QUESTION,
            elem_id="question",
        )
        with gr.Row():
            self.ask = self._button("ask", variant="primary", size="lg")
            self.describe, self.stop = self._button("describe", size="lg"), self._button("stop", size="lg")
        to_try = self.models.card.questions[:MOST_TO_TRY]
        with gr.Column(visible=bool(to_try), elem_id="to-try"):
            gr.Markdown(self.i18n("to_try"), elem_classes="caption")
            with gr.Row():
                self.to_try = [gr.Button(question, size="sm", min_width=120) for question in to_try]

    def _lay_out_settings(self) -> None:
        cards = [choice.card for choice in self.models.choices]
        prompts = list(dict.fromkeys(prompt for card in cards for prompt in card.description_prompts))
        explained = self._explain("prompt")
        self.prompt = gr.Dropdown(prompts, value=prompts[0], allow_custom_value=True, **explained, elem_id="prompt")
        self.settings = self._sampling("answers", cards[0].answers)
        self.settings += self._sampling("descriptions", cards[0].descriptions)
        name, _, least, most, _ = SETTINGS[-1]
        limits, texts = {"minimum": least, "maximum": most, "precision": 0}, self._explain(name)
        self.settings.append(gr.Number(cards[0].descriptions.seed, **texts, **limits, elem_id=name))

    def _sampling(self, of: str, default: Sampling) -> list[gr.Slider]:
        gr.Markdown(self.i18n(f"for_{of}"))
        with gr.Row():
            return [
                gr.Slider(least, most, getattr(default, field), step=step, **self._explain(name), min_width=180,
                          elem_id=f"{of}-{name}")
                for name, field, least, most, step in SETTINGS[:-1]
            ]  # fmt: skip

    def _explain(self, name: str) -> dict[str, Any]:
        return {"label": self.i18n(name), "info": self.i18n(f"{name}_hint")}

    def _button(self, name: str, size: str = "sm", variant: str = "secondary") -> gr.Button:
        name_of_element = name.replace("_", "-")
        return gr.Button(self.i18n(name), size=size, variant=variant, min_width=70, elem_id=name_of_element)


# Values of components


def chat_of(conversation: Sequence[Exchange], place: int, language: str) -> list[dict]:
    """Return the messages of the Chatbot that shows one model's answers."""
    messages = []
    for exchange in conversation:
        images = [{"path": str(image.shown), "alt_text": image.name} for image in exchange.images]
        messages.append({"role": "user", "content": [*images, _plain(exchange.asked)]})
        answer = exchange.answers[place]
        boxes = [{"path": answer.drawn, "alt_text": say(language, "boxes")}] if answer.drawn else []
        messages.append({"role": "assistant", "content": [_plain(_readable(answer, language)), *boxes]})
    return messages


# Markup at the end of a text that is still being written: a name and its box are shown when they are whole.
_UNFINISHED = re.compile(r"<(?:/?[a-z]{0,4}|ref>(?:(?!</ref>).)*|(box|quad)>[^<]*(?:</?[a-z]{0,4})?)$", re.DOTALL)


def _readable(answer: Answer, language: str) -> str:
    """Return an answer without the markup of boxes, and what is to be said of it where it is not whole."""
    is_whole = answer.is_finished and not answer.is_stopped
    text = without_markup(answer.text if is_whole else _UNFINISHED.sub("", answer.text))
    if answer.is_stopped:
        return f"{text} {say(language, 'stopped')}".strip()
    return text or (say(language, "no_answer") if answer.is_finished else "…")


def _plain(text: str) -> dict[str, str]:
    """Return a message that shows `text` to the letter."""
    return {"type": "text", "text": html.escape(text)}


def tray_of(images: Sequence[KeptImage]) -> list[tuple[str, str]]:
    return [(str(image.shown), image.name) for image in images]


def notice_of(sentence: str) -> dict:
    """Return the notice saying a sentence, or hidden for ""."""
    value = f'<p role="alert">{literal(sentence)}</p>' if sentence else ""
    return gr.update(value=value, visible=bool(sentence))


def lines(sentences: Sequence[str]) -> str:
    """Return HTML of sentences, one below the other."""
    return "".join(f"<p>{literal(sentence)}</p>" for sentence in sentences)


def figures(files: Sequence[tuple[Path, str]]) -> str:
    """Return HTML of images that gradio serves, each with its caption; a click opens one by itself."""
    parts = []
    for path, caption in files:
        address, text = f"gradio_api/file={quote(path.as_posix())}", literal(caption)
        image = f'<a href="{address}" target="_blank" rel="noopener"><img src="{address}" alt="{text}"></a>'
        parts.append(f"<figure>{image}<figcaption>{text}</figcaption></figure>")
    return f'<div class="figures">{"".join(parts)}</div>' if parts else ""


def literal(text: str) -> str:
    """Return HTML of plain text for `gr.HTML`, which also reads `${…}` and `{{…}}` as templates."""
    return html.escape(text).translate({ord(character): f"&#{ord(character)};" for character in "{}$"})


def about(models: Models, language: str) -> str:
    """Return HTML about the models: which one is being opened, or what they are."""
    if models.error is not None:
        return lines([say(language, "not_opened", reason=models.error)])
    if models.is_opening:
        return lines([opening(models, language)])
    return lines([_describe(*pair, language) for pair in zip(models.names, models.answerers, strict=True)])


def opening(models: Models, language: str) -> str:
    name = models.names[models.number - 1]
    return say(language, "opening", name=name, number=models.number, of=len(models.names))


def _describe(name: str, answerer: Answerer, language: str) -> str:
    config = answerer.model.config
    (height, width), (rows, columns) = config.canvas_size, config.grid
    device = str(answerer.model.device).upper()
    if config.is_ragged:
        tokens = [config.tokens_of(grid) for grid in config.allowed_grids]
        most = max(rows * columns for rows, columns in config.allowed_grids)
        sizes = {"most": most, "side": config.window_size, "least": min(tokens), "tokens": max(tokens)}
        return say(language, "model_of_grids", name=name, device=device, **sizes)
    sizes = {"height": height, "width": width, "rows": rows, "columns": columns, "tokens": config.image_tokens}
    return say(language, "model", name=name, device=device, **sizes)


def abilities(models: Models, language: str) -> str:
    """Return HTML of what each model can do and which languages it knows, where its card says so."""
    told = []
    for choice in models.choices:
        known = _in_language(choice.card.languages, language)
        known = say(language, "languages", languages=known) if known else ""
        told.append(f"{_in_language(choice.card.abilities, language)} {known}".strip())
    return lines(_named(told, models.names))


def terms(models: Models, language: str) -> str:
    """Return HTML of the terms of each model's card."""
    told = [_in_language(choice.card.terms, language) for choice in models.choices]
    return f"<p><b>{literal(say(language, 'terms_of_weights'))}</b></p>{lines(_named(told, models.names))}"


def _named(texts: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the texts that say something, each behind the name of its model unless all say the same."""
    if len(set(texts)) == 1:
        return [texts[0]] if texts[0] else []
    return [f"{name}: {text}" for name, text in zip(names, texts, strict=True) if text]


def _in_language(text: Mapping[str, str], language: str) -> str:
    """Return a text of a card in a language, else in English; "" where there is none."""
    return text.get(language, text.get("en", ""))


# How it looks, and what it does in the browser by itself

FONTS = ("system-ui", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif")
"""Fonts of the reader's own machine, so that none is fetched."""

CSS = """
.gradio-container { max-width: 1280px !important; margin: 0 auto !important; }
#heading h1 { margin-bottom: 0.1em; }
.lines .html-container { padding: 0; }
.lines p, .caption p { margin: 0.1em 0; font-size: 0.85em; overflow-wrap: anywhere; }
#notice p { margin: 0; padding: 0.6em 0.9em; border: 1px solid var(--border-color-primary);
    border-left: 5px solid #d97706; border-radius: 6px; background: var(--block-background-fill);
    color: var(--body-text-color); font-size: 1em; }
.conversation .md { white-space: pre-wrap; overflow-wrap: anywhere; }
.conversation img { max-height: 240px; width: auto; border-radius: 6px; }
/* gradio offers to share an image, which would send it away. */
.conversation .message-buttons, .conversation .icon-button-wrapper { display: none !important; }
#tray { min-height: 210px; }
#tray .grid-wrap, #examples .grid-wrap { padding: 0; min-height: 0; max-height: none; }
#tray .grid-container { grid-template-columns: repeat(3, minmax(0, 1fr)) !important; padding: 40px 2px 2px; }
#examples .grid-container { grid-template-columns: repeat(5, minmax(0, 1fr)) !important; gap: 6px; padding: 2px; }
#examples .caption-label { display: none; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 250px), 1fr)); gap: 12px; }
.figures figure { margin: 0; max-width: 640px; }
.figures img { width: 100%; height: auto; border-radius: 6px; }
.figures figcaption { font-size: 0.85em; opacity: 0.85; }
#caution { font-size: 0.85em; opacity: 0.85; }
footer { display: none !important; }
@media (max-width: 640px) {
    #heading h1 { font-size: 1.4em; margin: 0; }
    #heading p { margin: 0; font-size: 0.85em; }
    #tray { min-height: 130px; }
    #examples .grid-container { grid-template-columns: none !important; grid-auto-flow: column;
        grid-auto-columns: 72px; overflow-x: auto; contain: inline-size; }
    .conversation { height: 340px !important; }
    #main { flex-direction: column; flex-wrap: nowrap; }
    #main > .column { display: contents; }
    #to-try .row { flex-wrap: nowrap; overflow-x: auto; contain: inline-size; }
    #to-try button { flex: none; }
    #actions .row { display: grid; grid-template-columns: repeat(3, 1fr); }
    #composer { order: 1; }
    #chats { order: 2; }
    #actions { order: 3; }
    #drawers { order: 4; }
}
"""

HEAD = """
<style>
/* The browser's own parts, scroll bars for one, are dark where the page is. */
html:has(body.dark) { color-scheme: dark; }
@media (max-width: 640px), (pointer: coarse) {
    /* A finger's width. */
    button, textarea { min-height: 44px !important; min-width: 44px !important; }
    input:not([type=radio], [type=file]) { min-height: 44px !important; }
    .tab-like-container { height: auto !important; }
    .label-wrap { align-items: center; }
}
@media (max-width: 640px) {
    .gradio-container > main { padding: 8px !important; }
}
</style>
"""
"""Rules that gradio would narrow to less than they are for."""

SHOW_COMPOSER, SHOW_CHATS = (
    f"""() => document.getElementById("{part}").scrollIntoView({{block: "nearest"}})"""
    for part in ("composer", "chats")
)
"""Nothing moves where the part is seen whole."""

AT_LOADING = """
() => {
    // gradio drops the texts of images in a conversation; what was said with one tells what it is.
    new MutationObserver(() => {
        for (const image of document.querySelectorAll(".conversation img:not([alt]), .conversation img[alt='']"))
            image.alt = image.closest(".message-row")?.innerText.trim() || "…";
    }).observe(document.body, {childList: true, subtree: true});
    return navigator.language;
}
"""
"""Gives the browser's language."""

DOWNLOAD = """
(text) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], {type: "%s"}));
    link.download = "%s";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
"""
"""With a type and a file's name."""
