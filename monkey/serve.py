"""Serve a model as OpenAI's API does: chat completions with images, streamed or not, many at once.

    python -m monkey.serve
    python -m monkey.serve -c echo840/Monkey --port 8000 --max-rows 16
    MONKEY_API_KEY=secret python -m monkey.serve --host 0.0.0.0

Without -c the small model. On 127.0.0.1 unless --host says otherwise. Ctrl-C or SIGTERM ends it once the answers in
progress are finished; a second one ends it at once.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Sequence

from monkey.ask import add_model_flags, find_checkpoint
from monkey.cli import ArgumentParser, run_program

KEY_VARIABLE = "MONKEY_API_KEY"

PACKAGES = ("fastapi", "httpx", "prometheus_client", "pydantic", "uvicorn")
"""That only the server needs."""


def parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="python -m monkey.serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s); 0.0.0.0 is all")
    parser.add_argument("--port", type=int, default=8000, help="0 takes any that is free (%(default)s)")
    parser.add_argument(
        "--api-key",
        action="append",
        default=[],
        metavar="KEY",
        help=f"asked of everyone; may be given several times, or in {KEY_VARIABLE}, with commas between, where other "
        "users of the machine do not see them",
    )
    parser.add_argument("--name", help="of the model, as clients ask for it (the last part of the checkpoint's)")
    parser.add_argument(
        "--form",
        choices=("chatml", "questions", "plain", "decoder"),
        help="how conversations are written (the checkpoint's own)",
    )
    parser.add_argument(
        "--allow-hosts", metavar="A,B", help="hosts that images are fetched from (none); data-URIs need none"
    )
    parser.add_argument(
        "--no-picture-labels",
        dest="picture_labels",
        action="store_false",
        help="in ChatML, write images without Qwen-VL's `Picture 1: ` before them, as published Monkey reads them",
    )
    parser.add_argument(
        "--cors-origins",
        metavar="A,B",
        help="origins of web pages whose scripts may ask, such as http://localhost:3000 (none)",
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument("--max-body-mib", type=float, default=32, metavar="N", help="of a request (%(default)s)")
    limits.add_argument("--max-pixels", type=int, metavar="N", help="of an image (100,000,000)")
    limits.add_argument("--max-pictures", type=int, default=8, metavar="N", help="of a request (%(default)s)")
    limits.add_argument("--queue", type=int, default=32, metavar="N", help="requests that may wait (%(default)s)")
    limits.add_argument(
        "--time-limit", type=float, default=600, metavar="SECONDS", help="for an answer, waiting included (%(default)s)"
    )
    model = add_model_flags(parser)
    model.add_argument("--max-rows", type=int, default=8, metavar="N", help="answers at the same time (%(default)s)")
    return parser


def main(words: Sequence[str] | None = None) -> int:
    options = parser().parse_args(words)
    return run_program(lambda: run(options), stopped="interrupted")


def check(options: argparse.Namespace) -> None:
    """Raise ValueError for settings that mean nothing, and for packages that are not there."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(f"the server needs {', '.join(missing)}, not installed here; `pip install '.[serve]'`")
    least = {"max_body_mib": 0.001, "max_pictures": 0, "queue": 0, "time_limit": 0.001, "max_rows": 1, "max_pixels": 1}
    for name, lowest in least.items():
        value = getattr(options, name)
        if value is not None and not lowest <= value < float("inf"):
            raise ValueError(f"--{name.replace('_', '-')} is {value}, and at least {lowest} is needed")


def run(options: argparse.Namespace) -> None:
    """Open the model and serve it."""
    check(options)
    checkpoint = find_checkpoint(options)

    from monkey.serving.access import base_url, bind, is_loopback, read_hosts, read_keys, read_origins
    from monkey.serving.fetching import Fetcher
    from monkey.serving.server import Api, Limits, serve
    from monkey.serving.session import load

    keys = read_keys(options.api_key, os.environ.get(KEY_VARIABLE, ""))
    hosts = None if options.allow_hosts is None else read_hosts(options.allow_hosts)
    origins = [] if options.cors_origins is None else read_origins(options.cors_origins)
    limits = Limits(int(options.max_body_mib * 2**20), options.max_pictures, options.queue, options.time_limit)
    with bind(options.host, options.port) as listener:
        if not keys and not is_loopback(listener):
            reached = f"everyone who reaches {options.host} can ask, since no key is set"
            print(f"warning: {reached}; set {KEY_VARIABLE}", file=sys.stderr)
        print(f"opening {checkpoint}", file=sys.stderr, flush=True)
        settings = {"compile": options.compile, "max_rows": options.max_rows, "name": options.name}
        settings["max_windows"] = options.max_windows
        with load(checkpoint, options.device, options.dtype, options.quantization, **settings) as answerer:
            answerer.patience = options.time_limit
            images = answerer.processor.image_processor
            images.max_bytes = min(images.max_bytes, limits.body_bytes)
            images.max_pixels = options.max_pixels or images.max_pixels
            fetcher = None if hosts is None else Fetcher(hosts, images.max_bytes)
            written = {"form": options.form, "picture_labels": options.picture_labels}
            api = Api(answerer, limits, fetcher, keys, is_loopback(listener), origins, **written)
            serve(api, listener, f"serving {answerer.name} at {base_url(listener)} (Ctrl-C ends it)")
    print("the server has ended", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
