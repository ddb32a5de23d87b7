"""Another checkout beside this one: the same work in turns, in two processes that stay, and the ratio of their times.

    git worktree add ../before HEAD~20
    python -m benchmarks.pairs ../before
    python -m benchmarks.pairs ../before --pairs 20 --only decode training

Both run the benchmarks of their own checkout on our side alone, at the published geometry and the sizes of `--quick`.
The two take turns, and the order within a pair changes, so that drift of the machine cancels. A ratio is before / here
in time, above 1 where this checkout is faster: the median over the pairs, with a 95 % interval of the median by the
binomial distribution of ranks. Checkouts must agree on the benchmarks' own functions.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from math import comb
from pathlib import Path
from types import SimpleNamespace
from typing import Any

KINDS = ("vision", "decode", "training", "evaluation", "serving")
MODEL = {"width": 512, "layers": 4, "heads": 4, "vocabulary": 4096}
VISION = {"vision_width": 416, "vision_layers": 2, "vision_heads": 4}
COMMON = {"device": "cpu", "dtype": "float32", "seed": 0, "grid": (2, 2)}
CLIENTS, REQUESTS = 4, 8
_PATHS = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]


def main(argv: list[str] | None = None) -> int:
    from tqdm import trange

    from benchmarks.measure import arguments, report

    parser = arguments(__doc__)
    parser.add_argument("before", type=Path, help="the root of the other checkout")
    parser.add_argument("--pairs", type=int, default=10, help="turns of both")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    options = parser.parse_args(argv)
    if not (options.before / "benchmarks" / "measure.py").is_file():
        parser.error(f"{options.before} is no checkout of this project: it has no benchmarks/measure.py")
    here = Path(__file__).resolve().parent.parent
    times: dict[str, list[tuple[float, float]]] = {}
    with worker(options.before.resolve(), options.only) as before, worker(here, options.only) as now:
        for turn in trange(options.pairs + 1, unit="pair", disable=None):
            first, second = (before, now) if turn % 2 else (now, before)
            found = {first: ask(first), second: ask(second)}
            if turn:  # the first turn warms both up
                for name, seconds in found[before].items():
                    times.setdefault(name, []).append((seconds, found[now][name]))
    ratios, figures = {}, {}
    for name, pairs in times.items():
        quotients = [one / other for one, other in pairs]
        ratios[name] = statistics.median(quotients)
        figures[name] = dict(zip(("lower", "upper"), median_interval(quotients), strict=True))
        print(f"{name}: {ratios[name]:.3f} [{figures[name]['lower']:.3f}, {figures[name]['upper']:.3f}]")
    report("pairs", ratios, {**vars(options), "before": str(options.before)}, figures)
    return 0


@contextmanager
def worker(checkout: Path, kinds: list[str]) -> Iterator[subprocess.Popen]:
    """A process that runs this file with the packages of a checkout."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(checkout), *_PATHS])}
    process = subprocess.Popen(
        [sys.executable, __file__, "--work", *kinds],
        cwd=checkout, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.stdin.close()
        process.wait()


def ask(process: subprocess.Popen) -> dict[str, float]:
    """Let a worker do everything once; return seconds by name."""
    process.stdin.write("\n")
    process.stdin.flush()
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"error: the benchmarks of {process.args[1]} ended; the lines above say why")
    return json.loads(line)


def median_interval(values: list[float], confidence: float = 0.95) -> tuple[float, float]:
    """Return the order statistics that hold the median with at least this confidence, or the extremes."""
    ordered, count = sorted(values), len(values)
    below = 0.0
    for rank in range(count // 2):
        below += comb(count, rank) / 2**count
        if 2 * below > 1 - confidence:
            return ordered[max(0, rank - 1)], ordered[count - max(1, rank)]
    return ordered[0], ordered[-1]


# The worker: of this file, with the modules of any checkout


def work(kinds: list[str]) -> None:
    """Measure once for every line of standard input."""
    output, sys.stdout = sys.stdout, sys.stderr
    with ExitStack() as stack:
        measures = [measure for kind in kinds for measure in globals()[f"_{kind}"](stack)]
        for _ in sys.stdin:
            seconds: dict[str, float] = {}
            for measure in measures:
                seconds.update(measure())
            print(json.dumps(seconds), file=output, flush=True)


def _timed(name: str, run: Callable[[], Any]) -> dict[str, float]:
    start = time.perf_counter()
    run()
    return {name: time.perf_counter() - start}


def _vision(stack: ExitStack) -> Iterator[Callable[[], dict[str, float]]]:
    import torch

    from benchmarks import vision

    sizes = {"width": 416, "layers": 2, "heads": 4, "output_width": 512}
    visual = vision.build(SimpleNamespace(**COMMON, **sizes)).model.visual
    pixels = torch.randn(1, 3, 896, 896)

    def run() -> None:
        with torch.no_grad():
            visual(pixels)

    yield partial(_timed, "vision", run)


def _decode(stack: ExitStack) -> Iterator[Callable[[], dict[str, float]]]:
    from benchmarks import generate
    from benchmarks.published import PublishedMonkey
    from monkey.checkpoint import published_names

    options = SimpleNamespace(**COMMON, **MODEL, question=20)
    model = generate.build(options)
    baseline = PublishedMonkey(published_names(model, dict(model.state_dict())), model.config)

    def run(sides: generate.Sides, side: str, batch: int) -> dict[str, float]:
        first, following = generate.timed(getattr(sides, side))
        return {f"{side}_first_token_{batch}": first, f"{side}_token_{batch}": following}

    for batch in generate.BATCHES:
        sides = generate.Sides(model, baseline, generate.prompts(model, batch, options), 12)
        for side in ("ours", "engine"):
            yield partial(run, sides, side, batch)


def _training(stack: ExitStack) -> Iterator[Callable[[], dict[str, float]]]:
    from benchmarks import training

    options = training.parse(["--quick", "--device", "cpu"])
    config = training.configuration(options)
    model = training.build(config, options)
    side = training.Side(list(model.parameters()))

    def step(passes: Callable[[], float]) -> None:
        side.passes = passes
        side.step()

    for questions in (1, 5):
        units = training.draw(options, config, questions)
        total = sum(training.supervised(sample) for unit in units for sample in unit)
        rows, _ = training.packed_rows(units, options)

        yield partial(_timed, f"training_{questions}", partial(step, partial(training.our_passes, model, rows, total)))


def _evaluation(stack: ExitStack) -> Iterator[Callable[[], dict[str, float]]]:
    from benchmarks import evaluation
    from eval.model_backend import ModelBackend
    from monkey import MonkeyProcessor

    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    tokenizer = evaluation.byte_tokenizer(folder)
    model = evaluation.build(SimpleNamespace(**COMMON, **MODEL, **VISION), tokenizer)
    backend = ModelBackend.around(model, MonkeyProcessor.from_config(model.config, tokenizer), "random", 1)
    for questions in (1, 5):
        requests = evaluation.write_requests(folder, 2, questions, 8, 0)
        yield partial(_timed, f"evaluation_{questions}", partial(evaluation.our_answers, backend, requests, 4))


def _serving(stack: ExitStack) -> Iterator[Callable[[], dict[str, float]]]:
    from benchmarks import serving

    sizes = {"new_tokens": 16, "rows": CLIENTS, "pictures": REQUESTS, "clients": [CLIENTS]}
    options = SimpleNamespace(**COMMON, **MODEL, **VISION, **sizes)
    requests = serving.bodies(options)
    for kind, cache_bytes in serving.CACHES.items():
        _, url = stack.enter_context(serving.servers(options, cache_bytes))
        yield partial(_timed, f"serving_{kind}", partial(serving.run_load, url, requests, CLIENTS, REQUESTS))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(sys.argv[2:])
    else:
        sys.exit(main())
