"""Checkpoint folders with one thing wrong, made systematically: whole files, every key of every JSON, the weights.

python -m tests.malformed [--every N]      # counts those that end in anything but an answer or one sentence
"""

from __future__ import annotations

import argparse
import collections
import copy
import json
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import monkey
from monkey.adapters import add_decoder_lora, save_adapter
from monkey.checkpoint import published_names
from monkey.flat_config import published_config
from tests.conftest import random_model
from tests.small_processor import CHECKPOINT, picture, small_config, small_processor

DEEP = 100_000
REMOVED = object()

WHOLE = {
    "list": b"[]",
    "number": b"3",
    "null": b"null",
    "text": b'"text"',
    "true": b"true",
    "object": b"{}",
    "empty": b"",
    "words": b"hello",
    "cut": b'{"a": ',
    "not UTF-8": b'{"a": "\xff"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "deep list": b"[" * DEEP,
    "deep object": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "many digits": b'{"a": ' + b"9" * 10_000 + b"}",
    "git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 5278\n",
}
"""Contents of a whole file."""

VALUES: dict[str, Any] = {
    "removed": REMOVED,
    "list": [],
    "list of a number": [1],
    "object": {},
    "object of a list": {"a": [1]},
    "null": None,
    "text": "text",
    "empty text": "",
    "true": True,
    "minus one": -1,
    "zero": 0,
    "ten million": 10**7,
    "thirty digits": 10**30,
    "half": 0.5,
    "NaN": float("nan"),
    "infinity": float("inf"),
    "deep": json.loads("[" * 900 + "]" * 900),
}
"""Values of one key."""

Fault = tuple[str, Callable[[Path], None]]
"""What is wrong, and a function that does it to a folder."""


def base_folders(parent: Path) -> list[Path]:
    """A sharded own save, a published folder of one `.bin`, and an adapter on the first."""
    own, published, adapter = parent / "own", parent / "published", parent / "adapter"
    model = random_model(small_config())
    model.save_pretrained(own, max_shard_size="100KB")
    small_processor().save_pretrained(own)
    published.mkdir()
    (published / "config.json").write_text(json.dumps(published_config(model.config, "float32")), encoding="utf-8")
    torch.save(published_names(model, dict(model.state_dict())), published / "pytorch_model.bin")
    for name in ("qwen.tiktoken", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(CHECKPOINT / name, published / name)
    based = monkey.MonkeyForConditionalGeneration.from_pretrained(own)
    save_adapter(add_decoder_lora(based, SimpleNamespace(lora_r=4, lora_alpha=8, lora_dropout=0.0)), adapter)
    return [own, published, adapter]


def faults(folder: Path) -> Iterator[Fault]:
    """Every fault of this module that a folder can have."""
    for path in sorted(folder.iterdir()):
        yield f"{path.name} is missing", lambda target, name=path.name: (target / name).unlink()
        for what, content in WHOLE.items():
            yield (
                f"{path.name} holds {what}",
                lambda target, name=path.name, content=content: (target / name).write_bytes(content),
            )
        if path.suffix == ".json":
            for keys in _places(json.loads(path.read_text(encoding="utf-8"))):
                for what, value in VALUES.items():
                    yield (
                        f"{path.name}: {'.'.join(map(str, keys))} is {what}",
                        lambda target, name=path.name, keys=keys, value=value: _set(target / name, keys, value),
                    )
        if path.suffix in (".safetensors", ".bin"):
            for what, change in WEIGHTS.items():
                yield (
                    f"{path.name} is {what}",
                    lambda target, name=path.name, change=change: change_weights(target / name, change),
                )


WEIGHTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "int32": lambda tensor: tensor.to(torch.int32),
    "bool": lambda tensor: tensor.to(torch.bool),
    "complex": lambda tensor: tensor.to(torch.complex64),
    "NaN": lambda tensor: torch.full_like(tensor, torch.nan),
    "transposed": lambda tensor: tensor.T.contiguous() if tensor.ndim == 2 else tensor,
    "empty": lambda tensor: tensor[:0].clone(),
}


def _places(content: Any, keys: tuple = ()) -> Iterator[tuple]:
    """The keys to each value in a JSON; only the first members of long objects and lists."""
    members = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for count, (key, value) in enumerate(members):
        if (isinstance(content, list) and count >= 1) or (keys[-1:] == ("weight_map",) and count >= 2):
            break
        yield (*keys, key)
        yield from _places(value, (*keys, key))


def _set(path: Path, keys: tuple, value: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    place = content
    for key in keys[:-1]:
        place = place[key]
    if value is REMOVED:
        del place[keys[-1]]
    else:
        place[keys[-1]] = copy.copy(value)
    path.write_text(json.dumps(content), encoding="utf-8")


def change_weights(path: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    tensors = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    changed = {name: change(tensor) for name, tensor in tensors.items()}
    path.unlink()  # may be a link to what was copied
    if path.suffix == ".safetensors":
        save_file(changed, path, metadata={"format": "pt"})
    else:
        torch.save(changed, path)


def opened_or_refused(folder: Path) -> str:
    """What a folder's opening and a question come to: "answered", or the sentence of a refusal; errors otherwise.

    Raises:
        AssertionError: a refusal of more than one line.
        Exception: whatever is not a refusal.
    """
    try:
        with monkey.load(folder, "cpu") as model:
            model.ask(picture(), "Why?", monkey.Decoding(1)).text  # noqa: B018
    except (ValueError, OSError) as error:
        message = str(error)
        if "\n" in message or not 10 < len(message) < 1000 or isinstance(error, UnicodeError):
            raise AssertionError(f"no sentence: {message}") from error
        return message
    return "answered"


def try_fault(base: Path, scratch: Path, fault: Callable[[Path], None]) -> str:
    folder = Path(tempfile.mkdtemp(dir=scratch))
    try:
        shutil.copytree(base, folder, dirs_exist_ok=True)
        fault(folder)
        return opened_or_refused(folder)
    finally:
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, metavar="N", help="try one fault in so many")
    parser.add_argument("--seconds", type=int, default=20, help="a try that takes longer hangs")
    options = parser.parse_args()
    ends: collections.Counter[str] = collections.Counter()
    signal.signal(signal.SIGALRM, _stop)
    with tempfile.TemporaryDirectory() as parent:
        for base in base_folders(Path(parent)):
            for what, fault in list(faults(base))[:: options.every]:
                signal.alarm(options.seconds)
                try:
                    end = try_fault(base, Path(parent), fault)
                    kind = "answered" if end == "answered" else "refused"
                except Exception as error:
                    kind = "failed"
                    place = traceback.extract_tb(error.__traceback__)[-1]
                    end = f"{type(error).__name__}: {str(error)[:300]!r} at {Path(place.filename).name}:{place.lineno}"
                finally:
                    signal.alarm(0)
                ends[kind] += 1
                print(kind, base.name, what, end, sep="\t", flush=True)
    print(dict(ends), file=sys.stderr)


def _stop(*_: object) -> None:
    raise RuntimeError("hangs")


if __name__ == "__main__":
    main()
