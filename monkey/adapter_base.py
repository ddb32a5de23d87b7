"""The base that an adapter belongs to, as `base.json` in the adapter's folder tells it.

Adapters only mean something on the weights that they were trained on, and a name does not tell: folders move, and
other weights take their place. So a base is known by its frozen decoder: names and shapes of its tensors, and a few
values of each matrix, rounded to bfloat16. That is what all copies of a checkpoint have in common, whether they are
float32, bfloat16, `.bin`, safetensors or quantised on the way in; it is read from the files, a few kilobytes of them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from monkey.checkpoint_files import file_shapes, load_bin, weight_files
from monkey.configuration import MonkeyConfig, check_grid
from monkey.files import check_field, checkpoint_file, read_json

BASE_FILE = "base.json"

# Published names of the decoder's own tensors; those of adapters built into it are left out, for they train.
_DECODER_TENSOR = re.compile(
    r"(?:transformer\.(?:wte|ln_f)|lm_head|transformer\.h\.\d+\.(?!.*_lora\.).+)\.(?:weight|bias)"
)
_VALUES_OF_A_MATRIX = 4


@dataclass(frozen=True)
class BaseRecord:
    """The base that an adapter was trained on, as `base.json` holds it."""

    name: str
    """Folder or hub name at the time: for people; it is not compared."""
    grid: list[int]
    """Rows and columns of the trained model, which need not be the checkpoint's own."""
    window_adapters: str
    global_view: bool
    decoder_shapes: str
    """SHA-256 over published names and shapes of the decoder's tensors."""
    decoder_values: dict[str, list[float]]
    """Published name of each decoder matrix → a few values of its middle row, rounded to bfloat16."""
    narrow_range: bool = False
    """Whether the files are float16, which changes small values and rounds the others once more."""
    quantisation: dict[str, Any] | None = None
    """How the base was quantised while training (`monkey.training.quantised.quantisation_of`), None when it was not."""


def record_of_checkpoint(
    name: str, config: MonkeyConfig, quantisation: dict[str, Any] | None = None
) -> BaseRecord | None:
    """The record of a checkpoint opened as `config`, or None where it has no files to tell it by.

    That is a model made in memory, one whose checkpoint is gone, and one that was packed on disk.
    """
    if not _has_plain_weights(name):
        return None
    shapes, values, narrow = _decoder_of(name)
    return BaseRecord(
        name=str(name),
        grid=list(config.grid),
        window_adapters=config.window_adapters,
        global_view=config.global_view,
        decoder_shapes=shapes,
        decoder_values=values,
        narrow_range=narrow,
        quantisation=quantisation,
    )


def read_base_record(folder: str | Path, **hub: Any) -> BaseRecord | None:
    """The record in an adapter folder, or None where there is none; ValueError for one that is damaged."""
    path = checkpoint_file(folder, BASE_FILE, **hub)
    if path is None:
        return None
    content = read_json(path)
    known = {field.name for field in fields(BaseRecord)}
    try:
        record = BaseRecord(**{key: value for key, value in content.items() if key in known})
        check_grid(record.grid)
        for field, kind in (("name", "text"), ("window_adapters", "text"), ("global_view", "flag")):
            check_field(field, getattr(record, field), kind)
        lists = list(record.decoder_values.values())
        if not all(isinstance(values, list) and all(isinstance(v, (int, float)) for v in values) for values in lists):
            raise ValueError("decoder_values must hold lists of numbers")
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not the record of a base ({error}); copy the adapter's folder again") from None
    return record


def check_base(folder: str | Path, base: BaseRecord | None, **hub: Any) -> None:
    """Refuse a base or grid that the adapter in `folder` was not trained on.

    Folders without `base.json`, and bases that were built in memory, have nothing to compare and pass.

    Raises:
        ValueError: naming both bases, and what differs.
    """
    trained = read_base_record(folder, **hub)
    if trained is None or base is None:
        return
    layout = [(record.grid, record.window_adapters, record.global_view) for record in (trained, base)]
    if trained.decoder_shapes != base.decoder_shapes:
        raise ValueError(
            f"{folder} is an adapter of {trained.name}, and {base.name} has a decoder of another size: give the base "
            "that the adapter was trained on"
        )
    different = [name for name, values in trained.decoder_values.items() if not _same(values, name, trained, base)]
    if different:
        name = different[0]
        raise ValueError(
            f"{folder} is an adapter of {trained.name}, and {base.name} holds other weights: values of "
            f"{len(different)} of {len(trained.decoder_values)} decoder matrices differ (in {name} "
            f"{_shown(trained.decoder_values[name])} there, {_shown(base.decoder_values.get(name, []))} here); give "
            "the base that the adapter was trained on"
        )
    if layout[0] != layout[1]:
        (rows, columns), adapters, view = layout[0]
        raise ValueError(
            f"{folder} is an adapter for {_layout(*layout[0])}, and {base.name} was opened with {_layout(*layout[1])}: "
            f"open it with grid=({rows}, {columns}), window_adapters={adapters!r}, global_view={view}"
        )


def _same(values: list[float], name: str, trained: BaseRecord, base: BaseRecord) -> bool:
    """Whether the values of one matrix are the same; float16 may move a value by one step of bfloat16."""
    others = base.decoder_values.get(name, [])
    if len(others) != len(values):
        return False
    if not (trained.narrow_range or base.narrow_range):
        return values == others
    step, smallest = 2.0**-7, 2.0**-24
    return all(
        abs(one - other) <= step * max(abs(one), abs(other)) + smallest
        for one, other in zip(values, others, strict=True)
    )


def _shown(values: list[float]) -> str:
    return ", ".join(f"{value:g}" for value in values[:2])


def _layout(grid: list[int], window_adapters: str, global_view: bool) -> str:
    return f"grid=({grid[0]}, {grid[1]}), window_adapters={window_adapters!r}, global_view={global_view}"


def _has_plain_weights(name: str) -> bool:
    """Whether a checkpoint is there, and its files hold unpacked weights."""
    try:
        config_file = checkpoint_file(name, "config.json")
    except FileNotFoundError:
        return False
    return config_file is not None and "quantization_config" not in read_json(config_file)


def _decoder_of(name: str) -> tuple[str, dict[str, list[float]], bool]:
    """SHA-256 of the decoder's names and shapes, values of its matrices, and whether any is float16."""
    shapes: dict[str, tuple[int, ...]] = {}
    values: dict[str, list[float]] = {}
    narrow = False
    for path in weight_files(name, {}):
        found = {key: tuple(shape) for key, shape in file_shapes(path).items() if _DECODER_TENSOR.fullmatch(key)}
        shapes.update(found)
        matrices = [key for key, shape in found.items() if len(shape) == 2]
        with _rows(path) as middle_row:
            for key in matrices:
                row = middle_row(key)
                narrow = narrow or row.dtype == torch.float16
                picked = row[:: max(1, len(row) // _VALUES_OF_A_MATRIX)][:_VALUES_OF_A_MATRIX]
                # Four digits tell all bfloat16 values apart.
                values[key] = [float(f"{value:.4g}") for value in picked.to(torch.bfloat16).tolist()]
    listed = json.dumps(sorted((key, shape) for key, shape in shapes.items()))
    return hashlib.sha256(listed.encode()).hexdigest(), dict(sorted(values.items())), narrow


@contextmanager
def _rows(path: str) -> Iterator[Any]:
    """A function from a matrix's name to its middle row, that reads little else of the file."""
    if not path.endswith(".safetensors"):
        tensors = load_bin(path)
        yield lambda key: tensors[key][tensors[key].shape[0] // 2]
        return
    with safe_open(path, framework="pt") as file:

        def middle_row(key: str) -> torch.Tensor:
            matrix = file.get_slice(key)
            return matrix[matrix.get_shape()[0] // 2]

        yield middle_row
