"""The process that estimates: what becomes of it costs the estimate, not the run."""

from __future__ import annotations

import os
import signal
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from gratis.preprocess.execution.workers import Worker, closing_pool, run_tasks
from gratis.preprocess.output.store import WORK
from gratis.preprocess.sources.listing import Item
from gratis.preprocess.stages import estimate
from gratis.preprocess.stages.shard import ShardTask

pytestmark = pytest.mark.starts

PATIENCE_S = 2.0


def late() -> ShardTask:
    time.sleep(PATIENCE_S + 0.1)
    return ShardTask(out="", split="train", number=0, items=(), size=16, codec="jpeg", quality=90)


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Arriving(ShardTask):
    """A task that does `fate` where the process receives it, which is before it begins."""

    fate: Callable[[], object]

    def __reduce__(self) -> tuple[Callable[[], object], tuple[()]]:
        return type(self).fate, ()


@pytest.mark.parametrize("fate", [late, killed])
def test_a_process_that_begins_late_or_never_costs_the_estimate(
    monkeypatch: pytest.MonkeyPatch, fate: Callable[[], object]
) -> None:
    monkeypatch.setattr(estimate, "TIMEOUT_S", PATIENCE_S)
    monkeypatch.setattr(Arriving, "fate", fate, raising=False)
    tried = Arriving(out="", split="train", number=0, items=(), size=16, codec="jpeg", quality=90)
    pool: list[Worker] = []
    assert estimate.estimate_apart(1, tried, pool) is None
    assert pool == []


def test_its_process_makes_shards_next(tmp_path: Path) -> None:
    """A start costs as much as a hundred images."""
    (tmp_path / "out" / WORK).mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(tmp_path / "a.jpg")
    size = (tmp_path / "a.jpg").stat().st_size
    item = Item(str(tmp_path), "a.jpg", -1, size, 0, "a")
    out = str(tmp_path / "out")
    task = ShardTask(
        out=out, split="val", number=0, items=(item,), size=16, codec="jpeg", quality=90
    )
    with closing_pool() as pool:
        cost = estimate.estimate_apart(500, task, pool)
        kept = list(pool)
        assert sum(step.images for step in run_tasks([task], 1, pool)) == 1
        assert pool == kept
        assert len(kept) == 1
    assert pool == []
    assert cost
    assert cost.images == 500
    tar = tmp_path / "out" / f"{task.name}.tar"
    with tarfile.open(tar) as shard:
        expected = 500 * (shard.getmember("a.jpg").size + estimate.TAR_OVERHEAD)
    assert cost.bytes == pytest.approx(estimate.MARGIN * expected, rel=0.001)
