"""The newest run as Prometheus metrics: counters as they were counted, and the rates that the page
shows as gauges.

One run alone, so that a folder of a thousand does not become a thousand series of each.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import get_args

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from gratis.server.models import RunStatus, State
from gratis.server.runs import Runs, RunSnapshot


class SnapshotCollector(Collector):
    def __init__(self, snapshot: RunSnapshot | None) -> None:
        self.snapshot = snapshot

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        build = {"version": _version(), "python": platform.python_version()}
        yield InfoMetricFamily("gratis_build", "What serves these metrics.", build)
        snapshot = self.snapshot
        # half-read counters would look like a restart
        if snapshot is not None and not snapshot.status.behind_bytes:
            yield from _run_gauges(snapshot.status)
            yield from _rank_counters(snapshot)
            yield from _rank_gauges(snapshot)
            yield from _gpu_gauges(snapshot)
            yield from _shards(snapshot)


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


def _run_gauges(run: RunStatus) -> Iterator[Metric]:
    state = GaugeMetricFamily(
        "gratis_run_state", "1 for the run's state, 0 for the others.", labels=["run", "state"]
    )
    for name in get_args(State):
        state.add_metric([run.name, name], float(name == run.state))
    yield state
    speed = run.images_per_s
    for name, text, value in (
        (
            "loader_images_per_second",
            "What the loaders could deliver, over all ranks.",
            speed.loader,
        ),
        (
            "delivered_images_per_second",
            "What the loaders handed over, over all ranks.",
            speed.delivered,
        ),
        ("trainer_images_per_second", "What training took, over all ranks.", speed.trainer),
        (
            "data_wait_ratio",
            "Share of the ranks' time spent waiting for batches.",
            run.data_wait_fraction,
        ),
        ("loader_headroom_ratio", "Loader capacity over training's demand.", run.headroom),
        ("training_loss", "Mean training loss of the newest interval, nats per image.", run.loss),
        (
            "training_error_ratio",
            "Share of the newest interval's training images wrong.",
            run.train_error,
        ),
        ("learning_rate", "Learning rate of the weights.", run.learning_rate),
        ("epoch", "Epoch, from 0.", run.epoch),
        ("step", "Training steps taken.", run.step),
        ("attempt", "How many times the run was started, as it counts.", run.attempt),
        ("event_age_seconds", "Time since the run's files last grew.", run.age_s),
    ):
        if value is not None:
            gauge = GaugeMetricFamily(f"gratis_{name}", text, labels=["run"])
            gauge.add_metric([run.name], value)
            yield gauge
    yield from _evaluation(run)


def _evaluation(run: RunStatus) -> Iterator[Metric]:
    error = GaugeMetricFamily(
        "gratis_validation_error_ratio",
        "Error of the newest evaluation.",
        labels=["run", "views", "top"],
    )
    newest = {one.views: one for one in run.evaluations}
    for views, one in newest.items():
        for top, value in (("1", one.top1_error), ("5", one.top5_error)):
            if value is not None:
                error.add_metric([run.name, str(views), top], value)
    yield error


def _rank_counters(snapshot: RunSnapshot) -> Iterator[Metric]:
    for name, text, field in (
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
        ("loader_read_bytes", "Encoded bytes that the loader read.", "bytes_read"),
        (
            "loader_blocked_seconds",
            "Time that the loader waited because its queue was full.",
            "blocked_s",
        ),
    ):
        counter = CounterMetricFamily(f"gratis_{name}", text, labels=["run", "rank"])
        for rank, counters in snapshot.counters.items():
            counter.add_metric([snapshot.status.name, str(rank)], getattr(counters, field))
        yield counter
    stages = CounterMetricFamily(
        "gratis_loader_stage_seconds",
        "Time the loader spent in each stage.",
        labels=["run", "rank", "stage"],
    )
    for rank, counters in snapshot.counters.items():
        for stage, seconds in counters.stages.items():
            stages.add_metric([snapshot.status.name, str(rank), stage], seconds)
    yield stages


def _rank_gauges(snapshot: RunSnapshot) -> Iterator[Metric]:
    for name, text, field in (
        ("resident_memory_bytes", "Resident memory of the rank's process.", "rss_bytes"),
        ("loader_queue_batches", "Batches ready, at the newest record.", "queue_depth"),
        (
            "loader_queue_capacity_batches",
            "Batches that the queue holds at most.",
            "queue_capacity",
        ),
    ):
        gauge = GaugeMetricFamily(f"gratis_{name}", text, labels=["run", "rank"])
        for rank in snapshot.status.ranks:
            value = getattr(rank, field)
            if value is not None:
                gauge.add_metric([snapshot.status.name, str(rank.rank)], value)
        yield gauge


def _gpu_gauges(snapshot: RunSnapshot) -> Iterator[Metric]:
    for name, text, field in (
        ("gpu_busy_ratio", "Share of the last sample period with a kernel running.", "busy"),
        ("gpu_nvjpg_busy_ratio", "Share of it with the JPEG engine at work.", "nvjpg_busy"),
        ("gpu_memory_used_bytes", "Device memory in use.", "memory_bytes"),
        ("gpu_power_watts", "Power drawn.", "power_w"),
    ):
        gauge = GaugeMetricFamily(f"gratis_{name}", text, labels=["run", "rank"])
        for rank in snapshot.status.ranks:
            if rank.gpu is not None and (value := getattr(rank.gpu, field)) is not None:
                gauge.add_metric([snapshot.status.name, str(rank.rank)], value)
        yield gauge


def _shards(snapshot: RunSnapshot) -> Iterator[Metric]:
    if (shards := snapshot.status.shards) is None:
        return
    run = [snapshot.status.name]
    for name, text, value in (
        ("shards_done_images", "Images that the shard stage has finished.", shards.done),
        ("shards_planned_images", "Images that the shard stage has planned.", shards.total),
        ("shards_rejected_images", "Images that the shard stage left out.", shards.rejects),
    ):
        gauge = GaugeMetricFamily(f"gratis_{name}", text, labels=["run"])
        gauge.add_metric(run, value)
        yield gauge
    for name, text, total in zip(
        ("shards_images", "shards_read_bytes", "shards_written_bytes", "shards_seconds"),
        (
            "Images sharded.",
            "Source bytes read.",
            "Shard bytes written.",
            "Time spent in sharding.",
        ),
        snapshot.shards,
        strict=True,
    ):
        counter = CounterMetricFamily(f"gratis_{name}", text, labels=["run"])
        counter.add_metric(run, total)
        yield counter
