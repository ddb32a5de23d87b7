"""Opening the demo at an address of this machine, and closing it without a trace."""

from __future__ import annotations

import errno
import importlib.util
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monkey.serving.demo.access import Pair
from monkey.serving.demo.examples import examples
from monkey.serving.demo.opening import Models
from monkey.serving.demo.pictures import PictureStore, Sweeper
from monkey.serving.demo.uploads import UploadsOnly

if TYPE_CHECKING:
    import gradio

SHOW_ERROR_SECONDS = 2.5
"""Pages that are open ask every second how far the model is."""

LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")

_WHY_NOT = {
    errno.EADDRINUSE: "it is taken; give another with --server-port",
    errno.EACCES: "this user may not use it; give one above 1023 with --server-port",
    errno.EADDRNOTAVAIL: "this machine has no such address; --server-name takes one of its own, or 0.0.0.0 for all",
}


def check_address(server_name: str, server_port: int) -> None:
    """Raise ValueError when nothing can listen at that address, so that no model is opened in vain."""
    host = server_name.strip("[]")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, server_port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except socket.gaierror as error:
        raise ValueError(f"--server-name {server_name} is no address of this machine ({error.strerror})") from error
    except OSError as error:
        reason = _WHY_NOT.get(error.errno, error.strerror)
        raise ValueError(f"the demo cannot listen on port {server_port} of {server_name}: {reason}") from error


def require_gradio() -> None:
    """Raise ValueError when gradio, which only the demo needs, is not installed."""
    if importlib.util.find_spec("gradio") is None:
        raise ValueError(
            "the demo needs gradio, which is not installed; `pip install gradio` or `pip install '.[demo]'`"
        )


@contextmanager
def running_demo(
    models: Models,
    server_name: str,
    server_port: int,
    *,
    share: bool = False,
    inbrowser: bool = False,
    people: Sequence[Pair] = (),
    answers_at_once: int = 8,
) -> Iterator[gradio.Blocks]:
    """The demo, running in threads of its own inside the block; its uploads are gone after it.

    Args:
        models: what answers; may still be on its way.
        people: names and passwords of those who may come in; empty for everybody.
        answers_at_once: questions that are answered at the same time.

    Raises:
        ValueError: nothing can listen at that address.
    """
    check_address(server_name, server_port)
    # Uploads go to a folder that only this user can read and that ends with the demo.
    with (
        tempfile.TemporaryDirectory(prefix="monkey-demo-", ignore_cleanup_errors=True) as folder,
        _environment({"GRADIO_TEMP_DIR": folder, **_without_proxy(server_name)}),
    ):
        # Inside, because gradio looks for the folder when it is imported, too.
        import gradio
        from starlette.middleware import Middleware

        from monkey.serving.access import Access
        from monkey.serving.demo.app import build_app
        from monkey.serving.demo.style import CSS, FONTS, HEAD

        # Whoever is asked for a password, or reaches it through a public link, comes by other names.
        is_own = server_name in LOOPBACK and not share and not people
        middleware = [Middleware(Access, keys=(), is_loopback=is_own), Middleware(UploadsOnly)]
        store = PictureStore(Path(folder))
        app = build_app(models, store, examples(), answers_at_once)
        try:
            _launch(
                app,
                server_name=_host(server_name),
                server_port=server_port,
                share=share,
                inbrowser=inbrowser,
                auth=list(people) or None,
                max_file_size=models.max_bytes,
                theme=gradio.themes.Soft(
                    primary_hue="indigo", font=list(FONTS), font_mono=["ui-monospace", "monospace"]
                ),
                css=CSS,
                head=HEAD,
                footer_links=[],
                run_history=False,
                ssr_mode=False,
                mcp_server=False,
                enable_monitoring=False,
                pwa=False,
                num_workers=0,
                app_kwargs={"middleware": middleware, "docs_url": None, "redoc_url": None},
            )
            with Sweeper(store):
                yield app
        finally:
            app.close(verbose=False)


def _launch(app: gradio.Blocks, server_name: str, server_port: int, **settings: Any) -> None:
    try:
        app.launch(server_name=server_name, server_port=server_port, prevent_thread_lock=True, quiet=True, **settings)
    except OSError as error:
        raise ValueError(f"the demo cannot listen on port {server_port} of {server_name} ({error})") from error


def serve(
    models: Models,
    server_name: str,
    server_port: int,
    *,
    share: bool = False,
    inbrowser: bool = False,
    people: Sequence[Pair] = (),
    answers_at_once: int = 8,
) -> None:
    """Open the models and run the demo until Ctrl-C or a termination signal.

    Raises:
        Exception: what opening the models raised, after open pages had the time to show it.
    """
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    settings = {"share": share, "inbrowser": inbrowser, "people": people, "answers_at_once": answers_at_once}
    try:
        with running_demo(models, server_name, server_port, **settings) as app, models:
            _announce(app, models, server_name, share, people)
            is_open = False
            while not stopped.wait(0.5):  # waiting without a limit would not hear Ctrl-C on Windows
                if models.error is not None:
                    stopped.wait(SHOW_ERROR_SECONDS)
                    raise models.error
                if models.is_open and not is_open:
                    is_open = True
                    print("the model is open", flush=True)
    except KeyboardInterrupt:
        pass
    print("the demo has ended", flush=True)


def _announce(app: gradio.Blocks, models: Models, server_name: str, share: bool, people: Sequence[Pair]) -> None:
    print(f"the demo is at {app.local_url} (Ctrl-C ends it); opening {' and '.join(models.names)}", flush=True)
    if server_name not in LOOPBACK:
        print("it can be reached from other machines; --server-name 127.0.0.1 keeps it to this one", flush=True)
    if share and app.share_url:
        print(f"it can be reached from everywhere, through gradio's servers, at {app.share_url}", flush=True)
    elif share:
        print("no public link could be made; the demo runs without one", flush=True)
    if not people and (share or server_name not in LOOPBACK):
        print("everybody who reaches it may come in; --auth-file asks for names and passwords", flush=True)


def _host(server_name: str) -> str:
    """The address as it stands in a link: IPv6 in brackets."""
    return f"[{server_name.strip('[]')}]" if ":" in server_name else server_name


def _without_proxy(server_name: str) -> dict[str, str]:
    """Variables that keep calls to our own address from a proxy, which cannot know it: gradio makes one to see whether
    the page answers."""
    names = ("no_proxy", "NO_PROXY")
    return {name: ",".join(filter(None, (os.environ.get(name), *LOOPBACK[:2], server_name))) for name in names}


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Environment variables, as they were before afterwards."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
