"""Which image belongs to which text, and which tokens a text can lose without losing an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def share_images(places: Sequence[int], images: Any) -> list[list[Any]]:
    """The images of each text of a batch.

    Args:
        places: image places in each text.
        images: None, one image, a flat list in the order of the places over the batch, or one list (or None) a text.
            A text without a place has its images put first. A flat list for several texts without any place means one
            image a text.

    Raises:
        ValueError: more or fewer images than places, with both numbers and the text.
    """
    if images is None:
        images = []
    elif not isinstance(images, (list, tuple)):
        images = [images]
    if any(image is None or isinstance(image, (list, tuple)) for image in images):
        return _share_nested(places, images)
    if not images or sum(places):
        return _share_by_places(places, images)
    if len(places) == 1:
        return [list(images)]
    if len(places) == len(images):
        return [[image] for image in images]
    raise ValueError(
        f"{len(images)} images for {len(places)} texts without a place for one: give one image a text, or one list of "
        "images a text"
    )


def _share_nested(places: Sequence[int], images: Sequence[Any]) -> list[list[Any]]:
    for number, own in enumerate(images, start=1):
        if own is not None and not isinstance(own, (list, tuple)):
            raise ValueError(
                f"images mixes lists and single images (entry {number} is a {type(own).__name__}); give either a flat "
                "list or one list a text"
            )
    if len(images) != len(places):
        raise ValueError(f"images holds {len(images)} lists for {len(places)} texts; give one list a text")
    shared = [list(own or ()) for own in images]
    for number, (count, own) in enumerate(zip(places, shared, strict=True), start=1):
        if count and count != len(own):
            raise ValueError(f"text {number} has {_counted(count, 'place')} for {_counted(len(own), 'image')}")
    return shared


def _share_by_places(places: Sequence[int], images: Sequence[Any]) -> list[list[Any]]:
    if sum(places) != len(images):
        by_text = ", ".join(f"text {number} has {count}" for number, count in enumerate(places, start=1) if count)
        raise ValueError(
            f"{_counted(len(images), 'image')} for {_counted(sum(places), 'place')} ({by_text}); give one image for "
            "each <img></img>"
        )
    rest = iter(images)
    return [[next(rest) for _ in range(count)] for count in places]


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def kept_positions(
    ids: Sequence[int], limit: int, image_start_id: int, image_end_id: int, side: str = "right"
) -> list[int]:
    """Positions that stay when `ids` is cut to `limit` tokens from its `side`; image spans stay whole.

    Raises:
        ValueError: the image spans alone are longer than the limit, with both numbers.
    """
    in_span, kept, removable = False, [], []
    for position, token_id in enumerate(ids):
        in_span = in_span or token_id == image_start_id
        (kept if in_span else removable).append(position)
        in_span = in_span and token_id != image_end_id
    if len(kept) > limit:
        raise ValueError(
            f"its images alone are {len(kept):,} tokens, more than the {limit:,} it may have, and image tokens are "
            "never cut; give fewer images or a smaller grid"
        )
    room = limit - len(kept)
    rest = removable[:room] if side == "right" else removable[max(0, len(removable) - room) :]
    return sorted(kept + rest)
