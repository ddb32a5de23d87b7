"""Opening a complete run, for what looks at it afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from monkey.describe.outputs import FORMAT
from monkey.describe.records import CONFIG, JOURNALS, MANIFEST, PROBLEMS, RESULTS, STAGES, FinishedRun


def open_finished(folder: Path) -> FinishedRun:
    """Raises FileNotFoundError or ValueError, one sentence, for no run, one that is not complete, or a damaged one."""
    if (folder / JOURNALS).is_dir() and not (folder / MANIFEST).is_file():
        raise ValueError(
            f"{folder} is not complete: {MANIFEST} is missing, which is written last; go on with "
            f"`python -m monkey.describe run --config {folder / CONFIG} --images FOLDER --output {folder}`"
        )
    run = FinishedRun(folder)
    manifest = run.manifest
    found = manifest.get("format") if isinstance(manifest, Mapping) else None
    if found != FORMAT:
        raise ValueError(
            f"{folder / MANIFEST} has the format {found!r}, and {FORMAT!r} is needed: it is of another run"
        )
    if missing := [key for key in ("counts", "stages") if not isinstance(manifest.get(key), Mapping)]:
        raise ValueError(f"{folder / MANIFEST} lacks {' and '.join(missing)}; the run's command writes it anew")
    files = [*(f"{STAGES}/{stage}.jsonl" for stage in RESULTS), PROBLEMS]
    if missing := [name for name in files if not (folder / name).is_file()]:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}; the run's command writes them anew")
    return run
