"""Adapters merged into the decoder: an ordinary checkpoint from an adapter folder, or from the 24 GB variant.

Only the decoder's adapters are merged, for its linears see every token alike. The window adapters stay: each window has
its own, so no single weight could hold them. They, and whatever else was trained, are taken as they were trained.

    PEFT          W + (alpha / r) · B · A                    on each linear of `LORA_LINEARS`
    built-in      W + scale · up · down                      `qkv_adapter`'s rows are the queries', keys' and values'

Products and sums are made in float32 and rounded once, to the type that is written.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers.initialization import no_init_weights

from monkey.checkpoint_card import CARD_FILE, card_of
from monkey.checkpoint_files import file_shapes, read_base_record
from monkey.configuration import MonkeyConfig, published_config
from monkey.files import checkpoint_file, read_json
from monkey.language import LowRankAdapter
from monkey.modeling import MonkeyForConditionalGeneration
from monkey.processing import MonkeyProcessor
from monkey.training.lora import with_adapter
from monkey.training.quantised import dequantised_state, open_four_bit
from monkey.training.recipes import part_of
from monkey.training.report import write_model_card

LAYOUTS = ("ours", "published")
BASE_PRECISIONS = ("full", "4bit")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

PROBE_TOKENS = 32

# What the published code's own tokenizer_config.json says.
_PUBLISHED_TOKENIZER = {
    "auto_map": {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]},
    "clean_up_tokenization_spaces": True,
    "model_max_length": 2048,
    "padding_side": "right",
    "tokenizer_class": "QWenTokenizer",
}

# What a merge writes, and so may replace: these, and weights.
_WRITTEN = frozenset(
    (
        "README.md",
        "config.json",
        "generation_config.json",
        CARD_FILE,
        "processor_config.json",
        "qwen.tiktoken",
        "run.json",
        "tokenizer_config.json",
        "training_log.json",
    )
)


@dataclass(frozen=True)
class Merge:
    """What was merged, as it is printed and kept in `run.json`."""

    adapter: str
    base: str
    kind: str
    """`PEFT` or `built-in`."""
    base_precision: str
    layout: str
    dtype: str
    linears: int
    """Decoder linears that took a product in."""
    kept: dict[str, int]
    """Tensors taken over as trained, by part."""
    largest_logit: float
    """On the probe: largest absolute logit with the adapters beside the weights."""
    largest_change: float
    """On the probe: largest difference to it with the adapters merged."""

    def __str__(self) -> str:
        kept = ", ".join(f"{count} of the {part}" for part, count in self.kept.items()) or "none"
        return (
            f"merged {self.kind} adapters of {self.adapter} into {self.linears} decoder linears of {self.base} "
            f"({self.base_precision} base, {self.dtype}, {self.layout} layout)\n"
            f"taken over as trained: tensors {kept}\n"
            f"on {PROBE_TOKENS} probe tokens the logits changed by at most {self.largest_change:.3g}; the largest of "
            f"them is {self.largest_logit:.3g}"
        )


def merge_adapters(
    adapter: str,
    output: str | Path,
    base: str | None = None,
    base_precision: str | None = None,
    layout: str = "ours",
    dtype: str | None = None,
    builtin: bool = False,
    overwrite: bool = False,
) -> Merge:
    """Write the ordinary checkpoint that answers as `adapter` does on its base.

    Args:
        adapter: a PEFT adapter folder that this project wrote, or a checkpoint with adapters built into its decoder.
        output: folder that does not exist, is empty, or (with `overwrite`) holds an earlier merge.
        base: the adapter's base where it is not at its recorded place any more.
        base_precision: `full` or `4bit`; by default as it was in training.
        layout: `ours` or `published`: which `config.json` and `tokenizer_config.json` are written. The weights have
            the published names in both.
        dtype: of the weights written; by default the base's own.
        builtin: refuse what has no adapters built in.

    Raises:
        FileNotFoundError: no such adapter or base.
        ValueError: another base or grid, nothing to merge, or an `output` that is not to be written to.
    """
    output = Path(output)
    is_peft = _is_adapter_folder(adapter)
    if is_peft and builtin:
        raise ValueError(f"--builtin: {adapter} is a PEFT adapter folder, not a checkpoint with built-in adapters")
    if is_peft:
        base, base_precision = _base_of(Path(adapter), base), base_precision or _trained_precision(Path(adapter))
    elif base is not None or base_precision == "4bit":
        raise ValueError(
            f"{adapter} is a whole checkpoint, not a PEFT adapter folder: adapters built into it are merged into its "
            "own weights, so leave out --base and --base-precision"
        )
    _check_output(output, overwrite, adapter, base)

    chosen = DTYPES[dtype] if dtype else None
    if is_peft:
        model, reference, linears = merged_peft(Path(adapter), base, base_precision, chosen)
        kept = _kept_parts(Path(adapter))
    else:
        model = MonkeyForConditionalGeneration.from_pretrained(adapter, dtype=chosen or "auto").eval()
        reference = probe_logits(model)
        linears, kept = merge_built_in(model), {}
        if not linears:
            raise ValueError(
                f"{adapter} has nothing to merge: it is neither a PEFT adapter folder (no adapter_config.json) nor a "
                "checkpoint with adapters built into its decoder"
            )
    merge = Merge(
        adapter=str(adapter),
        base=str(base or adapter),
        kind="PEFT" if is_peft else "built-in",
        base_precision=base_precision or "full",
        layout=layout,
        dtype=str(model.dtype).removeprefix("torch."),
        linears=linears,
        kept=kept,
        largest_logit=float(reference.abs().max()),
        largest_change=float((probe_logits(model) - reference).abs().max()),
    )
    _write(model, merge, output)
    return merge


def merge_built_in(model: MonkeyForConditionalGeneration) -> int:
    """Merge the adapters built into the decoder (the published 24 GB variant), in place; return the linears changed."""
    linears = 0
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
                linears += 1
            setattr(owner, adapter_name, None)
    model.config.text_config.adapter_rank = 0
    return linears


def probe_logits(model: nn.Module) -> torch.Tensor:
    """Logits [PROBE_TOKENS, vocabulary] in fp32 of a fixed line of ordinary tokens, without a picture."""
    config = model.config
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(config.eod_id, (1, PROBE_TOKENS), generator=generator)
    with torch.no_grad():
        return model(input_ids=ids.to(model.device), use_cache=False).logits[0].float().cpu()


def merged_peft(
    adapter: Path, base: str, precision: str, dtype: torch.dtype | None
) -> tuple[MonkeyForConditionalGeneration, torch.Tensor, int]:
    """An adapter folder merged into its base, in memory.

    Args:
        adapter: PEFT adapter folder; its record gives grid and, for a 4-bit base, the type to pack from.
        base: folder or hub name.
        precision: one of `BASE_PRECISIONS`.
        dtype: of the merged weights; None for the base's own.

    Returns:
        The merged model, the probe's logits before merging, and how many linears took a product in.
    """
    from peft.utils import SAFETENSORS_WEIGHTS_NAME

    record = read_base_record(adapter)
    layout: dict[str, Any] = {}
    if record is not None:
        layout = {"grid": tuple(record.grid), "window_adapters": record.window_adapters}
        layout["global_view"] = record.global_view
    if precision == "4bit":
        trained_in = (record.quantisation or {}).get("dtype") if record else None
        narrow = DTYPES[trained_in] if trained_in else dtype or torch.bfloat16
        opened = open_four_bit(base, dtype=narrow, **layout)
    else:
        opened = MonkeyForConditionalGeneration.from_pretrained(base, dtype=dtype or "auto", **layout)
    tuned = with_adapter(opened, adapter).eval()
    reference = probe_logits(tuned)
    state = dequantised_state(tuned)
    linears = 0
    for name, module in tuned.get_base_model().named_modules():
        if hasattr(module, "get_delta_weight"):
            weight = state[f"{name}.weight"]
            state[f"{name}.weight"] = _sum(weight, module.get_delta_weight("default").cpu(), dtype or weight.dtype)
            linears += 1
    # From the file rather than from the model, whose type may be narrower than the one that they were trained in.
    for name, tensor in load_file(adapter / SAFETENSORS_WEIGHTS_NAME).items():
        own = name.removeprefix("base_model.model.")
        if part_of(own) != "decoder adapters":
            state[own] = tensor.to(state[own].dtype) if dtype is None else tensor
    if dtype is not None:
        state = {name: tensor.to(dtype) for name, tensor in state.items()}
    return _plain_model(tuned.get_base_model(), state), reference, linears


def _plain_model(base: nn.Module, state: dict[str, torch.Tensor]) -> MonkeyForConditionalGeneration:
    """An ordinary model of the same configuration that holds exactly `state`."""
    content = base.config.to_dict()
    content.pop("quantization_config", None)
    config = MonkeyConfig.from_dict(content)
    with torch.device("meta"), no_init_weights():
        model = MonkeyForConditionalGeneration(config)
    model.load_state_dict(state, assign=True)
    model.config.dtype = model.dtype
    model.generation_config = base.generation_config
    return model.eval()


def _product(adapter: LowRankAdapter) -> torch.Tensor:
    """scale · up · down [out, in] of a built-in adapter, in float32."""
    return adapter.scale.detach().float() * (adapter.up.detach().float() @ adapter.down.detach().float())


def _sum(weight: torch.Tensor, delta: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return (weight.float() + delta.float()).to(dtype)


def _is_adapter_folder(name: str) -> bool:
    """Whether `name` is a PEFT adapter rather than a whole checkpoint; ValueError for one that is not a folder here."""
    if checkpoint_file(name, "adapter_config.json") is None or checkpoint_file(name, "config.json") is not None:
        return False
    if not Path(name).is_dir():
        raise ValueError(f"{name} is an adapter on the hub: download it, and name its folder")
    return True


def _base_of(adapter: Path, base: str | None) -> str:
    """Where the adapter's base is: as given, or as recorded."""
    recorded = read_json(str(adapter / "adapter_config.json")).get("base_model_name_or_path")
    name = base or recorded
    if not name:
        raise ValueError(f"{adapter} does not name its base: give it with --base")
    try:
        found = checkpoint_file(name, "config.json")
    except FileNotFoundError:
        found = None
    if found is None:
        how = f"--base {base}" if base else f"the base of {adapter} was {recorded}"
        raise FileNotFoundError(f"{how}, and there is no checkpoint there: give its folder or hub name with --base")
    return name


def _trained_precision(adapter: Path) -> str:
    record = read_base_record(adapter)
    return "4bit" if record is not None and record.quantisation else "full"


def _kept_parts(adapter: Path) -> dict[str, int]:
    """How many tensors of each part beside the decoder's adapters an adapter folder holds."""
    from peft.utils import SAFETENSORS_WEIGHTS_NAME

    kept: dict[str, int] = {}
    for name in file_shapes(adapter / SAFETENSORS_WEIGHTS_NAME):
        part = part_of(name.removeprefix("base_model.model."))
        if part != "decoder adapters":
            kept[part] = kept.get(part, 0) + 1
    return kept


def _check_output(output: Path, overwrite: bool, *sources: Any) -> None:
    """ValueError for an output that is a source, or that holds what a merge would not have written."""
    for source in sources:
        if source is not None and output.exists() and Path(source).exists() and output.samefile(source):
            raise ValueError(f"{output} is what is being merged: name another folder for the result")
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file: name a folder for the result")
    held = sorted(path.name for path in output.iterdir()) if output.is_dir() else []
    if held and not overwrite:
        raise ValueError(f"{output} is not empty: name a new folder, or replace an earlier merge with --overwrite")
    foreign = [name for name in held if name not in _WRITTEN and not name.startswith(("model.safetensors", "model-"))]
    if foreign:
        raise ValueError(
            f"--overwrite replaces what a merge wrote, and {output} also holds {foreign[0]}"
            f"{f' and {len(foreign) - 1} more' if foreign[1:] else ''}: move that away, or name a new folder"
        )


def _write(model: MonkeyForConditionalGeneration, merge: Merge, output: Path) -> None:
    """Write checkpoint, processor, record and cards beside `output`, then put them in its place."""
    output = output.resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as parent:
        folder, replaced = Path(parent) / "merged", Path(parent) / "replaced"
        model.save_pretrained(folder)
        _processor(merge, model.config).save_pretrained(folder)
        if merge.layout == "published":
            _write_json(folder / "config.json", published_config(model.config, merge.dtype))
            _write_json(folder / "tokenizer_config.json", _PUBLISHED_TOKENIZER)
        source = Path(merge.adapter)
        record = {**_json_beside(source, "run.json"), "merge": asdict(merge)}
        _write_json(folder / "run.json", record)
        # The base may have moved from where an adapter without a card remembers it.
        card_of(source if (source / CARD_FILE).is_file() else merge.base).write(folder)
        write_model_card(folder, record, scores=None, base=merge.base, log_history=_history(source))
        if output.exists():
            os.replace(output, replaced)
        try:
            os.replace(folder, output)
        except OSError:
            if replaced.exists():
                os.replace(replaced, output)
            raise


def _history(source: Path) -> list[dict[str, Any]]:
    """The log of the run that trained an adapter: a checkpoint's, or the one beside a finished run's `adapter`."""
    log = (source.parent if source.name == "adapter" else source) / "training_log.json"
    if log.is_file():
        return json.loads(log.read_text(encoding="utf-8"))
    return _json_beside(source, "trainer_state.json").get("log_history", [])


def _json_beside(source: Path, name: str) -> dict[str, Any]:
    """The JSON object in a file of a folder, or an empty one where there is no such file."""
    return read_json(str(source / name)) if (source / name).is_file() else {}


def _processor(merge: Merge, config: MonkeyConfig) -> MonkeyProcessor:
    """The processor beside the adapter, or the base's on the adapter's grid."""
    if checkpoint_file(merge.adapter, "qwen.tiktoken") is not None:
        return MonkeyProcessor.from_pretrained(merge.adapter)
    return MonkeyProcessor.from_pretrained(merge.base, grid=tuple(config.grid))


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
