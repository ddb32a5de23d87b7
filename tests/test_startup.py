"""What is imported when: nothing heavy before it is used, and our classes and torchvision's cure in time."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import monkey
from monkey.configuration import MonkeyConfig, QwenVLConfig
from monkey.import_hooks import MODEL_TYPES

ROOT = Path(__file__).resolve().parent.parent


def run(code: str, *path: Path) -> str:
    """What a fresh interpreter prints for the code, with folders before the others that it imports from."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*path, ROOT)))}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_package_alone_imports_neither_torch_nor_transformers():
    assert "set()" in run("import monkey, sys; print({'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules))")


@pytest.mark.parametrize("name", monkey.__all__)
def test_every_name_of_the_package_is_there(name):
    assert name in dir(monkey)
    assert callable(getattr(monkey, name))


def test_a_name_that_is_not_there_is_said():
    with pytest.raises(AttributeError, match="module 'monkey' has no attribute 'lod'"):
        monkey.lod  # noqa: B018


NO_CURE_YET = pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is not None and torch.version.cuda is None,
    reason="transformers' processors import torchvision, and PyPI's beside a CPU torch only after `import monkey`",
)
FIRST = (
    "import monkey",
    "import transformers.models.auto.modeling_auto, transformers.models.auto.tokenization_auto",
    pytest.param("import transformers.models.auto.processing_auto", marks=NO_CURE_YET),
)


class TestAutoClasses:
    def test_the_model_types_looked_for_are_those_of_the_configurations(self):
        assert (MonkeyConfig.model_type, QwenVLConfig.model_type) == MODEL_TYPES

    @pytest.mark.parametrize("first", FIRST)
    def test_they_find_ours_whichever_is_imported_first(self, first):
        code = (
            f"{first}\nimport monkey, sys\n"
            "from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText\n"
            "from transformers import AutoProcessor, AutoTokenizer, Trainer\n"
            "print('monkey.modeling' in sys.modules)\n"
            "config = monkey.MonkeyConfig.from_pretrained('models/small')\n"
            "print(type(AutoModelForImageTextToText.from_config(config)).__name__)\n"
            "for one in (AutoProcessor, AutoTokenizer, AutoImageProcessor, AutoConfig):\n"
            "    print(type(one.from_pretrained('models/small')).__name__)\n"
        )
        ours = "MonkeyForConditionalGeneration MonkeyProcessor QwenTokenizer MonkeyImageProcessor MonkeyConfig"
        assert run(code).split() == ["False", *ours.split()]


HEAVY = (
    *("torch", "torchvision", "timm", "transformers", "peft", "accelerate", "deepspeed"),
    *("gradio", "scipy", "matplotlib", "onnxruntime"),
)

# What is run -> words beside `--help` and a flag that there is not: each names a file that is not there.
PROGRAMS: dict[str, list[str]] = {
    "demo.py": ["-c ./none", "--compare ./none"],
    "evaluate_vqa.py": [
        *("--checkpoint ./none --save_name x --dataset pages_heldout", "--save_name x --dataset none.toml"),
        "--checkpoint models/small --save_name x --dataset none.jsonl --metric accuracy",
        "--checkpoint models/small --save_name x --dataset pages_heldout --ids none.txt",
    ],
    "finetune_multitask.py": [
        *("--config none.yaml", "--model_name_or_path ./none --data_path none.json --output_dir o"),
        "--model_name_or_path models/small --data_path none.json --output_dir o",
    ],
    "monkey.ask": [
        "--image none.png q",
        "-c ./none --describe --image README.md",
        "--input none.jsonl --output o.jsonl",
    ],
    "monkey.serve": ["-c ./none"],
    "monkey.describe": [
        *("run --help", "run --config none.yaml --images . --output o", "view none", "stats none", "sweep none"),
        *("convert --help", "view --help", "stats --help", "sweep --help"),
    ],
    "monkey.data.pages": ["--train 1 --output o --wordings none.yaml"],
    "monkey.data.vocabulary": [],
    "eval.check_questions": [],
    "eval.compare": ["none none"],
    "eval.prepare": ["chartqa --source none --data-root none"],
    "eval.report": ["none"],
    "eval.score": ["none"],
    "scripts/average_checkpoints.py": ["./none ./none o"],
    "scripts/check_data.py": ["none.json"],
    "scripts/convert_checkpoint.py": ["./none o"],
    "scripts/fixed_subset.py": ["./none"],
    "scripts/learn_letters.py": ["./none o --config configs/letters/reader.yaml"],
    "scripts/merge_adapters.py": ["./none o"],
    "scripts/new_model.py": ["./none o"],
    "scripts/plan_memory.py": ["--config none.yaml --gpu-memory 24", "--checkpoint ./none --gpu-memory 24"],
    "scripts/quickstart.py": [],
    "scripts/resolution_study.py": [],
    "scripts/set_grid.py": ["./none o --grid 2,2"],
    "scripts/show_views.py": ["none.png o.png"],
    "scripts/train_small_model.py": [],
}

PROBE = """
import runpy, sys
start = runpy.run_path if "/" in {program!r} or {program!r}.endswith(".py") else runpy.run_module
for words in {commands!r}:
    sys.argv = [{program!r}, *words.split()]
    try:
        start({program!r}, run_name="__main__")
    except SystemExit as ended:
        print("\\nstatus", ended.code or 0)
    print("\\nimported", words, *(name for name in {heavy!r} if name in sys.modules))
"""


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_a_mistyped_flag_and_a_missing_file_need_no_heavy_import(program):
    commands = ["--help", "--no-such-flag", *PROGRAMS[program]]
    said = run(PROBE.format(program=program, commands=commands, heavy=HEAVY)).splitlines()
    assert [line for line in said if line.startswith("imported")] == [f"imported {words}" for words in commands]
    statuses = ["0" if words.endswith("--help") else "2" for words in commands]
    assert [line.split()[1] for line in said if line.startswith("status")] == statuses


def test_the_flags_read_off_the_librarys_source_are_those_that_it_has():
    import dataclasses

    from monkey.training import arguments

    flags = {one.name: one.metadata.get("help", "") for one in dataclasses.fields(arguments.training_arguments())}
    declared = {name: text for group in arguments._declared_flags().values() for name, (text, _) in group.items()}
    assert flags.items() <= declared.items()


def test_the_choices_that_scripts_spell_out_are_those_there_are():
    from monkey.devices import DTYPES

    assert sorted(DTYPES) == ["bfloat16", "float16", "float32"]


BROKEN = """
import torch
from . import extension

@torch.library.register_fake("torchvision::nms")
def nms(dets, scores, iou_threshold):
    return dets.new_empty(extension.COUNT)
"""


@pytest.fixture
def torchvision(tmp_path) -> Path:
    """A folder with a torchvision that lacks its compiled operators."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "extension.py").write_text("COUNT = 0")
    (package / "__init__.py").write_text("import torchvision.extension\nfrom . import operators")
    (package / "operators.py").write_text("import torchvision\ntorchvision.extension.COUNT" + BROKEN)
    return tmp_path


class TestTorchvision:
    def test_it_is_imported_without_its_operators(self, torchvision):
        assert run("import monkey, torchvision; print(torchvision.extension.COUNT)", torchvision).strip() == "0"

    def test_it_is_imported_after_an_import_that_failed(self, torchvision):
        code = (
            "try:\n    import torchvision\nexcept RuntimeError as error:\n    print(error)\n"
            "import monkey, torchvision; print(torchvision.operators.nms.__name__)"
        )
        assert run(code, torchvision).splitlines() == ["operator torchvision::nms does not exist", "nms"]

    def test_one_that_works_is_left_alone(self, torchvision):
        (torchvision / "torchvision/__init__.py").write_text("")
        code = "import monkey, torchvision, sys; print('torch' in sys.modules)"
        assert run(code, torchvision).strip() == "False"

    def test_another_fault_of_it_is_said(self, torchvision):
        (torchvision / "torchvision/__init__.py").write_text("raise RuntimeError('no such driver')")
        code = "import monkey\ntry:\n    import torchvision\nexcept RuntimeError as error:\n    print(error)"
        assert run(code, torchvision).strip() == "no such driver"
