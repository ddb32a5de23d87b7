"""From the flags to the samples of a run and the plan of its batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch.distributed as dist

from monkey.data.packing import BatchPlan, RowPlan, SampleSizes
from monkey.data.records import Record, Records, open_records
from monkey.processing import MonkeyProcessor
from monkey.training.arguments import Flags
from monkey.training.dataset import ConversationDataset, errors_as_raised


def training_samples(flags: Flags, processor: MonkeyProcessor) -> ConversationDataset:
    """The samples of `--data_path`; with `--overfit N` the first N records alone."""
    data = flags.data
    records: Sequence[Record] = open_records(
        data.data_path,
        data.image_root,
        root_name="--image_root",
        weights=data.data_weights,
        skip_bad_rows=data.skip_bad_rows,
    )
    if flags.training.process_index == 0:
        for notice in records.notices:
            print(f"note: {notice}")
    skipped = _sentences(records)
    if flags.run.overfit:
        records = [records[index] for index in range(min(flags.run.overfit, len(records)))]
    return _dataset(flags, " ".join(data.data_path), records, processor, skipped)


def held_out_samples(flags: Flags, processor: MonkeyProcessor) -> ConversationDataset:
    """The samples of `--eval_data_path`."""
    data = flags.data
    path = data.eval_data_path
    records = open_records(path, data.image_root, root_name="--image_root", skip_bad_rows=data.skip_bad_rows)
    return _dataset(flags, path, records, processor, _sentences(records))


def _sentences(records: Records) -> list[str]:
    """What was wrong with the rows that `open_records` left out."""
    return [sentence if source in sentence else f"{source}: {sentence}" for source, sentence in records.skipped]


def _dataset(
    flags: Flags, path: str, records: Sequence[Record], processor: MonkeyProcessor, skipped: list[str]
) -> ConversationDataset:
    """Records of a file as samples, checked now unless `--lazy_preprocess`."""
    data = flags.data
    dataset = ConversationDataset(
        records,
        processor,
        max_length=data.model_max_length,
        cache_images=data.cache_images,
        sharing=data.sharing,
        cache_tokens=data.cache_tokens,
        skip_bad=data.skip_bad_rows,
    )
    dataset.left_out += skipped
    if data.cache_images and flags.training.process_index == 0:
        print(f"--cache_images: up to {dataset.cache_bytes() / 2**20:,.0f} MiB for {path} in each loading process")
    # One process reads for all: a failing one makes the launcher stop the others. Packing measures what it trains on,
    # and checks it with that.
    measured = data.packing and path != data.eval_data_path
    if not data.lazy_preprocess and not measured:
        if flags.training.process_index == 0:
            dataset.check()
        if data.skip_bad_rows:
            dataset.leave_out(_of_first_process(flags, lambda: dataset.bad))
    if flags.training.process_index == 0 and not measured:
        _say_left_out(dataset)
    return dataset


def _say_left_out(dataset: ConversationDataset) -> None:
    for sentence in dataset.left_out:
        print(f"left out: {sentence}")


def _of_first_process(flags: Flags, made: Callable[[], Any]) -> Any:
    """What the first process makes, in all of them."""
    told = [made() if flags.training.process_index == 0 else None]
    if flags.training.world_size > 1:
        dist.broadcast_object_list(told)
    return told[0]


def batch_plan(flags: Flags, dataset: ConversationDataset) -> RowPlan | BatchPlan:
    """The batches of the whole run: the same for one process or many, and for a resumed run."""
    training = flags.training
    seed = training.seed if training.data_seed is None else training.data_seed

    def order_of(number: int) -> np.ndarray:
        if isinstance(dataset.records, Records):
            return dataset.records.epoch(number, seed)
        return np.random.default_rng((seed, number)).permutation(len(dataset))

    if not flags.data.packing:
        batch_size = training.per_device_train_batch_size
        return BatchPlan(order_of, batch_size, training.world_size, training.dataloader_drop_last)
    sizes = _sizes(flags, dataset)
    passes = None if training.max_steps > 0 else int(np.ceil(training.num_train_epochs))
    try:
        return RowPlan(sizes, flags.data.row_settings, order_of, passes, training.world_size)
    except ValueError as error:
        longest = int(sizes.tokens.argmax())
        raise ValueError(f"{dataset.records[longest].source}: {error}; raise --pack_tokens") from error


def _sizes(flags: Flags, dataset: ConversationDataset) -> SampleSizes:
    """Lengths of all samples: measured by the first process, told to the others."""

    def measured() -> tuple[Any, ...]:
        with errors_as_raised():
            sizes = dataset.sizes(not flags.data.lazy_preprocess, flags.training.dataloader_num_workers)
        return sizes, dataset.tokens, dataset.bad

    sizes, dataset.tokens, bad = _of_first_process(flags, measured)
    dataset.leave_out(bad)
    if flags.training.process_index == 0:
        _say_left_out(dataset)
    return sizes
