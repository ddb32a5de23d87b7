"""Plan the GPU memory of a training run: what each part needs, by ZeRO stage, whether it fits, and what to change.

    python scripts/plan_memory.py --recipe lora-llm --grid 2,2 --gpus 8 --gpu-memory 24 --zero 3 --pack-tokens 2048
    python scripts/plan_memory.py --config configs/training/full-llm.yaml --gpus 8 --gpu-memory 80 --json
    python scripts/plan_memory.py --recipe lora-llm --grids up-to-6 --gpu-memory 80 --pack-tokens 4096
    python scripts/plan_memory.py --gpus 8 --gpu-memory 80 -- --recipe lora-llm --grids up-to-6 --packing True

Without --checkpoint the model is the published full size. Nothing is loaded: parameters are counted, and a step is
made, on a model without storage (monkey/training/memory.py). The plan is of tensors; the allocator reserves more.
Behind `--` stand flags of finetune_multitask.py, as a run would be given them. They override the file of --config, and
this program's own flags override both. Exit status: 0 the plan fits, 1 it does not, 2 the flags do not work.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import monkey
from monkey.cli import grid_set, one_grid
from monkey.files import refuse_missing
from monkey.training.arguments import read_config, read_words
from monkey.training.recipes import RECIPES

if TYPE_CHECKING:
    from monkey.training.memory import Advice, MemoryPlan, PlanSettings


class _Parser(argparse.ArgumentParser):
    """Raises ValueError, where argparse prints its usage and leaves the program."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(re.sub(r"^argument (--[\w-]+)[^:]*:", r"\1:", message))


def _yes(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text} is neither True nor False")
    return text.lower() == "true"


def _parser() -> _Parser:
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--recipe", choices=list(RECIPES), help="what trains; full-llm by default")
    parser.add_argument("--config", help="a training file, such as configs/training/full-llm.yaml")
    parser.add_argument("--checkpoint", help="folder of a model, for its sizes")
    parser.add_argument("--grid", type=one_grid, help="rows,columns of windows, such as 2,3")
    parser.add_argument("--grids", type=grid_set, metavar="SET", help="of which an image may take any, such as up-to-6")
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--gpu-memory", type=float, help="GiB of one GPU; by default the one that is visible")
    parser.add_argument("--zero", type=int, choices=range(4), dest="zero_stage", help="ZeRO stage 1 to 3; 0 is DDP")
    parser.add_argument("--deepspeed", help="a DeepSpeed config, for its stage, offload and buffer sizes")
    parser.add_argument("--offload", choices=("none", "optimizer", "all"), help="what lies in host memory")
    parser.add_argument("--precision", choices=["bf16", "fp32"])
    parser.add_argument("--batch-size", type=int, help="padded samples of a forward pass")
    parser.add_argument("--pack-tokens", type=int, help="tokens of a packed row, instead of --batch-size")
    parser.add_argument("--questions-per-image", type=int)
    parser.add_argument("--text-tokens", type=int, help="tokens of a question with its answer; 50 by default")
    parser.add_argument("--vision-checkpointing", type=_yes, metavar="True|False", help="True by default")
    parser.add_argument("--decoder-checkpointing", type=_yes, metavar="True|False", help="True by default")
    parser.add_argument("--lora-rank", type=int)
    parser.add_argument("--optim", choices=["adamw", "adamw_8bit"], dest="optimizer")
    parser.add_argument(
        "--evaluation-batch", type=int, help="samples that evaluation in the loop generates for at once"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--quiet", action="store_true", help="print nothing; the exit status says it")
    return parser


def _training_flags(path: str | None, words: list[str]) -> dict[str, Any]:
    """The flags of a training file and of a training command; without either, those of this program's defaults."""
    flags: dict[str, Any] = {"bf16": True, "gradient_checkpointing": True}
    if path is not None or words:
        flags = {} if path is None else read_config(path)
        given = read_words(words)
        flags |= given.file
        flags |= {name: _read_value(values) for name, values in given.words.items()}
        flags |= {name.removeprefix("no_"): False for name in given.words if name.startswith("no_")}
    return flags


def _read_value(words: list[str]) -> Any:
    if len(words) > 1:
        return words
    text = words[0] if words else "true"
    switches = {"true": True, "yes": True, "t": True, "y": True, "false": False, "no": False, "f": False, "n": False}
    return switches.get(text.lower(), int(text) if text.isdecimal() else text)


def _model(options: argparse.Namespace, flags: dict[str, Any]) -> monkey.MonkeyConfig:
    layout = {}
    for name, read in (("grid", one_grid), ("grids", grid_set)):
        if getattr(options, name) is not None:
            layout[name] = getattr(options, name)
        elif (value := flags.get(name)) is not None:
            layout[name] = read(value if isinstance(value, str) else ",".join(map(str, value)))
    if options.checkpoint is None:
        config = monkey.MonkeyConfig(**layout)
    else:
        config = monkey.MonkeyConfig.from_pretrained(options.checkpoint, **layout)
    if (targets := flags.get("lora_targets")) is not None:
        config.lora_targets = targets if isinstance(targets, list) else [targets]
    return config


def _settings(options: argparse.Namespace, flags: dict[str, Any]) -> PlanSettings:
    flags = dict(flags)
    if options.recipe is not None:
        for published in ("fix_vit", "use_lora", "q_lora"):
            flags.pop(published, None)
        flags["recipe"] = options.recipe
    from monkey.training.memory import settings_of_flags, shipped_zero

    if options.deepspeed is not None:
        flags["deepspeed"] = options.deepspeed
    names = (
        "zero_stage", "offload", "precision", "batch_size", "pack_tokens", "questions_per_image", "text_tokens",
        "vision_checkpointing", "decoder_checkpointing", "lora_rank", "optimizer", "evaluation_batch",
    )  # fmt: skip
    changes = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if "pack_tokens" in changes:
        changes.setdefault("batch_size", 0)
    elif "batch_size" in changes:
        changes["pack_tokens"] = 0
    if options.zero_stage and not flags.get("deepspeed"):
        changes["zero"] = shipped_zero(options.zero_stage)
    # The plan is that of GPUs, wherever this runs.
    flags.pop("use_cpu", None)
    return settings_of_flags(flags, gpus=options.gpus, **changes)


def _record(whole: MemoryPlan, gpu_gib: float, steps: list[Advice]) -> dict[str, Any]:
    """The plan as JSON: bytes by line and by phase, and what the changes would give."""
    from monkey.training.memory import GIB, step_size

    settings, step = whole.settings, step_size(whole.config, whole.settings)
    return {
        "recipe": settings.recipe.name,
        "grid": list(whole.config.grid),
        **({"grids": [list(grid) for grid in whole.config.allowed_grids]} if whole.config.is_ragged else {}),
        "gpus": settings.gpus,
        "zero_stage": settings.zero_stage,
        "offload": settings.offload,
        "images": step.images,
        **({"windows": step.windows} if step.windows is not None else {}),
        "tokens": step.rows * step.tokens,
        "supervised_tokens": step.supervised,
        "bytes": whole.total,
        "gib": round(whole.total / GIB, 3),
        "host_bytes": whole.host,
        "gpu_gib": gpu_gib,
        "fits": whole.fits(gpu_gib),
        "lines": whole.lines,
        "peak": whole.phase,
        "phases": whole.phases,
        "parameters": whole.sizes.parts,
        "advice": [
            {"change": each.change, "bytes": each.plan.total, "fits": each.plan.fits(gpu_gib)} for each in steps
        ],
    }


def _run(words: list[str] | None) -> int:
    words = sys.argv[1:] if words is None else words
    end = words.index("--") if "--" in words else len(words)
    options, training_words = _parser().parse_args(words[:end]), words[end + 1 :]
    flags = _training_flags(options.config, training_words)
    if options.checkpoint is None and training_words:
        options.checkpoint = flags.get("model_name_or_path")
    if options.checkpoint:
        refuse_missing(options.checkpoint)

    from monkey.training.memory import GIB, advice, gpu_gib, plan, plan_table

    room = options.gpu_memory if options.gpu_memory is not None else gpu_gib()
    if room is None:
        raise ValueError("no GPU is visible here, so give the memory of one: --gpu-memory GIB, for instance 24")
    if not 0 < room < float("inf"):
        raise ValueError(f"--gpu-memory {room:g} does not work: give the GiB of one GPU, for instance 24")
    config = _model(options, flags)
    whole = plan(config, _settings(options, flags))
    if options.quiet:
        return 0 if whole.fits(room) else 1
    steps = advice(whole, room)
    if options.json:
        print(json.dumps(_record(whole, room, steps)))
    else:
        print(plan_table(whole))
        if whole.fits(room):
            print(f"fits: {whole.total / GIB:.1f} of {room:g} GiB per GPU")
        else:
            print(f"does not fit: {whole.total / GIB:.1f} of {room:g} GiB per GPU. One after the other:")
            for step in steps:
                print(f"  {step.change}: {step.plan.needs}, {'fits' if step.plan.fits(room) else 'still too much'}")
            if not steps:
                print("  no flag makes it smaller")
    return 0 if whole.fits(room) else 1


def main(words: list[str] | None = None) -> int:
    try:
        return _run(words)
    except (ValueError, FileNotFoundError, argparse.ArgumentTypeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
