"""Training records out of descriptions in the published form.

    python -m monkey.describe convert --input detailed_caption.json --images pictures --output train.json

Pictures that the file names and the folder lacks are counted and left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from monkey.data.rows import ImagePaths
from monkey.describe.published import DetailedCaption, json_list, read_detailed_captions, training_rows
from monkey.journal import atomic_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--input", type=Path, required=True, metavar="FILE", help="list of img_id and detailed_caption")
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER", help="of the pictures")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="training records to write (.json)")


def main(flags: argparse.Namespace) -> int:
    """Runs the command. Raises ValueError and OSError, each one sentence; then nothing is written."""
    pictures = ImagePaths(flags.input, flags.images, "--images")
    left_out: list[str] = []
    written = 0

    def present() -> Iterator[DetailedCaption]:
        nonlocal written
        for caption in read_detailed_captions(flags.input):
            try:
                pictures.find(caption.image, str(flags.input))
            except FileNotFoundError:
                left_out.append(caption.image)
                continue
            written += 1
            yield caption

    with atomic_file(flags.output) as stream:
        stream.writelines(json_list(training_rows(present())))
        if not written:
            raise ValueError(f"none of the {len(left_out):,} pictures of {flags.input} is in {flags.images}")
    print(f"{flags.output}: {written:,} records")
    if left_out:
        print(f"  {len(left_out):,} pictures are not in {flags.images} and left out, {left_out[0]} the first")
    return 0
