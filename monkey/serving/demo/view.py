"""Conversation, notices and lines about models as values of gradio's components.

What users and the model write is shown as plain text. gradio's Chatbot puts text into the page as HTML, even with
`render_markdown=False`, and its sanitiser only drops what is dangerous: `<script>` would vanish from an answer and
`<b>` turn bold. So every text is escaped first; the sanitiser stays on behind that.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import gradio as gr

from monkey.boxes import without_markup
from monkey.serving.demo.conversation import Answer, Conversation
from monkey.serving.demo.examples import Example
from monkey.serving.demo.opening import Models, Progress
from monkey.serving.demo.pictures import KeptPicture
from monkey.serving.demo.wording import Wording

if TYPE_CHECKING:
    from monkey.serving.session import Answerer


# Markup at the end of a text that is still being written: a name and its box are shown when they are whole.
_UNFINISHED = re.compile(r"<(?:/?[a-z]{0,4}|ref>(?:(?!</ref>).)*|(box|quad)>[^<]*(?:</?[a-z]{0,4})?)$", re.DOTALL)


def chat_of(conversation: Conversation, place: int, words: Wording) -> list[dict]:
    """Messages of the Chatbot that shows one model's answers."""
    messages = []
    for exchange in conversation:
        pictures = [{"path": str(picture.shown), "alt_text": picture.name} for picture in exchange.pictures]
        messages.append({"role": "user", "content": [*pictures, _plain(exchange.asked)]})
        answer = exchange.answers[place]
        drawn = [{"path": answer.drawn, "alt_text": words.boxes}] if answer.drawn else []
        messages.append({"role": "assistant", "content": [_plain(_readable(answer, words)), *drawn]})
    return messages


def _readable(answer: Answer, words: Wording) -> str:
    """An answer without the markup of boxes, and what is to be said of it where it is not whole."""
    is_whole = answer.is_finished and not answer.is_stopped
    text = without_markup(answer.text if is_whole else _UNFINISHED.sub("", answer.text))
    if answer.is_stopped:
        return f"{text} {words.stopped}".strip()
    return text or (words.no_answer if answer.is_finished else "…")


def _plain(text: str) -> dict[str, str]:
    """A message that shows `text` to the letter."""
    return {"type": "text", "text": html.escape(text)}


def tray_of(pictures: Sequence[KeptPicture]) -> list:
    """The pictures that go along with the next question, and whether there is a tray: not where there are none."""
    return [[(str(picture.shown), picture.name) for picture in pictures], gr.update(visible=bool(pictures))]


def notice(sentence: str) -> dict:
    """The notice saying a sentence, or hidden for ""."""
    value = f'<p class="sentence" role="alert">{literal(sentence)}</p>' if sentence else ""
    return gr.update(value=value, visible=bool(sentence))


def about(models: Models, words: Wording) -> str:
    """Lines about the models, as HTML: how far opening has come, or what they are."""
    if models.error is not None:
        return _line(words.not_opened.format(reason=models.error))
    if not models.is_open:
        return f'{_line(opening(models.progress, words))}<progress value="{models.progress.share:.3f}"></progress>'
    return "".join(map(_line, (described(*pair, words) for pair in zip(models.answerers, models.names, strict=True))))


def abilities(models: Models, words: Wording) -> str:
    """What each model can do and which languages it knows, as HTML, where its card says so."""
    told = []
    for choice in models.choices:
        languages = of_language(choice.card.languages, words)
        known = words.languages.format(languages=languages) if languages else ""
        told.append((choice.name, f"{of_language(choice.card.abilities, words)} {known}".strip()))
    return "".join(_named_lines(told, len(models.choices) > 1))


def terms(models: Models, words: Wording) -> str:
    """The terms of each model's card, as HTML."""
    told = [(choice.name, of_language(choice.card.terms, words)) for choice in models.choices]
    return f"<p><b>{literal(words.terms_of_weights)}</b></p>{''.join(_named_lines(told, len(told) > 1))}"


def _named_lines(told: Sequence[tuple[str, str]], are_named: bool) -> list[str]:
    """A line of HTML for each text that is not empty, behind the name of its model; one for all that say the same."""
    texts = dict.fromkeys(text for _, text in told if text)
    if len(texts) == 1 and all(text for _, text in told):
        are_named = False
    names = {text: ", ".join(name for name, said in told if said == text) for text in texts}
    return [_line(f"{names[text]}: {text}" if are_named else text) for text in texts]


def of_language(text: Mapping[str, str], words: Wording) -> str:
    """A text of a card in the page's language, else in English; "" where there is none."""
    return text.get(words.code, text.get("en", ""))


def opening(progress: Progress, words: Wording) -> str:
    percent = f"{progress.share:.0%}"
    return words.opening.format(name=progress.name, number=progress.number, of=progress.of, percent=percent)


def described(answerer: Answerer, name: str, words: Wording) -> str:
    """A sentence about an open model."""
    config = answerer.model.config
    (height, width), (rows, columns) = config.canvas_size, config.grid
    return words.model.format(
        name=name,
        height=height,
        width=width,
        rows=rows,
        columns=columns,
        tokens=f"{config.image_tokens:,}",
        device=str(answerer.model.device).upper(),
    )


def record_of(answerer: Answerer, name: str) -> dict[str, Any]:
    """The same for programs."""
    config = answerer.model.config
    return {
        "name": name,
        "grid": list(config.grid),
        "canvas": list(config.canvas_size),
        "image_tokens": config.image_tokens,
        "device": str(answerer.model.device),
    }


def _line(text: str) -> str:
    return f"<p>{literal(text)}</p>"


def paragraphs(sentences: Sequence[str]) -> str:
    """HTML of sentences, one below the other."""
    return "".join(map(_line, sentences))


def figures(shown: Sequence[tuple[Path, str]]) -> str:
    """HTML of pictures that gradio serves, each with its caption; a click opens one by itself."""
    parts = []
    for path, caption in shown:
        address = f"gradio_api/file={quote(path.as_posix())}"
        picture = (
            f'<a href="{address}" target="_blank" rel="noopener"><img src="{address}" alt="{literal(caption)}"></a>'
        )
        parts.append(f"<figure>{picture}<figcaption>{literal(caption)}</figcaption></figure>")
    return f'<div class="figures">{"".join(parts)}</div>' if parts else ""


def buttons_of(examples: Sequence[Example]) -> str:
    """HTML of examples to choose from. The pictures are in it, so that no path of this machine is told."""
    parts = []
    for place, example in enumerate(examples):
        content = base64.b64encode(example.picture.read_bytes()).decode()
        label = literal(f"{example.name}: {example.question}")
        picture = f'<img src="data:image/jpeg;base64,{content}" alt="{label}">'
        parts.append(f'<button type="button" data-place="{place}" title="{label}">{picture}</button>')
    return f'<div class="examples">{"".join(parts)}</div>'


def literal(text: str) -> str:
    """HTML of plain text for `gr.HTML`, which also reads `${…}` and `{{…}}` as templates."""
    return html.escape(text).translate({ord(character): f"&#{ord(character)};" for character in "{}$"})
