"""A file that crashes or hangs its worker costs itself, not the run."""

from __future__ import annotations

import io
import multiprocessing as mp
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image as Pillow

from gratis.errors import GratisError
from gratis.preprocess.execution import workers
from gratis.preprocess.execution.workers import ReportProgress, TaskProgress, run_tasks
from gratis.preprocess.output.receipt import read_receipt
from gratis.preprocess.output.store import WORK, open_store
from gratis.preprocess.sources.listing import Item
from gratis.preprocess.stages.shard import ShardTask

pytestmark = pytest.mark.starts

ROOT = Path(__file__).resolve().parent.parent.parent


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
    size = len(file.getvalue())
    items = tuple(Item(str(root), name, -1, size, 0, f"k{k}") for k, name in enumerate(names))
    good = tuple(item for item in items if item.name != bad)
    return [
        ShardTask(
            out=str(root / "out"),
            split="val",
            number=number,
            items=part,
            size=16,
            codec="jpeg",
            quality=90,
        )
        for number, part in enumerate([good, items, good])
    ]


def check(root: Path, planned: list[ShardTask], kind: str) -> None:
    total = TaskProgress()
    for step in run_tasks(planned, 2):
        total = total.plus(step)
    assert total[:2] == (9, 10 * planned[0].items[0].size)
    assert total.rejects == 1
    receipts = [read_receipt(open_store(str(root / "out")), task.name) for task in planned]
    assert [len(receipt.label) for receipt in receipts] == [3, 3, 3]
    assert [
        (reject["key"], reject["kind"]) for receipt in receipts for reject in receipt.rejects
    ] == [("k2", kind)]


def test_a_crash_costs_one_image(tmp_path: Path) -> None:
    check(tmp_path, tasks(tmp_path, Deadly("2.jpg")), "crashed")


def test_a_hang_costs_one_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "IMAGE_SECONDS", 1.0)
    planned = tasks(tmp_path, "2.jpg")
    os.mkfifo(tmp_path / "2.jpg")  # opening it waits for a writer that never comes
    check(tmp_path, planned, "hung")


def test_kept_processes_serve_the_next_call(tmp_path: Path) -> None:
    # which does not exist: reading the second task's items fails
    planned = tasks(tmp_path, "2.jpg")
    kept: list[workers.Worker] = []
    assert sum(step.images for step in run_tasks(planned[:1], 1, kept)) == 3
    before = kept[0]
    assert sum(step.images for step in run_tasks(planned[2:], 1, kept)) == 3
    assert kept == [before]
    with pytest.raises(GratisError, match=r"2\.jpg"):
        list(run_tasks(planned[1:2], 1, kept))
    assert kept == []


@dataclass(frozen=True)
class Dying:
    """Work that ends outside any image, by an exception or a signal."""

    name: str
    fate: str

    def make(self, begin: Callable[[int], None], report: ReportProgress) -> None:
        if self.fate == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ArithmeticError(self.fate)

    def exclude(self, position: int, cause: str) -> Dying:
        raise AssertionError(position)


@pytest.mark.parametrize(
    ("fate", "message"),
    [
        ("two and two", "ArithmeticError: two and two"),
        ("killed", "signal 9; is the machine out of memory?"),
    ],
)
def test_the_message_says_why_workers_died(fate: str, message: str) -> None:
    with pytest.raises(GratisError) as caught:
        list(run_tasks([Dying("train-00003", fate)], 1))
    assert str(caught.value) == f"workers died 2 times outside any image of train-00003: {message}"


class Untimely(Dying):
    """Work whose worker is killed while it still starts, as for memory."""

    def __reduce__(self) -> tuple[type[Dying], tuple[str, str]]:
        for process in mp.active_children():
            process.kill()
        return Dying, (self.name, self.fate)


def test_a_worker_killed_before_it_begins_is_reported_as_killed() -> None:
    with pytest.raises(
        GratisError, match=r"train-00003: signal 9; is the machine out of memory\?$"
    ):
        list(run_tasks([Untimely("train-00003", "")], 1))


def test_a_limit_below_the_workers_own_is_kept(tmp_path: Path) -> None:
    """As a batch scheduler sets one; the image is still made."""
    planned = tasks(tmp_path, "2.jpg")[:1]
    program = (
        "import sys, pickle; from gratis.preprocess.execution.workers import run_tasks\n"
        "if __name__ == '__main__': print(sum(s.images for s in "
        "run_tasks(pickle.load(sys.stdin.buffer), 1)))"
    )
    (tmp_path / "run.py").write_text(program)
    done = subprocess.run(
        ["bash", "-c", f'ulimit -v {6 << 20}; exec "$0" "$1"', sys.executable, tmp_path / "run.py"],
        input=pickle.dumps(planned),
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == (b"3\n", b"")


def test_a_script_without_a_main_guard_is_an_error(tmp_path: Path) -> None:
    """Each worker imports it, and would start workers."""
    (tmp_path / "train" / "a").mkdir(parents=True)
    Pillow.new("RGB", (40, 30)).save(tmp_path / "train" / "a" / "1.jpg")
    config = f"ShardsConfig(src={str(tmp_path)!r}, out={str(tmp_path) + '-out'!r}, size=16)"
    script = tmp_path / "script.py"
    script.write_text(f"from gratis.preprocess.shards import *\nmake_shards({config})\n")
    done = subprocess.run(
        [sys.executable, script],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.endswith(f"GratisError: {workers.NO_MAIN_GUARD}\n")
    assert not (tmp_path.parent / f"{tmp_path.name}-out").exists()
