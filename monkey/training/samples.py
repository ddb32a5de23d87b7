"""From the flags to the samples of a run and the plan of its batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch.distributed as dist

from monkey.data.dataset import ConversationDataset
from monkey.data.mixture import Records, open_records
from monkey.data.packing import BatchPlan, RowPlan
from monkey.data.records import Record
from monkey.processing import MonkeyProcessor
from monkey.training.arguments import Flags


def training_samples(flags: Flags, processor: MonkeyProcessor) -> ConversationDataset:
    """Return the samples of `--data_path`; with `--overfit N` the first N records alone."""
    data = flags.data
    records = open_records(data.data_path, data.image_root, "--image_root", data.data_weights)
    if flags.training.process_index == 0:
        for notice in records.notices:
            print(f"note: {notice}")
    chosen = [records[index] for index in range(min(flags.run.overfit, len(records)))] if flags.run.overfit else records
    return _dataset(flags, " ".join(data.data_path), chosen, processor, data.packing)


def held_out_samples(flags: Flags, processor: MonkeyProcessor) -> ConversationDataset:
    """Return the samples of `--eval_data_path`."""
    data = flags.data
    records = open_records(data.eval_data_path, data.image_root, "--image_root")
    return _dataset(flags, data.eval_data_path, records, processor, packing=False)


def _dataset(
    flags: Flags, path: str, records: Sequence[Record], processor: MonkeyProcessor, packing: bool
) -> ConversationDataset:
    """Return records as samples: encoded now unless they are met as they come, which a plan or a list cannot do."""
    data = flags.data
    is_first = flags.training.process_index == 0
    dataset = ConversationDataset(
        records, processor, data.model_max_length, data.cache_images, data.sharing, data.skip_bad_rows
    )
    if data.cache_images and is_first:
        print(f"--cache_images: up to {dataset.cache_bytes() / 2**20:,.0f} MiB for {path} in each loading process")
    if packing or data.skip_bad_rows or not data.lazy_preprocess:
        _prepare_together(flags, dataset)
        dataset.leave_out(dataset.bad)
    if is_first:
        for notice in dataset.notices:
            print(f"note: {notice}")
        for sentence in dataset.left_out:
            print(f"left out: {sentence}")
    return dataset


def _prepare_together(flags: Flags, dataset: ConversationDataset) -> None:
    """Encode every record in the first process and let the others have it; one that fails ends them all."""
    training, is_first = flags.training, flags.training.process_index == 0
    if is_first:
        dataset.prepare(not flags.data.lazy_preprocess, training.dataloader_num_workers)
    if training.world_size == 1:
        return
    told = [(dataset.tokens.folder or dataset.tokens, dataset.bad) if is_first else None]
    dist.broadcast_object_list(told)
    if not is_first:
        made, dataset.bad = told[0]
        dataset.tokens = dataset.take_up(made) if isinstance(made, Path) else made
        if dataset.tokens is None:  # another machine, which does not see the cache folder of the first
            dataset.prepare(check_images=False)


def batch_plan(flags: Flags, dataset: ConversationDataset) -> RowPlan | BatchPlan:
    """Return the batches of the whole run: the same for one process or many, and for a resumed run."""
    training = flags.training
    seed = training.seed if training.data_seed is None else training.data_seed

    def order_of(number: int) -> np.ndarray:
        if isinstance(dataset.records, Records):
            return dataset.records.epoch(number, seed)
        return np.random.default_rng((seed, number)).permutation(len(dataset))

    if not flags.data.packing:
        batch_size = training.per_device_train_batch_size
        return BatchPlan(order_of, batch_size, training.world_size, training.dataloader_drop_last)
    sizes = dataset.tokens.sizes
    passes = None if training.max_steps > 0 else int(np.ceil(training.num_train_epochs))
    try:
        return RowPlan(sizes, flags.data.row_settings, order_of, passes, training.world_size)
    except ValueError as error:
        longest = int(sizes.tokens.argmax())
        raise ValueError(f"{dataset.records[longest].source}: {error}; raise --pack_tokens") from error
