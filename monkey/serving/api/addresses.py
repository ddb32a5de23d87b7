"""Addresses of pictures: which are of a host that is allowed, and which numbers a connection may go to."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

PORTS = {"http": 80, "https": 443}

_ADDRESS = re.compile(r"[!-\[\]-~]+")
"""ASCII without blanks, control characters and the backslash, which readers of addresses understand differently."""

_HOST = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*(:[0-9]{1,5})?")

_UNICAST = ipaddress.ip_network("2000::/3")
"""All that is handed out of IPv6; the ranges that carry an address of IPv4 and lie outside are left out with it."""


@dataclass(frozen=True)
class Address:
    """Where a picture is, taken apart once, so that what is checked is what is connected to."""

    scheme: str
    host: str
    port: int
    target: str
    """Path and query."""

    def __str__(self) -> str:
        port = "" if self.port == PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{self.host}{port}{self.target}"


def checked_hosts(text: str) -> frozenset[str]:
    """The hosts of `--allow-hosts`, `a.example,b.example:8443`.

    Raises:
        ValueError: one that is not a name.
    """
    hosts = [host.strip().lower() for host in text.split(",")]
    for host in hosts:
        if not _HOST.fullmatch(host) or host.partition(":")[0].rpartition(".")[2].isdigit():
            raise ValueError(
                f"--allow-hosts {host!r} is not the name of a host; names stand without http:// and path, as in "
                "a.example,b.example:8443"
            )
    return frozenset(hosts)


def checked_origins(text: str) -> list[str]:
    """The origins of `--cors-origins`, `http://localhost:3000,https://a.example`.

    Raises:
        ValueError: one that is not an origin, exactly as a browser sends it.
    """
    origins = [origin.strip().lower() for origin in text.split(",")]
    for origin in origins:
        scheme, _, host = origin.partition("://")
        if scheme not in PORTS or not _HOST.fullmatch(host):
            raise ValueError(
                f"--cors-origins {origin!r} is not the origin of a page; each stands in full and without a path, as in "
                "http://localhost:3000,https://a.example"
            )
    return origins


def checked_address(url: str, hosts: Collection[str]) -> Address:
    """An address of http or https at one of `hosts`.

    Args:
        hosts: names, with a port where another than the scheme's own is meant.

    Raises:
        ValueError: anything else, in a sentence that begins behind the address.
    """
    if not _ADDRESS.fullmatch(url):
        raise ValueError("holds characters that an address cannot have; write them as %XX")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"is not an address ({error})") from None
    if parts.scheme not in PORTS:
        raise ValueError("is not of http or https, and nothing else is fetched")
    if parts.username is not None or parts.password is not None:
        raise ValueError("holds a name or a password, which are not sent")
    host, port = (parts.hostname or "").lower(), port or PORTS[parts.scheme]
    if (host if port == PORTS[parts.scheme] else f"{host}:{port}") not in hosts:
        raise ValueError("is not at a host that this server fetches from (--allow-hosts)")
    return Address(parts.scheme, host, port, (parts.path or "/") + (f"?{parts.query}" if parts.query else ""))


def is_public(address: str) -> bool:
    """Whether a number, such as 93.184.216.34, is of a machine out on the internet: not of this machine, of a network
    around it, of a cloud's metadata service, of many machines at once, or of nothing at all."""
    number = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(number, ipaddress.IPv6Address):
        if number.ipv4_mapped is not None:
            return is_public(str(number.ipv4_mapped))
        if number not in _UNICAST or number.sixtofour is not None or number.teredo is not None:
            return False
    return number.is_global and not number.is_multicast and not number.is_reserved
