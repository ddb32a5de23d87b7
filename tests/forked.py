"""Programs in processes of their own that begin with the libraries imported.

An interpreter takes seconds to import torch and transformers, more than most programs of the tests have to do. A server
imports them once for each process of the tests, and programs are forked from it. What a fresh interpreter does before
its program, and that programs import what they use, is tested by `test_startup.py`.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

PROCESSES = multiprocessing.get_context("forkserver")
LIBRARIES = [
    "monkey.training.finetune",
    "monkey.serving.session",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
]
"""What most programs import at last; what is not installed is left out."""


def start_server() -> None:
    """Start what imports the libraries, once; a program under test that forks too would otherwise start its own."""
    PROCESSES.set_forkserver_preload(LIBRARIES)
    forkserver.ensure_running()


class Forked:
    """A process in a session of its own, with what the tests use of a `subprocess.Popen`."""

    def __init__(self, process: Any):
        self._process = process
        self.pid: int = process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait_for(self, condition: Callable[[], bool], said: Path, timeout: float = 300) -> None:
        """Wait for something that it does; fails with what it said where it ends before, or takes too long."""
        end = time.monotonic() + timeout
        while not condition():
            # What it did last may have been just that.
            assert self.poll() is None or condition(), said.read_text(encoding="utf-8")
            assert time.monotonic() < end, said.read_text(encoding="utf-8")
            time.sleep(0.01)

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.poll() is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout)
        return self.returncode


def start(
    call: Callable[..., Any],
    *given: Any,
    cwd: Path,
    env: Mapping[str, str],
    stdout: Path,
    stderr: Path | None = None,
) -> Forked:
    """Call a function of a module in a process, whose exit status is what it gives to `sys.exit`.

    Args:
        stdout: gets what is said, after what it holds.
        stderr: gets the errors, which otherwise go where the rest does.
    """
    start_server()
    process = PROCESSES.Process(target=_begin, args=(call, given, cwd, dict(env), stdout, stderr or stdout))
    process.start()
    return Forked(process)


def _begin(
    call: Callable[..., Any], given: tuple[Any, ...], cwd: Path, env: dict[str, str], stdout: Path, stderr: Path
) -> None:
    os.setsid()
    for number, path in ((1, stdout), (2, stderr)):
        with path.open("ab") as stream:
            os.dup2(stream.fileno(), number)
    sys.stdout.reconfigure(line_buffering=True)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    tempfile.tempdir = None  # to be found by what the environment says
    gc.freeze()  # the libraries, which stay
    if "torch" in sys.modules and "OMP_NUM_THREADS" in env:
        sys.modules["torch"].set_num_threads(int(env["OMP_NUM_THREADS"]))
    call(*given)


def run_words(words: Sequence[str]) -> None:
    """Run what Python would with these words: `x.py …`, `-m x …` or `-c x …`."""
    words = list(words)
    sys.path.insert(0, os.getcwd())
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(words[1], {"__name__": "__main__"})
    elif words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")


def run(
    words: Sequence[str], cwd: Path, env: Mapping[str, str], folder: Path, timeout: float
) -> subprocess.CompletedProcess:
    """`subprocess.run` of Python with words, where `folder` has room for what it says."""
    said = folder / "stdout", folder / "stderr"
    program = start(run_words, words, cwd=cwd, env=env, stdout=said[0], stderr=said[1])
    try:
        status = program.wait(timeout)
    finally:
        program.kill()
    return subprocess.CompletedProcess(words, status, *(path.read_text(encoding="utf-8") for path in said))
