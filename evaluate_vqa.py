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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from eval.asking import describe_throughput
from eval.backends import Backend, EchoBackend, OpenAIBackend, OracleBackend, ReplayBackend
from eval.metrics import METRICS
from eval.processes import Processes, Stopped
from eval.questions import FewShot, question_file
from eval.run import RunSettings, run
from eval.run_folder import TIMING, incompleteness, is_complete
from eval.tables import notes, table_row, text_table
from eval.tasks import DEFAULT_SELECTION, Task, select_tasks, task_list, task_sheet
from monkey.cli import EXIT_PARTIAL, EXIT_USAGE, ArgumentParser, add_shape_flags, one_grid, run_program, whole_number
from monkey.completions_client import KEY_VARIABLE, checked_url
from monkey.files import refuse_missing
from monkey.prompts import AS_TRAINED

COMPLETE = 0


def seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} must be a number of seconds above 0")
    return value


Opener = Callable[[], Backend]


def backend_opener(options: argparse.Namespace, tasks: Sequence[Task]) -> Opener:
    """Return a function that opens the backend of `--backend`; what can be told wrong without opening is told here.

    Raises FileNotFoundError or ValueError for a flag that is missing, goes with another backend, or names nothing.
    """
    for flag, backend in FLAGS_OF_ONE.items():
        if getattr(options, flag) is not None and options.backend != backend:
            raise ValueError(f"--{flag.replace('_', '-')} goes with --backend {backend}, not with {options.backend}")
    return BACKENDS[options.backend](options, tasks)


def _open_model(options: argparse.Namespace, _: Sequence[Task]) -> Opener:
    if not options.checkpoint:
        raise ValueError("--checkpoint is needed: a folder of a checkpoint or its hub name")
    refuse_missing(options.checkpoint)
    from eval.chat_backend import ChatBackend, is_ours
    from eval.model_backend import ModelBackend, check_checkpoint
    from monkey.devices import choose_device

    device = device_of_process(choose_device(options.device), os.environ)
    layout = {name: getattr(options, name) for name in ("grid", "grids", "fit", "max_windows")}
    if is_ours(options.checkpoint):
        check_checkpoint(options.checkpoint)
        return lambda: ModelBackend(
            options.checkpoint, device, options.dtype, num_workers=options.num_workers, seed=options.seed, **layout
        )
    for name, value in layout.items():
        if value is not None:
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(f"{flag} is of Monkey's windows, and {options.checkpoint} is another model; leave it out")
    return lambda: ChatBackend(options.checkpoint, device, options.dtype, options.num_workers, options.seed)


def device_of_process(device: str, environment: Mapping[str, str]) -> str:
    """Return the GPU of this process where several share a machine and none is named by its number."""
    if device != "cuda" or "LOCAL_RANK" not in environment:
        return device
    import torch

    return f"cuda:{int(environment['LOCAL_RANK']) % torch.cuda.device_count()}"


def _open_server(options: argparse.Namespace, _: Sequence[Task]) -> Opener:
    if options.base_url is None:
        raise ValueError("--backend openai needs --base-url, for example http://localhost:8000/v1")
    checked_url(options.base_url)
    variable = options.api_key_variable or KEY_VARIABLE
    key = os.environ.get(variable)
    if options.api_key_variable and not key:
        raise ValueError(f"--api-key-variable {variable}: there is no such environment variable, or it is empty")
    settings = {"concurrency": options.concurrency, "timeout": options.timeout}
    given = {name: value for name, value in settings.items() if value is not None}
    return lambda: OpenAIBackend(options.base_url, options.served_model, key, **given)


def _open_replay(options: argparse.Namespace, tasks: Sequence[Task]) -> Opener:
    if options.predictions is None:
        raise ValueError("--backend replay needs --predictions, a file of answers or a folder of such files")
    return lambda: ReplayBackend(options.predictions, [task.name for task in tasks])


BACKENDS: Mapping[str, Callable[[argparse.Namespace, Sequence[Task]], Opener]] = {
    "hf": _open_model,
    "openai": _open_server,
    "replay": _open_replay,
    "oracle": lambda *_: OracleBackend,
    "echo": lambda *_: EchoBackend,
}

FLAGS_OF_ONE: Mapping[str, str] = {
    **dict.fromkeys(("base_url", "served_model", "api_key_variable", "concurrency", "timeout"), "openai"),
    "predictions": "replay",
    **dict.fromkeys(("device", "dtype", "grid", "grids", "fit", "max_windows"), "hf"),
}
"""Flags that only one backend reads, by their names in the parsed options."""


def arguments() -> argparse.ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    what = parser.add_argument_group("what")
    what.add_argument("--checkpoint", help="folder of a checkpoint, or its hub name")
    what.add_argument(
        "--dataset",
        default=DEFAULT_SELECTION,
        help="tasks, groups, patterns, own .toml, .yaml, .jsonl or .json files; commas between (%(default)s)",
    )
    what.add_argument("--metric", choices=METRICS, help="metric of a .jsonl or .json file of your own")
    what.add_argument("--max-new-tokens", type=whole_number(1), help="limit of an answer, for a file of your own (100)")
    what.add_argument("--data-root", type=Path, help="folder that the tasks' paths and their images start from (.)")
    what.add_argument(
        "--prompt",
        default=AS_TRAINED,
        help="as-trained, published, or a file with <img></img> and {question} (%(default)s)",
    )
    which = parser.add_argument_group("which questions of each task; all without one of these")
    which.add_argument("--limit", type=whole_number(1), metavar="N", help="the first N")
    which.add_argument("--sample", type=whole_number(1), metavar="N", help="N drawn with --seed, by whole images")
    which.add_argument("--ids", type=Path, metavar="FILE", help="those whose ids stand in a file, one a line")
    which.add_argument("--allow-missing", action="store_true", help="go on without images that are missing or broken")
    shots = parser.add_argument_group("examples before a question")
    shots.add_argument("--few-shot", type=whole_number(0), default=0, metavar="K", help="how many (%(default)s)")
    shots.add_argument("--train", type=Path, metavar="FILE", help="file they come from, in the questions' format")
    how = parser.add_argument_group("how")
    how.add_argument("--batch-size", type=whole_number(1), default=4, help="questions a batch (%(default)s)")
    how.add_argument("--num-workers", type=whole_number(0), default=2, help="processes that open images (%(default)s)")
    how.add_argument(
        "--seed",
        type=int,
        default=3407,
        help="draws --sample and the examples; greedy answers do not depend on it (%(default)s)",
    )
    how.add_argument("--backend", choices=tuple(BACKENDS), default="hf", help="who answers (%(default)s)")
    model = parser.add_argument_group("--backend hf")
    model.add_argument("--device", help="cpu, cuda, cuda:N, mps (a CUDA device where there is one)")
    model.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="(the half precision of a CUDA device, else float32)",
    )
    model.add_argument("--grid", type=one_grid, metavar="ROWS,COLUMNS", help="windows (those of the checkpoint)")
    add_shape_flags(model)
    model.add_argument("--max-windows", type=whole_number(1), metavar="N", help="leave out grids of more windows")
    server = parser.add_argument_group("--backend openai")
    server.add_argument("--base-url", metavar="URL", help="address of the server, for example http://localhost:8000/v1")
    server.add_argument("--served-model", metavar="NAME", help="the model's name there (the only one that it lists)")
    server.add_argument(
        "--api-key-variable", metavar="VARIABLE", help="environment variable that holds the key (OPENAI_API_KEY)"
    )
    server.add_argument("--concurrency", type=whole_number(1), help="requests at a time (8)")
    server.add_argument("--timeout", type=seconds, help="seconds until an answer must have come (300)")
    replay = parser.add_argument_group("--backend replay")
    replay.add_argument(
        "--predictions", type=Path, metavar="FILE", help="answers: JSON or JSONL, or a folder with <task>.json"
    )
    where = parser.add_argument_group("where")
    where.add_argument("--save_name", "--save-name", help="name of the run's folder")
    where.add_argument("--output-dir", type=Path, default=Path("result"), help="folder of all runs (%(default)s)")
    again = where.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="keep answers that still hold; this is the default")
    again.add_argument(
        "--repair", action="store_true", help="ask again what is damaged or contradicts itself in the stored answers"
    )
    again.add_argument("--fresh", action="store_true", help="ask everything again")
    show = parser.add_argument_group("show and stop")
    show.add_argument("--list", action="store_true", help="the tasks and groups")
    show.add_argument(
        "--show", metavar="TASK", help="everything on a task, or on all that a group, pattern or file of your own names"
    )
    show.add_argument("--check-data", action="store_true", help="read all questions and images, and say what is wrong")
    return parser


def run_settings(options: argparse.Namespace, number_of_tasks: int) -> RunSettings:
    """Return the settings of a run.

    Raises ValueError for flags that do not go together, FileNotFoundError for a missing file.
    """
    for flag in ("train", "ids"):
        if getattr(options, flag) is not None and number_of_tasks > 1:
            raise ValueError(f"--{flag} goes with one task, and --dataset names {number_of_tasks}")
    if bool(options.few_shot) != (options.train is not None):
        raise ValueError("--few-shot K and --train FILE go together: how many examples, and where they come from")
    for flag in ("train", "ids"):
        path = getattr(options, flag)
        if path is not None and not path.exists():
            raise FileNotFoundError(f"--{flag} {path}: no such file")
    return RunSettings(
        folder=options.output_dir / checked_name(options.save_name),
        data_root=options.data_root,
        prompt=options.prompt,
        batch_size=options.batch_size,
        limit=options.limit,
        sample=options.sample,
        ids=options.ids,
        few_shot=FewShot(options.few_shot, options.train, options.seed) if options.few_shot else None,
        allow_missing=options.allow_missing,
        fresh=options.fresh,
        repair=options.repair,
        seed=options.seed,
        checkpoint=options.checkpoint,
    )


def checked_name(name: str | None) -> str:
    """Return the name of a run's folder; ValueError where it is not one."""
    if not name:
        raise ValueError("--save_name is needed: the run's files go to <output-dir>/<save_name>")
    if Path(name).name != name or name == "..":
        raise ValueError(f"--save_name {name!r} must be one folder's name; --output-dir says where it lies")
    return name


def evaluate(options: argparse.Namespace, processes: Processes) -> int:
    tasks = select_tasks(options.dataset, options.metric, options.max_new_tokens)
    settings = run_settings(options, len(tasks))
    for task in tasks:
        question_file(task, settings.data_root)  # before a backend's libraries, which take seconds
    results = run(tasks, settings, backend_opener(options, tasks), processes)
    if not processes.is_first:
        return COMPLETE
    complete = is_complete(results, settings.allow_missing)
    print(text_table([table_row(result) for result in results]), end="")
    last = (settings.folder / TIMING).read_text(encoding="utf-8").splitlines()[-1]
    print(describe_throughput(json.loads(last)["asked"], sum(len(result["failed"]) for result in results)))
    print(f"written to {settings.folder}")
    for result in results:
        for sentence in notes(result):
            print(f"note: {result['task']}: {sentence}")
        for sentence in incompleteness(result):
            print(f"{'left out' if complete else 'incomplete'}: {sentence}", file=sys.stderr)
    return COMPLETE if complete else EXIT_PARTIAL


def check_data(options: argparse.Namespace) -> int:
    from eval.check_questions import check_questions, report_text

    tasks = select_tasks(options.dataset, options.metric, options.max_new_tokens)
    train = [] if options.train is None else [options.train]
    report = check_questions(tasks, options.data_root, train=train, workers=options.num_workers)
    print(report_text(report))
    return COMPLETE if report.is_clean else EXIT_PARTIAL


def program(options: argparse.Namespace) -> int:
    if options.list:
        print(task_list())
        return COMPLETE
    if options.show:
        shown = select_tasks(options.show, options.metric, options.max_new_tokens)
        print("\n\n".join(map(task_sheet, shown)))
        return COMPLETE
    if options.check_data:
        return check_data(options)
    rank = int(os.environ.get("RANK", "0"))
    try:
        return evaluate(options, Processes.of_environment(os.environ))
    except Stopped:
        # What stopped another process is said by that one, and by the first.
        if rank == 0:
            raise
        return EXIT_USAGE
    except (ValueError, OSError) as error:
        if rank == 0:
            raise
        raise ValueError(f"process {rank}: {error}") from error


def main(command: list[str] | None = None) -> int:
    options = arguments().parse_args(command)
    return run_program(lambda: program(options), "interrupted; the same command goes on where it stopped")


if __name__ == "__main__":
    sys.exit(main())
