"""Requests a second and latency of the server under load, batched beside one at a time, every answer checked.

    python -m benchmarks.serving
    python -m benchmarks.serving --quick
    python -m benchmarks.serving --device cuda --dtype bfloat16 --width 4096 --layers 32 --heads 32 \\
        --vocabulary 151936 --vision-width 1664 --vision-layers 48 --vision-heads 16

Two servers on loopback, each in a process of its own, hold the same model with random weights: one answers a request
after the other (`--max-rows 1`), the other up to `--rows` at once. 1, 4 and 16 clients (or `--clients`) each send the
next request as soon as they have an answer. Every answer has `--new-tokens` tokens and is compared with that of the
request asked alone: a lost or another answer ends the benchmark (in fp32; elsewhere, answers that rounding changed are
counted).

`fresh` requests show an image each that nothing is known of; `known` ones ask about images that were read before.
Ratios, by clients: `fresh_throughput_4` batched / one at a time in requests a second, `fresh_p95_4` one at a time /
batched in the time that 95 % of the requests stay below, and `known_…` the same. Figures are of the median run.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import math
import multiprocessing
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

from benchmarks.evaluation import QUESTIONS, build, byte_tokenizer
from benchmarks.measure import arguments, report
from monkey import MonkeyProcessor
from monkey.engine import computing_thread
from monkey.serving.access import base_url, bind
from monkey.serving.server import Api, Limits, serve
from monkey.serving.session import Answerer

CACHES = {"fresh": 0, "known": None}
"""Bytes of keys and values that a server keeps, by what is asked; None for as many as it does by itself."""

PATIENCE = 600.0


class Load(NamedTuple):
    """What a run of some clients came to; `firsts` are the seconds to the first text of each answer."""

    seconds: float
    latencies: list[float]
    firsts: Sequence[float] = ()

    @property
    def throughput(self) -> float:
        return len(self.latencies) / self.seconds

    @property
    def p95(self) -> float:
        return sorted(self.latencies)[math.ceil(0.95 * len(self.latencies)) - 1]

    def figures(self) -> dict[str, float]:
        named = {
            "requests_per_second": self.throughput,
            "median_seconds": statistics.median(self.latencies),
            "p95_seconds": self.p95,
        }
        if self.firsts:
            named["first_text_seconds"] = statistics.median(self.firsts)
        return {name: round(value, 4) for name, value in named.items()}


def run_server(options: argparse.Namespace, max_rows: int, cache_bytes: int | None, sender: Any) -> None:
    """A server until SIGTERM; its address goes to `sender`."""
    thread = computing_thread()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = byte_tokenizer(Path(folder))
        model = thread.submit(build, options, tokenizer).result()
        processor = MonkeyProcessor.from_config(model.config, tokenizer)
    with (
        Answerer(model, processor, "benchmark", max_rows=max_rows, cache_bytes=cache_bytes, thread=thread) as answerer,
        bind("127.0.0.1", 0) as listening,
    ):
        sender.send(base_url(listening))
        serve(Api(answerer, Limits(queue=max(options.clients))), listening)


@contextmanager
def servers(options: argparse.Namespace, cache_bytes: int | None) -> Iterator[list[str]]:
    """Addresses of the one that answers one at a time and of the batched one."""
    # Forked from this process, they would inherit locks that its threads hold; so from one that imports the libraries.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.serving"])
    processes, receivers = [], []
    try:
        for max_rows in (1, options.rows):
            receiver, sender = context.Pipe(duplex=False)
            processes.append(context.Process(target=run_server, args=(options, max_rows, cache_bytes, sender)))
            processes[-1].start()
            sender.close()
            receivers.append(receiver)
        urls = [receiver.recv() for receiver in receivers]
        for url in urls:
            wait_for(url)
        yield urls
    finally:
        for process in processes:
            process.terminate()
            process.join()


def wait_for(url: str) -> None:
    """Until the server that has the address listens there."""
    place = urlsplit(url)
    for _ in range(round(PATIENCE / 0.05)):
        with socket.socket() as probe:
            if not probe.connect_ex((place.hostname, place.port)):
                return
        time.sleep(0.05)
    raise SystemExit(f"error: nothing came to answer at {url}")


def bodies(options: argparse.Namespace) -> list[bytes]:
    """A request about each image."""
    generator = np.random.default_rng(options.seed)
    made = []
    for number in range(options.pictures):
        stream = io.BytesIO()
        coarse = Image.fromarray(generator.integers(0, 256, (60, 80, 3), dtype=np.uint8))
        coarse.resize((1200, 900), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
        url = f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
        question = QUESTIONS[number % len(QUESTIONS)]
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
        request = {"model": "benchmark", "max_tokens": options.new_tokens, "temperature": 0, "stream": True}
        made.append(json.dumps({**request, "messages": [{"role": "user", "content": content}]}).encode())
    return made


class Client:
    """One connection to a server."""

    def __init__(self, url: str):
        self.first = math.nan
        self._connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=PATIENCE)

    def ask(self, body: bytes) -> str:
        """Return the text of an answer; `first` is then the seconds to the first of it."""
        begun, self.first, text = time.perf_counter(), math.nan, []
        self._connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        reply = self._connection.getresponse()
        if reply.status != 200:
            raise SystemExit(f"error: a request was lost: the server answers {reply.status} {reply.read()[:300]!r}")
        for line in reply:
            if line.startswith(b"data: {"):
                chunk = json.loads(line[6:])
                if "choices" not in chunk:
                    raise SystemExit(f"error: a request was lost: the server answers {line[:300]!r}")
                text += [choice["delta"].get("content") or "" for choice in chunk["choices"]]
                if any(text) and math.isnan(self.first):
                    self.first = time.perf_counter() - begun
        return "".join(text)


def run_load(url: str, requests: list[bytes], clients: int, total: int) -> tuple[Load, list[tuple[int, str]]]:
    """`total` requests, in turn, by so many clients at once; and each one's number among `requests` with its answer."""
    numbers = count()  # taking the next is one step of the interpreter, so no two clients get the same

    def work(_: int) -> list[tuple[int, str, float, float]]:
        client, done = Client(url), []
        while (number := next(numbers)) < total:
            begun = time.perf_counter()
            text = client.ask(requests[number % len(requests)])
            done.append((number % len(requests), text, time.perf_counter() - begun, client.first))
        return done

    begun = time.perf_counter()
    with ThreadPoolExecutor(clients) as threads:
        done = [one for each in threads.map(work, range(clients)) for one in each]
    latencies, firsts = [latency for *_, latency, _ in done], [first for *_, first in done]
    return Load(time.perf_counter() - begun, latencies, firsts), [(number, text) for number, text, *_ in done]


def check(answers: list[tuple[int, str]], expected: list[str], total: int, options: argparse.Namespace) -> None:
    """End the benchmark unless every request has the answer that it gets alone."""
    if len(answers) != total:
        raise SystemExit(f"error: {total} requests were sent, and {len(answers)} were answered")
    different = [number for number, text in answers if text != expected[number]]
    if different:
        message = f"{len(different)} of {total} answers are not those of the request alone, {different[0]} first"
        if options.dtype == "float32":
            raise SystemExit(f"error: {message}")
        print(f"{message} (rounding in {options.dtype})")


def measure(kind: str, options: argparse.Namespace, ratios: dict[str, float]) -> dict[str, Any]:
    """Figures of one kind of requests, by clients; ratios go into `ratios`."""
    requests, figures = bodies(options), {}
    with servers(options, CACHES[kind]) as (one, batched):
        expected = [Client(one).ask(request) for request in requests]
        run_load(batched, requests, max(options.clients), len(requests))
        if len(set(expected)) < 2:
            raise SystemExit("error: all answers are one, so that their being equal says nothing; take another --seed")
        for clients in options.clients:
            pairs = []
            for _ in range(options.repeats):
                loads = []
                for url in (one, batched):
                    load, answers = run_load(url, requests, clients, options.requests)
                    check(answers, expected, options.requests, options)
                    loads.append(load)
                pairs.append(loads)
            named = f"{kind}_throughput_{clients}", f"{kind}_p95_{clients}"
            ratios[named[0]] = statistics.median(after.throughput / before.throughput for before, after in pairs)
            ratios[named[1]] = statistics.median(before.p95 / after.p95 for before, after in pairs)
            median = sorted(pairs, key=lambda pair: pair[1].throughput)[len(pairs) // 2]
            figures[f"{clients}_clients"] = {
                "one_at_a_time": median[0].figures(),
                "batched": median[1].figures(),
            }
            for name, load in zip(("one at a time", "batched"), median, strict=True):
                told = load.figures()
                print(
                    f"{kind}, {clients} clients, {name}: {told['requests_per_second']:.2f} requests/s, median "
                    f"{told['median_seconds']:.3f} s, p95 {told['p95_seconds']:.3f} s"
                )
    return figures


def main(argv: list[str] | None = None) -> int:
    parser = arguments(__doc__)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--heads", type=int, default=4, help="128 wide each by default, as published")
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--vision-width", type=int, default=416)
    parser.add_argument("--vision-layers", type=int, default=6)
    parser.add_argument("--vision-heads", type=int, default=4, help="104 wide each by default, as published")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument(
        "--pictures", type=int, default=24, help="more than the clients, so that none is asked twice at once"
    )
    parser.add_argument("--requests", type=int, default=24, help="of a run of some clients")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16], help="at once, one load after another")
    parser.add_argument("--rows", type=int, default=8, help="answers at once of the batched server")
    parser.add_argument("--kinds", nargs="+", choices=tuple(CACHES), default=list(CACHES))
    parser.set_defaults(repeats=3)
    options = parser.parse_args(argv)
    if options.quick:
        options.width, options.heads = min(options.width, 256), min(options.heads, 2)
        options.layers, options.vision_layers = min(options.layers, 2), min(options.vision_layers, 1)
        options.vision_width, options.vision_heads = min(options.vision_width, 64), min(options.vision_heads, 2)
        options.new_tokens, options.repeats = min(options.new_tokens, 16), 1
        options.pictures, options.requests = min(options.pictures, 18), min(options.requests, 16)
    ratios: dict[str, float] = {}
    figures = {kind: measure(kind, options, ratios) for kind in options.kinds}
    report("serving", ratios, vars(options), figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
