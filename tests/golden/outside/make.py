"""Writes the records of this folder by the code as it is:

    python -m tests.golden.outside.make                 # all of them
    python -m tests.golden.outside.make flags records   # these

To be run where the code is known to be right, and never to make a test pass. README.md says what each file is.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.golden.outside import observed
from tests.golden.outside.observed import HALF_DESCRIBED
from tests.outside_describe import killed_amid_matching, write_config, write_images
from tests.outside_doors import OUTSIDE, float32_copy, free_port, program_at_work, run_program, tiny_experts, wait_until_open


def write(name: str, content: Any) -> None:
    """One entry a line, so that a difference can be read."""
    (OUTSIDE / name).write_text(lines_of(content) + "\n", encoding="utf-8")


def lines_of(content: Any, depth: int = 2) -> str:
    """JSON with line breaks in the outermost levels alone."""
    dump = lambda value: json.dumps(value, ensure_ascii=False)  # noqa: E731
    if not depth or not content or not isinstance(content, (dict, list)):
        return dump(content)
    if isinstance(content, list):
        return "[\n" + ",\n".join(lines_of(one, depth - 1) for one in content) + "\n]"
    return "{\n" + ",\n".join(f"{dump(name)}: {lines_of(one, depth - 1)}" for name, one in content.items()) + "\n}"


def make_flags() -> None:
    write("flags.json", observed.flags())


def make_records() -> None:
    write("records_as_encoded.json", observed.records())
    write("prompts.json", observed.prompts())


def make_answers() -> None:
    import openai
    import torch

    import monkey

    given = observed.asked()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        checkpoint = float32_copy(folder / "small")
        found: dict[str, Any] = {}
        with monkey.load(checkpoint, "cpu") as model:
            found["monkey.load"] = observed.answers_of_python(model, given, together=False)
            together = observed.answers_of_python(model, given, together=True)
            assert together == found["monkey.load"], _differences(found["monkey.load"], together)
        model = monkey.MonkeyForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
        processor = monkey.MonkeyProcessor.from_pretrained(checkpoint)
        found["generate"] = observed.tokens_of_generate(model, processor, given, 1)
        together = observed.tokens_of_generate(model, processor, given, 8)
        assert together == found["generate"], _differences(found["generate"], together)
        found["generate as text"] = processor.decode_answers(found["generate"], 0)
        found["monkey.ask --input"] = observed.answers_of_ask(checkpoint, folder)
        port, log = free_port(), folder / "server"
        words = ("-m", "monkey.serve", "-c", checkpoint, "--device", "cpu", "--port", str(port))
        with program_at_work(*words, log=log) as program:
            wait_until_open(f"http://127.0.0.1:{port}/health", program, log)
            with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none") as client:
                found["monkey.serve"] = [observed.answer_of_server(client, *one) for one in given]
                together = observed.at_once(lambda one: observed.answer_of_server(client, *one), given)
                assert together == found["monkey.serve"], _differences(found["monkey.serve"], together)
        port, log = free_port(), folder / "demo"
        words = ("demo.py", "-c", checkpoint, "--cpu-only", "--server-port", str(port))
        with program_at_work(*words, log=log) as program:
            address = f"http://127.0.0.1:{port}/"
            wait_until_open(address, program, log)
            found["demo.py"] = observed.answers_of_demo(address, given, 1)
    for name in ("generate as text", "monkey.ask --input", "monkey.serve", "demo.py"):
        print(name, _differences(found["monkey.load"], found[name]) or "the same")
    write("answers.json", found)


def _differences(one: list[Any], other: list[Any]) -> list[Any]:
    return [(number, *pair) for number, pair in enumerate(zip(one, other, strict=True)) if pair[0] != pair[1]]


def make_conversations() -> None:
    import openai

    import monkey

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        checkpoint = float32_copy(folder / "small")
        with monkey.load(checkpoint, "cpu") as model:
            found = {
                "model.chat": observed.conversations_of_python(model),
                "model.describe": observed.descriptions_of_python(model),
            }
        port, log = free_port(), folder / "server"
        words = ("-m", "monkey.serve", "-c", checkpoint, "--device", "cpu", "--port", str(port))
        with program_at_work(*words, log=log) as program:
            wait_until_open(f"http://127.0.0.1:{port}/health", program, log)
            with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none") as client:
                told = observed.conversations_of_server(client)
    assert told == found["model.chat"], (told, found)
    write("conversations.json", found)


def make_evaluation() -> None:
    with tempfile.TemporaryDirectory() as place:
        one = observed.evaluated(Path(place) / "one")
        assert observed.evaluated(Path(place) / "two", processes=2) == one
    write("evaluation.json", one)


def make_checkpoint() -> None:
    """The checkpoint of a few thousand parameters, every one of which matters, over a vocabulary of the single bytes."""
    import base64

    from monkey import MonkeyConfig, MonkeyProcessor, QwenTokenizer
    from tests.conftest import random_model

    folder = observed.CHECKPOINT
    folder.mkdir(parents=True)
    ranks = "".join(f"{base64.b64encode(bytes([value])).decode()} {value}\n" for value in range(256))
    (folder / "qwen.tiktoken").write_text(ranks)
    config = MonkeyConfig(
        grid=(2, 2),
        image_start_id=256 + 3 + 205 + 6,
        vision_config={
            "window_size": 28, "patch_size": 14, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
            "mlp_ratio": 2.0, "num_queries": 4, "num_positions": 4, "adapter_rank": 2, "mlp_adapter_rank": 2,
        },
        text_config={
            "vocab_size": 480, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 2, "seq_length": 1024, "max_position_embeddings": 1024,
        },
    )  # fmt: skip
    random_model(config).save_pretrained(folder)
    MonkeyProcessor.from_config(config, QwenTokenizer(folder / "qwen.tiktoken")).save_pretrained(folder)


def make_training() -> None:
    with tempfile.TemporaryDirectory() as place:
        found = {how: observed.tickets(Path(place), how) for how in ("packed", "padded")}
        found |= {
            recipe: observed.trained(observed.words_of_recipe(recipe), Path(place) / recipe)
            for recipe in observed.RECIPES
        }
    write("losses.json", found)


KILLED = """
import os, runpy, sys, torch
steps, step = 0, torch.optim.AdamW.step
def dying(*given, **named):
    global steps
    steps += 1
    if steps == 6:
        os.kill(os.getpid(), 9)
    return step(*given, **named)
torch.optim.AdamW.step = dying
runpy.run_path("finetune_multitask.py", run_name="__main__")
"""
"""The trainer, killed in its sixth step."""


def make_made() -> None:
    """What a training leaves: an adapter, and a run that was killed amid a step after its second checkpoint."""
    with tempfile.TemporaryDirectory() as place:
        observed.trained(observed.words_of_recipe("lora-llm"), Path(place) / "lora")
        shutil.copytree(Path(place) / "lora" / "adapter", observed.ADAPTER)
        words = [*observed.words_of_recipe("full-llm"), *observed.SAVING, "--output_dir", f"{place}/half"]
        ended = run_program("-c", KILLED, *words)
        assert ended.returncode == -9, ended.stderr
        shutil.copytree(Path(place) / "half", observed.HALF_TRAINED)
        for path in observed.MADE.rglob("run.json"):
            path.write_text(path.read_text(encoding="utf-8").replace(place, "outputs"), encoding="utf-8")


def make_half() -> None:
    """Runs that were cut short: half of their lines, the last of them torn, the answers marked as kept."""
    with tempfile.TemporaryDirectory() as place:
        observed.evaluated_on(Path(place))
        journal = Path("run", "questions", "journal.jsonl")
        cut(Path(place) / journal, observed.HALF_EVALUATED / journal, "raw")
    with tempfile.TemporaryDirectory() as place:
        # A line of the part is that of the output without what the question's row says.
        rows = observed.rows_of(observed.ASKED)
        output = Path(place) / "answers.jsonl"
        observed.asked_on(output)
        assert len(observed.rows_of(output)) == len(rows)
        fields = [{name: row[name] for name in row if name not in rows[0]} for row in observed.rows_of(output)]
        output.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in fields))
        cut(output, observed.HALF_ASKED / "answers.jsonl.part", "answer")


def cut(whole: Path, half: Path, answer: str) -> None:
    """The first half of a journal's lines with marked answers, and a torn one."""
    lines = whole.read_text(encoding="utf-8").splitlines()
    kept = [json.loads(line) for line in lines[: len(lines) // 2]]
    text = "".join(
        json.dumps({**entry, answer: f"{observed.KEPT}{number}"}, ensure_ascii=False) + "\n"
        for number, entry in enumerate(kept)
    )
    half.parent.mkdir(parents=True, exist_ok=True)
    half.write_text(text + lines[len(kept)][:40], encoding="utf-8")


def make_goes_on() -> None:
    """What becomes of all that was made."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for path in (observed.HALF_TRAINED, observed.HALF_EVALUATED, observed.HALF_ASKED):
            shutil.copytree(path, folder / path.name)
        found = {
            "checkpoint": observed.answers_of_tiny(observed.CHECKPOINT),
            "adapter": observed.answers_of_tiny(observed.ADAPTER),
            "merged": observed.answers_of_tiny(observed.merged(observed.ADAPTER, folder / "merged")),
            "resumed": observed.resumed(folder / observed.HALF_TRAINED.name),
            "evaluated": observed.evaluated_on(folder / observed.HALF_EVALUATED.name),
            "asked": observed.asked_on(folder / observed.HALF_ASKED.name / "answers.jsonl"),
        }
    write("goes_on.json", found)


def make_described() -> None:
    """A run of descriptions; and one that was killed, whose captions are marked as kept, and what becomes of it."""
    with tempfile.TemporaryDirectory() as place:
        whole = observed.description_run(Path(place))
        assert len(whole["questions"]) == 4
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        tiny_experts(folder / "models")
        write_images(folder / "images")
        write_config(folder, "http://127.0.0.1:9/v1")
        killed_amid_matching(folder)
        half = folder / "run"
        captions = next((half / "journals").glob("caption.*.jsonl"))
        rows = [{**row, "text": f"{observed.KEPT}caption"} for row in observed.rows_of(captions)]
        captions.write_text("".join(json.dumps(row) + "\n" for row in rows))
        shutil.copytree(half, HALF_DESCRIBED)
    with tempfile.TemporaryDirectory() as place:
        write("described.json", {"whole": whole, "goes on": observed.description_run(Path(place), HALF_DESCRIBED)})


MAKERS: dict[str, Callable[[], None]] = {
    "flags": make_flags,
    "records": make_records,
    "answers": make_answers,
    "conversations": make_conversations,
    "evaluation": make_evaluation,
    "checkpoint": make_checkpoint,
    "training": make_training,
    "made": make_made,
    "half": make_half,
    "goes_on": make_goes_on,
    "described": make_described,
}


def main(words: list[str]) -> int:
    for name in words or MAKERS:
        print(f"{name} …", flush=True)
        MAKERS[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
