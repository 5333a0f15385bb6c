"""How a run ended, read from whole, torn, long and hostile event files."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gratis.errors import GratisError
from gratis.events import EventWriter
from gratis.history import Attempt, attempts, outcome, read_attempt, records

STEP = {"steps": 1, "images": 1, "wall_s": 1.0, "loader": {}}


def writer(folder: Path, attempt: int = 1) -> EventWriter:
    return EventWriter(folder / "rank-0.jsonl", attempt=attempt, rank=0)


def test_an_attempt_from_its_start_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "rank-0.jsonl"
    assert read_attempt(path) == Attempt()
    assert (outcome(tmp_path), attempts(tmp_path)) == (None, 0)
    first = writer(tmp_path)
    first.write("start", {"pid": 1})
    first.write("step", STEP, epoch=3, step=7)
    attempt = read_attempt(path)
    assert (attempt.number, attempt.step, attempt.epoch, attempt.end) == (1, 7, 3, None)
    assert attempt.start is not None
    first.write("end", {"outcome": "preempted"}, epoch=3, step=7)
    first.write("warning", {"message": "after the end"})
    assert (outcome(tmp_path), attempts(tmp_path)) == ("preempted", 1)
    writer(tmp_path, 2).write("start", {"pid": 2})
    attempt = read_attempt(path)
    assert (attempt.number, attempt.step, attempt.epoch, attempt.end) == (2, None, 0, None)
    assert (outcome(tmp_path), attempts(tmp_path)) == (None, 2)
    first.write("end", {"outcome": "failed"})  # by a rank of the earlier attempt that ended late
    assert outcome(tmp_path) is None


def test_a_second_start_of_one_attempt_begins_it_anew(tmp_path: Path) -> None:
    events = writer(tmp_path)
    for _ in range(2):
        events.write("start", {})
        events.write("step", STEP, step=1)
        assert outcome(tmp_path) is None
        events.write("end", {"outcome": "failed"}, step=1)
        assert outcome(tmp_path) == "failed"


@pytest.mark.parametrize("tail", [b'{"v":1,"kind":"st', b"\xff\x00\n[1]\n", b"[" * 5000 + b"\n"])
def test_torn_and_garbage_lines_are_skipped(tmp_path: Path, tail: bytes) -> None:
    events = writer(tmp_path)
    events.write("start", {})
    events.write("end", {"outcome": "finished"}, step=1)
    with (tmp_path / "rank-0.jsonl").open("ab") as file:
        file.write(tail)
    assert (outcome(tmp_path), attempts(tmp_path), len(records(tmp_path))) == ("finished", 1, 2)


def test_a_long_file_is_read_at_its_ends_alone(tmp_path: Path) -> None:
    events, path = writer(tmp_path), tmp_path / "rank-0.jsonl"
    events.write("start", {"pid": 5})
    line = path.read_bytes().replace(b'"kind":"start"', b'"kind":"step","step":1')
    with path.open("ab") as file:
        for _ in range(100):
            file.write(line * 10_000)
    events.write("step", STEP, epoch=2, step=9)
    attempt = read_attempt(path)
    assert attempt.start is not None
    assert (attempt.start["pid"], attempt.step, attempt.epoch) == (5, 9, 2)
    whole = cpu_s(lambda: path.read_bytes().count(b"\n"))
    assert cpu_s(lambda: read_attempt(path)) < whole / 4


def cpu_s(call: Callable[[], object]) -> float:
    """The least of three."""
    taken = []
    for _ in range(3):
        begin = time.process_time()
        call()
        taken.append(time.process_time() - begin)
    return min(taken)


def test_what_is_no_file_has_no_end_and_no_history(tmp_path: Path) -> None:
    (tmp_path / "rank-0.jsonl").mkdir()
    assert outcome(tmp_path) is None
    with pytest.raises(GratisError, match="cannot be read"):
        records(tmp_path)
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "rank-0.jsonl")
    assert outcome(tmp_path / "pipe") is None  # and does not wait for a writer
