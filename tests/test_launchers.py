"""The launchers: what they start, from environment or flags, and their one sentence where something is missing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = str(ROOT / "finetune_multitask.py")
START = ["MODEL", "DATA", "OUTPUT"]
THREE = {"MODEL": "m", "DATA": "d.json", "OUTPUT": "o"}
THREE_FLAGS = ["--model_name_or_path", "m", "--data_path", "d.json", "--output_dir", "o"]
OTHERS = (
    "GPUS", "NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK", "WORLD_SIZE", "PYTHON", "VENV",
    "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", *START,
)  # fmt: skip


class Machine:
    """A computer with so many GPUs, whose interpreter only says what it was asked."""

    def __init__(self, folder: Path, gpus: int, memory: Sequence[str] = ("81920",)):
        self.folder = folder
        (folder / "bin").mkdir()
        for tool in ("bash", "dirname", "wc", "cat", "sed"):
            (folder / "bin" / tool).symlink_to(shutil.which(tool))
        self._program("nproc", "echo 16")
        if gpus:
            listed = "; ".join(f"echo 'GPU {number}: a card'" for number in range(gpus))
            sizes = "; ".join(f"echo '{size}'" for size in memory)
            self._program(
                "nvidia-smi", f'echo "$*" >>"$SAID.smi"; case "$*" in *memory.total*) {sizes};; *) {listed};; esac'
            )
        self._program(
            "python3",
            'case "$1" in *plan_memory.py) echo "$*" >>"$SAID.plans"\n'
            'case "$FULL_LLM_FITS,$*" in never,*) exit 1;; broken,*) exit 2;; later,*--vision_checkp*) exit 0;; '
            "later,*) exit 1;; *) exit 0;; esac;; esac\n"
            'for word in "$@"; do echo "$word"; done >"$SAID"\n'
            'echo "$CUDA_VISIBLE_DEVICES,$OMP_NUM_THREADS,$MASTER_ADDR" >"$SAID.environment"',
        )
        self.python = folder / "bin/python3"

    def _program(self, name: str, body: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(f"#!{shutil.which('bash')}\n{body}\n")
        path.chmod(0o755)

    def run(self, script: str, *words: str, **environment: str) -> subprocess.CompletedProcess:
        inherited = {name: value for name, value in os.environ.items() if name not in OTHERS}
        own = {"PATH": str(self.folder / "bin"), "SAID": str(self.folder / "said"), "VENV": str(self.folder)}
        return subprocess.run(
            ["bash", str(ROOT / "scripts" / script), *words],
            cwd=self.folder,
            env={**inherited, **own, **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    def started(self, script: str, *words: str, **environment: str) -> list[str]:
        """Words that the interpreter got."""
        done = self.run(script, *words, **environment)
        assert done.returncode == 0, done.stderr
        return (self.folder / "said").read_text().splitlines()

    def refusal(self, script: str, *words: str, **environment: str) -> str:
        done = self.run(script, *words, **environment)
        assert done.returncode == 2
        assert not (self.folder / "said").exists()
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ")
        return line

    @property
    def environment(self) -> list[str]:
        """GPUs, threads and address that the interpreter saw."""
        return (self.folder / "said.environment").read_text().strip().split(",")


@pytest.fixture
def machine(tmp_path) -> Machine:
    return Machine(tmp_path, gpus=8)


@pytest.fixture
def bare(tmp_path) -> Machine:
    return Machine(tmp_path, gpus=0)


def config(name: str) -> list[str]:
    return ["--config", str(ROOT / f"configs/training/{name}.yaml")]


def sharding(name: str) -> list[str]:
    return ["--deepspeed", str(ROOT / f"configs/deepspeed/{name}.json")]


def torchrun(*words: str) -> list[str]:
    return [str(ROOT / "scripts/start_processes.py"), *words, PROGRAM]


ALONE = ["--nproc_per_node", "8", "--nnodes", "1", "--standalone"]


class TestWhatStarts:
    @pytest.mark.parametrize(
        ("script", "expected"),
        [
            ("finetune_ds_debug.sh", [*torchrun(*ALONE), *THREE_FLAGS, *config("full-llm"), *sharding("zero2")]),
            ("finetune_ds.sh", [*torchrun(*ALONE), *THREE_FLAGS, *config("full-llm"), *sharding("zero2")]),
            ("finetune_ds_3090.sh", [*torchrun(*ALONE), *THREE_FLAGS, *config("lora-llm"), *sharding("zero3")]),
            ("finetune_qlora_24gb.sh", [PROGRAM, *THREE_FLAGS, *config("qlora-llm")]),
            ("finetune_cpu.sh", [PROGRAM, *THREE_FLAGS, *config("tickets")]),
            ("launch.sh", [*torchrun(*ALONE), *THREE_FLAGS]),
        ],
    )
    def test_each_launcher_starts_its_recipe(self, machine, script, expected):
        assert machine.started(script, "--seed", "3", **THREE) == [*expected, "--seed", "3"]

    @pytest.mark.parametrize(
        "script",
        [
            *("launch.sh", "finetune_ds.sh", "finetune_ds_debug.sh", "finetune_ds_3090.sh", "finetune_qlora_24gb.sh"),
            "finetune_cpu.sh",
        ],
    )
    def test_help_says_how_and_starts_nothing(self, bare, script):
        done = bare.run(script, "--help")
        assert done.returncode == 0, done.stderr
        assert "scripts/" in done.stdout
        assert "set -euo" not in done.stdout
        assert not (bare.folder / "said").exists()

    def test_flags_serve_as_well_as_the_environment_and_win_over_it(self, machine):
        given = ["--nproc_per_node", "2", "--run_name", "two words", "--data_path", "mine.json"]
        words = machine.started("finetune_ds.sh", *given, **{**THREE, "OUTPUT": "my folder"}, GPUS="4")
        # Of a flag that is given twice, the program takes the last.
        assert words[-4:] == ["--run_name", "two words", "--data_path", "mine.json"]
        assert "my folder" in words
        assert words[1:3] == ["--nproc_per_node", "2"]
        assert machine.environment[1] == "8"  # of 16 cores
        for script in ("finetune_ds.sh", "finetune_qlora_24gb.sh", "finetune_cpu.sh"):
            assert machine.started(script, *THREE_FLAGS)[-6:] == THREE_FLAGS

    def test_a_config_may_name_model_data_and_output(self, machine):
        (machine.folder / "mine.yaml").write_text("model_name_or_path: m\ndata_path: d.json\noutput_dir: o")
        assert machine.started("finetune_ds.sh", "--config", "mine.yaml")[-2:] == ["--config", "mine.yaml"]
        assert machine.started("finetune_ds.sh", "--config=mine.yaml")[-1] == "--config=mine.yaml"

    def test_the_given_interpreter_is_taken(self, machine):
        other = machine.folder / "other"
        machine.python.rename(other)
        assert machine.started("finetune_ds.sh", **THREE, PYTHON=str(other))

    def test_visible_gpus_are_counted_and_asked(self, machine):
        words = machine.started("finetune_ds.sh", **THREE, CUDA_VISIBLE_DEVICES="2,5,6")
        assert words[1:3] == ["--nproc_per_node", "3"]
        assert "--id=2,5,6 --query-gpu=memory.total" in (machine.folder / "said.smi").read_text()
        assert machine.environment == ["2", "5", "6", "5", ""]

    @pytest.mark.parametrize(("given", "seen"), [({}, "0"), ({"CUDA_VISIBLE_DEVICES": "3"}, "3")])
    def test_the_single_card_run_sees_one_card(self, machine, given, seen):
        machine.started("finetune_qlora_24gb.sh", **THREE, **given)
        assert machine.environment[0] == seen

    def test_the_cpu_launcher_takes_what_the_quickstart_made(self, bare):
        drawn = ROOT / "outputs/quickstart/data/train.json"
        words = bare.started("finetune_cpu.sh", "--data_path", "d")
        assert words[1:5] == ["--model_name_or_path", str(ROOT / "models/small"), "--data_path", str(drawn)]
        assert words[-2:] == ["--data_path", "d"]


class TestRecipeByMemory:
    """finetune_ds.sh: full-llm where the memory plan says that the cards hold it."""

    @pytest.mark.parametrize("script", ["finetune_ds.sh", "finetune_ds_debug.sh"])
    def test_where_it_cannot_fit_lora_is_taken_and_said(self, tmp_path, script):
        machine = Machine(tmp_path, gpus=8, memory=["24576"] * 8)
        done = machine.run(script, "--seed", "3", **THREE, FULL_LLM_FITS="never")
        (line,) = done.stderr.splitlines()
        assert line.startswith("full-llm does not fit cards of 24.0 GiB, so this trains lora-llm with ZeRO-3; choose")
        assert "--recipe or --deepspeed" in line
        started = (tmp_path / "said").read_text().splitlines()
        assert started == [*torchrun(*ALONE), *THREE_FLAGS, *config("lora-llm"), *sharding("zero3"), "--seed", "3"]

    def test_where_vision_checkpointing_is_enough_it_stays(self, tmp_path):
        machine = Machine(tmp_path, gpus=8, memory=["49152"] * 8)
        done = machine.run("finetune_ds.sh", **THREE, FULL_LLM_FITS="later")
        assert done.stderr.startswith("full-llm on cards of 48.0 GiB takes --vision_checkpointing True; choose")
        started = (tmp_path / "said").read_text().splitlines()
        assert started[-6:] == [*config("full-llm"), *sharding("zero2"), "--vision_checkpointing", "True"]

    def test_the_plan_is_of_the_smallest_card_all_processes_and_the_command_that_starts(self, tmp_path):
        machine = Machine(tmp_path, gpus=3, memory=["81920", "24268", "49152"])
        nodes = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "first"}
        words = ["--model_name_or_path", "mine", "--grids", "up-to-6", "--fit", "pad", "--pack_tokens=4096"]
        started = machine.started("finetune_ds.sh", *words, **THREE, **nodes)
        plan = (tmp_path / "said.plans").read_text().split()
        assert plan[1:7] == ["--gpus", "6", "--gpu-memory", "23.6", "--quiet", "--"]
        assert plan[7:] == [*config("full-llm"), *sharding("zero2"), *THREE_FLAGS, *words]
        assert sorted(plan[7:]) == sorted(started[started.index(PROGRAM) + 1 :])

    @pytest.mark.parametrize(
        "words", [["--recipe", "full-llm"], ["--deepspeed=mine.json"], ["--config", "mine.yaml"]], ids=" ".join
    )
    def test_a_choice_of_ones_own_is_kept(self, machine, words):
        started = machine.started("finetune_ds.sh", *words, **THREE, FULL_LLM_FITS="never")
        assert started[-4 - len(words) :] == [*config("full-llm"), *sharding("zero2"), *words]
        assert not (machine.folder / "said.plans").exists()

    @pytest.mark.parametrize(
        ("gpus", "memory", "fits"),
        [(2, ["[N/A]"], "never"), (2, [], "never"), (0, [], "never"), (2, ["81920"], "broken")],
        ids=["no figure", "nothing", "no nvidia-smi", "no plan"],
    )
    def test_memory_or_a_plan_that_is_not_told_changes_nothing(self, tmp_path, gpus, memory, fits):
        machine = Machine(tmp_path, gpus, memory)
        assert machine.started("finetune_ds.sh", **THREE, GPUS="2", FULL_LLM_FITS=fits)[-4:-2] == config("full-llm")

    def test_a_schedulers_own_processes_choose_alike(self, tmp_path):
        machine = Machine(tmp_path, gpus=8, memory=["24576"])
        scheduler = {"RANK": "9", "LOCAL_RANK": "1", "WORLD_SIZE": "16", "MASTER_ADDR": "first", "MASTER_PORT": "77"}
        started = machine.started("finetune_ds.sh", **THREE, **scheduler, FULL_LLM_FITS="never")
        assert started == [PROGRAM, *THREE_FLAGS, *config("lora-llm"), *sharding("zero3")]


class TestSeveralNodes:
    def test_torchruns_usual_variables_say_the_place(self, machine):
        nodes = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "first"}
        words = machine.started("finetune_ds.sh", **THREE, **nodes)
        place = ["--node_rank", "1", "--master_addr", "first", "--master_port", "29500"]
        assert words[: words.index(PROGRAM)] == torchrun("--nproc_per_node", "8", "--nnodes", "2", *place)[:-1]
        assert machine.started("finetune_ds.sh", **THREE, **nodes, MASTER_PORT="1234")[10] == "1234"

    def test_they_may_be_flags(self, machine):
        words = ["--nnodes=2", "--node_rank", "0", "--master_addr", "first", "--master_port", "77", "--seed", "1"]
        started = machine.started("finetune_ds.sh", *words, **THREE)
        assert started[3:11] == ["--nnodes", "2", "--node_rank", "0", "--master_addr", "first", "--master_port", "77"]
        assert "--nnodes=2" not in started
        assert started[-2:] == ["--seed", "1"]

    def test_a_schedulers_own_processes_need_no_torchrun(self, machine):
        scheduler = {"RANK": "9", "LOCAL_RANK": "1", "WORLD_SIZE": "16", "MASTER_ADDR": "first", "MASTER_PORT": "77"}
        words = machine.started("finetune_ds.sh", **THREE, **scheduler)
        assert words == [PROGRAM, *THREE_FLAGS, *config("full-llm"), *sharding("zero2")]
        assert machine.environment[-1] == "first"

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"NNODES": "2", "NODE_RANK": "0"}, "NNODES=2 needs the address of node 0: set MASTER_ADDR"),
            ({"NNODES": "2", "MASTER_ADDR": "a"}, "NNODES=2 needs this node's number: set NODE_RANK from 0 to 1"),
            ({"NNODES": "2", "MASTER_ADDR": "a", "NODE_RANK": "2"}, "NODE_RANK=2 does not work with NNODES=2"),
            ({"NNODES": "two"}, "NNODES=two is not a whole number"),
            ({"NNODES": "0"}, "NNODES=0 does not work: give 1 or more"),
            ({"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2"}, "but not MASTER_ADDR and MASTER_PORT"),
        ],
    )
    def test_a_half_told_place_is_one_sentence(self, machine, given, message):
        assert message in machine.refusal("finetune_ds.sh", **THREE, **given)


class TestWhatIsMissing:
    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("MODEL", "the checkpoint to start from is missing: set MODEL, or give --model_name_or_path"),
            ("DATA", "the file of training records is missing: set DATA, or give --data_path"),
            ("OUTPUT", "the folder for the result is missing: set OUTPUT, or give --output_dir"),
        ],
    )
    @pytest.mark.parametrize("script", ["finetune_ds.sh", "finetune_ds_3090.sh", "finetune_qlora_24gb.sh"])
    def test_model_data_and_output_are_asked_for_before_anything_starts(self, machine, script, name, message):
        assert message in machine.refusal(script, **{key: value for key, value in THREE.items() if key != name})

    @pytest.mark.parametrize(
        ("script", "instead"),
        [("finetune_ds.sh", "GPUS"), ("launch.sh", "GPUS"), ("finetune_qlora_24gb.sh", "CUDA_VISIBLE_DEVICES")],
    )
    def test_no_gpu(self, bare, script, instead):
        assert f"this node shows no GPU; set {instead}" in bare.refusal(script, **THREE)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"GPUS": "9"}, "GPUS=9, but 8 are visible on this node"),
            ({"GPUS": "3", "CUDA_VISIBLE_DEVICES": "0,1"}, "GPUS=3, but 2 are visible on this node"),
            ({"GPUS": "all"}, "GPUS=all is not a whole number"),
            ({"PYTHON": "nowhere/python"}, "PYTHON=nowhere/python is no program"),
        ],
    )
    def test_a_wrong_setting_is_one_sentence(self, machine, given, message):
        assert message in machine.refusal("finetune_ds.sh", **THREE, **given)

    def test_a_wrong_flag_or_several_cards_for_one_are_one_sentence(self, machine):
        assert "--nproc_per_node has no value" in machine.refusal("finetune_ds.sh", "--nproc_per_node", **THREE)
        said = machine.refusal("finetune_qlora_24gb.sh", **THREE, CUDA_VISIBLE_DEVICES="0,1")
        assert "CUDA_VISIBLE_DEVICES=0,1 names several GPUs" in said

    def test_no_quickstart_before_the_cpu_run(self, bare):
        copy = bare.folder / "copy/scripts"
        shutil.copytree(ROOT / "scripts", copy)
        done = subprocess.run(["bash", str(copy / "finetune_cpu.sh")], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert "outputs/quickstart/data/train.json is not there: make it with scripts/quickstart.sh" in done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").glob("*.sh")), ids=lambda path: path.name)
def test_every_script_is_whole_shell(path):
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0


def test_a_mistake_in_a_run_of_several_processes_is_said_without_a_traceback(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name not in OTHERS}
    done = subprocess.run(
        ["bash", str(ROOT / "scripts/launch.sh"), "--learning_rat", "1"],
        env={**environment, "PYTHON": sys.executable, "GPUS": "2", "MODEL": "m", "DATA": "d", "OUTPUT": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "there is no flag --learning_rat; did you mean --learning_rate" in done.stderr
    assert "exitcode" not in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGUSR1")
def test_a_schedulers_early_warning_reaches_every_process_which_ends_in_its_own_time(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import os, pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(save()))\n"
        "here = pathlib.Path(__file__).parent\n"
        "def save():\n"
        "    time.sleep(1)\n"
        "    (here / f'saved-{os.environ[\"RANK\"]}').touch()\n"
        "(here / f'begun-{os.environ[\"RANK\"]}').touch()\n"
        "time.sleep(120)\n"
    )
    start = [sys.executable, str(ROOT / "scripts/start_processes.py"), "--standalone", "--nproc_per_node", "2"]
    with subprocess.Popen([*start, str(program)], stderr=subprocess.DEVNULL) as running:
        while len(list(tmp_path.glob("begun-*"))) < 2:
            assert running.poll() is None
            time.sleep(0.05)
        running.send_signal(signal.SIGUSR1)
        assert running.wait() == 0
    assert len(list(tmp_path.glob("saved-*"))) == 2
