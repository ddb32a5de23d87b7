"""Pictures from hosts that whoever runs the server allows, fetched so that no one can make it look elsewhere.

Each step of a redirection is checked as the first address was. A host's numbers are looked up once: if any of them is
not public the picture is refused, and the connection goes to one that was checked, not to what a second lookup says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from socket import SOCK_STREAM
from typing import Any
from urllib.parse import urljoin

import httpcore

from monkey.serving.api.addresses import Address, checked_address, is_public
from monkey.serving.api.errors import shown

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""From a host's name and a port to its numbers."""

_REDIRECTIONS = frozenset((301, 302, 303, 307, 308))

_HEADERS = (("Accept", "image/*"), ("Accept-Encoding", "identity"), ("User-Agent", "monkey"))


@dataclass(frozen=True)
class FetchLimits:
    max_bytes: int
    seconds: float = 10.0
    """For a picture, redirections and lookups included."""
    redirects: int = 3


async def looked_up(host: str, port: int) -> list[str]:
    """The numbers that the system knows a host by."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=SOCK_STREAM)
    return list(dict.fromkeys(address[0] for *_, address in found))


class CheckedNetwork(httpcore.AsyncNetworkBackend):
    """Connects to numbers that were checked.

    Args:
        resolve: looks names up.
        network: makes the connections.
    """

    def __init__(self, resolve: Resolve, network: httpcore.AsyncNetworkBackend):
        self._resolve, self._network = resolve, network

    async def connect_tcp(self, host: str, port: int, **options: Any) -> httpcore.AsyncNetworkStream:
        numbers = await self._resolve(host, port)
        if not numbers or not all(map(is_public, numbers)):
            raise ValueError(f"is at a host, {host}, that has no address or one inside a network of its own")
        for number in numbers[:-1]:
            try:
                return await self._network.connect_tcp(number, port, **options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue  # a host may have numbers of IPv6 where this machine has none
        return await self._network.connect_tcp(numbers[-1], port, **options)


class Fetcher:
    """Fetches pictures from some hosts.

    Args:
        hosts: as `monkey.serving.api.addresses.checked_hosts` gives them.
        resolve, network: what looks names up and connects, for tests.
    """

    def __init__(
        self,
        hosts: Collection[str],
        limits: FetchLimits,
        resolve: Resolve = looked_up,
        network: httpcore.AsyncNetworkBackend | None = None,
    ):
        self.hosts, self.limits = hosts, limits
        self._network = CheckedNetwork(resolve, network or httpcore.AnyIOBackend())

    async def fetch(self, url: str) -> bytes:
        """What is at an address.

        Raises:
            ValueError: it cannot be had, in a sentence that names it.
        """
        try:
            async with asyncio.timeout(self.limits.seconds):
                return await self._followed(url)
        except TimeoutError:
            reason = f"did not arrive within {self.limits.seconds:g} seconds"
        except ValueError as error:
            reason = str(error)
        except (OSError, httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as error:
            reason = f"cannot be fetched ({type(error).__name__})"
        raise ValueError(f"{shown(url, 120)} {reason}")

    async def _followed(self, url: str) -> bytes:
        address = checked_address(url, self.hosts)
        for _ in range(self.limits.redirects + 1):
            content, location = await self._asked(address)
            if location is None:
                return content
            following = checked_address(urljoin(str(address), location), self.hosts)
            if (address.scheme, following.scheme) == ("https", "http"):
                raise ValueError("leads from https to http")
            address = following
        raise ValueError(f"leads on more than {self.limits.redirects} times")

    async def _asked(self, address: Address) -> tuple[bytes, str | None]:
        """What is at one address, or where it leads on to."""
        url = httpcore.URL(scheme=address.scheme, host=address.host, port=address.port, target=address.target)
        async with (
            httpcore.AsyncConnectionPool(network_backend=self._network) as pool,
            pool.stream("GET", url, headers=list(_HEADERS)) as response,
        ):
            headers = {name.lower(): value.decode("latin-1") for name, value in response.headers}
            if response.status in _REDIRECTIONS and b"location" in headers:
                return b"", headers[b"location"]
            if response.status != 200:
                raise ValueError(f"answers {response.status}")
            if headers.get(b"content-encoding", "identity").lower() != "identity":
                raise ValueError(f"comes packed ({shown(headers[b'content-encoding'])}), which was not asked for")
            content = bytearray()
            async for part in response.aiter_stream():
                content += part
                if len(content) > self.limits.max_bytes:
                    raise ValueError(f"has more than the {self.limits.max_bytes:,} bytes allowed")
            return bytes(content), None
