"""See Monkey learn: the small model that ships is asked about tickets, which it has never seen, learns them, is asked
again.

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

from monkey.cli import ArgumentParser
from scripts.stages import REPOSITORY, run

MODEL = "models/small"
CONFIG = "configs/training/tickets.yaml"
TASKS = "unseen_layout"


def scores(result: Path) -> dict[str, dict]:
    """Task name to its line of a run's summary."""
    summary = json.loads((result / "summary.json").read_text(encoding="utf-8"))
    return {line["task"]: line for line in summary["tasks"]}


def table(before: dict[str, dict], after: dict[str, dict]) -> str:
    """Task, questions, metric, score before and after, and the mean over tasks; scores in percent."""
    rows = [("task", "n", "metric", "before", "", "after")]
    for name, line in after.items():
        earlier = before[name]["value"]
        rows.append((name, str(line["n"]), line["metric"], f"{earlier:.1f}", "→", f"{line['value']:.1f}"))
    means = [sum(line["value"] for line in lines.values()) / len(lines) for lines in (before, after)]
    total = sum(line["n"] for line in after.values())
    rows.append(("mean of tasks", str(total), "", f"{means[0]:.1f}", "→", f"{means[1]:.1f}"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:<{widths[2]}}  "
        f"{row[3]:>{widths[3]}} {row[4]:<1} {row[5]:>{widths[5]}}"
        for row in rows
    ]
    rule = "-" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def main(words: list[str] | None = None) -> int:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=REPOSITORY / "outputs" / "quickstart")
    parser.add_argument("--pictures", type=int, default=2000, help="to train on")
    parser.add_argument("--heldout", type=int, default=80, help="pictures to ask about, which share no text with them")
    parser.add_argument("--steps", type=int, help=f"of training; the number in {CONFIG} if not given")
    parser.add_argument("--seed", type=int, default=0)
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
        *("-m", "monkey.data.documents", "--output", data, "--seed", seed),
        *("--layout", str(options.pictures), "--layout-heldout", str(options.heldout)),
    )
    evaluate = (
        *("evaluate_vqa.py", "--dataset", TASKS, "--data-root", data, "--output-dir", result),
        *("--batch-size", "32", "--num-workers", "0"),
    )
    run("ask the model that ships about them", *evaluate, "--checkpoint", MODEL, "--save_name", "before")
    steps = () if options.steps is None else ("--max_steps", str(options.steps))
    run(
        "train it",
        *("finetune_multitask.py", "--config", CONFIG, "--model_name_or_path", MODEL),
        *("--data_path", data / "layout.json", "--output_dir", finetuned, "--seed", seed, *steps),
    )
    run("ask again", *evaluate, "--checkpoint", finetuned, "--save_name", "after")

    print(f"\nScores in percent on held-out images, {time.monotonic() - started:.0f} seconds in all:\n")
    print(table(scores(result / "before"), scores(result / "after")))
    shown = output.relative_to(REPOSITORY) if output.is_relative_to(REPOSITORY) else output
    print(f"\nPredictions and scores   {shown}/result/after")
    print(f"Loss curve               {shown}/finetuned/loss_curve.png")
    python = Path(sys.executable)
    shown_python = python.relative_to(REPOSITORY) if python.is_relative_to(REPOSITORY) else python
    print("\nAsk it, and the model that ships, about a picture:")
    print(f"\n    {shown_python} demo.py -c {shown}/finetuned --compare {MODEL}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
