"""The newest run as Prometheus metrics: counters as they were counted, and the rates that the page
shows as gauges.

One run alone, so that a folder of a thousand does not become a thousand series of each.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version
from operator import attrgetter
from typing import Literal, NamedTuple, get_args

from prometheus_client.exposition import choose_encoder

from gratis.server.models import RunStatus, State
from gratis.server.run_reader import RunSnapshot
from gratis.server.runs import Runs

Sample = tuple[str, float | None]  # the labels as text, and the value; None: no sample

# each: the name after gratis_, its help, and the field of the status or of the counters
SPEEDS = (
    ("loader", "What the loaders could deliver, over all ranks."),
    ("delivered", "What the loaders handed over, over all ranks."),
    ("trainer", "What training took, over all ranks."),
)
RUN_GAUGES = (
    (
        "data_wait_ratio",
        "Share of the ranks' time spent waiting for batches.",
        "data_wait_fraction",
    ),
    ("loader_headroom_ratio", "Loader capacity over training's demand.", "headroom"),
    ("training_loss", "Mean training loss of the newest interval, nats per image.", "loss"),
    (
        "training_error_ratio",
        "Share of the newest interval's training images wrong.",
        "train_error",
    ),
    ("learning_rate", "Learning rate of the weights.", "learning_rate"),
    ("epoch", "Epoch, from 0.", "epoch"),
    ("step", "Training steps taken.", "step"),
    ("planned_epochs", "Epochs planned.", "epochs"),
    ("planned_steps", "Training steps planned.", "total_steps"),
    (
        "remaining_seconds",
        "Time to go at the present rate, evaluations not counted.",
        "remaining_s",
    ),
    ("attempt", "How many times the run was started, as it counts.", "attempt"),
    ("event_age_seconds", "Time since the run's files last grew.", "age_s"),
)
RANK_COUNTERS = (
    ("trained_images", "Images trained on.", "images"),
    ("training_steps", "Training steps taken, repeated ones too.", "steps"),
    ("training_seconds", "Time spent in training.", "wall_s"),
    ("data_wait_seconds", "Time that training waited for batches.", "wait_s"),
    (
        "exchange_seconds",
        "Time that the host spent inside collectives, slower ranks waited for.",
        "exchange_s",
    ),
    ("cpu_seconds", "User and system time of the process, while training.", "cpu_s"),
    ("loader_delivered_images", "Images that the loader handed over.", "delivered"),
    ("loader_native_images", "Images that the loader's engine decoded.", "native"),
    ("loader_fallback_images", "Images that it left to another decoder.", "fallback"),
    ("loader_read_bytes", "Encoded bytes that the loader read.", "bytes_read"),
    (
        "loader_blocked_seconds",
        "Time that the loader waited because its queue was full.",
        "blocked_s",
    ),
)
RANK_GAUGES = (
    ("resident_memory_bytes", "Resident memory of the rank's process.", "rss_bytes"),
    ("loader_queue_batches", "Batches ready, at the newest record.", "queue_depth"),
    ("loader_queue_capacity_batches", "Batches that the queue holds at most.", "queue_capacity"),
)
GPU_GAUGES = (
    ("gpu_busy_ratio", "Share of the last sample period with a kernel running.", "busy"),
    ("gpu_nvjpg_busy_ratio", "Share of it with the JPEG engine at work.", "nvjpg_busy"),
    ("gpu_memory_used_bytes", "Device memory in use.", "memory_bytes"),
    ("gpu_memory_size_bytes", "Device memory there is.", "memory_total_bytes"),
    ("gpu_power_watts", "Power drawn.", "power_w"),
)
SHARD_GAUGES = (
    ("shards_done_images", "Images that the shard stage has finished.", "done"),
    ("shards_planned_images", "Images that the shard stage has planned.", "total"),
    ("shards_rejected_images", "Images that the shard stage left out.", "rejects"),
)
SHARD_COUNTERS = (
    ("shards_images", "Images sharded."),
    ("shards_read_bytes", "Source bytes read."),
    ("shards_written_bytes", "Shard bytes written."),
    ("shards_seconds", "Time spent in sharding."),
)


class Family(NamedTuple):
    """Samples of one name. The library's own families take ten times as long to encode, which with
    hundreds of ranks is most of a scrape."""

    kind: Literal["gauge", "counter", "info"]
    name: str  # behind gratis_
    text: str
    samples: Iterable[Sample]

    def lines(self, openmetrics: bool) -> Iterator[str]:
        suffix = {"gauge": "", "counter": "_total", "info": "_info"}[self.kind]
        sampled = f"gratis_{self.name}{suffix}"
        name = f"gratis_{self.name}" if openmetrics else sampled
        kind = self.kind if openmetrics or self.kind != "info" else "gauge"
        yield f"# HELP {name} {self.text}\n# TYPE {name} {kind}\n"
        for labels, value in self.samples:
            if value is not None:
                yield f"{sampled}{labels} {float(value)!r}\n"


def exposition(runs: Runs, accept: str) -> tuple[bytes, str]:
    """The metrics and their content type: OpenMetrics where `accept` prefers it, else Prometheus's
    text."""
    return _encode(runs.snapshot(), accept)


@lru_cache(maxsize=4)  # one snapshot is encoded once, however many scrape
def _encode(snapshot: RunSnapshot | None, accept: str) -> tuple[bytes, str]:
    _, content_type = choose_encoder(accept)
    openmetrics = content_type.startswith("application/openmetrics-text")
    lines = [line for family in _families(snapshot) for line in family.lines(openmetrics)]
    return "".join([*lines, "# EOF\n" if openmetrics else ""]).encode(), content_type


def _families(snapshot: RunSnapshot | None) -> Iterator[Family]:
    build = _labels(python=platform.python_version(), version=_version())
    yield Family("info", "build", "What serves these metrics.", [(build, 1.0)])
    if snapshot is not None:
        yield from _run_gauges(snapshot.status)
        yield from _rank_metrics(snapshot)
        yield from _shard_metrics(snapshot)


@cache
def _version() -> str:
    try:
        return version("gratis")
    except PackageNotFoundError:  # run from a checkout
        return "unreleased"


def _labels(**values: object) -> str:
    """As they stand behind a metric's name."""
    pairs = [f'{name}="{_escaped(str(value))}"' for name, value in sorted(values.items())]
    return "{" + ",".join(pairs) + "}"


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _run_gauges(run: RunStatus) -> Iterator[Family]:
    states = [
        (_labels(run=run.name, state=one), float(one == run.state)) for one in get_args(State)
    ]
    yield Family("gauge", "run_state", "1 for the run's state, 0 for the others.", states)
    speeds = [(f"{who}_images_per_second", text, f"images_per_s.{who}") for who, text in SPEEDS]
    for name, text, field in (*speeds, *RUN_GAUGES):
        if (value := attrgetter(field)(run)) is not None:
            yield Family("gauge", name, text, [(_labels(run=run.name), value)])
    newest = {one.views: one for one in run.evaluations}
    errors = [
        (_labels(run=run.name, views=views, top=top), error)
        for views, one in newest.items()
        for top, error in ((1, one.top1_error), (5, one.top5_error))
    ]
    text = "Error of the newest evaluation."
    yield Family("gauge", "validation_error_ratio", text, errors)


def _rank_metrics(snapshot: RunSnapshot) -> Iterator[Family]:
    run, ranks, counters = snapshot.status.name, snapshot.status.ranks, snapshot.counters
    labels = {rank: _labels(run=run, rank=rank) for rank in (*counters, *(o.rank for o in ranks))}
    for name, text, field in RANK_COUNTERS:
        of = attrgetter(field)
        samples = [(labels[rank], of(one)) for rank, one in counters.items()]
        yield Family("counter", name, text, samples)
    samples = [
        (_labels(run=run, rank=rank, stage=stage), seconds)
        for rank, one in counters.items()
        for stage, seconds in one.stages.items()
    ]
    text = "Time the loader spent in each stage."
    yield Family("counter", "loader_stage_seconds", text, samples)
    for name, text, field in RANK_GAUGES:
        of = attrgetter(field)
        yield Family("gauge", name, text, [(labels[one.rank], of(one)) for one in ranks])
    for name, text, field in GPU_GAUGES:
        of = attrgetter(field)
        gpus = [(labels[one.rank], of(one.gpu)) for one in ranks if one.gpu is not None]
        yield Family("gauge", name, text, gpus)


def _shard_metrics(snapshot: RunSnapshot) -> Iterator[Family]:
    if (shards := snapshot.status.shards) is None or not snapshot.shards:
        return
    labels = _labels(run=snapshot.status.name)
    for name, text, field in SHARD_GAUGES:
        yield Family("gauge", name, text, [(labels, getattr(shards, field))])
    for (name, text), total in zip(SHARD_COUNTERS, snapshot.shards, strict=True):
        yield Family("counter", name, text, [(labels, total)])
