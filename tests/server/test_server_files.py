"""What the server reads of a run's folder: files as they grow, their ends, their summaries. Without
the thread that reads for it."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import TypeVar

import pytest
from served import RunWriter

from gratis.events import EventWriter
from gratis.history import TAIL
from gratis.server import summaries
from gratis.server.event_files import EventFile, RankFile, ShardFile
from gratis.server.run import Run
from gratis.server.runs import MAX_PICTURE, Runs
from gratis.server.summaries import Summaries, user_cache

DAY_S = 86400.0


File = TypeVar("File", bound=EventFile)


def read(file: File) -> File:
    """To its end."""
    assert file.look()
    while file.read():
        pass
    return file


def a_rank(tmp_path: Path) -> Path:
    """A resumed run's file, with one record of each kind."""
    for attempt, step in ((1, 30), (2, 20)):
        run = RunWriter(tmp_path / "a", attempt=attempt)
        run.start()
        for newest in range(10, step + 10, 10):
            run.step(newest)
    writer = run.writers[0]
    writer.write("eval", {"views": 1, "images": 9, "top1": 0.5}, epoch=3, step=20)
    writer.write("receipt", {"images": 7})
    writer.write("checkpoint", {"step": 20})
    writer.write("warning", {"message": "cold"})
    return run.path / "rank-0.jsonl"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of summaries, which are worth it from 1,000 bytes on."""
    monkeypatch.setattr(summaries, "WORTH", 1000)
    return tmp_path / "cache"


def test_a_file_goes_on_from_its_summary_as_if_it_had_been_read(
    tmp_path: Path, cache: Path
) -> None:
    path = a_rank(tmp_path)
    file, kept = read(RankFile(path, 0)), Summaries(cache)
    assert kept.save(file)
    assert not kept.save(file)  # nothing has come since
    again = RankFile(path, 0)
    assert again.look()
    Summaries(cache).restore(again)
    assert again.tail.offset == path.stat().st_size
    with path.open("a") as stream:
        stream.write("garbage\n")
    for one in (again, file):
        read(one)
        assert one.tail.garbage == 1
        assert one.window() == file.counters.rest
        assert (one.step, one.resumes, one.evaluated) == (20, {1: 0, 2: 0}, 1)
        assert (one.attempt.number, one.attempt.step) == (2, 20)
        assert list(one.warnings) == ["cold"]
        assert one.lifetime.images == 5000
        assert one.counters.rest.images == 1000
        assert one.evals[3, 1][:2] == (20, 2)
        assert one.receipt is not None
        assert one.receipt["images"] == 7
        assert one.checkpoint is not None
        assert one.checkpoint["step"] == 20
    assert json.dumps(again.summary()) == json.dumps(file.summary())


def test_a_summary_of_other_bytes_or_of_none_is_not_taken(tmp_path: Path, cache: Path) -> None:
    path = a_rank(tmp_path)
    assert Summaries(cache).save(read(RankFile(path, 0)))
    (summary,) = cache.iterdir()
    whole, events = summary.read_bytes(), path.read_bytes()

    def restored() -> int:
        file = RankFile(path, 0)
        file.look()
        Summaries(cache).restore(file)
        return file.tail.offset

    assert restored() == len(events)
    for number in (300, len(events) - 300):  # near either end
        path.write_bytes(events[:number] + b"#" + events[number + 1 :])
        assert restored() == 0
    path.write_bytes(events)
    for text in (b"{}", b"[]", b'{"mark": 1}', whole.partition(b"\n")[2].replace(b"cold", b"warm")):
        summary.write_bytes(hashlib.sha256(text[:-4] + b"warm").hexdigest().encode() + b"\n" + text)
        assert restored() == 0
        summary.write_bytes(hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
        assert restored() == (len(events) if b"warm" in text else 0)


def test_summaries_of_a_month_ago_go(tmp_path: Path, cache: Path) -> None:
    cache.mkdir()
    ages = {"old.json": 31, "old.json.tmp": 31, "new.json": 29, "old.txt": 31}
    for name, days in ages.items():
        (cache / name).write_text("")
        os.utime(cache / name, (time.time() - days * DAY_S,) * 2)
    file = read(RankFile(a_rank(tmp_path), 0))
    assert Summaries(cache).save(file)
    assert {"new.json", "old.txt"} == ages.keys() & {path.name for path in cache.iterdir()}
    assert not Summaries(None).save(file)
    (tmp_path / "file").write_text("")
    assert Summaries(tmp_path / "file" / "cache").save(file)  # nowhere, without an error


def test_where_summaries_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for value, folder in (("/elsewhere", Path("/elsewhere")), ("", tmp_path / ".cache")):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert user_cache() == folder / "gratis" / "status"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert user_cache() == tmp_path / ".cache" / "gratis" / "status"


def test_the_start_of_the_shard_stage_says_how_far_it_is(tmp_path: Path) -> None:
    path = tmp_path / "shards.jsonl"
    EventWriter(path, attempt=2, rank=0).write("start", {"done": 7, "total": 100})
    file = read(ShardFile(path))
    assert (file.done, file.total, file.rejects) == (7, 100, 0)


def test_files_that_stay_are_read_on_and_no_others(tmp_path: Path) -> None:
    writer = RunWriter(tmp_path / "a", world=2)
    writer.start()
    EventWriter(writer.path / "shards.jsonl", attempt=1, rank=0).write("start", {})
    (writer.path / "notes.txt").write_text("")
    run = Run(writer.path)
    run.refresh()
    before = run.files()
    names = {file.path.name for file in before}
    assert names == {"rank-0.jsonl", "rank-1.jsonl", "shards.jsonl"}
    writer.step(10)
    run.refresh()
    assert run.files() == before
    assert [file.step for file in run.latest_ranks()] == [10, 10]
    (writer.path / "rank-1.jsonl").unlink()
    run.refresh()
    assert list(run.ranks) == [0]
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.txt").write_text("")
    other = Run(tmp_path / "b")
    other.refresh()
    assert other.files() == []


def test_ranks_outside_the_newest_world_are_left_out(tmp_path: Path) -> None:
    for rank in range(3):
        writer = EventWriter(tmp_path / f"rank-{rank}.jsonl", attempt=1, rank=rank)
        writer.write("start", {"world": 2})
    run = Run(tmp_path)
    run.refresh()
    assert [file.rank for file in run.latest_ranks()] == [0, 1]


def far_run(path: Path, steps: int) -> RunWriter:
    """Of more than a block of events."""
    run = RunWriter(path)
    run.start()
    for step in range(10, steps + 10, 10):
        run.step(step)
    return run


def test_the_end_of_a_long_file_is_known_before_all_is_read(tmp_path: Path) -> None:
    writer = far_run(tmp_path / "a", 3000)
    assert (writer.path / "rank-0.jsonl").stat().st_size > 5 * TAIL
    run = Run(writer.path)
    assert (run.seen, run.far) == (True, False)  # nothing is there to be seen yet
    run.refresh(cpu_s=0)
    assert (run.seen, run.far, run.unfinished, run.level) == (True, True, True, False)
    (end,) = run.latest_ranks()
    assert (end.step, end.attempt.number, end.attempt.start is not None) == (3000, 1, True)
    writer.step(3010)
    run.refresh(cpu_s=0)
    assert run.latest_ranks() == [end]
    assert end.step == 3010
    (writer.path / "rank-0.jsonl").rename(writer.path / "before")
    far_run(writer.path, 2000)  # another file of the name
    run.refresh(cpu_s=0)
    assert [file.step for file in run.latest_ranks()] == [2000]
    run.refresh()
    assert (run.level, run.far, run.behind, run.unfinished) == (True, False, 0, False)
    assert run.counters[0].images == 200_000


def test_the_newest_run_comes_first(tmp_path: Path) -> None:
    for name, updated in (("b", 100), ("d", 300), ("a", 200), ("c", 300)):
        RunWriter(tmp_path / name).start()
        os.utime(tmp_path / name / "rank-0.jsonl", (updated, updated))
    runs = Runs(tmp_path, 60.0)
    assert [run.name for run in runs.listing().runs] == ["c", "d", "a", "b"]


def test_a_picture_is_a_small_jpeg_of_the_run_s_own(tmp_path: Path) -> None:
    path = RunWriter(tmp_path / "a").path
    picture, runs = path / "latest.jpg", Runs(tmp_path, 60.0)
    assert runs.picture("a") is None
    jpeg = b"\xff\xd8\xff" + bytes(MAX_PICTURE - 3)
    for data, shown in ((jpeg, jpeg), (jpeg + b"\0", None), (b"GIF89a", None), (b"", None)):
        picture.write_bytes(data)
        assert runs.picture("a") == shown
    assert runs.picture("b") is None
    picture.write_bytes(jpeg)
    picture.rename(tmp_path / "other.jpg")
    picture.symlink_to(tmp_path / "other.jpg")
    assert runs.picture("a") is None
    picture.unlink()
    os.mkfifo(picture)
    assert runs.picture("a") is None
