"""Ask a model about images from the command line.

    python -m monkey.ask --image sign.png "What does the sign say?"
    echo "Which is older?" | python -m monkey.ask --image a.png --image b.png --stream
    python -m monkey.ask --describe --image holidays/
    python -m monkey.ask --image street.jpg --draw found.png "Where is <ref>the red bicycle</ref>?"
    python -m monkey.ask --card
    python -m monkey.ask --checkpoint echo840/Monkey --input rows.jsonl --output answers.jsonl

Several --image are asked about together; of a folder, each image by itself. A row of --input is an object with
`question` and `image`, a path or a list of paths. After an interruption the same command goes on where it was.
--card prints the checkpoint's card: prompts, sampling, terms, languages, what it can do, and questions to try.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from monkey.cli import EXIT_PARTIAL, ArgumentParser, run_program, whole_number
from monkey.files import refuse_missing
from monkey.journal import atomic_file

if TYPE_CHECKING:
    from monkey.checkpoint_card import CheckpointCard
    from monkey.serving.answer_file import Asked
    from monkey.serving.session import Answerer, Decoding, Reply

DTYPES = ("auto", "float32", "bfloat16", "float16")

FAULTS = (ValueError, FileNotFoundError, TimeoutError, MemoryError)
"""What goes wrong with one image or question and leaves the others."""

NAMED_FAULTS = 5
"""Rows of a file without an answer that are named one by one."""

# A path keeps one stroke of the two.
_ADDRESS = re.compile(r"https?:/", re.IGNORECASE)


def add_model_flags(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Add the flags that say which model is opened, and how; return the group that they stand in."""
    model = parser.add_argument_group("model")
    model.add_argument("-c", "--checkpoint", help="folder or hub name (default: models/small, which ships)")
    model.add_argument("--device", default="auto", help="cpu, cuda, cuda:N, mps (a CUDA device where there is one)")
    model.add_argument("--dtype", choices=DTYPES, default="auto", help="of the weights (the checkpoint's own)")
    model.add_argument("--quantization", choices=("4bit",), help="pack the decoder's weights")
    model.add_argument("--compile", action="store_true", help="compile the step that writes a token; on a GPU only")
    limit = "put each image on a grid of at most so many, where the model has grids to choose from"
    model.add_argument("--max-windows", type=whole_number(1), metavar="N", help=limit)
    return model


def parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(prog="python -m monkey.ask", description=__doc__)
    parser.add_argument("question", nargs="?", help="the question; read from standard input where it is left out")
    what = parser.add_argument_group("what")
    what.add_argument("--image", type=Path, action="append", default=[], metavar="FILE", help="image, or a folder")
    what.add_argument("--describe", action="store_true", help="describe each image; a question words it otherwise")
    what.add_argument("--card", action="store_true", help="print the checkpoint's card as JSON, and ask nothing")
    what.add_argument("--input", type=Path, metavar="FILE", help="questions, .jsonl or .json")
    what.add_argument("--output", type=Path, metavar="FILE", help="answers to --input, .jsonl")
    what.add_argument("--image-root", type=Path, metavar="FOLDER", help="of the images of --input (its own folder)")
    how = parser.add_argument_group("how tokens are chosen, instead of what the checkpoint's card says")
    how.add_argument("--max-new-tokens", type=int, metavar="N", help="longest answer")
    how.add_argument("--temperature", type=float, help="0 takes the likeliest token")
    how.add_argument("--top-p", type=float, help="share of probability that is sampled from")
    how.add_argument("--seed", type=int, help="of sampling")
    shown = parser.add_argument_group("what is shown")
    shown.add_argument("--stream", action="store_true", help="show the answer as it is written")
    shown.add_argument("--json", action="store_true", help="a line of JSON for each answer")
    shown.add_argument("--draw", type=Path, metavar="FILE.png", help="save the image with the answer's boxes on it")
    shown.add_argument("--confidence", action="store_true", help="how sure the model was of its tokens, 0 to 1")
    at_once = add_model_flags(parser)
    at_once.add_argument("--batch-size", type=int, default=8, metavar="N", help="questions at once (%(default)s)")
    return parser


def main(words: Sequence[str] | None = None) -> int:
    options = parser().parse_args(words)
    kept = f"; answers so far are in {options.output}.part, and the same command goes on" if options.output else ""
    return run_program(lambda: run(options), f"interrupted{kept}")


def run(options: argparse.Namespace) -> int:
    check(options)
    if options.card:
        from monkey.checkpoint_card import card_of

        print(json.dumps(card_of(find_checkpoint(options)).as_json(), ensure_ascii=False, indent=2))
        return 0
    return answer_file(options) if options.input else answer_images(options)


def check(options: argparse.Namespace) -> None:
    """Raise ValueError for flags that do not go together, FileNotFoundError for questions that are not there."""
    if (options.input is None) != (options.output is None):
        raise ValueError("--input and --output go together: a file of questions, and the file for their answers")
    if options.batch_size < 1:
        raise ValueError(f"--batch-size is {options.batch_size}, and at least 1 is needed")
    if options.stream and options.json:
        raise ValueError("--stream shows an answer as it is written, and --json when it is whole; choose one")
    if options.input is None:
        if options.image_root is not None:
            raise ValueError("--image-root goes with --input; --image takes any path")
        if options.describe and not options.image:
            raise ValueError("--describe needs --image, an image or a folder of images")
        if options.draw is not None:
            check_drawing(options.draw, options.image)
        return
    for name in ("image", "question", "stream", "draw"):
        if getattr(options, name):
            called = "a question" if name == "question" else f"--{name}"
            raise ValueError(f"{called} does not go with --input: rows say what is asked, and --output has the boxes")
    if not options.input.exists():
        raise FileNotFoundError(f"{options.input}: no such file")


def check_drawing(path: Path, images: Sequence[Path]) -> None:
    if path.suffix.lower() != ".png":
        raise ValueError(f"--draw {path}: a PNG is written, so the name must end in .png")
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"--draw {path}: is a folder, or its folder does not exist; name a file to write")
    if len(images) != 1 or images[0].is_dir():
        raise ValueError("--draw draws on one image, and --image must name just that")


def find_checkpoint(options: argparse.Namespace) -> str:
    """Return the checkpoint to open, or raise FileNotFoundError."""
    if options.checkpoint:
        refuse_missing(options.checkpoint)
        return options.checkpoint
    from monkey.serving.session import default_checkpoint

    return str(default_checkpoint())


def read_decoding(options: argparse.Namespace, card: CheckpointCard) -> Decoding:
    """Return the card's settings with what the flags change; ValueError for one that means nothing."""
    from monkey.decoding import decoding_of

    given = {name: getattr(options, name) for name in ("max_new_tokens", "temperature", "top_p", "seed")}
    given = {name: value for name, value in given.items() if value is not None}
    default = decoding_of(card.descriptions if options.describe else card.answers)
    return replace(default, confidence=options.confidence, **given)


def open_checkpoint(options: argparse.Namespace, checkpoint: str) -> Answerer:
    from monkey.serving.session import load

    print(f"opening {checkpoint}", file=sys.stderr, flush=True)
    settings = {"compile": options.compile, "max_rows": options.batch_size, "max_windows": options.max_windows}
    with warnings.catch_warnings(record=True) as noticed:
        answerer = load(checkpoint, options.device, options.dtype, options.quantization, **settings)
    for notice in noticed:
        print(f"warning: {notice.message}", file=sys.stderr, flush=True)
    return answerer


def ask_all(
    options: argparse.Namespace,
    checkpoint: str,
    decoding: Decoding,
    asked: Sequence[Asked],
    take: Callable[[Answerer, Asked, Reply], None],
    fail: Callable[[Asked, Exception], None],
) -> None:
    """Ask everything, several at once; give each answer to `take`, or what went wrong to `fail`, in order."""
    waiting: deque[tuple[Asked, Reply | Exception]] = deque()

    def settle_first() -> None:
        one, reply = waiting.popleft()
        try:
            if isinstance(reply, Exception):
                raise reply
            take(answerer, one, reply)
        except FAULTS as error:
            fail(one, error)

    with open_checkpoint(options, checkpoint) as answerer:
        for one in asked:
            waiting.append((one, begin(answerer, one, options.describe, decoding)))
            if len(waiting) > 2 * options.batch_size:
                settle_first()
        while waiting:
            settle_first()


def begin(answerer: Answerer, asked: Asked, describe: bool, decoding: Decoding) -> Reply | Exception:
    """Return the answer on its way, or the error of a bad image or question."""
    try:
        if describe:
            return answerer.describe(asked.images[0], asked.question, decoding)
        return answerer.ask(list(asked.images), asked.question, decoding)
    except (ValueError, FileNotFoundError) as error:
        return error


# Images that flags name


def answer_images(options: argparse.Namespace) -> int:
    """Ask about the images of the flags."""
    from monkey.checkpoint_card import card_of

    asked = list_asked(options)
    checkpoint = find_checkpoint(options)
    decoding = read_decoding(options, card_of(checkpoint))
    failed: list[Asked] = []

    def take(answerer: Answerer, one: Asked, reply: Reply) -> None:
        show(answerer, one, reply, one.source if len(asked) > 1 else "", options)
        if options.draw is not None:
            draw(answerer, reply, one.images[0], options.draw)

    def fail(one: Asked, error: Exception) -> None:
        if len(asked) == 1:
            raise error
        failed.append(one)
        print(f"error: {error}", file=sys.stderr)

    ask_all(options, checkpoint, decoding, asked, take, fail)
    return EXIT_PARTIAL if failed else 0


def list_asked(options: argparse.Namespace) -> list[Asked]:
    """Return what is asked: one question, or one for each image of a folder or to be described.

    Raises:
        FileNotFoundError, ValueError: an image that is not there, a folder beside others or without images, or no
            question.
    """
    from monkey.serving.answer_file import Asked

    for path in options.image:
        if _ADDRESS.match(str(path)):
            raise ValueError(f"--image {path} is an address, and images are not fetched; download it first")
        if not path.exists():
            raise FileNotFoundError(f"--image {path}: no such image or folder")
    folders = [path for path in options.image if path.is_dir()]
    if folders and len(options.image) > 1:
        raise ValueError(f"--image {folders[0]} is a folder, which stands alone: each of its images is asked about")
    images = list_images(folders[0]) if folders else options.image
    groups = [(image,) for image in images] if folders or options.describe else [tuple(images)]
    question = read_question(options)
    return [Asked(f"{group[0]}: " if group else "", question, group) for group in groups]


def list_images(folder: Path) -> list[Path]:
    """Return the images of a folder by their names' endings, and say what is left out."""
    from monkey.images import FORMATS, describe_others, split_names

    files = (path.name for path in folder.iterdir() if not path.is_dir() and not path.name.startswith("."))
    names, others = split_names(files)
    if not names:
        found = describe_others(others, ", but ")
        raise ValueError(f"--image {folder}: the folder holds no image{found}; formats: {', '.join(FORMATS)}")
    if others:
        print(describe_others(others, "left out, as no images by their endings: "), file=sys.stderr)
    return [folder / name for name in names]


def read_question(options: argparse.Namespace) -> str | None:
    """Return the question, from standard input where none is given; None for a description in the usual words."""
    if options.question is not None and not options.question.strip():
        raise ValueError("the question is empty")
    if options.question is not None or options.describe:
        return options.question
    if sys.stdin.isatty():
        raise ValueError('there is no question: python -m monkey.ask --image FILE "What does the sign say?"')
    question = sys.stdin.read().strip()
    if not question:
        raise ValueError("there is no question: standard input is empty")
    return question


def show(answerer: Answerer, asked: Asked, reply: Reply, name: str, options: argparse.Namespace) -> None:
    """Print one answer."""
    if options.json:
        told = {"images": [str(image) for image in asked.images], "question": asked.question}
        print(json.dumps(told | as_json(answerer, reply, asked.images), ensure_ascii=False), flush=True)
        return
    pieces = reply if options.stream else [reply.text]
    print(name, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print(flush=True)
    if options.confidence:
        print(f"{name}confidence {reply.confidence:.3f}", file=sys.stderr)


def draw(answerer: Answerer, reply: Reply, image: Path, path: Path) -> None:
    """Save the image with the answer's boxes on it, whole or not at all."""
    from monkey.boxes import drawn

    boxes = reply.boxes
    if not boxes:
        raise ValueError(
            f"the answer holds no box, so {path} was not written; <ref> asks for one: "
            '"Where is <ref>the red bicycle</ref>?"'
        )
    with atomic_file(path) as stream:
        drawn(answerer.open_image(image), boxes).save(stream, "PNG")


def as_json(answerer: Answerer, reply: Reply, images: Sequence[Path]) -> dict[str, Any]:
    """Return what is written of an answer in JSON; waits for its end.

    `boxes` has each that the answer names: its label, its corners as written (0 to 1000), and left, top, right, bottom
    in pixels of each of the images, upright, since markup does not say which of several it means.
    """
    fields = {"answer": reply.text}
    fields |= {name: getattr(reply, name) for name in ("finish_reason", "prompt_tokens", "new_tokens")}
    if reply.confidence is not None:
        fields["confidence"] = reply.confidence
    boxes = reply.boxes
    sizes = [answerer.open_image(image).size for image in images] if boxes else []
    pixels = [[[round(value, 2) for value in box.in_pixels(size)] for size in sizes] for box in boxes]
    corners = zip(boxes, pixels, strict=True)
    return {**fields, "boxes": [{"label": box.label, "box": box.box, "pixels": own} for box, own in corners]}


# A file of questions


def answer_file(options: argparse.Namespace) -> int:
    """Answer the rows of a file that have no answer yet."""
    checkpoint = find_checkpoint(options)

    from tqdm import tqdm

    from monkey.checkpoint_card import card_of
    from monkey.serving.answer_file import AnswerFile, read_questions

    card = card_of(checkpoint)
    decoding = read_decoding(options, card)
    settings = list_settings(options, checkpoint, card, decoding)
    rows = read_questions(options.input, options.image_root, not options.describe, settings)
    missing = {row.source: row.fault for row in rows if row.fault is not None}
    name_faults(missing)  # before the model is opened
    faults: dict[str, str] = {}
    with AnswerFile(options.output) as file:
        pending = [row for row in rows if row.fault is None and row.key not in file.answers]
        if pending:
            done, name = len(rows) - len(pending), options.output.name
            with tqdm(total=len(rows), initial=done, unit="answer", desc=name, disable=None) as bar:

                def take(answerer: Answerer, row: Asked, reply: Reply) -> None:
                    file.add(row.key, as_json(answerer, reply, row.images))
                    bar.update()

                def fail(row: Asked, error: Exception) -> None:
                    faults[row.source] = str(error)

                ask_all(options, checkpoint, decoding, pending, take, fail)
        file.finish(rows, missing | faults)
    print(f"{options.output}: {len(rows):,} rows, {len(pending):,} of them asked now", file=sys.stderr)
    name_faults(faults)
    if count := len(missing | faults):
        print(f"{count:,} of {len(rows):,} rows have no answer; the same command asks them", file=sys.stderr)
    return EXIT_PARTIAL if count else 0


def list_settings(
    options: argparse.Namespace, checkpoint: str, card: CheckpointCard, decoding: Decoding
) -> dict[str, Any]:
    """Return what answers depend on beside their rows; a part of their keys."""
    from monkey.checkpoint_files import checkpoint_fingerprint

    return {
        "checkpoint": checkpoint_fingerprint(checkpoint),
        "prompts": [card.question_prompt, card.description_prompts[0]],
        "decoding": decoding.recorded(),
        "dtype": options.dtype,
        "quantization": options.quantization,
        "describe": options.describe,
        **({} if options.max_windows is None else {"max_windows": options.max_windows}),
    }


def name_faults(faults: Mapping[str, str]) -> None:
    for source, fault in list(faults.items())[:NAMED_FAULTS]:
        print(f"error: {fault if source in fault else f'{source}: {fault}'}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
