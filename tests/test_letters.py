"""Letters by their places: each is asked for where it was drawn, and a vision side learns from it."""

from __future__ import annotations

import random
import shutil
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("faker", reason="words of pages are Faker's (requirements.txt)")

from monkey import MonkeyForConditionalGeneration, MonkeyProcessor
from monkey.data.pages import filled
from monkey.data.pages.filled import Letter, draw_filled
from monkey.data.pages.spelling import SHARED, is_held_out
from monkey.training.letters import (
    CHARACTERS,
    SLOTS,
    UNNAMED,
    LetterNaming,
    LetterPictures,
    collate_pictures,
    letter_targets,
)
from scripts.learn_letters import main
from scripts.new_model import new_model
from scripts.set_grid import set_grid
from tests.test_small_model import READER

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "letters" / "reader.yaml"
SIDE, PATCH = 112, 8


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return new_model(READER, tmp_path_factory.mktemp("letters") / "base", seed=1, merge=True)


def pictures(base: Path, split: str = "train", length: int = 8) -> LetterPictures:
    return LetterPictures(MonkeyProcessor.from_pretrained(base).image_processor, PATCH, split, length, seed=3)


def test_a_letter_is_asked_for_in_the_strip_that_holds_its_middle():
    found = letter_targets([Letter("7", 17.0, 30.0, 8), Letter("b", 111.9, 0.0, 8)], SIDE, PATCH)
    assert found.shape == ((SIDE // PATCH) ** 2, SLOTS)
    assert found[3 * 14 + 2].tolist() == [CHARACTERS.index("7") + 1, 0, 0]
    assert found[13].tolist() == [0, 0, CHARACTERS.index("b") + 1]
    assert np.count_nonzero(found) == 2


def test_two_letters_in_one_strip_and_unknown_characters_are_not_asked_for():
    found = letter_targets([Letter("i", 1.0, 4.0, 8), Letter("l", 2.0, 4.0, 8), Letter("é", 20.0, 4.0, 8)], SIDE, PATCH)
    assert found[0].tolist() == [UNNAMED, 0, 0]
    assert found[2].tolist() == [0, UNNAMED, 0]


@pytest.mark.parametrize("is_clean", [True, False])
def test_there_is_ink_where_letters_are_said_to_be(monkeypatch, is_clean):
    monkeypatch.setattr(filled, "CLEAN", float(is_clean))
    with_ink, letters_in_all = 0, 0
    for number in range(12):
        image, letters = draw_filled(random.Random(number), SIDE, ("train", "heldout")[number % 2])
        pixels = np.asarray(image.convert("L"), dtype=int)
        assert pixels.shape == (SIDE, SIDE)
        for letter in letters:
            x, y, reach = round(letter.x), round(letter.y), round(0.7 * letter.height)
            if letter.character.isalnum() and reach <= min(x, y) and max(x, y) < SIDE - reach:
                around = pixels[y - reach : y + reach + 1, x - 2 : x + 3]
                with_ink += around.max() - around.min() > 40
                letters_in_all += 1
    assert letters_in_all > 400
    assert with_ink > 0.97 * letters_in_all


def test_letters_stand_one_behind_the_other():
    font = filled._font(filled.FAMILIES[0], 400, 20)
    places = filled._advances(font, "Wi ll")
    assert [character for character, *_ in places] == ["W", "i", "l", "l"]
    assert places[0][1] == 0
    assert places[-1][2] == font.getlength("Wi ll")
    assert all(before < after <= following for (_, before, after), (_, following, _) in pairwise(places))


def test_filled_images_of_the_held_out_splits_spell_nothing_of_train(monkeypatch):
    said: dict[bool, set[str]] = {True: set(), False: set()}
    typefaces: dict[str, set] = {"train": set(), "known": set(), "heldout": set()}
    makers, font = filled._text_makers, filled._font

    def noted(writer):
        def note(make):
            text = make()
            said[writer.held_out].add(text)
            return text

        return [partial(note, make) for make in makers(writer)]

    monkeypatch.setattr(filled, "_text_makers", noted)
    for split, names in typefaces.items():
        monkeypatch.setattr(filled, "_font", lambda family, *how, names=names: names.add(family) or font(family, *how))
        for number in range(10):
            draw_filled(random.Random(number), SIDE, split)
    for held_out, texts in said.items():
        words = {text for text in texts if text.isalpha() and len(text) > 1 and text.casefold() not in SHARED}
        assert len(words) > 20
        assert {is_held_out(word) for word in words} == {held_out}
    assert typefaces["heldout"] <= set(filled.HELD_OUT_FAMILIES)
    assert typefaces["train"] | typefaces["known"] <= set(filled.FAMILIES)


def test_a_picture_is_the_same_whenever_and_wherever_it_is_drawn(base):
    first, again = pictures(base), pictures(base)
    again[0]
    for number in (3, 7):
        for name in ("picture", "letters"):
            assert np.array_equal(first[number][name], again[number][name])
    assert not np.array_equal(first[3]["picture"], first[7]["picture"])


def test_letters_are_learnt_at_one_view_only(base, tmp_path):
    grown = set_grid(base, tmp_path / "grid", (2, 2))
    model = MonkeyForConditionalGeneration.from_pretrained(grown)
    with pytest.raises(ValueError, match=r"grid=\(2, 2\) and global_view=True make 5"):
        LetterNaming(model.model.visual, MonkeyProcessor.from_pretrained(grown).image_processor)


class Told(nn.Module):
    """In the place of a vision model: tokens that say what stands under them."""

    def __init__(self, visual: nn.Module, letters: torch.Tensor):
        super().__init__()
        self.config, self.projection, self.resampler = visual.config, visual.projection, nn.Identity()
        self.letters = letters

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        images, side, classes = len(pixels), SIDE // PATCH, len(CHARACTERS) + 1
        self.resampler(torch.zeros(images, side**2, self.config.vision_config.hidden_size))
        found = torch.zeros(images, side**2 // 4, 4, SLOTS, classes)
        for row in range(side):
            for column in range(side):
                token, inside = row // 2 * (side // 2) + column // 2, row % 2 * 2 + column % 2
                strips = self.letters[:, row * side + column].clamp(min=0)
                found[:, token, inside] = nn.functional.one_hot(strips, classes).float()
        return found.flatten(2)


def test_a_token_is_asked_for_the_patches_that_it_stands_over(base):
    batch = collate_pictures([pictures(base)[number] for number in range(4)])
    model = MonkeyForConditionalGeneration.from_pretrained(base)
    processor = MonkeyProcessor.from_pretrained(base).image_processor
    naming = LetterNaming(model.model.visual, processor)
    naming.visual, naming.of_token = Told(model.model.visual, batch["letters"]), nn.Identity()
    right, asked = naming(**batch)["hits"].tolist()
    assert right == asked == (batch["letters"] > 0).sum()


def test_a_vision_side_learns_letters(base):
    torch.manual_seed(0)
    model = MonkeyForConditionalGeneration.from_pretrained(base)
    naming = LetterNaming(model.model.visual, MonkeyProcessor.from_pretrained(base).image_processor)
    batch = collate_pictures([pictures(base)[number] for number in range(2)])
    trained = [parameter for parameter in naming.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=2e-3)
    losses = []
    for _ in range(60):
        result = naming(**batch)
        optimizer.zero_grad()
        result["loss"].backward()
        optimizer.step()
        losses.append(result["loss"].item())
    right, asked = naming(**batch)["hits"].tolist()
    assert losses[-1] < losses[0] / 4
    assert right > asked / 4


def learn(base: Path, target: Path) -> int:
    sizes = "--max_steps=4 --save_steps=2 --logging_steps=1 --per_device_train_batch_size=2 --save_total_limit=3"
    return main([str(base), str(target), "--config", str(CONFIG), *sizes.split(), "--dataloader_num_workers=0"])


def test_a_run_that_was_cut_short_ends_where_it_would_have_ended(base, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("scripts.learn_letters.HELD_OUT", 2)
    kept = tmp_path / "kept"
    removed = shutil.rmtree
    monkeypatch.setattr("scripts.learn_letters.shutil.rmtree", lambda folder: shutil.copytree(folder, kept))
    assert learn(base, tmp_path / "whole") == 0
    monkeypatch.setattr("scripts.learn_letters.shutil.rmtree", removed)
    running = tmp_path / ".again-running"
    shutil.copytree(kept / "checkpoint-2", running / "checkpoint-2")
    assert learn(base, tmp_path / "again") == 0
    first, second = (
        MonkeyForConditionalGeneration.from_pretrained(tmp_path / name).state_dict() for name in ("whole", "again")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert {"run.json", "training_log.json", "loss_curve.png"} <= {path.name for path in (tmp_path / "again").iterdir()}
    assert not running.exists()
    assert learn(base, tmp_path / "again") == 2
    assert "exists already" in capsys.readouterr().err


def test_a_wrong_setting_is_one_sentence(base, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(base), str(tmp_path / "new"), "--config", str(CONFIG), "--max_steps=many"])
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
