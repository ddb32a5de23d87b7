"""How much GPU memory a training run will need, before its first step.

Weights, gradients, optimiser states and what DeepSpeed 0.19 adds to them are sums over the model's parameters. What a
step holds besides is measured: the model's own code runs one step of the largest planned batch on tensors without
storage (`FakeTensorMode`), and every tensor that is alive is counted. That is the step as a CPU makes it: attention by
SDPA without padding or runs, decoder weights that will be packed in 4 bits as bf16, dropout masks in the type of what
they mask. Traced are two and three layers, whose difference stands for every further layer.

The plan is of tensors. What the allocator reserves was seen higher (see `RESERVED`).
"""

from __future__ import annotations

import copy
import functools
import json
import math
import re
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.checkpoint import checkpoint

from monkey.configuration import MonkeyConfig
from monkey.files import read_settings_file
from monkey.part_configs import cached_width, inner_width, with_layers
from monkey.parts import lora_linears, pattern_of
from monkey.training.recipes import RECIPES, Recipe, apply_recipe, base_model, choose_recipe, part_of

GIB, MIB, FP32 = 2**30, 2**20, 4
CUDA_CONTEXT = 600 * MIB
"""Assumed for the CUDA context, loaded kernels and cuBLAS workspaces of a process."""
NCCL_BUFFERS = 300 * MIB
"""Assumed for NCCL's channels, where there are several GPUs."""
FOUR_BIT = 0.5 + 1 / 64 + FP32 / (64 * 256)
"""Bytes per weight in NF4 with double quantisation: 4 bits, a byte per block of 64, a float per 256 blocks."""
EIGHT_BIT_MOMENTS = 2 * (1 + FP32 / 256)
"""Bytes per parameter of 8-bit Adam's two moments: a byte each, and a float per block of 256."""
RESERVED = "these are tensors; the allocator reserves more: on an H200, 6.9 and 7.5 GiB of tensors took 10.5 and 16.6"


# Settings of a plan


ZERO_DEFAULTS = {
    "reduce_bucket_size": 500_000_000,
    "stage3_prefetch_bucket_size": 50_000_000,
    "stage3_max_live_parameters": 1_000_000_000,
    "sub_group_size": 1_000_000_000,
}
"""DeepSpeed's own sizes, in elements, of the buffers of `zero_optimization`."""


def shipped_zero(stage: int) -> dict[str, Any]:
    """Return what configs/deepspeed/zero2.json or zero3.json says of buffers; stage 1 is counted as stage 2."""
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": True, "reduce_bucket_size": "auto"}
    return zero | ({"stage3_prefetch_bucket_size": "auto"} if stage == 3 else {})


@dataclass(frozen=True)
class StepSize:
    """What one forward pass holds: images, rows of tokens, and supervised tokens in all rows.

    `windows` are those of all images together, where images may have different numbers of them; None where all are on
    the one grid.
    """

    images: int
    rows: int
    tokens: int
    supervised: int
    windows: int | None = None


@dataclass(frozen=True)
class PlanSettings:
    """What decides over memory; names as the flags have them.

    Attributes:
        zero_stage: 0 is DDP, or one GPU, without DeepSpeed.
        precision: `bf16` or `fp32`. Without DeepSpeed, `bf16` is autocast: fp32 where a weight trains, bf16 where not.
        batch_size: padded samples of a forward pass; 0 where `pack_tokens` makes packed rows.
        questions_per_image, text_tokens, answer_tokens: what a sample is: an image and so many questions behind it,
            each of `text_tokens` tokens, `answer_tokens` of them supervised.
        largest_step: of the run's own data, where that is known.
        zero: `zero_optimization` of a DeepSpeed config, for the sizes of buffers.
        evaluation_batch: samples that evaluation generates for at once; 0 for none.
    """

    recipe: Recipe = RECIPES["full-llm"]
    gpus: int = 1
    zero_stage: int = 0
    offload: str = "none"
    precision: str = "bf16"
    batch_size: int = 1
    pack_tokens: int = 0
    questions_per_image: int = 1
    text_tokens: int = 50
    answer_tokens: int = 20
    largest_step: StepSize | None = None
    vision_checkpointing: bool = False
    decoder_checkpointing: bool = False
    lora_rank: int = 32
    optimizer: str = "adamw"
    zero: Mapping[str, Any] = field(default_factory=dict)
    evaluation_batch: int = 0

    def __post_init__(self) -> None:
        for flag in ("gpus", "questions_per_image", "text_tokens", "lora_rank"):
            if getattr(self, flag) < 1:
                raise ValueError(f"--{flag} {getattr(self, flag)} does not work: give 1 or more")
        if (self.batch_size < 1) == (self.pack_tokens < 1):
            raise ValueError(
                f"--batch-size {self.batch_size} and --pack-tokens {self.pack_tokens}: samples are either padded into "
                "a batch or packed into a row, so give one of the two"
            )
        least = {"none": 0, "optimizer": 1, "all": 3}[self.offload]
        if self.zero_stage < least:
            raise ValueError(
                f"--offload {self.offload} needs ZeRO-{least} or higher, but the plan has --zero {self.zero_stage}"
            )
        if self.recipe.four_bit and self.zero_stage == 3:
            raise ValueError("--zero 3 shards weights before they could be packed in 4 bits: give --zero 2 or 0")

    @property
    def trained_bytes(self) -> int:
        """Bytes of a weight that trains, and of its gradient."""
        return 2 if self.precision == "bf16" and self.zero_stage else FP32

    @property
    def frozen_bytes(self) -> int:
        return 2 if self.precision == "bf16" else FP32

    @property
    def shards(self) -> int:
        """Processes that optimiser states are divided among."""
        return self.gpus if self.zero_stage else 1


def settings_of_flags(flags: Mapping[str, Any], **changes: Any) -> PlanSettings:
    """Return the settings of a run from its flags, by name; a flag that is missing has the settings' default.

    Args:
        flags: as in `configs/training/*.yaml` or `Flags.resolved()`.
        changes: fields that override.

    Raises:
        ValueError, FileNotFoundError: flags that contradict each other, or a DeepSpeed config that cannot be read.
    """
    recipe = choose_recipe(*(flags.get(name) for name in ("recipe", "fix_vit", "use_lora", "q_lora")))
    fields: dict[str, Any] = {
        "recipe": recipe.as_published() if flags.get("published") else recipe,
        "precision": "bf16" if flags.get("bf16") or flags.get("fp16") else "fp32",
        "optimizer": "adamw_8bit" if "8bit" in str(flags.get("optim", "")) else "adamw",
        "lora_rank": flags.get("lora_r") or PlanSettings.lora_rank,
    }
    for name in ("vision_checkpointing", "decoder_checkpointing"):
        both = flags.get("gradient_checkpointing")
        fields[name] = bool(both if flags.get(name) is None else flags[name])
    if flags.get("packing") or flags.get("pack_tokens"):
        fields["batch_size"] = 0
        fields["pack_tokens"] = int(flags.get("pack_tokens") or flags.get("model_max_length") or 2048)
    else:
        fields["batch_size"] = int(flags.get("per_device_train_batch_size") or 1)
    config = flags.get("deepspeed")
    if config:
        if isinstance(config, str):
            config = read_settings_file(config, f"--deepspeed {config}")
        zero = config.get("zero_optimization", {})
        on_host = {
            what: (zero.get(f"offload_{what}") or {}).get("device", "none") != "none" for what in ("param", "optimizer")
        }
        fields["offload"] = "all" if on_host["param"] else "optimizer" if on_host["optimizer"] else "none"
        fields["zero_stage"] = int(zero.get("stage", 0))
        fields["zero"] = zero
    return PlanSettings(**{**fields, **changes})


def step_size(config: MonkeyConfig, settings: PlanSettings) -> StepSize:
    """Return the largest step that the settings allow: a packed row is full of images with the shortest text.

    Where images may be on several grids, padded samples all have the largest, and a packed row the images that together
    have the most views.

    Raises:
        ValueError: `pack_tokens` holds no sample.
    """
    if settings.largest_step is not None:
        return settings.largest_step
    supervised = settings.questions_per_image * settings.answer_tokens
    if not settings.pack_tokens:
        images, tokens = settings.batch_size, _sample_tokens(config, settings, largest_grid(config))
        windows = images * math.prod(largest_grid(config)) if config.is_ragged else None
        return StepSize(images, images, tokens, images * supervised, windows)
    grids = _fullest_row(config, settings)
    if not grids:
        smallest = min(config.allowed_grids, key=math.prod)
        sample = _sample_tokens(config, settings, smallest)
        raise ValueError(
            f"--pack-tokens {settings.pack_tokens} holds no sample: grid={smallest} makes "
            f"{config.tokens_of(smallest) + 2} tokens an image, and {settings.questions_per_image} question(s) of "
            f"{settings.text_tokens} tokens make it {sample}"
        )
    windows = sum(map(math.prod, grids)) if config.is_ragged else None
    return StepSize(len(grids), 1, settings.pack_tokens, len(grids) * supervised, windows)


def largest_grid(config: MonkeyConfig) -> tuple[int, int]:
    """Return the grid of the most windows that an image may be put on."""
    return max(config.allowed_grids, key=math.prod)


def _sample_tokens(config: MonkeyConfig, settings: PlanSettings, grid: tuple[int, int]) -> int:
    """Return the tokens of a sample whose image is on `grid`."""
    return config.tokens_of(grid) + 2 + settings.questions_per_image * settings.text_tokens


def _fullest_row(config: MonkeyConfig, settings: PlanSettings) -> list[tuple[int, int]]:
    """Return grids of images whose samples fill a row with the most views; none where no sample fits."""
    by_windows = {math.prod(grid): grid for grid in config.allowed_grids}
    samples = [(_sample_tokens(config, settings, grid), grid) for grid in by_windows.values()]
    most = [0] * (settings.pack_tokens + 1)
    last: list[tuple[int, tuple[int, int]] | None] = [None] * len(most)
    for room in range(1, len(most)):
        most[room] = most[room - 1]
        for tokens, grid in samples:
            views = math.prod(grid) + int(config.global_view)
            if tokens <= room and most[room - tokens] + views > most[room]:
                most[room], last[room] = most[room - tokens] + views, (tokens, grid)
    grids, room = [], settings.pack_tokens
    while room:
        tokens, grid = last[room] or (1, None)
        grids += [grid] if grid else []
        room -= tokens
    return grids


# A step on tensors without storage


def dry_model(
    config: MonkeyConfig,
    recipe: Recipe,
    dtypes: tuple[torch.dtype, torch.dtype],
    checkpointing: tuple[bool, bool] = (False, False),
    lora_rank: int = 32,
) -> nn.Module:
    """Return the model as a run of the recipe holds it, of fake tensors; call it within `FakeTensorMode`.

    Args:
        dtypes: of weights that train, and of frozen ones.
        checkpointing: of the vision transformer, and of the decoder.
    """
    from monkey.decoders import decoder_layers
    from monkey.modeling import MonkeyForConditionalGeneration

    # timm reads numbers off tensors while it makes an encoder, which fake ones do not have.
    with unset_fake_temporarily(), torch.device("meta"):
        model: nn.Module = MonkeyForConditionalGeneration(config)
        if recipe.decoder_lora and not config.built_in_rank:
            from monkey.adapters import add_decoder_lora

            model = add_decoder_lora(model, SimpleNamespace(lora_r=lora_rank, lora_alpha=lora_rank, lora_dropout=0.05))
    apply_recipe(model, recipe)
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                tensor = torch.empty(parameter.shape, dtype=dtypes[0 if parameter.requires_grad else 1])
                module._parameters[name] = nn.Parameter(tensor, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
    base = base_model(model).train()
    decoder = decoder_layers(base.model.language_model)
    for layers, on in zip((base.model.visual.blocks, decoder), checkpointing, strict=True):
        for layer in layers:
            layer.gradient_checkpointing = on
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)
    return base


def dry_step(model: nn.Module, size: StepSize, begin: Callable[[str], None], autocast: bool = False) -> None:
    """Make one forward and backward pass, part by part; `begin` is called with each part's name.

    The parts meet at leaves of their own, so that each backward pass begins where `begin` says.
    """
    whole = model.model
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        begin("vision's forward")
        features = image = None
        if size.images:
            features = whole.visual(*_dry_images(model.config, size))
            image = _leaf(features)
        begin("decoder's forward")
        embedded = whole.get_input_embeddings()(torch.zeros(size.rows, size.tokens, dtype=torch.long))
        if image is not None:
            slots = torch.zeros(size.rows, size.tokens, 1, dtype=torch.bool)
            embedded = embedded.masked_scatter(slots, image.to(embedded.dtype))
        start = _leaf(embedded)
        hidden = whole.language_model(inputs_embeds=start, use_cache=False).last_hidden_state
        end = _leaf(hidden)
        begin("loss")
        supervised = torch.zeros(max(size.supervised, 1), dtype=torch.long)
        loss = model.lm_head(end.flatten(0, 1)[supervised], supervised)
    loss.backward()
    outputs = [features, embedded, hidden], [image, start, end]
    del loss, features, embedded, hidden, image, start, end
    for part in ("decoder's backward", "embeddings' backward", "vision's backward"):
        begin(part)
        output, leaf = outputs[0].pop(), outputs[1].pop()
        if leaf is not None and leaf.grad is not None:
            output.backward(leaf.grad)


def _dry_images(config: MonkeyConfig, size: StepSize) -> tuple[Any, ...]:
    """Return the images of a step as the vision side takes them: pixels, and grids where images have their own."""
    if size.windows is None:
        return (torch.zeros(size.images, 3, *config.canvas_size),)
    # What a step holds depends on how many windows there are, not on whose they are.
    share, rest = divmod(size.windows, size.images)
    grids = [(1, share + (number < rest)) for number in range(size.images)]
    return torch.zeros(size.windows, 3, config.window_size, config.window_size), grids


def _leaf(output: torch.Tensor) -> torch.Tensor:
    return output.detach().requires_grad_(output.requires_grad)


def by_depth(
    trace: Callable[[MonkeyConfig], dict[str, float]], config: MonkeyConfig, depth: int = 2
) -> dict[str, float]:
    """Return the figures of a whole model from traces of few layers, on whose number they depend linearly."""
    vision, decoder = config.vision_config.num_hidden_layers, config.text_config.num_hidden_layers

    def traced(vision_layers: int, decoder_layers: int) -> dict[str, float]:
        shallow = copy.deepcopy(config)
        shallow.vision_config.num_hidden_layers = vision_layers
        shallow.text_config = with_layers(config.text_config, range(decoder_layers))
        shallow.name_or_path = ""  # PEFT's adapters would look for the checkpoint's files
        return trace(shallow)

    if max(vision, decoder) <= depth + 1:
        return traced(vision, decoder)
    least = min(vision, depth), min(decoder, depth)
    base = traced(*least)
    figures = dict(base)
    for more, deeper in ((vision - least[0], (1, 0)), (decoder - least[1], (0, 1))):
        if more:
            other = traced(least[0] + deeper[0], least[1] + deeper[1])
            figures = {name: value + more * (other[name] - base[name]) for name, value in figures.items()}
    return figures


class _LiveBytes(TorchDispatchMode):
    """Follows the bytes of all tensors made inside, and their peak in each part of a step."""

    def __init__(self) -> None:
        super().__init__()
        self.peaks: dict[str, float] = {}
        self._now = 0
        self._sizes: dict[int, int] = {}

    def begin(self, part: str) -> None:
        self.peaks[part] = self._now

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        # What an operation is given exists already; its results are new unless they share its storage.
        given = {x.untyped_storage()._cdata for x in tree_iter((args, kwargs)) if isinstance(x, torch.Tensor)}
        for tensor in tree_iter(output):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in given and storage._cdata not in self._sizes:
                    self._sizes[storage._cdata] = storage.nbytes()
                    self._now += storage.nbytes()
                    weakref.finalize(storage, self._forget, storage._cdata)
        part = next(reversed(self.peaks))
        self.peaks[part] = max(self.peaks[part], self._now)
        return output

    def _forget(self, key: int) -> None:
        self._now -= self._sizes.pop(key)


@functools.lru_cache(maxsize=64)
def _step_peaks(
    config: str,
    recipe: Recipe,
    size: StepSize,
    precision: tuple[bool, torch.dtype, torch.dtype],
    checkpointing: tuple[bool, bool],
    lora_rank: int,
) -> dict[str, float]:
    """Return the most bytes that each part of a step holds, beside weights and gradients.

    Gradients are there before, as in every step but the first of an accumulation: each new one is added to them.
    """
    autocast, *dtypes = precision

    def trace(shallow: MonkeyConfig) -> dict[str, float]:
        with FakeTensorMode():
            model = dry_model(shallow, recipe, tuple(dtypes), checkpointing, lora_rank)
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.zeros_like(parameter)
            with _LiveBytes() as live:
                dry_step(model, size, live.begin, autocast)
        return live.peaks

    return by_depth(trace, MonkeyConfig.from_dict(json.loads(config)))


# Sums


@dataclass(frozen=True)
class PartSizes:
    """Parameters of the model, counted without storage.

    Attributes:
        parts: part -> parameters.
        packable: of the decoder, those that 4-bit packing takes.
        embedding: of the input embeddings, which 8-bit Adam leaves in fp32.
        largest: parameters of the largest tensor.
    """

    parts: dict[str, int]
    packable: int
    embedding: int
    largest: int

    def trained(self, recipe: Recipe) -> int:
        return sum(count for part, count in self.parts.items() if part in recipe.trains)


def part_sizes(config: MonkeyConfig, lora_rank: int = 0) -> PartSizes:
    """Count the parameters of each part; with `lora_rank`, as PEFT's adapters on `lora_linears` would add to them."""
    from monkey.modeling import MonkeyForConditionalGeneration

    with torch.device("meta"):
        model = MonkeyForConditionalGeneration(config)
    parts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        part = part_of(name)
        parts[part] = parts.get(part, 0) + parameter.numel()
    decoder = model.model.language_model
    packable = sum(one.weight.numel() for one in decoder.modules() if isinstance(one, nn.Linear))
    if lora_rank:
        adapted = re.compile(pattern_of(lora_linears(model)))
        linears = (module for name, module in model.named_modules() if adapted.fullmatch(name))
        added = sum(lora_rank * (one.in_features + one.out_features) for one in linears)
        parts["decoder adapters"] = parts.get("decoder adapters", 0) + added
    embedding = model.get_input_embeddings().weight.numel()
    return PartSizes(parts, packable, embedding, max(parameter.numel() for parameter in model.parameters()))


def _sums(config: MonkeyConfig, settings: PlanSettings, sizes: PartSizes) -> tuple[dict[str, int], int]:
    """Return the bytes that are there all the time by line, and those in the host's memory."""
    stage, width = settings.zero_stage, settings.trained_bytes
    trained = sizes.trained(settings.recipe)
    weights = {}
    for part, count in sizes.parts.items():
        packed = sizes.packable if part == "decoder" and settings.recipe.four_bit else 0
        each = width if part in settings.recipe.trains else settings.frozen_bytes
        whole = (count - packed) * each + packed * FOUR_BIT
        weights[f"weights: {part}"] = whole / (settings.gpus if stage == 3 else 1)
    exact = trained if settings.optimizer == "adamw" else 0
    if settings.optimizer == "adamw_8bit" and "decoder" in settings.recipe.trains:
        exact = sizes.embedding
    states = {
        "gradients": trained * width / (settings.gpus if stage >= 2 else 1),
        "optimiser moments": (exact * 2 * FP32 + (trained - exact) * EIGHT_BIT_MOMENTS) / settings.shards,
    }
    # ZeRO keeps an fp32 copy of its part, of fp32 weights too, except in stage 3.
    if stage and (stage < 3 or settings.precision == "bf16"):
        states["fp32 master weights"] = trained * FP32 / settings.shards
    on_host = {**(weights if settings.offload == "all" else {}), **(states if settings.offload != "none" else {})}
    lines = {**weights, **_buffers(config, settings, sizes), **states}
    return {name: int(count) for name, count in lines.items() if name not in on_host}, int(sum(on_host.values()))


def _elements(zero: Mapping[str, Any], name: str, hidden_size: int) -> int:
    """Return the size of a DeepSpeed buffer; `auto` is what transformers puts there."""
    auto = {"reduce_bucket_size": hidden_size**2, "stage3_prefetch_bucket_size": int(0.9 * hidden_size**2)}
    value = zero.get(name, ZERO_DEFAULTS[name])
    return auto.get(name, ZERO_DEFAULTS[name]) if value == "auto" else int(value)


def _buffers(config: MonkeyConfig, settings: PlanSettings, sizes: PartSizes) -> dict[str, float]:
    """Return the bytes of what DDP and ZeRO gather and reduce in."""
    stage, zero, width = settings.zero_stage, settings.zero, settings.trained_bytes
    trained, hidden = sizes.trained(settings.recipe), config.text_config.hidden_size
    buffers: dict[str, float] = {}
    if stage == 3:
        # Fetching ahead stops at so many, but the tensor that crosses it may be the largest of all.
        ahead = _elements(zero, "stage3_max_live_parameters", hidden) + sizes.largest
        live = min(sum(sizes.parts.values()), ahead)
        prefetched = _elements(zero, "stage3_prefetch_bucket_size", hidden)
        buffers["ZeRO-3 gathered weights"] = (live + prefetched) * width
    if stage and trained:
        # Stages 1 and 2 hold two where they overlap; without a word DeepSpeed overlaps in stage 3 alone.
        buckets = 2 if stage < 3 and zero.get("overlap_comm", not zero) else 1
        buffers["ZeRO's reduction buckets"] = _elements(zero, "reduce_bucket_size", hidden) * width * buckets
    if not stage and settings.gpus > 1:
        buffers["DDP's reduction buckets"] = trained * width
    return buffers


def _widened_gradients(settings: PlanSettings, sizes: PartSizes) -> int:
    """Return the bytes of the optimiser's step: stages 1 and 2 flatten and widen their gradients, 3 by sub-groups."""
    if not settings.zero_stage or settings.offload != "none":
        return 0
    part = sizes.trained(settings.recipe) // settings.shards
    if settings.zero_stage == 3:
        return min(part, _elements(settings.zero, "sub_group_size", 0)) * FP32
    return part * (settings.trained_bytes + FP32)


def _evaluation(config: MonkeyConfig, settings: PlanSettings) -> int:
    """Return the bytes of generating while training: keys and values, one layer's tensors, last-position logits."""
    text, vision = config.text_config, config.vision_config
    batch, width = settings.evaluation_batch, settings.frozen_bytes
    grid = largest_grid(config)
    tokens = batch * (config.tokens_of(grid) + 2 + settings.text_tokens)
    patches = batch * config.tokens_of(grid) // vision.num_queries * vision.patches_per_side**2
    cache = cached_width(text) * tokens * width
    vision_layer = patches * (2 * vision.intermediate_size + 3 * vision.hidden_size) * width
    decoder_layer = tokens * (3 * inner_width(text) * width + 2 * text.hidden_size * FP32)
    return cache + max(vision_layer, decoder_layer) + batch * text.vocab_size * (width + FP32)


# The plan


@dataclass(frozen=True)
class MemoryPlan:
    """What one GPU holds at the peak of a step.

    Attributes:
        lines: what -> bytes, which add up to the peak.
        sums: bytes of those lines that are sums over parameters, and so are needed whatever a step holds.
        phases: part of a step -> bytes of the whole GPU in it.
        host: bytes in the memory of the machine, per process.
    """

    config: MonkeyConfig
    settings: PlanSettings
    sizes: PartSizes
    lines: dict[str, int]
    sums: int
    phases: dict[str, int]
    host: int

    @property
    def total(self) -> int:
        return sum(self.lines.values())

    @property
    def phase(self) -> str:
        """The part of a step that has the peak."""
        return max(self.phases, key=self.phases.__getitem__)

    @property
    def needs(self) -> str:
        host = f" and {self.host / GIB:.0f} GiB of host memory per process" if self.host else ""
        return f"{self.total / GIB:.1f} GiB per GPU{host}"

    def fits(self, gpu_gib: float) -> bool:
        return self.total <= gpu_gib * GIB


def plan(
    config: MonkeyConfig, settings: PlanSettings | None = None, *, sizes: PartSizes | None = None, **changes: Any
) -> MemoryPlan:
    """Plan the memory of one GPU.

    Args:
        settings, changes: settings, and fields of them to replace.
        sizes: counts from `part_sizes`, where they were taken already.

    Raises:
        ValueError: settings that do not go together, in one sentence.
    """
    settings = replace(settings or PlanSettings(), **changes)
    recipe, size = settings.recipe, step_size(config, settings)
    has_peft = recipe.decoder_lora and not config.built_in_rank
    sizes = sizes or part_sizes(config, settings.lora_rank if has_peft else 0)
    lines, host = _sums(config, settings, sizes)
    lines["CUDA context (assumed)"] = CUDA_CONTEXT
    if settings.gpus > 1:
        lines["NCCL (assumed)"] = NCCL_BUFFERS
    sums = sum(lines.values())
    phases = _phases(config, settings, size, sizes)
    lines["a step, at its peak"] = max(phases.values())
    return MemoryPlan(
        config,
        settings,
        sizes,
        {name: count for name, count in lines.items() if count},
        sums,
        {name: sums + count for name, count in phases.items()},
        host,
    )


def _phases(config: MonkeyConfig, settings: PlanSettings, size: StepSize, sizes: PartSizes) -> dict[str, int]:
    """Return the most bytes that each part of a step holds, beside what is there all the time."""
    dtypes = {2: torch.bfloat16, FP32: torch.float32}
    measured = _step_peaks(
        config.to_json_string(use_diff=False),
        settings.recipe,
        size,
        (
            settings.precision == "bf16" and not settings.zero_stage,
            dtypes[settings.trained_bytes],
            dtypes[settings.frozen_bytes],
        ),
        (settings.vision_checkpointing, settings.decoder_checkpointing),
        settings.lora_rank,
    )
    phases = {name: int(count) for name, count in measured.items()}
    if settings.recipe.four_bit:
        # The backward pass of a packed linear unpacks it.
        text = config.text_config
        unpacked = text.hidden_size * max(inner_width(text), text.hidden_size) * 2
        phases |= {name: phases[name] + unpacked for name in ("decoder's forward", "decoder's backward")}
    phases["optimiser's step"] = _widened_gradients(settings, sizes)
    if settings.evaluation_batch:
        phases["evaluation"] = _evaluation(config, settings)
    return phases


def plan_table(whole: MemoryPlan) -> str:
    """Return the lines of a plan side by side by ZeRO stage, the plan's own marked."""
    settings, size = whole.settings, step_size(whole.config, whole.settings)
    columns: dict[str, MemoryPlan] = {}
    for stage in range(3 if settings.recipe.four_bit else 4):
        name = f"ZeRO-{stage}" if stage else "DDP"
        if stage == settings.zero_stage:
            columns[f"{name}*"] = whole
            continue
        changes = {"zero_stage": stage, "offload": "none", "zero": shipped_zero(stage)}
        columns[name] = plan(whole.config, settings, sizes=whole.sizes, **changes)
    names = list(dict.fromkeys(name for each in columns.values() for name in each.lines))
    names.sort(key=lambda name: ("assumed" in name, "step" in name, not name.startswith("weights")))
    width = max(map(len, names))

    def row(name: str, cells: Iterator[str]) -> str:
        return name.ljust(width) + "".join(f"{cell:>12}" for cell in cells)

    def of(each: MemoryPlan, name: str) -> str:
        return f"{each.lines[name] / MIB:,.1f}" if name in each.lines else "-"

    host = f"; {whole.host / GIB:.1f} GiB of host memory per process" if whole.host else ""
    return "\n".join(
        [
            row("MiB", iter(columns)),
            *(row(name, (of(each, name) for each in columns.values())) for name in names),
            row("GiB", (f"{each.total / GIB:.2f}" for each in columns.values())),
            "whole GPU by phase, GiB: " + ", ".join(f"{k} {v / GIB:.2f}" for k, v in whole.phases.items()),
            f"* this plan: {settings.recipe.name} on {settings.gpus} GPU(s), a forward pass of {size.images} image(s), "
            + ("" if size.windows is None else f"{size.windows} windows, ")
            + f"{size.rows * size.tokens} tokens, {size.supervised} supervised; peak in the {whole.phase}{host}",
            RESERVED,
        ]
    )


# What to do about a plan that does not fit


@dataclass(frozen=True)
class Advice:
    """One change, on top of the changes before it.

    Attributes:
        change: the flag that makes it.
        plan: what the run needs with it and with those before it.
        flags: flag -> that flag with its value, of this change and those before it.
    """

    change: str
    plan: MemoryPlan
    flags: dict[str, str]


def advice(whole: MemoryPlan, gpu_gib: float) -> list[Advice]:
    """Return changes to a plan that does not fit, in the order in which they cost least, until it fits.

    Each is planned anew on top of those before; one that gives nothing is left out. Weights in host memory cost so much
    time and host memory that the changes after them do without. Empty for a plan that fits.
    """
    steps: list[Advice] = []
    current, flags = whole, {}
    for change, fields in _changes(whole):
        if current.fits(gpu_gib):
            break
        settings = replace(current.settings, **fields)
        # Other adapters on the decoder are other parameters.
        counted = settings.recipe.decoder_lora == current.settings.recipe.decoder_lora
        changed = plan(whole.config, settings, sizes=current.sizes if counted else None)
        if changed.total >= current.total:
            continue
        # A flag may have been tried with several values; the last counts.
        made = flags | {change.split()[0]: change}
        if "without --deepspeed" in change:
            made.pop("--deepspeed", None)
        steps.append(Advice(change, changed, made))
        if "offload" not in change:
            current, flags = changed, made
    return steps


def _changes(whole: MemoryPlan) -> list[tuple[str, dict[str, Any]]]:
    """Return flags to try, in order, with the fields of the settings that they change."""
    settings, config = whole.settings, whole.config
    recipe = settings.recipe
    changes: list[tuple[str, dict[str, Any]]] = [
        (f"--{part}_checkpointing True", {f"{part}_checkpointing": True})
        for part in ("vision", "decoder")
        if not getattr(settings, f"{part}_checkpointing")
    ]
    sample = _sample_tokens(config, settings, largest_grid(config))
    for images in (2, 1):
        # Whole blocks of 64, so that one long text does not shut its sample out.
        fewer = -(-images * sample // 64) * 64
        if settings.pack_tokens > fewer:
            change = f"--pack_tokens {fewer} --model_max_length {fewer}"
            changes.append((change, {"pack_tokens": fewer, "largest_step": None}))
    if settings.batch_size > 1:
        changes.append(("--per_device_train_batch_size 1", {"batch_size": 1, "largest_step": None}))
    if settings.gpus > 1:
        for stage in range(max(settings.zero_stage + 1, 2), 3 if recipe.four_bit else 4):
            fields = {"zero_stage": stage, "zero": shipped_zero(stage)}
            changes.append((f"--deepspeed configs/deepspeed/zero{stage}.json", fields))
    if recipe.four_bit:
        return changes
    if settings.offload != "all":
        fields = {"zero_stage": 3, "zero": shipped_zero(3), "offload": "all"}
        changes.append(("--deepspeed configs/deepspeed/zero3_offload.json", fields))
    if recipe.trains - RECIPES["lora-llm"].trains:  # something else than LoRA's own parts trains
        changes.append(("--recipe lora-llm", {"recipe": RECIPES["lora-llm"]}))
    fields = {"recipe": RECIPES["qlora-llm"], "zero_stage": 0, "offload": "none"}
    return [*changes, ("--recipe qlora-llm without --deepspeed", fields)]


def describe_misfit(whole: MemoryPlan, gpu_gib: float) -> str | None:
    """Return the sentence about a plan that does not fit, and what would; None where it fits."""
    if whole.fits(gpu_gib):
        return None
    steps = advice(whole, gpu_gib)
    ways = [f"{', '.join(step.flags.values())} ({step.plan.needs})" for step in steps if step.plan.fits(gpu_gib)]
    if ways:
        what = f"change {'; or '.join(reversed(ways))}"
    elif steps:
        least = min((step.plan for step in steps), key=lambda changed: changed.total)
        what = f"no flag makes it fit ({least.needs} at the least), so use more or larger GPUs"
    else:
        what = "no flag makes it smaller, so use more or larger GPUs"
    return (
        f"--recipe {whole.settings.recipe.name} as set needs about {whole.total / GIB:.1f} GiB per GPU, of "
        f"{gpu_gib:.1f} GiB: {what}"
    )


def gpu_gib(device: torch.device | None = None) -> float | None:
    """Return the GiB of the visible CUDA device; None without one, and where `device` is of another kind."""
    is_there = torch.cuda.is_available() if device is None else device.type == "cuda"
    return torch.cuda.mem_get_info()[1] / GIB if is_there else None
