"""What the records of this folder say of the code, observed anew: `make.py` writes it, `tests/test_outside_*` compare it.

Every function gives content for JSON. None of it depends on the time, the machine, or where the repository lies.
"""

from __future__ import annotations

import base64
import contextlib
import html
import json
import shutil
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.outside_describe import ScriptedServer, described, run, write_config, write_images
from tests.outside_doors import (
    IMAGE_ROOT,
    OUTSIDE,
    ROOT,
    SMALL,
    encode_records,
    finetune,
    in_runs,
    sha256,
    succeeded,
    tiny_experts,
    without,
)

RECORDS, ASKED, QUESTIONS = (OUTSIDE / f"{name}.jsonl" for name in ("records", "asked", "questions"))

TEMPLATE = "<img></img> {question} Answer: "
"""How a question is put to `models/small`."""

LONGEST = 200
"""Tokens of an answer: more than any of those that are asked for here needs."""


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def recorded(name: str) -> Any:
    """The content of a record of this folder."""
    return json.loads((OUTSIDE / name).read_text(encoding="utf-8"))


# Flags


def flags() -> dict[str, Any]:
    """Program -> flag -> default."""
    return json.loads(succeeded("tests/outside_flags.py").stdout.replace(str(ROOT), "."))


# Token ids, labels, losses


def records(path: Path = RECORDS) -> dict[str, dict[str, Any]]:
    """By the records' ids: token ids and labels, in runs, the images, and the loss in fp32."""
    import torch

    from monkey import MonkeyForConditionalGeneration, MonkeyProcessor

    model = MonkeyForConditionalGeneration.from_pretrained(SMALL, dtype=torch.float32).eval()
    processor = MonkeyProcessor.from_pretrained(SMALL)
    found = {}
    for row, sample in zip(rows_of(path), encode_records(path, IMAGE_ROOT, SMALL), strict=True):
        batch = {name: torch.tensor([sample[name]]) for name in ("labels",)}
        batch["input_ids"] = torch.tensor([sample["ids"]])
        batch["attention_mask"] = torch.ones_like(batch["input_ids"])
        if sample["images"]:
            batch |= processor.image_processor(sample["images"], return_tensors="pt")
        with torch.inference_mode():
            loss = model(**batch).loss.item()
        images = [str(Path(image).resolve().relative_to(ROOT)) for image in sample["images"]]
        found[row["id"]] = {
            "ids": in_runs(sample["ids"]), "labels": in_runs(sample["labels"]), "images": images, "loss": loss
        }  # fmt: skip
    return found


PROMPTS: dict[str, dict[str, Any]] = {
    "as trained": {"text": "<img></img> What is the total? Answer: ", "images": 1},
    "two images": {"text": "<img></img> <img></img> What differs? Answer: ", "images": 2},
    "an image with its path": {"text": "<img>a/b.png</img> What? Answer: ", "images": 1},
    "boxes": {"text": "<img></img> Where is <ref>TOTAL</ref> or <box>(1,2),(3,4)</box>? Answer: ", "images": 1},
    "no image": {"text": "Which is larger, 3.9 or 3.11? Answer: ", "images": 0},
    "of all kinds": {"text": "  «Ünï» 漢字 🐒\n\n\tcafe\u0301 don't 12.50  ", "images": 0},
    "signs that count": {"text": "<|im_start|>user\nWhat?<|im_end|>\n<|endoftext|>", "images": 0},
    "signs that do not": {"text": "<img>x</img><|im_start|><ref>a</ref>", "images": 0, "inert_text": True},
}  # fmt: skip
"""Words of `processor(text=…, images=…)`; `images` is how many."""

PART = {"type": "image"}


def _said(role: str, *parts: Any) -> dict[str, Any]:
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return {"role": role, "content": content}


CHATS: dict[str, dict[str, Any]] = {
    "one question": {"messages": [_said("user", PART, "What is the total?")]},
    "without labels": {"messages": [_said("user", PART, "What is the total?")], "picture_labels": False},
    "text alone": {"messages": [{"role": "user", "content": "Say yes."}]},
    "own system": {"messages": [{"role": "system", "content": "Be brief."}, _said("user", PART, "What?")]},
    "several turns and images": {
        "messages": [
            _said("user", PART, PART, "What differs?"),
            {"role": "assistant", "content": "the <ref>lamp</ref><box>(1,2),(3,4)</box>"},
            _said("user", "And here ", PART, "\n<img>x</img> <|im_end|>?"),
        ]
    },
}
"""Words of `processor.apply_chat_template`."""


def prompts() -> dict[str, Any]:
    """Token ids of prompts, in runs: those of the processor, and those in ChatML with and without an answer's start."""
    from PIL import Image

    from monkey import MonkeyProcessor

    processor = MonkeyProcessor.from_pretrained(SMALL)
    image = Image.new("RGB", (20, 20), "red")
    found: dict[str, Any] = {"processor": {}, "chat template": {}, "chat as text": {}}
    for name, words in PROMPTS.items():
        words = dict(words)
        images = [image] * words.pop("images")
        ids = processor(images=images or None, **words)["input_ids"]
        found["processor"][name] = in_runs(ids[0].tolist())
    for name, words in CHATS.items():
        words = {"add_generation_prompt": True, **words}
        messages = [
            {**one, "content": [{**part, "image": image} if part == PART else part for part in one["content"]]}
            if isinstance(one["content"], list)
            else one
            for one in words.pop("messages")
        ]
        found["chat template"][name] = in_runs(
            processor.apply_chat_template(messages, tokenize=True, **words)[0].tolist()
        )
        found["chat as text"][name] = processor.apply_chat_template(messages, **words)
    return found


# Greedy answers, by whom they are asked


def asked() -> list[tuple[Path, str]]:
    """Image and question of each row that every entry point is asked."""
    return [(IMAGE_ROOT / row["image"], row["question"]) for row in rows_of(ASKED)]


def at_once(ask: Callable[[Any], Any], given: Iterable[Any], count: int = 8) -> list[Any]:
    """What `ask` gives of each, `count` at the same time."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(ask, given))


def answers_of_python(model: Any, given: Sequence[tuple[Path, str]], together: bool) -> list[str]:
    """`monkey.load(…).ask`, one after the other, or all on their way at once."""
    if together:
        return [reply.text for reply in [model.ask(image, question) for image, question in given]]
    return [model.ask(image, question).text for image, question in given]


def tokens_of_generate(model: Any, processor: Any, given: Sequence[tuple[Path, str]], size: int) -> list[list[int]]:
    """New tokens of `model.generate`, `size` rows at a time, without what fills a row behind its end."""
    end = model.generation_config.eos_token_id
    found = []
    for start in range(0, len(given), size):
        rows = given[start : start + size]
        inputs = processor(
            images=[image for image, _ in rows],
            text=[TEMPLATE.format(question=question) for _, question in rows],
            padding=True,
        )
        output = model.generate(**inputs, max_new_tokens=LONGEST, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        for row in output.tolist():
            found.append(row[: row.index(end)] if end in row else row)
    return found


def answers_of_ask(checkpoint: Path, folder: Path) -> list[str]:
    """`python -m monkey.ask --input`, eight at a time."""
    output = folder / "answers.jsonl"
    succeeded(
        "-m", "monkey.ask", "-c", checkpoint, "--device", "cpu", "--input", ASKED, "--image-root", IMAGE_ROOT,
        "--output", output,
    )  # fmt: skip
    return [row["answer"] for row in rows_of(output)]


def image_url(image: Path) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(image.read_bytes()).decode()}"


def answer_of_server(client: Any, image: Path, question: str, **fields: Any) -> str:
    """A chat completion through the official client, whole or streamed."""
    content = [{"type": "image_url", "image_url": {"url": image_url(image)}}, {"type": "text", "text": question}]
    told = client.chat.completions.create(
        model=client.models.list().data[0].id,
        messages=[{"role": "user", "content": content}],
        **{"max_tokens": LONGEST, "temperature": 0, **fields},
    )
    if fields.get("stream"):
        return "".join(chunk.choices[0].delta.content or "" for chunk in told if chunk.choices)
    return told.choices[0].message.content


def answers_of_demo(address: str, given: Sequence[tuple[Path, str]], people: int) -> list[str]:
    """What the demo's conversation shows as its answers, asked by so many of gradio's clients, each in their turn."""
    from gradio_client import Client, handle_file

    found: dict[int, str] = {}

    def ask_own(person: int) -> None:
        client = Client(address, verbose=False)
        for number in range(person, len(given), people):
            image, question = given[number]
            tray = [{"image": handle_file(str(image)), "caption": None}]
            messages, *_ = client.predict(tray, question, "en", 0, 1, LONGEST, api_name="/ask")
            parts = [part for message in messages[1:] for part in message["content"]]
            found[number] = "".join(html.unescape(part["text"]) for part in parts if part["type"] == "text")
            client.reset_session()
        client.close()

    at_once(ask_own, range(people))
    return [found[number] for number in range(len(given))]


IMAGES = IMAGE_ROOT / "images" / "heldout"
RECEIPT, PRICES = IMAGES / "000020.jpg", IMAGES / "000012.jpg"

CONVERSATIONS: dict[str, dict[str, Any]] = {
    "two turns": {
        "messages": [
            _said("user", RECEIPT, "What is the total?"),
            {"role": "assistant", "content": "81.30"},
            _said("user", "What is the title?"),
        ]
    },
    "two images": {"messages": [_said("user", RECEIPT, PRICES, "What does Juice cost?")]},
    "a system's words": {"messages": [{"role": "system", "content": "Be brief."}, _said("user", RECEIPT, "Title?")]},
    "boxes": {"messages": [_said("user", RECEIPT, "What is at <box>(62,491),(254,562)</box>?")]},
    "ChatML": {"messages": [_said("user", RECEIPT, "What is the total?")], "form": "chatml"},
    "ChatML without labels": {
        "messages": [_said("user", RECEIPT, "What is the total?")], "form": "chatml", "picture_labels": False
    },
    "as it is": {"messages": [_said("user", RECEIPT, " What is the total? Answer: ")], "form": "plain"},
}  # fmt: skip
"""Conversations with paths in the place of images, and how they are to be written."""


def with_images(messages: Sequence[dict[str, Any]], part_of: Callable[[Path], dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages with a part for each path."""
    return [
        {**one, "content": [part_of(part) if isinstance(part, Path) else part for part in one["content"]]}
        if isinstance(one["content"], list)
        else one
        for one in messages
    ]


def conversations_of_python(model: Any) -> dict[str, str]:
    """The answers of `model.chat`, of at most 30 tokens."""
    import monkey

    decoding = monkey.Decoding(max_new_tokens=30, temperature=0.0)
    found = {}
    for name, words in CONVERSATIONS.items():
        words = dict(words)
        messages = with_images(words.pop("messages"), lambda path: {"type": "image", "image": path})
        found[name] = model.chat(messages, decoding, **words).text
    return found


def conversations_of_server(client: Any) -> dict[str, str]:
    """The same from the server."""
    found = {}
    name_of_model = client.models.list().data[0].id
    for name, words in CONVERSATIONS.items():
        words = dict(words)
        messages = with_images(
            words.pop("messages"), lambda path: {"type": "image_url", "image_url": {"url": image_url(path)}}
        )
        told = client.chat.completions.create(
            model=name_of_model, messages=messages, max_tokens=30, temperature=0, extra_body=words
        )
        found[name] = told.choices[0].message.content
    return found


def descriptions_of_python(model: Any) -> list[str]:
    """`model.describe` of four documents."""
    return [model.describe(IMAGES / f"{number:06d}.jpg").text for number in (1, 8, 12, 20)]


# A run of 200 questions

EVALUATION = ("--metric", "anls", "--batch-size", "8", "--num-workers", "0", "--device", "cpu")


def evaluated(folder: Path, processes: int = 1) -> dict[str, Any]:
    """What `evaluate_vqa.py` leaves of the 200 questions: its files' sums, the answers, and the results.

    `eval/eval.sh` starts it where it runs in several processes. Versions and the revision in results.json are taken
    out; its bytes must otherwise be those of its content.
    """
    words = (*EVALUATION, "--data-root", IMAGE_ROOT.relative_to(ROOT), "--output-dir", folder)
    file = QUESTIONS.relative_to(ROOT)
    if processes == 1:
        succeeded("evaluate_vqa.py", "--checkpoint", "models/small", "--save_name", "run", "--dataset", file, *words)
    else:
        succeeded("eval/eval.sh", "models/small", "run", file, *words, NPROC_PER_NODE=str(processes))
    return files_of_run(folder / "run", QUESTIONS.stem)


def files_of_run(run: Path, task: str) -> dict[str, Any]:
    """The files of a task of an evaluation run in the form in which they are recorded."""
    results = (run / task / "results.json").read_text(encoding="utf-8")
    content = json.loads(results)
    assert results == json.dumps(content, ensure_ascii=False, indent=2) + "\n"
    predictions = run / task / "predictions.jsonl"
    names = (f"{task}/predictions.jsonl", f"{task}.json", f"{task}.txt", "summary.json", "summary.csv", "summary.md")
    return {
        "sha256": {name: sha256((run / name).read_bytes()) for name in (*names, "summary.tex")},
        "results": without(content, "versions", "revision"),
        "predictions": [
            [row["question_id"], row["raw"], row["tokens"], row["stop"], row["scores"]["official"]]
            for row in rows_of(predictions)
        ],
    }


# Training

TRAIN = OUTSIDE / "train.json"
CHECKPOINT = OUTSIDE / "made" / "checkpoint"

IN_BOTH = (
    "--data_path", TRAIN.relative_to(ROOT), "--image_root", IMAGE_ROOT.relative_to(ROOT), "--use_cpu", "True",
    "--bf16", "False", "--dataloader_num_workers", "0", "--disable_tqdm", "True", "--logging_steps", "1",
    "--report_to", "none",
)  # fmt: skip

TICKETS = ("--config", "configs/training/tickets.yaml", "--model_name_or_path", "models/small", "--max_steps", "30")
PADDED = ("--packing", "False", "--per_device_train_batch_size", "2")

TINY = (
    "--model_name_or_path", CHECKPOINT.relative_to(ROOT), "--max_steps", "6", "--learning_rate", "1e-2",
    "--vision_adapter_dropout", "0", "--pack_tokens", "640", "--model_max_length", "640", "--gradient_accumulation_steps", "1", "--warmup_ratio",
    "0",
)  # fmt: skip
"""A run of a recipe on the checkpoint of a few thousand parameters; rows of its packing hold two or three images."""

RECIPES: dict[str, tuple[str, ...]] = {
    "full-llm": (),
    "lora-llm": ("--lora_dropout", "0", "--lora_r", "2", "--lora_alpha", "4"),
    # bitsandbytes unpacks whole blocks of 64 alone on a CPU, which the tiny checkpoint has not.
    "qlora-llm": ("--lora_dropout", "0", "--model_name_or_path", "models/small", "--bf16", "True", "--max_steps", "3",
        "--learning_rate", "1e-4"),
    "adapters-only": (),
    "everything": (),
}


def words_of_recipe(recipe: str, *more: str | Path) -> list[str]:
    """Words of a short run of a recipe's published file."""
    words = ("--config", f"configs/training/{recipe}.yaml", *IN_BOTH, *TINY, "--save_strategy", "no")
    return [str(word) for word in (*words, *RECIPES[recipe], *more)]


def trained(words: Sequence[str | Path], output: Path) -> list[float]:
    """The losses of a run in this process, by its step."""
    with contextlib.chdir(ROOT):
        status = finetune([*map(str, words), "--output_dir", str(output)])
    assert status == 0
    return losses_of_run(output)


def losses_of_run(folder: Path) -> list[float]:
    log = json.loads((folder / "training_log.json").read_text(encoding="utf-8"))
    return [entry["loss"] for entry in log if "loss" in entry]


def tickets(folder: Path, how: str) -> list[float]:
    """The first thirty losses of the quickstart's configuration, `how` being packed or padded."""
    more = PADDED if how == "padded" else ()
    return trained([*TICKETS, *IN_BOTH, "--save_strategy", "no", *more], folder / how)


# What was made and left, some of it half done

MADE = OUTSIDE / "made"
ADAPTER, HALF_TRAINED = MADE / "adapter", MADE / "half_trained"
HALF_EVALUATED, HALF_ASKED, HALF_DESCRIBED = MADE / "half_evaluated", MADE / "half_asked", MADE / "half_described"

SAVING = ("--save_strategy", "steps", "--save_steps", "2", "--save_total_limit", "1")

KEPT = "kept "
"""What the answers of a half-done run were made to begin with: one that is asked again loses it."""

SIX_TOKENS = ("--max-new-tokens", "6")

HALF_AN_EVALUATION = (
    "--checkpoint", CHECKPOINT.relative_to(ROOT), "--save_name", "run", "--dataset", QUESTIONS.relative_to(ROOT),
    "--data-root", IMAGE_ROOT.relative_to(ROOT), "--limit", "24", *SIX_TOKENS, *EVALUATION,
)  # fmt: skip
HALF_AN_ASK = (
    "-c", CHECKPOINT.relative_to(ROOT), "--device", "cpu", "--dtype", "float32", *SIX_TOKENS, "--input",
    ASKED.relative_to(ROOT), "--image-root", IMAGE_ROOT.relative_to(ROOT),
)  # fmt: skip


def answers_of_tiny(checkpoint: Path) -> list[str]:
    """What a checkpoint or an adapter of the tiny model says to the first six rows."""
    import monkey

    decoding = monkey.Decoding(max_new_tokens=12, temperature=0.0)
    with contextlib.chdir(ROOT), monkey.load(checkpoint, "cpu", "float32") as model:
        return [model.ask(image, question, decoding).text for image, question in asked()[:6]]


def merged(adapter: Path, output: Path) -> Path:
    """The adapter of the tiny model in its base, by the program for it."""
    succeeded("scripts/merge_adapters.py", adapter, output)
    return output


def resumed(half: Path) -> list[float]:
    """The losses of the killed run when the same command goes on in its folder."""
    return trained([*words_of_recipe("full-llm"), *SAVING, "--resume_from_checkpoint", "True"], half)


def evaluated_on(folder: Path) -> list[list[Any]]:
    """Id and answer of each of the 24 questions, by the evaluation that goes on in `folder`."""
    succeeded("evaluate_vqa.py", *HALF_AN_EVALUATION, "--output-dir", folder)
    return [[row["question_id"], row["raw"]] for row in rows_of(folder / "run" / "questions" / "predictions.jsonl")]


def asked_on(output: Path) -> list[str]:
    """The answers of the file that `ask --input` goes on with."""
    succeeded("-m", "monkey.ask", *HALF_AN_ASK, "--output", output)
    return [row["answer"] for row in rows_of(output)]


# Descriptions


def description_run(folder: Path, half: Path | None = None) -> dict[str, Any]:
    """A whole run of descriptions in `folder`, or one that goes on from a half-done run."""
    tiny_experts(folder / "models")
    write_images(folder / "images")
    if half is not None:
        shutil.copytree(half, folder / "run")
    with ScriptedServer().at_work() as server:
        write_config(folder, server.url)
        run(folder)
    return described(folder, server.questions)
