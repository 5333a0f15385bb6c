"""A command of ours as a child process: for some minutes, or for as long as its parent lives."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import MutableMapping
from pathlib import Path

from gratis.signals import end_with_parent

GRACE_S = 75.0  # for training to save itself after SIGTERM: its agent gives ranks a minute
SPINS = "1000"  # of a waiting thread before it sleeps: some microseconds
OVER = "the minutes are over; the same command goes on"


def timed(path: Path, command: list[str], seconds: float) -> str | None:
    """Runs `gratis ...` for at most so long; None if it succeeded, else why not. Its output is in
    `path`.

    When time is over it gets SIGTERM, at which training saves itself.
    """
    if seconds <= 0:
        return f"skipped: {OVER}"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as output:
        output.write(log_header(command))
        output.flush()
        # a session of its own: at the end of the time all that it has started is ended
        child = subprocess.Popen(
            command_of_child(command),  # it ends with this process, by kill -9 too
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = child.wait(seconds)
        except subprocess.TimeoutExpired:
            end(child)
            return f"stopped after {seconds / 60:.1f} minutes: {OVER}"
        except BaseException:
            end(child)
            raise
    return None if code == 0 else failure(code, read_log(path))


def failure(code: int, log: str) -> str:
    """Why a command failed: its last error, or the last line of its log, which has a header."""
    lines = log.strip().splitlines()
    last = next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1])
    return f"failed with exit code {code}: {last.removeprefix('error: ')}"


def log_header(command: list[str]) -> str:
    """Of its log."""
    return f"gratis {shlex.join(command)}\n"


def end(child: subprocess.Popen[bytes], grace_s: float = GRACE_S) -> None:
    """SIGTERM to the child, which hands it on; if it will not end, SIGKILL to it and all that it
    has started."""
    child.terminate()
    try:
        child.wait(grace_s)
    except subprocess.TimeoutExpired:
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:  # it has no group of its own
            child.kill()
        child.wait()


def read_log(path: Path) -> str:
    """The log; empty if there is none. A bar's states are lines of their own."""
    return path.read_text(errors="replace") if path.exists() else ""  # by universal newlines


def command_of_child(arguments: list[str]) -> list[str]:
    """The words that start `gratis ARGUMENTS` as a child that ends when this process does, by
    kill -9 too."""
    return [sys.executable, "-m", "gratis.processes", str(os.getpid()), *arguments]


def bound_spinning(environment: MutableMapping[str, str]) -> None:
    """Lets the threads of OpenMP (GNU's, which torch's wheels bring) sleep soon after they have
    nothing to do, unless the user said how they wait: by default they spin for milliseconds, which
    beside other work takes several times the CPU of the work itself. In processes to come, and in
    this one before it imports torch."""
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & environment.keys():
        environment["GOMP_SPINCOUNT"] = SPINS


if __name__ == "__main__":
    end_with_parent(int(sys.argv.pop(1)))
    from gratis.cli import main

    sys.exit(main())
