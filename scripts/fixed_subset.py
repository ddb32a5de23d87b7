"""Score a checkpoint on the fixed held-out pages and images that the shipped model's scores are stated for.

    python -m scripts.fixed_subset models/small            # prints the scores, beside the stated ones
    python -m scripts.fixed_subset models/small --write    # states them, in models/small/score.json

The pages are drawn anew from their seed each time. Another version of Pillow or typst may draw a pixel otherwise, which
the stated interval has room for. Images by other engines are some of data/wild, always the same.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from eval.run import RunSettings, run
from eval.tasks import select_tasks
from monkey.cli import EXIT_USAGE, ArgumentParser
from monkey.files import refuse_missing
from monkey.journal import write_json
from scripts.stages import REPOSITORY

SEED, PICTURES = 2311, 30
WINDOW, WINDOWS = 224, 6
"""Of the model that ships, for which the pages are drawn, whichever is asked."""
OF_PAGES, OF_OTHERS = ("pages_heldout", "pages_known"), ("wild",)
TASKS = OF_PAGES + OF_OTHERS
QUESTIONS_A_PAGE = 4
"""Questions about images by other engines for each page of a split."""
STATED = "score.json"


def fixed_subset_score(checkpoint: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """Task to its number of questions, score in percent and 95 % interval.

    Args:
        folder: new or empty; takes the images and the answers.

    Raises:
        FileNotFoundError, ValueError: no such checkpoint, or a typeface that is not installed.
    """
    refuse_missing(str(checkpoint))

    from eval.model_backend import ModelBackend
    from monkey.data.pages.drawing import KINDS, Limits
    from monkey.data.pages.page_sets import Settings, write_set

    counts = {"train": 0, "heldout": PICTURES, "known": PICTURES}
    data = folder / "data"
    write_set(data, Settings(SEED, counts, dict.fromkeys(KINDS, 1), limits=Limits(WINDOW, WINDOWS)), workers=1)
    scores = {}
    for names, root, sample in ((OF_PAGES, data, None), (OF_OTHERS, REPOSITORY, QUESTIONS_A_PAGE * PICTURES)):
        settings = RunSettings(folder / names[0], root, batch_size=32, sample=sample, checkpoint=str(checkpoint))
        tasks = select_tasks(",".join(names))
        for result in run(tasks, settings, lambda: ModelBackend(str(checkpoint), "cpu", "float32", num_workers=0)):
            figures = result["scores"][result["headline"]]
            scores[result["task"]] = {
                "questions": result["n"], "value": figures["value"], "interval": figures["interval"],
            }  # fmt: skip
    return scores


def main(words: list[str] | None = None) -> int:
    """Runs the command; 2 on what the user can mend."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--write", action="store_true", help=f"state the scores in the checkpoint's {STATED}")
    options = parser.parse_args(words)
    try:
        with tempfile.TemporaryDirectory() as folder:
            scores = fixed_subset_score(options.checkpoint, Path(folder))
        stated = options.checkpoint / STATED
        if options.write:
            write_json(stated, scores)
        before = json.loads(stated.read_text(encoding="utf-8")) if stated.is_file() else {}
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    for task, figures in scores.items():
        line = f"{task:<20} {figures['questions']:>5} questions  {figures['value']:.1f}"
        print(line + (f"  (stated {before[task]['value']:.1f}, {before[task]['interval']})" if task in before else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
