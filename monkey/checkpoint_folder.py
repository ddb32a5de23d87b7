"""A checkpoint folder that is written whole or not at all."""

from __future__ import annotations

import tempfile
from pathlib import Path

from monkey.checkpoint_card import CheckpointCard
from monkey.modeling import MonkeyForConditionalGeneration
from monkey.processing import MonkeyProcessor


def write_checkpoint(
    model: MonkeyForConditionalGeneration, processor: MonkeyProcessor, target: Path, card: CheckpointCard
) -> Path:
    """Write a model with its processor and card beside the new folder `target`, then rename it into place."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as temporary:
        folder = Path(temporary) / target.name
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        card.write(folder)
        folder.rename(target)
    return target
