"""Reads all of a training set before a run does: every row, every image, every length, and what is there twice.

    report = check_data(["train.json"], evaluation=["heldout.jsonl"], checkpoint="echo840/Monkey")
    print(report.table())

Rows and images are read in processes of their own. In memory stay, for a row, a few numbers, and for an image its path
and two hashes. Two images are the same where their decoded RGB pixels are (so another format without loss is found), or
their files' bytes; one that was resized or compressed again is another.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from array import array
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import monkey
from monkey.data import check_report as kinds
from monkey.data.check_reading import ImageRead, ImageTask, OpenedFile, RowTask, SampleEncoder, digest
from monkey.data.check_report import Finding, Report, pieces_of
from monkey.data.foreign import find_form
from monkey.data.mixture import RecordSet, record_sets
from monkey.data.records import examine_record
from monkey.data.rows import IndexedRows, MalformedRows

CHECKS = ("images", "lengths", "duplicates", "leakage")
"""Checks that may be left out; rows are always read."""

_ROWS_A_TASK, _IMAGES_A_TASK = 256, 16
# Starting a process takes as long as reading about this many here.
_ROWS_WORTH_A_PROCESS, _IMAGES_WORTH_A_PROCESS = 20_000, 400


def check_data(
    files: str | Path | Sequence[str | Path],
    *,
    evaluation: Sequence[str | Path] = (),
    checkpoint: str | None = None,
    image_root: str | Path | None = None,
    evaluation_image_root: str | Path | None = None,
    max_length: int = 2048,
    workers: int | None = None,
    skip: Collection[str] = (),
    preview: int = 0,
) -> Report:
    """Read training files and mixtures whole, and report all that is wrong with them.

    Args:
        files: JSON lists, JSONL files and mixtures of conversations.
        evaluation: files of questions or of conversations whose images must not be trained on.
        checkpoint: folder or hub name whose tokenizer counts lengths and whose settings open images; without one
            lengths are not checked.
        image_root: where images are looked up; see `read_records`.
        evaluation_image_root: the same for the evaluation files.
        max_length: tokens that a sample may have.
        workers: processes; 0 for none but this one; None for as many as are worth starting.
        skip: members of `CHECKS` to leave out.
        preview: records to show, evenly spaced over those without a fault.

    Raises:
        FileNotFoundError, ValueError: what cannot be started: a missing file, folder or checkpoint, an unknown ending,
            a mixture that is not of its form. What is wrong inside of the files is in the report.
    """
    unknown = sorted(set(skip) - set(CHECKS))
    if unknown:
        raise ValueError(f"there is no check {unknown[0]!r} to skip; there are {', '.join(CHECKS)}")
    skipped = {name: "as asked" for name in CHECKS if name in skip}
    processor = monkey.MonkeyProcessor.from_pretrained(checkpoint) if checkpoint is not None else None
    if processor is None:
        skipped.setdefault("lengths", "no checkpoint was given, whose tokenizer would count")
    if not evaluation:
        skipped.setdefault("leakage", "no evaluation file was given")
    if "images" in skipped:
        skipped.setdefault("leakage", "images are not opened")
    sets = [(one, False) for one in record_sets(files, image_root)]
    if evaluation:
        sets += [(one, True) for one in record_sets(evaluation, evaluation_image_root)]
    found: list[Finding] = []
    opened: list[OpenedFile] = []
    for one, is_evaluation in sets:
        first = opened[-1].first + len(opened[-1].rows) if opened else 0
        file = _opened(one, is_evaluation, first, found)
        opened += [file] if file else []
    encoder = SampleEncoder(processor, max_length) if processor is not None else None
    uses = _read_all_rows(opened, encoder if "lengths" not in skipped else None, workers, found)
    _report_no_images(uses, opened, found)
    images = None
    if "images" not in skipped:
        images = _open_all_images(uses, processor, workers)
        _report_broken(uses, images, opened, found)
        _report_several_names(uses, images, found)
    if "duplicates" not in skipped:
        _report_duplicates(uses, images, opened, found)
    if "leakage" not in skipped:
        _report_leakage(uses, images, opened, found)
    return Report(
        files=[file.described() for file in opened],
        findings=found,
        images=len(uses.paths),
        longest=uses.longest,
        skipped=skipped,
        previews=_previews(uses, opened, encoder.processor if encoder else None, preview),
    )


def _opened(one: RecordSet, is_evaluation: bool, first: int, found: list[Finding]) -> OpenedFile | None:
    """The file, or None where nothing in it can be read, which is then a finding."""
    try:
        rows = IndexedRows(one.path)
    except MalformedRows as error:
        found.append(Finding(kinds.UNREADABLE, _place_in(str(error)), str(error)))
        return None
    try:
        notice = one.check_count(len(rows))
        if notice:
            found.append(Finding(kinds.OTHER_COUNT, str(one.path), notice))
    except ValueError as error:
        found.append(Finding(kinds.ROW_COUNT, str(one.path), str(error)))
    as_questions = is_evaluation and holds_questions(rows)
    file = OpenedFile(rows, one.image_root, one.weight, is_evaluation, as_questions, first)
    file.pictures()  # a missing folder is found now
    return file


def _place_in(sentence: str) -> str:
    """`file:line` or `file` that a sentence of `MalformedRows` begins with."""
    return sentence.split(": ", 1)[0]


def holds_questions(rows: IndexedRows) -> bool:
    """Whether the first row that can be read is no conversation."""
    for index in range(len(rows)):
        try:
            _, row = rows[index]
        except MalformedRows:
            continue  # it is reported when the rows are checked
        return find_form(row) is None
    return True


@dataclass
class _Uses:
    """Which row shows which image, by their numbers, in the order of the rows; and the rows without a fault."""

    numbers: dict[str, int] = field(default_factory=dict)
    """Path of an image -> its number."""
    row: array = field(default_factory=lambda: array("q"))
    image: array = field(default_factory=lambda: array("q"))
    sound_rows: array = field(default_factory=lambda: array("q"))
    sound_digests: bytearray = field(default_factory=bytearray)
    """Of the turns of each sound conversation, one after the other."""
    longest: tuple[int, str] = (0, "")

    @property
    def paths(self) -> list[str]:
        return list(self.numbers)

    def add(self, row: int, turns: bytes, images: Sequence[str]) -> None:
        for path in images:
            self.row.append(row)
            self.image.append(self.numbers.setdefault(path, len(self.numbers)))
        if turns:
            self.sound_rows.append(row)
            self.sound_digests += turns

    def pairs(self) -> Iterator[tuple[int, int]]:
        """(row, image) of every use."""
        return zip(self.row, self.image, strict=True)


def _read_all_rows(
    files: Sequence[OpenedFile], encoder: SampleEncoder | None, workers: int | None, found: list[Finding]
) -> _Uses:
    stretches = [
        (number, start, min(start + _ROWS_A_TASK, len(file.rows)))
        for number, file in enumerate(files)
        for start in range(0, len(file.rows), _ROWS_A_TASK)
    ]
    total = sum(len(file.rows) for file in files)
    uses = _Uses()
    ids_of_files: list[dict[str, str]] = [{} for _ in files]
    with tqdm(total=total, desc="reading rows", unit="row", leave=False, disable=None) as bar:
        results = in_order(RowTask(files, encoder), stretches, _process_count(workers, total, _ROWS_WORTH_A_PROCESS))
        for (number, start, stop), result in zip(stretches, results, strict=True):
            found += result.findings
            files[number].forms.update(result.forms)
            for row, turns, images in result.rows:
                uses.add(row, turns, images)
            for source, question_id in result.question_ids:
                first = ids_of_files[number].setdefault(question_id, source)
                if first != source:
                    sentence = f"{source}: question_id {question_id!r} was given before, at {first}; ids must differ"
                    found.append(Finding(kinds.ID_TWICE, source, sentence))
            uses.longest = max(uses.longest, result.longest, key=lambda pair: pair[0])
            bar.update(stop - start)
    return uses


def _open_all_images(uses: _Uses, processor: monkey.MonkeyProcessor | None, workers: int | None) -> list[ImageRead]:
    """What each image holds, in the order of their numbers."""
    settings = processor.image_processor.opening if processor is not None else {}
    paths = uses.paths
    tasks = [paths[start : start + _IMAGES_A_TASK] for start in range(0, len(paths), _IMAGES_A_TASK)]
    read: list[ImageRead] = []
    with tqdm(total=len(paths), desc="opening images", unit="image", leave=False, disable=None) as bar:
        for result in in_order(
            ImageTask(settings), tasks, _process_count(workers, len(paths), _IMAGES_WORTH_A_PROCESS)
        ):
            read += result
            bar.update(len(result))
    return read


def _source(files: Sequence[OpenedFile], row: int) -> str:
    file = next(file for file in reversed(files) if file.first <= row)
    return file.rows.source(row - file.first)


def _evaluation_start(files: Sequence[OpenedFile]) -> int:
    """Number of the first row that is not trained on."""
    return sum(len(file.rows) for file in files if not file.is_evaluation)


def _report_no_images(uses: _Uses, files: Sequence[OpenedFile], found: list[Finding]) -> None:
    """Say that a model would learn from text alone."""
    end = _evaluation_start(files)
    if min(uses.row, default=end) >= end and min(uses.sound_rows, default=end) < end:
        named = " ".join(str(file.rows.path) for file in files if not file.is_evaluation)
        sentence = f"{named}: no record has an image, so a model learns from text alone"
        found.append(Finding(kinds.NO_IMAGES, str(files[0].rows.path), sentence))


def _report_broken(uses: _Uses, images: Sequence[ImageRead], files: Sequence[OpenedFile], found: list[Finding]) -> None:
    for row, image in uses.pairs():
        fault = images[image].fault
        if fault:
            source = _source(files, row)
            found.append(Finding(fault.kind, source, f"{source}: {fault.sentence}"))


def _report_several_names(uses: _Uses, images: Sequence[ImageRead], found: list[Finding]) -> None:
    first_path: dict[bytes, str] = {}
    for path, image in zip(uses.numbers, images, strict=True):
        first = first_path.setdefault(image.pixels, path) if image.pixels else path
        if os.path.realpath(first) != os.path.realpath(path):
            found.append(Finding(kinds.SEVERAL_NAMES, path, f"{path}: shows the same pixels as {first}"))


def _report_duplicates(
    uses: _Uses, images: Sequence[ImageRead] | None, files: Sequence[OpenedFile], found: list[Finding]
) -> None:
    """Training rows with the turns and the images of an earlier one."""
    rows = np.array(uses.sound_rows, np.int64)
    rows = rows[rows < _evaluation_start(files)]
    if not len(rows):
        return
    starts, stops = (np.searchsorted(np.array(uses.row, np.int64), rows, side) for side in ("left", "right"))
    size = len(uses.sound_digests) // max(1, len(uses.sound_rows))
    paths = uses.paths

    def content(image: int) -> bytes:
        read = images[image] if images is not None else None
        return (read and (read.pixels or read.file)) or digest(
            os.path.realpath(paths[image]).encode("utf-8", "replace")
        )

    whole = bytearray()
    for number, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
        turns = uses.sound_digests[number * size : (number + 1) * size]
        whole += digest(turns + b"".join(content(image) for image in uses.image[start:stop]))
    keys = np.frombuffer(bytes(whole), np.uint64).reshape(len(rows), -1)
    order = np.lexsort(keys.T)  # stable: among equals the earliest row comes first
    ordered = keys[order]
    is_new = np.ones(len(rows), bool)
    is_new[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    firsts = order[np.maximum.accumulate(np.where(is_new, np.arange(len(rows)), 0))]
    for row, first in sorted((int(rows[r]), int(rows[f])) for r, f in zip(order, firsts, strict=True) if r != f):
        source = _source(files, row)
        sentence = f"{source}: has the same turns and images as {_source(files, first)}"
        found.append(Finding(kinds.DUPLICATE, source, sentence))


def _report_leakage(
    uses: _Uses, images: Sequence[ImageRead], files: Sequence[OpenedFile], found: list[Finding]
) -> None:
    """Training rows that show an image of an evaluation file."""
    evaluation_start = _evaluation_start(files)
    by_pixels: dict[bytes, tuple[int, int]] = {}
    by_file: dict[bytes, tuple[int, int]] = {}
    for row, image in uses.pairs():
        if row >= evaluation_start:
            by_pixels.setdefault(images[image].pixels, (row, image))
            by_file.setdefault(images[image].file, (row, image))
    by_pixels.pop(b"", None)
    by_file.pop(b"", None)
    paths = uses.paths
    for row, image in uses.pairs():
        same_file, same_pixels = by_file.get(images[image].file), by_pixels.get(images[image].pixels)
        other = same_file or same_pixels
        if row < evaluation_start and other:
            source = _source(files, row)
            what = "has the bytes" if same_file else "shows the pixels"
            place = f"{paths[other[1]]} in {_source(files, other[0])}"
            found.append(Finding(kinds.LEAKED, source, f"{source}: {paths[image]} {what} of {place}"))


def _previews(
    uses: _Uses, files: Sequence[OpenedFile], processor: monkey.MonkeyProcessor | None, most: int
) -> list[tuple[str, list[kinds.Piece]]]:
    sound = [row for row in uses.sound_rows if row < _evaluation_start(files)]
    count = min(most, len(sound))
    previews = []
    for number in range(count):
        row = sound[number * len(sound) // count]
        file = next(file for file in reversed(files) if file.first <= row)
        source, fields = file.rows[row - file.first]
        record, _ = examine_record(fields, source, file.pictures())
        try:
            previews.append((source, pieces_of(record, processor)))
        except ValueError as error:
            previews.append((source, [kinds.Piece(f"{kinds.NOT_ENCODABLE}: {error}", "prompt")]))
    return previews


def _process_count(workers: int | None, amount: int, worth_one: int) -> int:
    """Processes to start for an amount of work, 0 for none but this one."""
    if workers is not None:
        return workers
    wanted = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 16)
    return wanted if amount >= worth_one and wanted > 1 else 0


_task: Callable[[Any], Any]


def _install(task: Callable[[Any], Any]) -> None:
    """Once in each process: what it is to do. Ctrl-C is for the process that started it."""
    global _task
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _task = task


def _run(argument: Any) -> Any:
    return _task(argument)


def in_order(task: Callable[[Any], Any], arguments: Sequence[Any], workers: int) -> Iterator[Any]:
    """Results in the order of the arguments, a few ahead at most.

    Raises:
        ChildProcessError: a process ended by itself.
    """
    if workers == 0:
        yield from map(task, arguments)
        return
    # Forked from a server that has imported all this once: quick, and safe beside the threads of this process.
    can_serve = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if can_serve else "spawn")
    if can_serve:
        context.set_forkserver_preload([__name__])
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_install, initargs=(task,))
    try:
        rest = iter(arguments)
        ahead = deque(executor.submit(_run, argument) for argument in itertools.islice(rest, 4 * workers))
        while ahead:
            yield ahead.popleft().result()
            ahead.extend(executor.submit(_run, argument) for argument in itertools.islice(rest, 1))
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a checking process ended by itself, for want of memory perhaps; run again with fewer --workers"
        ) from error
    finally:
        executor.shutdown(cancel_futures=True)
