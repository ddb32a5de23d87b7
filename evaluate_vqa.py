#!/usr/bin/env python
"""Evaluate a checkpoint on question-answering data sets.

    python evaluate_vqa.py --checkpoint CKPT --save_name NAME                      # the fourteen published sets
    python evaluate_vqa.py --checkpoint CKPT --save_name NAME --dataset textvqa_val,docvqa_test
    python evaluate_vqa.py --checkpoint CKPT --save_name NAME --dataset my.jsonl --metric accuracy
    python evaluate_vqa.py --list
    python evaluate_vqa.py --show vizwiz_val

Writes result/NAME/<task>/predictions.jsonl and results.json, and result/NAME/summary.json. An interrupted run goes on
when the same command is given again. Exit status: 0 when every question was answered exactly once, 1 when not (the rest
is written, and what is missing is named), 2 for a mistake in the command or the data.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from eval.backends import Backend, EchoBackend, OracleBackend
from eval.catalogue import task_list, task_sheet
from eval.metrics import METRICS
from eval.prompting import AS_TRAINED
from eval.results import incompleteness, remarks, summary_row, summary_text
from eval.runner import RunSettings, is_complete, run
from eval.tasks import DEFAULT_SELECTION, select_tasks, task_named

COMPLETE, INCOMPLETE, MISTAKE, INTERRUPTED = 0, 1, 2, 130


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong with a flag in one sentence, where argparse prints every flag before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(MISTAKE, f"error: {message.removeprefix('argument ')}; every flag: --help\n")


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return value


def not_negative(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} must not be negative")
    return value


def grid(text: str) -> tuple[int, int]:
    try:
        rows, columns = (positive(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not ROWS,COLUMNS, for example 2,3") from error
    return rows, columns


def arguments() -> argparse.ArgumentParser:
    parser = OneLineParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    what = parser.add_argument_group("what")
    what.add_argument("--checkpoint", help="folder of a checkpoint, or its hub name")
    what.add_argument(
        "--dataset",
        default=DEFAULT_SELECTION,
        help="tasks, groups, patterns, .jsonl files; commas between (%(default)s)",
    )
    what.add_argument("--metric", choices=METRICS, help="metric of a .jsonl file")
    what.add_argument("--max-new-tokens", type=positive, help="limit of an answer, for a .jsonl file (100)")
    what.add_argument("--data-root", type=Path, help="folder that the tasks' paths and their images start from (.)")
    what.add_argument("--limit", type=positive, help="only the first N questions of each task")
    what.add_argument(
        "--prompt",
        default=AS_TRAINED,
        help="as-trained, published, or a file with <img></img> and {question} (%(default)s)",
    )
    how = parser.add_argument_group("how")
    how.add_argument("--batch-size", type=positive, default=4, help="questions a batch (%(default)s)")
    how.add_argument("--num-workers", type=not_negative, default=2, help="processes that open images (%(default)s)")
    how.add_argument("--few-shot", type=not_negative, default=0, help="examples before a question; only 0 so far")
    how.add_argument(
        "--seed", type=int, default=3407, help="recorded; greedy answers do not depend on it (%(default)s)"
    )
    how.add_argument("--device", help="cpu, cuda, cuda:N (a GPU where there is one)")
    how.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="(bfloat16 on a GPU, else float32)")
    how.add_argument("--grid", type=grid, metavar="ROWS,COLUMNS", help="windows (those of the checkpoint)")
    how.add_argument("--backend", choices=("hf", "oracle", "echo"), default="hf", help="who answers (%(default)s)")
    where = parser.add_argument_group("where")
    where.add_argument("--save_name", "--save-name", help="name of the run's folder")
    where.add_argument("--output-dir", type=Path, default=Path("result"), help="folder of all runs (%(default)s)")
    again = where.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="keep answers that still hold; this is the default")
    again.add_argument("--fresh", action="store_true", help="ask everything again")
    show = parser.add_argument_group("show and stop")
    show.add_argument("--list", action="store_true", help="the tasks and groups")
    show.add_argument("--show", metavar="TASK", help="everything on one task")
    return parser


def evaluate(options: argparse.Namespace) -> int:
    tasks = select_tasks(options.dataset, options.metric, options.max_new_tokens)
    settings = RunSettings(
        folder=options.output_dir / checked_name(options.save_name),
        data_root=options.data_root,
        prompt=options.prompt,
        batch_size=options.batch_size,
        limit=options.limit,
        fresh=options.fresh,
        seed=options.seed,
        checkpoint=options.checkpoint,
    )
    if options.few_shot:
        raise ValueError(f"--few-shot {options.few_shot}: questions are asked without examples so far; leave it at 0")
    results = run(tasks, settings, backend_opener(options))
    print(summary_text([summary_row(result) for result in results]))
    print(f"written to {settings.folder}")
    for result in results:
        for sentence in remarks(result):
            print(f"note: {sentence}")
        for sentence in incompleteness(result):
            print(f"incomplete: {sentence}", file=sys.stderr)
    return COMPLETE if is_complete(results) else INCOMPLETE


def backend_opener(options: argparse.Namespace) -> Callable[[], Backend]:
    """A function that opens the backend; what can be told wrong without opening it is told here."""
    if options.backend != "hf":
        return {"oracle": OracleBackend, "echo": EchoBackend}[options.backend]
    if not options.checkpoint:
        raise ValueError("--checkpoint is needed: a folder of a checkpoint or its hub name")
    from eval.model_backend import ModelBackend, check_checkpoint, choose_device

    device = choose_device(options.device)
    check_checkpoint(options.checkpoint)

    def open_backend() -> Backend:
        return ModelBackend(options.checkpoint, device, options.dtype, options.grid, options.num_workers, options.seed)

    return open_backend


def checked_name(name: str | None) -> str:
    if not name:
        raise ValueError("--save_name is needed: the run's files go to <output-dir>/<save_name>")
    if Path(name).name != name or name == "..":
        raise ValueError(f"--save_name {name!r} must be one folder's name; --output-dir says where it lies")
    return name


def main(command: list[str] | None = None) -> int:
    options = arguments().parse_args(command)
    try:
        if options.list:
            print(task_list())
            return COMPLETE
        if options.show:
            print(task_sheet(task_named(options.show)))
            return COMPLETE
        return evaluate(options)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
