"""The server at an address: found free before a model is opened, and ended without cutting an answer off."""

from __future__ import annotations

import errno
import ipaddress
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn

from monkey.serving.api.app import Api

_WHY_NOT = {
    errno.EADDRINUSE: "it is taken; give another with --port",
    errno.EACCES: "this user may not use it; give one above 1023 with --port",
    errno.EADDRNOTAVAIL: "this machine has no such address; --host takes one of its own, or 0.0.0.0 for all",
}


KEEP_ALIVE = 75
"""Seconds that a connection without a request stays open: longer than clients and proxies keep theirs (5 to 60), since
what is sent while the connection is being closed is answered by a reset. Whoever takes as long for the head of a
request, or to read an answer that is over, is parted with."""

GRACE = 5
"""Seconds that the end of the server waits for answers to be read, and for threads after a second signal."""


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket at that address, on which nobody is heard before the server runs; port 0 is any that is free.

    Raises:
        ValueError: nothing can listen there.
    """
    if not 0 <= port <= 65535:
        raise ValueError(f"--port is {port}, and a number from 0 to 65535 is needed")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise ValueError(f"--host {host} is no address of this machine ({error})") from error
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        listening.close()
        raise _cannot_listen(port, host, error) from error
    return listening


def _cannot_listen(port: int, host: str, error: OSError) -> ValueError:
    reason = _WHY_NOT.get(error.errno, error.strerror)
    return ValueError(f"the server cannot listen on port {port} of {host}: {reason}")


def is_loopback(listening: socket.socket) -> bool:
    """Whether only this machine reaches it."""
    return ipaddress.ip_address(listening.getsockname()[0]).is_loopback


def base_url(listening: socket.socket) -> str:
    """What OpenAI's client takes as `base_url`."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"


class Server(uvicorn.Server):
    """Ends when the answers in progress are finished, and refuses others meanwhile.

    A second signal ends it at once, and the process with it, whatever its callers and threads are at.

    Attributes:
        url: what OpenAI's client takes as `base_url`.
    """

    def __init__(self, api: Api, listening: socket.socket):
        self.url = base_url(listening)
        self._admission = api.admission
        self._is_urgent = False
        self._longest = api.limits.seconds + KEEP_ALIVE
        self._seen: dict[tuple[Any, Any, bool], float] = {}
        super().__init__(
            uvicorn.Config(
                api.app,
                http="h11",
                ws="none",
                lifespan="off",
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=GRACE,
            )
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.interrupt()
        if self._is_urgent:
            last_resort = threading.Timer(2 * GRACE, os._exit, [128 + sig])
            last_resort.daemon = True
            last_resort.start()
        if (left := self._admission.in_flight) and not self._is_urgent:
            print(f"{signal.Signals(sig).name}: finishing {left} requests; once more ends them", file=sys.stderr)

    def interrupt(self) -> None:
        """End when nobody is in the house any longer; called again, at once. From any thread."""
        self._is_urgent = self._admission.is_draining
        self._admission.is_draining = True

    async def on_tick(self, counter: int) -> bool:
        if self._is_urgent:
            self._admission.stop()
        if self._admission.is_draining and (not self._admission.in_flight or self._is_urgent):
            self.should_exit = True
        self._part_with_lingering()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    def _part_with_lingering(self) -> None:
        """Close the connections that have been at the same thing for too long: one request, or none."""
        now, seen = time.monotonic(), {}
        for connection in list(self.server_state.connections):
            cycle, transport = connection.cycle, connection.transport
            is_over = cycle is None or cycle.response_complete or transport.is_closing()
            state = connection, cycle, is_over
            seen[state] = self._seen.get(state, now)
            if now - seen[state] > (KEEP_ALIVE if is_over else self._longest):
                # What a caller does not read keeps a connection open for ever that is closed and not aborted.
                (transport.abort if transport.get_write_buffer_size() else transport.close)()
        self._seen = seen


def serve(api: Api, listening: socket.socket) -> None:
    """Serve until a signal says to end.

    Raises:
        ValueError: another process has begun to listen there since `bound_socket`.
    """
    host, port = listening.getsockname()[:2]
    try:
        Server(api, listening).run(sockets=[listening])
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise _cannot_listen(port, host, error) from error
    finally:
        api.close()
        if threading.current_thread() is threading.main_thread():
            # What is left to wait for is the model's thread; Ctrl-C ends that as SIGTERM does, which exits at once.
            signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def served(api: Api, listening: socket.socket) -> Iterator[Server]:
    """The server, running in a thread of its own inside the block."""
    server = Server(api, listening)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="server")
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        yield server
    finally:
        server.interrupt()
        thread.join()
        api.close()
