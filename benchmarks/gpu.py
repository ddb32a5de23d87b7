"""What this project does on a GPU at full size, measured in one command: the stages that are worth most come first.

    bash benchmarks/gpu.sh
    bash benchmarks/gpu.sh --minutes 12 --only decode vision
    bash benchmarks/gpu.sh --dry-run

Each stage is a process of its own with a time limit, and its record is appended to `records.jsonl` of `--output` the
moment it ends: what was reached counts, and running the command again takes what is missing. A stage that fails is
named with the end of its log, and is tried again the next time. At the end docs/gpu.md is written from the records.
Weights are random and made on the device; images are the pages of data/pages. `--dry-run` does every stage at a
tiny size on a CPU and leaves docs/gpu.md alone: its page lies beside its records.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tqdm import tqdm

from monkey.cli import EXIT_PARTIAL, EXIT_USAGE
from monkey.journal import Journal, digest, write_atomic
from monkey.provenance import git_revision, package_versions

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE = REPOSITORY / "docs" / "gpu.md"
SHORTEST = 20
"""Seconds that must be left for a stage to be begun."""
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "torchao")
SAMPLE_EVERY = 2.0
"""Seconds between two looks at the card's clocks."""
_CLOCKS = ("clocks.sm", "clocks.mem", "power.draw")

_ANSWERING = ("-m", "benchmarks.full_size_generation", "--new-tokens", "128", "--repeats", "3")
_TRAINING = ("-m", "benchmarks.full_size", "--steps", "6")
_DECODER = ("--width", "4096", "--layers", "32", "--heads", "32", "--vocabulary", "151936")
_VISION = ("--vision-width", "1664", "--vision-layers", "48", "--vision-heads", "16")
_CUDA = ("--device", "cuda", "--dtype", "bfloat16")

_TINY_ANSWERING = (
    *("-m", "benchmarks.full_size_generation", "--tiny", "--device", "cpu", "--repeats", "1"),
    *("--images", "1", "2", "--requests", "1", "2", "--question", "5", "--new-tokens", "4"),
)
_TINY_TRAINING = ("-m", "benchmarks.full_size", "--tiny", "--device", "cpu", "--steps", "1", "--pack-tokens", "256")
_TINY_DECODER = ("--width", "32", "--layers", "1", "--heads", "1", "--vocabulary", "512")
_TINY_VISION = ("--vision-width", "16", "--vision-layers", "1", "--vision-heads", "1")
_TINY = ("--device", "cpu", "--quick", "--repeats", "1")


@dataclass(frozen=True)
class Stage:
    """One process.

    Args:
        name: what `--only` selects by its beginning, up to a hyphen.
        words: of Python, on a GPU; the last line of what it prints is a JSON object, tests excepted.
        tiny: the same of `--dry-run`.
        seconds: after which it is ended.
        needs: a package that it cannot do without.
    """

    name: str
    words: tuple[str, ...]
    tiny: tuple[str, ...]
    seconds: int
    needs: str | None = None

    @property
    def kind(self) -> str:
        return self.name.split("-")[0]


_CHECKPOINTED = ("--vision-checkpointing", "--decoder-checkpointing")

STAGES = (
    Stage("tests", ("-m", "pytest", "-q", "-n", "0", "-m", "gpu and not slow", "tests/test_gpu.py"),
          ("-m", "pytest", "-q", "-n", "0", "-m", "gpu", "tests/test_gpu.py"), 120),
    Stage("decode-compiled", (*_ANSWERING, "--compile", "--images", "1", "--requests", "1", "8", "32"),
          _TINY_ANSWERING, 180),
    Stage("decode-bf16", (*_ANSWERING, "--images", "1", "4", "16", "--requests", "1", "8", "32"), _TINY_ANSWERING, 120),
    Stage("decode-int8", (*_ANSWERING, "--compile", "--quantization", "int8", "--images", "1", "--requests", "1"),
          (*_TINY_ANSWERING, "--quantization", "int8"), 150, "torchao"),
    Stage("decode-4bit", (*_ANSWERING, "--quantization", "4bit", "--images", "1", "--requests", "1"),
          (*_TINY_ANSWERING, "--quantization", "4bit"), 120, "bitsandbytes"),
    Stage("training-lora-llm", (*_TRAINING, "--recipe", "lora-llm", "--pack-tokens", "8192"),
          (*_TINY_TRAINING, "--recipe", "lora-llm"), 120),
    Stage("training-lora-llm-five",
          (*_TRAINING, "--recipe", "lora-llm", "--pack-tokens", "8192", "--questions", "5"),
          (*_TINY_TRAINING, "--recipe", "lora-llm", "--questions", "5"), 120),
    Stage("training-full-llm",
          (*_TRAINING, "--recipe", "full-llm", "--pack-tokens", "8192", "--optimizer", "adamw_8bit"),
          (*_TINY_TRAINING, "--recipe", "full-llm"), 120, "bitsandbytes"),
    Stage("training-full-llm-five",
          (*_TRAINING, "--recipe", "full-llm", "--pack-tokens", "8192", "--questions", "5",
           "--optimizer", "adamw_8bit"),
          (*_TINY_TRAINING, "--recipe", "full-llm", "--questions", "5"), 120, "bitsandbytes"),
    Stage("training-lora-llm-checkpointed",
          (*_TRAINING, "--recipe", "lora-llm", "--pack-tokens", "2048", *_CHECKPOINTED),
          (*_TINY_TRAINING, "--recipe", "lora-llm", *_CHECKPOINTED), 120),
    Stage("training-qlora-llm-checkpointed",
          (*_TRAINING, "--recipe", "qlora-llm", "--pack-tokens", "2048", *_CHECKPOINTED),
          (*_TINY_TRAINING, "--recipe", "qlora-llm", *_CHECKPOINTED), 150, "bitsandbytes"),
    Stage("evaluation", ("-m", "benchmarks.evaluation", *_CUDA, *_DECODER, *_VISION, "--repeats", "1",
                         "--images", "8", "--batch-size", "32", "--num-workers", "8"),
          ("-m", "benchmarks.evaluation", *_TINY, *_TINY_DECODER, *_TINY_VISION, "--images", "1"), 180),
    Stage("server", ("-m", "benchmarks.serving", *_CUDA, *_DECODER, *_VISION, "--repeats", "1",
                     "--clients", "1", "16", "64", "--pictures", "64", "--requests", "64", "--rows", "32",
                     "--kinds", "fresh"),
          ("-m", "benchmarks.serving", *_TINY, *_TINY_DECODER, *_TINY_VISION, "--clients", "1", "2",
           "--pictures", "3", "--requests", "4", "--new-tokens", "3", "--kinds", "known"), 240),
    Stage("published-vision", ("-m", "benchmarks.vision", *_CUDA, "--repeats", "3", "--images", "4", "--width", "1664",
                               "--layers", "48", "--heads", "16", "--output-width", "4096"),
          ("-m", "benchmarks.vision", *_TINY, "--width", "16", "--layers", "1", "--heads", "1",
           "--output-width", "128"), 120),
    Stage("published-generate", ("-m", "benchmarks.generate", *_CUDA, *_DECODER, "--repeats", "2"),
          ("-m", "benchmarks.generate", *_TINY, *_TINY_DECODER, "--new-tokens", "3"), 180),
    Stage("published-training",
          ("-m", "benchmarks.training", *_CUDA, "--repeats", "2", "--width", "2048", "--layers", "24",
           "--vision-width", "1664", "--vision-layers", "12", "--vision-heads", "16",
           "--images", "4", "--questions", "1", "5", "--pack-tokens", "8192"),
          ("-m", "benchmarks.training", *_TINY, "--width", "128", "--layers", "1", "--vocabulary", "512",
           "--vision-width", "16", "--vision-layers", "1", "--vision-heads", "1", "--questions", "1"), 180),
)  # fmt: skip
"""In the order of their worth: what is reached first is what a reader asks first."""


@dataclass(frozen=True)
class Figure:
    """A line of the page: where it lies in a stage's result, what is wanted, and what others have.

    Args:
        path: keys into the result of the stage.
        wanted: on an H200, with "≥", "≤" or "<".
        beside: the roofline, and figures that others publish, with their card.
    """

    label: str
    stage: str
    path: tuple[str, ...]
    wanted: str = ""
    beside: str = ""
    scale: float = 1.0
    unit: str = ""


_TOKENS, _FIRST = ("figures", "tokens_per_second"), ("figures", "first_token_seconds")
_GPT_FAST = "roofline 322; gpt-fast, Llama-2-7B on an A100: 105 bf16, 197 int4"
_MFU = "NeMo Automodel, LoRA of a 7B language model on an H100: 41 to 43 %; lmms-engine on A800: 30 to 40 %"

FIGURES = (
    Figure("tokens/s, one request, compiled", "decode-compiled", (*_TOKENS, "1"), "≥ 220", _GPT_FAST),
    Figure("tokens/s, 8 requests, compiled", "decode-compiled", (*_TOKENS, "8")),
    Figure("tokens/s, 32 requests, compiled", "decode-compiled", (*_TOKENS, "32"), "≥ 2,000",
           "roofline at 16: 3,029, at 64: 5,224; vLLM, an 8B on a part of an H200 of 71 GB, batch 16: 1,085"),
    Figure("tokens/s, one request, eager", "decode-bf16", (*_TOKENS, "1")),
    Figure("tokens/s, 8 requests, eager", "decode-bf16", (*_TOKENS, "8")),
    Figure("tokens/s, 32 requests, eager", "decode-bf16", (*_TOKENS, "32")),
    Figure("tokens/s, one request, int8 compiled", "decode-int8", (*_TOKENS, "1"), "≥ 350", "roofline 4 bits: 859"),
    Figure("tokens/s, one request, 4 bits of bitsandbytes", "decode-4bit", (*_TOKENS, "1")),
    Figure("first token, one request", "decode-bf16", (*_FIRST, "1"), "≤ 120 ms", "roofline 49 ms", 1000, " ms"),
    Figure("peak memory of one request", "decode-bf16", ("figures", "peak_gb"), "< 22.5 GB", "", 1, " GB"),
    Figure("images/s of 896×896, one at once", "decode-bf16", ("figures", "vision_images_per_second", "1")),
    Figure("images/s, 4 at once", "decode-bf16", ("figures", "vision_images_per_second", "4")),
    Figure("images/s, 16 at once", "decode-bf16", ("figures", "vision_images_per_second", "16"), "≥ 28",
           "roofline 37 to 47"),
    Figure("MFU, lora-llm, one question per image", "training-lora-llm", ("figures", "mfu"), "≥ 40 %", _MFU, 100, " %"),
    Figure("samples/s, the same", "training-lora-llm", ("figures", "samples_per_second"), "", "roofline at 40 %: 5.2"),
    Figure("MFU, lora-llm, five questions", "training-lora-llm-five", ("figures", "mfu"), "", "", 100, " %"),
    Figure("samples/s, the same", "training-lora-llm-five", ("figures", "samples_per_second")),
    Figure("MFU, full-llm (8-bit Adam)", "training-full-llm", ("figures", "mfu"), "", "", 100, " %"),
    Figure("samples/s, the same", "training-full-llm", ("figures", "samples_per_second"), "",
           "TextMonkey's authors, their code, a card of A800: 0.46; roofline at 40 %: 4.2"),
    Figure("samples/s, full-llm, five questions", "training-full-llm-five", ("figures", "samples_per_second")),
    Figure("MFU, lora-llm, all checkpointed", "training-lora-llm-checkpointed", ("figures", "mfu"), "", "", 100, " %"),
    Figure("allocated, the same", "training-lora-llm-checkpointed", ("figures", "peak_gib"), "", "", 1, " GiB"),
    Figure("planned, the same", "training-lora-llm-checkpointed", ("figures", "planned_gib"), "", "", 1, " GiB"),
    Figure("reserved, the same", "training-lora-llm-checkpointed", ("figures", "reserved_gib"), "", "", 1, " GiB"),
    Figure("allocated, qlora-llm, all checkpointed", "training-qlora-llm-checkpointed", ("figures", "peak_gib"),
           "< 20 GiB", "", 1, " GiB"),
    Figure("planned, the same", "training-qlora-llm-checkpointed", ("figures", "planned_gib"), "", "", 1, " GiB"),
    Figure("reserved, the same", "training-qlora-llm-checkpointed", ("figures", "reserved_gib"), "", "", 1, " GiB"),
    Figure("questions/s, one per image, baseline / ours in time", "evaluation", ("ratios", "questions_speedup_1")),
    Figure("questions/s, five per image, baseline / ours in time", "evaluation", ("ratios", "questions_speedup_5")),
    Figure("vision, published order / ours in time", "published-vision", ("ratios", "vision_speedup")),
    Figure("first token, published order / ours, batch 1", "published-generate", ("ratios", "first_token_speedup")),
    Figure("each token after it, batch 1", "published-generate", ("ratios", "engine_decode_speedup")),
    Figure("each token after it, batch 8", "published-generate", ("ratios", "engine_decode_speedup_8")),
    Figure("training step, one question", "published-training", ("ratios", "step_speedup_1")),
    Figure("training step, five questions", "published-training", ("ratios", "step_speedup_5")),
)  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Take the stages that are missing; return 0, or `EXIT_PARTIAL` where one failed or was not reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=12.0, help="that all stages together may take")
    kinds = list(dict.fromkeys(stage.kind for stage in STAGES))
    parser.add_argument("--only", nargs="+", metavar="STAGE", help=f"of {', '.join(kinds)}, or a stage's whole name")
    parser.add_argument("--dry-run", action="store_true", help="every stage at a tiny size on a CPU")
    parser.add_argument("--output", type=Path, help="folder of the records (default: outputs/gpu or outputs/gpu_dry)")
    options = parser.parse_args(argv)
    unknown = sorted(set(options.only or ()) - {name for stage in STAGES for name in (stage.kind, stage.name)})
    if unknown:
        parser.error(f"--only {unknown[0]}: the stages are {', '.join(stage.name for stage in STAGES)}")
    if not options.dry_run and find_card() is None:
        print("error: nvidia-smi names no card here; --dry-run tries every stage on a CPU", file=sys.stderr)
        return EXIT_USAGE
    output = options.output or REPOSITORY / "outputs" / ("gpu_dry" if options.dry_run else "gpu")
    stages = [stage for stage in STAGES if not options.only or {stage.kind, stage.name} & set(options.only)]
    with Journal(output / "records.jsonl", fields={"stage": str, "result": dict}) as records:
        problems = take(stages, records, output, time.monotonic() + 60 * options.minutes, options.dry_run)
        page = output / "gpu.md" if options.dry_run else PAGE
        found = [records[key] for key in records]
    if found:
        write_atomic(page, write_page(found, options.dry_run))
        print(f"{page} has the figures of {len(found)} of {len(STAGES)} stages")
    for problem in problems:
        print(problem, file=sys.stderr)
    return EXIT_PARTIAL if problems else 0


def take(stages: Sequence[Stage], records: Journal, output: Path, deadline: float, is_dry: bool) -> list[str]:
    """Run the stages that have no record until the deadline; return a sentence for each that has still none."""
    problems = []
    for stage in tqdm(stages, unit="stage", disable=None):
        words = stage.tiny if is_dry else stage.words
        key = digest(stage=stage.name, words=words, card=find_card())
        if key in records:
            continue
        left = deadline - time.monotonic()
        if left < SHORTEST:
            problems.append(f"{stage.name}: not reached; run the command again, or give more --minutes")
        elif stage.needs and importlib.util.find_spec(stage.needs) is None:
            problems.append(f"{stage.name}: needs the package {stage.needs}; pip install {stage.needs}")
        else:
            tqdm.write(f"== {stage.name}", file=sys.stderr)
            try:
                result = run(stage, words, min(stage.seconds, left) if not is_dry else left, output)
            except ValueError as error:
                problems.append(str(error))
            else:
                records.append([{"key": key, "stage": stage.name, **result}])
    return problems


def run(stage: Stage, words: Sequence[str], seconds: float, output: Path) -> dict[str, Any]:
    """Run a stage and return its record.

    Raises:
        ValueError: it failed, or its time was over, with the end of its log.
    """
    log = output / f"{stage.name}.log"
    environment = {**os.environ, "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}
    start = time.monotonic()
    with log.open("w", encoding="utf-8") as file, watched() as card:
        try:
            done = subprocess.run(
                [sys.executable, *words],
                cwd=REPOSITORY, env=environment, stdout=file, stderr=subprocess.STDOUT, timeout=seconds, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            raise ValueError(f"{stage.name}: ended after {seconds:.0f} s, its limit; {log} has its output") from None
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
    if done.returncode:
        raise ValueError(f"{stage.name}: failed ({done.returncode}): {lines[-1][:300]}; {log} has its output")
    return {
        "result": {"summary": lines[-1]} if stage.kind == "tests" else json.loads(lines[-1]),
        "seconds": round(time.monotonic() - start, 1),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "card": card,
        "versions": package_versions(PACKAGES),
        "revision": git_revision(),
    }


@contextmanager
def watched() -> Iterator[dict[str, Any]]:
    """Look at the card's clocks, power and memory while the block runs; they are in the dictionary after it."""
    card: dict[str, Any] = {"name": find_card() or "CPU"}
    samples: list[list[str]] = []
    is_over = threading.Event()

    def look() -> None:
        while not is_over.wait(SAMPLE_EVERY):
            found = _ask_card(*_CLOCKS)
            if len(found) == len(_CLOCKS):
                samples.append(found)

    thread = threading.Thread(target=look, daemon=True)
    if card["name"] != "CPU":
        thread.start()
    try:
        yield card
    finally:
        is_over.set()
        if thread.is_alive():
            thread.join()
    for name, column in zip(_CLOCKS, zip(*samples, strict=True), strict=False):
        card[name] = statistics.median(float(value) for value in column)


def find_card() -> str | None:
    """Return the name of the first card, or None; nothing of its memory is taken for that."""
    found = _ask_card("name")
    return found[0] if found else None


def _ask_card(*names: str) -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader,nounits", "--id=0"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    return [] if done.returncode else done.stdout.strip().split(", ")


def write_page(records: Sequence[Mapping[str, Any]], is_dry: bool = False) -> str:
    """Return docs/gpu.md: a line per figure, beside what is wanted and what others have."""
    by_stage = {record["stage"]: record for record in records}
    last = max(records, key=lambda record: record["date"])
    cards = ", ".join(dict.fromkeys(record["card"]["name"] for record in records))
    measured = (
        f"Tiny models on a CPU, by `bash benchmarks/gpu.sh --dry-run` on {last['date']}: no figure here means anything."
        if is_dry
        else f"Measured by `bash benchmarks/gpu.sh` on one {cards}, {last['date']}, torch {last['versions']['torch']}."
    )
    lines = [
        "# Full size on a GPU",
        "",
        measured,
        "Weights are random and images are the pages of `data/pages`: speed and memory are those of the "
        "published weights. Wanted is what an H200 should reach; rooflines are of an H200 (989 TFLOP/s, 4.8 TB/s).",
        "",
        "| | measured | wanted | beside it |",
        "|---|---|---|---|",
    ]
    for figure in FIGURES:
        value = show_value(by_stage.get(figure.stage, {}), figure)
        lines.append(f"| {figure.label} | {value} | {figure.wanted} | {figure.beside} |")
    lines += ["", "## Requests", "", *_show_server(by_stage.get("server", {})), "", "## Stages", ""]
    lines += ["| stage | seconds | SM clock, MHz | memory clock, MHz | power, W |", "|---|---|---|---|---|"]
    for record in records:
        card = record["card"]
        shown = (card.get(name, "–") for name in _CLOCKS)
        lines.append(f"| {record['stage']} | {record['seconds']} | {' | '.join(map(str, shown))} |")
    if "tests" in by_stage:
        lines += ["", f"`tests/test_gpu.py`: {by_stage['tests']['result']['summary']}"]
    return "\n".join(lines) + "\n"


def show_value(record: Mapping[str, Any], figure: Figure) -> str:
    """Return a figure of a stage's record as it stands in the page, a dash where it is not there."""
    value: Any = record.get("result", {})
    for key in figure.path:
        value = value.get(key) if isinstance(value, Mapping) else None
    if not isinstance(value, (int, float)):
        return "–"
    value *= figure.scale
    return f"{value:,.0f}{figure.unit}" if value >= 100 else f"{value:.3g}{figure.unit}"


def _show_server(record: Mapping[str, Any]) -> list[str]:
    """A row per number of clients."""
    kinds = record.get("result", {}).get("figures", {})
    if not kinds:
        return ["Not measured yet."]
    lines = ["| clients | requests/s | first text, s | median, s | 95 % below, s |", "|---|---|---|---|---|"]
    names = ("requests_per_second", "first_text_seconds", "median_seconds", "p95_seconds")
    for by_clients in kinds.values():
        for clients, sides in by_clients.items():
            cells = " | ".join(f"{sides['batched'][name]:.3g}" for name in names)
            lines.append(f"| {clients.removesuffix('_clients')} | {cells} |")
    return lines


if __name__ == "__main__":
    sys.exit(main())
