"""A tiny checkpoint with a dozen records, and runs of the trainer over them, for the tests of training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import torch
from PIL import Image
from safetensors.torch import load_file

from monkey.configuration import MonkeyConfig
from monkey.data.dataset import ConversationDataset
from monkey.data.mixture import open_records
from monkey.processing import MonkeyProcessor
from monkey.tokenization import QwenTokenizer
from monkey.training.arguments import parse_flags
from monkey.training.finetune import finetune
from tests.conftest import random_model
from tests.small_processor import CHECKPOINT, small_config

NO_DROPOUT = ("--vision_adapter_dropout", "0", "--lora_dropout", "0")
PACKED = ("--packing", "True", "--per_device_train_batch_size", "1", "--model_max_length", "64")
SAVE = ("--save_strategy", "steps", "--save_steps", "1")
COLOURS = ("red", "green", "blue", "black")


def conversation(question: str, answer: str) -> dict:
    return {
        "id": question,
        "conversations": [{"from": "user", "value": question}, {"from": "assistant", "value": answer}],
    }


def write_start(folder: Path) -> SimpleNamespace:
    """Write a tiny 2×2 checkpoint whose every tensor matters, and twelve records: ten with a picture, two without."""
    config = small_config(grid=(2, 2))
    random_model(config).save_pretrained(folder / "base")
    MonkeyProcessor.from_config(config, QwenTokenizer(CHECKPOINT / "qwen.tiktoken")).save_pretrained(folder / "base")
    records = []
    for index in range(10):
        colour = COLOURS[index % len(COLOURS)]
        Image.new("RGB", (40 + index, 30), colour).save(folder / f"{index}.png")
        question = f"<img>{index}.png</img> What colour" + " is this" * (index % 3) + "? Answer: "
        records.append(conversation(question, colour))
    records += [conversation("Say yes. Answer: ", "yes"), conversation("Count to three. Answer: ", "one two three")]
    (folder / "train.json").write_text(json.dumps(records))
    return SimpleNamespace(folder=folder, base=folder / "base", data=folder / "train.json", records=records)


def library_start(start, folder: Path, **text) -> SimpleNamespace:
    """The same start with a decoder of transformers, whose keys have fewer heads and whose head is tied.

    `text` are other fields of its configuration.
    """
    content = small_config(grid=(2, 2)).to_dict()
    content["text_config"] = {
        "model_type": "llama", "vocab_size": 1024, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
        "tie_word_embeddings": True, **text,
    }  # fmt: skip
    random_model(MonkeyConfig.from_dict(content)).save_pretrained(folder)
    MonkeyProcessor.from_pretrained(start.base).save_pretrained(folder)
    return SimpleNamespace(**{**vars(start), "base": folder})


def words_of(start, output: Path, *more: str) -> list[str]:
    return [
        "--model_name_or_path", str(start.base), "--data_path", str(start.data), "--output_dir", str(output),
        "--use_cpu", "True", "--dataloader_num_workers", "0", "--disable_tqdm", "True",
        "--per_device_train_batch_size", "4", "--learning_rate", "1e-3", "--lr_scheduler_type", "constant",
        "--logging_steps", "1", "--save_strategy", "no", "--max_steps", "2", *more,
    ]  # fmt: skip


def train(start, output: Path, *more: str) -> Path:
    return finetune(parse_flags(words_of(start, output, *more)))


def log(folder: Path) -> list[dict]:
    return json.loads((folder / "training_log.json").read_text())


def losses(folder: Path) -> list[float]:
    return [entry["loss"] for entry in log(folder) if "loss" in entry]


def dataset_of(start, **changes) -> ConversationDataset:
    settings = {"max_length": 2048, **changes}
    return ConversationDataset(list(open_records(start.data)), MonkeyProcessor.from_pretrained(start.base), **settings)


def with_records(start, tmp_path: Path, *records: dict) -> SimpleNamespace:
    """The same start, other records; the pictures are found through the folder of the file."""
    folder = tmp_path / "data"
    shutil.copytree(start.folder, folder, ignore=shutil.ignore_patterns("base"))
    (folder / "train.json").write_text(json.dumps(list(records)))
    return SimpleNamespace(folder=folder, base=start.base, data=folder / "train.json")


def same_weights(one: Path, other: Path) -> bool:
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
