"""Letters by their places: what a vision transformer learns before it is joined to a decoder.

Published models begin from a vision transformer that four hundred million captions taught to see. Here pictures are
drawn, so every letter's place is known, and that teaches a small one in minutes: a linear map from each patch, and one
from each token behind the resampler, name the letters whose middles lie there. The maps are thrown away afterwards.

A patch is cut into `SLOTS` upright strips, each of which holds the middle of at most one letter; what a token has to
name are the strips of the patches that it stands over.

Shape letters: I pictures, N patches, Q tokens, P = N / Q patches of a token, S strips, K characters.
"""

from __future__ import annotations

import math
import random
import string
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn
from torch.utils.data import Dataset

from monkey.data.pages.filled import Letter, draw_filled
from monkey.image_processing import MonkeyImageProcessor
from monkey.vision import MonkeyVisionModel

CHARACTERS = string.digits + string.ascii_letters + ".,:-€£$/&@+'()"
"""What pages are made of, spaces and accents aside; class 0 is "no letter here"."""
SLOTS = 3
UNNAMED = -100
"""Two letters in one strip, or a character of no class: nothing is asked there."""

BLANK_WEIGHT = 0.2
"""Weight of strips without a letter, of which there are several times as many."""


def letter_targets(letters: Sequence[Letter], side: int, patch: int) -> np.ndarray:
    """Class of each strip of each patch [N, S] of a square image.

    Args:
        side: pixels of the image's side.
        patch: pixels of a patch's side.
    """
    patches = side // patch
    targets = np.zeros((patches, patches, SLOTS), dtype=np.int64)
    for letter in letters:
        if not (0 <= letter.x < side and 0 <= letter.y < side):
            continue
        place = int(letter.y // patch), int(letter.x // patch), int(letter.x % patch * SLOTS / patch)
        known = CHARACTERS.find(letter.character) + 1
        targets[place] = known if known and not targets[place] else UNNAMED
    return targets.reshape(-1, SLOTS)


class LetterPictures(Dataset):
    """Images of one window, drawn when asked for: number n of a seed and split is the same on every machine.

    Args:
        split: as of `monkey.data.pages`: `train`, `heldout` or `known`.
        length: how many there are.
    """

    def __init__(self, processor: MonkeyImageProcessor, patch: int, split: str, length: int, seed: int):
        self.side = processor.size["height"]
        self.processor, self.patch, self.split, self.length, self.seed = processor, patch, split, length, seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> dict[str, Any]:
        rng = random.Random(f"letters/{self.seed}/{self.split}/{number}")
        image, letters = draw_filled(rng, self.side, self.split)
        return {"picture": self.processor.canvas(image), "letters": letter_targets(letters, self.side, self.patch)}


class LetterNaming(nn.Module):
    """A vision model with the two linear maps that name letters.

    Args:
        visual: trained in place.

    Raises:
        ValueError: more than one view, or patches that do not fill the tokens' squares.
    """

    def __init__(self, visual: MonkeyVisionModel, processor: MonkeyImageProcessor):
        super().__init__()
        vision = visual.config.vision_config
        if visual.config.num_views != 1:
            raise ValueError(
                f"letters are learnt at one view; the model's grid={tuple(visual.config.grid)} and "
                f"global_view={visual.config.global_view} make {visual.config.num_views}"
            )
        self.queries = math.isqrt(vision.num_queries)
        if vision.patches_per_side % self.queries:
            raise ValueError(
                f"{vision.patches_per_side}×{vision.patches_per_side} patches do not fill the squares of "
                f"{self.queries}×{self.queries} tokens evenly"
            )
        self.visual, self.processor = visual, processor
        self.ratio = vision.patches_per_side // self.queries
        classes = len(CHARACTERS) + 1
        self.of_patch = nn.Linear(vision.hidden_size, SLOTS * classes)
        self.of_token = nn.Linear(visual.projection.shape[1], self.ratio**2 * SLOTS * classes)
        for head in (self.of_patch, self.of_token):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        weight = torch.ones(classes)
        weight[0] = BLANK_WEIGHT
        self.register_buffer("class_weight", weight, persistent=False)

    def forward(self, picture: torch.Tensor, letters: torch.Tensor) -> dict[str, torch.Tensor]:
        """`loss`, and `hits` [2]: letters that the token's map names, and all of them.

        Args:
            picture: bytes [I, 3, side, side].
            letters: classes [I, N, S].
        """
        pixels = self.processor.normalised(picture)
        patches: list[torch.Tensor] = []
        handle = self.visual.resampler.register_forward_pre_hook(lambda _, arguments: patches.append(arguments[0]))
        try:
            tokens = self.visual(pixels)
        finally:
            handle.remove()
        of_token = rearrange(
            self.of_token(tokens),
            "i (y x) (v u s k) -> (i y v x u s) k",
            y=self.queries,
            v=self.ratio,
            u=self.ratio,
            s=SLOTS,
        ).float()
        of_patch = rearrange(self.of_patch(patches[0]), "i n (s k) -> (i n s) k", s=SLOTS).float()
        wanted = letters.flatten()
        loss = sum(F.cross_entropy(found, wanted, self.class_weight) for found in (of_token, of_patch))
        # Without an index of those asked, for whose length a GPU would have to be waited for.
        asked = wanted > 0
        hits = ((of_token.argmax(-1) == wanted) & asked).sum()
        return {"loss": loss, "hits": torch.stack([hits, asked.sum()])}


def collate_pictures(samples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """One batch of `LetterPictures`."""
    return {name: torch.from_numpy(np.stack([sample[name] for sample in samples])) for name in ("picture", "letters")}
