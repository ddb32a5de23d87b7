"""Tables, tars and a hub cache with records and images in them, as other people's tools write them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

REVISION = "0123456789abcdef0123456789abcdef01234567"


def png(shade: int, size: tuple[int, int] = (20, 10)) -> bytes:
    """One plain image for each number below 2^16."""
    stream = io.BytesIO()
    Image.new("RGB", size, (shade % 256, shade // 256, 90)).save(stream, "PNG")
    return stream.getvalue()


def turns(number: int, place: str = "<image>\n") -> list[dict[str, str]]:
    return [{"from": "human", "value": f"{place}What is {number}?"}, {"from": "gpt", "value": str(number)}]


def llava_row(number: int) -> dict[str, Any]:
    """LLaVA's form with the image in the row, as `datasets` keeps it."""
    image = {"bytes": png(number), "path": f"{number}.png"}
    return {"id": str(number), "image": image, "conversations": turns(number)}


def write_table(path: Path, rows: Sequence[Mapping[str, Any]], rows_a_group: int = 10) -> Path:
    table = pa.Table.from_pylist(list(rows))
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=rows_a_group)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table, max_chunksize=rows_a_group)
    return path


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def tar_members(numbers: Iterable[int]) -> Iterable[tuple[str, bytes]]:
    """Two files for each record, whose text still names its image as it was called elsewhere."""
    for number in numbers:
        yield f"{number:05}.png", png(number)
        record = {"image": f"coco/train/{number}.jpg", "conversations": turns(number)}
        yield f"{number:05}.json", json.dumps(record).encode()


def write_hub_set(
    cache: Path, repository: str, files: Mapping[str, Sequence[Mapping[str, Any]]], card: str = ""
) -> Path:
    """Write parquet files of a data set into a hub cache in the library's own layout; return its snapshot."""
    folder = cache / f"datasets--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    for name, rows in files.items():
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        write_table(snapshot / name, rows)
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / "main").write_text(REVISION)
    if card:
        (snapshot / "README.md").write_text(card)
    return snapshot


def answers_of(records: Iterable[Any]) -> list[str]:
    return [record.conversation.messages[-1].text for record in records]
