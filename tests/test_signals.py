"""Signal handlers: all in one file, and what they do where nobody else tests it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from gratis.processes import command_of_child
from gratis.signals import (
    STOPS,
    StopSignals,
    handlers_restored,
    interrupt_held_back,
    terminate_exits,
)

ROOT = Path(__file__).resolve().parent.parent


def test_no_other_file_sets_a_handler() -> None:
    setting = re.compile(r"signal\.(signal|pthread_sigmask|sigaction)\(")
    setters = [path for path in (ROOT / "gratis").rglob("*.py") if setting.search(path.read_text())]
    assert [path.name for path in setters] == ["signals.py"]


@pytest.mark.starts
@pytest.mark.parametrize("thread", ["this", "another"])
def test_ctrl_c_that_is_held_back_is_not_lost(thread: str) -> None:
    went_on = []
    ended = threading.Event()
    other = threading.Thread(target=ended.wait)
    other.start()
    receiver = threading.main_thread() if thread == "this" else other

    def interrupted_inside() -> None:
        with interrupt_held_back():
            signal.pthread_kill(receiver.ident or 0, signal.SIGINT)
            time.sleep(0.1)  # until the other thread has got it
            went_on.append(True)

    try:
        with handlers_restored():
            signal.signal(signal.SIGINT, signal.default_int_handler)
            with pytest.raises(KeyboardInterrupt):
                interrupted_inside()
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        ended.set()
        other.join()
    assert went_on


def test_the_first_terminate_exits_and_later_ones_are_ignored() -> None:
    with handlers_restored():
        terminate_exits()
        with pytest.raises(SystemExit) as ended:
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == 75


# What a handler raises inside a class's body comes out as a RuntimeError, in a callback of the
# import lock not at all (both seen in Python 3.11).
IMPORTED = {
    "class": """
import os, signal
class Named:
    def __set_name__(self, owner, name):
        os.kill(os.getpid(), signal.NUMBER)
class Made:
    named = Named()
""",
    "callback": """
import os, signal, weakref
class Held: pass
held = Held()
callback = weakref.ref(held, lambda _: os.kill(os.getpid(), signal.NUMBER))
del held
""",
}


@pytest.mark.starts
@pytest.mark.parametrize("place", IMPORTED)
@pytest.mark.parametrize(
    ("handler", "number", "expected"),
    [
        ("interrupt_raises()", "SIGINT", (130, "", "interrupted\n")),
        ("terminate_interrupts()", "SIGTERM", (130, "", "interrupted\n")),
        ("terminate_exits()", "SIGTERM", (75, "", "")),
        ("terminate_raises(signals.Terminated)", "SIGHUP", (75, "", "")),
        ("serve_until_signalled()", "SIGTERM", (0, "", "")),
        ("serve_until_signalled()", "SIGINT", (0, "", "")),
    ],
)
def test_a_signal_while_a_module_is_imported_ends_the_process(
    tmp_path: Path, place: str, handler: str, number: str, expected: tuple[int, str, str]
) -> None:
    (tmp_path / "imported.py").write_text(IMPORTED[place].replace("NUMBER", number))
    (tmp_path / "program.py").write_text(
        "import signal\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup\n"
        f"from gratis import signals\nsignals.{handler}\n"
        "import imported\n"
        "print('went on')\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(tmp_path / "program.py")]
    ended = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == expected


@pytest.mark.parametrize("number", STOPS)
def test_a_rank_remembers_what_asked_it_to_stop(number: int) -> None:
    with handlers_restored():
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
        signals = StopSignals()
        os.kill(os.getpid(), number)
        assert (signals.terminated, signals.interrupted) == (
            STOPS[number] == 75,
            STOPS[number] == 130,
        )


@pytest.mark.starts
def test_a_child_whose_parent_is_gone_does_not_begin() -> None:
    command = command_of_child(["--version"])
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0
    command[3] = str(os.getppid())
    assert command[0] == sys.executable
    assert subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 75


LATE = """
import os, sys
class Late:  # goes when the interpreter takes itself apart, past every handler
    def __del__(self, kill=os.kill, pid=os.getpid(), number=int(os.environ["LATE"])):
        kill(pid, number)
if os.environ["LATE_IN"] in sys.orig_argv:
    sys.late = Late()
"""


def ended_late(folder: Path, number: int, verb: str, *arguments: str) -> subprocess.Popen[str]:
    (folder / "sitecustomize.py").write_text(LATE)
    path = {"PYTHONPATH": f"{folder}:{ROOT}", "LATE": str(int(number)), "LATE_IN": verb}
    command = [sys.executable, "-m", "gratis", verb, *arguments]
    return subprocess.Popen(command, env=os.environ | path, cwd=ROOT, text=True, stdout=-1)


@pytest.mark.starts
@pytest.mark.parametrize("number", sorted(STOPS))
@pytest.mark.parametrize(("verb", "code"), [("--version", 0), ("nothing", 2)])
def test_a_signal_at_the_interpreter_s_end_leaves_the_exit_code(
    tmp_path: Path, number: int, verb: str, code: int
) -> None:
    process = ended_late(tmp_path, number, verb)
    process.communicate(timeout=60)
    assert process.returncode == code


@pytest.mark.slow
def test_a_signal_after_the_result_leaves_a_finished_run_finished(
    sample_shards: Path, tmp_path: Path
) -> None:
    """One at the line itself, which the launcher took for one to the ranks, and one at the end."""
    options = "--recipe sample --width 0.0625 --batch 500 --epochs 1 --port 0 --runs".split()
    shards = ("--shards", str(sample_shards))
    process = ended_late(tmp_path, signal.SIGTERM, "train", *options, str(tmp_path / "r"), *shards)
    with process:
        for line in process.stdout or ():
            if line.startswith("result "):
                process.send_signal(signal.SIGTERM)
    assert process.returncode == 0
