"""The pictures of a request: data-URIs as they are, and addresses fetched where that is allowed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import unquote

from monkey.serving.api.errors import ApiError, shown
from monkey.serving.api.fetching import Fetcher


async def picture_sources(urls: Sequence[str], fetcher: Fetcher | None) -> list[bytes | str]:
    """Bytes of a file or a data-URI for each address; a path or anything else is never among them.

    Args:
        fetcher: None where nothing is fetched.

    Raises:
        ApiError: an address that is not of this kind, or that gives nothing.
    """
    return [await _source(url, number, fetcher) for number, url in enumerate(urls, start=1)]


def clean_address(url: str) -> str:
    """An address, with a data-URI's base64 as it is written most strictly.

    Broken into lines, written as a URL writes it (`%2B`), in the alphabet for URLs or without padding, it means the
    same. A blank inside a line is left to be refused: a `+` may have stood there.
    """
    url = url.strip()
    if url[:5].lower() != "data:":
        return url
    head, comma, encoded = unquote(url).partition(",")
    encoded = re.sub(r"[ \t]*[\r\n]+[ \t]*", "", encoded).replace("-", "+").replace("_", "/").rstrip("=")
    return f"{head}{comma}{encoded}{'=' * (-len(encoded) % 4)}"


async def _source(url: str, number: int, fetcher: Fetcher | None) -> bytes | str:
    if url[:5].lower() == "data:":
        return url
    if url[:7].lower() != "http://" and url[:8].lower() != "https://":
        raise _refused(f"picture {number} is {shown(url)}, and a data-URI is needed: data:image/png;base64,…")
    if fetcher is None:
        raise _refused(
            f"picture {number} is an address, and this server fetches none; send the picture as a data-URI, or have "
            "the server started with --allow-hosts"
        )
    try:
        return await fetcher.fetch(url)
    except ValueError as error:
        raise _refused(f"picture {number}: {error}") from error


def _refused(message: str) -> ApiError:
    return ApiError(400, message, param="messages", code="invalid_image_url")
