"""One picture of a run as the page shows it: small picture, candidates and their fate, prompt, description."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from monkey.describe.masks import pack_mask, unpack_mask
from monkey.describe.prompting import prompt_of
from monkey.describe.records import REGION, SEGMENT, TEXT, FinishedRun, Picture, PictureRun
from monkey.images import open_image, read_picture_file

GOOD, FLAGGED, FAILED = "good", "flagged", "failed"
STATES = (GOOD, FLAGGED, FAILED)

LONGEST_TEXT = 4000
"""Characters of a caption, a description or a text that was read."""

MOST_CANDIDATES = 400
"""Of one picture; a dense page has more lines than anyone looks at here."""

_QUALITY = 75


def state_of(picture: PictureRun) -> str:
    """What became of a picture: a good description, one that breaks a rule, or none."""
    if "summary" not in picture.results:
        return FAILED
    return FLAGGED if picture["summary"].problems else GOOD


@dataclass(frozen=True)
class Entries:
    """Makes entries of a run's pictures, which are looked for in `images`; `side` bounds the small ones, in pixels."""

    run: FinishedRun
    images: Path
    side: int
    problems: Mapping[str, Mapping[str, str]]
    """By file, what went wrong with it."""

    def entry(self, picture: PictureRun) -> dict[str, Any]:
        """What the page's script reads. Raises ValueError for a damaged mask."""
        results = picture.results
        shown: Picture = results["images"]
        uri, reason = self._thumbnail(picture.image, shown)
        candidates = [*_candidates(results)]
        problem = self.problems.get(shown.file)
        entry = {
            "image": picture.image,
            "file": shown.file,
            "also": list(shown.also),
            "size": [shown.width, shown.height],
            "state": state_of(picture),
            "failure": None if problem is None else f"{problem['stage']}: {clipped(problem['problem'])}",
            "caption": clipped(results["caption"].text) if "caption" in results else None,
            "candidates": candidates[:MOST_CANDIDATES],
            "left_out": max(0, len(candidates) - MOST_CANDIDATES),
            "prompt": self._prompt(results),
            "picture": uri,
            "no_picture": reason,
            "description": None,
        }
        if "summary" in results:
            summary = results["summary"]
            entry["description"] = {
                "text": clipped(summary.text),
                "problems": list(summary.problems),
                "attempts": summary.attempts,
            }
        return entry

    def _prompt(self, results: Mapping[str, Any]) -> str | None:
        if not {"caption", "filters"} <= results.keys():
            return None
        most = self.run.manifest["stages"].get("summary", {}).get("settings", {}).get("most_sentences", 5)
        return clipped(prompt_of(results["caption"], results["filters"], most), 5 * LONGEST_TEXT)

    def _thumbnail(self, image: str, picture: Picture) -> tuple[str | None, str]:
        """A JPEG as a data URI, or None and why there is none: boxes must not be drawn on another picture."""
        reason = "it is not there"
        for name in (picture.file, *picture.also):
            try:
                path = (self.images / name).resolve()
                if not path.is_relative_to(self.images.resolve()) or not path.is_file():
                    continue
                content = read_picture_file(path)
                if hashlib.sha256(content).hexdigest() != image:
                    reason = "its file has changed since the run"
                    continue
                small = open_image(content, name=name)
            except (OSError, ValueError) as error:
                reason = str(error)
                continue
            small.thumbnail((self.side, self.side), Image.Resampling.LANCZOS)
            stream = io.BytesIO()
            small.save(stream, "JPEG", quality=_QUALITY, optimize=True)
            return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode('ascii')}", ""
        return None, reason


def _candidates(results: Mapping[str, Any]):
    """What the experts saw, each judged where the run came so far."""
    masks = [segment.mask for segment in results["segments"].segments] if "segments" in results else []
    if "filters" in results:
        for candidate in results["filters"].candidates:
            mask = masks[candidate.index] if candidate.source == SEGMENT and candidate.index < len(masks) else None
            yield _row(
                candidate.source, candidate.box, candidate.text, candidate.score, candidate.dropped, candidate.because,
                mask,
            )  # fmt: skip
        return
    for region in results["regions"].regions if "regions" in results else ():
        yield _row(REGION, region.box, region.text)
    for line in results["text"].lines if "text" in results else ():
        yield _row(TEXT, line.box, line.text, line.score)
    texts = results["segment_captions"].texts if "segment_captions" in results else ("",) * len(masks)
    for segment, text in zip(results["segments"].segments if masks else (), texts, strict=False):
        yield _row(SEGMENT, segment.box, text, None, None, None, segment.mask)


def _row(source, box, text, score=None, dropped=None, because=None, mask=None) -> dict[str, Any]:
    return {
        "source": source,
        "box": [round(value, 4) for value in box],
        "text": clipped(text),
        "score": None if score is None else round(score, 4),
        "dropped": dropped,
        "because": because,
        # Read and written again, so that the page inflates no more than a grid holds.
        "mask": None if mask is None else pack_mask(unpack_mask(mask)),
    }


def clipped(text: str, longest: int = LONGEST_TEXT) -> str:
    return text if len(text) <= longest else f"{text[:longest]}… ({len(text) - longest} more characters)"
