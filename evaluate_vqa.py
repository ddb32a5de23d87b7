#!/usr/bin/env python
"""Evaluate a checkpoint on question-answering data sets.

    python evaluate_vqa.py --checkpoint CKPT --save_name NAME                      # the fourteen published sets
    python evaluate_vqa.py --checkpoint CKPT --save_name NAME --dataset textvqa_val,docvqa_test
    python evaluate_vqa.py --checkpoint CKPT --save_name NAME --dataset my.jsonl --metric accuracy
    torchrun --nproc_per_node 8 evaluate_vqa.py --checkpoint CKPT --save_name NAME
    python evaluate_vqa.py --backend openai --base-url http://localhost:8000/v1 --save_name NAME --dataset chartqa
    python evaluate_vqa.py --backend replay --predictions answers.json --save_name NAME --dataset chartqa
    python evaluate_vqa.py --check-data --dataset chartqa
    python evaluate_vqa.py --list
    python evaluate_vqa.py --show vizwiz_val

Writes result/NAME/<task>/predictions.jsonl and results.json, the published script's result/NAME/<task>.json and .txt,
summary.json, .md, .csv and .tex, and timing.jsonl. An interrupted run goes on when the same command is given again, on
any number of processes. Exit status: 0 when every question was answered exactly once, 1 when not (the rest is written,
and what is missing is named), 2 for a mistake in the command or the data.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

from eval.catalogue import task_list, task_sheet
from eval.command_line import arguments, run_settings
from eval.opening import backend_opener
from eval.questions import question_file
from eval.results import TIMING, incompleteness, shown_throughput
from eval.runner import is_complete, run
from eval.sharding import Processes, Stopped
from eval.tables import notes, table_row, text_table
from eval.tasks import select_tasks

COMPLETE, INCOMPLETE, MISTAKE, INTERRUPTED = 0, 1, 2, 130


def evaluate(options: argparse.Namespace, processes: Processes) -> int:
    tasks = select_tasks(options.dataset, options.metric, options.max_new_tokens)
    settings = run_settings(options, len(tasks))
    for task in tasks:
        question_file(task, settings.data_root)  # before a backend's libraries, which take seconds
    results = run(tasks, settings, backend_opener(options, tasks), processes)
    if not processes.first:
        return COMPLETE
    complete = is_complete(results, settings.allow_missing)
    print(text_table([table_row(result) for result in results]), end="")
    last = (settings.folder / TIMING).read_text(encoding="utf-8").splitlines()[-1]
    print(shown_throughput(json.loads(last)["asked"], sum(len(result["failed"]) for result in results)))
    print(f"written to {settings.folder}")
    for result in results:
        for sentence in notes(result):
            print(f"note: {result['task']}: {sentence}")
        for sentence in incompleteness(result):
            print(f"{'left out' if complete else 'incomplete'}: {sentence}", file=sys.stderr)
    return COMPLETE if complete else INCOMPLETE


def check_data(options: argparse.Namespace) -> int:
    from eval.check_questions import check_questions, report_text

    tasks = select_tasks(options.dataset, options.metric, options.max_new_tokens)
    train = [] if options.train is None else [options.train]
    report = check_questions(tasks, options.data_root, train=train, workers=options.num_workers)
    print(report_text(report))
    return COMPLETE if report.is_clean else INCOMPLETE


def main(command: list[str] | None = None) -> int:
    options = arguments(__doc__).parse_args(command)
    rank = int(os.environ.get("RANK", "0"))
    try:
        if options.list:
            print(task_list())
            return COMPLETE
        if options.show:
            shown = select_tasks(options.show, options.metric, options.max_new_tokens)
            print("\n\n".join(map(task_sheet, shown)))
            return COMPLETE
        if options.check_data:
            return check_data(options)
        return evaluate(options, Processes.of_environment(os.environ))
    except (ValueError, OSError) as error:
        # What stopped another process is said by that one, and by the first.
        if rank == 0 or not isinstance(error, Stopped):
            print(f"error: {f'process {rank}: ' if rank else ''}{error}", file=sys.stderr)
        return MISTAKE
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
