"""The shape of the code: which way imports point, counts derived once, every config and README command alive."""

from __future__ import annotations

import ast
import collections
import functools
import graphlib
import json
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import yaml

from monkey import MonkeyConfig

REPOSITORY = Path(__file__).resolve().parent.parent
READMES = (REPOSITORY / "README.md", REPOSITORY / "README_cn.md")
PACKAGES = ("monkey", "eval")

# A module may import those in its own row and in the rows above it.
LAYERS = (
    ("monkey.files", "monkey.devices", "monkey.grids", "monkey.parts", "monkey.timm_encoders"),
    ("monkey.part_configs",),
    (
        "monkey.flat_config",
        "monkey.configuration",
        "monkey.attention",
        "monkey.kv_cache",
        "monkey.prompts",
        "monkey.cli",
        "monkey.journal",
        "monkey.provenance",
        "monkey.completions_client",
        "monkey.images",
        "monkey.boxes",
        "monkey.conversation",
        "monkey.page",
    ),
    (
        "monkey.vision",
        "monkey.language",
        "monkey.checkpoint_card",
        "monkey.checkpoint_files",
        "monkey.tokenization",
        "monkey.tokenization_decoder",
        "monkey.chat_template",
        "monkey.decoding",
        "monkey.grammar",
        "monkey.grammar_trial",
        "monkey.reply",
    ),
    ("monkey.decoders",),
    ("monkey.checkpoint", "monkey.image_processing", "monkey.vision_timm"),
    ("monkey.modeling", "monkey.processing"),
    ("monkey.engine", "monkey.quantised"),
    ("monkey.adapters",),
    ("monkey", "monkey.data"),
    ("monkey.serving",),
    ("monkey.training", "monkey.describe", "monkey.integrations"),
    ("monkey.ask", "monkey.serve", "monkey.command", "monkey.__main__"),
    ("eval",),
)


def layer(module: str) -> int:
    """Row of the longest listed name that the module begins with."""
    names = {name: index for index, row in enumerate(LAYERS) for name in row}
    while module not in names:
        module = module.rpartition(".")[0]
    return names[module]


@functools.cache
def modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in (REPOSITORY / package).rglob("*.py"):
            name = ".".join(path.relative_to(REPOSITORY).with_suffix("").parts).removesuffix(".__init__")
            found[name] = path
    return found


@functools.cache
def syntax(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(syntax(path)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            if node.module in PACKAGES:
                names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name for name in names if name.split(".")[0] in PACKAGES}


def test_imports_point_one_way():
    wrong = [
        f"{name} imports {used}"
        for name, path in modules().items()
        for used in imports(path)
        if used not in ("monkey", name) and layer(used) > layer(name)
    ]
    assert not wrong


def test_imports_go_in_no_circle():
    """What is imported for annotations alone does not count."""
    known = modules()
    graph: dict[str, set[str]] = {}
    for name, path in known.items():
        tree = syntax(path)
        for_types = {
            inner
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            for inner in ast.walk(node)
        }
        used = set()
        for node in ast.walk(tree):
            if node in for_types:
                continue
            if isinstance(node, ast.Import):
                used.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                paths = ((f"{node.module}.{alias.name}", node.module) for alias in node.names)
                used.update(inner if inner in known else outer for inner, outer in paths)
        graph[name] = (used & known.keys()) - {name}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_no_two_modules_share_a_name():
    names = collections.Counter(path.name for path in modules().values() if not path.name.startswith("__"))
    assert [name for name, count in names.items() if count > 1] == []


def test_package_never_imports_the_evaluator():
    users = [name for name, path in modules().items() if name.startswith("monkey") and "eval" in imports(path)]
    assert not users


def test_derived_counts_are_never_typed():
    typed = {
        f"{name}:{node.lineno}"
        for name, path in modules().items()
        for node in ast.walk(syntax(path))
        if isinstance(node, ast.Constant) and node.value in (1280, 1792)
    }
    assert not typed


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs" / "model").glob("*/config.json")), ids=str)
def test_every_model_config_opens(path):
    config = MonkeyConfig.from_pretrained(path.parent)
    assert config.image_tokens > 0


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs" / "deepspeed").glob("*.json")), ids=str)
def test_every_deepspeed_config_is_json_with_a_stage(path):
    assert json.loads(path.read_text())["zero_optimization"]["stage"] in (2, 3)


@pytest.mark.parametrize("path", sorted((REPOSITORY / "configs" / "training").glob("*.yaml")), ids=str)
def test_every_training_config_is_accepted(path, tmp_path):
    from monkey.training.arguments import parse_flags

    given = yaml.safe_load(path.read_text())
    words = ["--config", str(path), "--model_name_or_path", "m", "--data_path", "d", "--output_dir", str(tmp_path)]
    flags = parse_flags([*words, "--bf16", "False", "--use_cpu", "True"])
    assert flags.training.learning_rate == given["learning_rate"]
    assert flags.recipe.name == given["recipe"]


def readme_commands() -> list[list[str]]:
    """Words of each `python` and `bash` command in the shell blocks of the READMEs and docs, comments removed."""
    pages = (*READMES, REPOSITORY / "data" / "README.md", *(REPOSITORY / "docs").glob("*.md"))
    texts = [path.read_text(encoding="utf-8") for path in pages]
    blocks = [block for text in texts for block in re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)]
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line.split() for line in dict.fromkeys(lines) if line.startswith(("python ", "bash "))]


def documented_programs() -> dict[tuple[str, ...], set[str]]:
    """The programs of those commands, and the flags that each is shown with."""
    programs: dict[tuple[str, ...], set[str]] = {}
    for _, *words in readme_commands():
        program = tuple(words[: 2 if words[0] == "-m" else 1])
        flags = {word for word in words[len(program) :] if word.startswith("-")}
        programs.setdefault(program, set()).update(flags)
    return programs


def help_of(program: tuple[str, ...], monkeypatch, capsys) -> str:
    """What a program prints for `--help`; asked in this process, since each start takes seconds."""
    run = runpy.run_module if program[0] == "-m" else runpy.run_path
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(sys, "argv", [program[-1], "--help"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that the module was imported before
        with pytest.raises(SystemExit) as ended:
            run(program[-1], run_name="__main__")
    assert not ended.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize("program", documented_programs(), ids=" ".join)
def test_documented_command_exists_with_its_flags(program, monkeypatch, capsys):
    if program[0].endswith(".sh"):
        subprocess.run(["bash", "-n", str(REPOSITORY / program[0])], check=True)
        return
    help_text = help_of(program, monkeypatch, capsys)
    missing = [flag for flag in documented_programs()[program] if flag not in help_text]
    assert not missing
