"""Train the small Monkey that ships in models/small, in stages as the paper's lineage was.

    bash scripts/train_small_model.sh                              # from nothing; takes up what an earlier call left
    bash scripts/train_small_model.sh --start models/small-base    # from a checkpoint that reads: on two CPU cores

On a GPU, where there is one, with what configs/reader-gpu.yaml changes. All images are pages by `monkey.data.pages`.

1. The vision side alone learns letters, in place of the captions that published ones begin from.
2. A first base on grids of up to four windows of 112 pixels learns to read and to answer.
3. The base: windows of 224 pixels, grids of up to two, neither adapters nor a global view; all parts train.
4. Monkey from that base: grids of up to six windows, adapters of a 2×2 grid and the global view; the shared vision
   transformer is frozen, as in the paper.
5. The weights are written in bf16, and held-out pages and the images of data/wild are asked.

--start takes the place of the first two. Everything lands in one folder, by default outputs/small: data/, letters/,
first/, base/, monkey/, result/, and model/, which is what models/small holds.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import yaml

from eval.tasks import GROUPS
from monkey.checkpoint_card import card_of
from monkey.cli import ArgumentParser, whole_number
from scripts.stages import REPOSITORY, evaluate, keep_settings, results, run, train

WINDOW, WINDOW_TOKENS = 224, 196
"""Pixels of a window's side and the tokens that it becomes."""
PAGES = 8_000
"""Of each training set, on a CPU."""
QUESTIONS = 12
"""Most questions about a page of training."""
FIRST_WINDOW, FIRST_WINDOWS = 112, 4
FIRST_KINDS = (
    *("form", "table=2", "label", "card", "menu", "timetable", "slide", "sign=2", "screen", "bars", "lines", "pie"),
    *("scene", "noise", "texture"),
)
"""Kinds of which every page can be read in so few small windows."""
EVALUATED = {"pages": ",".join(GROUPS["pages"]), "wild": ",".join(GROUPS["wild_all"])}
"""Tasks that are asked in the end, by the name that their answers are saved under."""

BARE = "--fit", "pad", "--adapters", "none", "--global-view", "False"


def stage_settings(device: str, processes: int) -> dict[str, dict[str, object]]:
    """Flags of the stages that differ from those in their configs; `pages` is a number."""
    stages = "letters", "first", "base", "monkey"
    if device == "cpu":
        return {"pages": PAGES, **{stage: {} for stage in stages}}
    settings = yaml.safe_load((REPOSITORY / "configs" / "reader-gpu.yaml").read_text(encoding="utf-8"))
    for stage in stages:
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
    for task in EVALUATED[name].split(","):
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
    """Run the stages; 2 on what the user can mend."""
    parser, count = ArgumentParser(description=__doc__), whole_number(1)
    parser.add_argument("--output", type=Path, default=REPOSITORY / "outputs" / "small")
    parser.add_argument("--start", type=Path, help="checkpoint to make the base from (default: from nothing)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="a GPU where there is one, if not given")
    parser.add_argument("--pictures", type=count, help=f"pages of each training set (default {PAGES:,}; more on a GPU)")
    parser.add_argument(
        "--heldout", type=whole_number(0), default=300, help="pages of each held-out split; 0 asks nothing"
    )
    parser.add_argument("--letter-steps", type=count, help="the number in the stage's config if not given")
    parser.add_argument("--first-steps", type=count, help="likewise")
    parser.add_argument("--base-steps", type=count, help="likewise")
    parser.add_argument("--monkey-steps", type=count, help="likewise")
    parser.add_argument("--seed", type=whole_number(0), default=0)
    parser.add_argument("--bf16", choices=("True", "False"), default="True", help="False trains in fp32 (default True)")
    cores = os.cpu_count() or 1
    parser.add_argument(
        "--processes", type=count, help="that train on a CPU (default 2), or draw and open images for a GPU (cores - 2)"
    )
    options = parser.parse_args(words)
    if options.start is not None and not options.start.is_dir():
        print(f"error: --start {options.start} is no folder of a checkpoint", file=sys.stderr)
        return 2
    if options.device is None:
        import torch

        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    on_gpu = options.device == "cuda"
    processes = options.processes or (max(1, cores - 2) if on_gpu else min(2, cores))
    settings = stage_settings(options.device, processes)
    pages = settings["pages"] if options.pictures is None else options.pictures
    output, seed = options.output.resolve(), str(options.seed)
    data, result, model = output / "data", output / "result", output / "model"
    begun, letters = output / "untrained", output / "letters"
    trainers = 1 if on_gpu else processes
    start = options.start and options.start.resolve()
    kept = "device", "seed", "bf16", "letter_steps", "first_steps", "base_steps", "monkey_steps"
    try:
        keep_settings(
            output,
            {"start": start and str(start), "pictures": pages, **{name: getattr(options, name) for name in kept}},
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2

    def flags(stage: str, steps: int | None) -> list[str]:
        changed = {"seed": seed, "bf16": options.bf16, **settings[stage]}
        if steps is not None:
            changed["max_steps"] = steps
        return [word for name, value in changed.items() for word in (f"--{name}", str(value))]

    def draw(name: str, window: int, windows: int, *counts: str | int) -> Path:
        run(
            f"draw pages for {name}",
            *("-m", "monkey.data.pages", "--output", data / name, "--seed", seed, "--workers", str(processes)),
            *("--window", str(window), "--windows", str(windows), *map(str, counts)),
        )
        return data / name

    def put_on_grid(base: Path, name: str, *layout: str) -> Path:
        if not (output / name).exists():
            run(f"put the weights on their grid for {name}", "scripts/set_grid.py", base, output / name, *layout)
        return output / name

    training = "--train", pages, "--questions", QUESTIONS
    if start is None:
        if not begun.exists():
            run(
                "make the model, untrained",
                *("scripts/new_model.py", "configs/model/reader", begun, "--merge", "--seed", seed),
            )
        if not letters.exists():
            run(
                "learn letters",
                *("scripts/learn_letters.py", begun, letters, "--config", "configs/letters/reader.yaml"),
                *flags("letters", options.letter_steps),
            )
        drawn = draw("first", FIRST_WINDOW, FIRST_WINDOWS, *training, "--kinds", *FIRST_KINDS)
        grown = put_on_grid(letters, "first-start", "--grid", "1,1", "--grids", f"up-to-{FIRST_WINDOWS}", *BARE)
        start, config = output / "first", "configs/training/reader-base.yaml"
        changed = flags("first", options.first_steps)
        train("train a first base", config, grown, drawn / "train.json", start, *changed, processes=trainers)
    window = "--window", str(WINDOW), "--window-tokens", str(WINDOW_TOKENS)
    drawn = draw("base", WINDOW, 2, *training)
    grown = put_on_grid(start, "base-start", "--grid", "1,1", "--grids", "up-to-2", *BARE, *window)
    config, base = "configs/training/reader-base.yaml", output / "base"
    changed = flags("base", options.base_steps)
    train("train the base", config, grown, drawn / "train.json", base, *changed, processes=trainers)
    drawn = draw("monkey", WINDOW, 6, *training)
    layout = "--grid", "2,2", "--grids", "up-to-6", "--fit", "pad", *window, "--seed", seed
    grown = put_on_grid(base, "monkey-start", *layout)
    config, monkey = "configs/training/reader-monkey.yaml", output / "monkey"
    changed = flags("monkey", options.monkey_steps)
    train("train Monkey", config, grown, drawn / "train.json", monkey, *changed, processes=trainers)
    if not model.exists():
        export(monkey, model)
    if options.heldout:
        held_out = draw("heldout", WINDOW, 6, "--heldout", options.heldout, "--known", options.heldout)
        for name, tasks in EVALUATED.items():
            title = "ask about held-out pages" if name == "pages" else "ask about images by other engines"
            evaluate(title, model, tasks, held_out if name == "pages" else REPOSITORY, result, name)
        print("\nQuestions, score in percent and its 95 % interval:\n")
        print("\n".join(line for name in EVALUATED for line in score_lines(result, name)))
    print(f"\nThe model: {model}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
