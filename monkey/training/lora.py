"""PEFT adapters on the decoder, and the files that hold them.

An adapter folder is PEFT's own (`adapter_config.json`, `adapter_model.safetensors`), and also carries whatever else
the recipe trained (window adapters, resampler), named as PEFT names it. So `PeftModel.from_pretrained(base, folder)`
gives the whole trained model back.
"""

from __future__ import annotations

import copy
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save_file

from monkey.training.recipes import LORA_LINEARS, base_model, part_of

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from torch import nn

    from monkey.training.arguments import LoraArguments


def add_decoder_lora(model: nn.Module, arguments: LoraArguments) -> PeftModel:
    """Wrap the model with PEFT adapters on exactly `LORA_LINEARS`; they start as zero."""
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
    with _library_renaming_ignored():
        # Adapters of the model's own type: ZeRO-3 wants all that trains to be of one.
        return get_peft_model(model, config, autocast_adapter_dtype=False)


def save_adapter(model: PeftModel, folder: Path, state_dict: dict[str, torch.Tensor] | None = None) -> None:
    """Write the adapters and every other trained parameter to `folder`; `state_dict` is the gathered one of ZeRO-3."""
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
    config = copy.copy(model.peft_config["default"])
    config.inference_mode = True
    config.save_pretrained(folder)


def load_adapter(model: PeftModel, folder: Path) -> None:
    """Put the parameters of an adapter folder into a wrapped model; ValueError when they are not this model's."""
    from peft import set_peft_model_state_dict
    from peft.utils import load_peft_weights

    result = set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    missing = sorted(trained & set(result.missing_keys))
    if missing or result.unexpected_keys:
        odd = (missing or result.unexpected_keys)[0]
        raise ValueError(
            f"{folder} holds the adapter of another recipe or model: {len(missing)} of its trained parameters are "
            f"missing and {len(result.unexpected_keys)} are not known here, for instance {odd}"
        )


def merged_model(base: nn.Module, folder: Path) -> nn.Module:
    """`base` with an adapter folder merged in: an ordinary model whose decoder has no adapters left."""
    from peft import PeftModel

    with _library_renaming_ignored():
        return PeftModel.from_pretrained(base, str(folder)).merge_and_unload()


def _library_renaming_ignored() -> warnings.catch_warnings:
    """Without the notice that PEFT still asks transformers for activation checkpointing by its former name."""
    return warnings.catch_warnings(action="ignore", category=FutureWarning)
