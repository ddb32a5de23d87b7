"""The weights between two checkpoints of one model, in bf16.

    python scripts/average_checkpoints.py BEFORE AFTER TARGET
    python scripts/average_checkpoints.py BEFORE AFTER TARGET --part 0.25     # a quarter of the way to AFTER

Fine-tuning on other data gains there and loses elsewhere; the middle of the way often keeps most of both (Wortsman et
al., Robust fine-tuning of zero-shot models, arXiv 2109.01903).
"""

from __future__ import annotations

import sys
from pathlib import Path

import monkey
from monkey.checkpoint_card import card_of
from monkey.cli import ArgumentParser, run_program
from monkey.files import refuse_existing, refuse_missing


def average(before: Path, after: Path, target: Path, part: float = 0.5) -> Path:
    """Write the weights at `part` of the way from `before` to `after`, with the processor of `after` and its card.

    Raises:
        FileNotFoundError: a checkpoint lacks a file.
        ValueError: `target` exists, `part` is not between 0 and 1, or the two are not of one shape.
    """
    refuse_existing(target)
    if not 0 <= part <= 1:
        raise ValueError(f"--part must lie between 0 and 1, not at {part:g}")
    for name in (before, after):
        refuse_missing(str(name))

    import torch

    from monkey.checkpoint_files import write_checkpoint

    first, model = (
        monkey.MonkeyForConditionalGeneration.from_pretrained(name, dtype=torch.float32) for name in (before, after)
    )
    begun, ended = first.state_dict(), model.state_dict()
    for name in sorted(begun.keys() | ended.keys()):
        shapes = [list(weights[name].shape) if name in weights else None for weights in (begun, ended)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{name} is of shape {shapes[0]} in {before} and {shapes[1]} in {after}; they must be equal"
            )
    model.load_state_dict({name: torch.lerp(begun[name], ended[name], part) for name in ended})
    card = card_of(after).under_terms_of(card_of(before))
    return write_checkpoint(model.to(torch.bfloat16), monkey.MonkeyProcessor.from_pretrained(after), target, card)


def main(words: list[str] | None = None) -> int:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("before", type=Path, help="checkpoint folder")
    parser.add_argument("after", type=Path, help="checkpoint folder")
    parser.add_argument("target", type=Path, help="new folder")
    parser.add_argument("--part", type=float, default=0.5, help="of the way from the first to the second (default 0.5)")
    options = parser.parse_args(words)
    return run_program(lambda: print(average(options.before, options.after, options.target, options.part)))


if __name__ == "__main__":
    sys.exit(main())
