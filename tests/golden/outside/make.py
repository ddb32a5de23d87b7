"""Writes the records of this folder by the code as it is:

    python -m tests.golden.outside.make                 # all of them
    python -m tests.golden.outside.make flags records   # these

To be run where the code is known to be right, and never to make a test pass. README.md says what each file is.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.golden.outside import observed
from tests.outside_doors import OUTSIDE, float32_copy, free_port, program_at_work, wait_until_open


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


def make_evaluation() -> None:
    with tempfile.TemporaryDirectory() as place:
        one = observed.evaluated(Path(place) / "one")
        assert observed.evaluated(Path(place) / "two", processes=2) == one
    write("evaluation.json", one)


MAKERS: dict[str, Callable[[], None]] = {
    "flags": make_flags,
    "records": make_records,
    "answers": make_answers,
    "evaluation": make_evaluation,
}


def main(words: list[str]) -> int:
    for name in words or MAKERS:
        print(f"{name} …", flush=True)
        MAKERS[name]()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
