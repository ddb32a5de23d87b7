"""Images from hosts that whoever runs the server allows, fetched so that no one can make it look elsewhere.

A host's addresses are looked up once: if any of them is not public the image is refused, and the connection goes to one
that was checked, not to what a second lookup says. Each step of a redirection is checked as the first URL was.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from socket import SOCK_STREAM

import httpx

from monkey.serving.protocol import ApiError, shown

_URL = re.compile(r"[!-\[\]-~]+")
"""ASCII without blanks, control characters and the backslash, which readers of URLs understand differently."""

_UNICAST = ipaddress.ip_network("2000::/3")
"""All that is handed out of IPv6; the ranges that carry an address of IPv4 and lie outside are left out with it."""

_HEADERS = {"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "monkey"}

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""From a host's name and a port to its addresses."""


@dataclass(frozen=True)
class Fetcher:
    """Fetches images from some hosts.

    Args:
        hosts: names, with a port where another than the scheme's own is meant.
        max_bytes: of an image.
        seconds: for an image, redirections and lookups included.
        resolve, transport: what looks names up and connects; others in tests.
    """

    hosts: Collection[str]
    max_bytes: int
    seconds: float = 10.0
    max_redirects: int = 3
    resolve: Resolve | None = None
    transport: httpx.AsyncBaseTransport | None = None

    async def fetch(self, url: str) -> bytes:
        """Return what is at a URL.

        Raises:
            ValueError: it cannot be had, in a sentence that names it.
        """
        try:
            async with asyncio.timeout(self.seconds):
                return await self._follow(url)
        except TimeoutError:
            reason = f"did not arrive within {self.seconds:g} seconds"
        except (OSError, httpx.HTTPError) as error:
            reason = f"cannot be fetched ({type(error).__name__})"
        except (ValueError, httpx.InvalidURL) as error:
            reason = str(error)
        raise ValueError(f"{shown(url, 120)} {reason}")

    async def _follow(self, text: str) -> bytes:
        url = self._checked(text)
        for _ in range(self.max_redirects + 1):
            content, location = await self._get(url)
            if location is None:
                return content
            following = self._checked(location, url)
            if (url.scheme, following.scheme) == ("https", "http"):
                raise ValueError("leads from https to http")
            url = following
        raise ValueError(f"leads on more than {self.max_redirects} times")

    def _checked(self, text: str, base: httpx.URL | None = None) -> httpx.URL:
        """Read a URL of http or https at one of the hosts; what is checked here is what is connected to."""
        if not _URL.fullmatch(text):
            raise ValueError("holds characters that a URL cannot have; write them as %XX")
        url = base.join(text) if base else httpx.URL(text)
        if url.scheme not in ("http", "https"):
            raise ValueError("is not of http or https, and nothing else is fetched")
        if url.userinfo:
            raise ValueError("holds a name or a password, which are not sent")
        if url.netloc.decode() not in self.hosts:
            raise ValueError("is not at a host that this server fetches from (--allow-hosts)")
        return url

    async def _get(self, url: httpx.URL) -> tuple[bytes, str | None]:
        """Return what is at one URL, or where it leads on to."""
        addresses = await (self.resolve or look_up)(url.host, url.port or {"http": 80, "https": 443}[url.scheme])
        if not addresses or not all(map(is_public, addresses)):
            raise ValueError(f"is at a host, {url.host}, that has no address or one inside a network of its own")
        for address in addresses[:-1]:
            try:
                return await self._get_from(address, url)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                continue  # a host may have addresses of IPv6 where this machine has none
        return await self._get_from(addresses[-1], url)

    async def _get_from(self, address: str, url: httpx.URL) -> tuple[bytes, str | None]:
        # The address in place of the name, which the server and its certificate are still asked for.
        headers, names = {**_HEADERS, "Host": url.netloc.decode()}, {"sni_hostname": url.host}
        async with (
            httpx.AsyncClient(transport=self.transport, trust_env=False, timeout=self.seconds) as client,
            client.stream("GET", url.copy_with(host=address), headers=headers, extensions=names) as response,
        ):
            if response.has_redirect_location:
                return b"", response.headers["Location"]
            if response.status_code != 200:
                raise ValueError(f"answers {response.status_code}")
            packing = response.headers.get("Content-Encoding", "identity")
            if packing.lower() != "identity":
                raise ValueError(f"comes packed ({shown(packing)}), which was not asked for")
            content = bytearray()
            async for part in response.aiter_raw():
                content += part
                if len(content) > self.max_bytes:
                    raise ValueError(f"has more than the {self.max_bytes:,} bytes allowed")
            return bytes(content), None


async def look_up(host: str, port: int) -> list[str]:
    """Return the addresses that the system knows a host by."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=SOCK_STREAM)
    return list(dict.fromkeys(address[0] for *_, address in found))


def is_public(text: str) -> bool:
    """Whether an address, such as 93.184.216.34, is of a machine out on the internet: not of this machine, of a network
    around it, of a cloud's metadata service, of many machines at once, or of nothing at all."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(str(address.ipv4_mapped))
        if address not in _UNICAST or address.sixtofour is not None or address.teredo is not None:
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


async def image_sources(urls: Sequence[str], fetcher: Fetcher | None) -> list[bytes | str]:
    """Return the bytes of a file or a data-URI for each URL; a path or anything else is never among them.

    Args:
        fetcher: None where nothing is fetched.

    Raises:
        ApiError: a URL that is not of this kind, or that gives nothing.
    """
    sources: list[bytes | str] = []
    for number, url in enumerate(urls, start=1):
        try:
            sources.append(await _source(url, fetcher))
        except ValueError as error:
            message = f"image {number}: {error}"
            raise ApiError(400, message, param="messages", code="invalid_image_url") from error
    return sources


async def _source(url: str, fetcher: Fetcher | None) -> bytes | str:
    if url[:5].lower() == "data:":
        return url
    if not url.lower().startswith(("http://", "https://")):
        raise ValueError(f"{shown(url)} is not a data-URI, and one is needed: data:image/png;base64,…")
    if fetcher is None:
        raise ValueError(
            "it is an address, and this server fetches none; send the image as a data-URI, or have the server started "
            "with --allow-hosts"
        )
    return await fetcher.fetch(url)
