"""A run's folder as `python -m monkey.describe run` leaves it, of made-up results, with real images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from monkey.describe.filters import Thresholds, filter_candidates
from monkey.describe.findings import (
    RESULTS,
    Caption,
    ImageFile,
    Line,
    Lines,
    Region,
    Regions,
    Scores,
    Segment,
    SegmentCaptions,
    Segments,
    Summary,
    pack_mask,
)
from monkey.describe.output import FORMAT, PROBLEMS, stage_file
from monkey.describe.prompt import prompt_parts

EXPERTS = {"images": "opening", "text": "rapidocr", "filters": "thresholds", "summary": "rules"}


def ring(width: int, height: int) -> np.ndarray:
    """Mask [height, width] of a disc with a hole."""
    rows, columns = np.mgrid[:height, :width]
    distance = np.hypot((columns + 0.5) / width - 0.5, (rows + 0.5) / height - 0.5)
    return (distance < 0.4) & (distance > 0.15)


def results_of(number: int, texts: Mapping[str, str] | None = None, settings: Thresholds | None = None) -> dict:
    """All stages of one image: 3 regions, 3 lines, 2 segments; 4 candidates stay with the usual settings."""
    said = {"region": "a red sign", "line": "HARVEST", "segment": "a red ring", "caption": "a sign", **(texts or {})}
    there, near, other = (0.1, 0.1, 0.5, 0.5), (0.1, 0.1, 0.5, 0.49), (0.6, 0.6, 0.9, 0.95)
    results: dict[str, Any] = {
        "images": ImageFile(f"signs/{number:06d}.png", (), 120, 80),
        "caption": Caption(said["caption"]),
        "regions": Regions((Region(there, said["region"]), Region(near, said["region"]), Region(other, "a blue pole"))),
        "text": Lines(
            (Line((0.2, 0.2, 0.4, 0.3), said["line"], 0.99), Line(other, "HARVEST", 0.4), Line(other, " ", 0.9))
        ),
        "segments": Segments(
            (Segment((0.1, 0.1, 0.9, 0.9), 0.4, 0.9, pack_mask(ring(120, 80))), Segment(other, 0.1, 0.8))
        ),
        "segment_captions": SegmentCaptions((said["segment"], "a pole")),
        "matching": Scores((0.9, 0.8, 0.3), (0.7, 0.5)),
    }
    results["filters"] = filter_candidates(results, settings or Thresholds())
    results["summary"] = Summary(said.get("summary", "The picture shows a sign. A red ring is on it."), (), 1)
    return results


def write_run(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    settings: Thresholds | None = None,
    unreadable: Sequence[str] = (),
) -> Path:
    """Write `folder/run` and `folder/pictures`; stages that a row lacks have failed on it."""
    run, pictures = folder / "run", folder / "pictures"
    (run / "stages").mkdir(parents=True)
    (run / "journals").mkdir()
    images = []
    for number, row in enumerate(rows):
        path = pictures / row["images"].file
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (row["images"].width, row["images"].height)
        Image.new("RGB", size, (number % 256, number // 256 % 256, 90)).save(path)
        images.append(hashlib.sha256(path.read_bytes()).hexdigest())
    for stage in RESULTS:
        lines = [
            json.dumps({"image": image, "key": "0", **asdict(row[stage])}, ensure_ascii=False)
            for image, row in zip(images, rows, strict=True)
            if stage in row
        ]
        (run / stage_file(stage)).write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    problems = [{"file": name, "stage": "images", "problem": f"{name} is empty"} for name in unreadable]
    for row in rows:
        failed = next((stage for stage in RESULTS if stage not in row), None)
        if failed is not None:
            problems.append({"file": row["images"].file, "stage": failed, "problem": "the expert gave up"})
    (run / PROBLEMS).write_text("".join(json.dumps(problem) + "\n" for problem in problems), encoding="utf-8")
    described = [row["summary"] for row in rows if "summary" in row]
    stages = {
        stage: {
            "expert": EXPERTS.get(stage, "scripted"),
            "settings": vars(settings or Thresholds()) if stage == "filters" else {"most_sentences": 5},
            "done": sum(1 for row in rows if stage in row),
            "failed": sum(1 for problem in problems if problem["stage"] == stage),
            "seconds": 1.5,
            "loading_seconds": 0.1,
            "pictures_per_second": 2.0,
            "requests": 0,
            "prompt_tokens": 0,
            "completion_tokens": 0,
            "cost": None,
        }
        for stage in RESULTS
    }
    manifest = {
        "format": FORMAT,
        "images": str(pictures),
        "counts": {
            "files": len(rows) + len(unreadable),
            "pictures": len(rows),
            "repeated_files": 0,
            "bad_pictures": len(unreadable),
            "described": len(described),
            "flagged": sum(1 for summary in described if summary.problems),
        },
        "stages": stages,
        "prompts": prompt_parts(),
    }
    (run / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return run
