"""Memory does not grow with the number of images: ILSVRC2012's and ImageNet's counts, listed and
planned for real."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.starts

ROOT = Path(__file__).resolve().parent.parent.parent
# what a run holds at once: the listing with its check for clashes, the shuffle, and the task of one
# shard
PLAN = """
import sys
from gratis.preprocess.sources.listing import ListingBuilder
from gratis.preprocess.stages.plan import draft_manifest, make_task, slices
from gratis.preprocess.sources.source import Source
from gratis.dataset import ImageClass

count, classes = int(sys.argv[1]), int(sys.argv[2])
wnids = tuple(f"n{k:08d}" for k in range(classes))
builder = ListingBuilder(wnids, official=True)
builder.containers.append("ILSVRC2012_img_train.tar")
for row in range(count):
    label = row * classes // count
    builder.add(f"{wnids[label]}_{row}.JPEG", 1024 + row * 110_000, 109_527, label)
listing = builder.build()
source = Source(classes=tuple(ImageClass(wnid=w, words=w, ilsvrc_id=None) for w in wnids),
                splits={"train": listing}, skipped=())
draft = draft_manifest(source, size=256, codec="jpeg", quality=95, samples_per_shard=1000)
parts = list(slices(source, draft))
assert sum(len(part.rows) for part in parts) == count
for part in parts[:: max(1, len(parts) // 50)]:
    task = make_task(part, source, draft, "o")
    assert all(item.offset == 1024 + int(row) * 110_000 for item, row in zip(task.items, part.rows))
"""

# the reduce of as many images: receipts as workers write them, but for small sums (one of 256 px
# has 0.8 MB, and the reduce holds one at a time)
REDUCE = """
import sys
from pathlib import Path
import numpy as np
from gratis import dataset
from gratis.preprocess.stages.plan import draft_manifest
from gratis.preprocess.stages.publish import publish
from gratis.preprocess.output.receipt import ShardReceipt, write_receipt
from gratis.preprocess.sources.source import Source
from gratis.preprocess.statistics import PixelSums
from gratis.preprocess.output.store import WORK, open_store
from gratis.dataset import ImageClass

count, classes, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
(Path(out) / WORK).mkdir(parents=True)
store = open_store(out)
wnids = [f"n{k:08d}" for k in range(classes)]
kinds = tuple(ImageClass(wnid=w, words=w, ilsvrc_id=None) for w in wnids)
source = Source(classes=kinds, splits={}, skipped=())
rng, names = np.random.default_rng(0), []
for begin in range(0, count, 1000):
    n, name = min(1000, count - begin), f"train-{len(names):05d}"
    names.append(name)
    sums = PixelSums(n, n * 256, np.full((16, 16, 3), 100 * n), np.diag([n * 256 * 10_000 + 9] * 3))
    sizes = rng.integers(10_000, 60_000, n).astype(np.int32)
    labels = rng.integers(0, classes, n).astype(np.int32)
    total, ends = int(sizes.sum()), np.cumsum(sizes, dtype=np.int64)
    receipt = ShardReceipt(ends, sizes, labels, total, "0" * 64, {"greyscale": 9}, [], sums)
    write_receipt(store, name, receipt)
draft = draft_manifest(source, size=16, codec="jpeg", quality=95, samples_per_shard=1000)
manifest = publish(store, draft, {"train": names}, 0)
index = dataset.read_index(Path(out), "train")
assert manifest.splits["train"].samples == count == len(index.label)
assert manifest.splits["train"].conversions == {"greyscale": 9 * len(names)}
"""
SIZES = [
    pytest.param(1_331_167, 1000, marks=pytest.mark.slow),
    pytest.param(14_197_122, 21_841, marks=pytest.mark.prove),
]


@pytest.mark.parametrize(("images", "classes"), SIZES)
def test_planning_stays_under_two_gigabytes(images: int, classes: int) -> None:
    check_memory(PLAN, images, classes)


@pytest.mark.parametrize(("images", "classes"), SIZES)
def test_the_reduce_stays_under_two_gigabytes(images: int, classes: int, tmp_path: Path) -> None:
    check_memory(REDUCE, images, classes, tmp_path)


# not ru_maxrss, which begins with that of the process that started this one
PEAK = """
lines = open("/proc/self/status").read().splitlines()
print(next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")))
"""


def check_memory(program: str, *arguments: object) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program + PEAK, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    print(f"{arguments[0]:,} images: {int(done.stdout) / 2**30:.2f} GiB")
    assert int(done.stdout) < 2 << 30
