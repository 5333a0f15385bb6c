"""What the parent process tells its ranks, where a run lives, and how ranks are started and their ends understood."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import logging
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO

from preprocess.errors import INTERRUPTED, PREEMPTED, UserError
from preprocess.events import EventTail
from train.recipes import Recipe

if TYPE_CHECKING:  # torch takes two seconds, which --help need not
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

# What ranks get to save in after a signal, and then they are killed. They look for one after each interval of training,
# not inside an evaluation: one that takes longer than this costs what was trained since the last checkpoint.
SHUTDOWN_S = 60
Choice = Literal["auto", "on", "off"]
Wire = Literal["float32", "bfloat16", "float16"]
BadSamples = Literal["raise", "quarantine"]
OVER = ("finished", "diverged")  # outcomes after which a run's name is not taken up again by itself


@dataclass(frozen=True, kw_only=True)
class Launch:
    """One attempt at a run, the same for every rank."""

    runs: str
    run: str
    shards: str
    recipe_name: str
    recipe: Recipe
    seed: int
    attempt: int
    tower_ranks: int
    share_device: bool
    wire: Wire = "float32"
    compile: Choice = "auto"
    bad_samples: BadSamples = "raise"
    save_every: float = 60.0
    save_probabilities: bool = False

    @property
    def folder(self) -> Path:
        return Path(self.runs, self.run)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Launch:
        raw: dict[str, Any] = json.loads(text)
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in raw["recipe"].items()
        }
        return cls(**(raw | {"recipe": Recipe(**fields)}))


def choose_world(gpus: int | None, *, present: int, share_device: bool) -> int:
    """How many processes to start; `present` is the number of GPUs. None: the largest even number present, else 1.

    UserError where the mesh cannot be built, with the way out.
    """
    if gpus is None:
        return present - present % 2 if present >= 2 else 1
    if gpus < 1:
        raise UserError(f"--gpus {gpus} must be at least 1")
    if gpus > 1 and gpus % 2:
        raise UserError(f"--gpus {gpus}: towers come in pairs; take {gpus - 1} or {gpus + 1}")
    if 0 < present < gpus and not share_device:
        raise UserError(
            f"--gpus {gpus}, but this machine has {present}; take --gpus {max(1, present - present % 2)}, "
            "or --share-device to put several processes on one"
        )
    return gpus


def choose_run(runs: Path, stem: str) -> tuple[str, bool]:
    """(<stem>-<n>, does it resume): the newest if it is unfinished and nobody runs it, else the number after it."""
    numbers = sorted(int(tail) for path in runs.glob(f"{stem}-*/") if (tail := path.name[len(stem) + 1 :]).isdigit())
    if not numbers:
        return f"{stem}-1", False
    newest = runs / f"{stem}-{numbers[-1]}"
    if outcome(newest) in OVER or in_use(newest):
        return f"{stem}-{numbers[-1] + 1}", False
    return newest.name, attempts(newest) > 0


def changes(folder: Path, recipe: Recipe, seed: int) -> dict[str, str]:
    """By field, how settings differ from those of the run's last attempt: {"rate": "rate was 0.01, is 0.05"}."""
    config = next((record["config"] for record in records(folder)[::-1] if record["kind"] == "start"), None)
    if config is None:
        return {}
    there = config["recipe"] | {"seed": config["seed"]}
    asked = json.loads(json.dumps(dataclasses.asdict(recipe))) | {"seed": seed}
    return {
        name: f"{name.replace('_', '-')} was {there.get(name)}, is {value}"
        for name, value in asked.items()
        if there.get(name) != value
    }


def records(folder: Path, rank: int = 0) -> list[dict[str, Any]]:
    """A rank's whole history."""
    tail = EventTail(folder / f"rank-{rank}.jsonl")
    found: list[dict[str, Any]] = []
    while block := tail.read():
        found += block
    return found


def attempts(folder: Path) -> int:
    return max((record.get("attempt", 0) for record in records(folder)), default=0)


def outcome(folder: Path) -> str | None:
    """How the last attempt ended; None if it did not say, or there was none."""
    last = records(folder)[-1:]
    return last[0].get("outcome") if last and last[0]["kind"] == "end" else None


def lock(folder: Path) -> TextIO:
    """Marks the run as in use for as long as the returned file is open and its process lives; UserError if it is."""
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / "lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise UserError(f"run {folder} is in use by a living process; choose another --run, or end it") from None
    return file


def in_use(folder: Path) -> bool:
    if not (folder / "lock").exists():
        return False
    try:
        lock(folder).close()
    except UserError:
        return True
    return False


def report_failure(message: str) -> None:
    """Leaves a rank's last words where torchrun's agent finds them; the parent prints those of the first to fail."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if path is None:  # started by hand
        print(message, file=sys.stderr)
        return
    words = {"message": message, "timestamp": int(time.time()), "mono": time.monotonic()}
    Path(path).write_text(json.dumps(words))


def start_ranks(launch: Launch, world: int) -> int:
    """Runs `world` processes of train.rank under torchrun's agent; their exit code, 0 if all ended well.

    Prints the first failing rank's words. Signals that reach this process are passed on, and the ranks save, unless
    they come to their own end first.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in list(logging.root.manager.loggerDict):  # each has a level of its own
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # we word failures ourselves
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # until parallel.connect knows better; keeps torchrun from warning
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=world, rdzv_backend="c10d", rdzv_endpoint="localhost:0",
        run_id=f"{launch.run}-{launch.attempt}", max_restarts=0, monitor_interval=0.1, start_method="spawn",
        local_addr="localhost", logs_specs=DefaultLogsSpecs(), shutdown_timeout=SHUTDOWN_S,
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)("-u", "-m", "train.rank", launch.to_json())
    except SignalException as stopped:
        return after_signal(launch, stopped.sigval)
    except ChildFailedError as failed:
        first = min(failed.failures.values(), key=_when)
        print(_last_words(first), file=sys.stderr)
        return first.exitcode if first.exitcode > 0 else 1
    return 0


def after_signal(launch: Launch, number: int) -> int:
    """The attempt's exit code by its own last record, in case it finished or failed before it looked; says which."""
    history = records(launch.folder)
    end: dict[str, Any] = next(
        (one for one in history if one["kind"] == "end" and one.get("attempt") == launch.attempt), {}
    )
    if end.get("outcome") == "finished":
        return 0
    if end.get("outcome") in ("diverged", "failed"):
        print(f"error: {end['error']}", file=sys.stderr)
        return 1
    saved = [one["step"] for one in history if one["kind"] == "checkpoint"][-1:]
    where = f"saved at step {saved[0]}" if saved else "before the first checkpoint"
    word = "interrupted" if number == signal.SIGINT else "preempted"
    print(f"{word}: {where}; give the same command to go on", file=sys.stderr)
    return INTERRUPTED if number == signal.SIGINT else PREEMPTED


def _when(failure: ProcessFailure) -> float:
    """Orders failures in time. Who was killed left no words, and the others' are about its absence: it comes first."""
    if failure.exitcode < 0 and -failure.exitcode != signal.SIGTERM:  # SIGTERM: the agent's, after a first failure
        return 0.0
    return float(failure.error_file_data.get("mono", float("inf")))


def _last_words(failure: ProcessFailure) -> str:
    if failure.error_file_data.get("message", "<NONE>") != "<NONE>":
        return str(failure.message)
    rank, code = failure.local_rank, failure.exitcode
    if code >= 0:
        return f"error: rank {rank} ended with exit code {code} and no word"
    hint = "; often the kernel's, for want of memory" if -code == signal.SIGKILL else ""
    return f"error: rank {rank} was killed by {signal.Signals(-code).name}{hint}"
