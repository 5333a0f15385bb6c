"""Memory does not grow with the number of images: ILSVRC2012's and ImageNet's counts, listed and planned for real."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
# what a run holds at once: the listing with its check for clashes, the shuffle, and the task of one shard
PLAN = """
import resource, sys
from preprocess.listing import ListingBuilder
from preprocess.plan import shuffled, make_task, slices, Plan
from preprocess.shards import ShardsConfig, _draft
from preprocess.sources import Source
from preprocess.dataset import ImageClass

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
draft = _draft(ShardsConfig(src="s", out="o"), source)
parts = list(slices(source, draft))
assert sum(len(part.rows) for part in parts) == count
for part in parts[:: max(1, len(parts) // 50)]:
    task = make_task(part, source, draft, "o")
    assert all(item.offset == 1024 + int(row) * 110_000 for item, row in zip(task.items, part.rows))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.parametrize(
    ("images", "classes"),
    [
        pytest.param(1_331_167, 1000, marks=pytest.mark.slow),
        pytest.param(14_197_122, 21_841, marks=pytest.mark.prove),
    ],
)
def test_planning_stays_under_two_gigabytes(images: int, classes: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PLAN, str(images), str(classes)],
        cwd=ROOT, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    print(f"{images:,} images: {int(done.stdout) / 2**30:.2f} GiB")
    assert int(done.stdout) < 2 << 30
