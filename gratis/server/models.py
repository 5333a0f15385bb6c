"""The server's answers, typed. Every unit is in its description; null means that the value is not
known (yet)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from gratis.rates import Stage
from gratis.verdict import Bottleneck

State = Literal["starting", "running", "stalled", "crashed", "preempted", "diverged", "finished"]

Rate = Annotated[float | None, Field(ge=0)]
Share = Annotated[float | None, Field(ge=0, le=1)]


def optional(description: str) -> Any:
    """A field that is null as long as its value is not known."""
    return Field(default=None, description=description)


class StatusModel(BaseModel):
    model_config = ConfigDict(frozen=True)


class VerdictStatus(StatusModel):
    """What holds training back. The rule is `gratis.verdict.judge`."""

    kind: Bottleneck = Field(description="what holds training back")
    title: str = Field(description="the verdict as a headline")
    stage: Stage | None = optional(
        "the loader's slowest stage, where the input holds training back"
    )
    rank: int | None = optional("the rank that holds the others back, if one does")
    pauses: bool = Field(
        description="whether training waits for data although the loader is fast enough"
    )
    text: str = Field(description="the verdict as a sentence, with the numbers behind it")


class StartupStatus(StatusModel):
    """How long the newest attempt took to get going: its first interval, which no rate counts."""

    first_batch_s: float = Field(description="until the last rank had its first batch, seconds")
    first_step_s: float = Field(
        description="from then until the last rank had taken its first step, seconds"
    )
    text: str = Field(description="both as words")


class Speed(StatusModel):
    loader: Rate = optional("what the loaders could deliver, images per second over all ranks")
    delivered: Rate = optional("what the loaders handed over, images per second over all ranks")
    trainer: Rate = optional("what training took, images per second over all ranks")


class StageShares(StatusModel):
    """Shares of the loader's working time."""

    read: Share = optional("share of the loader's working time spent fetching bytes, in [0, 1]")
    decode: Share = optional("share spent in decode and crop, in [0, 1]")
    finish: Share = optional("share spent in flip, mean, noise and type, in [0, 1]")
    transfer: Share = optional("share spent moving batches to the device, in [0, 1]")


class GpuStatus(StatusModel):
    """A rank's GPU at its newest record."""

    busy: Share = optional("share of the last sample period with a kernel running, in [0, 1]")
    nvjpg_busy: Share = optional("share of it with the JPEG engine at work, in [0, 1]")
    memory_bytes: Rate = optional("device memory in use, bytes")
    memory_total_bytes: Rate = optional("device memory there is, bytes")
    power_w: Rate = optional("power drawn, watts")


class RankStatus(StatusModel):
    rank: int = Field(description="rank, from 0")
    state: Literal["waiting", "running", "gone", "ended"] = Field(
        description="waiting for its first step, running, killed (gone), or ended by itself"
    )
    device: str | None = optional("its device, as torch names it")
    device_name: str | None = optional("its device's product name")
    step: int = Field(description="training steps of the run that it has taken")
    images_per_s: Speed = Field(description="images per second of this rank")
    data_wait_fraction: Share = optional("share of its time that it waited for batches, in [0, 1]")
    step_s: Rate = optional("mean duration of a training step, seconds")
    stages: StageShares = Field(description="where its loader's working time goes")
    read_bytes_per_s: Rate = optional("encoded bytes read, bytes per second")
    cpu_cores: Rate = optional("process CPU seconds per second")
    rss_bytes: Rate = optional("resident memory, bytes")
    native_images: int = Field(description="images that the engine decoded, in all attempts")
    fallback_images: int = Field(
        description="images that it left to another decoder, in all attempts"
    )
    queue_depth: int | None = optional("batches ready, at the newest record")
    queue_capacity: int | None = optional("batches that the queue holds at most")
    gpu: GpuStatus | None = optional("its GPU; null on a CPU")
    age_s: float = Field(description="seconds since its file last grew, by the server's clock")


class Evaluation(StatusModel):
    epoch: int = Field(description="epochs trained")
    step: int = Field(description="training steps taken")
    t: float | None = optional("when it ended, Unix seconds by the trainer's clock")
    views: int = Field(description="views of each image that were averaged: 1 or 10")
    images: int = Field(description="validation images")
    top1_error: Share = optional("share of images whose first guess is wrong, in [0, 1]")
    top5_error: Share = optional("share of images with no right guess in five, in [0, 1]")
    nll: float | None = optional("negative log-likelihood, nats per image")
    wall_s: float = Field(description="duration, seconds")


class ShardStatus(StatusModel):
    state: Literal["running", "stalled", "finished", "failed"] = Field(
        description="the shard stage's state"
    )
    done: int = Field(description="images finished")
    total: int = Field(description="images planned")
    rejects: int = Field(description="images left out")
    images_per_s: Rate = optional("images per second, recently")
    bytes_in_per_s: Rate = optional("source bytes per second, recently")
    bytes_out_per_s: Rate = optional("shard bytes per second, recently")
    remaining_s: Rate = optional("seconds to go at that rate")
    age_s: float = Field(description="seconds since its file last grew, by the server's clock")


class CoverageStatus(StatusModel):
    epoch: int = Field(description="the epoch, from 0")
    seen: int = Field(description="different images trained on in that epoch")
    missing: int = Field(description="images never seen; 0 in a whole epoch")
    duplicates: int = Field(description="images seen again; 0 in a whole epoch")
    dropped: int = Field(description="images left out on purpose, to fill whole batches")


class RunSummary(StatusModel):
    name: str = Field(description="the run's name")
    state: State = Field(description="the run's state")
    epoch: int = Field(description="epoch, from 0; the number of epochs once all are done")
    step: int = Field(description="training steps taken")
    updated: float = Field(
        description="when its files last grew, Unix seconds by the server's clock"
    )


class RunList(StatusModel):
    runs: list[RunSummary] = Field(description="all runs, the newest first")


class RunStatus(RunSummary):
    reason: str = Field(description="why it is in this state")
    verdict: VerdictStatus = Field(description="what holds training back")
    images_per_s: Speed = Field(
        description="images per second over all ranks, of the newest 30 s; once over, of the "
        "attempt without its start-up"
    )
    data_wait_fraction: Share = optional(
        "share of the ranks' time spent waiting for batches, in [0, 1], "
        "of the newest 30 s; once over, of the attempt without its start-up"
    )
    startup: StartupStatus | None = optional("the attempt's start-up; null until it is over")
    headroom: Rate = optional(
        "how many times faster the loader could go than training asks: a ratio"
    )
    loss: float | None = optional("mean training loss of the newest interval, nats per image")
    train_error: Share = optional("share of the newest interval's training images wrong, in [0, 1]")
    learning_rate: float | None = optional("learning rate of the weights")
    evaluations: list[Evaluation] = Field(
        description="evaluations on the validation split, the oldest first"
    )
    best: Evaluation | None = optional(
        "the evaluation with the lowest top-1 error, of the centre view where there is one"
    )
    gpu_busy: Share = optional("mean over the ranks of their GPUs' busy share, in [0, 1]")
    gpu_memory_bytes: Rate = optional("memory in use on the GPU with the most in use, bytes")
    gpu_memory_total_bytes: Rate = optional("memory that that GPU has, bytes")
    rss_bytes: Rate = optional("resident memory of all ranks' processes, bytes")
    folder: str = Field(description="the run's folder, from the folder of all runs on")
    command: str | None = optional("the command that began this attempt; its paths are cut")
    recipe: str | None = optional("the recipe's name")
    dataset: str | None = optional("the dataset's hash")
    classes: int | None = optional("classes in the dataset")
    train_images: int | None = optional("images in the training split")
    val_images: int | None = optional("images in the validation split; 0 if there is none")
    attempt: int = Field(description="how many times it was started, as the run counts")
    world: int = Field(description="ranks")
    mesh: dict[str, int] = Field(description="the mesh: axis to ranks along it")
    batch_size: int | None = optional("images in a global batch")
    decoded: str | None = optional(
        "where each rank keeps images decoded after their first epoch: device, host or none"
    )
    decoded_bytes: Rate = optional("what they take there once all are, bytes on each rank")
    epochs: int | None = optional("epochs planned")
    steps_per_epoch: int | None = optional("training steps in an epoch")
    epoch_step: int | None = optional("training steps taken of the epoch")
    total_steps: int | None = optional("training steps planned")
    started: float | None = optional("when this attempt began, Unix seconds by the trainer's clock")
    age_s: float = Field(description="seconds since its files last grew, by the server's clock")
    remaining_s: Rate = optional("seconds to go at the present rate, evaluations not counted")
    images_trained: int = Field(
        description="images trained on in all attempts, over the ranks there are now"
    )
    native_images: int = Field(
        description="training images that the engine decoded, in all attempts over the ranks there "
        "are now; with fallback_images 0 where DALI decodes all"
    )
    fallback_images: int = Field(
        description="images that it left to another decoder: progressive files, damaged ones"
    )
    receipt: CoverageStatus | None = optional("the newest epoch's coverage")
    checkpoint_step: int | None = optional("training steps taken at the newest checkpoint")
    warnings: list[str] = Field(description="the newest warnings of this attempt, paths left out")
    ranks: list[RankStatus] = Field(description="the attempt's ranks")
    shards: ShardStatus | None = optional("the shard stage, where it reports to this run")
    picture_t: float | None = optional(
        "when /status/{run}/picture was made, Unix seconds; null if there is none"
    )
    behind_bytes: int = Field(
        description="bytes of the run's files that the server has yet to read; 0 when up to date"
    )
    garbage_lines: int = Field(description="lines that were no records")


class IntervalStatus(StatusModel):
    """A range of training steps, added up over the ranks: one point of the charts."""

    first_step: int = Field(
        description="where its range of steps begins, by the last step of each record in it; a "
        "later interval that begins there or before replaces this one"
    )
    step: int = Field(description="training steps taken at its end")
    epoch: int = Field(description="epoch, from 0")
    attempt: int = Field(
        description="how many times the run had been started, the attempt that ran it counted"
    )
    startup: bool = Field(
        description="whether the attempt's start-up is in it, whose rates say nothing of the rest"
    )
    t: float = Field(description="its end, Unix seconds by the trainer's clock")
    images_per_s: Speed = Field(description="images per second over all ranks")
    data_wait_fraction: Share = optional("share of the time spent waiting for batches, in [0, 1]")
    loss: float | None = optional("mean training loss, nats per image")
    train_error: Share = optional("share of training images wrong, in [0, 1]")
    learning_rate: float | None = optional("learning rate of the weights, at its end")
    cpu_cores: Rate = optional("process CPU seconds per second, over all ranks")
    gpu_busy: Share = optional("mean of the GPUs' busy shares, in [0, 1]")
    gpu_memory_bytes: Rate = optional("the most memory in use on one GPU, bytes")
    rss_bytes: Rate = optional("resident memory of all ranks' processes, bytes")


class IntervalList(StatusModel):
    intervals: list[IntervalStatus] = Field(
        description="the run's intervals, the oldest first; none until all was read once"
    )


class Health(StatusModel):
    status: Literal["ok", "unready"] = Field(description="ok or unready")
    reason: str = Field(description="why")
