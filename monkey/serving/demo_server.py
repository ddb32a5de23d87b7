"""Opening the demo at an address of this machine, and closing it without a trace."""

from __future__ import annotations

import errno
import importlib.util
import os
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from monkey.serving.uploads import UploadsOnly

if TYPE_CHECKING:
    import gradio

    from monkey.serving.session import Answerer

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
    answerer: Answerer, server_name: str, server_port: int, *, share: bool = False, inbrowser: bool = False
) -> Iterator[gradio.Blocks]:
    """The demo, running in threads of its own inside the block; its uploads are gone after it.

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

        from monkey.serving.demo_app import CSS, FONTS, build_app

        app = build_app(answerer)
        try:
            _launch(
                app,
                server_name=_host(server_name),
                server_port=server_port,
                share=share,
                inbrowser=inbrowser,
                max_file_size=answerer.max_bytes,
                theme=gradio.themes.Soft(
                    primary_hue="indigo", font=list(FONTS), font_mono=["ui-monospace", "monospace"]
                ),
                css=CSS,
                footer_links=[],
                run_history=False,
                ssr_mode=False,
                mcp_server=False,
                enable_monitoring=False,
                pwa=False,
                num_workers=0,
                app_kwargs={"middleware": [Middleware(UploadsOnly)], "docs_url": None, "redoc_url": None},
            )
            yield app
        finally:
            app.close(verbose=False)


def _launch(app: gradio.Blocks, server_name: str, server_port: int, **settings: Any) -> None:
    try:
        app.launch(server_name=server_name, server_port=server_port, prevent_thread_lock=True, quiet=True, **settings)
    except OSError as error:
        raise ValueError(f"the demo cannot listen on port {server_port} of {server_name} ({error})") from error


def serve(
    answerer: Answerer, server_name: str, server_port: int, *, share: bool = False, inbrowser: bool = False
) -> None:
    """Run the demo until Ctrl-C or a termination signal."""
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    try:
        with running_demo(answerer, server_name, server_port, share=share, inbrowser=inbrowser) as app:
            print(f"the demo is at {app.local_url} (Ctrl-C ends it)", flush=True)
            if server_name not in LOOPBACK:
                print("it can be reached from other machines; --server-name 127.0.0.1 keeps it to this one", flush=True)
            if share and not app.share_url:
                print("no public link could be made; the demo runs without one", flush=True)
            while not stopped.wait(0.5):  # waiting without a limit would not hear Ctrl-C on Windows
                pass
    except KeyboardInterrupt:
        pass
    print("the demo has ended", flush=True)


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
