"""A description run with experts that always say the same: tiny models, RapidOCR, and a scripted server.

It runs in a folder of its own with `models`, `images` and `config.yaml`, which it names without the way there: where a
model lies is one of the settings that a half-done run is known by.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from tests import forked
from tests.outside_doors import IMAGE_ROOT, PATIENCE, environment, sha256

GOOD = "A page hangs from a rail. It is large."
AGAINST_THE_RULES = "There are 3 pages."
"""What the rules of a description do not allow: digits."""


class ScriptedServer:
    """OpenAI's chat completions: the first question about a page with `Scarf` is answered against the rules."""

    def __init__(self) -> None:
        self.questions: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                messages = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"]
                outer.questions.append("\n".join(message["content"] for message in messages))
                first = len(messages) == 1 and "Scarf" in messages[0]["content"]
                said = {"role": "assistant", "content": AGAINST_THE_RULES if first else GOOD}
                content = {
                    "id": "one", "object": "chat.completion", "created": 1, "model": "scripted",
                    "choices": [{"index": 0, "message": said, "finish_reason": "stop"}],
                    "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
                }  # fmt: skip
                data = json.dumps(content).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/v1"

    @contextlib.contextmanager
    def at_work(self) -> Iterator[ScriptedServer]:
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        try:
            yield self
        finally:
            self.server.shutdown()
            self.server.server_close()


def write_images(folder: Path) -> Path:
    """Three documents, one of them twice, a broken one, and a file that is no image."""
    folder.mkdir(parents=True)
    for number in (1, 12, 20):
        shutil.copy(IMAGE_ROOT / "images" / "heldout" / f"{number:06d}.jpg", folder)
    shutil.copy(folder / "000020.jpg", folder / "again.jpg")
    (folder / "half.jpg").write_bytes((folder / "000001.jpg").read_bytes()[:500])
    (folder / "notes.txt").write_text("none")
    return folder


def write_config(folder: Path, url: str) -> None:
    """The configuration of the run: all that results depend on but the models' weights."""
    captioner = {"expert": "blip2", "model": "models/blip2", "max_new_tokens": 8, "batch_size": 1}
    stages = {
        "caption": captioner,
        "regions": {
            "expert": "florence2", "model": "models/florence2", "max_new_tokens": 20, "batch_size": 1
        },
        "text": {"expert": "rapidocr", "threads": 1},
        "segments": {
            "expert": "sam", "model": "models/sam", "most": 3, "points_per_side": 4, "batch_size": 16,
            "least_predicted_overlap": -100.0, "least_stability": 0.0,
        },
        "segment_captions": captioner,
        "matching": {"expert": "blip2", "model": "models/matcher", "batch_size": 1},
        "filters": {"region_score": 0.4, "segment_score": 0.4},
        "summary": {
            "expert": "openai", "base_url": url, "model": "scripted", "first_wait": 0.01, "concurrency": 1
        },
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump({"stages": stages}))


WORDS = ["-m", "monkey.describe", "run", "--config", "config.yaml", "--images", "images", "--output", "run", "--quiet"]


def run(folder: Path) -> None:
    """The whole run of a folder."""
    (folder / "said").mkdir()
    ended = forked.run(WORDS, folder, environment(), folder / "said", PATIENCE)
    assert ended.returncode == 0, ended.stderr[-3000:]


def killed_amid_matching(folder: Path) -> None:
    """The run of a folder, killed when it has begun to match crops and captions."""
    program = subprocess.Popen([sys.executable, *WORDS], cwd=folder, env=environment())
    journals = folder / "run" / "journals"
    while program.poll() is None:
        if sum(path.stat().st_size for path in journals.glob("matching.*")):
            program.send_signal(signal.SIGKILL)
            break
        time.sleep(0.0005)
    assert program.wait(60) == -signal.SIGKILL


def described(folder: Path, questions: list[str]) -> dict[str, Any]:
    """What a finished run holds, without its keys, and without the sentences about what went wrong."""
    run = folder / "run"
    counts = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    return {
        "counts": counts["counts"],
        "tokens": [counts["stages"]["summary"][name] for name in ("requests", "prompt_tokens", "completion_tokens")],
        "problems": [[row["file"], row["stage"]] for row in _rows(run / "problems.jsonl")],
        "questions": sorted(sha256(question.encode()) for question in questions),
        "train.json": json.loads((run / "train.json").read_text(encoding="utf-8")),
        "detailed_captions.json": json.loads((run / "detailed_captions.json").read_text(encoding="utf-8")),
        **{
            path.stem: [
                _shortened({name: value for name, value in row.items() if name != "key"}) for row in _rows(path)
            ]
            for path in sorted((run / "stages").glob("*.jsonl"))
        },
    }


def _shortened(value: Any) -> Any:
    """The same with a mask's sum in the place of the mask."""
    if isinstance(value, dict):
        return {
            name: sha256(one.encode()) if name == "mask" and one else _shortened(one) for name, one in value.items()
        }
    return [_shortened(one) for one in value] if isinstance(value, list) else value


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
