"""Teach the vision side of an untrained model what letters look like, on images that are drawn as it goes.

    python scripts/learn_letters.py UNTRAINED TARGET --config configs/letters/reader.yaml

Trained are the vision transformer and the resampler (monkey/training/letters.py); the decoder stays as it is. TARGET
gets the checkpoint, run.json, training_log.json and loss_curve.png, whole or not at all; a call that was cut short is
taken up by the same call. Any setting of the config can be given as a flag, e.g. --max_steps 100.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import monkey
from monkey.checkpoint_card import card_of
from monkey.cli import EXIT_USAGE, ArgumentParser
from monkey.files import read_settings_file, refuse_missing

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from monkey.training.letters import LetterNaming, LetterPictures

HELD_OUT = 256
"""Images of each split that are named at the end."""


def named_right(naming: LetterNaming, pictures: LetterPictures, batch: int) -> float:
    """Share of the letters of `pictures` that are named by the tokens' map."""
    import torch

    from monkey.training.letters import collate_pictures

    hits = torch.zeros(2, dtype=torch.long)
    device = naming.of_token.weight.device
    naming.eval()
    with torch.inference_mode():
        for start in range(0, len(pictures), batch):
            numbers = range(start, min(start + batch, len(pictures)))
            samples = collate_pictures([pictures[number] for number in numbers])
            hits += naming(**{name: values.to(device) for name, values in samples.items()})["hits"].cpu()
    right, asked = hits.tolist()
    return right / asked


def learn(base: Path, target: Path, arguments: TrainingArguments) -> dict[str, float]:
    """Train as `arguments` say and write TARGET; the share of letters that are named, by held-out split.

    Raises:
        FileNotFoundError: `base` lacks a file.
        ValueError: `target` exists, or a model whose canvas is more than one window.
    """
    if target.exists():
        raise ValueError(f"{target} exists already; name a new folder")
    from transformers import Trainer, set_seed

    from monkey.training.letters import LetterNaming, LetterPictures, collate_pictures
    from monkey.training.model_card import run_record, write_loss_curve, write_record

    set_seed(arguments.seed)
    processor = monkey.MonkeyProcessor.from_pretrained(base)
    model = monkey.MonkeyForConditionalGeneration.from_pretrained(base)
    images, patch = processor.image_processor, model.config.vision_config.patch_size
    batch = arguments.per_device_train_batch_size
    naming = LetterNaming(model.model.visual, images)
    pictures = LetterPictures(images, patch, "train", arguments.max_steps * batch, arguments.seed)
    trainer = Trainer(naming, arguments, data_collator=collate_pictures, train_dataset=pictures)
    begun = any(Path(arguments.output_dir).glob("checkpoint-*/trainer_state.json"))
    trainer.train(resume_from_checkpoint=begun or None)
    shares = {
        split: named_right(naming, LetterPictures(images, patch, split, HELD_OUT, arguments.seed), batch)
        for split in ("known", "heldout")
    }
    folder = Path(arguments.output_dir) / "finished"
    model.cpu().save_pretrained(folder)
    processor.save_pretrained(folder)
    card_of(base).write(folder)
    flags = {key: value for key, value in asdict(arguments).items() if value is not None}
    counts = {"trained": sum(part.numel() for part in naming.visual.parameters() if part.requires_grad)}
    write_record(
        folder / "run.json",
        run_record(flags, counts, {"pictures": len(pictures), "letters_named": shares}, arguments.seed),
    )
    write_record(folder / "training_log.json", trainer.state.log_history)
    write_loss_curve(trainer.state.log_history, folder / "loss_curve.png")
    folder.rename(target)
    shutil.rmtree(arguments.output_dir)
    return shares


def training_arguments(flags: list[str]) -> TrainingArguments:
    """The flags of transformers.TrainingArguments; a wrong one ends the program with one sentence."""
    from transformers import HfArgumentParser, TrainingArguments

    class Settings(ArgumentParser, HfArgumentParser):
        pass

    (arguments,) = Settings(TrainingArguments).parse_args_into_dataclasses(flags)
    return arguments


def main(words: list[str] | None = None) -> int:
    """Runs the command; 2 on what the user can mend."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path, help="checkpoint folder of an untrained model")
    parser.add_argument("target", type=Path, help="new folder")
    parser.add_argument("--config", type=Path, required=True, help="YAML of transformers.TrainingArguments")
    options, rest = parser.parse_known_args(words)
    try:
        settings = read_settings_file(options.config, f"--config {options.config}")
        settings["output_dir"] = str(options.target.with_name(f".{options.target.name}-running"))
        flags = [f"--{key}={value}" for key, value in settings.items()] + rest
        refuse_missing(str(options.base))
        shares = learn(options.base, options.target, training_arguments(flags))
    except (ValueError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    named = ", ".join(f"{share:.1%} ({split})" for split, share in shares.items())
    print(f"{options.target}: letters of held-out images that are named: {named}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
