"""`--published True` against an independent loop that trains as the published script does."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.published import PublishedTraining
from benchmarks.training import published_copy
from monkey.checkpoint import published_names
from monkey.modeling import MonkeyForConditionalGeneration
from monkey.processing import MonkeyProcessor
from monkey.training.arguments import parse_flags
from monkey.training.finetune import batch_plan, finetune, training_samples
from monkey.training.recipes import apply_recipe
from monkey.training.trainer import MonkeyTrainer
from tests.training_start import NO_DROPOUT, conversation, losses, with_records, words_of

STEPS = 3
DECAY = 0.5
RATE = 1e-3
OPTIMISER = ("--weight_decay", str(DECAY), "--adam_beta2", "0.95", "--max_steps", str(STEPS), *NO_DROPOUT)
ONE_BY_ONE = ("--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "6")
IN_TWOS = ("--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "3")
PACKED = (
    "--packing", "True", "--model_max_length", "100", "--pack_tokens", "120", "--per_device_train_batch_size", "1",
    "--gradient_accumulation_steps", "99",
)  # fmt: skip


@pytest.fixture(scope="module")
def unequal(start, tmp_path_factory):
    """Six records whose answers differ much in length: two about one picture, one without any."""
    records = [
        conversation("<img>0.png</img> What colour? Answer: ", "red"),
        conversation("<img>0.png</img> What do you see? Answer: ", "a red picture, wider than it is high, and no more"),
        conversation("<img>1.png</img> What colour? Answer: ", "green, " * 6),
        conversation("<img>2.png</img> What colour? Answer: ", "blue"),
        conversation("<img>3.png</img> Is it black? Answer: ", "yes, it is black all over"),
        conversation("Say yes. Answer: ", "yes"),
    ]
    return with_records(start, tmp_path_factory.mktemp("unequal"), *records)


def _as_published_trains(flags) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    """Losses, gradient norms and weights of the independent loop on the batches that the flags plan."""
    processor = MonkeyProcessor.from_pretrained(flags.model.model_name_or_path)
    model = MonkeyForConditionalGeneration.from_pretrained(flags.model.model_name_or_path)
    apply_recipe(model, flags.recipe)
    baseline = published_copy(model)
    loop = PublishedTraining(baseline, RATE, DECAY)
    samples = training_samples(flags, processor)
    plan, figures = batch_plan(flags, samples), []
    for epoch in range(STEPS):  # an epoch is one step here
        batches = plan.epoch(epoch)
        if flags.data.packing:
            batches = [[index] for row in batches for unit in row for index in unit]
        figures.append(loop.step([_padded([samples[index] for index in batch], processor) for batch in batches]))
    return *map(list, zip(*figures, strict=True)), {name: t.detach() for name, t in baseline.tensors.items()}


def _padded(samples, processor) -> dict[str, torch.Tensor | None]:
    pixels = [sample["pixel_values"] for sample in samples if "pixel_values" in sample]
    length = max(len(sample["input_ids"]) for sample in samples)

    def rows(key: str, filler: int) -> torch.Tensor:
        return torch.tensor([[*sample[key], *[filler] * (length - len(sample[key]))] for sample in samples])

    ids = rows("input_ids", -1)
    return {
        "input_ids": ids.clamp(min=0),
        "attention_mask": (ids >= 0).long(),
        "labels": rows("labels", -100),
        "pixel_values": processor.image_processor.normalised(torch.cat(pixels)) if pixels else None,
    }


@pytest.mark.parametrize("more", [ONE_BY_ONE, IN_TWOS, PACKED], ids=["one by one", "in twos", "packed"])
def test_published_training_equals_an_independent_loop(unequal, tmp_path, more):
    words = words_of(unequal, tmp_path / "out", *OPTIMISER, *more, "--published", "True")
    expected_losses, norms, tensors = _as_published_trains(parse_flags(words))
    folder = finetune(parse_flags(words))
    # fp32 rounding of other orders of operation; weights moved by about RATE a step.
    assert losses(folder) == pytest.approx(expected_losses, rel=1e-5)
    log = json.loads((folder / "training_log.json").read_text())
    assert [entry["grad_norm"] for entry in log if "grad_norm" in entry] == pytest.approx(norms, rel=1e-4)
    trained = load_file(folder / "model.safetensors")
    for name, tensor in trained.items():
        torch.testing.assert_close(
            tensor, tensors[name], rtol=0, atol=RATE / 50, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_without_it_every_supervised_token_weighs_the_same(unequal, tmp_path):
    words = words_of(unequal, tmp_path / "out", *OPTIMISER, *ONE_BY_ONE)
    published_losses, norms, _ = _as_published_trains(parse_flags([*words, "--published", "True"]))
    folder = finetune(parse_flags(words))
    assert losses(folder)[0] != pytest.approx(published_losses[0], rel=1e-3)
    assert json.loads((folder / "training_log.json").read_text())[0]["grad_norm"] != pytest.approx(norms[0], rel=1e-3)


@pytest.mark.parametrize("published", [True, False])
def test_what_decays_is_what_the_published_names_say(start, published):
    model = MonkeyForConditionalGeneration.from_pretrained(start.base)
    trainer = MonkeyTrainer.__new__(MonkeyTrainer)
    trainer.parts = parse_flags(words_of(start, start.folder, "--published", str(published))).parts
    decaying = set(trainer.get_decay_parameter_names(model))
    flags = published_names(
        model, {name: torch.full_like(tensor, float(name in decaying)) for name, tensor in model.state_dict().items()}
    )
    for name, flag in flags.items():
        is_decoder_norm = ".ln_" in name and not name.startswith("transformer.visual.")
        expected = PublishedTraining.decays(name) and (published or not is_decoder_norm)
        assert flag.flatten()[0] == float(expected), name


def test_conversations_made_of_several_records_are_refused(start, tmp_path):
    words = words_of(start, tmp_path / "out", *PACKED, "--published", "True", "--share_images", "turns")
    with pytest.raises(ValueError, match="--published True weighs each record the same, but --share_images turns"):
        parse_flags(words)
