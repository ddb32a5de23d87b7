"""Container, Slurm scripts and Actions: what they name is there, and what they start is what a person would."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from demo import parse_flags
from monkey import serve
from tests.test_launchers import OTHERS

ROOT = Path(__file__).resolve().parent.parent
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def read_yaml(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def compose() -> dict:
    return read_yaml(ROOT / "compose.yaml")


class TestContainer:
    @pytest.mark.parametrize("name", ["server", "demo", "server-gpu", "demo-gpu"])
    def test_a_service_starts_a_program_with_flags_that_it_has(self, name, compose):
        program, *words = compose["services"][name]["command"]
        words = [re.sub(r"\$\{CHECKPOINT:-(.*)}", r"\1", word) for word in words]
        if program == "demo":
            flags = parse_flags(words)
            assert (flags.server_name, flags.checkpoint_path) == ("0.0.0.0", "models/small")
        else:
            options = serve.parser().parse_args(words)
            assert (options.host, options.checkpoint) == ("0.0.0.0", "models/small")

    def test_nothing_is_published_beyond_this_machine(self, compose):
        ports = [port for service in compose["services"].values() for port in service["ports"]]
        assert len(ports) == 4
        assert all(port.startswith("127.0.0.1:") for port in ports)

    def test_a_gpu_is_asked_for_by_its_profile_alone(self, compose):
        has_gpu = {name: "deploy" in service for name, service in compose["services"].items()}
        assert has_gpu == {"server": False, "demo": False, "server-gpu": True, "demo-gpu": True}
        assert all(compose["services"][name]["profiles"] == ["gpu"] for name, gpu in has_gpu.items() if gpu)

    def test_the_build_gets_all_that_the_wheel_holds(self):
        wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
        kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
        assert {*wheel["only-include"], *wheel["force-include"]} <= {*kept}
        assert all((ROOT / name).exists() for name in kept)

    def test_the_image_runs_the_command_as_nobody_in_particular(self):
        lines = (ROOT / "Dockerfile").read_text().splitlines()
        assert "USER 1000" in lines
        assert lines[-2:] == ['ENTRYPOINT ["monkey"]', 'CMD ["serve", "--host", "0.0.0.0"]']

    def test_a_linter_finds_nothing(self):
        if not (linter := shutil.which("hadolint")):
            pytest.skip("hadolint is not installed")
        done = subprocess.run([linter, str(ROOT / "Dockerfile")], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_may_read_alone_and_runs_scripts_that_are_there(path):
    workflow = read_yaml(path)
    assert workflow["permissions"] == {"contents": "read"}
    steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
    scripts = [word for step in steps for word in re.findall(r"\S+\.(?:sh|py)", step.get("run", ""))]
    assert scripts
    assert all((ROOT / script).is_file() for script in scripts)


class Cluster:
    """Nodes that are all this machine: `srun` runs a task for each of them, one after the other."""

    def __init__(self, folder: Path, nodes: int):
        self.folder, self.nodes = folder, nodes
        (folder / "bin").mkdir()
        numbers = " ".join(map(str, range(nodes)))
        self._program("scontrol", "printf 'first\\nsecond\\n'")
        self._program(
            "srun",
            'while [ "${1#--}" != "$1" ]; do shift; done\n'
            f'for number in {numbers}; do SLURM_NODEID=$number "$@" || exit $?; done',
        )
        self._program("python", 'printf "%s " "$@" >>"$SAID"; echo >>"$SAID"')

    def _program(self, name: str, body: str) -> None:
        path = self.folder / "bin" / name
        path.write_text(f"#!{shutil.which('bash')}\n{body}\n")
        path.chmod(0o755)

    def submit(self, script: str, *words: str, **environment: str) -> subprocess.CompletedProcess:
        inherited = {name: value for name, value in os.environ.items() if name not in OTHERS}
        own = {
            "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}",
            "PYTHON": str(self.folder / "bin/python"),
            "SAID": str(self.folder / "said"),
            "SLURM_JOB_ID": "41",
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_JOB_NUM_NODES": str(self.nodes),
            "SLURM_GPUS_ON_NODE": "4",
            "SLURM_SUBMIT_DIR": str(ROOT),
        }
        command = ["bash", str(ROOT / "scripts/slurm" / script), *words]
        return subprocess.run(
            command, cwd=self.folder, env={**inherited, **own, **environment}, capture_output=True, text=True
        )

    @property
    def started(self) -> list[list[str]]:
        return [line.split() for line in (self.folder / "said").read_text().splitlines()]


def after(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


@pytest.mark.skipif(sys.platform == "win32", reason="Slurm's")
class TestSlurm:
    def test_training_starts_on_every_node_with_its_number(self, tmp_path):
        cluster = Cluster(tmp_path, 2)
        done = cluster.submit(
            "finetune.sbatch", "--config", "configs/training/lora-llm.yaml", MODEL="m", DATA="d.json", OUTPUT="o"
        )
        assert done.returncode == 0, done.stderr
        started = cluster.started
        assert [after(words, "--node_rank") for words in started] == ["0", "1"]
        for words in started:
            place = [after(words, flag) for flag in ("--nproc_per_node", "--nnodes", "--master_addr", "--master_port")]
            assert place == ["4", "2", "first", "20041"]
            assert after(words, "--config") == "configs/training/lora-llm.yaml"
            assert after(words, "--data_path") == "d.json"

    def test_evaluation_likewise(self, tmp_path):
        cluster = Cluster(tmp_path, 2)
        done = cluster.submit("evaluate.sbatch", "ckpt", "name", "textvqa_val", "--limit", "3")
        assert done.returncode == 0, done.stderr
        assert [after(words, "--node_rank") for words in cluster.started] == ["0", "1"]
        for words in cluster.started:
            assert [after(words, f) for f in ("--nproc_per_node", "--nnodes", "--master_addr")] == ["4", "2", "first"]
            assert [after(words, f) for f in ("--checkpoint", "--dataset", "--limit")] == ["ckpt", "textvqa_val", "3"]

    @pytest.mark.parametrize("script", ["finetune.sbatch", "evaluate.sbatch"])
    def test_another_folder_is_refused(self, script, tmp_path):
        done = Cluster(tmp_path, 2).submit(script, SLURM_SUBMIT_DIR=str(tmp_path))
        assert done.returncode == 2
        assert done.stderr.strip().endswith("is not there: submit from the repository, or set MONKEY_ROOT")
