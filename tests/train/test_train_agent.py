"""The agent that starts ranks on a machine: which ends begin again, how long ranks have to end, and
what their ends are told as. Its ranks are shells, its rendezvous is of one machine."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from clock import own_clock
from torch.distributed import HashStore
from torch.distributed.elastic.agent.server.api import WorkerSpec
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.elastic.rendezvous import (
    RendezvousConnectionError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousStoreInfo,
)

from gratis.events import EventWriter
from gratis.signals import STOPS, handlers_restored
from gratis.train.launcher import agent, exit_status
from gratis.train.launcher.agent import RankAgent, run_agent
from gratis.train.launcher.exit_status import (
    ECHO_S,
    ExitStatus,
    after_signal,
    of_failures,
    report_failure,
    without_others,
)
from gratis.train.recipes import RECIPES
from gratis.train.settings import Launch


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    """A second attempt, in a folder that is there."""
    (tmp_path / "r").mkdir()
    return Launch(
        runs=str(tmp_path),
        run="r",
        shards="s",
        recipe_name="paper",
        recipe=RECIPES["paper"],
        attempt=2,
    )


class OneMachine(RendezvousHandler):
    """waiting: how many other machines want to join."""

    def __init__(self, waiting: Callable[[], int] = lambda: 0) -> None:
        self._waiting = waiting

    def get_backend(self) -> str:
        return "one"

    def next_rendezvous(self) -> RendezvousInfo:
        return RendezvousInfo(HashStore(), 0, 1, RendezvousStoreInfo("127.0.0.1", 1))

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        pass

    def num_nodes_waiting(self) -> int:
        return self._waiting()

    def get_run_id(self) -> str:
        return "r"

    def shutdown(self) -> bool:
        return True


def run(
    launch: Launch, script: str, rendezvous: RendezvousHandler, *, ranks: int = 1, restarts: int = 0
) -> ExitStatus:
    """How ranks end that are all this shell script."""
    file = launch.folder / "script"
    file.write_text(script)
    spec = WorkerSpec(
        role="rank",
        local_world_size=ranks,
        entrypoint="/bin/sh",
        args=(str(file),),
        rdzv_handler=rendezvous,
        max_restarts=restarts,
        monitor_interval=0.1,
    )
    errors = launch.folder / "errors"
    errors.mkdir()
    return run_agent(RankAgent(launch, spec, DefaultLogsSpecs(str(errors))), launch, "1")


@pytest.mark.parametrize(
    ("code", "outcome", "others", "ends"),
    [
        ("kill -9 $$", None, "none", (3, 1)),  # a loss: two restarts
        ("exit 1", "failed", "none", (3, 1)),
        ("exit 75", "preempted", "none", (1, 75)),
        ("exit 75", "preempted", "gone", (1, 75)),  # node 0's store is gone, so nobody waits
        ("exit 130", "interrupted", "none", (1, 130)),
        # the first is for another machine: it is not counted
        ("exit 75", "preempted", "join", (4, 1)),
        ("exit 2", None, "none", (1, 2)),
        ("exit 1", "diverged", "none", (1, 1)),
    ],
)
@pytest.mark.starts
def test_which_ends_begin_again(
    launch: Launch, code: str, outcome: str | None, others: str, ends: tuple[int, int]
) -> None:
    """With two restarts left. ends: how often it was begun, and the exit code."""
    begun, status = ends
    if outcome:
        writer = EventWriter(launch.folder / "rank-0.jsonl", attempt=2, rank=0)
        writer.write("end", {"outcome": outcome, "error": "why"})
    log = launch.folder / "begun"

    def waiting() -> int:
        if others == "gone":
            raise RendezvousConnectionError
        return int(others == "join" and len(pids := log.read_text().split()) == 1 and ended(pids))

    # the next ones, after another machine has joined, are lost
    script = f"echo $$ >> {log}; [ $(wc -l < {log}) = 1 ] && {code}; "
    script += "kill -9 $$" if others == "join" else code
    end = run(launch, script, OneMachine(waiting), restarts=2)
    assert len(log.read_text().split()) == begun
    assert end.code == status


def ended(pids: list[str]) -> bool:
    """Whether the last of these processes has ended."""
    try:
        return psutil.Process(int(pids[-1])).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


DEAF = "trap '' TERM; touch {begun}; while :; do sleep 0.1; done"


@pytest.mark.starts
def test_who_outlives_a_failed_rank_is_ended_soon(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a collective of NCCL's, which hears of nothing."""
    monkeypatch.setattr(exit_status, "ECHO_S", 1)
    begun = launch.folder / "begun"
    loop = DEAF.format(begun=begun)
    fail = f"while [ ! -e {begun} ]; do sleep 0.1; done; exit 1"
    with own_clock() as clock:
        end = run(launch, f'if [ "$RANK" = 0 ]; then {fail}; fi; {loop}', OneMachine(), ranks=2)
    assert clock.seconds < 15  # torch itself would give the other 30
    assert (end.code, end.message) == (
        1,
        "error: rank 0 ended with exit code 1 and no error message",
    )


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.starts
def test_signalled_ranks_have_their_time_to_save(
    launch: Launch, monkeypatch: pytest.MonkeyPatch, ends: bool
) -> None:
    """A second signal cuts nothing short; who takes longer than the time is killed."""
    monkeypatch.setattr(agent, "SHUTDOWN_S", 60 if ends else 1)
    begun, saved = launch.folder / "begun", launch.folder / "saved"
    saving = f"trap 'sleep 1; touch {saved}; exit 75' TERM; touch {begun}; "
    script = saving + "while :; do sleep 0.1; done" if ends else DEAF.format(begun=begun)

    def signal_twice() -> None:
        while not begun.exists():
            time.sleep(0.05)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)

    thread = threading.Thread(target=signal_twice)
    thread.start()
    # afterwards further ones are ignored: the process is to end
    with own_clock() as clock, handlers_restored():
        end = run(launch, script, OneMachine())
        thread.join()
    assert clock.seconds < 15
    assert saved.exists() is ends
    assert (end.code, end.message) == (
        75,
        "preempted: before the first checkpoint; give the same command to go on",
    )


@pytest.mark.starts
def test_a_signal_while_ranks_end_for_a_restart_is_the_first(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not lost, though others are being ended at that moment."""
    monkeypatch.setattr(exit_status, "ECHO_S", 3)
    begun = launch.folder / "begun"
    signals = f"while [ ! -e {begun} ]; do sleep 0.1; done; (sleep 1; kill $PPID) & exit 1"
    script = f'if [ "$RANK" = 0 ]; then {signals}; fi; {DEAF.format(begun=begun)}'
    monkeypatch.setattr(agent, "SHUTDOWN_S", 1)
    script = script.replace("$PPID", str(os.getpid()))
    with handlers_restored():
        end = run(launch, script, OneMachine(), ranks=2, restarts=2)
    assert end.code == STOPS[signal.SIGTERM]


@pytest.mark.parametrize(
    ("outcome", "code", "words"),
    [
        ("finished", 0, ""),
        ("diverged", 1, "error: why"),
        ("failed", 1, "error: why"),
        ("preempted", 75, "preempted: saved at step 8; give the same command to go on"),
        (None, 75, "preempted: saved at step 8; give the same command to go on"),
        ("interrupted", 130, "interrupted: saved at step 8; give the same command to go on"),
    ],
)
def test_a_signal_answers_by_what_the_ranks_did(
    launch: Launch, outcome: str | None, code: int, words: str
) -> None:
    """One may come when there is no more to stop; an earlier attempt's end says nothing of this
    one's."""
    before, now = (
        EventWriter(launch.folder / "rank-0.jsonl", attempt=attempt, rank=0) for attempt in ((1, 2))
    )
    before.write("checkpoint", {"path": "p", "bytes": 1, "wall_s": 0.1}, step=8)
    before.write("end", {"outcome": "diverged", "error": "earlier"})
    if outcome:
        now.write("end", {"outcome": outcome, "error": "why" if code == 1 else None})
    end = after_signal(launch, signal.SIGTERM)
    assert (end.code, end.message) == (code, words)


def test_the_first_failure_is_the_one_that_is_told(launch: Launch, tmp_path: Path) -> None:
    """A rank that hung in a collective is killed by the agent in the end: not that, but why it hung
    is the error."""

    def failed(rank: int, code: int, *, after: int, words: str = "") -> ProcessFailure:
        file = tmp_path / f"{rank}.json"
        left = json.dumps({"message": words, "timestamp": 1_000 + after, "t": 1_000.5 + after})
        file.write_text(left) if words else file.unlink(missing_ok=True)
        failure = ProcessFailure(local_rank=rank, pid=1, exitcode=code, error_file=str(file))
        failure.timestamp = 1_000 + after
        return failure

    for code, words in ((2, "error: --batch 9 does not fit"), (1, "Traceback")):
        hung = {0: failed(0, -9, after=ECHO_S), 1: failed(1, code, after=0, words=words)}
        end = of_failures(launch, hung)
        assert (end.code, end.message) == (code, words)
    killed = {0: failed(0, 1, after=0, words="connection reset"), 1: failed(1, -9, after=0)}
    assert "rank 1 was killed by SIGKILL" in of_failures(launch, killed).message
    mapped = {0: failed(0, 1, after=0, words="connection reset"), 1: failed(1, -7, after=0)}
    assert of_failures(launch, mapped).message.endswith("verify the dataset")
    user = {0: failed(0, 1, after=0, words="Traceback"), 1: failed(1, 2, after=1, words="error: x")}
    assert of_failures(launch, user) == ExitStatus(code=2, message="error: x", weight=1, t=1_001.5)
    first = {0: failed(0, 1, after=1, words="later"), 1: failed(1, 1, after=0, words="sooner")}
    assert of_failures(launch, first) == ExitStatus(code=1, message="sooner", weight=2, t=1_000.5)
    # what the agent sends is no cause
    agents = {0: failed(0, -15, after=0), 1: failed(1, -6, after=0), 2: failed(2, 0, after=0)}
    assert of_failures(launch, agents).weight == 2
    silent = of_failures(launch, {2: failed(2, 0, after=0)})
    told = "error: rank 2 ended with exit code 0 and no error message"
    assert (silent.code, silent.message) == (1, told)
    asked = {0: failed(0, 130, after=0), 1: failed(1, -15, after=1)}
    assert of_failures(launch, asked).code == 130


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_before_anything_was_saved_says_so(
    launch: Launch, number: signal.Signals, code: int
) -> None:
    word = {75: "preempted", 130: "interrupted"}[code]
    message = f"{word}: before the first checkpoint; give the same command to go on"
    assert after_signal(launch, number) == ExitStatus(code=code, message=message)


def test_machines_that_do_not_come_together_again_are_told(launch: Launch) -> None:
    """Unless all were asked to stop."""
    message = "error: too few machines for --nnodes 2:4 were left (why); give the same commands"
    ended = without_others(launch, "2:4", "why")
    assert ended == ExitStatus(code=1, message=f"{message} to go on", weight=2)
    writer = EventWriter(launch.folder / "rank-0.jsonl", attempt=2, rank=0)
    for outcome, code in (("failed", 1), ("preempted", 75), ("interrupted", 130)):
        writer.write("end", {"outcome": outcome, "error": "why"})
        assert without_others(launch, "2:4", "why").code == code


def test_a_rank_s_error_is_left_where_its_agent_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / "error.json"))
    monkeypatch.setattr(exit_status, "time", SimpleNamespace(time=lambda: 1234.75))
    report_failure("error: x")
    assert capsys.readouterr() == ("", "")
    left = json.loads((tmp_path / "error.json").read_text())
    assert left == {"message": "error: x", "timestamp": 1234, "t": 1234.75}
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE")
    report_failure("error: y")  # started by hand
    assert capsys.readouterr() == ("", "error: y\n")
