"""Ask a model about pictures from the command line.

    python -m monkey.ask --image sign.png "What does the sign say?"
    echo "Which is older?" | python -m monkey.ask --image a.png --image b.png --stream
    python -m monkey.ask --describe --image holidays/
    python -m monkey.ask --image street.jpg --draw found.png "Where is <ref>the red bicycle</ref>?"
    python -m monkey.ask --card
    python -m monkey.ask --checkpoint echo840/Monkey --input rows.jsonl --output answers.jsonl

Several --image are asked about together; of a folder, each picture by itself. A row of --input is an object with
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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from monkey.cli import EXIT_PARTIAL, ArgumentParser, run_program
from monkey.files import refuse_missing
from monkey.journal import atomic_file

if TYPE_CHECKING:
    from monkey.checkpoint_card import CheckpointCard
    from monkey.serving.session import Answerer, Decoding, Reply

DTYPES = ("auto", "float32", "bfloat16", "float16")

FAULTS = (ValueError, FileNotFoundError, TimeoutError, MemoryError)
"""What goes wrong with one picture or question and leaves the others."""

Asked = TypeVar("Asked")

# A path keeps one stroke of the two.
_ADDRESS = re.compile(r"https?:/", re.IGNORECASE)


def model_flags(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """The flags that say which model is opened, and how; the group that they stand in."""
    model = parser.add_argument_group("model")
    model.add_argument("-c", "--checkpoint", help="folder or hub name (default: models/small, which ships)")
    model.add_argument("--device", default="auto", help="cpu, cuda, cuda:N (a GPU where there is one)")
    model.add_argument("--dtype", choices=DTYPES, default="auto", help="of the weights (the checkpoint's own)")
    model.add_argument("--quantization", choices=("4bit",), help="pack the decoder's weights")
    model.add_argument("--compile", action="store_true", help="compile the step that writes a token; on a GPU only")
    return model


def parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="python -m monkey.ask",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("question", nargs="?", help="the question; read from standard input where it is left out")
    what = parser.add_argument_group("what")
    what.add_argument("--image", type=Path, action="append", default=[], metavar="FILE", help="picture, or a folder")
    what.add_argument("--describe", action="store_true", help="describe each picture; a question words it otherwise")
    what.add_argument("--card", action="store_true", help="print the checkpoint's card as JSON, and ask nothing")
    what.add_argument("--input", type=Path, metavar="FILE", help="questions, .jsonl or .json")
    what.add_argument("--output", type=Path, metavar="FILE", help="answers to --input, .jsonl")
    what.add_argument("--image-root", type=Path, metavar="FOLDER", help="of the pictures of --input (its own folder)")
    how = parser.add_argument_group("how tokens are chosen, instead of what the checkpoint's card says")
    how.add_argument("--max-new-tokens", type=int, metavar="N", help="longest answer")
    how.add_argument("--temperature", type=float, help="0 takes the likeliest token")
    how.add_argument("--top-p", type=float, help="share of probability that is sampled from")
    how.add_argument("--seed", type=int, help="of sampling")
    shown = parser.add_argument_group("what is shown")
    shown.add_argument("--stream", action="store_true", help="show the answer as it is written")
    shown.add_argument("--json", action="store_true", help="a line of JSON for each answer")
    shown.add_argument("--draw", type=Path, metavar="FILE.png", help="save the picture with the answer's boxes on it")
    shown.add_argument("--confidence", action="store_true", help="how sure the model was of its tokens, 0 to 1")
    model = model_flags(parser)
    model.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="questions at the same time (%(default)s)"
    )
    return parser


def main(words: Sequence[str] | None = None) -> int:
    options = parser().parse_args(words)
    kept = f"; answers so far are in {options.output}.part, and the same command goes on" if options.output else ""
    return run_program(partial(_answer, options), f"interrupted{kept}")


def _answer(options: argparse.Namespace) -> int:
    check(options)
    if options.card:
        from monkey.checkpoint_card import card_of

        print(json.dumps(card_of(checkpoint_of(options)).as_json(), ensure_ascii=False, indent=2))
        return 0
    return _run_file(options) if options.input else _run(options)


def check(options: argparse.Namespace) -> None:
    """Raise ValueError for flags that do not go together, FileNotFoundError for questions that are not there."""
    rows, draw, images = options.input is not None, options.draw, options.image
    says = "does not go with --input, whose rows say what is asked"
    mistakes = (
        (
            rows != (options.output is not None),
            "--input and --output go together: a file of questions, and the file for their answers",
        ),
        (rows and images, f"--image {says}"),
        (rows and options.question, f"a question {says}"),
        (rows and options.stream, f"--stream {says}"),
        (not rows and options.image_root is not None, "--image-root goes with --input; --image takes any path"),
        (
            options.stream and options.json,
            "--stream shows an answer as it is written, and --json when it is whole; choose one",
        ),
        (
            options.describe and not images and not rows,
            "--describe needs --image, a picture or a folder of pictures",
        ),
        (draw and rows, "--draw does not go with --input; the boxes of each row stand in --output, in pixels"),
        (
            draw and draw.suffix.lower() != ".png",
            f"--draw {draw}: a PNG is written, so the name must end in .png",
        ),
        (
            draw and (draw.is_dir() or not draw.parent.is_dir()),
            f"--draw {draw}: is a folder, or its folder does not exist; name a file to write",
        ),
        (
            draw and (len(images) != 1 or images[0].is_dir()),
            "--draw draws on one picture, and --image must name just that",
        ),
        (options.batch_size < 1, f"--batch-size is {options.batch_size}, and at least 1 is needed"),
    )
    for is_made, sentence in mistakes:
        if is_made:
            raise ValueError(sentence)
    if rows and not options.input.exists():
        raise FileNotFoundError(f"{options.input}: no such file")


def decoding_of(options: argparse.Namespace, card: CheckpointCard) -> Decoding:
    """The card's settings of `ask` or `describe` with what the flags change; ValueError for one that means nothing."""
    from monkey.decoding import decoding_of

    given = {name: getattr(options, name) for name in ("max_new_tokens", "temperature", "top_p", "seed")}
    given = {name: value for name, value in given.items() if value is not None}
    default = decoding_of(card.descriptions if options.describe else card.answers)
    return replace(default, confidence=options.confidence, **given)


def checkpoint_of(options: argparse.Namespace) -> str:
    if options.checkpoint:
        refuse_missing(options.checkpoint)
        return options.checkpoint
    from monkey.serving.session import default_checkpoint

    return str(default_checkpoint(Path(__file__).resolve().parent.parent))


def opened(options: argparse.Namespace, checkpoint: str) -> Answerer:
    from monkey.serving.session import load

    print(f"opening {checkpoint}", file=sys.stderr, flush=True)
    with warnings.catch_warnings(record=True) as noticed:
        answerer = load(
            checkpoint,
            options.device,
            options.dtype,
            options.quantization,
            compile=options.compile,
            max_rows=options.batch_size,
        )
    for notice in noticed:
        print(f"warning: {notice.message}", file=sys.stderr, flush=True)
    return answerer


def prompts_of(options: argparse.Namespace) -> list[tuple[Path, ...]]:
    """The pictures of each question that is asked.

    Raises:
        FileNotFoundError, ValueError: a picture that is not there, or a folder beside others or without pictures.
    """
    from monkey.images import FORMATS, counted, told_apart

    for path in options.image:
        if _ADDRESS.match(str(path)):
            raise ValueError(f"--image {path} is an address, and pictures are not fetched; download it first")
        if not path.exists():
            raise FileNotFoundError(f"--image {path}: no such picture or folder")
    folders = [path for path in options.image if path.is_dir()]
    if not folders:
        pictures = tuple(options.image)
        return [(picture,) for picture in pictures] if options.describe else [pictures]
    if len(options.image) > 1:
        raise ValueError(f"--image {folders[0]} is a folder, which stands alone: each of its pictures is asked about")
    files = (path.name for path in folders[0].iterdir() if not path.is_dir() and not path.name.startswith("."))
    names, others = told_apart(files)
    if not names:
        found = counted(others, ", but ")
        raise ValueError(f"--image {folders[0]}: the folder holds no picture{found}; formats: {', '.join(FORMATS)}")
    if others:
        print(counted(others, "left out, as no pictures by their endings: "), file=sys.stderr)
    return [(folders[0] / name,) for name in names]


def question_of(options: argparse.Namespace) -> str | None:
    """The question, from standard input where none is given; None for a description in the usual words."""
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


def _run(options: argparse.Namespace) -> int:
    """Ask about the pictures of the flags."""
    from monkey.checkpoint_card import card_of

    prompts, question = prompts_of(options), question_of(options)
    checkpoint = checkpoint_of(options)
    decoding = decoding_of(options, card_of(checkpoint))
    failed = 0
    with opened(options, checkpoint) as answerer:
        begin = partial(begun, answerer, question=question, describe=options.describe, decoding=decoding)
        for pictures, reply in _in_flight(prompts, begin, 2 * options.batch_size):
            name = f"{pictures[0]}: " if len(prompts) > 1 else ""
            try:
                if isinstance(reply, Exception):
                    raise reply
                _show(answerer, reply, pictures, question, name, options)
                if options.draw is not None:
                    _draw(answerer, reply, pictures[0], options.draw)
            except FAULTS as error:
                if len(prompts) == 1:
                    raise
                failed += 1
                print(f"error: {error}", file=sys.stderr)
    return EXIT_PARTIAL if failed else 0


def _in_flight(
    asked: Iterable[Asked], begin: Callable[[Asked], Reply | Exception], ahead: int
) -> Iterator[tuple[Asked, Reply | Exception]]:
    """Each of what is asked with its answer, or what is wrong with it; those that follow are being worked on."""
    waiting: deque[tuple[Asked, Reply | Exception]] = deque()
    for one in asked:
        waiting.append((one, begin(one)))
        if len(waiting) > ahead:
            yield waiting.popleft()
    while waiting:
        yield waiting.popleft()


def begun(
    answerer: Answerer, pictures: Sequence[Path], question: str | None, describe: bool, decoding: Decoding
) -> Reply | ValueError | FileNotFoundError:
    """The answer on its way, or the error of a bad picture or question."""
    try:
        if describe:
            return answerer.describe(pictures[0], question, decoding)
        return answerer.ask(list(pictures), question, decoding)
    except (ValueError, FileNotFoundError) as error:
        return error


def _show(answerer: Answerer, reply: Reply, pictures: Sequence[Path], question: str | None, name: str, options) -> None:
    """Print one answer."""
    if options.json:
        asked = {"images": [str(picture) for picture in pictures], "question": question}
        print(json.dumps({**asked, **told(answerer, reply, pictures)}, ensure_ascii=False), flush=True)
        return
    if options.stream:
        print(name, end="", flush=True)
        for piece in reply:
            print(piece, end="", flush=True)
        print(flush=True)
    else:
        print(f"{name}{reply.text}", flush=True)
    if options.confidence:
        print(f"{name}confidence {reply.confidence:.3f}", file=sys.stderr)


def _draw(answerer: Answerer, reply: Reply, picture: Path, path: Path) -> None:
    """Save the picture with the answer's boxes on it, whole or not at all."""
    from monkey.boxes import drawn

    boxes = reply.boxes
    if not boxes:
        raise ValueError(
            f"the answer holds no box, so {path} was not written; <ref> asks for one: "
            '"Where is <ref>the red bicycle</ref>?"'
        )
    with atomic_file(path) as stream:
        drawn(answerer.open_picture(picture), boxes).save(stream, "PNG")


def told(answerer: Answerer, reply: Reply, pictures: Sequence[Path]) -> dict[str, Any]:
    """What is written of an answer in JSON; waits for its end.

    `boxes` has each that the answer names: its label, its corners as written (0 to 1000), and left, top, right, bottom
    in pixels of each of the pictures, upright, since markup does not say which of several it means.
    """
    fields: dict[str, Any] = {
        "answer": reply.text,
        "finish_reason": reply.finish_reason,
        "prompt_tokens": reply.prompt_tokens,
        "new_tokens": reply.new_tokens,
    }
    if reply.confidence is not None:
        fields["confidence"] = reply.confidence
    boxes = reply.boxes
    sizes = [answerer.open_picture(picture).size for picture in pictures] if boxes else []
    fields["boxes"] = [
        {
            "label": box.label,
            "box": box.box,
            "pixels": [[round(value, 2) for value in box.in_pixels(size)] for size in sizes],
        }
        for box in boxes
    ]
    return fields


def _run_file(options: argparse.Namespace) -> int:
    """Answer the rows of a file that have no answer yet."""
    checkpoint = checkpoint_of(options)

    from tqdm import tqdm

    from monkey.checkpoint_card import card_of
    from monkey.checkpoint_files import checkpoint_fingerprint
    from monkey.serving.answer_file import AnswerFile, read_questions

    card = card_of(checkpoint)
    decoding = decoding_of(options, card)
    settings = {
        "checkpoint": checkpoint_fingerprint(checkpoint),
        "prompts": [card.question_prompt, card.description_prompts[0]],
        "decoding": asdict(decoding),
        "dtype": options.dtype,
        "quantization": options.quantization,
        "describe": options.describe,
    }
    questions = read_questions(options.input, options.image_root, not options.describe, settings)
    faults = {question.source: question.fault for question in questions if question.fault is not None}
    named = set(faults)  # before the model is opened
    _name_faults(faults)
    with AnswerFile(options.output) as file:
        pending = [question for question in questions if question.fault is None and question.key not in file.answers]
        done = len(questions) - len(pending)
        if pending:
            bar = tqdm(total=len(questions), initial=done, unit="answer", desc=options.output.name, disable=None)
            with opened(options, checkpoint) as answerer, bar:
                for question, reply in _in_flight(
                    pending,
                    lambda own: begun(answerer, own.pictures, own.question, options.describe, decoding),
                    2 * options.batch_size,
                ):
                    try:
                        if isinstance(reply, Exception):
                            raise reply
                        file.add(question.key, told(answerer, reply, question.pictures))
                    except FAULTS as error:
                        faults[question.source] = str(error)
                    bar.update()
        file.finish(questions, faults)
    print(f"{options.output}: {len(questions):,} rows, {len(pending):,} of them asked now", file=sys.stderr)
    _name_faults({source: fault for source, fault in faults.items() if source not in named})
    if faults:
        print(f"{len(faults):,} of {len(questions):,} rows have no answer; the same command asks them", file=sys.stderr)
    return EXIT_PARTIAL if faults else 0


def _name_faults(faults: Mapping[str, str]) -> None:
    for source, fault in list(faults.items())[:5]:
        print(f"error: {fault if source in fault else f'{source}: {fault}'}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
