"""The folder of a merge: an ordinary checkpoint from an adapter folder, or from the 24 GB variant."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.utils import ADAPTER_SAFE_WEIGHTS_NAME

from monkey.adapters import merge_built_in, merge_peft, open_adapted
from monkey.checkpoint_card import CARD_FILE, card_of
from monkey.checkpoint_files import file_shapes, read_base_record
from monkey.configuration import MonkeyConfig
from monkey.devices import DTYPES
from monkey.files import base_of, checkpoint_file, is_adapter, read_json
from monkey.flat_config import published_config
from monkey.journal import atomic_folder, write_json
from monkey.modeling import MonkeyForConditionalGeneration
from monkey.parts import part_of
from monkey.processing import MonkeyProcessor
from monkey.tokenization import VOCABULARY_FILE
from monkey.tokenization_decoder import TOKENIZER_FILE
from monkey.training.model_card import write_model_card

PROBE_TOKENS = 32

# What the published code's own tokenizer_config.json says.
_PUBLISHED_TOKENIZER = {
    "auto_map": {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]},
    "clean_up_tokenization_spaces": True,
    "model_max_length": 2048,
    "padding_side": "right",
    "tokenizer_class": "QWenTokenizer",
}

_WRITTEN = {
    *("README.md", "config.json", "generation_config.json", CARD_FILE, "processor_config.json", VOCABULARY_FILE),
    *("run.json", "tokenizer_config.json", "training_log.json", TOKENIZER_FILE, "chat_template.jinja"),
}
"""What a merge writes, and so may replace, beside weights."""


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
    source, output, chosen = Path(adapter), Path(output).resolve(), DTYPES[dtype] if dtype else None
    is_peft = is_adapter(adapter)
    if is_peft:
        if not source.is_dir():
            raise ValueError(f"{adapter} is an adapter on the hub: download it, and name its folder")
        if builtin:
            raise ValueError(f"--builtin: {adapter} is a PEFT adapter folder, not a checkpoint with built-in adapters")
        record = read_base_record(source)
        base = _find_base(source, base)
        base_precision = base_precision or ("4bit" if record is not None and record.quantisation else "full")
    elif base is not None or base_precision == "4bit":
        raise ValueError(
            f"{adapter} is a whole checkpoint, not a PEFT adapter folder: adapters built into it are merged into its "
            "own weights, so leave out --base and --base-precision"
        )
    _check_output(output, overwrite, adapter, base)
    if layout == "published":
        # Before anything is opened, where it is refused.
        published_config(MonkeyConfig.from_pretrained(base or adapter))

    if is_peft:
        tuned = open_adapted(source, base, base_precision, chosen)
        reference = probe_logits(tuned)
        model, linears = merge_peft(tuned, source, chosen)
        names = file_shapes(source / ADAPTER_SAFE_WEIGHTS_NAME)
        kept = Counter(part_of(name.removeprefix("base_model.model.")) for name in names)
        del kept["decoder adapters"]
    else:
        model = MonkeyForConditionalGeneration.from_pretrained(adapter, dtype=chosen or "auto").eval()
        reference = probe_logits(model)
        linears, kept = merge_built_in(model), Counter()
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
        kept=dict(kept),
        largest_logit=float(reference.abs().max()),
        largest_change=float((probe_logits(model) - reference).abs().max()),
    )
    _write(model, merge, output)
    return merge


def probe_logits(model: nn.Module) -> torch.Tensor:
    """Return logits [PROBE_TOKENS, vocabulary] in fp32 of a fixed line of ordinary tokens, without an image."""
    config, generator = model.config, torch.Generator().manual_seed(0)
    # The published vocabulary has its tokens of control behind the others; those of decoders have them anywhere.
    ordinary = config.eod_id if config.is_published_decoder else config.image_start_id
    ids = torch.randint(ordinary, (1, PROBE_TOKENS), generator=generator)
    with torch.no_grad():
        return model(input_ids=ids.to(model.device), use_cache=False).logits[0].float().cpu()


def _find_base(adapter: Path, base: str | None) -> str:
    """Return where the adapter's base is: as given, or as recorded."""
    name = base or base_of(adapter)
    try:
        found = checkpoint_file(name, "config.json")
    except FileNotFoundError:
        found = None
    if found is None:
        how = f"--base {base}" if base else f"the base of {adapter} was {name}"
        raise FileNotFoundError(f"{how}, and there is no checkpoint there: give its folder or hub name with --base")
    return name


def _check_output(output: Path, overwrite: bool, *sources: Any) -> None:
    """Raise ValueError for an output that is a source, or that holds what a merge would not have written."""
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
    """Write checkpoint, processor, record and cards."""
    source = Path(merge.adapter)
    record = {**read_json(checkpoint_file(source, "run.json")), "merge": asdict(merge)}
    with atomic_folder(output) as folder:
        model.save_pretrained(folder)
        _processor(merge, model.config).save_pretrained(folder)
        if merge.layout == "published":
            write_json(folder / "config.json", published_config(model.config, merge.dtype), sort_keys=True)
            write_json(folder / "tokenizer_config.json", _PUBLISHED_TOKENIZER, sort_keys=True)
        write_json(folder / "run.json", record, sort_keys=True)
        # The base may have moved from where an adapter without a card remembers it.
        card_of(source if (source / CARD_FILE).is_file() else merge.base).write(folder)
        write_model_card(folder, record, scores=None, base=merge.base, log_history=_history(source))


def _history(source: Path) -> list[dict[str, Any]]:
    """Return the log of the run that trained an adapter: a checkpoint's, or that beside a finished run's `adapter`."""
    log = (source.parent if source.name == "adapter" else source) / "training_log.json"
    if log.is_file():
        return json.loads(log.read_text(encoding="utf-8"))
    return read_json(checkpoint_file(source, "trainer_state.json")).get("log_history", [])


def _processor(merge: Merge, config: MonkeyConfig) -> MonkeyProcessor:
    """Return the processor beside the adapter, or the base's on the adapter's grid."""
    if any(checkpoint_file(merge.adapter, name) for name in (VOCABULARY_FILE, TOKENIZER_FILE)):
        return MonkeyProcessor.from_pretrained(merge.adapter)
    return MonkeyProcessor.from_pretrained(merge.base, tuple(config.grid), config.grids, config.fit)
