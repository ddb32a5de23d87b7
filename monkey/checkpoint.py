"""Published names on disk, ours in memory: the one table between them, and opening what was published.

transformers' weight-conversion table does the work both ways: it renames, splits the decoder's stacked projection
and stacks the adapters of the windows when a checkpoint is opened, and undoes all three when one is saved. Nothing
else in this project knows the published names. A part that was never published, such as a decoder of transformers,
has no rows in it: it has one set of names, its library's, in memory and on disk.
"""

from __future__ import annotations

import copy
import logging
import re
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import psutil
import torch
from safetensors import SafetensorError
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    get_model_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.core_model_loading import (
    Chunk,
    ConversionOps,
    MergeModulelist,
    SplitModulelist,
    WeightConverter,
    WeightRenaming,
    revert_weight_conversion,
)
from transformers.initialization import no_init_weights
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import ADAPTER_SAFE_WEIGHTS_NAME

from monkey.checkpoint_files import (
    check_base,
    file_tensors,
    not_enough_memory,
    read_base_record,
    record_base,
    weight_files,
)
from monkey.cli import library_bars
from monkey.configuration import LAYOUT_KEYS, MonkeyConfig
from monkey.decoders import probe
from monkey.files import base_of, check_field, checkpoint_file, location_of, read_json, refused_in_a_sentence
from monkey.grids import placed_windows

logger = logging.getLogger(__name__)

# Published name → ours. The first rows change prefixes, the others the names below the new prefixes; the library
# undoes them in the opposite order.
RENAMED = (
    (r"^transformer\.wte\.", "model.language_model.embed_tokens."),
    (r"^transformer\.ln_f\.", "model.language_model.norm."),
    (r"^transformer\.h\.", "model.language_model.layers."),
    (r"^transformer\.visual\.transformer\.resblocks\.", "model.visual.layers."),
    (r"^transformer\.visual\.attn_pool\.", "model.visual.resampler."),
    (r"^transformer\.visual\.conv1\.", "model.visual.patch_embedding."),
    (r"^transformer\.visual\.positional_embedding", "model.visual.position_embedding"),
    (r"^transformer\.visual\.ln_pre\.", "model.visual.pre_layernorm."),
    (r"^transformer\.visual\.ln_post\.", "model.visual.post_layernorm."),
    (r"^transformer\.visual\.proj", "model.visual.projection"),
    (r"^model\.visual\.resampler\.attn\.", "model.visual.resampler.attention."),
    (r"^model\.visual\.layers\.(\d+)\.ln_1\.", r"model.visual.layers.\1.layernorm1."),
    (r"^model\.visual\.layers\.(\d+)\.ln_2\.", r"model.visual.layers.\1.layernorm2."),
    (r"^model\.visual\.layers\.(\d+)\.attn\.in_proj\.", r"model.visual.layers.\1.attention.in_proj."),
    (r"^model\.visual\.layers\.(\d+)\.attn\.out_proj\.", r"model.visual.layers.\1.attention.out_proj."),
    (r"^model\.visual\.layers\.(\d+)\.mlp\.c_fc\.", r"model.visual.layers.\1.mlp.fc1."),
    (r"^model\.visual\.layers\.(\d+)\.mlp\.c_proj\.", r"model.visual.layers.\1.mlp.fc2."),
    (r"^model\.language_model\.layers\.(\d+)\.ln_1\.", r"model.language_model.layers.\1.input_layernorm."),
    (r"^model\.language_model\.layers\.(\d+)\.ln_2\.", r"model.language_model.layers.\1.post_attention_layernorm."),
    (r"^model\.language_model\.layers\.(\d+)\.attn\.c_proj\.", r"model.language_model.layers.\1.self_attn.o_proj."),
    (r"^model\.language_model\.layers\.(\d+)\.mlp\.w1\.", r"model.language_model.layers.\1.mlp.up_proj."),
    (r"^model\.language_model\.layers\.(\d+)\.mlp\.w2\.", r"model.language_model.layers.\1.mlp.gate_proj."),
    (r"^model\.language_model\.layers\.(\d+)\.mlp\.c_proj\.", r"model.language_model.layers.\1.mlp.down_proj."),
)

# Low-rank adapters: published module → ours, and published tensor → ours.
WINDOW_ADAPTERS = (
    ("attn.in_proj_lora", "attention.in_adapter"),
    ("attn.out_proj_lora", "attention.out_adapter"),
    ("mlp_lora", "mlp_adapter"),
)
DECODER_ADAPTERS = (
    ("attn.c_attn_lora", "self_attn.qkv_adapter"),
    ("attn.c_proj_lora", "self_attn.o_adapter"),
    ("mlp.w1_lora", "mlp.up_adapter"),
    ("mlp.w2_lora", "mlp.gate_adapter"),
)
ADAPTER_TENSORS = (("lora_a.weight", "down"), ("lora_b.weight", "up"), ("lora_scale", "scale"))

# Buffers that old releases of the published code saved and nothing reads.
IGNORED = re.compile(r"\.(masked_bias|attn\.bias|rotary_emb\.inv_freq|logn_tensor)$")
WINDOW_ADAPTER = re.compile(
    r"^transformer\.visual\..*_lora\.\d+\.lora_|^model\.visual\.encoder\..*\.window_adapter\.\d+\."
)
DECODER_ADAPTER = "transformer.h.0.attn.c_attn_lora.lora_a.weight"


class StackWindows(MergeModulelist):
    """Stack the adapters of a checkpoint's windows, placed on the grid of the model that opens it."""

    def convert(self, input_dict, source_patterns, target_patterns, config=None, **kwargs):
        stacked = super().convert(input_dict, source_patterns, target_patterns, config=config, **kwargs)
        old_grid = getattr(config, "_source_grid", tuple(config.grid))
        return {name: place_adapters(tensor, old_grid, config) for name, tensor in stacked.items()}

    @property
    def reverse_op(self) -> ConversionOps:
        return SplitModulelist(self.dim)


def place_adapters(stacked: torch.Tensor, old_grid: tuple[int, int], config: MonkeyConfig) -> torch.Tensor:
    """Adapters [old sets, …] of `old_grid` as [config.num_adapters, …]."""
    if stacked.shape[0] == 1:
        old_grid = (1, 1)
    new_grid = tuple(config.grid) if config.window_adapters == "per_window" else (1, 1)
    if tuple(old_grid) == new_grid:
        return stacked
    return stacked[placed_windows(tuple(old_grid), new_grid)]


def conversion_table(config: MonkeyConfig) -> list[WeightRenaming | WeightConverter]:
    """The table in the library's terms, a fresh copy at each call, with the rows of the parts that were published."""
    parts = ["model.visual."] + ["model.language_model."] * config.is_published_decoder
    table: list[WeightRenaming | WeightConverter] = [
        WeightRenaming(old, new) for old, new in RENAMED if new.startswith(tuple(parts))
    ]
    if config.is_published_decoder:
        for old, new in DECODER_ADAPTERS:
            for old_tensor, new_tensor in ADAPTER_TENSORS:
                prefix = r"^model\.language_model\.layers\.(\d+)\."
                published = prefix + re.escape(f"{old}.{old_tensor}")
                table.append(WeightRenaming(published, rf"model.language_model.layers.\1.{new}.{new_tensor}"))
        for kind in ("weight", "bias"):
            split = [f".self_attn.{name}_proj.{kind}" for name in "qkv"]
            table.append(WeightConverter(f".attn.c_attn.{kind}", split, operations=[Chunk(dim=0)]))
    for old, new in WINDOW_ADAPTERS:
        for old_tensor, new_tensor in ADAPTER_TENSORS:
            table.append(
                WeightConverter(f"{old}.*.{old_tensor}", f"{new}.{new_tensor}", operations=[StackWindows(dim=0)])
            )
    for _, tensor in ADAPTER_TENSORS:  # beside the linears of timm's encoders
        name = "window_adapter"
        table.append(WeightConverter(f"{name}.*.{tensor}", f"{name}.{tensor}", operations=[StackWindows(dim=0)]))
    return table


_table_lock = threading.RLock()


@contextmanager
def registered_table(config: MonkeyConfig) -> Iterator[None]:
    """Give transformers the table of one model, under our `model_type`, for as long as its weights go in or out."""
    name = MonkeyConfig.model_type
    with _table_lock:
        before = get_checkpoint_conversion_mapping(name)
        register_checkpoint_conversion_mapping(name, conversion_table(config), overwrite=True)
        try:
            yield
        finally:
            register_checkpoint_conversion_mapping(name, before, overwrite=True)


def register() -> None:
    """Give transformers the table of the published model, for whoever asks it without us."""
    register_checkpoint_conversion_mapping(MonkeyConfig.model_type, conversion_table(MonkeyConfig()), overwrite=True)


def published_names(model: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors under our parameter names (weights, gradients, …) as a checkpoint's names would hold them."""
    # Every row of the table, rather than those that the model was opened with.
    with registered_table(model.config):
        table = get_model_conversion_mapping(model, add_legacy=False)
        return revert_weight_conversion(SimpleNamespace(config=model.config, _weight_conversions=table), tensors)


def published_shapes(model_class: type, config: MonkeyConfig) -> dict[str, torch.Size]:
    """Return published name → shape of every tensor that a checkpoint of `config` holds."""
    with torch.device("meta"), no_init_weights():
        model = model_class(config)
    tied = model.get_expanded_tied_weights_keys()
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    tensors = published_names(model, state)
    return {name: tensor.shape for name, tensor in tensors.items()}


def open_checkpoint(
    model_class: type,
    opener: Callable,
    name: Any,
    *model_args: Any,
    grid: Any = None,
    config: Any = None,
    **kwargs: Any,
):
    """Look at a checkpoint's names and shapes, say what does not fit, then let the library load it.

    See `MonkeyForConditionalGeneration.from_pretrained`.
    """
    if name is None:
        return opener(name, *model_args, config=config, **kwargs)
    _refuse_missing_cuda(kwargs.get("device_map"))
    hub = location_of(kwargs)
    base, adapter = base_of(name, **hub), name
    if base is None:
        # The Auto classes name the base, and the adapter beside it.
        base, adapter = name, (kwargs.get("adapter_kwargs") or {}).get("_adapter_model_path")
    layout = {"grid": grid, **{key: kwargs.pop(key) for key in LAYOUT_KEYS if key in kwargs}}
    source = MonkeyConfig.from_pretrained(base, **hub)
    config = _opened_config(base, adapter, config, layout, kwargs)
    _leave_vision_alone(kwargs)
    _check_generation_config(base, hub, config)
    if adapter:
        _check_adapter_config(adapter, hub)
    probe(config.text_config)
    if getattr(source, "quantization_config", None) is None:
        _check_weights(model_class, base, source, config, kwargs)
    config._source_grid = tuple(source.grid)
    wants_info = kwargs.pop("output_loading_info", False)
    is_on_screen = sys.stderr is not None and sys.stderr.isatty()
    with registered_table(config), _without_load_report(), _refused_whole(name), library_bars(is_on_screen):
        model, info = opener(name, *model_args, config=config, output_loading_info=True, **kwargs)
    del model.config._source_grid
    _check_loaded(name, model, info)
    return (model, info) if wants_info else model


def _opened_config(
    base: Any, adapter: Any, config: Any, layout: dict[str, Any], kwargs: dict[str, Any]
) -> MonkeyConfig:
    """Return the configuration to open `base` with: on the grid that is asked for, or that its adapter was trained on.

    Raises:
        ValueError: an adapter of another base or grid.
    """
    hub = location_of(kwargs)
    trained = read_base_record(adapter, **hub) if adapter else None
    if trained is not None:
        layout = trained.layout | {key: value for key, value in layout.items() if value is not None}
    if config is None:
        config = MonkeyConfig.from_pretrained(base, **layout, **hub)
    else:
        # An Auto class may hand over the configuration under Qwen-VL's model type; ours writes and reads both.
        content = copy.deepcopy(config).to_dict() | {"model_type": MonkeyConfig.model_type}
        config = MonkeyConfig.from_dict(content, **layout)
    if trained is not None:
        check_base(adapter, trained, record_base(base, config))
        if trained.quantisation and "quantization_config" not in kwargs:
            logger.warning("%s was trained on a 4-bit base and answers a little otherwise on the whole one", adapter)
    return config


def _check_weights(
    model_class: type, name: Any, source: MonkeyConfig, config: MonkeyConfig, kwargs: dict[str, Any]
) -> None:
    """Raise ValueError for weight files that are not those of the checkpoint's own configuration, `source`.

    The 24 GB variant is told by its names alone: the rank of its built-in adapters is noted in both configurations.
    """
    tensors: dict[str, torch.Tensor] = {}
    for path in weight_files(name, location_of(kwargs), kwargs.get("variant")):
        tensors.update(file_tensors(path))
    shapes = {key: tensor.shape for key, tensor in tensors.items()}
    _check_layers(name, shapes, source)
    rank = int(shapes[DECODER_ADAPTER][0]) if DECODER_ADAPTER in shapes else 0
    if config.is_published_decoder:
        source.text_config.adapter_rank = config.text_config.adapter_rank = rank
    has_adapters = any(WINDOW_ADAPTER.match(key) for key in shapes)
    with _refused_whole(name):
        held = copy.deepcopy(config)
        held.grid, held.window_adapters = source.grid, source.window_adapters if has_adapters else "none"
        expected = published_shapes(model_class, held)
    _check_shapes(name, shapes, expected)
    _check_types(name, {key: tensors[key] for key in expected})
    _check_memory(name, tensors, kwargs)
    _note_adapters(name, source, config, has_adapters)


def _check_layers(name: Any, found: Iterable[str], config: MonkeyConfig) -> None:
    """Raise ValueError unless the checkpoint holds the layers that config.json counts, before any is made."""
    for pattern, counted, field in (
        (r"(?:transformer\.h|model\.language_model\.\w+)\.(\d+)\.", config.text_config.num_hidden_layers, "decoder"),
        (r"transformer\.visual\.transformer\.resblocks\.(\d+)\.", config.vision_config.num_hidden_layers, "vision"),
    ):
        there = {int(match[1]) for key in found if (match := re.match(pattern, key))}
        if there and max(there) + 1 < counted:
            raise ValueError(
                f"{name}: config.json has {counted:,} {field} layers, and the weights have {max(there) + 1:,}; the "
                "checkpoint is incomplete, or the two belong to different models"
            )


def _check_shapes(name: Any, found: dict[str, torch.Size], expected: dict[str, torch.Size]) -> None:
    """Compare a checkpoint's tensors with the expected ones.

    Raises:
        ValueError: another kind of checkpoint; a missing tensor; a tensor of another shape. Unexpected tensors are
            only reported, since nothing is lost without them.
    """
    if not found.keys() & expected.keys():
        raise ValueError(
            f"{name} is not a Monkey or Qwen-VL checkpoint: none of its {len(found)} tensors has a published name "
            f"(the first is {next(iter(found), None)!r})"
        )
    wrong = sorted(key for key in found.keys() & expected.keys() if found[key] != expected[key])
    if wrong:
        first = wrong[0]
        raise ValueError(
            f"{name}: {first} has shape {list(found[first])}, but config.json makes it {list(expected[first])}"
            f"{_and_more(wrong[1:])}; weights and config.json belong to different models"
        )
    missing = sorted(expected.keys() - found.keys())
    if missing:
        raise ValueError(
            f"{name}: {len(missing)} of {len(expected)} tensors are missing: {_some(missing)}; "
            "the checkpoint is incomplete, copy or download it again"
        )
    unexpected = sorted(key for key in found.keys() - expected.keys() if not IGNORED.search(key))
    if unexpected:
        logger.warning("%s: %d tensors are not used: %s", name, len(unexpected), _some(unexpected))


def _check_types(name: Any, tensors: dict[str, torch.Tensor]) -> None:
    wrong = [key for key, tensor in tensors.items() if not tensor.is_floating_point()]
    if wrong:
        type_name = str(tensors[wrong[0]].dtype).removeprefix("torch.")
        raise ValueError(
            f"{name}: {len(wrong)} of {len(tensors)} tensors are not of floating point ({wrong[0]} is {type_name}), so "
            "they are no weights of this model; copy or download it again"
        )


def _check_memory(name: Any, tensors: dict[str, torch.Tensor], kwargs: dict[str, Any]) -> None:
    """Raise ValueError for weights that a CPU's memory cannot hold, before the system ends the process for them."""
    on_cpu = kwargs.get("device_map") in (None, "cpu", {"": "cpu"})
    if not on_cpu or kwargs.get("quantization_config") is not None or is_deepspeed_zero3_enabled():
        return
    wanted = kwargs.get("dtype") if isinstance(kwargs.get("dtype"), torch.dtype) else None
    needed = sum(tensor.numel() * (wanted or tensor.dtype).itemsize for tensor in tensors.values())
    available = psutil.virtual_memory().available + psutil.swap_memory().free
    if needed > available:
        raise ValueError(
            f"{name} needs {needed / 2**30:.1f} GiB for its weights, and {available / 2**30:.1f} GiB of memory are "
            "available: free memory, open it in bfloat16 or in 4 bits (--dtype bfloat16, --quantization 4bit), or take "
            "a machine with more"
        )


def _note_adapters(name: Any, source: MonkeyConfig, config: MonkeyConfig, has_adapters: bool) -> None:
    if config.num_adapters and not has_adapters:
        logger.warning("%s has no window adapters: %d new sets start at zero effect", name, config.num_adapters)
    elif config.num_adapters and (source.grid, source.window_adapters) != (config.grid, config.window_adapters):
        old_grid = source.grid if source.window_adapters == "per_window" else (1, 1)
        new_grid = config.grid if config.window_adapters == "per_window" else (1, 1)
        logger.warning(
            "%s was made for grid=%s; on grid=%s the adapters of each window start from window %s",
            name, tuple(source.grid), tuple(config.grid), placed_windows(old_grid, new_grid),
        )  # fmt: skip


SAMPLED_VALUES = 1024
"""Of each tensor: a run that diverged leaves no number in any of them, and reading all of them takes seconds."""


def _check_loaded(name: Any, model: torch.nn.Module, info: dict[str, Any]) -> None:
    """Raise ValueError for weights that were left random, or are no numbers."""
    left_random = sorted(key for key in info["missing_keys"] if "_adapter." not in key)
    if left_random:
        raise ValueError(f"{name}: {len(left_random)} weights were not loaded: {_some(left_random)}")
    sampled = {
        key: parameter.detach().flatten()[:SAMPLED_VALUES].float()
        for key, parameter in model.named_parameters()
        if parameter.is_floating_point() and not parameter.is_meta
    }
    wrong = [key for key, values in sampled.items() if not values.isfinite().all()]
    if wrong:
        raise ValueError(
            f"{name}: {len(wrong)} of {len(sampled)} weights hold NaN or infinity ({_some(wrong)}); the run that wrote "
            "them diverged or the files are damaged, take an earlier checkpoint"
        )
    if model.generation_config.eos_token_id is None:
        model.generation_config.eos_token_id = model.generation_config.pad_token_id = model.config.eod_id


def _check_generation_config(name: Any, hub: dict[str, Any], config: MonkeyConfig) -> None:
    """Raise ValueError for a generation_config.json whose special tokens are none of this vocabulary."""
    path = checkpoint_file(name, "generation_config.json", **hub)
    content = read_json(path)
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        given = content.get(key)
        for token in given if isinstance(given, list) else [] if given is None else [given]:
            check_field(f"{path}: {key}", token, "rank")
            if token >= config.text_config.vocab_size:
                raise ValueError(f"{path}: {key} is {token}, and the vocabulary has {config.text_config.vocab_size:,}")


def _check_adapter_config(adapter: Any, hub: dict[str, Any]) -> None:
    """Raise ValueError for an adapter whose file has other ranks than its adapter_config.json makes."""
    path = checkpoint_file(adapter, "adapter_config.json", **hub)
    settings = read_json(path)
    if settings.get("peft_type") != "LORA":
        return
    check_field(f"{path}: r", settings.get("r"), "count")
    for key in ("megatron_config", "trainable_token_indices"):
        if settings.get(key) is not None:
            raise ValueError(f"{path}: {key} is set, and adapters of that kind are not opened here")
    weights = checkpoint_file(adapter, ADAPTER_SAFE_WEIGHTS_NAME, **hub)
    tensors = {} if weights is None else file_tensors(weights)
    _check_types(adapter, tensors)
    patterns = settings.get("rank_pattern") or {}
    if not isinstance(patterns, dict):
        raise ValueError(f"{path}: rank_pattern must be an object of ranks by module")
    ranks = {tensor.shape[0] for key, tensor in tensors.items() if key.endswith("lora_A.weight")}
    others = sorted(rank for rank in ranks if rank not in (settings["r"], *patterns.values()))
    if others:
        raise ValueError(
            f"{path}: r is {settings['r']}, and {weights} holds adapters of rank {others[0]}; copy both again"
        )


def _leave_vision_alone(kwargs: dict[str, Any]) -> None:
    """Quantise the decoder only, unless the caller says which modules to skip."""
    quantization = kwargs.get("quantization_config")
    if quantization is not None and getattr(quantization, "llm_int8_skip_modules", ()) is None:
        kwargs["quantization_config"] = quantization = copy.deepcopy(quantization)
        quantization.llm_int8_skip_modules = ["model.visual", "lm_head"]


def _refuse_missing_cuda(device_map: Any) -> None:
    devices: Iterable = device_map.values() if isinstance(device_map, dict) else [device_map]
    wants_cuda = any(isinstance(device, int) or str(device).startswith("cuda") for device in devices)
    if wants_cuda and not torch.cuda.is_available():
        raise ValueError(f"device_map={device_map!r} asks for CUDA, but torch sees no CUDA device here; use 'cpu'")


@contextmanager
def _refused_whole(name: Any) -> Iterator[None]:
    """Say in a sentence what the libraries raise at a folder that passed the checks before; see `files`."""
    try:
        with refused_in_a_sentence(name):
            yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, SafetensorError) as error:
        if "allocate memory" in str(error):
            raise not_enough_memory(name, error) from error
        raise ValueError(f"{name} cannot be opened: {' '.join(str(error).split())[:300]}") from error


@contextmanager
def _without_load_report() -> Iterator[None]:
    """Hold back the library's own load report: names and shapes were already checked, in published terms."""
    library = logging.getLogger("transformers.modeling_utils")

    def keep(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    library.addFilter(keep)
    try:
        yield
    finally:
        library.removeFilter(keep)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + _and_more(names[3:])


def _and_more(rest: list[str]) -> str:
    return f" and {len(rest)} more" if rest else ""
