"""What the model sees, as pictures: the views of a picture, and where the last answer looked."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from PIL import Image

from monkey.serving.attention_maps import draw_heat, draw_views
from monkey.serving.demo.conversation import Conversation, last_pictures, messages_for
from monkey.serving.demo.pictures import KeptPicture
from monkey.serving.demo.wording import Wording

if TYPE_CHECKING:
    from monkey.serving.attention_maps import ImageAttention
    from monkey.serving.session import Answerer

Captioned = tuple[Image.Image, str]


def views_of(answerer: Answerer, image: Image.Image, picture: KeptPicture, words: Wording) -> Captioned:
    """The windows and the global view that a model gets of a picture."""
    width, height = picture.size
    return draw_views(image, answerer.model.config), words.views_of.format(
        name=picture.name, width=width, height=height
    )


def heat_of(
    answerer: Answerer,
    place: int,
    conversation: Conversation,
    opened: Callable[[KeptPicture], Image.Image],
    words: Wording,
) -> list[Captioned]:
    """Where the last answer and the resampler's queries looked, on the pictures that were shown last.

    Raises:
        ValueError, FileNotFoundError, MemoryError, TimeoutError: as of `Answerer.attention_maps`.
    """
    messages = messages_for(conversation, place, answerer.form)
    maps = answerer.attention_maps(messages, conversation[-1].answers[place].text)
    config = answerer.model.config
    shown: list[Captioned] = []
    pictures = last_pictures(conversation)
    for picture, attention in zip(pictures, _of_last(maps, conversation), strict=True):
        image = opened(picture)
        caption = words.heat_of_answer.format(share=f"{attention.share:.0%}")
        shown.append((draw_heat(image, attention.answer_on_windows), caption))
        shown.append((draw_views(image, config, attention.answer), caption))
        shown.append((draw_views(image, config, attention.queries), words.heat_of_queries))
    return shown


def _of_last(maps: list[ImageAttention], conversation: Conversation) -> list[ImageAttention]:
    """Of the maps of every picture in a conversation, those of the pictures that were shown last: nothing was shown
    after them."""
    return maps[len(maps) - len(last_pictures(conversation)) :]


def counts_of(answerer: Answerer, num_pictures: int, words: Wording) -> str:
    """How many views and tokens pictures become."""
    config = answerer.model.config
    return words.sees_counts.format(
        windows=config.num_windows,
        side=config.window_size,
        views=config.num_views,
        tokens=f"{config.image_tokens:,}",
        pictures=num_pictures,
        total=f"{num_pictures * config.image_tokens:,}",
    )


def answer_counts(conversation: Conversation, place: int, name: str, words: Wording) -> str:
    """Tokens of the last exchange, and how sure the model was."""
    answer = conversation[-1].answers[place]
    sentence = words.answer_counts.format(name=name, prompt=f"{answer.prompt_tokens:,}", answer=answer.new_tokens)
    if answer.confidence is not None:
        sentence += f", {words.answer_confidence.format(confidence=f'{answer.confidence:.2f}')}"
    return sentence
