"""What the longer scripts share: steps as commands a person could type, each done once, training taken up where it was.

A step counts as done when what it leaves is there under its name, which all programs of this project write last.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from monkey.journal import write_json

REPOSITORY = Path(__file__).resolve().parent.parent


def keep_settings(output: Path, settings: Mapping[str, Any], free: Collection[str] = ()) -> None:
    """Remember what is made in a folder with which settings, for a later call that takes it up.

    Args:
        free: settings that may be others later.

    Raises ValueError naming a setting that was another.
    """
    file = output / "settings.json"
    if file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        for name, value in settings.items():
            if name not in free and before.get(name, value) != value:
                raise ValueError(f"{output} was begun with {name} {before[name]}, not {value}; name another --output")
    write_json(file, settings)


def run(title: str, *command: str | Path) -> None:
    """Run one step with this interpreter, its command printed, or end the whole with its exit status."""
    import torch

    words = [str(word) for word in command]
    print(f"\n== {title}\n   python {shlex.join(words)}", flush=True)
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    if not torch.cuda.is_available():
        # Saying so to DeepSpeed, which Trainer imports where it is installed, spares its warning.
        environment.setdefault("DS_ACCELERATOR", "cpu")
    status = subprocess.run([sys.executable, *words], cwd=REPOSITORY, env=environment, check=False).returncode
    if status:
        print(f"error: this step failed ({title}); the lines above say why", file=sys.stderr)
        raise SystemExit(status)


def train(title: str, config: str, base: Path, data: Path, output: Path, *flags: str, processes: int = 1) -> None:
    """Train `base` with a config into `output`; a run that ended early goes on from its last checkpoint.

    Args:
        processes: that share the work, with one thread each where they are several.
    """
    if (output / "model.safetensors").is_file():
        print(f"\n== {title}: done before, in {output}")
        return
    begun = any(output.glob("checkpoint-*/trainer_state.json"))
    run(
        title,
        *(("scripts/start_processes.py", "--standalone", "--nproc_per_node", str(processes)) if processes > 1 else ()),
        *("finetune_multitask.py", "--config", config, "--model_name_or_path", base, "--data_path", data),
        *("--output_dir", output, "--resume_from_checkpoint" if begun else "--overwrite_output_dir", "True"),
        *flags,
    )


def evaluate(title: str, checkpoint: Path, tasks: str, data: Path, result: Path, name: str, *flags: str) -> None:
    """Ask `checkpoint` the questions of tasks; answers that are there are kept."""
    run(
        title,
        *("evaluate_vqa.py", "--checkpoint", checkpoint, "--dataset", tasks, "--data-root", data),
        *("--output-dir", result, "--save_name", name, "--batch-size", "32", "--num-workers", "0", *flags),
    )


def results(result: Path, name: str, task: str) -> dict[str, Any]:
    """Content of a task's results.json."""
    return json.loads((result / name / task / "results.json").read_text(encoding="utf-8"))
