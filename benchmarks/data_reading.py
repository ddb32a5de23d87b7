"""How fast records with their images are read: from tables and tars beside a JSON file with images in files.

    python -m benchmarks.data_reading --quick
    python -m benchmarks.data_reading --what steps --records 80 --repeats 4
    python -m benchmarks.data_reading --memory 100000

The same records and JPEG files in each. *record* is a conversation with the file of its image (its bytes, where they
lie in the row); *sample* its ids and pixels; *batches* are packed rows from opening the data to the last pixel, by the
plan over all records or as they come; *steps* are these with a training step on each row, of the shipped model's sizes
with one layer a part, so that reading is not lost beside the arithmetic. Ratios are times of the JSON file over times
of the other, above 1 where the other is faster; without `--workers` the time is that of this process's CPU. `--memory
N` reads N small records without images as a stream instead, and says how much the process grew.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from benchmarks.measure import arguments, compare, report
from monkey import MonkeyConfig, MonkeyForConditionalGeneration
from monkey.data.dataset import ConversationDataset, PackedCollator, PlannedBatches, PlannedLoader
from monkey.data.mixture import open_records, record_sets
from monkey.data.packing import RowPlan, RowSettings
from monkey.data.streaming import StreamedBatches, StreamSettings, streamed_loader
from monkey.files import cache_folder
from monkey.processing import MonkeyProcessor

CHECKPOINT = Path(__file__).resolve().parent.parent / "models" / "small"
SHARDS = 8
WHAT = ("record", "sample", "batches", "steps")


def jpeg(number: int, side: int) -> bytes:
    """A photograph's size of file: smooth, with some noise."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    noisy = np.asarray(coarse, np.int16) + rng.integers(-12, 13, (side, side, 3))
    stream = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=85)
    return stream.getvalue()


def turns(number: int, place: str = "<image>\n") -> list[dict[str, str]]:
    asked = f"{place}What is the number that stands on the picture, {number} or {number + 1}?"
    return [{"from": "human", "value": asked}, {"from": "gpt", "value": f"It is {number}."}]


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write_data(folder: Path, count: int, side: int) -> dict[str, Path]:
    """Write the same records in each kind; return what each is opened by."""
    (folder / "images").mkdir()
    rows = []
    for number in range(count):
        content = jpeg(number, side)
        (folder / "images" / f"{number}.jpg").write_bytes(content)
        rows.append({"image": f"images/{number}.jpg", "conversations": turns(number)})
    (folder / "files.json").write_text(json.dumps(rows))
    for shard in range(SHARDS):
        own = [
            (number, rows[number], (folder / rows[number]["image"]).read_bytes())
            for number in range(shard, count, SHARDS)
        ]
        table = [row | {"image": {"bytes": content, "path": row["image"]}} for _, row, content in own]
        pq.write_table(pa.Table.from_pylist(table), folder / f"p-{shard}.parquet", row_group_size=100)
        members = [
            pair
            for number, row, content in own
            for pair in ((f"{number}.jpg", content), (f"{number}.json", json.dumps(row).encode()))
        ]
        write_tar(folder / f"t-{shard}.tar", members)
    return {"json": folder / "files.json", "parquet": folder / "p-*.parquet", "tar": folder / "t-*.tar"}


def read_records(path: Path, order: np.ndarray) -> Callable[[], Any]:
    records = open_records(path)

    def run() -> None:
        for number in order:
            for image in records[int(number)].images:
                _ = image if isinstance(image, bytes) else image.read_bytes()

    return run


def make_samples(path: Path, order: np.ndarray, processor: MonkeyProcessor) -> Callable[[], Any]:
    dataset = ConversationDataset(open_records(path), processor, 2048)

    def run() -> None:
        for number in order:
            _ = dataset[int(number)]

    return run


ROWS = RowSettings(2048, 64)
Use = Callable[[dict[str, Any]], int]
"""What is done with a batch; returns its number of records."""


def count_records(batch: Mapping[str, Any]) -> int:
    return len(batch["contents"].sources)


def make_steps() -> Use:
    """Return a training step of a model of one layer a part: forward, backward and AdamW."""
    config = MonkeyConfig.from_pretrained(CHECKPOINT)
    config.text_config.num_hidden_layers = config.vision_config.num_hidden_layers = 1
    config.text_config.layer_types = config.text_config.layer_types[:1]
    torch.manual_seed(0)
    model = MonkeyForConditionalGeneration(config).float().train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)

    def step(batch: dict[str, Any]) -> int:
        contents = batch.pop("contents")
        model(**batch, num_items_in_batch=torch.tensor(contents.weight), use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return len(contents.sources)

    return step


def planned(path: Path, processor: MonkeyProcessor, workers: int, use: Use = count_records) -> Callable[[], Any]:
    def run() -> None:
        shutil.rmtree(cache_folder() / "tokens", ignore_errors=True)  # which would spare all but the first their work
        dataset = ConversationDataset(open_records(path), processor, 2048, sharing="branches")
        dataset.prepare(check_images=False)
        plan = RowPlan(dataset.tokens.sizes, ROWS, lambda _: np.random.default_rng(0).permutation(len(dataset)), 1)
        loader = PlannedLoader(
            dataset,
            PlannedBatches(plan),
            collate_fn=PackedCollator(processor, ROWS.budget),
            num_workers=workers,
        )
        assert sum(map(use, loader)) == len(dataset)

    return run


def streamed(
    path: Path, processor: MonkeyProcessor, workers: int, count: int, use: Use = count_records
) -> Callable[[], Any]:
    def run() -> None:
        loader = streamed_loader(
            # One pass a block: the records of another would share images with it, which no plan's would.
            open_stream(path, processor, workers, min(512, count // max(1, workers)), ROWS),
            PackedCollator(processor, ROWS.budget),
            num_workers=workers,
        )
        given = 0
        for batch in loader:
            given += use(batch)
            if given >= count:
                return

    return run


def open_stream(path: Path, processor: MonkeyProcessor, workers: int, buffer: int, rows: RowSettings | None):
    settings = StreamSettings(buffer, 0, 8, rows, "branches" if rows else "apart", 2048)
    sets = [replace(one, stream=True) for one in record_sets(path)]
    return StreamedBatches(sets, processor, settings, workers=workers)


def grown_mebibytes(folder: Path, count: int, processor: MonkeyProcessor) -> dict[str, float]:
    """Return how much the process grew between a tenth and all of `count` records, in MiB, and its peak."""
    rows = [{"conversations": turns(number, "")} for number in range(count // 10)]
    for shard in range(10):
        pq.write_table(pa.Table.from_pylist(rows), folder / f"p-{shard}.parquet", row_group_size=1000)
    del rows
    batches = open_stream(folder / "p-*.parquet", processor, 0, 512, ROWS)
    collate, given, early = PackedCollator(processor, ROWS.budget), 0, 0.0
    for batch, _ in batches:
        given += count_records(collate(batch))
        early = early or (given >= count // 10) * resident()
        if given >= count:
            break
    return {"records": given, "grown_mib": round(resident() - early, 1), "resident_mib": round(resident(), 1)}


def resident() -> float:
    """MiB of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def compare_all(paths: dict[str, Path], count: int, options: argparse.Namespace, processor: MonkeyProcessor) -> None:
    """Print milliseconds a record of the file and of each other kind, and the ratios."""
    order, workers = np.random.default_rng(options.seed).permutation(count), options.workers
    runs = {
        "record": {kind: read_records(path, order) for kind, path in paths.items()},
        "sample": {kind: make_samples(path, order, processor) for kind, path in paths.items()},
    }
    for what, use in (("batches", count_records), ("steps", make_steps())):
        runs[what] = {kind: planned(path, processor, workers, use) for kind, path in paths.items()}
        for kind in ("parquet", "tar"):
            runs[what][f"{kind}, streamed"] = streamed(paths[kind], processor, workers, count, use)
    # Without loading processes all is done here, and what else the machine does is no part of it.
    clock = time.perf_counter if workers else time.process_time
    ratios, figures = {}, {}
    for what in options.what:
        sides = runs[what]
        baseline = sides.pop("json")
        for kind, ours in sides.items():
            before, after, ratios[f"{what}, {kind}"] = compare(baseline, ours, options.repeats, "cpu", clock=clock)
            milliseconds = [round(1000 * side / count, 3) for side in (before, after)]
            figures[f"{what}, {kind}"] = milliseconds
            print(
                f"{what:8} {kind:18} {milliseconds[0]:8.3f} {milliseconds[1]:8.3f} ms  ×{ratios[f'{what}, {kind}']:.2f}"
            )
    report("data_reading", ratios, {**vars(options), "records": count}, figures)


def main(words: list[str] | None = None) -> int:
    parser = arguments(__doc__)
    parser.add_argument("--records", type=int, default=800, help="in each kind")
    parser.add_argument("--side", type=int, default=336, help="of the images, in pixels")
    parser.add_argument("--what", nargs="+", choices=WHAT, default=WHAT, help="is compared")
    parser.add_argument("--workers", type=int, default=0, help="loading processes of the batches")
    parser.add_argument("--memory", type=int, metavar="N", help="records of a stream whose memory is measured")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    processor = MonkeyProcessor.from_pretrained(CHECKPOINT)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["MONKEY_CACHE"] = str(folder / "cache")
        if options.memory:
            grown = grown_mebibytes(folder, options.memory, processor)
            print(json.dumps(grown))
            return 0
        count = 160 if options.quick else options.records
        paths = write_data(folder, count, options.side)
        compare_all(paths, count, options, processor)
    return 0


if __name__ == "__main__":
    sys.exit(main())
