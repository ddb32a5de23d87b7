"""Processes that share a run: who works on what, who else is at work, and who is done.

Pictures are dealt by their bytes, picture i to process (SHA-256 mod n). No picture is claimed, so there is no claim to
be lost, no file system whose locks must hold across machines, and a process that is killed leaves nothing to clear
away: the same command goes on, and so does any other number of processes, once the old ones have ended. What a shared
queue would win is small, as every picture goes through the same models and hundreds of pictures even out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monkey.journal import describe_holder, hold, holder_of, write_atomic


@dataclass(frozen=True)
class Shard:
    """Process `index` of `count`, from 0."""

    index: int = 0
    count: int = 1

    def __str__(self) -> str:
        return f"{self.index}-of-{self.count}"


def shard_of(text: str | None, environment: Mapping[str, str]) -> Shard:
    """From `--shard i/n`, or from what torchrun sets. Raises ValueError for what is no shard."""
    if text is None:
        return Shard(int(environment.get("RANK", "0")), int(environment.get("WORLD_SIZE", "1")))
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None or not int(found[1]) < int(found[2]):
        raise ValueError(f"--shard {text!r} is no i/n with i from 0 and below n, as 0/4 is")
    return Shard(int(found[1]), int(found[2]))


class Workplace:
    """A run's journals, held by this process as one of its shards as long as the context is open.

    Args:
        settings: stands for the settings of the run; processes of other settings are refused.

    Raises ValueError when another process works on the same pictures or with other settings.
    """

    def __init__(self, folder: Path, shard: Shard, settings: str):
        self.folder, self.shard, self._settings = folder, shard, settings

    def __enter__(self) -> Workplace:
        self._context = ExitStack()
        with ExitStack() as context:
            note = {"settings": self._settings}
            # Written before the others are looked at: of two that start at once, one at least sees the other.
            context.enter_context(
                hold(self._path(self.shard), f"wait for shard {self.shard} to end", note, any_host=True)
            )
            self._refuse_others()
            self._finished(self.shard).unlink(missing_ok=True)
            self._context = context.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._context.close()

    def finish(self, pictures: str, problems: Sequence[Mapping[str, str]]) -> None:
        """Say that this process is done. `pictures` stands for the pictures that it saw in the folder."""
        content = {"settings": self._settings, "pictures": pictures, "problems": list(problems)}
        write_atomic(self._finished(self.shard), json.dumps(content, ensure_ascii=False))

    def waiting_for(self, pictures: str) -> list[Shard]:
        """The processes that are not done, or saw other pictures or settings."""
        return [shard for shard in self._all() if not self._is_done(shard, pictures)]

    def problems(self) -> list[Mapping[str, str]]:
        """What all processes failed on."""
        return [problem for shard in self._all() for problem in self._content(shard)["problems"]]

    def _all(self) -> list[Shard]:
        return [Shard(index, self.shard.count) for index in range(self.shard.count)]

    def _is_done(self, shard: Shard, pictures: str) -> bool:
        content = self._content(shard)
        return bool(content) and content["settings"] == self._settings and content["pictures"] == pictures

    def _content(self, shard: Shard) -> Mapping[str, Any]:
        path = self._finished(shard)
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def _path(self, shard: Shard) -> Path:
        return self.folder / f"{shard}.lock"

    def _finished(self, shard: Shard) -> Path:
        return self.folder / f"finished.{shard}.json"

    def _refuse_others(self) -> None:
        for path in sorted(self.folder.glob("[0-9]*-of-*.lock")):
            holder = None if path == self._path(self.shard) else holder_of(path)
            if holder is None:
                continue
            who = f"{self.folder.parent} is being written by {describe_holder(holder)}"
            if not path.name.endswith(f"-of-{self.shard.count}.lock"):
                raise ValueError(
                    f"{who} as shard {path.stem}, and this would be {self.shard}: pictures would be done twice; "
                    "wait for it, or start all with one number of shards"
                )
            if holder.get("settings", self._settings) != self._settings:
                raise ValueError(f"{who} with another configuration; wait for it, or give another --output")
