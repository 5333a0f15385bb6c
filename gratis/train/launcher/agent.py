"""Ranks started by torchrun's agent on this machine, and their ends understood."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import TYPE_CHECKING, Any

from gratis.errors import INTERRUPTED, PREEMPTED, USER_ERROR, GratisError
from gratis.history import records
from gratis.locks import hold
from gratis.signals import STOPS, heard
from gratis.train.launcher.launch import Launch
from gratis.train.launcher.rendezvous import LAST_CALL_S, End, Meeting

if TYPE_CHECKING:  # torch takes two seconds, which --help need not
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
    from torch.distributed.launcher.api import LaunchConfig

# What ranks get to save in after a signal, and then they are killed. They look for one after each
# interval of training (a second, or a step if that takes longer) and before each batch of an
# evaluation.
SHUTDOWN_S = 60
# And when another of this machine's has failed: with gloo they fail too and at once, in NCCL's
# collectives they would wait for ever, and hear of nothing meanwhile.
ECHO_S = 5
WORDS = "gratis-ranks-"  # folders in the temporary one


def report_failure(message: str) -> None:
    """Leaves a rank's last words where torchrun's agent finds them; the parent prints those of the
    first to fail."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path is None:  # started by hand
        print(message, file=sys.stderr)
        return
    Path(path).write_text(
        json.dumps({"message": message, "timestamp": int(time.time()), "t": time.time()})
    )


@contextmanager
def folder_for_words() -> Iterator[str]:
    """A folder for the ranks' error files while the block lasts; torchrun would leave its own.
    Those of launchers that were killed go first. Not in the run's folder: its disk may be full when
    there is most to say."""
    for left in Path(gettempdir()).glob(f"{WORDS}*"):
        with suppress(OSError, GratisError):
            status = left.lstat()  # one that is a moment old may not be locked yet
            if (
                status.st_uid == os.getuid()
                and time.time() - status.st_mtime > 60
                and (held := hold(left / "lock"))
            ):
                with held:
                    shutil.rmtree(left)
    with (
        TemporaryDirectory(prefix=WORDS, ignore_cleanup_errors=True) as words,
        ExitStack() as stack,
    ):
        with suppress(GratisError):  # no locks there: it is never taken for a dead one's
            if held := hold(Path(words, "lock")):
                stack.enter_context(held)
        yield words


def start_ranks(launch: Launch, local: int, meeting: Meeting) -> End:
    """Runs `local` processes of gratis.train.rank on this machine under torchrun's agent; how they
    ended.

    The first signal that reaches this process is passed on, and the ranks save, unless they come to
    their own end first; from then on it hears no other."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher import api
    from torch.distributed.launcher.api import elastic_launch

    api.LocalElasticAgent = _agent(launch)  # type: ignore[attr-defined]  # torchrun has no other door for it
    for name in list(logging.root.manager.loggerDict):  # each has a level of its own
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # we word failures ourselves
    # until parallel.connect knows better; keeps torchrun from warning
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # torchrun would lend the ranks one store for all their beginnings, with the addresses of the
    # dead in it and open to every network of the machine
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    handlers = {number: signal.getsignal(number) for number in STOPS}
    try:
        with folder_for_words() as words:
            config = _config(launch, local, meeting, words)
            elastic_launch(config, sys.executable)(
                "-u", "-m", "gratis.train.rank", launch.to_json(), str(os.getpid())
            )
    except SignalException as stopped:
        # this process ends now, and its exit code is to tell how
        handlers = dict.fromkeys(handlers, signal.SIG_IGN)
        return after_signal(launch, stopped.sigval)
    except ChildFailedError as failed:
        return _first(launch, failed.failures)
    except RendezvousError as error:
        return _without_others(launch, meeting, error)
    finally:
        for number, handler in handlers.items():  # torchrun leaves its own
            signal.signal(number, handler)
    return End(code=0)


def _config(launch: Launch, local: int, meeting: Meeting, words: str) -> LaunchConfig:
    """words: folder for the ranks' error files."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.launcher.api import LaunchConfig

    nodes = meeting.nodes
    config = LaunchConfig(
        min_nodes=nodes.least,
        max_nodes=nodes.most,
        nproc_per_node=local,
        rdzv_backend="c10d",
        rdzv_endpoint=meeting.endpoint,
        run_id=f"{launch.run}-{launch.attempt}",
        max_restarts=nodes.max_restarts,
        rdzv_configs={
            "is_host": nodes.rank == 0,
            "join_timeout": round(nodes.join_timeout) + 2 * LAST_CALL_S,
            "last_call_timeout": LAST_CALL_S,
        },
        monitor_interval=0.1,
        start_method="spawn",
        local_addr=_seat(meeting),
        logs_specs=DefaultLogsSpecs(words),
    )
    # torch 2.8 has no such field: it acts on a hangup whatever it was started to ignore
    if hasattr(config, "signals_to_handle"):
        config.signals_to_handle = ",".join(signal.Signals(number).name for number in heard())
    return config


def _agent(launch: Launch) -> type[LocalElasticAgent]:
    """torchrun's agent, which begins again after any failure, taught what is no loss.

    A user's mistake would only be made again, and so would divergence: the same batches come after
    the same checkpoint. Ranks that were asked to stop have saved, on every machine, and stay
    stopped; unless they were asked because another machine joins, which then waits at the door and
    is no restart of those that are counted."""
    from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.rendezvous import RendezvousError

    class Agent(LocalElasticAgent):
        def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
            started: dict[int, Any] = super()._start_workers(worker_group)
            ranks = self._pcontext
            assert ranks is not None
            end = ranks.close

            def close(death_sig: signal.Signals | None = None, timeout: int = 0) -> None:
                # torch's times differ by version; who names no signal has seen a rank fail. Once
                # this process was signalled, another would have torch leave the ranks to
                # themselves, and say what they had saved by then
                if isinstance(sys.exc_info()[1], SignalException):
                    for number in STOPS:
                        signal.signal(number, signal.SIG_IGN)
                end(death_sig, SHUTDOWN_S if death_sig else ECHO_S)

            ranks.close = close  # type: ignore[method-assign]
            return started

        def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
            result: RunResult = super()._monitor_workers(worker_group)
            codes = {failure.exitcode for failure in result.failures.values()}
            if codes & set(STOPS.values()):
                joins = False
                with suppress(RendezvousError):  # node 0 may have ended, and its store with it
                    joins = worker_group.spec.rdzv_handler.num_nodes_waiting() > 0
                self._remaining_restarts = self._remaining_restarts + 1 if joins else 0
            elif USER_ERROR in codes or (codes and _end(launch).get("outcome") == "diverged"):
                self._remaining_restarts = 0
            return result

    return Agent


def _seat(meeting: Meeting) -> str:
    """What torchrun is to take for this machine's address: it orders machines by it, and connects
    to the first alone.

    So node 0 has rank 0, whatever the machines are called, and the others follow in their order.
    """
    host = meeting.nodes.address[0]
    return host if meeting.nodes.rank == 0 else f"{host}/{meeting.nodes.rank:06}"


def _end(launch: Launch) -> dict[str, Any]:
    """The attempt's own last record of its end; empty while there is none."""
    ends = (one for one in records(launch.folder)[::-1] if one["kind"] == "end")
    return next((one for one in ends if one.get("attempt", 0) >= launch.attempt), {})


def after_signal(launch: Launch, number: int) -> End:
    """The attempt's end by its own last record, in case it finished or failed before it looked."""
    end = _end(launch)
    if end.get("outcome") == "finished":
        return End(code=0)
    if end.get("outcome") in ("diverged", "failed"):
        return End(code=1, line=f"error: {end['error']}")
    saved = [one["step"] for one in records(launch.folder) if one["kind"] == "checkpoint"][-1:]
    where = f"saved at step {saved[0]}" if saved else "before the first checkpoint"
    word = end.get("outcome") or ("interrupted" if STOPS[number] == INTERRUPTED else "preempted")
    return End(
        code=INTERRUPTED if word == "interrupted" else PREEMPTED,
        line=f"{word}: {where}; give the same command to go on",
    )


def _first(launch: Launch, failures: dict[int, ProcessFailure]) -> End:
    """How this machine's ranks ended, by the first that failed."""
    began = min(one.timestamp for one in failures.values())
    ends = [
        End(
            code=max(one.exitcode, 1),
            line=_last_words(rank, one),
            weight=_weight(one, began),
            t=_when(one),
        )
        for rank, one in failures.items()
    ]
    first = min(ends, key=lambda end: end.order)
    # of another machine, or of a rank alone
    stops = {PREEMPTED: signal.SIGTERM, INTERRUPTED: signal.SIGINT}
    return after_signal(launch, stops[first.code]) if first.code in stops else first


def _weight(failure: ProcessFailure, began: int) -> int:
    """Who was killed left no words, and the others' are about its absence. SIGTERM is the agent's,
    SIGABRT NCCL's, and so is SIGKILL the agent's that comes ECHO_S after the first failure, at
    `began` Unix seconds."""
    agents = failure.exitcode == -signal.SIGKILL and failure.timestamp - began >= ECHO_S
    if (
        failure.exitcode < 0
        and -failure.exitcode not in (signal.SIGTERM, signal.SIGABRT)
        and not agents
    ):
        return 0
    return 1 if failure.exitcode == USER_ERROR else 2


def _when(failure: ProcessFailure) -> float:
    return float(failure.error_file_data.get("t", float("inf")))


def _without_others(launch: Launch, meeting: Meeting, error: Exception) -> End:
    """When the machines did not come together again, or node 0 with its store is gone."""
    last = next((one for one in records(launch.folder)[::-1] if one["kind"] == "end"), {})
    if last.get("attempt", 0) >= launch.attempt and last["outcome"] in ("preempted", "interrupted"):
        return after_signal(
            launch, signal.SIGTERM if last["outcome"] == "preempted" else signal.SIGINT
        )
    line = (
        f"error: too few machines for --nnodes {meeting.nodes.nnodes} were left "
        f"({type(error).__name__})"
    )
    return End(code=1, line=f"{line}; give the same commands to go on", weight=2)


def _last_words(rank: int, failure: ProcessFailure) -> str:
    if failure.error_file_data.get("message", "<NONE>") != "<NONE>":
        return str(failure.message)
    code = failure.exitcode
    if code >= 0:
        return f"error: rank {rank} ended with exit code {code} and no word"
    hint = "; often the kernel's, for want of memory" if -code == signal.SIGKILL else ""
    return f"error: rank {rank} was killed by {signal.Signals(-code).name}{hint}"
