"""Fine-tune Monkey on conversations about pictures.

    python finetune_multitask.py --config configs/training/small.yaml \
        --model_name_or_path outputs/quickstart/base --data_path outputs/quickstart/data/train.json \
        --output_dir outputs/quickstart/finetuned

Several GPUs: `scripts/finetune_ds.sh`. Every flag: `--help`.
"""

from __future__ import annotations

import sys


def main(words: list[str]) -> int:
    # The libraries take seconds to import; a wrong --help or path should not wait for all of them.
    from monkey.training.arguments import parse_flags

    try:
        flags = parse_flags(words)
        from monkey.training.finetune import finetune

        folder = finetune(flags)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if flags.training.process_index == 0:
        print(f"trained checkpoint: {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
