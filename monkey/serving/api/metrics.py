"""What a server did and does, in Prometheus' text format."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from monkey.engine import Engine
from monkey.reply import Reply

CONTENT_TYPE = CONTENT_TYPE_LATEST

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
"""Upper bounds of the histograms."""


class Record:
    """Of one request while it is in the house.

    Attributes:
        outcome: what the request ends as; "left" until another is known: the caller went away.
        reply: the answer, once there is one.
    """

    def __init__(self, first_token: Histogram):
        self.outcome = "left"
        self.reply: Reply | None = None
        self._begun, self._first_token = time.monotonic(), first_token

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begun

    def first_piece(self) -> None:
        self._first_token.observe(self.seconds)


class Metrics:
    """Counts of chat completions, and what the engine says of itself when it is asked."""

    def __init__(self, engine: Engine):
        self.registry = CollectorRegistry()
        named = {"registry": self.registry}
        self._requests = Counter(
            "monkey_requests", "Chat completions, by how they ended or by the status they were refused with",
            ["outcome"], **named,
        )  # fmt: skip
        self._prompt_tokens = Counter("monkey_prompt_tokens", "Tokens of prompts, those of images included", **named)
        self._new_tokens = Counter("monkey_completion_tokens", "Tokens of answers", **named)
        self._seconds = Histogram(
            "monkey_request_seconds", "From a request's arrival to its end", buckets=SECONDS, **named
        )
        self._first_token = Histogram(
            "monkey_first_piece_seconds", "From a request's arrival to the first text of its answer", buckets=SECONDS,
            **named,
        )  # fmt: skip
        self.registry.register(_EngineCollector(engine))

    @contextmanager
    def watched(self) -> Iterator[Record]:
        record = Record(self._first_token)
        try:
            yield record
        finally:
            self._requests.labels(record.outcome).inc()
            self._seconds.observe(record.seconds)
            if record.reply is not None:
                self._prompt_tokens.inc(record.reply.prompt_tokens)
                self._new_tokens.inc(record.reply.new_tokens)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _EngineCollector:
    """An engine's figures at the moment at which they are asked for."""

    def __init__(self, engine: Engine):
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        engine, stats = self._engine, self._engine.stats
        gauges = (
            ("monkey_running_rows", "Requests that are being read or answered", engine.running),
            ("monkey_waiting_requests", "Requests in line", engine.waiting),
            ("monkey_max_rows", "Requests that are answered at the same time at most", engine.max_rows),
        )
        counters = (
            ("monkey_prefix_cache_hit_tokens", "Prompt tokens that had been read before", stats.reused_tokens),
            ("monkey_prefix_cache_miss_tokens", "Prompt tokens that had to be read", stats.read_tokens),
            ("monkey_images_encoded", "Images that went through the vision side", stats.images),
            ("monkey_decoder_steps", "Steps that wrote one token of every running answer", stats.steps),
        )
        yield from (GaugeMetricFamily(*gauge) for gauge in gauges)
        yield from (CounterMetricFamily(*counter) for counter in counters)
