"""What a memory plan is made from: the settings of a run, the size of its step, the counts of its model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from monkey.configuration import MonkeyConfig
from monkey.settings_files import read_settings_file
from monkey.training import activation_bytes as saved
from monkey.training.activation_bytes import FP32
from monkey.training.recipes import LORA_LINEARS, RECIPES, Recipe, choose_recipe, part_of

OFFLOADS = ("none", "optimizer", "all")


@dataclass(frozen=True)
class ZeroSettings:
    """Sizes, in elements, of what DeepSpeed allocates; its own defaults.

    Attributes:
        reduce_bucket: of a buffer that gradients are reduced from; stages 1 and 2 hold two where `overlap`.
        max_live: stage 3 fetches ahead until this many gathered weights are live.
    """

    reduce_bucket: int = 500_000_000
    overlap: bool = True
    prefetch_bucket: int = 50_000_000
    max_live: int = 1_000_000_000
    sub_group: int = 1_000_000_000

    @classmethod
    def from_config(cls, zero: Mapping[str, Any], hidden_size: int) -> ZeroSettings:
        """From `zero_optimization` of a DeepSpeed config; `auto` is what transformers puts there."""
        auto = {"reduce_bucket_size": hidden_size**2, "stage3_prefetch_bucket_size": int(0.9 * hidden_size**2)}

        def elements(name: str, default: int) -> int:
            value = zero.get(name, default)
            return auto.get(name, default) if value == "auto" else int(value)

        return cls(
            elements("reduce_bucket_size", cls.reduce_bucket),
            # DeepSpeed's own default: on in stage 3 only.
            bool(zero.get("overlap_comm", zero.get("stage") == 3)),
            elements("stage3_prefetch_bucket_size", cls.prefetch_bucket),
            elements("stage3_max_live_parameters", cls.max_live),
            elements("sub_group_size", cls.sub_group),
        )


# `zero_optimization` of configs/deepspeed/zero2.json and zero3.json, where it decides over memory.
SHIPPED_ZERO: dict[int, dict[str, Any]] = {
    2: {"stage": 2, "overlap_comm": True, "reduce_bucket_size": "auto"},
    3: {
        "stage": 3,
        "overlap_comm": True,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
    },
}


def shipped_zero(stage: int, hidden_size: int) -> ZeroSettings:
    """What the shipped config of a stage makes DeepSpeed allocate; stage 1 is counted with the buckets of stage 2."""
    return ZeroSettings.from_config(SHIPPED_ZERO[max(stage, 2)], hidden_size)


@dataclass(frozen=True)
class PlanSettings:
    """What decides over memory; names as the flags have them.

    Attributes:
        trains: parts that train (`monkey.training.recipes.PARTS`).
        decoder_lora: PEFT adapters on the decoder, of `lora_rank`.
        zero_stage: 0 is DDP, or one GPU, without DeepSpeed.
        precision: `bf16` or `fp32`. Without DeepSpeed, `bf16` is autocast: fp32 where a weight trains, bf16 where not.
        batch_size: padded samples of a forward pass; 0 where `pack_tokens` makes packed rows.
        questions_per_image, text_tokens, answer_tokens: what a sample is: an image and so many questions behind it,
            each of `text_tokens` tokens, `answer_tokens` of them supervised.
        images_per_step, tokens_per_step, supervised_tokens: of one forward pass, where they are known better.
        evaluation_batch: samples that evaluation generates for at once; 0 for none.
    """

    recipe: str = "full-llm"
    trains: frozenset[str] = RECIPES["full-llm"].trains
    decoder_lora: bool = False
    four_bit: bool = False
    gpus: int = 1
    zero_stage: int = 0
    offload: str = "none"
    precision: str = "bf16"
    batch_size: int = 1
    pack_tokens: int = 0
    questions_per_image: int = 1
    text_tokens: int = 50
    answer_tokens: int = 20
    images_per_step: int | None = None
    tokens_per_step: int | None = None
    supervised_tokens: int | None = None
    vision_checkpointing: bool = False
    decoder_checkpointing: bool = False
    lora_rank: int = 32
    lora_dropout: float = 0.05
    optimizer: str = "adamw"
    zero: ZeroSettings = field(default_factory=ZeroSettings)
    evaluation_batch: int = 0
    evaluation_tokens: int = 0
    cuda: bool = True

    def __post_init__(self) -> None:
        choices = (
            ("zero", self.zero_stage, (0, 1, 2, 3)),
            ("offload", self.offload, OFFLOADS),
            ("precision", self.precision, ("bf16", "fp32")),
            ("optim", self.optimizer, ("adamw", "adamw_8bit")),
        )
        for flag, value, known in choices:
            if value not in known:
                raise ValueError(f"--{flag} {value} is unknown: give one of {', '.join(map(str, known))}")
        for flag in ("gpus", "questions_per_image", "text_tokens", "lora_rank"):
            if getattr(self, flag) < 1:
                raise ValueError(f"--{flag} {getattr(self, flag)} does not work: give 1 or more")
        if (self.batch_size < 1) == (self.pack_tokens < 1):
            raise ValueError(
                f"--batch-size {self.batch_size} and --pack-tokens {self.pack_tokens}: samples are either padded into "
                "a batch or packed into a row, so give one of the two"
            )
        if self.offload != "none" and self.zero_stage < (3 if self.offload == "all" else 1):
            raise ValueError(
                f"--offload {self.offload} needs ZeRO-{3 if self.offload == 'all' else 1} or higher, but the plan has "
                f"--zero {self.zero_stage}"
            )
        if self.four_bit and self.zero_stage == 3:
            raise ValueError("--zero 3 shards weights before they could be packed in 4 bits: give --zero 2 or 0")

    @property
    def trained_bytes(self) -> int:
        return 2 if self.precision == "bf16" and self.zero_stage else FP32

    @property
    def frozen_bytes(self) -> int:
        return 2 if self.precision == "bf16" else FP32

    @property
    def elements(self) -> saved.ElementBytes:
        autocast = self.precision == "bf16" and not self.zero_stage
        precision = "autocast" if autocast else self.precision
        return saved.element_bytes(precision, self.trains, cuda=self.cuda, frozen=self.frozen_bytes)

    @property
    def sharded(self) -> int:
        """Processes that optimiser states are divided among."""
        return self.gpus if self.zero_stage else 1


def settings_of_flags(flags: Mapping[str, Any], hidden_size: int, **changes: Any) -> PlanSettings:
    """Settings of a run from its flags, by name; a flag that is missing has the settings' default.

    Args:
        flags: as in `configs/training/*.yaml` or `Flags.resolved()`.
        hidden_size: of the decoder, for what a DeepSpeed config leaves to `auto`.
        changes: fields that override.

    Raises:
        ValueError, FileNotFoundError: flags that contradict each other, or a DeepSpeed config that cannot be read.
    """
    recipe = choose_recipe(*(flags.get(name) for name in ("recipe", "fix_vit", "use_lora", "q_lora")))
    if flags.get("published"):
        recipe = recipe.as_published()
    fields = recipe_fields(recipe)
    again = bool(flags.get("gradient_checkpointing"))
    for part in ("vision", "decoder"):
        own = flags.get(f"{part}_checkpointing")
        fields[f"{part}_checkpointing"] = again if own is None else bool(own)
    packed = flags.get("packing") or flags.get("pack_tokens")
    pack_tokens = int(flags.get("pack_tokens") or flags.get("model_max_length") or 2048) if packed else 0
    batch_size = 0 if pack_tokens else int(flags.get("per_device_train_batch_size") or 1)
    fields |= {"pack_tokens": pack_tokens, "batch_size": batch_size}
    fields["precision"] = "bf16" if flags.get("bf16") or flags.get("fp16") else "fp32"
    fields["cuda"] = not flags.get("use_cpu")
    fields["optimizer"] = "adamw_8bit" if "8bit" in str(flags.get("optim", "")) else "adamw"
    for flag, name in (("lora_r", "lora_rank"), ("lora_dropout", "lora_dropout")):
        if flags.get(flag) is not None:
            fields[name] = flags[flag]
    if flags.get("deepspeed"):
        fields |= zero_fields(flags["deepspeed"], hidden_size)
    return PlanSettings(**{**fields, **changes})


def recipe_fields(recipe: Recipe) -> dict[str, Any]:
    """The settings' fields that a recipe decides."""
    return {
        "recipe": recipe.name,
        "trains": recipe.trains,
        "decoder_lora": recipe.decoder_lora,
        "four_bit": recipe.four_bit,
    }


def zero_fields(config: str | Mapping[str, Any], hidden_size: int) -> dict[str, Any]:
    """The settings' fields that a DeepSpeed config, or the file of one, decides."""
    if isinstance(config, str):
        config = read_settings_file(config, f"--deepspeed {config}")
    zero = config.get("zero_optimization", {})

    def on_host(key: str) -> bool:
        return (zero.get(key) or {}).get("device", "none") != "none"

    offload = "all" if on_host("offload_param") else "optimizer" if on_host("offload_optimizer") else "none"
    return {
        "zero_stage": int(zero.get("stage", 0)),
        "offload": offload,
        "zero": ZeroSettings.from_config(zero, hidden_size),
    }


@dataclass(frozen=True)
class StepSize:
    """What one forward pass holds."""

    images: int
    supervised: int
    batch: saved.DecoderBatch


def step_size(config: MonkeyConfig, settings: PlanSettings) -> StepSize:
    """The largest step that the settings allow: a packed row is full of images with the shortest text.

    Raises:
        ValueError: `pack_tokens` holds no sample.
    """
    span = config.image_tokens + 2
    questions = settings.questions_per_image
    sample = span + questions * settings.text_tokens
    if settings.pack_tokens:
        rows, tokens = 0, settings.pack_tokens
        images = tokens // sample
        if not images and settings.images_per_step is None:
            raise ValueError(
                f"--pack-tokens {tokens} holds no sample: grid={tuple(config.grid)} makes {span} tokens an image, and "
                f"{questions} question(s) of {settings.text_tokens} tokens make it {sample}"
            )
    else:
        rows = images = settings.batch_size
        tokens = rows * sample
    images = images if settings.images_per_step is None else settings.images_per_step
    tokens = tokens if settings.tokens_per_step is None else settings.tokens_per_step
    supervised = settings.supervised_tokens
    if supervised is None:
        supervised = images * questions * settings.answer_tokens
    # Each question behind a shared image reads its keys again.
    shared = images * questions * span if questions > 1 and not rows else 0
    return StepSize(images, supervised, saved.DecoderBatch(tokens, rows, tokens + shared))


@dataclass(frozen=True)
class PartSizes:
    """Parameters of the model, counted without storage.

    Attributes:
        parts: part -> parameters.
        packable: of the decoder, those that 4-bit packing takes.
        embedding: of the input embeddings, which 8-bit Adam leaves in fp32.
        matrices: part -> parameters in matrices and convolutions, which autocast copies.
        largest: part -> parameters of its largest tensor.
    """

    parts: dict[str, int]
    packable: int
    embedding: int
    matrices: dict[str, int]
    largest: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def trained(self, trains: Iterable[str]) -> int:
        return sum(self.parts.get(part, 0) for part in trains)


def part_sizes(config: MonkeyConfig, lora_rank: int = 0) -> PartSizes:
    """Count the parameters of each part; with `lora_rank`, as PEFT's adapters on `LORA_LINEARS` would add to them."""
    from monkey.modeling import MonkeyForConditionalGeneration

    with torch.device("meta"):
        model = MonkeyForConditionalGeneration(config)
    parts: dict[str, int] = {}
    matrices: dict[str, int] = {}
    largest: dict[str, int] = {}
    packable = 0
    adapted = {path.rpartition(".")[2] for path in LORA_LINEARS} if lora_rank else set()
    for name, parameter in model.named_parameters():
        part, count = part_of(name), parameter.numel()
        added = {part: count}
        leaf = name.split(".")[-2]
        if part == "decoder" and name.endswith("proj.weight"):
            packable += count
            if leaf in adapted:
                added["decoder adapters"] = lora_rank * sum(parameter.shape)
        for where, extra in added.items():
            parts[where] = parts.get(where, 0) + extra
            largest[where] = max(largest.get(where, 0), extra)
            if parameter.ndim > 1:
                matrices[where] = matrices.get(where, 0) + extra
    embedding = model.get_input_embeddings().weight.numel()
    return PartSizes(parts, packable, embedding, matrices, largest)
