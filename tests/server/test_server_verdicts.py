"""The verdicts, made to happen: real training runs on the drawn sample, each with one thing really
slow."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from served import ROOT, wait_for

from gratis.events import EventWriter
from gratis.loader import Loader, LoaderConfig
from gratis.server.models import RunStatus
from gratis.server.runs import Runs

pytestmark = pytest.mark.slow
SMALL = [*"--recipe sample --epochs 50 --port 0 --width 0.125 --hidden 256".split()]


@contextmanager
def training(
    shards: Path, runs: Path, *arguments: str, env: Mapping[str, str] | None = None
) -> Iterator[psutil.Process]:
    """`gratis train` under way, ended on exit with every process that it started."""
    slowed = Path(__file__).parent / "slowed"
    process = subprocess.Popen(
        [
            sys.executable,
            *"-m gratis train --shards".split(),
            str(shards),
            "--runs",
            str(runs),
            *SMALL,
            *arguments,
        ],
        cwd=ROOT,
        env=os.environ
        | {"PYTHONPATH": f"{slowed}:{ROOT}", "CUDA_VISIBLE_DEVICES": ""}
        | dict(env or {}),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    family = psutil.Process(process.pid)
    try:
        yield family
    finally:
        for member in [*family.children(recursive=True), family]:
            member.kill()
        process.wait()


def awaited(
    runs: Path, holds: Callable[[RunStatus], bool], seconds: float = 60.0, stall_s: float = 60.0
) -> RunStatus:
    """The status once `holds` is true of it."""
    reader = Runs(runs, stall_s)
    newest: list[RunStatus] = []

    def look() -> bool:
        if (snapshot := reader.snapshot()) is not None:
            newest[:] = [snapshot.status]
        return bool(newest) and holds(newest[0])

    assert wait_for(look, seconds), newest and (newest[0].state, newest[0].verdict, newest[0].ranks)
    print(newest[0].verdict.text)
    return newest[0]


def judged(kind: str) -> Callable[[RunStatus], bool]:
    """Of some seconds, so that the first interval, in which pipelines fill, is not what was
    judged."""
    return lambda status: status.verdict.kind == kind and status.step >= 12


def test_an_expensive_model_is_compute_bound_and_stopped_it_is_stalled(
    sample_shards: Path, tmp_path: Path
) -> None:
    with training(sample_shards, tmp_path, "--width", "0.5", "--hidden", "4096") as family:
        status = awaited(tmp_path, judged("compute-bound"))
        assert status.headroom is not None
        assert status.headroom > 1.5
        members = [family, *family.children(recursive=True)]
        for member in members:
            member.send_signal(signal.SIGSTOP)
        status = awaited(tmp_path, judged("stalled"), stall_s=3.0)
        assert status.state == "stalled"
        for member in members:
            member.send_signal(signal.SIGCONT)
        status = awaited(tmp_path, judged("compute-bound"), stall_s=3.0)
        assert status.state == "running"


def test_a_slow_disk_is_input_bound_by_read(sample_shards: Path, tmp_path: Path) -> None:
    """A second and a half for a batch, which no machine needs to train on one, however busy it
    is."""
    with training(sample_shards, tmp_path, "--decoded", "none", env={"GRATIS_SLOW_READ": "1.5"}):
        status = awaited(tmp_path, judged("input-bound"), seconds=120)
    assert status.verdict.stage == "read"
    # of the dozen batches delivered one to three were read before the first interval was over
    assert 0.8 < (status.headroom or 0) < 1.5
    assert 0.8 < (status.images_per_s.loader or 0) / (32 / 1.5) < 1.5


def test_a_rank_with_a_slow_disk_is_the_straggler(sample_shards: Path, tmp_path: Path) -> None:
    with training(
        sample_shards,
        tmp_path,
        *"--gpus 2 --decoded none".split(),
        env={"GRATIS_SLOW_READ": "0.5@1"},
    ):
        status = awaited(tmp_path, judged("straggler"))
    assert (status.verdict.rank, status.verdict.stage) == (1, "read")


def test_a_slow_rank_is_the_straggler(sample_shards: Path, tmp_path: Path) -> None:
    with training(sample_shards, tmp_path, "--gpus", "2", env={"GRATIS_SLOW_STEP": "0.5@1"}):
        status = awaited(tmp_path, judged("straggler"))
    assert (status.verdict.rank, status.verdict.stage) == (1, None)
    assert "exchanges" in status.verdict.text


def test_one_decoding_thread_is_input_bound_by_decode(sample_shards: Path, tmp_path: Path) -> None:
    """A consumer that takes what it gets; images/s then are what one thread decodes, and the
    headroom is 1."""
    writer = EventWriter(tmp_path / "a" / "rank-0.jsonl", attempt=1, rank=0)
    writer.write("start", {"world": 1})
    config = LoaderConfig(batch_size=100, crop=112, threads=1)
    step = 0
    with Loader(sample_shards, "train", config) as loader:
        for _ in range(4):
            begin, wait_s = time.perf_counter(), 0.0
            loader.take_counters()
            batches = iter(loader)
            asked = time.perf_counter()
            for _ in batches:
                wait_s += time.perf_counter() - asked
                step += 1
                asked = time.perf_counter()
            taken = {
                "wall_s": time.perf_counter() - begin,
                "wait_s": wait_s,
                "loader": loader.take_counters(),
            }
            writer.write(
                "step", {"steps": len(loader), "images": loader.num_samples, **taken}, step=step
            )
    status = awaited(tmp_path, judged("input-bound"), seconds=1)
    assert status.verdict.stage == "decode"
    assert status.headroom == pytest.approx(1.0, abs=0.2)
