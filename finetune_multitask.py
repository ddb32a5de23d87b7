r"""Fine-tune Monkey on conversations about images.

    python finetune_multitask.py --config configs/training/tickets.yaml \
        --model_name_or_path models/small --data_path outputs/quickstart/data/train.json \
        --output_dir outputs/quickstart/finetuned

Several GPUs: `scripts/finetune_ds.sh`. Every flag: `--help`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from monkey.cli import EXIT_INTERRUPTED, EXIT_USAGE
from monkey.training.arguments import look_over, parse_flags, print_help


def main(words: list[str]) -> int:
    # The libraries take seconds to import, which help, a wrong name and a wrong path do not wait for.
    if {"-h", "--help"} & set(words):
        print_help(__doc__)
        return 0
    try:
        look_over(words)
        flags = parse_flags(words)
        from monkey.training.finetune import Stopped, finetune

        try:
            folder = finetune(flags, _evaluator(flags))
        except Stopped as stopped:
            print(stopped, file=sys.stderr)
            return 128 + stopped.number  # as of a program that the signal ended
    except (ValueError, OSError) as error:
        # In one piece, since all processes of a run may say it at once.
        sys.stderr.write(f"error: {error}\n")
        return EXIT_USAGE
    except KeyboardInterrupt:
        if os.environ.get("RANK", "0") == "0":
            print("interrupted; --resume_from_checkpoint True goes on from the last checkpoint", file=sys.stderr)
        return EXIT_INTERRUPTED
    if flags.training.process_index == 0:
        print(f"trained checkpoint: {folder}")
    return 0


def _evaluator(flags):
    """What answers and scores `--eval_tasks`, its questions read; None without them."""
    if not flags.run.eval_tasks:
        return None
    from eval.in_training import InTrainingEval

    evaluator = InTrainingEval(
        flags.run.eval_tasks,
        data_root=Path(flags.run.eval_data_root) if flags.run.eval_data_root else None,
        limit=flags.run.eval_limit or None,
        batch_size=flags.training.per_device_eval_batch_size,
        num_workers=flags.training.dataloader_num_workers,
    )
    if flags.training.process_index == 0:
        print(evaluator)
    return evaluator


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
