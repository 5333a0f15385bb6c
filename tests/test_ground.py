"""What every command stands on: exit codes, the table of verbs, signals, memory, open files and the
words of a child process."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import pytest

from gratis import __version__, cli, errors, memory
from gratis.errors import GratisError, Outage, call_in_thread, guard, printable, wait_for
from gratis.open_files import max_open_files, move_high
from gratis.processes import bound_spinning, command_of_child, failure, log_header, read_log, timed
from gratis.signals import (
    STOPS,
    StopSignals,
    end_with_parent,
    handlers_restored,
    ignore_stops,
    interrupt_ends_at_once,
    interrupt_raises,
    leave_to_parent,
    name_of,
    stop_signals,
    terminate_interrupts,
    terminate_raises,
)


def raising(error: BaseException) -> Callable[[], int]:
    def main() -> int:
        raise error

    return main


@pytest.mark.parametrize(
    ("main", "code", "line"),
    [
        (lambda: None, 0, ""),
        (lambda: 0, 0, ""),
        (lambda: 3, 3, ""),
        (raising(GratisError("a\nb: é")), 2, "error: a\\nb: é\n"),
        (raising(Outage("away")), 75, "error: away\n"),
        (raising(KeyboardInterrupt()), 130, "interrupted\n"),
    ],
)
def test_exit_codes(
    main: Callable[[], int], code: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guard(main) == code
    assert capsys.readouterr() == ("", line)


def test_a_defect_keeps_its_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    for error in (ValueError("x"), SystemExit(4), BrokenPipeError()):
        with pytest.raises(type(error)):
            guard(raising(error))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("flushed", [False, True])
def test_output_that_nobody_reads_is_no_error(
    flushed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        monkeypatch.setattr(sys, "stderr", sys.__stderr__)
        assert guard(lambda: print("x", flush=flushed)) == 141
        print("and later ones go nowhere", flush=True)
        monkeypatch.undo()


@pytest.mark.parametrize(
    ("text", "shown"), [("é a", "é a"), ("a\tb", "a\\tb"), ("'\"\0", "\\'\"\\x00"), ("", "")]
)
def test_a_text_on_one_line(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_an_answer_is_waited_for_as_long_as_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    assert call_in_thread(lambda: 3).result(9) == 3
    assert wait_for(lambda: 4, "x") == 4
    with pytest.raises(KeyError):
        wait_for(raising(KeyError()), "x")
    monkeypatch.setattr(errors, "ANSWER_S", 0.01)
    go, asked = errors.threading.Event(), list[int]()
    with pytest.raises(GratisError) as caught:
        wait_for(go.wait, "cannot read x")
    assert str(caught.value) == (
        "cannot read x: no answer within 0.01 seconds; look at the address, this machine's "
        "network, and the credentials if it wants any"
    )

    def answered() -> bool:
        asked.append(1)
        if len(asked) == 3:
            go.set()
        return True

    assert wait_for(go.wait, "x", answered) is True
    assert len(asked) >= 3


def test_without_a_verb_all_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["-h"], ["--help"]):
        assert cli.run(arguments) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[:2] == ["usage: gratis VERB ...      (gratis VERB --help says more)", ""]
        assert [line.split()[0] for line in lines[2:]] == [*cli.VERBS]
        assert lines[2] == "  sample              draw a small dataset of ten classes"
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"gratis {__version__}\n"


def test_a_verb_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(GratisError) as caught:
        cli.run(["trian", "x"])
    said = "not understood: trian; did you mean train? VERB may be sample, shards, merge, index, "
    assert str(caught.value).startswith(said)
    with pytest.raises(GratisError, match=r"^not understood: zzzz; VERB may be sample, "):
        cli.run(["zzzz"])


MODULE = """
def main(arguments, *helpers):
    print(arguments, *(helper() for helper in helpers))
    return len(arguments)

def make():
    return "made"
"""


@pytest.fixture
def verb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A verb of its own, and the file of its module."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(cli.VERBS, "odd", ("gratis_odd_verb:main", "for this test"))
    monkeypatch.delitem(sys.modules, "gratis_odd_verb", raising=False)
    path = tmp_path / "gratis_odd_verb.py"
    path.write_text(MODULE)
    return path


def test_a_verb_gets_its_arguments_and_helpers(
    verb: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with handlers_restored():
        assert cli.run(["odd", "a", "--b"]) == 2
        monkeypatch.setitem(cli.HELPERS, "odd", "gratis_odd_verb:make")
        assert cli.run(["odd"]) == 0
        monkeypatch.setitem(cli.HELPERS, "odd", "gratis_no_such_module:make")
        assert cli.run(["odd", "c"]) == 1
    assert capsys.readouterr().out == "['a', '--b']\n[] made\n['c'] None\n"


@pytest.mark.parametrize(
    ("lacks", "package"),
    [("PIL", "pillow"), ("nvidia.dali.fn", "nvidia-dali-cuda130"), ("numba", "numba")],
)
def test_a_verb_that_lacks_a_package_names_it(verb: Path, lacks: str, package: str) -> None:
    verb.write_text(f"raise ModuleNotFoundError('no', name={lacks!r})\n")
    with handlers_restored(), pytest.raises(GratisError) as caught:
        cli.run(["odd"])
    needs = f"gratis odd needs {package}, which is not installed: pip install {package}"
    assert str(caught.value) == needs


@pytest.mark.parametrize("lacks", ["gratis.x", "benchmarks", None])
def test_a_module_of_ours_that_is_missing_is_a_defect(verb: Path, lacks: str | None) -> None:
    verb.write_text(f"raise ModuleNotFoundError('no', name={lacks!r})\n")
    with handlers_restored(), pytest.raises(ModuleNotFoundError):
        cli.run(["odd"])


def test_benchmarks_need_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "CHECKOUT", tmp_path)
    monkeypatch.setattr(sys, "path", ["x"])
    monkeypatch.setenv("PYTHONPATH", f"b{os.pathsep}{tmp_path}{os.pathsep}{os.pathsep}c")
    with pytest.raises(GratisError, match=r"^gratis bench needs a source checkout: the benchmarks"):
        cli.import_benchmarks("bench")
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "command.py").touch()
    cli.import_benchmarks("bench")
    assert sys.path == [str(tmp_path), "x"]
    assert os.environ["PYTHONPATH"] == os.pathsep.join([str(tmp_path), "b", "c"])


@pytest.mark.parametrize("inside", [False, True])
def test_children_import_what_their_parent_does(
    inside: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "CHECKOUT", tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path if inside else tmp_path.parent), "x"])
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    cli.import_from_here()
    assert os.environ["PYTHONSAFEPATH"] == "1"
    assert os.environ.get("PYTHONPATH") == (str(tmp_path) if inside else None)


def test_a_command_ends_deaf_to_signals(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gratis", "--version"])
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    monkeypatch.setenv("PYTHONPATH", "")
    with handlers_restored():
        assert cli.main() == 0
        assert {signal.getsignal(number) for number in STOPS} == {signal.SIG_IGN}
    assert capsys.readouterr().out == f"gratis {__version__}\n"


class Ended(Exception):
    """Of this test."""


def test_what_a_signal_does() -> None:
    with handlers_restored():
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
        interrupt_raises()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        terminate_interrupts()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
            terminate_raises(Ended)
            with pytest.raises(Ended):
                os.kill(os.getpid(), number)
            for later in (signal.SIGTERM, signal.SIGHUP):
                assert signal.getsignal(later) == signal.SIG_IGN
        leave_to_parent()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        interrupt_raises()  # it was ignored from the start
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        interrupt_ends_at_once()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        signal.signal(signal.SIGINT, signal.default_int_handler)
        interrupt_ends_at_once()
        assert signal.getsignal(signal.SIGINT) not in (signal.SIG_IGN, signal.default_int_handler)
        ignore_stops()
        assert {signal.getsignal(number) for number in STOPS} == {signal.SIG_IGN}
    assert name_of(signal.SIGQUIT) == "SIGQUIT"


def test_a_hangup_that_was_ignored_from_the_start_stays_so() -> None:
    hurried = list[int]()
    with handlers_restored():
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        assert stop_signals() == [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT]
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        assert stop_signals() == [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT]
        signals = StopSignals(lambda: hurried.append(1))
        os.kill(os.getpid(), signal.SIGHUP)
        assert (signals.terminated, signals.interrupted, hurried) == (False, False, [])
        os.kill(os.getpid(), signal.SIGQUIT)
        assert (signals.terminated, signals.interrupted, hurried) == (False, True, [1])
        os.kill(os.getpid(), signal.SIGTERM)
        assert (signals.terminated, signals.interrupted, hurried) == (True, True, [1, 1])


def test_only_what_is_named_gets_its_handler_back() -> None:
    before = signal.getsignal(signal.SIGUSR1), signal.getsignal(signal.SIGTERM)
    with handlers_restored():
        with handlers_restored([signal.SIGUSR1]):
            signal.signal(signal.SIGUSR1, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGUSR1) == before[0]
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    assert signal.getsignal(signal.SIGTERM) == before[1]


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells a process of its parent")
def test_a_process_of_another_parent_does_not_begin() -> None:
    """With signal 0, which is none: this process is to outlive its parent."""
    end_with_parent(os.getppid(), 0)
    with pytest.raises(SystemExit) as ended:
        end_with_parent(os.getppid() + 1, 0)
    assert ended.value.code == 75


def group(folder: Path, names: tuple[str, str], limit: str, used: int, *stat: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text("".join(f"{line}\n" for line in stat))


ONE = ("memory.limit_in_bytes", "memory.usage_in_bytes")
TWO = ("memory.max", "memory.current")
OLD_GROUPS = "5:cpu,cpuacct:/a/b\n4:memory:/a/b\n1:name=systemd:/x\n"


@pytest.mark.parametrize(
    ("own", "make", "left"),
    [
        (None, lambda root: None, 2048_000),
        ("0::/a/b\n", lambda root: None, 2048_000),
        ("0::/a/b\n", lambda root: group(root / "a/b", TWO, "max", 5), 2048_000),
        (
            "0::/a/b\n",
            lambda root: group(root / "a/b", TWO, "9000", 5000, "file 1", "inactive_file 300"),
            4300,
        ),
        ("0::/a/b\n", lambda root: group(root / "a", TWO, "9000", 8000, "inactive_file 7"), 1007),
        ("0::/Xa\n", lambda root: group(root / "Xa", TWO, "9000", 8000, "inactive_file 7"), 1007),
        ("0::/\n", lambda root: group(root, TWO, "900", 800, "inactive_file 7"), 107),
        # in a container: the host's name of what is the root here
        ("0::/x/y\n", lambda root: group(root, TWO, "900", 850, "inactive_file 7"), 57),
        ("0::/a\n", lambda root: group(root / "a", TWO, "5", 800, "inactive_file 7"), 0),
        (
            OLD_GROUPS,
            lambda root: group(root / "memory/a/b", ONE, "900", 800, "total_inactive_file 8"),
            108,
        ),
        # of the second version there is nothing in a hierarchy of the first
        (OLD_GROUPS, lambda root: group(root / "a/b", TWO, "9", 8, "inactive_file 0"), 2048_000),
    ],
)
def test_memory_is_the_least_that_is_left_anywhere(
    own: str | None,
    make: Callable[[Path], None],
    left: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine, groups, mine = tmp_path / "meminfo", tmp_path / "cgroup", tmp_path / "own"
    for name, path in (("MACHINE", machine), ("GROUPS", groups), ("OWN", mine)):
        monkeypatch.setattr(memory, name, path)
    machine.write_text("MemTotal:  9000 kB\nMemAvailable:    2000 kB\nxMemAvailable: 1 kB\n")
    if own is not None:
        mine.write_text(own)
    make(groups)
    assert memory.available_bytes() == left
    machine.unlink()
    assert memory.available_bytes() == (left if left < 2_000_000 else 0)


INF = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("limits", "wanted", "most", "raised"),
    [
        ((1024, INF), 1000, 1000, 4000),
        ((1024, 8192), 1000, 1000, 4000),
        ((1024, 2048), 1000, 512, 2048),
        ((4000, 4000), 1000, 1000, None),
        ((3999, 3999), 1000, 1000, 3999),
        ((100_000, 100_000), 5000, 5000, None),
        ((20_000, 20_000), 19_000, 15_904, 20_000),  # 4,096 are for others
        ((INF, INF), 7000, 7000, None),
        ((4, 4), 10, 1, 4),
        ((1, 1), 10, 1, 1),
        ((1024, 1024), 256, 256, None),
    ],
)
def test_how_many_files_may_be_open(
    monkeypatch: pytest.MonkeyPatch,
    limits: tuple[int, int],
    wanted: int,
    most: int,
    raised: int | None,
) -> None:
    """limits: soft and hard."""
    asked = list[tuple[int, int]]()
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda kind, new: asked.append(new))
    assert max_open_files(wanted) == most
    assert asked == ([] if raised is None else [(raised, limits[1])])


def test_where_a_limit_cannot_be_raised_it_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1024, INF))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert max_open_files(1000) == 256


def test_low_numbers_of_files_are_left_to_others(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"123")
    file = os.open(tmp_path / "a", os.O_RDONLY)
    high = move_high(file)
    assert os.pread(high, 3, 0) == b"123"
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 1024:
        assert high >= 1024
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(file)
        assert not os.get_inheritable(high)
    os.close(high)


def test_the_words_of_a_child(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "gratis.processes", str(os.getpid()), "train", "a b"]
    assert command_of_child(["train", "a b"]) == words
    assert log_header(["train", "a b", "--x=1"]) == "gratis train 'a b' --x=1\n"
    said = "skipped: the minutes are over; the same command goes on"
    assert timed(tmp_path / "x" / "log", ["train"], 0.0) == said
    assert timed(tmp_path / "x" / "log", ["train"], -1.0) == said
    assert not (tmp_path / "x").exists()
    (tmp_path / "log").write_bytes(b"a\rb\r\n\xff")
    assert read_log(tmp_path / "log") == "a\nb\n\ufffd"
    assert read_log(tmp_path / "none") == ""


@pytest.mark.parametrize(
    ("log", "why"),
    [
        ("gratis train\n", "gratis train"),
        ("gratis train\nTraceback\nKeyError: 3\n\n", "KeyError: 3"),
        ("gratis train\nerror: one\nerror: two\nbye\n", "two"),
        ("gratis train\nan error: no\n", "an error: no"),
    ],
)
def test_why_a_child_failed(log: str, why: str) -> None:
    assert failure(7, log) == f"failed with exit code 7: {why}"


@pytest.mark.parametrize("own", [{}, {"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "active"}])
def test_threads_wait_as_the_user_says(own: dict[str, str]) -> None:
    environment = dict(own)
    bound_spinning(environment)
    assert environment == (own or {"GOMP_SPINCOUNT": "1000"})


class Child:
    """A process that was started: it ends by this code once it was waited for so often."""

    started: list[Child]

    def __init__(self, command: list[str], **how: Any) -> None:
        self.command, self.how, self.pid = command, how, 999_999
        self.waited, self.asked = list[float | None](), list[str]()
        how["stdout"].write(f"{self.says}\n")
        how["stdout"].flush()
        type(self).started.append(self)

    says, code, ends = "error: no such thing", 0, 1

    def wait(self, seconds: float | None = None) -> int:
        self.waited.append(seconds)
        if len(self.waited) < self.ends:
            raise self.error
        return self.code

    error: BaseException = subprocess.TimeoutExpired("gratis", 1)

    def terminate(self) -> None:
        self.asked.append("terminate")

    def kill(self) -> None:
        self.asked.append("kill")


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> type[Child]:
    class One(Child):
        started: ClassVar[list[Child]] = []

    monkeypatch.setattr(subprocess, "Popen", One)
    return One


@pytest.mark.parametrize(
    ("code", "ends", "why"),
    [
        (0, 1, None),
        (2, 1, "failed with exit code 2: no such thing"),
        (0, 2, "stopped after 1.5 minutes: the minutes are over; the same command goes on"),
    ],
)
def test_a_command_has_some_minutes(
    child: type[Child], tmp_path: Path, code: int, ends: int, why: str | None
) -> None:
    child.code, child.ends = code, ends
    log = tmp_path / "x" / "log"
    for _ in range(2):
        assert timed(log, ["train", "a b"], 90.0) == why
    assert log.read_text() == "gratis train 'a b'\nerror: no such thing\n"
    one = child.started[0]
    assert one.command == command_of_child(["train", "a b"])
    assert (one.how["stderr"], one.how["start_new_session"]) == (subprocess.STDOUT, True)
    assert (one.waited, one.asked) == (([90.0], []) if ends == 1 else ([90.0, 75.0], ["terminate"]))


def test_a_command_ends_with_what_it_was_started_for(child: type[Child], tmp_path: Path) -> None:
    child.ends, child.error = 2, KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        timed(tmp_path / "log", ["train"], 60.0)
    assert child.started[0].asked == ["terminate"]


@pytest.mark.parametrize("has_group", [True, False])
def test_what_will_not_end_is_killed_with_all_that_it_started(
    child: type[Child], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_group: bool
) -> None:
    killed = list[tuple[int, int]]()

    def kill(group: int, number: int) -> None:
        killed.append((group, number))
        if not has_group:
            raise ProcessLookupError

    monkeypatch.setattr(os, "killpg", kill)
    child.ends = 3
    assert str(timed(tmp_path / "log", ["train"], 60.0)).startswith("stopped after 1.0 minutes")
    (one,) = child.started
    assert killed == [(999_999, signal.SIGKILL)]
    assert one.asked == (["terminate"] if has_group else ["terminate", "kill"])
    assert one.waited == [60.0, 75.0, None]


@pytest.mark.parametrize(
    ("handle", "number", "did"),
    [
        (interrupt_raises, signal.SIGINT, [(2, b"interrupted\n"), 130]),
        (terminate_interrupts, signal.SIGTERM, [(2, b"interrupted\n"), 130]),
        (lambda: terminate_raises(KeyboardInterrupt), signal.SIGTERM, [75]),
    ],
)
def test_while_a_module_is_imported_nothing_is_raised(
    handle: Callable[[], None],
    number: int,
    did: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The process ends there. Here it goes on behind, as nobody ends it."""
    done = list[object]()
    (tmp_path / "gratis_signalled.py").write_text(f"import os\nos.kill(os.getpid(), {number:d})\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "gratis_signalled", raising=False)
    with handlers_restored():
        handle()
        monkeypatch.setattr(os, "write", lambda file, data: done.append((file, data)))
        monkeypatch.setattr(os, "_exit", done.append)
        with pytest.raises(KeyboardInterrupt):
            import_module("gratis_signalled")
        monkeypatch.undo()
    assert done == did
