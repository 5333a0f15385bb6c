"""The ranks of this machine, started and watched by torch's elastic agent (torchrun's)."""

from __future__ import annotations

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
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.rendezvous import (
    RendezvousError,
    RendezvousHandler,
    RendezvousParameters,
)
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler
from torch.distributed.launcher.api import LaunchConfig

from gratis.errors import USER_ERROR, GratisError
from gratis.locks import hold
from gratis.processes import bound_spinning
from gratis.signals import STOPS, handlers_restored, ignore_stops, name_of, stop_signals
from gratis.train.launcher import exit_status
from gratis.train.launcher.exit_status import ExitStatus, last_end
from gratis.train.launcher.rendezvous import LAST_CALL_S, Rendezvous
from gratis.train.settings import Launch

# What ranks get to save in after a signal, and then they are killed. They look for one after each
# interval of training (a second, or a step if that takes longer) and before each batch of an
# evaluation.
SHUTDOWN_S = 60
FOLDER = "gratis-ranks-"  # folders in the temporary one begin so


class RankAgent(LocalElasticAgent):
    """torch's agent, which begins again after any failure, with our rules of what is no loss.

    A user's mistake would only be made again, and so would divergence: the same batches come after
    the same checkpoint. Ranks that were asked to stop have saved, on every machine, and stay
    stopped; unless they were asked because another machine joins, which then waits for the
    rendezvous and is no restart of those that are counted.

    `_start_workers` and `_monitor_workers` are what torch documents for agents of one's own. Still
    private: `_remaining_restarts`, which has no setter; `_pcontext`, whose `close` alone knows how
    long ranks are given to end (torch's times differ by version, and after a failure it names
    none); and the environment variables that `start_ranks` sets. Read in torch 2.13, and written to
    work from 2.8 on, where `close`, the signals that are handled and NUMA options differ; a torch
    newer than 2.14 needs a look."""

    def __init__(self, launch: Launch, spec: WorkerSpec, logs: DefaultLogsSpecs) -> None:
        super().__init__(spec, logs)
        self._launch = launch

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        started: dict[int, Any] = super()._start_workers(worker_group)
        ranks = self._pcontext
        assert ranks is not None
        end = ranks.close

        def close(death_sig: signal.Signals | None = None, timeout: int = 0) -> None:
            # who names no signal has seen a rank fail. Once this process was signalled, another
            # signal would have torch leave the ranks to themselves
            if isinstance(sys.exc_info()[1], SignalException):
                ignore_stops()
            end(death_sig, SHUTDOWN_S if death_sig else exit_status.ECHO_S)

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
        elif USER_ERROR in codes or (codes and last_end(self._launch).get("outcome") == "diverged"):
            self._remaining_restarts = 0
        return result


def start_ranks(launch: Launch, local: int, rendezvous: Rendezvous) -> ExitStatus:
    """Runs `local` processes of gratis.train.rank on this machine under torch's agent; how they
    ended.

    The first signal that reaches this process is passed on, and the ranks save, unless they come to
    their own end first; from then on it acts on no other."""
    for name in list(logging.root.manager.loggerDict):  # each has a level of its own
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # exit_status has the messages
    # until mesh.connect sets it; keeps torch from warning
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    bound_spinning(os.environ)
    # torchrun would lend the ranks one store for all their beginnings, with the addresses of
    # ended ones in it and open to every network of the machine
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    # torch 2.8 does not know it: it acts on a hangup whatever it was started to ignore
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = ",".join(map(name_of, stop_signals()))
    text = launch.to_json().replace("$", "$$")  # torch takes them for templates
    with folder_of_error_files() as folder:
        logs = DefaultLogsSpecs(folder)
        spec = WorkerSpec(
            role="rank",
            local_world_size=local,
            entrypoint=sys.executable,
            args=("-u", "-m", "gratis.train.rank", text, str(os.getpid())),
            rdzv_handler=_handler(launch, rendezvous),
            max_restarts=rendezvous.nodes.max_restarts,
            monitor_interval=0.1,
            local_addr=_address(rendezvous),
            **_numa_options(local, logs),
        )
        return run_agent(RankAgent(launch, spec, logs), launch, rendezvous.nodes.nnodes)


def run_agent(agent: RankAgent, launch: Launch, nnodes: str) -> ExitStatus:
    """Until its ranks have ended; nnodes: for the message where too few machines are left."""
    handler = agent.get_worker_group().spec.rdzv_handler
    with handlers_restored():  # torch leaves its own
        try:
            result = agent.run()
        except SignalException as stopped:
            number = stopped.sigval
        except RendezvousError as error:
            handler.shutdown()
            return exit_status.without_others(launch, nnodes, type(error).__name__)
        else:
            handler.shutdown()
            if result is None:  # another machine closed the rendezvous
                return exit_status.without_others(launch, nnodes, "RendezvousGracefulExitError")
            if result.is_failed():
                return exit_status.of_failures(launch, result.failures)
            return ExitStatus(code=0)
    # this process ends now, and its exit code is by the records. Shutting the handler down would
    # end the rendezvous for the other machines too
    ignore_stops()
    return exit_status.after_signal(launch, number)


def _handler(launch: Launch, rendezvous: Rendezvous) -> RendezvousHandler:
    """torch's rendezvous of the machines' agents, over node 0's store."""
    nodes = rendezvous.nodes
    parameters = RendezvousParameters(
        backend="c10d",
        endpoint=rendezvous.endpoint,
        run_id=f"{launch.run}-{launch.attempt}",
        min_nodes=nodes.least,
        max_nodes=nodes.most,
        local_addr=_address(rendezvous),
        is_host=nodes.rank == 0,
        join_timeout=round(nodes.join_timeout) + 2 * LAST_CALL_S,
        last_call_timeout=LAST_CALL_S,
    )
    return get_rendezvous_handler(parameters)


def _address(rendezvous: Rendezvous) -> str:
    """What torch is to take for this machine's address: it orders machines by it, and connects to
    the first alone.

    So node 0 has rank 0, whatever the machines are called, and the others follow in their order.
    """
    host = rendezvous.nodes.address[0]
    return host if rendezvous.nodes.rank == 0 else f"{host}/{rendezvous.nodes.rank:06}"


def _numa_options(local: int, logs: DefaultLogsSpecs) -> dict[str, Any]:
    """torchrun's default binding of ranks to the cores near their GPUs, where this torch has it."""
    # without logs it would make a folder for them
    config = LaunchConfig(min_nodes=1, max_nodes=1, nproc_per_node=local, logs_specs=logs)
    options = getattr(config, "numa_options", None)
    return {"numa_options": options} if options else {}


@contextmanager
def folder_of_error_files() -> Iterator[str]:
    """A folder for the ranks' error files while the block lasts; torchrun would leave its own.
    Those of launchers that were killed go first. Not in the run's folder: its disk may be full when
    there is most to say."""
    for left in Path(gettempdir()).glob(f"{FOLDER}*"):
        with suppress(OSError, GratisError):
            status = left.lstat()  # one that is a moment old may not be locked yet
            if (
                status.st_uid == os.getuid()
                and time.time() - status.st_mtime > 60
                and (held := hold(left / "lock"))
            ):
                with held:
                    shutil.rmtree(left)
    temporary = TemporaryDirectory(prefix=FOLDER, ignore_cleanup_errors=True)
    with temporary as folder, ExitStack() as stack:
        with suppress(GratisError):  # no locks there: nobody removes it
            if held := hold(Path(folder, "lock")):
                stack.enter_context(held)
        yield folder
