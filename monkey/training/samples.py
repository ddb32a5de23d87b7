"""From the flags to the samples of a run and the plan of its batches."""

from __future__ import annotations

from collections.abc import Sequence
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
        for source, sentence in records.skipped:
            print(f"left out: {sentence if source in sentence else f'{source}: {sentence}'}")
    if flags.run.overfit:
        records = [records[index] for index in range(min(flags.run.overfit, len(records)))]
    return _dataset(flags, " ".join(data.data_path), records, processor)


def held_out_samples(flags: Flags, processor: MonkeyProcessor) -> ConversationDataset:
    """The samples of `--eval_data_path`."""
    path = flags.data.eval_data_path
    records = open_records(path, flags.data.image_root, root_name="--image_root")
    return _dataset(flags, path, records, processor)


def _dataset(flags: Flags, path: str, records: Sequence[Record], processor: MonkeyProcessor) -> ConversationDataset:
    """Records of a file as samples, checked now unless `--lazy_preprocess`."""
    data = flags.data
    dataset = ConversationDataset(
        records,
        processor,
        max_length=data.model_max_length,
        cache_images=data.cache_images,
        sharing=data.sharing,
        cache_tokens=data.cache_tokens,
    )
    if data.cache_images and flags.training.process_index == 0:
        print(f"--cache_images: up to {dataset.cache_bytes() / 2**20:,.0f} MiB for {path} in each loading process")
    # One process reads for all: a failing one makes the launcher stop the others. Packing measures what it trains on,
    # and checks it with that.
    measured = data.packing and path != data.eval_data_path
    if not data.lazy_preprocess and not measured and flags.training.process_index == 0:
        dataset.check()
    return dataset


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
    training = flags.training
    told: list[Any] = [None, None]
    if training.process_index == 0:
        with errors_as_raised():
            sizes = dataset.sizes(not flags.data.lazy_preprocess, training.dataloader_num_workers)
        told = [sizes, dataset.tokens]
    if training.world_size > 1:
        dist.broadcast_object_list(told)
    sizes, dataset.tokens = told
    return sizes
