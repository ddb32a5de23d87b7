"""The command `monkey`, in a checkout and from a wheel in an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import monkey
from monkey import command
from monkey.files import project_folder

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def here(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["monkey"])
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", command.PROGRAMS)
def test_every_program_is_there_with_its_help(name, here, capsys):
    try:
        status = command.main([name, "--help"])
    except SystemExit as stopped:
        status = stopped.code
    printed = capsys.readouterr().out
    assert status in (0, None)
    assert "--" in printed


def test_without_a_program_all_are_listed(capsys):
    assert command.main([]) == 2
    listed = capsys.readouterr().err
    assert all(f"\n  {name} " in listed for name in command.PROGRAMS)
    assert command.main(["--help"]) == 0
    assert capsys.readouterr().out == listed


def test_what_is_no_program_is_said(capsys):
    assert command.main(["trian"]) == 2
    assert capsys.readouterr().err.startswith("error: trian is no program of monkey; those are ask, demo, ")


def test_its_version_and_its_folder(capsys):
    assert (command.main(["--version"]), command.main(["where"])) == (0, 0)
    assert capsys.readouterr().out == f"monkey {monkey.__version__}\n{ROOT}\n"


def test_the_projects_own_files_are_found_from_any_folder_and_files_here_come_first(here, tmp_path):
    own = f"{project_folder()}/configs/training/tickets.yaml"
    assert command._found("configs/training/tickets.yaml") == own
    assert command._found("--config=configs/training/tickets.yaml") == f"--config={own}"
    for word in ("configs/training/none.yaml", "demo.py", "What is /models/small?", "--config"):
        assert command._found(word) == word
    (tmp_path / "models/small").mkdir(parents=True)
    assert command._found("models/small") == "models/small"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A folder with what a wheel of this tree holds, as pip lays it out."""
    builders = pytest.importorskip("hatchling.builders.wheel", reason="hatchling builds the wheel")
    target = tmp_path_factory.mktemp("wheel")
    built = next(builders.WheelBuilder(str(ROOT)).build(directory=str(target / "built")))
    with zipfile.ZipFile(built) as archive:
        archive.extractall(target / "site")
    return target / "site"


def run_wheel(wheel: Path, folder: Path, *code: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(wheel), "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, *code], cwd=folder, env=environment, capture_output=True, text=True)


def test_a_wheel_in_an_empty_folder_asks_the_model_that_ships(wheel, tmp_path):
    image = "data/pages/images/heldout/000001.jpg"
    done = run_wheel(wheel, tmp_path, "-m", "monkey", "ask", "--image", image, "What is the name of the shop?")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Ceedreem Shop\n"  # as from a checkout, in test_outside_answers.py
    assert f"opening {wheel / 'monkey/project/models/small'}" in done.stderr
    assert not list(tmp_path.iterdir())


def test_programs_beside_the_package_come_from_the_wheel(wheel, tmp_path):
    code = (
        "import sys, monkey.command as c\n"
        "assert c.main(['evaluate', '--show', 'textvqa_val']) == 0\n"
        "plan = ['plan', '--config', 'configs/training/lora-llm.yaml', '--gpus', '8', '--gpu-memory', '24']\n"
        "assert c.main([*plan, '--checkpoint', 'configs/model/small']) == 0\n"
        "import eval.tasks, scripts.plan_memory, monkey\n"
        "print('from', *(m.__file__ for m in (monkey, eval.tasks, scripts.plan_memory)))\n"
    )
    done = run_wheel(wheel, tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
    *_, last = done.stdout.splitlines()
    assert all(file.startswith(str(wheel)) for file in last.split()[1:])


def test_the_entry_point_and_the_launchers_are_in_the_wheel(wheel):
    (points,) = wheel.glob("monkey-*.dist-info/entry_points.txt")
    assert "monkey = monkey.command:main" in points.read_text()
    tracked = subprocess.run(
        ["git", "ls-files", "configs", "data/pages", "eval", "models/small", "monkey", "scripts", "*.py"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if tracked.returncode:
        pytest.skip("no git checkout")
    kept = [name for name in tracked.stdout.split() if name.startswith("monkey/")]
    beside = [name for name in tracked.stdout.split() if name.split("/")[0] in ("configs", "data", "eval", "models")]
    missing = [name for name in kept if not (wheel / name).is_file()]
    missing += [name for name in beside if not (wheel / "monkey" / "project" / name).is_file()]
    assert not missing
    assert (wheel / "monkey/project/scripts/finetune_ds.sh").is_file()
