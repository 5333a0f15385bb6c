"""Contract 3: the records that training writes, as types. `gratis.events`
writes and reads them.

Imports the standard library and `gratis.events` alone, so that the server can read them without
torch."""

from __future__ import annotations

from typing import Literal, TypedDict

from gratis.events import LoaderCounters

Outcome = Literal["finished", "preempted", "interrupted", "diverged", "failed"]


class StartCommand(TypedDict, total=False):
    """Written since version 0.3."""

    command: str  # that the user gave, as a shell reads it


class StartRecord(StartCommand):
    """`start`: first record of every attempt, by every rank."""

    run: str
    recipe: str
    config: dict[str, object]  # every field of the recipe and of the launch but `command`, as JSON
    mesh: dict[str, int]  # {"data": n, "tower": n}
    world: int
    device: str  # this rank's, as torch names it
    device_name: str
    decoded: str  # where decoded images are kept: "device", "host" or "none"
    pid: int
    host: str
    # inode of the namespace that pid counts in: a reader in another one cannot look it up
    pid_namespace: int
    versions: dict[str, str]
    dataset: str  # the manifest's hash
    classes: int
    train_images: int
    val_images: int  # 0: no validation split
    epochs: int
    steps_per_epoch: int
    batch_size: int  # global


class GpuSize(TypedDict, total=False):
    """Written since version 0.3."""

    memory_total_bytes: int | None  # of the device


class GpuCounters(GpuSize):
    """A rank's GPU at an interval's end; null where the device or driver does not report it."""

    busy: float | None  # share of the driver's last sample period with a kernel running, in [0, 1]
    nvjpg_busy: float | None  # likewise of the JPEG engine
    memory_bytes: int | None  # in use on the device, by everyone
    power_w: float | None


class StepRecord(TypedDict):
    """`step`: what this rank did since its last `step` record; its own `step` counts those of the
    run."""

    steps: int
    images: int  # this rank's own valid rows; the sum over ranks is what was trained
    wall_s: float
    wait_s: float  # of wall_s, waited for batches: on a GPU, for as long as it stood idle for them
    # of wall_s, the host was inside collectives; of ranks in step the slowest waits least there
    exchange_s: float
    cpu_s: float  # user + system seconds of this process
    rss_bytes: int  # at the interval's end
    loader: LoaderCounters
    loss: float | None  # mean over the interval's global batches; null: not finite
    top1: float | None  # share of the interval's training images right, in [0, 1]
    lr: float  # of the weights, at the last step
    gpu: GpuCounters | None  # null on a CPU


class EvalRecord(TypedDict):
    """`eval`: one pass over the validation split, by rank 0. Shares in [0, 1]; errors are 1 -
    share."""

    views: int
    images: int
    top1: float
    top5: float
    nll: float | None  # nats, of the probabilities averaged over views
    wall_s: float


class EvalProgressRecord(TypedDict):
    """`eval_progress`: how far a pass over the validation split is, about once a second, by every
    rank.

    No `step` record comes during a pass: a reader must not take a long one for a stall.
    """

    views: int
    images: int  # this rank's, since the pass began
    total: int  # of the split, over all ranks
    wall_s: float  # since the pass began


class ReceiptRecord(TypedDict):
    """`receipt`: one epoch's samples over all ranks; a whole epoch has missing = duplicates = 0."""

    seen: int
    missing: int
    duplicates: int
    dropped: int  # left out by remainder="drop"


class CheckpointRecord(TypedDict):
    """`checkpoint`: one was written and is now the latest."""

    path: str  # relative to the run
    bytes: int
    wall_s: float


class WarningRecord(TypedDict):
    """`warning`: something the user should know, and that did not stop the run."""

    message: str


class EndRecord(TypedDict):
    """`end`: last record of an attempt that ended by itself. Its absence, with the writer dead,
    means a crash."""

    outcome: Outcome
    error: str | None  # one line
