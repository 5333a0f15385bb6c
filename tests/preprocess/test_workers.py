"""A file that crashes or hangs its worker costs itself, not the run."""

from __future__ import annotations

import io
import os
import signal
from pathlib import Path

import pytest
from PIL import Image as Pillow

from preprocess import workers
from preprocess.errors import UserError
from preprocess.listing import Item
from preprocess.shard import ShardTask, read_receipt
from preprocess.store import WORK, open_store
from preprocess.workers import Step, run_tasks


class Deadly(str):
    """A file name that kills the process which opens it, as a defect in a decoder would."""

    def startswith(self, *arguments: object) -> bool:
        os.kill(os.getpid(), signal.SIGSEGV)
        return False


def tasks(root: Path, bad: str) -> list[ShardTask]:
    (root / "out" / WORK).mkdir(parents=True)
    file = io.BytesIO()
    Pillow.new("RGB", (40, 30)).save(file, "JPEG")
    names = ["0.jpg", "1.jpg", bad, "3.jpg"]
    for name in ("0.jpg", "1.jpg", "3.jpg"):
        (root / name).write_bytes(file.getvalue())
    items = tuple(Item(str(root), name, -1, 100, 0, f"k{k}") for k, name in enumerate(names))
    good = tuple(item for item in items if item.name != bad)
    return [
        ShardTask(out=str(root / "out"), split="val", number=number, items=part, size=16, codec="jpeg", quality=90)
        for number, part in enumerate([good, items, good])
    ]


def check(root: Path, planned: list[ShardTask], kind: str) -> None:
    total = Step()
    for step in run_tasks(planned, 2):
        total = total.plus(step)
    assert total[:2] == (9, 10 * 100)
    assert total.rejects == 1
    receipts = [read_receipt(open_store(str(root / "out")), task.name) for task in planned]
    assert [len(receipt.label) for receipt in receipts] == [3, 3, 3]
    assert [(reject["key"], reject["kind"]) for receipt in receipts for reject in receipt.rejects] == [("k2", kind)]


def test_a_crash_costs_one_image(tmp_path: Path) -> None:
    check(tmp_path, tasks(tmp_path, Deadly("2.jpg")), "crashed")


def test_a_hang_costs_one_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "IMAGE_SECONDS", 1.0)
    planned = tasks(tmp_path, "2.jpg")
    os.mkfifo(tmp_path / "2.jpg")  # opening it waits for a writer that never comes
    check(tmp_path, planned, "hung")


def test_kept_processes_serve_the_next_call(tmp_path: Path) -> None:
    planned = tasks(tmp_path, "2.jpg")  # which does not exist: reading the second task's items fails
    kept: list[workers.Worker] = []
    assert sum(step.images for step in run_tasks(planned[:1], 1, kept)) == 3
    before = kept[0]
    assert sum(step.images for step in run_tasks(planned[2:], 1, kept)) == 3
    assert kept == [before]
    with pytest.raises(UserError, match=r"2\.jpg"):
        list(run_tasks(planned[1:2], 1, kept))
    assert kept == []
