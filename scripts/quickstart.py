"""See Monkey learn: the small model that ships is asked about tickets in German, of which it knows nothing, learns the
questions, is asked again.

    bash scripts/quickstart.sh          # sets up the environment, then runs this

Every step is a command that a person could type, and is printed as such. Everything lands in one folder, by default
outputs/quickstart: data/, finetuned/ (with loss_curve.png), result/ (predictions and scores).
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path

from monkey.cli import ArgumentParser, whole_number
from scripts.stages import REPOSITORY, run

MODEL = "models/small"
CONFIG = "configs/training/tickets.yaml"
WORDINGS = "configs/data/tickets-german.yaml"
TASKS = "pages_known,pages_heldout"
"""Tickets in typefaces of training, and in others."""


def scores(result: Path) -> dict[str, dict]:
    """Task name to its line of a run's summary."""
    summary = json.loads((result / "summary.json").read_text(encoding="utf-8"))
    return {line["task"]: line for line in summary["tasks"]}


def table(before: dict[str, dict], after: dict[str, dict]) -> str:
    """Return a line a task: questions, metric, score in percent before and after."""
    rows = [("task", "n", "metric", "before", "", "after")]
    for name, line in after.items():
        earlier = before[name]["value"]
        rows.append((name, str(line["n"]), line["metric"], f"{earlier:.1f}", "→", f"{line['value']:.1f}"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:<{widths[2]}}  "
        f"{row[3]:>{widths[3]}} {row[4]:<1} {row[5]:>{widths[5]}}"
        for row in rows
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def main(words: list[str] | None = None) -> int:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=REPOSITORY / "outputs" / "quickstart")
    parser.add_argument("--pictures", type=whole_number(1), default=450, help="to train on (default %(default)s)")
    parser.add_argument(
        "--heldout", type=whole_number(2), default=80, help="of other words and layouts, to ask about, half a task"
    )
    parser.add_argument("--steps", type=whole_number(1), help=f"of training; the number in {CONFIG} if not given")
    parser.add_argument("--seed", type=whole_number(0), default=0)
    options = parser.parse_args(words)
    started = time.monotonic()
    output = options.output.resolve()
    data, finetuned, result = (output / name for name in ("data", "finetuned", "result"))
    seed = str(options.seed)

    marker = output / ".made-by-quickstart"
    if output.is_dir() and any(output.iterdir()) and not marker.is_file():
        print(
            f"error: {output} holds something that the quickstart did not make; name another --output", file=sys.stderr
        )
        return 2
    output.mkdir(parents=True, exist_ok=True)
    marker.touch()

    for folder in (data, finetuned, result):
        shutil.rmtree(folder, ignore_errors=True)
    run(
        "draw tickets with questions",
        *("-m", "monkey.data.pages", "--output", data, "--seed", seed, "--kinds", "ticket", "--wordings", WORDINGS),
        # For one window of 224 pixels each, which is all that is looked at, so that the whole takes minutes.
        *("--window", "224", "--windows", "1", "--train", str(options.pictures)),
        *("--known", str(options.heldout // 2), "--heldout", str(options.heldout - options.heldout // 2)),
    )
    evaluate = (
        *("evaluate_vqa.py", "--dataset", TASKS, "--data-root", data, "--output-dir", result),
        *("--grids", "up-to-1", "--batch-size", "32", "--num-workers", "0"),
    )
    run("ask the model that ships about them", *evaluate, "--checkpoint", MODEL, "--save_name", "before")
    steps = () if options.steps is None else ("--max_steps", str(options.steps))
    run(
        "train it",
        *("finetune_multitask.py", "--config", CONFIG, "--model_name_or_path", MODEL),
        *("--data_path", data / "train.json", "--output_dir", finetuned, "--seed", seed, *steps),
    )
    run("ask again", *evaluate, "--checkpoint", finetuned, "--save_name", "after")

    print(f"\nScores in percent on held-out images, {time.monotonic() - started:.0f} seconds in all:\n")
    print(table(scores(result / "before"), scores(result / "after")))
    shown = output.relative_to(REPOSITORY) if output.is_relative_to(REPOSITORY) else output
    print(f"\nPredictions and scores   {shown}/result/after")
    print(f"Loss curve               {shown}/finetuned/loss_curve.png")
    python = Path(sys.executable)
    shown_python = python.relative_to(REPOSITORY) if python.is_relative_to(REPOSITORY) else python
    print("\nAsk it, and the model that ships, about a ticket in German:")
    print(f"\n    {shown_python} demo.py -c {shown}/finetuned --compare {MODEL}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
