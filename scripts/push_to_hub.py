"""Upload a checkpoint or an adapter folder to the hub, with its card.

    python scripts/push_to_hub.py outputs/mine OWNER/NAME                 # private unless --public
    python scripts/push_to_hub.py outputs/mine OWNER/NAME --dry-run       # what would go where

Log in before (`hf auth login`, or HF_TOKEN). Weights, settings, processor, card and the record of training go, in one
commit; checkpoints on the way (checkpoint-*, best), logs of TensorBoard and hidden files stay. What is there already
under the same name is replaced, other files of the repository stay.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from monkey.cli import ArgumentParser, run_program

LEFT_OUT = ("checkpoint-*", "runs", ".*", "*.lock", "__pycache__", "best")
CARD = "README.md"


def files_to_push(folder: Path) -> list[Path]:
    """Return the files of a finished checkpoint that go, in order.

    Raises FileNotFoundError or ValueError for what is none: no settings, no weights, no card.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such checkpoint folder")
    is_adapter = (folder / "adapter_config.json").is_file()
    settings = "adapter_config.json" if is_adapter else "config.json"
    if not (folder / settings).is_file():
        raise FileNotFoundError(f"{folder} has no {settings}, so it is no checkpoint")
    if not list(folder.glob("adapter_model.safetensors" if is_adapter else "*.safetensors")):
        raise FileNotFoundError(f"{folder} has no weights (.safetensors); pickled ones are not uploaded")
    if not (folder / CARD).is_file():
        raise FileNotFoundError(
            f"{folder / CARD} is missing: people have to know what the model is, what it learnt from and its licence; "
            "training writes one, and docs/cards.md says what belongs there"
        )
    if not re.match(r"---\n(.*\n)*?license:", (folder / CARD).read_text(encoding="utf-8")):
        raise ValueError(f"{folder / CARD} names no licence: its first lines are to be ---, license: …, ---")
    found = [path for path in folder.rglob("*") if path.is_file()]
    return sorted(path for path in found if not any(_is_left_out(part) for part in path.relative_to(folder).parts))


def _is_left_out(part: str) -> bool:
    return any(Path(part).match(pattern) for pattern in LEFT_OUT)


def push(folder: Path, name: str, is_public: bool, message: str) -> str:
    """Upload in one commit and return its address. Errors of the hub are ValueError in one sentence."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    files = files_to_push(folder)
    try:
        api = HfApi()
        api.create_repo(name, private=not is_public, exist_ok=True)
        return api.upload_folder(
            repo_id=name,
            folder_path=folder,
            allow_patterns=[path.relative_to(folder).as_posix() for path in files],
            commit_message=message,
        ).commit_url
    except LocalTokenNotFoundError as error:
        raise ValueError("not logged in to the hub: `hf auth login`, or set HF_TOKEN") from error
    except OfflineModeIsEnabled as error:
        raise ValueError("HF_HUB_OFFLINE is set, so nothing can be uploaded: unset it") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no status"
        raise ValueError(f"the hub refused {name} ({status}): {error.server_message or error}") from error


def main(words: list[str] | None = None) -> int:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a finished checkpoint, or an adapter's folder")
    parser.add_argument("name", help="OWNER/NAME on the hub; made if it is not there")
    parser.add_argument("--public", action="store_true", help="a new repository may be seen by everyone")
    parser.add_argument("--message", default="Upload a checkpoint", help="of the commit (%(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="print what would be uploaded, and upload nothing")
    options = parser.parse_args(words)

    def program() -> None:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", options.name):
            raise ValueError(f"{options.name} is no name on the hub: OWNER/NAME, of letters, digits, - _ and .")
        files = files_to_push(options.folder)
        for path in files:
            print(f"{path.stat().st_size / 2**20:>10.1f} MiB  {path.relative_to(options.folder)}")
        if options.dry_run:
            print(f"{len(files)} files would go to {options.name}")
        else:
            print(push(options.folder, options.name, options.public, options.message))

    return run_program(program, "interrupted; nothing was committed, and the same command begins again")


if __name__ == "__main__":
    sys.exit(main())
