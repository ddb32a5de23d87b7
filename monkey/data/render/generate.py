"""Draws a whole sample set: every picture from a generator of its own, so that the number of processes changes nothing.

A picture's random numbers start from (seed, split, task, number, attempt). Held-out pictures that came out equal to a
train picture or to each other are drawn again with the next attempt, in order, after all others are known.
"""

from __future__ import annotations

import hashlib
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

from monkey.data.render.settings import Settings
from monkey.data.render.sheet import Question
from monkey.data.render.tasks import TASKS, ask
from monkey.data.render.vocabulary import SPLITS

MOST_ATTEMPTS = 50
CHUNK = 16
"""Pictures handed to a process at a time."""


@dataclass(frozen=True)
class Sample:
    """One written picture and what is asked about it."""

    task: str
    number: int
    file: str
    """Relative to the set's folder, with forward slashes."""
    sha256: str
    questions: tuple[Question, ...]
    texts: tuple[str, ...]
    """Every string drawn in the picture."""


def image_file(split: str, task: str, number: int) -> str:
    """Where a picture lies in the set's folder."""
    return f"images/{split}/{task}/{number:06d}.png"


def draw_sample(settings: Settings, folder: Path, split: str, place: tuple[str, int], attempt: int = 0) -> Sample:
    """Draws one picture and writes its PNG."""
    task, number = place
    # A text as seed is hashed by SHA-512, the same on every machine and Python.
    rng = random.Random(f"{settings.seed}/{split}/{task}/{number}/{attempt}")
    picture = TASKS[task].draw(rng, settings.scene(split))
    asked = ask(rng, picture, settings.selection[task], settings.difficulty.questions_per_kind)
    file = image_file(split, task, number)
    path = folder / file
    # Level 1 of 9: these flat pictures gain a few hundred bytes from more, at three times the time.
    picture.image.save(path, format="PNG", compress_level=1)
    return Sample(task, number, file, hashlib.sha256(path.read_bytes()).hexdigest(), tuple(asked), picture.texts)


def draw_split(settings: Settings, folder: Path, split: str, pool: Executor | None) -> list[Sample]:
    """Draws the pictures of one split, in `pool` if there is one, with a progress bar; in the order of their places."""
    from tqdm import tqdm

    places = settings.places(split)
    if not places:
        return []
    for task in settings.selection:
        (folder / image_file(split, task, 0)).parent.mkdir(parents=True, exist_ok=True)
    draw = partial(draw_sample, settings, folder, split)
    progress = partial(tqdm, total=len(places), desc=f"drawing {split}", unit="picture", disable=None)
    drawn = map(draw, places) if pool is None else pool.map(draw, places, chunksize=CHUNK)
    return list(progress(drawn))


def redraw_repeated(
    settings: Settings, folder: Path, train: Sequence[Sample], heldout: Sequence[Sample]
) -> list[Sample]:
    """The held-out pictures, each different to the byte from all others and from every train picture."""
    seen = {sample.sha256 for sample in train}
    different = []
    for sample in heldout:
        attempt = 0
        while sample.sha256 in seen:
            attempt += 1
            if attempt > MOST_ATTEMPTS:
                raise ValueError(
                    f"{len(heldout)} held-out pictures cannot all differ from {len(train)} train pictures: "
                    f"{sample.task} repeated itself {MOST_ATTEMPTS} times; ask for fewer pictures "
                    "or more --difficulty jitter"
                )
            sample = draw_sample(settings, folder, "heldout", (sample.task, sample.number), attempt)
        seen.add(sample.sha256)
        different.append(sample)
    return different


def shared_texts(train: Iterable[Sample], heldout: Iterable[Sample]) -> set[str]:
    """Strings drawn in both splits, whatever their case. Empty, or the set is worth nothing."""
    drawn = [{text.casefold() for sample in split for text in sample.texts} for split in (train, heldout)]
    return drawn[0] & drawn[1]


def _pool(settings: Settings, workers: int) -> AbstractContextManager[Executor | None]:
    """Processes to draw in; none for a set so small that starting them would take longer."""
    if workers == 1 or settings.train + settings.heldout <= 2 * CHUNK:
        return nullcontext()
    # The processes only draw, so forking is safe where it is the custom, and spares each the import of torch.
    method = "fork" if sys.platform == "linux" else "spawn"
    return ProcessPoolExecutor(workers, mp_context=get_context(method))


def draw_all(settings: Settings, folder: Path, workers: int) -> dict[str, list[Sample]]:
    """Both splits, drawn into `folder`."""
    with _pool(settings, workers) as pool:
        samples = {split: draw_split(settings, folder, split, pool) for split in SPLITS}
    samples["heldout"] = redraw_repeated(settings, folder, samples["train"], samples["heldout"])
    shared = shared_texts(samples["train"], samples["heldout"])
    assert not shared, f"drawn in both splits: {sorted(shared)}"
    return samples


def majority(samples: Iterable[Sample]) -> dict[str, float]:
    """By task, the share of questions that one constant answer for each wording gets right: reading without looking.

    The constant is the commonest answer among these very samples, so with few of them the share is too high.
    """
    answers: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    for sample in samples:
        for question in sample.questions:
            answers[sample.task][question.text][question.answer] += 1
    shares = {}
    for task, by_text in answers.items():
        guessed = sum(counts.most_common(1)[0][1] for counts in by_text.values())
        shares[task] = round(guessed / sum(counts.total() for counts in by_text.values()), 4)
    return shares
