"""A model that is open for questions: one call at a time, answers piece by piece.

    with open_model("outputs/quickstart/finetuned", "cpu") as answerer:
        for piece in answerer.ask("sign.png", "What does the sign say?"):
            print(piece, end="", flush=True)

Prompts are made here and nowhere else in `serving`; whatever a user types is plain text in them, so `<img>` and
`<|im_start|>` in a question are characters, never a picture to open or a token of control.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature, TextIteratorStreamer

from monkey.images import open_image
from monkey.modeling import MonkeyForConditionalGeneration
from monkey.processing import MonkeyProcessor
from monkey.prompts import DETAILED_CAPTION_AS_TRAINED, VQA_AS_TRAINED, after_image

DEFAULT_CHECKPOINTS = ("models/small", "outputs/quickstart/finetuned")
"""Folders below the project's own, in the order in which a demo without `--checkpoint-path` looks for a model."""

POLL_SECONDS = 0.25
"""How often whoever waits for the next piece gets the chance to give up."""

PATIENCE_SECONDS = 600.0
"""Longest wait for one piece. The first needs the whole prompt, which takes minutes at full size on a CPU."""


@dataclass(frozen=True)
class Decoding:
    """How tokens are chosen."""

    max_new_tokens: int
    temperature: float = 0.0
    """0 takes the likeliest token every time; above, tokens are sampled."""
    seed: int | None = None
    """Of sampling: the same picture, prompt and seed give the same text. None for another text every time."""


FOR_ANSWERS = Decoding(max_new_tokens=512)
"""As the published demo answers questions."""

FOR_DESCRIPTIONS = Decoding(max_new_tokens=250, temperature=0.7, seed=0)
"""As the published demo describes a picture, but for the seed, which it leaves to chance."""


def default_checkpoint(project: Path) -> Path:
    """The first of `DEFAULT_CHECKPOINTS` that is there, or FileNotFoundError saying how to get one."""
    for name in DEFAULT_CHECKPOINTS:
        if (project / name).is_dir():
            return project / name
    raise FileNotFoundError(
        "there is no model to open yet; run `bash scripts/quickstart.sh` to train the small one, or name one with "
        "-c CHECKPOINT"
    )


def chosen_device(cpu_only: bool) -> tuple[str, str]:
    """Device of a single model, and the same for people: the GPU if there is one and it is wanted, else the CPU."""
    if cpu_only:
        return "cpu", "the CPU, as --cpu-only says"
    if torch.cuda.is_available():
        return "cuda", f"the GPU, {torch.cuda.get_device_name()}"
    return "cpu", "the CPU: torch sees no CUDA device here"


def open_model(checkpoint: str | Path, device: str = "cpu", *, dtype: str | torch.dtype = "auto") -> Answerer:
    """Open a checkpoint folder, or a hub name, for questions.

    Args:
        checkpoint: published layout, our own saves, or an adapter folder.
        device: "cpu", "cuda", "cuda:1", …
        dtype: "auto" is the checkpoint's own, save that half precision becomes fp32 on a CPU, which is slow at it.

    Raises:
        FileNotFoundError: no such checkpoint, or a file of it is missing.
        ValueError: a checkpoint that does not fit, CUDA that is not there, or too little memory on the device.
    """
    processor = MonkeyProcessor.from_pretrained(checkpoint)
    placement = {} if device == "cpu" else {"device_map": device}
    try:
        model = MonkeyForConditionalGeneration.from_pretrained(checkpoint, dtype=dtype, **placement).eval()
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"{checkpoint} does not fit into the memory of {device}; use the CPU, or free memory"
        ) from error
    if device == "cpu" and model.dtype == torch.float16:
        model = model.float()
    return Answerer(model, processor, name=Path(checkpoint).resolve().name)


class Answerer:
    """Answers questions about pictures, one at a time, in a thread of its own.

    Callers may be many: their questions wait in line. An iterator that `ask` or `describe` returned stops the model
    when it is closed or dropped, so a caller that goes away costs no more than the token in progress.

    Args:
        model: in evaluation mode, on its device.
        processor: of the same checkpoint.
        name: what people call it.
        patience: seconds to wait for one piece before TimeoutError.
    """

    def __init__(
        self,
        model: MonkeyForConditionalGeneration,
        processor: MonkeyProcessor,
        name: str = "Monkey",
        patience: float = PATIENCE_SECONDS,
    ):
        self.model = model
        self.processor = processor
        self.name = name
        self.patience = patience
        self._closing = threading.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="answerer")

    def __enter__(self) -> Answerer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the answer in progress and those in line; nothing can be asked afterwards."""
        self._closing.set()
        self._thread.shutdown(wait=True, cancel_futures=True)

    @property
    def max_bytes(self) -> int:
        """Largest picture file that is opened."""
        return self.processor.image_processor.max_bytes

    def open_picture(self, source: Any, name: str | None = None) -> Image.Image:
        """The picture as the model will see it, upright and RGB, before it is stretched to the canvas.

        Raises:
            FileNotFoundError, ValueError: as `monkey.images.open_image`, calling the picture `name`.
        """
        settings = self.processor.image_processor
        return open_image(
            source,
            apply_exif=settings.apply_exif,
            max_bytes=settings.max_bytes,
            max_pixels=settings.max_pixels,
            name=name,
        )

    def ask(self, picture: Any, question: str, decoding: Decoding = FOR_ANSWERS) -> Iterator[str]:
        """Answer a question about a picture.

        Args:
            picture: whatever `monkey.images.open_image` takes.
            question: plain text, whatever it holds.

        Returns:
            The answer's pieces; joined, they are the answer without white space around it. An empty piece comes
            every `POLL_SECONDS` in which nothing new was written. Iterating raises TimeoutError when no token comes
            for `patience` seconds, MemoryError when the device's memory does not suffice, and whatever else the
            model raised.

        Raises:
            FileNotFoundError, ValueError: a picture that cannot be opened, an empty or a too long question.
        """
        question = question.strip()
        if not question:
            raise ValueError("the question is empty")
        return self._answer(picture, after_image(VQA_AS_TRAINED).format(question=question), decoding)

    def describe(self, picture: Any, decoding: Decoding = FOR_DESCRIPTIONS) -> Iterator[str]:
        """Describe a picture in detail; arguments, result and errors as of `ask`."""
        return self._answer(picture, after_image(DETAILED_CAPTION_AS_TRAINED), decoding)

    def _answer(self, picture: Any, text: str, decoding: Decoding) -> Iterator[str]:
        """Make the inputs now, so that bad input is refused at once, and the answer while it is iterated over."""
        inputs = self.processor(images=[self.open_picture(picture)], text=text, inert_text=True)
        length, limit = inputs["input_ids"].shape[1], self.processor.max_positions
        room = decoding.max_new_tokens if limit is None else min(decoding.max_new_tokens, limit - length)
        if room < 1:
            raise ValueError(
                f"the prompt is {length:,} tokens long with its picture, and the model's {limit:,} leave no room for "
                "an answer; shorten the question"
            )
        return self._stream(inputs, decoding, room)

    def _stream(self, inputs: BatchFeature, decoding: Decoding, max_new_tokens: int) -> Iterator[str]:
        stopped = threading.Event()
        streamer = TextIteratorStreamer(
            self.processor.tokenizer, skip_prompt=True, timeout=POLL_SECONDS, skip_special_tokens=True
        )
        job = self._thread.submit(self._generate, inputs, decoding, max_new_tokens, streamer, stopped)
        try:
            yield from stripped(_pieces(streamer, job, self.patience))
            job.result()
        finally:
            stopped.set()
            job.cancel()

    def _generate(
        self,
        inputs: BatchFeature,
        decoding: Decoding,
        max_new_tokens: int,
        streamer: TextIteratorStreamer,
        stopped: threading.Event,
    ) -> None:
        """Run the model to the end, or until told to stop; runs in the answerer's thread only."""
        sampling = {"do_sample": True, "temperature": decoding.temperature} if decoding.temperature else {}
        try:
            with _seeded(decoding.seed if sampling else None, self.model.device):
                self.model.generate(
                    **inputs.to(self.model.device, dtype=self.model.dtype),
                    **{"do_sample": False, **sampling},
                    num_beams=1,
                    max_new_tokens=max_new_tokens,
                    min_new_tokens=1,
                    streamer=streamer,
                    stopping_criteria=[_stop_when(stopped, self._closing)],
                )
        except torch.OutOfMemoryError as error:
            raise MemoryError(
                f"the memory of {self.model.device} does not suffice for this picture and prompt"
            ) from error
        finally:
            # Whatever happened, nobody waits for a piece that will not come.
            streamer.text_queue.put(streamer.stop_signal)


def stripped(pieces: Iterable[str]) -> Iterator[str]:
    """The same text piece by piece, without white space at its beginning and end."""
    held, begun = "", False
    for piece in pieces:
        text = held + piece if begun else piece.lstrip()
        kept = text.rstrip()
        held = text[len(kept) :]
        begun = begun or bool(kept)
        yield kept


def _pieces(streamer: TextIteratorStreamer, job: Future, patience: float) -> Iterator[str]:
    """What the streamer gets while `job` runs, and "" at every poll in between."""
    waited = 0.0
    while not job.cancelled():
        try:
            piece = next(streamer)
        except StopIteration:
            return
        except queue.Empty:
            waited += POLL_SECONDS if job.running() else 0.0  # waiting in line does not count
            if waited >= patience:
                raise TimeoutError(f"the model wrote nothing for {patience:g} seconds") from None
            piece = ""
        else:
            waited = 0.0
        yield piece


def _stop_when(*events: threading.Event) -> Callable[..., torch.Tensor]:
    """A stopping criterion of `generate`: every row is done once any of the events is set."""

    def criterion(input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        is_done = any(event.is_set() for event in events)
        return torch.full((input_ids.shape[0],), is_done, dtype=torch.bool, device=input_ids.device)

    return criterion


@contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Random numbers from `seed` inside, and as if nothing had been drawn outside; nothing for None."""
    if seed is None:
        yield
        return
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
