"""Make an untrained checkpoint from a folder that holds a config.json and a qwen.tiktoken.

    python scripts/new_model.py configs/model/small outputs/small-untrained --seed 0

The weights are random, the same for the same seed; processor and card are saved beside them. With --merge the resampler
starts as a merge of neighbouring patches (monkey/training/resampler_start.py). OUTPUT is written whole or not at all.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import monkey
from monkey.checkpoint_card import CARD_FILE, CheckpointCard, read_card
from monkey.cli import ArgumentParser, run_program
from monkey.files import checkpoint_file, refuse_existing, refuse_missing


def new_model(source: str | Path, output: str | Path, seed: int = 0, merge: bool = False) -> Path:
    """Write the untrained checkpoint that `source` describes into the new folder `output`.

    Raises:
        FileNotFoundError: `source` lacks its config.json or qwen.tiktoken.
        ValueError: `output` exists, tokenizer and config do not belong together, or the patches cannot be merged.
    """
    output = Path(output)
    refuse_existing(output)
    refuse_missing(str(source))

    import torch

    from monkey.checkpoint_files import write_checkpoint
    from monkey.training.resampler_start import start_as_merge

    config = monkey.MonkeyConfig.from_pretrained(source)
    tokenizer = monkey.QwenTokenizer.from_pretrained(source)
    if len(tokenizer) > config.text_config.vocab_size:
        raise ValueError(
            f"{source}: the tokenizer has {len(tokenizer)} tokens, but text_config.vocab_size is "
            f"{config.text_config.vocab_size}; raise it"
        )
    torch.manual_seed(seed)
    model = monkey.MonkeyForConditionalGeneration(config)
    if merge:
        start_as_merge(model)
    # Terms of published weights, known by their config.json, are none of random ones.
    card = read_card(path) if (path := checkpoint_file(source, CARD_FILE)) else CheckpointCard()
    return write_checkpoint(model, monkey.MonkeyProcessor.from_config(config, tokenizer), output, card)


def main(arguments: list[str] | None = None) -> int:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="folder with config.json and qwen.tiktoken")
    parser.add_argument("output", help="new folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--merge", action="store_true", help="start the resampler as a merge of neighbouring patches")
    options = parser.parse_args(arguments)

    def write() -> None:
        folder = new_model(options.source, options.output, options.seed, options.merge)
        print(f"{folder}: untrained, {sum(p.stat().st_size for p in folder.iterdir()) / 2**20:.1f} MiB")

    return run_program(write)


if __name__ == "__main__":
    sys.exit(main())
