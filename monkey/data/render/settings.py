"""What a rendered set was made with. Two sets of equal settings are the same set, which is how one is reused."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from monkey.data.render.difficulty import Difficulty
from monkey.data.render.fonts import describe_font
from monkey.data.render.sheet import Scene
from monkey.data.render.tasks import Selection
from monkey.data.render.vocabulary import SPLITS, split_vocabulary

SMALLEST_IMAGE, LARGEST_IMAGE = 32, 2048


@dataclass(frozen=True)
class Settings:
    """Everything that decides a pixel or a word of the set. Counts are pictures, dealt round the tasks."""

    seed: int
    train: int
    heldout: int
    image_size: int
    selection: Selection
    difficulty: Difficulty
    fonts: tuple[str | None, ...] = (None,)
    """Font files to choose from; None is the one built into Pillow."""

    def check(self) -> None:
        """Raises ValueError naming the flag that cannot be followed."""
        if self.seed < 0:
            raise ValueError(f"--seed must not be negative, not {self.seed}")
        if not SMALLEST_IMAGE <= self.image_size <= LARGEST_IMAGE:
            raise ValueError(
                f"--image-size must lie between {SMALLEST_IMAGE} and {LARGEST_IMAGE} pixels, not at {self.image_size}"
            )
        tasks = len(self.selection)
        if self.train != 0 and self.train < tasks:
            raise ValueError(
                f"--train {self.train} leaves some of the {tasks} tasks without a picture; give {tasks} or more, or 0"
            )
        if self.heldout < tasks:
            raise ValueError(
                f"--heldout {self.heldout} leaves some of the {tasks} tasks without a picture; give {tasks} or more"
            )

    def scene(self, split: str) -> Scene:
        """What the drawing functions of one split may use."""
        return Scene(self.image_size, split_vocabulary(split, self.difficulty.digits), self.difficulty, self.fonts)

    def places(self, split: str) -> list[tuple[str, int]]:
        """(task, number within the task) of every picture of a split, the tasks in turn."""
        names = list(self.selection)
        count = dict(zip(SPLITS, (self.train, self.heldout), strict=True))[split]
        return [(names[index % len(names)], index // len(names)) for index in range(count)]

    def described(self) -> dict[str, Any]:
        """The settings as the manifest records them; fonts by name and content, not by where a machine keeps them."""
        return {
            "seed": self.seed,
            "train": self.train,
            "heldout": self.heldout,
            "image_size": self.image_size,
            "tasks": {task: list(kinds) for task, kinds in self.selection.items()},
            "difficulty": asdict(self.difficulty),
            "fonts": [describe_font(file) for file in self.fonts],
        }
