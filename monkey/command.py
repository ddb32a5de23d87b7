"""All programs as one command: `monkey train …`, `monkey ask …`, `python -m monkey serve …`.

Each is the same program as in a checkout, with the same flags. Those that lie beside the package there, and the files
that they name, a wheel keeps in a folder of the package.

    monkey ask --checkpoint models/small image.png "What is the total?"
    torchrun --nproc_per_node 8 -m monkey train --config configs/training/lora-llm.yaml …
    bash "$(monkey where)/scripts/finetune_ds.sh" …
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping, Sequence

import monkey
from monkey.cli import EXIT_USAGE
from monkey.files import project_folder

PROGRAMS: Mapping[str, tuple[str, str]] = {
    "ask": ("monkey.ask", "ask a model about images"),
    "demo": ("demo", "the same in the browser"),
    "serve": ("monkey.serve", "the same for clients of OpenAI's protocol"),
    "train": ("finetune_multitask", "fine-tune on conversations about images"),
    "evaluate": ("evaluate_vqa", "answer and score question-answering data sets"),
    "score": ("eval.score", "score answers that are there"),
    "compare": ("eval.compare", "compare runs question by question"),
    "report": ("eval.report", "a page of a run, with its images"),
    "prepare": ("eval.prepare.__main__", "make evaluation questions of a published set"),
    "describe": ("monkey.describe.__main__", "write detailed descriptions of images to train on"),
    "check": ("scripts.check_data", "check training records"),
    "plan": ("scripts.plan_memory", "the memory that a training run needs"),
    "new-model": ("scripts.new_model", "a checkpoint from an encoder and a decoder"),
    "set-grid": ("scripts.set_grid", "a checkpoint for another grid of windows"),
    "convert": ("scripts.convert_checkpoint", "a checkpoint in the published layout, or from it"),
    "merge": ("scripts.merge_adapters", "a checkpoint with its decoder's adapters merged"),
    "average": ("scripts.average_checkpoints", "a checkpoint between two others"),
    "push": ("scripts.push_to_hub", "upload a checkpoint to the hub, with its card"),
    "views": ("scripts.show_views", "what a model sees of an image"),
    "pages": ("monkey.data.pages.__main__", "draw pages to train on and to ask about"),
}
"""Name to the module whose `main` it is, and what it does."""

WHERE = "where"

OWN_FOLDERS = ("configs/", "data/pages", "models/")
"""Beginnings of paths that mean the project's own files where there is no such file in the current folder."""


def help_text() -> str:
    width = max(map(len, PROGRAMS))
    programs = "\n".join(f"  {name:<{width}}  {what}" for name, (_, what) in PROGRAMS.items())
    return (
        f"usage: monkey PROGRAM [FLAG…]\n\n{programs}\n"
        f"  {WHERE:<{width}}  print the folder in which configs/, models/ and scripts/ are found\n\n"
        "monkey PROGRAM --help: its flags; monkey --version"
    )


def main(words: Sequence[str] | None = None) -> int:
    """Run a program; 2 for a name that is none."""
    words = sys.argv[1:] if words is None else words
    if not words:
        print(help_text(), file=sys.stderr)
        return EXIT_USAGE
    name, *rest = words
    if name in ("-h", "--help"):
        print(help_text())
        return 0
    if name == "--version":
        print(f"monkey {monkey.__version__}")
        return 0
    if name == WHERE:
        print(project_folder())
        return 0
    if name not in PROGRAMS:
        print(f"error: {name} is no program of monkey; those are {', '.join((*PROGRAMS, WHERE))}", file=sys.stderr)
        return EXIT_USAGE
    folder = str(project_folder())
    if folder not in sys.path:
        sys.path.insert(0, folder)  # eval/, scripts/ and the programs lie beside the package, or in a wheel's folder
    rest = [_found(word) for word in rest]
    sys.argv = [f"monkey {name}", *rest]
    return importlib.import_module(PROGRAMS[name][0]).main(rest) or 0


def _found(word: str) -> str:
    """Return a word of a command; a path such as models/small that is not here becomes the project's own file."""
    before, equals, path = word.rpartition("=")
    own = project_folder() / path
    if path.startswith(OWN_FOLDERS) and not os.path.exists(path) and own.exists():
        return f"{before}{equals}{own}"
    return word
