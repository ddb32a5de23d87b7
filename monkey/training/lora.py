"""PEFT adapters on the decoder, the files that hold them, and the base that they belong to.

An adapter folder is PEFT's own (`adapter_config.json`, `adapter_model.safetensors`), and also carries whatever else
the recipe trained (window adapters, resampler), named as PEFT names it. So `PeftModel.from_pretrained(base, folder)`
gives the whole trained model back. `base.json` beside them says which base and which grid that is.
"""

from __future__ import annotations

import copy
import re
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file

from monkey.checkpoint_files import BASE_FILE, BaseRecord, check_base, file_shapes, read_base_record, record_base
from monkey.files import required_file
from monkey.journal import write_json
from monkey.training.quantised import quantisation_of
from monkey.training.recipes import LORA_LINEARS, base_model, part_of

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from torch import nn

    from monkey.training.arguments import LoraArguments


def add_decoder_lora(model: nn.Module, arguments: LoraArguments) -> PeftModel:
    """Wrap the model with PEFT adapters on exactly `LORA_LINEARS`; they start as zero.

    The base is looked at now, while its files are there: a run may outlive the folder that it started from.
    """
    from peft import LoraConfig, get_peft_model

    # PEFT matches a string against a module's whole path, so that nothing of the vision side can be meant.
    paths = "|".join(re.escape(path).replace(r"\*", r"\d+") for path in LORA_LINEARS)
    config = LoraConfig(
        r=arguments.lora_r,
        lora_alpha=arguments.lora_alpha,
        lora_dropout=arguments.lora_dropout,
        target_modules=f"(?:{paths})",
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
    from peft.utils import SAFETENSORS_WEIGHTS_NAME

    state = model.state_dict() if state_dict is None else state_dict
    tensors = get_peft_model_state_dict(model, state_dict=state, save_embedding_layers=False)
    prefix = "base_model.model."
    for name, parameter in base_model(model).named_parameters():
        if parameter.requires_grad and part_of(name) != "decoder adapters":
            tensors[prefix + name] = state[prefix + name]
    folder.mkdir(parents=True, exist_ok=True)
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
    record = _record_of(model)
    if record is not None:
        write_json(folder / BASE_FILE, asdict(record))
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
    """`base` wrapped with an adapter folder, whole or 4-bit; ValueError when it belongs to another base or grid."""
    from peft import PeftModel
    from peft.utils import SAFETENSORS_WEIGHTS_NAME

    record = base_record(base)
    check_base(folder, read_base_record(folder), record)
    weights = required_file(folder, SAFETENSORS_WEIGHTS_NAME, "the adapter's weights")
    there = {name: tuple(shape) for name, shape in file_shapes(weights).items()}
    here = {f"base_model.model.{name}": tuple(parameter.shape) for name, parameter in base.named_parameters()}
    _refuse_other_shapes(folder, there, here)
    with _library_renaming_ignored():
        wrapped = PeftModel.from_pretrained(base, str(folder))
    wrapped.base_record = record
    return wrapped


def merged_model(base: nn.Module, folder: Path) -> nn.Module:
    """`base` with an adapter folder merged in: an ordinary model whose decoder has no adapters left."""
    return with_adapter(base, folder).merge_and_unload()


def base_record(model: nn.Module) -> BaseRecord | None:
    """The record of a model's base, or None where the base has no files to tell it by."""
    name = model.config.name_or_path
    return record_base(name, model.config, quantisation_of(model)) if name else None


def _record_of(model: PeftModel) -> BaseRecord | None:
    """The record taken when the model was wrapped here, or one taken now."""
    return model.base_record if hasattr(model, "base_record") else base_record(base_model(model))


def _refuse_other_shapes(folder: Path, there: dict[str, tuple[int, ...]], here: dict[str, tuple[int, ...]]) -> None:
    """ValueError for tensors that do not fit the model's, before PEFT fills a page with them."""
    wrong = [name for name, shape in there.items() if here.get(name, shape) != shape]
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"{folder} does not fit the model: {name.removeprefix('base_model.model.')} has shape {list(there[name])} "
            f"there and {list(here[name])} here ({len(wrong)} tensors differ): use the grid and --lora_r that the "
            "adapter was trained with"
        )


def _library_renaming_ignored() -> warnings.catch_warnings:
    """Without the notice that PEFT still asks transformers for activation checkpointing by its former name."""
    return warnings.catch_warnings(action="ignore", category=FutureWarning)
