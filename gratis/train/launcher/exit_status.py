"""How the ranks of a run ended, and what that means: an exit code and one message.

Known by the ranks' exit codes, by what they left in their error files, and by their records."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from gratis.errors import INTERRUPTED, PREEMPTED, USER_ERROR
from gratis.history import records
from gratis.signals import STOPS, name_of
from gratis.train.settings import Launch

# What ranks get to end in when another of this machine's has failed: with gloo they fail too and at
# once, in NCCL's collectives they would wait for ever and see no signal.
ECHO_S = 5
HINTS: dict[int, str] = {
    signal.SIGKILL: "; often the kernel's, for want of memory",
    # the index is mapped, and nobody can catch that
    signal.SIGBUS: "; often an index that was cut, or whose disk failed: verify the dataset",
}


@dataclass(frozen=True, kw_only=True)
class ExitStatus:
    """How the ranks of one machine ended: the parent's exit code, and its last message if there is
    one."""

    code: int
    message: str = ""
    weight: int = 0  # 0: killed; 1: a user's mistake; 2: what may be a consequence of the others'
    t: float = math.inf  # Unix seconds of the failure

    @property
    def order(self) -> tuple[int, float]:
        """The least of several is the cause of the others."""
        return self.weight, self.t


def report_failure(message: str) -> None:
    """Leaves a rank's error where torchrun's agent finds it; the parent prints that of the first to
    fail."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path is None:  # started by hand
        print(message, file=sys.stderr)
        return
    fields = {"message": message, "timestamp": int(time.time()), "t": time.time()}
    Path(path).write_text(json.dumps(fields))


def last_end(launch: Launch) -> dict[str, Any]:
    """The attempt's own last record of its end; empty while there is none."""
    ends = (one for one in records(launch.folder)[::-1] if one["kind"] == "end")
    return next((one for one in ends if one.get("attempt", 0) >= launch.attempt), {})


def after_signal(launch: Launch, number: int) -> ExitStatus:
    """Of ranks that were signalled, by the attempt's own last record: it may have finished or
    failed before it looked."""
    end = last_end(launch)
    if end.get("outcome") == "finished":
        return ExitStatus(code=0)
    if end.get("outcome") in ("diverged", "failed"):
        return ExitStatus(code=1, message=f"error: {end['error']}")
    saved = [one["step"] for one in records(launch.folder) if one["kind"] == "checkpoint"][-1:]
    where = f"saved at step {saved[0]}" if saved else "before the first checkpoint"
    outcome = end.get("outcome") or ("interrupted" if STOPS[number] == INTERRUPTED else "preempted")
    return ExitStatus(
        code=INTERRUPTED if outcome == "interrupted" else PREEMPTED,
        message=f"{outcome}: {where}; give the same command to go on",
    )


def of_failures(launch: Launch, failures: dict[int, ProcessFailure]) -> ExitStatus:
    """Of this machine's ranks, by the first that failed; failures: by rank."""
    began = min(one.timestamp for one in failures.values())
    ends = [
        ExitStatus(
            code=max(one.exitcode, 1),
            message=_message(rank, one),
            weight=_weight(one, began),
            t=float(one.error_file_data.get("t", math.inf)),
        )
        for rank, one in failures.items()
    ]
    first = min(ends, key=lambda end: end.order)
    # of another machine, or of a rank alone
    stops = {PREEMPTED: signal.SIGTERM, INTERRUPTED: signal.SIGINT}
    return after_signal(launch, stops[first.code]) if first.code in stops else first


def without_others(launch: Launch, nnodes: str, error: str) -> ExitStatus:
    """When the machines did not come together again, or node 0 with its store is gone."""
    if last_end(launch).get("outcome") in ("preempted", "interrupted"):
        return after_signal(launch, signal.SIGTERM)
    message = f"error: too few machines for --nnodes {nnodes} were left ({error})"
    return ExitStatus(code=1, message=f"{message}; give the same commands to go on", weight=2)


def _weight(failure: ProcessFailure, began: int) -> int:
    """A killed rank left no message, and the others' are about its absence. SIGTERM is the agent's,
    SIGABRT NCCL's, and so is SIGKILL the agent's that comes ECHO_S after the first failure, at
    `began` Unix seconds."""
    number = -failure.exitcode
    agents = number == signal.SIGKILL and failure.timestamp - began >= ECHO_S
    if number > 0 and number not in (signal.SIGTERM, signal.SIGABRT) and not agents:
        return 0
    return 1 if failure.exitcode == USER_ERROR else 2


def _message(rank: int, failure: ProcessFailure) -> str:
    if failure.error_file_data.get("message", "<NONE>") != "<NONE>":
        return str(failure.message)
    code = failure.exitcode
    if code >= 0:
        return f"error: rank {rank} ended with exit code {code} and no error message"
    return f"error: rank {rank} was killed by {name_of(-code)}{HINTS.get(-code, '')}"
