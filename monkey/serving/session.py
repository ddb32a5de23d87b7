"""A model that is open for questions: about images, one or several, in one turn or many, answers piece by piece.

    import monkey

    with monkey.load("models/small") as model:
        print(model.ask("sign.png", "What does the sign say?").text)

Prompts are made here from what a user types and nowhere else; it is plain text in them, so `<img>` and `<|im_start|>`
in a question are characters, never an image to open or a control token. Markers of boxes alone are tokens: `What is at
<box>(520,40),(790,210)</box>?` is read as in training.
"""

from __future__ import annotations

import importlib.util
import itertools
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from monkey.boxes import to_canvas
from monkey.checkpoint_card import CheckpointCard, card_of
from monkey.conversation import UNSUPERVISED, Conversation, Template, join_parts
from monkey.decoding import Decoding, decoding_of
from monkey.devices import check_dtype, choose_place, half_precision
from monkey.engine import Canvas, Engine, Request, computing_thread
from monkey.files import project_folder
from monkey.grammar import Grammar, Grammars
from monkey.grids import NO_WINDOWS
from monkey.modeling import MonkeyForConditionalGeneration
from monkey.processing import MonkeyProcessor, TooLong
from monkey.prompts import after_image, is_prompt
from monkey.reply import REPLY_TIMEOUT, Reply
from monkey.serving.attention_maps import ImageAttention, compute_maps

DEFAULT_CHECKPOINT = "models/small"
"""The model that ships, below the project's own folder: what a program without a checkpoint opens."""

MAX_ROWS = 8
"""Requests that are answered at the same time unless another number is given."""

CACHE_BYTES = 2**30
"""Of keys and values that a CPU keeps for later prompts; a GPU keeps a quarter of what is free beside the model."""

QUANTIZATIONS = ("4bit",)

WARM_UP_TOKENS = 8
"""CUDA graphs are recorded in the first few steps."""


def default_checkpoint() -> Path:
    """Return the model that ships, or raise FileNotFoundError where somebody took it away."""
    checkpoint = project_folder() / DEFAULT_CHECKPOINT
    if checkpoint.is_dir():
        return checkpoint
    raise FileNotFoundError(
        f"{checkpoint} is not there: it comes with a clone of the repository and with its wheel; name another model "
        "with -c CHECKPOINT"
    )


def chosen_device(cpu_only: bool) -> tuple[str, str]:
    """Return the device of a single model, and the same for people: the GPU if there is one and it is wanted."""
    if cpu_only:
        return "cpu", "the CPU, as --cpu-only says"
    if torch.cuda.is_available():
        return "cuda", f"the GPU, {torch.cuda.get_device_name()}"
    return "cpu", "the CPU: torch sees no CUDA device here"


def load(
    checkpoint: str | Path,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    quantization: str | None = None,
    *,
    compile: bool = False,
    max_rows: int = MAX_ROWS,
    cache_bytes: int | None = None,
    name: str | None = None,
    grid: tuple[int, int] | None = None,
    grids: str | Sequence[Sequence[int]] | None = None,
    fit: str | None = None,
    max_windows: int | None = None,
) -> Answerer:
    """Open a checkpoint for questions.

    Args:
        checkpoint: a folder (published layout, our own saves, or a PEFT adapter on a base), or a hub name, which is
            found in the offline cache too.
        device: "cpu", "cuda", "cuda:1", …, or "mps" on a Mac; "auto" takes the CUDA device where there is one, and
            where there are several fills one after the other.
        dtype: a torch type or its name; "auto" is the checkpoint's own, save that bfloat16 becomes float16 on a device
            that does not compute in it. On a CPU, which is slow at it, float16 becomes float32.
        quantization: "4bit" packs the decoder's linears as NF4, through bitsandbytes; None leaves them as they are.
        compile: compile the step that writes a token, on CUDA, before this returns, and say how long it took on
            standard error; on a CPU a warning says that nothing is compiled.
        max_rows: requests that are answered at the same time; others wait in line.
        cache_bytes: of keys and values that are kept for later questions about the same images and for conversations
            that go on; 0 keeps none. By default `CACHE_BYTES`, or a quarter of a GPU's free memory.
        name: what people call the model; by default the last part of its checkpoint's name.
        grid: rows and columns of windows other than the checkpoint's own; its adapters are placed on them.
        grids: of which each image takes the one that suits its shape, "up-to-6" or a list of rows and columns; the
            checkpoint's own when None.
        fit: "stretch" or "pad": how an image is put on its grid; the checkpoint's own when None.
        max_windows: leaves out grids of more windows. A question may leave out more, and never fewer.

    Raises:
        FileNotFoundError: no such checkpoint, or a file of it is missing.
        ValueError: a checkpoint that does not fit, CUDA that is not there, too little memory on the device, bfloat16
            on one that does not compute in it, or another setting that cannot be had.
    """
    if max_rows < 1:
        raise ValueError(f"max_rows is {max_rows}, and at least one request must be answered at a time")
    place = choose_place(device)
    dtype = _read_dtype(dtype, place)
    layout = {"grid": grid, "grids": grids, "fit": fit}
    processor, card = MonkeyProcessor.from_pretrained(checkpoint, **layout), card_of(checkpoint)
    if max_windows is not None:
        processor = processor.limit_windows(max_windows)
    thread = computing_thread()
    try:
        if place == "cpu":
            # OpenMP keeps workers for each thread that computed, and slows all of them when they outnumber the cores.
            model = thread.submit(_open_model, checkpoint, place, dtype, quantization, layout).result()
        else:
            model = _open_model(checkpoint, place, dtype, quantization, layout)
    except torch.OutOfMemoryError as error:
        raise ValueError(
            f"{checkpoint} does not fit into the memory of {device}; use the CPU, or free memory"
        ) from error
    if compile and model.device.type != "cuda":
        warnings.warn(f"compile=True does nothing on {model.device}: only CUDA's decoding is compiled", stacklevel=2)
        compile = False
    name = name or Path(checkpoint).resolve().name
    answerer = Answerer(
        model, processor, name, max_rows=max_rows, cache_bytes=cache_bytes, compiled=compile, thread=thread, card=card
    )
    if compile:
        print("compiling the step that writes a token", file=sys.stderr, flush=True)
        print(f"compiled in {warm_up(answerer):.0f} seconds", file=sys.stderr, flush=True)
    return answerer


def warm_up(answerer: Answerer) -> float:
    """Write tokens for nobody, so that what is compiled on first use is compiled before anybody waits; the seconds."""
    start = time.perf_counter()
    ids = answerer.processor.encode_segments([("Question: ", False)])
    request = Request(ids, [], Decoding(max_new_tokens=WARM_UP_TOKENS), WARM_UP_TOKENS, frozenset())
    with answerer.engine.submit(request) as reply:
        reply.timeout = answerer.patience
        _ = reply.text
    return time.perf_counter() - start


def _read_dtype(dtype: str | torch.dtype, place: str) -> str | torch.dtype:
    if dtype == "auto":
        return dtype
    named = dtype if isinstance(dtype, torch.dtype) else getattr(torch, str(dtype), None)
    if not isinstance(named, torch.dtype) or not named.is_floating_point:
        raise ValueError(f"dtype is {dtype!r}, and it is auto, float32, bfloat16 or float16")
    check_dtype(named, place, f"dtype {str(named).removeprefix('torch.')}")
    return named


def _open_model(
    checkpoint: str | Path, place: str, dtype: str | torch.dtype, quantization: str | None, layout: dict[str, Any]
) -> MonkeyForConditionalGeneration:
    """Return the model, packed or not, on its device and in evaluation mode."""
    if quantization is None:
        placement = {} if place == "cpu" else {"device_map": place}
        model = MonkeyForConditionalGeneration.from_pretrained(checkpoint, **layout, dtype=dtype, **placement).eval()
        if dtype == "auto" and half_precision(place) == torch.float16:
            for tensor in itertools.chain(model.parameters(), model.buffers()):
                if tensor.dtype == torch.bfloat16:
                    tensor.data = tensor.half()
        return model.float() if place == "cpu" and model.dtype == torch.float16 else model
    if quantization not in QUANTIZATIONS:
        raise ValueError(f"quantization is {quantization!r}, and it is None or {', '.join(QUANTIZATIONS)}")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(
            f"quantization={quantization!r} packs the decoder through bitsandbytes, which is not installed: "
            "pip install bitsandbytes"
        )
    from monkey.quantised import open_four_bit

    return open_four_bit(str(checkpoint), **layout, dtype=None if dtype == "auto" else dtype, device_map=place).eval()


class Answerer:
    """Answers questions about images, up to `max_rows` at once, in a thread of its own.

    Callers may be many: their requests join the batch in progress, and wait in line where it is full. What was read of
    an image or of a conversation is kept for the next question about it.

    Args:
        model: in evaluation mode, on its device.
        processor: of the same checkpoint.
        name: what people call it.
        patience: seconds to wait for one piece before TimeoutError.
        max_rows, cache_bytes: as of `load`.
        compiled: compile the step that writes a token; CUDA only.
        thread: one worker to compute in, see `monkey.engine.computing_thread`; a new one when None.
        card: of the checkpoint; as published, on unknown terms, when None.

    Attributes:
        grammars: makes what holds answers to JSON schemas.
        engine: what computes; its `stats`, `waiting` and `running` are for whoever watches it.
        form: how `chat` writes conversations unless told, see `monkey.conversation`: "chatml" for a checkpoint
            whose generation settings say `chat_format: chatml`, "decoder" where the decoder's own tokenizer has a chat
            template, else "questions".
    """

    def __init__(
        self,
        model: MonkeyForConditionalGeneration,
        processor: MonkeyProcessor,
        name: str = "Monkey",
        patience: float = REPLY_TIMEOUT,
        max_rows: int = MAX_ROWS,
        cache_bytes: int | None = None,
        compiled: bool = False,
        thread: ThreadPoolExecutor | None = None,
        card: CheckpointCard | None = None,
    ):
        self.model, self.processor, self.name, self.patience = model, processor, name, patience
        self.card = card or CheckpointCard()
        self.for_answers, self.for_descriptions = decoding_of(self.card.answers), decoding_of(self.card.descriptions)
        settings = model.generation_config
        own: Template = "decoder" if processor.form == "decoder" else "questions"
        self.form: Template = "chatml" if getattr(settings, "chat_format", None) == "chatml" else own
        if cache_bytes is None:
            on_gpu = model.device.type == "cuda"
            cache_bytes = torch.cuda.mem_get_info(model.device)[0] // 4 if on_gpu else CACHE_BYTES
        self.engine = Engine(model, processor, max_rows, cache_bytes, compiled, thread)
        self.grammars = Grammars(processor.tokenizer)
        ends = settings.eos_token_id
        self._end_ids = frozenset(ends if isinstance(ends, (list, tuple)) else [ends]) - {None}

    def __enter__(self) -> Answerer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the answers in progress and refuse those in line; nothing can be asked afterwards."""
        self.engine.close()

    def open_image(self, source: Any, name: str | None = None) -> Image.Image:
        """Return an image as the model will see it, upright and RGB, before it is put on its canvas.

        Raises:
            FileNotFoundError, ValueError: as `monkey.images.open_image`, calling the image `name`.
        """
        return self.processor.image_processor.opened(source, name)

    def ask(
        self, images: Any, question: str, decoding: Decoding | None = None, *, max_windows: int | None = None
    ) -> Reply:
        """Answer a question about images, with the prompt that answers were trained with.

        Args:
            images: whatever `monkey.images.open_image` takes, or a list of such; an empty list for none.
            question: plain text, whatever it holds.
            decoding: `for_answers`, which the checkpoint's card says, when None.
            max_windows: of each image, where the model has grids to choose from, and at most as it was opened with;
                that when None.

        Returns:
            The answer as it comes. It is being worked on from here on, whether it is read or not.

        Raises:
            FileNotFoundError, ValueError: an image that cannot be opened, an empty or a too long question, or a
                `max_windows` below every grid's or above that of the model.
            RuntimeError: the model was closed.
        """
        if not question.strip():
            raise ValueError("the question is empty")
        text = self._in_question_prompt(question.strip())
        return self._answer(images, text, decoding or self.for_answers, max_windows)

    def describe(
        self,
        image: Any,
        prompt: str | None = None,
        decoding: Decoding | None = None,
        *,
        max_windows: int | None = None,
    ) -> Reply:
        """Describe an image; arguments, result and errors otherwise as of `ask`.

        Args:
            prompt: what to ask for, plain text; the first that the checkpoint's card has when None.
            decoding: `for_descriptions`, which the card says, when None.
        """
        prompt = self.card.description_prompts[0] if prompt is None else prompt.strip()
        if not prompt:
            raise ValueError("the prompt is empty; leave it out for a detailed description")
        # The prompts of training stand with a space before and behind; all else stands where a question does.
        text = f" {prompt} " if is_prompt(prompt) else self._in_question_prompt(prompt)
        return self._answer(image, text, decoding or self.for_descriptions, max_windows)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        decoding: Decoding | None = None,
        *,
        form: Template | None = None,
        picture_labels: bool = True,
        max_windows: int | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> Reply:
        """Answer the last message of a conversation; result and errors as of `ask`.

        Where the conversation goes on from one that was asked before, its images and earlier turns are not read again.

        Args:
            messages: as `Conversation.from_messages` takes them, a user's last: `{"role": …, "content": text | parts}`,
                a part being `{"type": "text", "text": …}` or `{"type": "image", "image": …}` with whatever
                `monkey.images.open_image` takes, and `"detail": "low"` to see the image's global view alone. All
                content is plain text.
            form: how it is written, "chatml", "questions", "plain" or "decoder" (`monkey.conversation`); `self.form`
                when None.
            picture_labels: in "chatml", write `Picture n: ` before each image and a line break after it, as Qwen-VL's
                chat does; False writes the image alone, as published Monkey reads `<img>…</img>`.
            max_windows: as of `ask`; of every image of the conversation.
            schema: the answer is JSON of this JSON schema, cut off where `max_new_tokens` do not suffice; the model is
                not told of it.

        Raises:
            SchemaError: a schema that no answer can be held to; see `monkey.grammar`.
        """
        replies = self.chat_often(
            messages,
            [decoding or self.for_answers],
            form=form,
            picture_labels=picture_labels,
            max_windows=max_windows,
            grammar=None if schema is None else self.grammars.compile(dict(schema)),
        )
        return replies[0]

    def chat_often(
        self,
        messages: Sequence[Mapping[str, Any]],
        decodings: Sequence[Decoding],
        *,
        form: Template | None = None,
        picture_labels: bool = True,
        max_windows: int | None = None,
        grammar: Grammar | None = None,
    ) -> list[Reply]:
        """Answer a conversation once for each of `decodings`; the rest as of `chat`.

        Args:
            grammar: what `grammars` compiled of a schema.
        """
        processor = self.limited_processor(max_windows)
        conversation, ids = self._encode(processor, messages, form, picture_labels)
        canvases = _read_canvases(processor, conversation.images, conversation.global_only)
        form = form or self.form
        return [self._submit(ids, canvases, decoding, form, True, grammar) for decoding in decodings]

    def weigh(
        self,
        messages: Sequence[Mapping[str, Any]],
        answer: str,
        *,
        form: Template | None = None,
        picture_labels: bool = True,
        max_windows: int | None = None,
    ) -> Reply:
        """Weigh an answer that is given to the last message of a conversation: how likely the model is to give it.

        The beginning of the conversation is read once, however many answers to it are weighed.

        Args:
            messages, form, picture_labels, max_windows: as of `chat`.
            answer: plain text, put behind the conversation as answers are in training, with the token that ends one.

        Returns:
            The answer, with its `log_probability` and `is_greedy` after its end.

        Raises:
            FileNotFoundError, ValueError, RuntimeError: as `chat`; or an answer that is empty or too long.
        """
        processor, form = self.limited_processor(max_windows), form or self.form
        conversation = Conversation.from_messages([*messages, {"role": "assistant", "content": answer}])
        ids, labels, images = processor.encode(conversation, form, labels=True, **self._wording(picture_labels))
        # The last stretch of supervised tokens; what a template writes behind it is not.
        end = len(labels) - next(place for place, label in enumerate(reversed(labels)) if label != UNSUPERVISED)
        start = end - next(place for place, label in enumerate(reversed(labels[:end])) if label == UNSUPERVISED)
        given = tuple(ids[start:end])
        canvases = _read_canvases(processor, images, conversation.global_only)
        limit, ends = len(given), frozenset(given[-1:])
        return self._put_in_line(Request(ids[:start], canvases, Decoding(limit), limit, ends, given=given))

    def attention_maps(
        self,
        messages: Sequence[Mapping[str, Any]],
        answer: str,
        *,
        form: Template | None = None,
        picture_labels: bool = True,
        layers: Sequence[int] | None = None,
        max_windows: int | None = None,
    ) -> list[ImageAttention]:
        """Return where the resampler's queries and the tokens of an answer look, for each image of a conversation.

        The images and the whole conversation are read once more, between the steps of answers in progress.

        Args:
            messages: as of `chat`, up to the one that was answered. What `ask` was asked is one message that holds the
                images and the question, of the form "questions", or "decoder" where that is `self.form`.
            answer: what was answered; its tokens are those that its text is read as.
            form, picture_labels, max_windows: as of `chat`.
            layers: see `monkey.serving.attention_maps.answer_weights`.

        Raises:
            FileNotFoundError, ValueError, RuntimeError: as of `chat`; no image, or an empty answer.
            MemoryError: the device's memory does not suffice.
            TimeoutError: it took longer than `patience` seconds.
        """
        processor = self.limited_processor(max_windows)
        conversation, prompt = self._encode(processor, messages, form, picture_labels)
        images = conversation.images
        if any(conversation.global_only):
            raise ValueError("an image has the detail 'low', and a map is of all its views; leave it out")
        if not images:
            raise ValueError("the conversation has no image, so there is nothing to look at")
        if not answer.strip():
            raise ValueError("the answer is empty, so nothing looked at the image")
        canvases = _read_canvases(processor, images)
        # The answer's boxes are of the image, and the model wrote them on its canvas.
        written = to_canvas(Conversation.from_question(images[-1:], answer.strip()), [canvases[-1].share])
        ids = processor.encode_segments(join_parts(written.messages[0].parts[1:]), before=prompt)
        ids = ids[: self._room(prompt, max(1, len(ids)))]
        return compute_maps(self.model, processor.image_processor, prompt, ids, canvases, layers, self._run_exclusive)

    def _run_exclusive(self, work: Callable[[], Any]) -> Any:
        future = self.engine.run_exclusive(work)
        try:
            return future.result(self.patience)
        except TimeoutError as error:
            future.cancel()
            raise TimeoutError(f"the model did not come to it within {self.patience:g} seconds") from error

    def _in_question_prompt(self, question: str) -> str:
        return after_image(self.card.question_prompt).replace("{question}", question)

    def limited_processor(self, max_windows: int | None) -> MonkeyProcessor:
        """Return the processor with a limit of windows for one question.

        Raises:
            ValueError: all images are on one grid, every grid has more windows, or the model was opened with fewer.
        """
        if max_windows is None:
            return self.processor
        own = self.processor.image_processor
        if not own.is_ragged:
            rows, columns = self.model.config.grid
            raise ValueError(
                f"max_windows is {max_windows}, and this model puts every image on {rows}×{columns} windows; leave it "
                "out, or open the model with grids"
            )
        if own.max_windows is not None and max_windows > own.max_windows:
            raise ValueError(
                f"max_windows is {max_windows}, and this model was opened with at most {own.max_windows} windows an "
                f"image; ask for {own.max_windows} or fewer, or leave it out"
            )
        return self.processor.limit_windows(max_windows)

    def _answer(self, images: Any, text: str, decoding: Decoding, max_windows: int | None) -> Reply:
        processor = self.limited_processor(max_windows)
        images = list(images) if isinstance(images, (list, tuple)) else [images]
        # A chat template writes itself what says that an answer follows, and the prompt of training goes.
        form: Template = "decoder" if self.form == "decoder" else "plain"
        wording = {"question_prompt": self.card.question_prompt, "add_generation_prompt": True}
        ids, _, images = processor.encode(Conversation.from_question(images, text), form, **wording)
        return self._submit(ids, _read_canvases(processor, images), decoding, form)

    def _encode(
        self,
        processor: MonkeyProcessor,
        messages: Sequence[Mapping[str, Any]],
        form: Template | None,
        picture_labels: bool,
    ) -> tuple[Conversation, list[int]]:
        """Return a conversation, and its ids up to the answer that is asked for, questions worded as the card says."""
        conversation = Conversation.from_messages(messages)
        conversation.check_question()
        wording = self._wording(picture_labels)
        ids = processor.encode(conversation, form or self.form, add_generation_prompt=True, **wording).ids
        return conversation, ids

    def _wording(self, picture_labels: bool) -> dict[str, Any]:
        """Return what `encode` is told of conversations: the card's wording, and tokens of a global view alone."""
        config = self.model.config
        return {
            "question_prompt": self.card.question_prompt,
            "picture_labels": picture_labels,
            "global_tokens": config.tokens_of(NO_WINDOWS) if config.global_view else None,
        }

    def _submit(
        self,
        ids: list[int],
        canvases: list[Canvas],
        decoding: Decoding,
        form: Template,
        is_conversation: bool = False,
        grammar: Grammar | None = None,
    ) -> Reply:
        """Put a request in line; its inputs are made, so that bad input was refused at once."""
        room = self._room(ids, decoding.max_new_tokens)
        ends = self._end_ids | self.processor.end_ids(form)
        return self._put_in_line(
            Request(ids, canvases, decoding, room, ends, is_conversation, grammar=grammar and grammar.copy())
        )

    def _put_in_line(self, request: Request) -> Reply:
        reply = self.engine.submit(request)
        reply.timeout = self.patience
        return reply

    def _room(self, ids: list[int], wanted: int) -> int:
        """Return how many new tokens there are at most, or raise ValueError where there is room for none."""
        limit = self.processor.max_positions
        if len(ids) == limit:
            raise TooLong(
                f"{self.processor.describe_length(ids)}, and the model's {limit:,} leave no room for an answer; "
                "shorten the question"
            )
        return wanted if limit is None else min(wanted, limit - len(ids))


def _read_canvases(
    processor: MonkeyProcessor, images: Sequence[Any], global_only: Sequence[bool] | None = None
) -> list[Canvas]:
    names = ["the image"] if len(images) == 1 else [f"image {number}" for number in range(1, len(images) + 1)]
    read = (Canvas.read(image, processor.image_processor, name) for image, name in zip(images, names, strict=True))
    alone = global_only or [False] * len(images)
    return [canvas.seen_whole() if whole else canvas for canvas, whole in zip(read, alone, strict=True)]
