"""Vision transformers of timm: made by their name, measured, filled with published weights, and embedding patches.

An encoder here is a plain vision transformer: patches of one width from the first block to the last, and blocks of
self-attention and an MLP. Tokens that are no patches (class, registers) stand before the patches and attend; whoever
calls drops them. A family of timm is a row of `FAMILIES`; what its attention and MLP are called stands in `ATTENTIONS`
and `MLPS`.

timm is imported by the functions here and nowhere else, so that only a model that has such an encoder waits for it.
They are written against timm 1.0.31: its methods that embed patches have an underscore, and may change.

Shape letters: V views, N patches, P tokens before the patches, C width.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monkey.files import read_json

if TYPE_CHECKING:
    import torch
    from torch import nn

ATTENTIONS = ("Attention", "AttentionRope", "EvaAttention")
MLPS = ("GluMlp", "Mlp", "SwiGLU")
"""Classes that call each of their linears as a module, so that an adapter beside it is heard."""

_DECIDED = {
    **dict.fromkeys(("img_size", "window_size"), "set vision_config's window_size instead"),
    **dict.fromkeys(("depth", "num_hidden_layers"), "set vision_config's num_hidden_layers instead"),
    **dict.fromkeys(("in_chans", "num_classes", "patch_drop_rate"), "Monkey reads every patch of RGB"),
    **dict.fromkeys(("pretrained", "pretrained_cfg", "checkpoint_path"), "the weights are those of the checkpoint"),
}
"""Arguments of timm that `architecture_args` may not hold -> why, or what to do."""


def _embed_plain(encoder: nn.Module, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    patches = encoder.patch_embed(pixels.to(encoder.patch_embed.proj.weight.dtype))
    return encoder.norm_pre(encoder._pos_embed(patches)), None


def _embed_eva(encoder: nn.Module, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    patches = encoder.patch_embed(pixels.to(encoder.patch_embed.proj.weight.dtype))
    x, rope = encoder._pos_embed(patches)
    return encoder.norm_pre(x), rope


def _embed_naflex(encoder: nn.Module, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    pixels = pixels.to(encoder.embeds.proj.weight.dtype)
    embedded = encoder._forward_embeds(pixels, patch_coord=None, patch_valid=None, attn_mask=None)
    return embedded["patches"], embedded["rope_embeds"]


FAMILIES: dict[str, tuple[str, Callable]] = {
    "VisionTransformer": ("vision_transformer", _embed_plain),
    "Eva": ("eva", _embed_eva),
    "NaFlexVit": ("naflexvit", _embed_naflex),
}
"""Class -> the module of timm that makes it, and the function that embeds its patches."""


def embed(encoder: nn.Module, pixels: torch.Tensor) -> tuple[torch.Tensor, list[dict[str, torch.Tensor]]]:
    """Embed views [V, 3, window, window]: tokens [V, P + N, C], and what each block takes beside them."""
    x, rope = FAMILIES[type(encoder).__name__][1](encoder, pixels)
    if rope is None:
        return x, [{} for _ in encoder.blocks]
    # "Mixed" rotary positions are learned for each block, [depth, heads, N, 2 · C of a head].
    mixed = getattr(encoder, "rope_mixed", False) or getattr(encoder, "rope_is_mixed", False)
    return x, [{"rope": rope[index] if mixed else rope} for index in range(len(encoder.blocks))]


def plain_name(architecture: str) -> str:
    """Return timm's own name in `timm/NAME`, `hf-hub:timm/NAME` or `NAME`; the tag after its dot stays."""
    return architecture.removeprefix("hf-hub:").removeprefix("hf_hub:").removeprefix("timm/")


def make_encoder(
    architecture: str,
    arguments: dict[str, Any] | None = None,
    window_size: int | None = None,
    depth: int | None = None,
    weights: str | os.PathLike | None = None,
) -> nn.Module:
    """Make an encoder without classifier and pooling.

    Args:
        architecture: timm's name, with or without a tag.
        arguments: what it is made with beside the architecture's own values, such as `embed_dim`.
        window_size: pixels of a view's side; those that the architecture was published for when None.
        depth: how many blocks; the architecture's own when None.
        weights: "published" for those that the name stands for, on the hub or in its offline cache; or a safetensors
            file, or a folder with model.safetensors. Positions are interpolated to the window. Random when None.

    Raises:
        ValueError: an unknown name, an encoder that is no plain vision transformer, a window that its patches do not
            divide, or weights that are not there or belong to another model.
    """
    import timm

    _check_name(architecture)
    arguments = dict(arguments or {})
    for key in sorted(arguments.keys() & _DECIDED.keys()):
        raise ValueError(f"vision_config's architecture_args hold {key!r}, which they may not: {_DECIDED[key]}")
    if depth is not None:
        arguments["depth"] = depth
    side = window_size or timm.get_pretrained_cfg(architecture).input_size[-1]
    encoder = _create(architecture, {**arguments, "img_size": side}, weights)
    _check_family(architecture, encoder)
    patch = _patch_size(encoder)
    if window_size is not None and window_size % patch:
        raise ValueError(
            f"window_size={window_size} is not a multiple of patch_size={patch} of {architecture}; "
            f"take {window_size // patch * patch or patch}"
        )
    # The last norm stays where the architecture has it: before the pooling that goes here, or after it.
    encoder.reset_classifier(0, "")
    return encoder


def measure(
    architecture: str, arguments: dict[str, Any] | None, window_size: int | None, depth: int | None
) -> dict[str, Any]:
    """Return the fields of `TimmVisionConfig` that the architecture decides; arguments and errors of `make_encoder`."""
    import torch

    with torch.device("meta"):
        encoder = make_encoder(architecture, arguments, window_size, depth)
    published, sizes = encoder.pretrained_cfg, sizes_of(encoder)
    patch = sizes["patch_size"]
    return {
        **sizes,
        # A size that its patches do not fill leaves the same patches when it is cut.
        "window_size": window_size or published["input_size"][-1] // patch * patch,
        "num_hidden_layers": len(encoder.blocks),
        "image_mean": list(published["mean"]),
        "image_std": list(published["std"]),
    }


def sizes_of(encoder: nn.Module) -> dict[str, int]:
    """Return the fields of `TimmVisionConfig` that no one chooses."""
    return {
        "patch_size": _patch_size(encoder),
        "hidden_size": encoder.embed_dim,
        "intermediate_size": encoder.blocks[0].mlp.fc2.in_features,
    }


def describe_folder(folder: str | os.PathLike) -> dict[str, Any]:
    """Return the fields of `TimmVisionConfig` in the config.json of a folder as timm saves it.

    Raises:
        ValueError: a config.json of another kind.
    """
    path = Path(folder) / "config.json"
    content = read_json(path)
    published = content.get("pretrained_cfg", content)
    if not isinstance(content.get("architecture"), str) or not isinstance(published, dict):
        raise ValueError(f"{path} names no architecture, so it is none of timm; give timm's name of the encoder")
    arguments = dict(content.get("model_args") or {})
    side = arguments.get("img_size")
    fields = {
        "architecture": content["architecture"],
        "architecture_args": {key: value for key, value in arguments.items() if key not in _DECIDED},
        "window_size": side[0] if isinstance(side, list) else side,
        "num_hidden_layers": arguments.get("depth"),
        "image_mean": published.get("mean"),
        "image_std": published.get("std"),
    }
    return {name: value for name, value in fields.items() if value is not None}


def _patch_size(encoder: nn.Module) -> int:
    stem = encoder.embeds if hasattr(encoder, "embeds") else encoder.patch_embed
    height, width = stem.patch_size
    if height != width:
        raise ValueError(f"patches of {height}×{width} pixels are not square, and windows are cut into square ones")
    return height


def _check_name(architecture: str) -> None:
    """Raise ValueError, with the nearest that there are, for a name or tag that timm does not have."""
    import timm

    name, _, tag = architecture.partition(".")
    if not timm.is_model(name):
        modules = [module for module, _ in FAMILIES.values()]
        known = [each for module in modules for each in timm.list_models(module=module)]
        near = difflib.get_close_matches(name, known, n=3)
        hint = f"the nearest are {', '.join(near)}" if near else "timm.list_models() lists them"
        raise ValueError(f"vision_config's architecture {architecture!r} is none of timm {timm.__version__}; {hint}")
    tags = [full.partition(".")[2] for full in timm.list_models(name, pretrained=True)]
    if tag and tag not in tags:
        has = f"its tags are {', '.join(tags)}" if tags else "it has none"
        raise ValueError(f"vision_config's architecture {architecture!r}: {name} has no tag {tag!r}; {has}")
    module = timm.model_entrypoint(name).__module__.rpartition(".")[2]
    if module not in {module for module, _ in FAMILIES.values()}:
        raise _no_plain_vit(architecture, f"timm makes it in {module}")


def _check_family(architecture: str, encoder: nn.Module) -> None:
    if type(encoder).__name__ not in FAMILIES:
        raise _no_plain_vit(architecture, f"it is a {type(encoder).__name__}")
    for block in encoder.blocks:
        for part, known in (("attn", ATTENTIONS), ("mlp", MLPS)):
            kind = type(getattr(block, part, None)).__name__
            if kind not in known:
                reason = f"blocks are {type(block).__name__} and their {part} is {kind}"
                raise _no_plain_vit(architecture, reason)


def _no_plain_vit(architecture: str, reason: str) -> ValueError:
    families = ", ".join(module for module, _ in FAMILIES.values())
    return ValueError(
        f"vision_config's architecture {architecture!r} is no plain vision transformer ({reason}); take one of timm's "
        f"{families} with an attention and an MLP in each block"
    )


def _create(architecture: str, arguments: dict[str, Any], weights: str | os.PathLike | None) -> nn.Module:
    import timm

    source, loading = ("", {}) if weights is None else _loading(weights)
    try:
        # With the architecture's own head and pooling timm refuses weights of which any is missing, or too many.
        return timm.create_model(architecture, **arguments, **loading)
    except (AssertionError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if weights == "published" and isinstance(error, OSError):
            raise ValueError(
                f"{architecture}: its weights cannot be loaded, for they are neither on the hub nor in its offline "
                f"cache ({type(error).__name__}): fetch them where there is a network, or give a folder of timm's"
            ) from error
        if weights is not None:
            raise ValueError(f"{architecture}: its weights cannot be loaded from {source}: {reason}") from error
        given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        raise ValueError(f"timm cannot make {architecture} with {given}: {reason}") from error


def _loading(weights: str | os.PathLike) -> tuple[str, dict[str, Any]]:
    """Return how messages call the weights, and the arguments with which timm loads them."""
    if weights == "published":
        return "the hub or its offline cache", {"pretrained": True}
    from safetensors import SafetensorError, safe_open

    path = Path(weights)
    path = path / "model.safetensors" if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of weights")
    try:
        with safe_open(path, "pt") as file:
            # A classifier of other classes than the architecture's goes with the head that it stands in.
            classes = file.get_slice("head.weight").get_shape()[0] if "head.weight" in file.keys() else 0  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file ({error})") from error
    overlay = {"file": str(path), "num_classes": classes}
    return str(path), {"pretrained": True, "pretrained_cfg_overlay": overlay, "num_classes": classes}
