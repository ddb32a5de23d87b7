"""Train the small Monkey that ships in models/small, in stages as the paper's lineage was.

    bash scripts/train_small_model.sh                 # takes up what an earlier call left

On a GPU, where there is one: minutes, with what configs/reader-gpu.yaml changes. On two CPU cores: an hour and a half
and more.

1. The vision side alone learns letters, in place of the captions that published ones begin from.
2. A base at one window of 112 pixels, without adapters, on documents of that size: it learns to read and to answer.
3. Monkey from that base: 2×2 windows with an adapter each and the global view, on documents of 224 pixels; the shared
   vision transformer is frozen, as in the paper.
4. The weights are written in bf16, and held-out documents are asked.

Everything lands in one folder, by default outputs/small: data/, letters/, base/, monkey/, result/, and model/, which is
what models/small holds.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import yaml

from monkey.checkpoint_card import card_of
from monkey.cli import ArgumentParser
from scripts.stages import REPOSITORY, evaluate, results, run, train

BASE_SIDE, MONKEY_SIDE, GRID = 112, 224, "2,2"
BASE_DOCUMENTS = "sign=2", "paragraph=2", "receipt", "label", "form", "table=2", "bars=2", "lines=2", "scene"
MONKEY_DOCUMENTS = "sign", "paragraph", "receipt", "label", "form", "table=3", "bars=2", "lines=2", "scene"
"""More tables and charts, since to look something up in them is learnt last; held out are as many of each kind."""
MONKEY_QUESTIONS = 10
"""Most questions of an image of several windows, whose tokens cost more than a question's."""
DOCUMENTS = "monkey.data.documents"
TASKS = "documents_heldout", "documents_known"
EVALUATED = ",".join(f"{task}{suffix}" for task in TASKS for suffix in ("", "_read", "_box"))
PICTURES = 40_000
"""Of one window, on a CPU."""


def stage_settings(device: str, processes: int) -> dict[str, dict[str, object]]:
    """Flags of the stages letters, base and monkey that differ from those in their configs; `pictures` is a number."""
    if device == "cpu":
        return {"pictures": PICTURES, "letters": {}, "base": {}, "monkey": {}}
    settings = yaml.safe_load((REPOSITORY / "configs" / "reader-gpu.yaml").read_text(encoding="utf-8"))
    for stage in ("letters", "base", "monkey"):
        settings[stage] |= {"use_cpu": False, "dataloader_num_workers": processes}
    return settings


def export(checkpoint: Path, target: Path) -> Path:
    """Write a checkpoint's weights in bf16, with its processor, into the new folder `target`.

    Raises:
        ValueError: `target` exists.
    """
    if target.exists():
        raise ValueError(f"{target} exists already; remove it to write it anew")
    import torch

    from monkey import MonkeyForConditionalGeneration, MonkeyProcessor
    from monkey.checkpoint_files import write_checkpoint

    model = MonkeyForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.bfloat16)
    return write_checkpoint(model, MonkeyProcessor.from_pretrained(checkpoint), target, card_of(checkpoint))


def score_lines(result: Path, name: str) -> list[str]:
    """One line a task and kind of question: questions, score in percent, 95 % interval."""
    lines = []
    for task in EVALUATED.split(","):
        found = results(result, name, task)
        rows = [(task, found["n"], found["scores"])]
        parts = found.get("parts", {}).get("kind", {})
        rows += [(f"  {kind}", part["rows"], part["scores"]) for kind, part in parts.items() if len(parts) > 1]
        for label, count, scores in rows:
            figures = scores[found["headline"]]
            low, high = figures["interval"] or (float("nan"),) * 2
            lines.append(f"{label:<26} {count:>6}  {figures['value']:5.1f}  [{low:.1f}, {high:.1f}]")
    return lines


def main(words: list[str] | None = None) -> int:
    """Runs the stages; 2 on what the user can mend."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=REPOSITORY / "outputs" / "small")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="a GPU where there is one, if not given")
    parser.add_argument("--pictures", type=int, help="to train the base on; three quarters as many for Monkey")
    parser.add_argument("--heldout", type=int, default=300, help="pictures of each held-out split; 0 asks none")
    parser.add_argument("--letter-steps", type=int, help="the number in the stage's config if not given")
    parser.add_argument("--base-steps", type=int, help="likewise")
    parser.add_argument("--monkey-steps", type=int, help="likewise")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", choices=("True", "False"), default="True", help="False trains in fp32 (default True)")
    cores = os.cpu_count() or 1
    parser.add_argument(
        "--processes", type=int, help="that train on a CPU (default 2), or draw and open images for a GPU (cores - 2)"
    )
    options = parser.parse_args(words)
    if options.device is None:
        import torch

        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    on_gpu = options.device == "cuda"
    processes = options.processes or (max(1, cores - 2) if on_gpu else min(2, cores))
    settings = stage_settings(options.device, processes)
    pictures = settings["pictures"] if options.pictures is None else options.pictures
    output = options.output.resolve()
    data, result, seed = output / "data", output / "result", str(options.seed)
    small, large, held_out = data / "base", data / "monkey", data / "heldout"
    begun, letters, grown = output / "untrained", output / "letters", output / "on-grid"
    base, monkey, model = output / "base", output / "monkey", output / "model"
    drawing = "-m", DOCUMENTS, "--seed", seed, "--workers", str(processes)
    trainers = 1 if on_gpu else processes

    def flags(stage: str, steps: int | None) -> list[str]:
        changed = {"seed": seed, "bf16": options.bf16, **settings[stage]}
        if steps is not None:
            changed["max_steps"] = steps
        return [word for name, value in changed.items() for word in (f"--{name}", str(value))]

    run(
        "draw documents of one window",
        *(*drawing, "--output", small, "--side", str(BASE_SIDE)),
        *("--train", str(pictures), "--documents", *BASE_DOCUMENTS),
    )
    run(
        "draw documents of 2×2 windows",
        *(*drawing, "--output", large, "--side", str(MONKEY_SIDE), "--train", str(3 * pictures // 4)),
        *("--questions", str(MONKEY_QUESTIONS), "--documents", *MONKEY_DOCUMENTS),
    )
    if options.heldout:
        run(
            "draw those held out",
            *(*drawing, "--output", held_out, "--side", str(MONKEY_SIDE)),
            *("--heldout", str(options.heldout), "--known", str(options.heldout)),
        )
    if not begun.exists():
        run(
            "make the model, untrained",
            "scripts/new_model.py",
            "configs/model/reader",
            begun,
            "--merge",
            "--seed",
            seed,
        )
    if not letters.exists():
        run(
            "learn letters",
            *("scripts/learn_letters.py", begun, letters, "--config", "configs/letters/reader.yaml"),
            *flags("letters", options.letter_steps),
        )
    config = "configs/training/reader-base.yaml"
    changed = flags("base", options.base_steps)
    train("train the base", config, letters, small / "train.json", base, *changed, processes=trainers)
    if not grown.exists():
        run("put it on a grid", "scripts/set_grid.py", base, grown, "--grid", GRID, "--seed", seed)
    config = "configs/training/reader-monkey.yaml"
    changed = flags("monkey", options.monkey_steps)
    train("train Monkey", config, grown, large / "train.json", monkey, *changed, processes=trainers)
    if not model.exists():
        export(monkey, model)
    if options.heldout:
        evaluate("ask the held-out documents", model, EVALUATED, held_out, result, "model")
        print("\nQuestions, score in percent and its 95 % interval:\n")
        print("\n".join(score_lines(result, "model")))
    print(f"\nThe model: {model}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
