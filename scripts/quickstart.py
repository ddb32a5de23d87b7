"""See Monkey learn: draw data, make the small model, evaluate it, train it, evaluate it again, print one table.

    bash scripts/quickstart.sh          # sets up the environment, then runs this

Every step is a command that a person could type, and is printed as such. Everything lands in one folder, by default
outputs/quickstart: data/, base/ (untrained), finetuned/ (with loss_curve.png), result/ (predictions and scores).
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
TASKS = "sample"


def run(title: str, *command: str) -> None:
    """Run one step with this interpreter, its command printed, or end the whole with its exit status."""
    print(f"\n== {title}\n   python {shlex.join(command)}", flush=True)
    # The steps run on the CPU; saying so to DeepSpeed, which Trainer imports where it is installed, spares its warning.
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    environment.setdefault("DS_ACCELERATOR", "cpu")
    status = subprocess.run([sys.executable, *command], cwd=REPOSITORY, env=environment, check=False).returncode
    if status:
        print(f"error: this step failed ({title}); the lines above say why", file=sys.stderr)
        raise SystemExit(status)


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=REPOSITORY / "outputs" / "quickstart")
    parser.add_argument("--pictures", type=int, default=5000, help="to train on")
    parser.add_argument(
        "--heldout", type=int, default=250, help="pictures to evaluate on, which share no text with them"
    )
    parser.add_argument("--steps", type=int, help="of training; the number in configs/training/small.yaml if not given")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(words)
    started = time.monotonic()
    output = options.output.resolve()
    data, base, finetuned, result = (output / name for name in ("data", "base", "finetuned", "result"))
    seed = str(options.seed)

    marker = output / ".made-by-quickstart"
    if output.is_dir() and any(output.iterdir()) and not marker.is_file():
        print(
            f"error: {output} holds something that the quickstart did not make; name another --output", file=sys.stderr
        )
        return 2
    output.mkdir(parents=True, exist_ok=True)
    marker.touch()

    run(
        "draw sample pictures with questions",
        "-m", "monkey.data.render", "--output", str(data), "--seed", seed, "--overwrite",
        "--train", str(options.pictures), "--heldout", str(options.heldout),
    )  # fmt: skip
    for folder in (base, finetuned, result):
        shutil.rmtree(folder, ignore_errors=True)
    run("make the small model, untrained", "scripts/new_model.py", "configs/model/small", str(base), "--seed", seed)
    evaluate = (
        "evaluate_vqa.py", "--dataset", TASKS, "--data-root", str(data), "--output-dir", str(result),
        "--batch-size", "32", "--num-workers", "0",
    )  # fmt: skip
    run("evaluate it before training", *evaluate, "--checkpoint", str(base), "--save_name", "before")
    steps = () if options.steps is None else ("--max_steps", str(options.steps))
    run(
        "train it",
        "finetune_multitask.py", "--config", "configs/training/small.yaml", "--model_name_or_path", str(base),
        "--data_path", str(data / "train.json"), "--output_dir", str(finetuned), "--seed", seed, *steps,
    )  # fmt: skip
    run("evaluate it after training", *evaluate, "--checkpoint", str(finetuned), "--save_name", "after")

    print(f"\nScores in percent on held-out pictures, {time.monotonic() - started:.0f} seconds in all:\n")
    print(table(scores(result / "before"), scores(result / "after")))
    shown = output.relative_to(REPOSITORY) if output.is_relative_to(REPOSITORY) else output
    print(f"\nPredictions and scores   {shown}/result/after")
    print(f"Loss curve               {shown}/finetuned/loss_curve.png")
    python = Path(sys.executable)
    shown_python = python.relative_to(REPOSITORY) if python.is_relative_to(REPOSITORY) else python
    checkpoint = "" if output == REPOSITORY / "outputs" / "quickstart" else f" -c {shown}/finetuned"
    print(f"\nAsk it about a picture (there are some in data/samples):\n\n    {shown_python} demo.py{checkpoint}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
