"""Questions a second of the evaluator beside the published one's order of work, answers compared in the same run.

    python -m benchmarks.evaluation
    python -m benchmarks.evaluation --quick
    python -m benchmarks.evaluation --device cuda --dtype bfloat16 --width 4096 --layers 32 --heads 32 \\
        --vocabulary 151936 --vision-width 1664 --vision-layers 48 --vision-heads 16

The baseline asks four questions at a time, opens the image of each inside the step and encodes it once a question,
pads prompts on the left to the longest, concatenates keys and values, and keeps the hidden states of every layer and
step. Ours is the `hf` backend as a run uses it: from requests to answers, its start of the workers included. Images are
files on disk for both, weights are the same, and every answer has the same number of tokens. Ratios, baseline / ours in
time: `questions_speedup_1` and `questions_speedup_5`, at one question an image and at five.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from base64 import b64encode
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.measure import arguments, finish, report, seconds
from benchmarks.published import PublishedMonkey
from benchmarks.random_weights import made_on
from eval.backends import Request, growth
from eval.model_backend import ModelBackend
from eval.tasks import AS_TRAINED, prompt_form, select_tasks
from monkey import MonkeyConfig, MonkeyForConditionalGeneration, MonkeyProcessor
from monkey.checkpoint import published_names
from monkey.data.records import read_questions
from monkey.tokenization import QwenTokenizer
from monkey.vision import WindowAdapter

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of CLIP, as in the published preprocessing."""

QUESTIONS = (
    "What is the total?",
    "Who signed it?",
    "Is the second door open?",
    "How many people wait there?",
    "When?",
)


def byte_tokenizer(folder: Path) -> QwenTokenizer:
    """A tokenizer whose text tokens are the 256 bytes."""
    path = folder / "qwen.tiktoken"
    path.write_bytes(b"".join(b64encode(bytes([byte])) + b" %d\n" % byte for byte in range(256)))
    return QwenTokenizer(path)


def build(options, tokenizer: QwenTokenizer) -> MonkeyForConditionalGeneration:
    """A model with random weights at 896×896 that never ends an answer, so that both sides do the same work."""
    torch.manual_seed(options.seed)
    config = MonkeyConfig(
        vision_config={
            "hidden_size": options.vision_width,
            "num_hidden_layers": options.vision_layers,
            "num_attention_heads": options.vision_heads,
        },
        text_config={
            "hidden_size": options.width,
            "intermediate_size": options.width * 43 // 16,
            "num_hidden_layers": options.layers,
            "num_attention_heads": options.heads,
            "vocab_size": options.vocabulary,
        },
        image_start_id=tokenizer.image_start_id,
    )
    with made_on(options.device, getattr(torch, options.dtype)):
        model = MonkeyForConditionalGeneration(config).eval()
    for module in model.modules():
        if isinstance(module, WindowAdapter):
            torch.nn.init.normal_(module.up, std=0.02)
    with torch.no_grad():
        # With weights as small as those that training begins with, every answer would repeat the prompt's last token.
        for name, parameter in model.model.language_model.layers.named_parameters():
            if name.endswith("proj.weight"):
                torch.nn.init.normal_(parameter, std=2 * parameter.shape[-1] ** -0.5)
        # Of the 128 characters of ASCII alone, each shows in the text of an answer.
        model.lm_head.weight[128:] = 0
    return model


def write_requests(folder: Path, images: int, questions_per_image: int, new_tokens: int, seed: int) -> list[Request]:
    """Image files of 1200×900 and questions about them, read back as a task."""
    rows = []
    generator = np.random.default_rng(seed)
    for number in range(images):
        name = f"{images}-{number}.jpg"
        coarse = generator.integers(0, 256, (60, 80, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((1200, 900), Image.Resampling.BICUBIC).save(folder / name, quality=90)
        for question in range(questions_per_image):
            text = QUESTIONS[(number + question) % len(QUESTIONS)]
            rows.append({"image": name, "question": text, "answer": "?", "question_id": len(rows)})
    path = folder / f"questions-{questions_per_image}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (task,) = select_tasks(str(path), "accuracy", new_tokens)
    return [Request(task, question, prompt_form(task, AS_TRAINED)) for question in read_questions(path)]


class PublishedEvaluator(PublishedMonkey):
    """The published evaluator's loop."""

    def __init__(self, tensors, config, processor: MonkeyProcessor, batch_size: int, device: str):
        super().__init__(tensors, config)
        self.processor, self.batch_size, self.device = processor, batch_size, device
        self.hidden_states: list[torch.Tensor] = []

    def decoder_block(self, hidden, *arguments):
        hidden = super().decoder_block(hidden, *arguments)
        self.hidden_states.append(hidden)
        return hidden

    def pixels(self, path: Path) -> torch.Tensor:
        """[3, H, W] of a file."""
        height, width = self.config.canvas_size
        image = Image.open(path).convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
        values = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        return (values - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]

    def answers(self, requests: list[Request]) -> dict[int, str]:
        """Text by row."""
        answers = {}
        for start in range(0, len(requests), self.batch_size):
            batch = requests[start : start + self.batch_size]
            ids = [self.processor.tokenizer.encode_text(request.prompt, image_tokens=self.processor.image_tokens)
                   for request in batch]  # fmt: skip
            inputs = self.processor.collate([{"input_ids": row} for row in ids], padding_side="left")
            pixels = torch.stack([self.pixels(request.question.image) for request in batch])
            inputs = {name: tensor.to(self.device) for name, tensor in inputs.items()}
            length = inputs["input_ids"].shape[1]
            output = self.generate(
                inputs["input_ids"], inputs["attention_mask"], pixels.to(self.device), batch[0].task.max_new_tokens
            )
            self.hidden_states.clear()
            for request, row in zip(batch, output[:, length:].tolist(), strict=True):
                answers[request.row] = self.processor.tokenizer.decode(row, skip_special_tokens=True)
        return answers


def our_answers(backend: ModelBackend, requests: list[Request], batch_size: int) -> dict[int, str]:
    """Text by row."""
    batches = backend.batches(requests, batch_size)
    return {answer.row: answer.raw for batch in batches for answer in backend.generate_answers(batch)}


def measure(theirs: PublishedEvaluator, backend: ModelBackend, requests: list[Request], options) -> float:
    """Median ratio of neighbouring runs, after both sides gave the same answers."""
    expected, given = theirs.answers(requests), our_answers(backend, requests, options.batch_size)
    different = [row for row in expected if expected[row] != given.get(row)]
    if different:
        message = f"{len(different)} of {len(expected)} answers differ, that to row {different[0]} first"
        if options.dtype == "float32":
            raise SystemExit(f"error: {message}")
        print(f"{message} (rounding in {options.dtype})")
    before = backend.work
    pairs = [
        (
            seconds(lambda: theirs.answers(requests), options.device),
            seconds(lambda: our_answers(backend, requests, options.batch_size), options.device),
        )
        for _ in range(options.repeats)
    ]
    for name, times in (("published order", [pair[0] for pair in pairs]), ("ours", [pair[1] for pair in pairs])):
        print(f"  {name}: {len(requests) / statistics.median(times):.2f} questions a second")
    total, work = sum(pair[1] for pair in pairs), growth(before, backend.work)
    shares = {phase: work[f"{phase}_seconds"] for phase in ("vision", "prefill", "decode")}
    shares["the rest"] = total - sum(shares.values())
    print("  ours:", ", ".join(f"{name} {100 * value / total:.0f} %" for name, value in shares.items()))
    print(f"  ours: {work['prompt_tokens']} prompt tokens asked, {work['prefill_tokens']} computed")
    return statistics.median(pair[0] / pair[1] for pair in pairs)


def main(argv: list[str] | None = None) -> int:
    parser = arguments(__doc__)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--heads", type=int, default=4, help="128 wide each by default, as published")
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--vision-width", type=int, default=416)
    parser.add_argument("--vision-layers", type=int, default=6)
    parser.add_argument("--vision-heads", type=int, default=4, help="104 wide each by default, as published")
    parser.add_argument("--new-tokens", type=int, default=8)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=4, help="questions at once on our side; the baseline takes 4")
    parser.add_argument("--num-workers", type=int, default=1, help="processes that decode images on our side")
    parser.set_defaults(repeats=3)
    options = parser.parse_args(argv)
    if options.quick:
        options.layers, options.vision_layers = min(options.layers, 2), min(options.vision_layers, 1)
        options.images, options.repeats = min(options.images, 2), 1

    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        tokenizer = byte_tokenizer(Path(name))
        model = build(options, tokenizer)
        processor = MonkeyProcessor.from_config(model.config, tokenizer)
        backend = ModelBackend.around(model, processor, "random", options.num_workers)
        tensors = published_names(model, dict(model.state_dict()))
        theirs = PublishedEvaluator(tensors, model.config, processor, 4, options.device)
        finish(options.device)
        for questions in (1, 5):
            requests = write_requests(Path(name), options.images, questions, options.new_tokens, options.seed)
            print(f"{options.images} images, {questions} to each")
            ratios[f"questions_speedup_{questions}"] = measure(theirs, backend, requests, options)
    report("evaluation", ratios, vars(options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
