"""Images a second of each description stage, one image at a time beside batches, outputs compared in the same run.

    python -m benchmarks.describe
    python -m benchmarks.describe --quick
    python -m benchmarks.describe --device cuda --dtype bfloat16 --models FOLDER --batch-size 16

A chain of experts goes over drawn pages: BLIP-2, Florence-2, SAM, a language model of transformers, and RapidOCR's
own models. FOLDER holds the models' folders, named as in MODELS; without it they are made here, with random weights and
so tiny that their figures say what the code around them costs, not what a model does. The baseline asks each expert
about one image at a time and, in it, one crop at a time, as the published scripts do; ours hands over batches. SAM
and RapidOCR take images one by one on both sides. In float32 outputs must be equal; below it, a batch rounds
otherwise, words may change with it, and the share of images with equal outputs is a figure.

Ratios, baseline / ours in time: `describe_speedup` of the whole chain of models, `transformers_speedup` without
opening, reading and filters, and `<stage>_speedup`. Figures: by stage images a second and the share of the
chain's time, of both sides.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.measure import arguments, compare, report
from monkey.data.pages.drawing import Limits
from monkey.data.pages.page_sets import Settings, write_set
from monkey.describe.experts import Expert, Failure, Item, free_memory
from monkey.describe.pipeline import STAGES, ChosenExpert, configuration_of, list_images
from monkey.images import open_image

MODELS = {
    "caption": ("blip2", "blip2"),
    "regions": ("florence2", "florence2"),
    "segments": ("sam", "sam"),
    "segment_captions": ("blip2", "blip2"),
    "matching": ("blip2", "matcher"),
    "summary": ("transformers", "causal"),
}
"""Stage to expert and to the folder of its model."""

TINY = {
    "caption": {"max_new_tokens": 12},
    "regions": {"max_new_tokens": 40, "num_beams": 1},
    "segments": {
        "points_per_side": 4,
        "most": 8,
        "least_predicted_overlap": -10.0,
        "least_stability": 0.0,
        "most_box_overlap": 1.0,
    },
    "segment_captions": {"max_new_tokens": 12},
    "summary": {"max_new_tokens": 12},
}
"""Settings with which random weights find something, and not for long."""

KINDS = "receipt", "label", "table", "card", "menu", "sign"
"""Of the pages that are described."""

ONE_BY_ONE = ("segments",)
"""Here a batch is of points, and both sides have the same."""

TOLERANCE = 2e-3
"""Largest difference of a score between a crop alone and one in a batch."""


@dataclass(frozen=True)
class Timed:
    """Seconds of both sides for all images of a stage, and the share of images with equal outputs."""

    baseline: float
    ours: float
    ratio: float
    equal: float


def chain_of_models(options: Any, folder: Path) -> dict[str, Any]:
    """Stages of a configuration with the models in `folder`."""
    stages: dict[str, Any] = {"text": {"expert": "rapidocr"}}
    for stage, (expert, model) in MODELS.items():
        tiny = TINY.get(stage, {}) if options.models is None else {}
        place = {"model": str(folder / model), "device": options.device, "dtype": options.dtype}
        stages[stage] = {"expert": expert, **place, **tiny}
    return stages


def in_calls(expert: Expert, items: Sequence[Item], size: int) -> list[Any]:
    return [result for start in range(0, len(items), size) for result in expert(items[start : start + size])]


def time_chain(options: Any, stages: Mapping[str, Any], paths: Mapping[str, Path]) -> dict[str, Timed]:
    """Both sides of every stage, each on what the stages before it found; exits where their outputs differ."""
    chosen = configuration_of({"stages": dict(stages)}).experts
    items = [Item(name, path, path.name, (), {}, open_image(path)) for name, path in paths.items()]
    timed = {}
    for stage in STAGES:
        baseline, ours = sides_of(chosen[stage], items, options.batch_size)
        alone, together = baseline(), ours()
        equal = equal_share(stage, alone, together)
        if equal < 1 and options.dtype == "float32":
            raise SystemExit(f"{stage}: {1 - equal:.0%} of the images come out otherwise alone than in a batch")
        timed[stage] = Timed(*compare(baseline, ours, options.repeats, options.device, warm_up=False), equal)
        items = [
            replace(item, results={**item.results, stage: result}) for item, result in zip(items, together, strict=True)
        ]
        del baseline, ours
        free_memory()
    return timed


def sides_of(
    chosen: ChosenExpert, items: Sequence[Item], batch_size: int
) -> tuple[Callable[[], list[Any]], Callable[[], list[Any]]]:
    """The two sides of a stage as calls, on one expert's weights."""
    given = chosen.settings
    together = given if chosen.stage in ONE_BY_ONE else replace(given, batch_size=batch_size)
    alone = given if chosen.stage in ONE_BY_ONE else replace(given, batch_size=1)
    expert = chosen.kind(together)

    def run(settings: Any, size: int) -> list[Any]:
        expert.settings = settings
        seen = items
        if chosen.stage == "images":
            seen = [replace(item, image=open_image(item.path)) for item in items]
        return in_calls(expert, seen, size)

    return lambda: run(alone, 1), lambda: run(together, batch_size)


def equal_share(stage: str, alone: Sequence[Any], together: Sequence[Any]) -> float:
    """Share of images whose results are equal; exits where an expert failed."""
    equal = 0
    for number, pair in enumerate(zip(alone, together, strict=True)):
        for side, result in zip(("alone", "in a batch"), pair, strict=True):
            if isinstance(result, Failure):
                raise SystemExit(f"{stage} failed on image {number} {side}: {result.problem}")
        equal += same(*map(asdict, pair))
    return equal / len(alone)


def same(one: Any, other: Any) -> bool:
    """Whether two results are equal, but for numbers that differ by no more than TOLERANCE."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=0, abs_tol=TOLERANCE)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(same(*pair) for pair in zip(one, other, strict=True))
    return type(one) is type(other) and one == other


def figures_of(timed: Mapping[str, Timed], pictures: int) -> dict[str, Any]:
    """By stage images a second and share of the time, of both sides."""
    totals = {side: sum(getattr(one, side) for one in timed.values()) for side in ("baseline", "ours")}
    figures: dict[str, Any] = {
        stage: {
            side: {
                "pictures_per_second": round(pictures / getattr(one, side), 3),
                "share": round(getattr(one, side) / totals[side], 4),
            }
            for side in totals
        }
        | {"equal": one.equal}
        for stage, one in timed.items()
    }
    return {**figures, "all": {side: {"pictures_per_second": round(pictures / totals[side], 3)} for side in totals}}


def speedup(stages: Iterable[Timed]) -> float:
    """Baseline / ours in time of several stages together."""
    baseline, ours = map(sum, zip(*((one.baseline, one.ours) for one in stages), strict=True))
    return baseline / ours


def show(name: str, timed: Mapping[str, Timed], pictures: int) -> None:
    figures = figures_of(timed, pictures)
    print(f"\n{name:18}{'one at a time':>22}{'in batches':>22}{'ratio':>8}")
    for stage, one in timed.items():
        cells = "".join(
            f"{figures[stage][side]['pictures_per_second']:12.2f}/s {figures[stage][side]['share']:7.1%}"
            for side in ("baseline", "ours")
        )
        print(f"  {stage:16}{cells}{one.ratio:8.2f}")
    rates = [figures["all"][side]["pictures_per_second"] for side in ("baseline", "ours")]
    print(f"  {'all':16}{rates[0]:12.2f}/s {'':7}{rates[1]:12.2f}/s {'':7}{rates[1] / rates[0]:8.2f}")


def parse(argv: list[str] | None) -> Any:
    parser = arguments(__doc__)
    parser.add_argument("--pictures", type=int, default=20)
    parser.add_argument("--image-size", type=int, default=224, help="pixels of the window that pages are drawn for")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--models", type=Path, metavar="FOLDER", help=f"of models: {', '.join(_folders())}")
    options = parser.parse_args(argv)
    if options.quick:
        options.pictures, options.batch_size, options.repeats = min(options.pictures, 5), min(options.batch_size, 4), 1
    if min(options.pictures, options.batch_size, options.repeats) < 1:
        parser.error("--pictures, --batch-size and --repeats must be 1 or more")
    if options.models is not None:
        missing = [name for name in _folders() if not (options.models / name / "config.json").is_file()]
        if missing:
            parser.error(f"--models {options.models} lacks {', '.join(missing)} (each a folder with config.json)")
    return options


def _folders() -> list[str]:
    return list(dict.fromkeys(folder for _, folder in MODELS.values()))


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        counts, kinds = {"heldout": options.pictures}, dict.fromkeys(KINDS, 1)
        settings = Settings(options.seed, counts, kinds, limits=Limits(options.image_size, 1))
        write_set(folder / "set", settings, workers=1)
        listing = list_images(folder / "set" / "images", show_progress=False)
        # By name and path: the listing knows equal images as one.
        paths = {image.digest: listing.path(image) for image in listing.images}
        models = options.models
        if models is None:
            # The makers of the tests' models, which only a checkout has.
            from tests.describe_models import write_all

            write_all(folder / "models")
            models = folder / "models"
        timed = time_chain(options, chain_of_models(options, models), paths)
        show("models", timed, len(paths))
    ratios = {
        "describe_speedup": speedup(timed.values()),
        "transformers_speedup": speedup(timed[stage] for stage in MODELS),
        **{f"{stage}_speedup": timed[stage].ratio for stage in MODELS},
    }
    kept = {key: value for key, value in vars(options).items() if key != "models"}
    report(
        "describe",
        ratios,
        {
            **kept,
            "models": "tiny, random weights" if options.models is None else options.models.name,
            "distinct": len(paths),
        },
        {"models": figures_of(timed, len(paths))},
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
