"""Where the server listens, and who may ask: keys, names of this machine, hosts and origins that flags name."""

from __future__ import annotations

import errno
import hashlib
import hmac
import ipaddress
import re
import socket
from collections.abc import Iterable, Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from monkey.serving.protocol import ApiError

OPEN_PATHS = frozenset(("/health",))
"""What is answered without a key."""

LOOPBACK_NAMES = frozenset(("127.0.0.1", "localhost", "[::1]"))

_HOST = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*(:[0-9]{1,5})?")


class Access:
    """ASGI middleware that lets through who has a key, or, without keys, who calls this machine by its own name.

    The second keeps web pages out: one that makes its own name point to 127.0.0.1 still sends that name as `Host`.

    Args:
        keys: any of them opens; where there is none, no key is asked for.
        is_loopback: whether only this machine reaches the server.
    """

    def __init__(self, app: ASGIApp, keys: Iterable[str], is_loopback: bool):
        self.app = app
        self._digests = [_digest(key.encode()) for key in keys]
        self._checks_host = is_loopback and not self._digests

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = self._refusal(scope) if scope["type"] == "http" and scope["path"] not in OPEN_PATHS else None
        await (self.app if error is None else error.response())(scope, receive, send)

    def _refusal(self, scope: Scope) -> ApiError | None:
        headers = dict(scope["headers"])
        if self._digests and not self._knows(headers.get(b"authorization", b"")):
            message = "a key is needed, as `Authorization: Bearer KEY`, and none or a wrong one came"
            return ApiError(401, message, code="invalid_api_key")
        name = re.sub(r":\d*$", "", headers.get(b"host", b"").decode("latin-1").lower())
        if self._checks_host and name not in LOOPBACK_NAMES:
            return ApiError(403, "this server is for its own machine; call it by 127.0.0.1 or localhost", code="host")
        return None

    def _knows(self, header: bytes) -> bool:
        kind, _, key = header.partition(b" ")
        given = _digest(key.strip())
        # All are compared, each in constant time, so that the time tells nothing.
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        return kind.lower() == b"bearer" and any(matches)


def _digest(key: bytes) -> bytes:
    """Bring a key to the one length that comparing in constant time needs."""
    return hashlib.sha256(key).digest()


def read_keys(given: Sequence[str], listed: str) -> list[str]:
    """Join keys of flags and those that stand with commas between, or raise ValueError for one no header can carry."""
    keys = [*given, *(listed.split(",") if listed else [])]
    if not all(re.fullmatch(r"[!-~]+", key) for key in keys):
        raise ValueError("a key of --api-key or MONKEY_API_KEY is empty, or holds a blank or a character outside ASCII")
    return keys


def read_hosts(text: str) -> frozenset[str]:
    """Read the hosts of `--allow-hosts`, `a.example,b.example:8443`, or raise ValueError."""
    hosts = [host.strip().lower() for host in text.split(",")]
    for host in hosts:
        if not _HOST.fullmatch(host) or host.partition(":")[0].rpartition(".")[2].isdigit():
            raise ValueError(
                f"--allow-hosts {host!r} is not the name of a host; names stand without http:// and path, as in "
                "a.example,b.example:8443"
            )
    return frozenset(hosts)


def read_origins(text: str) -> list[str]:
    """Read the origins of `--cors-origins` as browsers send them, `http://localhost:3000`, or raise ValueError."""
    origins = [origin.strip().lower() for origin in text.split(",")]
    for origin in origins:
        scheme, _, host = origin.partition("://")
        if scheme not in ("http", "https") or not _HOST.fullmatch(host):
            raise ValueError(
                f"--cors-origins {origin!r} is not the origin of a page; each stands in full and without a path, as in "
                "http://localhost:3000,https://a.example"
            )
    return origins


def bind(host: str, port: int, who: str = "server", flags: tuple[str, str] = ("--host", "--port")) -> socket.socket:
    """Take an address, on which nobody is heard before the server runs; port 0 is any that is free.

    Args:
        who, flags: what wants to listen, and its flags for host and port, as messages name them.

    Raises:
        ValueError: nothing can listen there.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"{flags[1]} is {port}, and a number from 0 to 65535 is needed")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise ValueError(f"{flags[0]} {host} is no address of this machine ({error})") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise cannot_listen(host, port, error, who, flags) from error
    return listener


def cannot_listen(
    host: str, port: int, error: OSError, who: str = "server", flags: tuple[str, str] = ("--host", "--port")
) -> ValueError:
    """Return what is told of an address that cannot be taken."""
    reasons = {
        errno.EADDRINUSE: f"it is taken; give another with {flags[1]}",
        errno.EACCES: f"this user may not use it; give one above 1023 with {flags[1]}",
        errno.EADDRNOTAVAIL: f"this machine has no such address; {flags[0]} takes one of its own, or 0.0.0.0 for all",
    }
    return ValueError(f"the {who} cannot listen on port {port} of {host}: {reasons.get(error.errno, error.strerror)}")


def is_loopback(listener: socket.socket) -> bool:
    """Whether only this machine reaches it."""
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def base_url(listener: socket.socket) -> str:
    """Return what OpenAI's client takes as `base_url`."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
