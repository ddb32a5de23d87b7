"""PEFT adapters on the decoder: putting them on, the files that hold them, and merging them into ordinary weights.

An adapter folder is PEFT's own (`adapter_config.json`, `adapter_model.safetensors`), and also carries whatever else
the recipe trained (window adapters, resampler), named as PEFT names it. So `PeftModel.from_pretrained(base, folder)`
gives the whole trained model back. `base.json` beside them says which base and which grid that is.

Only the decoder's adapters are merged, for its linears see every token alike. The window adapters stay: each window has
its own, so no single weight could hold them. They, and whatever else was trained, are taken as they were trained.

    PEFT          W + (alpha / r) · B · A                    on each of `monkey.parts.lora_linears`
    built-in      W + scale · up · down                      `qkv_adapter`'s rows are the queries', keys' and values'

Products and sums are made in float32 and rounded once, to the type that is written.
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.initialization import no_init_weights
from transformers.utils import ADAPTER_SAFE_WEIGHTS_NAME

from monkey.checkpoint_files import BASE_FILE, BaseRecord, check_base, file_shapes, read_base_record, record_base
from monkey.configuration import MonkeyConfig
from monkey.devices import DTYPES
from monkey.files import required_file
from monkey.journal import write_json
from monkey.language import LowRankAdapter
from monkey.modeling import MonkeyForConditionalGeneration
from monkey.parts import base_model, lora_linears, part_of, pattern_of
from monkey.quantised import dequantised_state, open_four_bit, quantisation_of

if TYPE_CHECKING:
    from peft import PeftModel


_PREFIX = "base_model.model."
"""What PEFT puts before the names of the base's own parameters."""


class LoraSizes(Protocol):
    """Rank, scale and dropout of adapters; `monkey.training.arguments.LoraArguments` has them."""

    lora_r: int
    lora_alpha: int
    lora_dropout: float


def add_decoder_lora(model: nn.Module, sizes: LoraSizes) -> PeftModel:
    """Wrap the model with PEFT adapters on exactly `lora_linears`; they start as zero.

    The base is looked at now, while its files are there: a run may outlive the folder that it started from.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=sizes.lora_r,
        lora_alpha=sizes.lora_alpha,
        lora_dropout=sizes.lora_dropout,
        # PEFT matches a string against a module's whole path, so that nothing of the vision side can be meant.
        target_modules=pattern_of(lora_linears(model)),
        bias="none",
    )
    record = base_record(model)
    with _library_renaming_ignored():
        # Adapters of the model's own type: ZeRO-3 wants all that trains to be of one.
        wrapped = get_peft_model(model, config, autocast_adapter_dtype=False)
    wrapped.base_record = record
    return wrapped


def save_adapter(model: PeftModel, folder: Path, state_dict: dict[str, torch.Tensor] | None = None) -> None:
    """Write the adapters, every other trained parameter and the base's record to `folder`.

    `state_dict` is the gathered one of ZeRO-3.
    """
    from peft import get_peft_model_state_dict

    state = model.state_dict() if state_dict is None else state_dict
    tensors = get_peft_model_state_dict(model, state_dict=state, save_embedding_layers=False)
    for name, parameter in base_model(model).named_parameters():
        if parameter.requires_grad and part_of(name) != "decoder adapters":
            tensors[_PREFIX + name] = state[_PREFIX + name]
    folder.mkdir(parents=True, exist_ok=True)
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, folder / ADAPTER_SAFE_WEIGHTS_NAME, metadata={"format": "pt"})
    record = _record_of(model)
    if record is not None:
        write_json(folder / BASE_FILE, record.content)
    config = copy.copy(model.peft_config["default"])
    config.inference_mode = True
    config.save_pretrained(folder)


def load_adapter(model: PeftModel, folder: Path) -> None:
    """Put the parameters of an adapter folder into a wrapped model; ValueError when they are not this model's."""
    from peft import set_peft_model_state_dict
    from peft.utils import load_peft_weights

    check_base(folder, read_base_record(folder), _record_of(model))
    tensors = load_peft_weights(str(folder), device="cpu")
    # ZeRO-3 leaves an empty tensor and the real shape beside it.
    here = {
        name.replace(".default.", "."): tuple(getattr(parameter, "ds_shape", parameter.shape))
        for name, parameter in model.named_parameters()
    }
    _refuse_other_shapes(folder, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, here)
    result = set_peft_model_state_dict(model, tensors)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    missing = sorted(trained & set(result.missing_keys))
    if missing or result.unexpected_keys:
        odd = (missing or result.unexpected_keys)[0]
        raise ValueError(
            f"{folder} holds the adapter of another recipe or model: {len(missing)} of its trained parameters are "
            f"missing and {len(result.unexpected_keys)} are not known here, for instance {odd}"
        )


def with_adapter(base: nn.Module, folder: Path) -> PeftModel:
    """Return `base`, whole or 4-bit, wrapped with an adapter folder; ValueError for that of another base or grid."""
    from peft import PeftModel

    record = base_record(base)
    check_base(folder, read_base_record(folder), record)
    weights = required_file(folder, ADAPTER_SAFE_WEIGHTS_NAME, "the adapter's weights")
    there = {name: tuple(shape) for name, shape in file_shapes(weights).items()}
    here = {_PREFIX + name: tuple(parameter.shape) for name, parameter in base.named_parameters()}
    _refuse_other_shapes(folder, there, here)
    with _library_renaming_ignored():
        wrapped = PeftModel.from_pretrained(base, str(folder))
    wrapped.base_record = record
    return wrapped


def base_record(model: nn.Module) -> BaseRecord | None:
    """Return the record of a model's base, or None where the base has no files to tell it by."""
    name = model.config.name_or_path
    return record_base(name, model.config, quantisation_of(model)) if name else None


def _record_of(model: PeftModel) -> BaseRecord | None:
    """Return the record taken when the model was wrapped here, or one taken now."""
    return model.base_record if hasattr(model, "base_record") else base_record(base_model(model))


def _refuse_other_shapes(folder: Path, there: dict[str, tuple[int, ...]], here: dict[str, tuple[int, ...]]) -> None:
    """Raise ValueError for tensors that do not fit the model's, before PEFT fills a page with them."""
    wrong = [name for name, shape in there.items() if here.get(name, shape) != shape]
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"{folder} does not fit the model: {name.removeprefix(_PREFIX)} has shape {list(there[name])} there and "
            f"{list(here[name])} here ({len(wrong)} tensors differ): use the grid and --lora_r that the adapter was "
            "trained with"
        )


def _library_renaming_ignored() -> warnings.catch_warnings:
    """Without the notice that PEFT still asks transformers for activation checkpointing by its former name."""
    return warnings.catch_warnings(action="ignore", category=FutureWarning)


def open_adapted(adapter: Path, base: str, precision: str = "full", dtype: torch.dtype | None = None) -> PeftModel:
    """Open the base of an adapter folder as the adapter was trained on it, and the adapter on it.

    Args:
        precision: `full`, or `4bit` to pack the decoder as in training.
        dtype: of the weights; None for the base's own.
    """
    record = read_base_record(adapter)
    layout = {} if record is None else record.layout
    if precision == "full":
        opened = MonkeyForConditionalGeneration.from_pretrained(base, dtype=dtype or "auto", **layout)
    else:
        trained_in = (record.quantisation or {}).get("dtype") if record else None
        opened = open_four_bit(base, dtype=DTYPES[trained_in] if trained_in else dtype, **layout)
    return with_adapter(opened, adapter).eval()


def merge_peft(
    tuned: PeftModel, adapter: Path, dtype: torch.dtype | None
) -> tuple[MonkeyForConditionalGeneration, int]:
    """Return an ordinary model that answers as `tuned`, and how many linears took a product in.

    Args:
        tuned: as of `open_adapted`; a packed base is unpacked first.
        adapter: its folder.
        dtype: of the merged weights; None for the base's own.
    """
    state = dequantised_state(tuned)
    linears = 0
    for name, module in tuned.get_base_model().named_modules():
        if hasattr(module, "get_delta_weight"):
            weight = state[f"{name}.weight"]
            state[f"{name}.weight"] = _sum(weight, module.get_delta_weight("default").cpu(), dtype or weight.dtype)
            linears += 1
    # From the file rather than from the model, whose type may be narrower than the one that they were trained in.
    for name, tensor in load_file(adapter / ADAPTER_SAFE_WEIGHTS_NAME).items():
        own = name.removeprefix(_PREFIX)
        if part_of(own) != "decoder adapters":
            state[own] = tensor.to(state[own].dtype) if dtype is None else tensor
    if dtype is not None:
        state = {name: tensor.to(dtype) for name, tensor in state.items()}
    return _plain_model(tuned.get_base_model(), state), linears


def merge_built_in(model: MonkeyForConditionalGeneration) -> int:
    """Merge the adapters built into the decoder (the published 24 GB variant), in place; return the linears changed."""
    linears = 0
    if not model.config.built_in_rank:
        return linears
    for layer in model.model.language_model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for owner, adapter_name, targets in (
            (attention, "qkv_adapter", (attention.q_proj, attention.k_proj, attention.v_proj)),
            (attention, "o_adapter", (attention.o_proj,)),
            (mlp, "gate_adapter", (mlp.gate_proj,)),
            (mlp, "up_adapter", (mlp.up_proj,)),
        ):
            adapter = getattr(owner, adapter_name)
            if adapter is None:
                continue
            deltas = _product(adapter).split([target.out_features for target in targets])
            for target, delta in zip(targets, deltas, strict=True):
                target.weight.data = _sum(target.weight.data, delta, target.weight.dtype)
            linears += len(targets)
            setattr(owner, adapter_name, None)
    model.config.text_config.adapter_rank = 0
    return linears


def _plain_model(base: nn.Module, state: dict[str, torch.Tensor]) -> MonkeyForConditionalGeneration:
    """Return an ordinary model of the same configuration that holds exactly `state`."""
    content = base.config.to_dict()
    content.pop("quantization_config", None)
    with torch.device("meta"), no_init_weights():
        model = MonkeyForConditionalGeneration(MonkeyConfig.from_dict(content))
    model.load_state_dict(state, assign=True, strict=not model.config.tie_word_embeddings)
    model.tie_weights()
    # What a decoder of the library computes when it is made, such as its rotary frequencies, is in no state dict.
    for name, buffer in base.named_buffers():
        owner, _, own = name.rpartition(".")
        if own in model.get_submodule(owner)._non_persistent_buffers_set:
            setattr(model.get_submodule(owner), own, buffer.cpu())
    model.config.dtype = model.dtype
    model.generation_config = base.generation_config
    return model.eval()


def _product(adapter: LowRankAdapter) -> torch.Tensor:
    """Return scale · up · down [out, in] of a built-in adapter, in float32."""
    return adapter.scale.detach().float() * (adapter.up.detach().float() @ adapter.down.detach().float())


def _sum(weight: torch.Tensor, delta: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return (weight.float() + delta.float()).to(dtype)
