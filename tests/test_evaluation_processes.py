"""Whatever happens to the processes of a run, its files end as those of one that nothing happened to."""

from __future__ import annotations

import multiprocessing
import os
import platform
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from eval.backends import EchoBackend
from eval.processes import Processes, Stopped
from eval.run import open_journal, run
from eval.run_folder import LOCK, journals_of
from monkey.journal import hold
from tests.test_evaluation import lines_of, own_task, row, run_one, settings, write_set

ROOT = Path(__file__).resolve().parent.parent
ROWS = 60
FORK = multiprocessing.get_context("fork")

VOLATILE = ("journal", "timing")


class SlowBackend(EchoBackend):
    """Echo that takes its time, so that there is something to interrupt."""

    def __init__(self, pause: float):
        super().__init__()
        self.pause = pause

    def generate_answers(self, batch):
        time.sleep(self.pause)
        return super().generate_answers(batch)


@pytest.fixture(scope="module")
def sums(tmp_path_factory) -> Path:
    return write_set(tmp_path_factory.mktemp("data"), [row(number, image=image_of(number)) for number in range(ROWS)])


def image_of(number: int) -> str:
    """Three images under twenty names, so that there is something to share."""
    return f"images/{number % 3}.png" if number % 20 < 3 else f"images/./{'./' * (number % 20)}{number % 3}.png"


@pytest.fixture(scope="module")
def expected(sums, tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole") / "run"
    run_one(sums, folder, EchoBackend, batch_size=2)
    return final_files(folder)


def final_files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(VOLATILE)
    }


def _take_part(rank: int, size: int, meeting: str, path: Path, folder: Path, opened, timeout: float) -> None:
    """One process of a run. Its sentence goes to a file, and its exit status is that of evaluate_vqa.py."""
    processes = Processes(rank, size, dist.FileStore(meeting, size) if size > 1 else None, timeout)
    try:
        run([own_task(path)], settings(folder, batch_size=2), opened, processes)
    except (ValueError, OSError) as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        Path(f"{meeting}.{rank}").write_text(f"{type(error).__name__}: {error}")
        sys.exit(2)


class Team:
    """Processes that run one evaluation together."""

    started = 0

    def __init__(self, size: int, path: Path, folder: Path, pause: float = 0.002, opened=None, timeout: float = 60.0):
        Team.started += 1
        folder.parent.mkdir(parents=True, exist_ok=True)
        self.meeting = f"{folder.parent}/meeting-{Team.started}"
        opened = opened or (lambda: SlowBackend(pause))
        given = [(rank, size, self.meeting, path, folder, opened, timeout) for rank in range(size)]
        self.members = [FORK.Process(target=_take_part, args=one, name=f"process {one[0]}") for one in given]
        for member in self.members:
            member.start()

    def kill(self, *ranks: int) -> None:
        for rank in ranks or range(len(self.members)):
            if self.members[rank].is_alive():
                os.kill(self.members[rank].pid, signal.SIGKILL)

    def end(self) -> list[int]:
        for member in self.members:
            member.join(120)
            assert not member.is_alive()
        return [member.exitcode for member in self.members]

    def sentence(self, rank: int) -> str:
        return Path(f"{self.meeting}.{rank}").read_text()


def until(true, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def answered(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in journals_of(folder / "sums"))


@pytest.mark.parametrize("size", [1, 3])
def test_any_number_of_processes_leaves_the_same_bytes(sums, tmp_path, expected, size):
    assert Team(size, sums, tmp_path / "run").end() == [0] * size
    assert final_files(tmp_path / "run") == expected
    shares = [len(lines_of(path)) for path in journals_of(tmp_path / "run" / "sums")]
    assert (len(shares), sum(shares)) == (size, ROWS)
    (timing,) = lines_of(tmp_path / "run" / "timing.jsonl")
    assert (timing["processes"], timing["asked"]["processes"], timing["asked"]["questions"]) == (size, size, ROWS)


def test_killed_anywhere_and_gone_on_with_another_number_it_ends_the_same(sums, tmp_path, expected):
    chance = random.Random(1)
    sizes = [chance.choice((1, 2, 3)) for _ in range(3)]
    for size in sizes[:-1]:
        team = Team(size, sums, tmp_path / "run", pause=0.01)
        goal = min(ROWS, answered(tmp_path / "run") + chance.randrange(1, ROWS // 3))
        until(lambda goal=goal, team=team: answered(tmp_path / "run") >= goal or not team.members[0].is_alive())
        time.sleep(chance.random() * 0.02)
        team.kill()
        team.end()
    before = answered(tmp_path / "run")
    assert Team(sizes[-1], sums, tmp_path / "run").end() == [0] * sizes[-1]
    assert final_files(tmp_path / "run") == expected
    assert lines_of(tmp_path / "run" / "timing.jsonl")[-1]["tasks"]["sums"]["resumed"] in (before, before - 1)
    assert answered(tmp_path / "run") == ROWS


@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_that_dies_ends_the_run_and_the_answers_are_kept(sums, tmp_path, expected, killed):
    team = Team(2, sums, tmp_path / "run", pause=0.05, timeout=4.0)
    until(lambda: answered(tmp_path / "run") >= 4)
    team.kill(killed)
    assert team.end()[1 - killed] == 2
    assert team.sentence(1 - killed).startswith(f"Stopped: process {1 - killed} of the run has waited 4 seconds for ")
    assert 4 <= answered(tmp_path / "run") < ROWS
    assert Team(1, sums, tmp_path / "run").end() == [0]
    assert final_files(tmp_path / "run") == expected


class Failing(SlowBackend):
    """Fails in the second process, once a few answers are there."""

    def __init__(self, folder: Path):
        super().__init__(0.01)
        self.folder = folder

    def generate_answers(self, batch):
        if multiprocessing.current_process().name == "process 1" and answered(self.folder) > 10:
            raise ValueError("the third tube is broken")
        return super().generate_answers(batch)


class Renamed(EchoBackend):
    """Another model in each process."""

    def __init__(self):
        super().__init__()
        self.fingerprint = f"echo of {os.getpid()}"


def test_what_is_wrong_in_one_process_is_the_sentence_of_the_run(sums, tmp_path):
    team = Team(2, sums, tmp_path / "run", opened=lambda: Failing(tmp_path / "run"))
    assert team.end() == [2, 2]
    assert team.sentence(1) == "ValueError: the third tube is broken"
    assert team.sentence(0) == "Stopped: process 1 of the run stopped: the third tube is broken"

    team = Team(2, sums, tmp_path / "other", opened=Renamed)
    assert team.end() == [2, 2]
    assert "give all the same checkpoint and flags" in team.sentence(1)

    # What is wrong with the data is said by the first process only.
    team = Team(2, write_set(tmp_path / "data", [row(0), row(0)]), tmp_path / "none")
    assert team.end() == [2, 2]
    assert team.sentence(0).startswith("ValueError: ")
    assert team.sentence(1).startswith("Stopped: process 0 of the run stopped: ")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("room", [0, 12_000])
def test_a_full_disk_is_one_sentence_and_the_run_goes_on_when_there_is_room(sums, tmp_path, expected, room):
    """The limit on a file's size refuses writes as a full disk does; in the journal first, then in the results."""

    def opened():
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        return EchoBackend()

    team = Team(1, sums, tmp_path / "run", opened=opened)
    assert team.end() == [2]
    sentence = team.sentence(0)
    assert sentence.startswith("OSError: ")
    assert "cannot be written" in sentence
    assert "make room and give the same command again" in sentence
    assert not list((tmp_path / "run").rglob("*.partial"))
    assert Team(1, sums, tmp_path / "run").end() == [0]
    assert final_files(tmp_path / "run") == expected


class TestLock:
    def hold(self, folder: Path, ready) -> None:
        with hold(folder / LOCK, "wait"):
            ready.set()
            time.sleep(600)

    @pytest.fixture
    def holder(self, tmp_path):
        ready = FORK.Event()
        process = FORK.Process(target=self.hold, args=(tmp_path / "run", ready))
        process.start()
        assert ready.wait(60)
        yield process
        process.kill()
        process.join()

    def test_a_second_run_is_refused_and_told_who_holds_the_folder(self, sums, tmp_path, holder):
        sentence = f"being written by process {holder.pid} on {platform.node()}; wait for it, or give another"
        with pytest.raises(ValueError, match=sentence):
            run_one(sums, tmp_path / "run")
        assert not (tmp_path / "run" / "sums").exists()

    def test_a_run_waits_for_the_loading_processes_of_a_killed_one(self, sums, tmp_path, holder):
        """They are forked with the journal open, and outlive the killed process by some seconds."""
        holder.kill()
        holder.join()

        def linger(ready) -> None:
            with open_journal(tmp_path / "run" / "sums" / "journal.jsonl"):
                ready.set()
                time.sleep(1.0)

        ready = FORK.Event()
        orphan = FORK.Process(target=linger, args=(ready,))
        orphan.start()
        assert ready.wait(60)
        assert (tmp_path / "run" / LOCK).is_file()
        assert run_one(sums, tmp_path / "run")["complete"]
        assert not (tmp_path / "run" / LOCK).exists()
        orphan.join()


def test_processes_that_cannot_meet_any_more_are_one_sentence():
    class Gone:
        def set(self, *_):
            raise dist.DistNetworkError("connection reset\nby peer")

    with pytest.raises(Stopped, match=r"process 1 cannot reach the others .*\(connection reset\); the answers so far"):
        Processes(1, 2, Gone()).tell("x", 1)
    with pytest.raises(ValueError, match=r"the 2 processes of WORLD_SIZE cannot meet .*; start with torchrun"):
        Processes.of_environment({"WORLD_SIZE": "2"})


def test_what_is_told_may_be_larger_than_a_value_of_the_store():
    store = dist.TCPStore("127.0.0.1", 0, 1, True)
    told = {"rows": list(range(200_000)), "keys": ["ä" + "0" * 63] * 200_000}
    Processes(0, 2, store).tell("share/1", told)
    assert Processes(1, 2, store, timeout=5.0).hear("share/1") == told


def test_a_process_that_is_busy_is_waited_for_and_one_that_is_gone_is_not():
    store = dist.HashStore()

    def work() -> None:
        first = Processes(0, 2, store, timeout=0.4)
        with first.together():
            time.sleep(2.0)
            first.tell("questions", True)

    thread = threading.Thread(target=work)
    thread.start()
    second = Processes(1, 2, store, timeout=0.4)
    with second.together():
        assert second.hear("questions")
    thread.join()
    with pytest.raises(Stopped, match=r"process 1 of the run has waited 0 seconds for process 0 without a sign of it"):
        second.hear("more")


def command_environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    return {**kept, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **more}


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"NPROC_PER_NODE": "none"}, "error: NPROC_PER_NODE=none: give a whole number of at least 1"),
        ({"WORLD_SIZE": "2"}, "error: WORLD_SIZE=2 machines, but MASTER_ADDR is not set"),
    ],
)
def test_eval_sh_says_in_one_sentence_what_it_cannot_start(environment, message):
    command = ["bash", str(ROOT / "eval" / "eval.sh"), "none", "run"]
    started = command_environment(**environment)
    started.pop("MASTER_ADDR", None)
    result = subprocess.run(command, env=started, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1
