"""Recipes: which parts of the model train.

A recipe is the set of parts (`monkey.parts`) that train. To add one, add a row.

Names: `full-llm` decoder, resampler, window adapters; `lora-llm` the same with decoder adapters instead of the
decoder; `qlora-llm` that on a decoder in 4 bits; `adapters-only` the window adapters alone; `everything`;
`lora-llm-vision` is `lora-llm` with the vision transformer.

Sources: `full-llm` is what the published script trains with `--fix_vit True` (the decoder, the resampler, the window
adapters; the resampler's final norm and projection stay frozen), `lora-llm` its 24 GB variant. The published code
also trained the resampler's sin-cos position table, by accident: here that table never trains, unless `--published`
asks for it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from monkey.parts import PARTS, base_model, part_of

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Recipe:
    """What trains."""

    name: str
    trains: frozenset[str]
    """Names of parts."""
    decoder_lora: bool = False
    """Whether the decoder is to have adapters: PEFT's are put on unless the checkpoint was built with its own."""
    four_bit: bool = False
    """Whether the decoder's linears are held in 4 bits."""

    @property
    def fix_vit(self) -> bool:
        """The published flag's value."""
        return "vision transformer" not in self.trains

    def as_published(self) -> Recipe:
        """With the resampler's sin-cos position table trained too, as the published code does."""
        if "resampler" not in self.trains:
            raise ValueError(
                f"--published trains the resampler's position table, but {self.name} freezes the resampler"
            )
        return replace(self, name=f"{self.name}, published", trains=self.trains | {"position table"})


_VISION_TRAINED = frozenset({"window adapters", "resampler"})
_VISION = _VISION_TRAINED | {"vision transformer", "vision projection"}
_DECODER = frozenset({"decoder", "decoder adapters"})

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("full-llm", _VISION_TRAINED | _DECODER),
        Recipe("lora-llm", _VISION_TRAINED | {"decoder adapters"}, decoder_lora=True),
        Recipe("qlora-llm", _VISION_TRAINED | {"decoder adapters"}, decoder_lora=True, four_bit=True),
        Recipe("adapters-only", frozenset({"window adapters"})),
        Recipe("everything", _VISION | _DECODER),
        Recipe("lora-llm-vision", _VISION | {"decoder adapters"}, decoder_lora=True),
    )
}

# Published flags (--fix_vit, --use_lora, --q_lora) -> recipe.
_BY_PUBLISHED_FLAGS = {
    (True, False, False): "full-llm",
    (True, True, False): "lora-llm",
    (True, True, True): "qlora-llm",
    (False, False, False): "everything",
    (False, True, False): "lora-llm-vision",
}


def choose_recipe(
    name: str | None = None, fix_vit: bool | None = None, use_lora: bool | None = None, q_lora: bool | None = None
) -> Recipe:
    """The recipe of `--recipe`, or of the published flags; None is a flag that was not given.

    Raises:
        ValueError: an unknown name, flags that contradict it, or a combination that is no recipe.
    """
    if name is None:
        wanted = (fix_vit is not False, bool(use_lora or q_lora), bool(q_lora))
        if use_lora is False and q_lora:
            raise ValueError("--q_lora True needs adapters to train, but --use_lora is False: leave --use_lora out")
        if wanted not in _BY_PUBLISHED_FLAGS:
            raise ValueError("--q_lora True with --fix_vit False is no recipe: a 4-bit decoder goes with a frozen ViT")
        return RECIPES[_BY_PUBLISHED_FLAGS[wanted]]
    if name not in RECIPES:
        raise ValueError(f"--recipe {name} is unknown: give one of {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    implied = {"fix_vit": recipe.fix_vit, "use_lora": recipe.decoder_lora, "q_lora": recipe.four_bit}
    for flag, given in (("fix_vit", fix_vit), ("use_lora", use_lora), ("q_lora", q_lora)):
        if given is not None and given != implied[flag]:
            raise ValueError(f"--{flag} {given} contradicts --recipe {name}, which means {implied[flag]}: give one")
    return recipe


@dataclass(frozen=True)
class PartCount:
    """One line of the printed table."""

    part: str
    trains: bool
    parameters: int

    def __str__(self) -> str:
        state = "[trainable]" if self.trains else "[frozen]"
        return f"{state:<12} {self.part:<18} {self.parameters:>16,}"


def apply_recipe(model: nn.Module, recipe: Recipe) -> list[PartCount]:
    """Let exactly the recipe's parts train; return the parameter count of each part that the model has."""
    counts = dict.fromkeys(PARTS, 0)
    for name, parameter in base_model(model).named_parameters():
        part = part_of(name)
        parameter.requires_grad_(part in recipe.trains)
        # ZeRO-3 leaves an empty tensor and the real count beside it.
        counts[part] += getattr(parameter, "ds_numel", parameter.numel())
    return [PartCount(part, part in recipe.trains, count) for part, count in counts.items() if count]


def recipe_table(recipe: Recipe, counts: list[PartCount]) -> str:
    """The printed table: recipe, each part, totals."""
    trained = sum(count.parameters for count in counts if count.trains)
    total = sum(count.parameters for count in counts)
    lines = [f"recipe {recipe.name}: {trained:,} of {total:,} parameters train", *(f"  {count}" for count in counts)]
    return "\n".join(lines)
