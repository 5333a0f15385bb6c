"""What shards will cost, from sizes known beforehand; and the process that estimates: what becomes
of it costs the estimate, not the run."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from gratis.errors import GratisError
from gratis.preprocess.execution.workers import Worker, closing_pool, run_tasks
from gratis.preprocess.output.store import WORK
from gratis.preprocess.sources.listing import Item
from gratis.preprocess.stages import estimate
from gratis.preprocess.stages.shard import ShardTask

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


@pytest.mark.starts
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


@pytest.mark.starts
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


RAW = 24 * 24 * 3 + 13  # bytes of such a picture: "P6\n24 24\n255\n" and its pixels


def raw_task(folder: Path, count: int, **more: object) -> ShardTask:
    """Of as many pictures, one file each; the third, if there is one, is none."""
    items = []
    for k in range(count):
        path = folder / f"{k}.png"
        if k == 2:
            path.write_bytes(b"none")
        elif not path.exists():
            Image.new("RGB", (40 + k % 2, 30)).save(path)
        items.append(Item(str(folder), path.name, -1, path.stat().st_size, 0, str(k)))
    fields = {"out": "OUT", "split": "train", "number": 0, "size": 24, "codec": "raw"}
    return ShardTask(items=tuple(items), quality=0, **fields, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(("count", "looked_at"), [(0, 0), (4, 4), (50, 48)])
def test_a_few_images_stand_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int, looked_at: int
) -> None:
    """Each is as large as the others, and takes half a second. A tar has two headers of 512 bytes,
    a block for the label, and of the image's last block half; 5 % are for what the sample missed.
    """
    clock = iter([10.0, 10.0 + looked_at / 2])
    monkeypatch.setattr(time, "process_time", lambda: next(clock))
    begun: list[int] = []
    task = raw_task(tmp_path, count)
    cost = estimate.EstimateTask(1000, task).make(begun.append, lambda *new: None)
    assert begun == [*range(looked_at), -1]
    each = (RAW if count else 0) + 3 * 512 + 256
    assert cost == estimate.Estimate(1000, int(each * 1000 * 1.05), 500.0 if count else 0.0)


def test_what_cannot_be_estimated_is_a_message(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(b"\0\0\0\x20ftypheic" + bytes(40))
    task = raw_task(tmp_path, 2, tolerant=False)
    with pytest.raises(GratisError, match=r"0\.png: .*; or give --max-rejects"):
        estimate.estimate(2, task)
    assert estimate.estimate(2, raw_task(tmp_path, 2)).bytes == int((RAW + 1792) * 2 * 1.05)
    (tmp_path / "1.png").unlink()
    with pytest.raises(GratisError, match=r"^cannot read the source: .*No such file"):
        estimate.EstimateTask(2, dataclasses.replace(task, items=task.items[1:])).make(print, print)


def test_the_estimate_is_told_what_crashed(tmp_path: Path) -> None:
    task = raw_task(tmp_path, 2)
    tried = estimate.EstimateTask(7, task).exclude(1, "hung")
    assert (tried.images, tried.task, tried.name) == (7, task.exclude(1, "hung"), "the estimate")


@pytest.mark.parametrize(
    ("cost", "workers", "line"),
    [
        (
            estimate.Estimate(1200, 3_149_999, 132.0),
            2,
            "1,200 images: about 3.1 MB, 0 h 1 min on 2 workers (110.00 CPU s per 1,000 images, "
            "measured here on 48)",
        ),
        (
            estimate.Estimate(1, 4_200, 7_200.0),
            1,
            "1 image: about 4.2 kB, 2 h 0 min on 1 worker (7200000.00 CPU s per 1,000 images, "
            "measured here on 1)",
        ),
        (
            estimate.Estimate(2_000_000, 10**9, 8 * 5_400.0),
            8,
            "2,000,000 images: about 1.0 GB, 1 h 30 min on 8 workers (21.60 CPU s per 1,000 "
            "images, measured here on 48)",
        ),
        (
            estimate.Estimate(0, 10**6, 0.0),
            3,
            "0 images: about 1.0 MB, 0 h 0 min on 3 workers (0.00 CPU s per 1,000 images, measured "
            "here on 0)",
        ),
        (
            None,
            1,
            "no estimate: the decoder does not survive one of the first 48 images; a run leaves it "
            "out",
        ),
    ],
)
def test_the_cost_in_a_line(cost: estimate.Estimate | None, workers: int, line: str) -> None:
    assert estimate.describe(cost, workers) == line


@pytest.mark.parametrize("exists", [False, True])
def test_what_is_there_already_needs_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    """2,000 bytes are free; files in OUT have 300 more, those below it do not count."""
    asked, out, there = list[Path](), tmp_path / "a" / "out", 300 if exists else 0

    def usage(path: Path) -> SimpleNamespace:
        asked.append(path)
        return SimpleNamespace(free=2000)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    if exists:
        (out / WORK).mkdir(parents=True)
        (out / WORK / "x").write_bytes(bytes(50))
        for k in range(3):
            (out / str(k)).write_bytes(bytes(100))
    estimate.refuse_full_disk(out, 2000 + there)
    with pytest.raises(GratisError) as caught:
        estimate.refuse_full_disk(out, 2060 + there)
    assert str(caught.value) == (
        f"{out} needs about 2.1 kB and its disk has 2.0 kB free; choose another OUT or free some"
    )
    assert asked == [out if exists else tmp_path] * 2
