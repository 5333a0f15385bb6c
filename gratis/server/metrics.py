"""The newest run as Prometheus metrics: counters as they were counted, and the rates that the page
shows as gauges.

One run alone, so that a folder of a thousand does not become a thousand series of each.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from operator import attrgetter
from typing import Any, get_args

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from gratis.server.models import RunStatus, State
from gratis.server.runs import Runs, RunSnapshot

Family = type[GaugeMetricFamily] | type[CounterMetricFamily]
Rows = Iterable[tuple[Any, ...]]  # the values of the labels, then the value; None: no sample

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


class SnapshotCollector(Collector):
    def __init__(self, snapshot: RunSnapshot | None) -> None:
        self.snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        build = {"version": _version(), "python": platform.python_version()}
        yield InfoMetricFamily("gratis_build", "What serves these metrics.", build)
        snapshot = self.snapshot
        # half-read counters would look like a restart
        if snapshot is not None and not snapshot.status.behind_bytes:
            yield from _run_gauges(snapshot.status)
            yield from _rank_metrics(snapshot)
            yield from _shard_metrics(snapshot)


def exposition(runs: Runs, accept: str) -> tuple[bytes, str]:
    """The metrics and their content type: OpenMetrics where `accept` prefers it, else Prometheus's
    text."""
    return _encode(runs.snapshot(), accept)


@lru_cache(maxsize=4)  # one snapshot is encoded once, however many scrape
def _encode(snapshot: RunSnapshot | None, accept: str) -> tuple[bytes, str]:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(SnapshotCollector(snapshot))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


def _version() -> str:
    try:
        return version("gratis")
    except PackageNotFoundError:  # run from a checkout
        return "unreleased"


def _family(kind: Family, name: str, text: str, labels: str, rows: Rows) -> Metric:
    family = kind(f"gratis_{name}", text, labels=labels.split())
    for *values, value in rows:
        if value is not None:
            family.add_metric([str(one) for one in values], value)
    return family


def _run_gauges(run: RunStatus) -> Iterator[Metric]:
    states = [(run.name, name, float(name == run.state)) for name in get_args(State)]
    text = "1 for the run's state, 0 for the others."
    yield _family(GaugeMetricFamily, "run_state", text, "run state", states)
    speeds = [(f"{who}_images_per_second", text, f"images_per_s.{who}") for who, text in SPEEDS]
    for name, text, field in (*speeds, *RUN_GAUGES):
        if (value := attrgetter(field)(run)) is not None:
            yield _family(GaugeMetricFamily, name, text, "run", [(run.name, value)])
    newest = {one.views: one for one in run.evaluations}
    errors = [
        (run.name, views, top, error)
        for views, one in newest.items()
        for top, error in ((1, one.top1_error), (5, one.top5_error))
    ]
    text = "Error of the newest evaluation."
    yield _family(GaugeMetricFamily, "validation_error_ratio", text, "run views top", errors)


def _rank_metrics(snapshot: RunSnapshot) -> Iterator[Metric]:
    run, ranks, counters = snapshot.status.name, snapshot.status.ranks, snapshot.counters.items()
    for name, text, field in RANK_COUNTERS:
        rows: Rows = [(run, rank, getattr(one, field)) for rank, one in counters]
        yield _family(CounterMetricFamily, name, text, "run rank", rows)
    rows = [(run, rank, stage, s) for rank, one in counters for stage, s in one.stages.items()]
    text = "Time the loader spent in each stage."
    yield _family(CounterMetricFamily, "loader_stage_seconds", text, "run rank stage", rows)
    for name, text, field in RANK_GAUGES:
        rows = [(run, one.rank, getattr(one, field)) for one in ranks]
        yield _family(GaugeMetricFamily, name, text, "run rank", rows)
    for name, text, field in GPU_GAUGES:
        rows = [(run, one.rank, getattr(one.gpu, field)) for one in ranks if one.gpu is not None]
        yield _family(GaugeMetricFamily, name, text, "run rank", rows)


def _shard_metrics(snapshot: RunSnapshot) -> Iterator[Metric]:
    if (shards := snapshot.status.shards) is None:
        return
    run = snapshot.status.name
    for name, text, field in SHARD_GAUGES:
        yield _family(GaugeMetricFamily, name, text, "run", [(run, getattr(shards, field))])
    for (name, text), total in zip(SHARD_COUNTERS, snapshot.shards, strict=True):
        yield _family(CounterMetricFamily, name, text, "run", [(run, total)])
