"""Long histories and many ranks: who reads them, how much of them, and what is there meanwhile."""

from __future__ import annotations

import gc
import hashlib
import itertools
import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from served import RunWriter, wait_for

from gratis.server import run_reader, summaries
from gratis.server.event_files import RankFile
from gratis.server.intervals import Intervals
from gratis.server.metrics import exposition
from gratis.server.models import IntervalStatus
from gratis.server.run import Run
from gratis.server.run_reader import RunSnapshot
from gratis.server.runs import Runs

STALL_S = 60.0


def cpu_s(work: Callable[[], object]) -> float:
    begin = time.process_time()
    work()
    return time.process_time() - begin


def snapshot_of(runs: Runs) -> RunSnapshot:
    snapshot = runs.snapshot("a")
    assert snapshot is not None
    return snapshot


def level(runs: Runs) -> RunSnapshot:
    """Once all is read, which needs no further request."""
    snapshot_of(runs)
    names = [thread for thread in threading.enumerate() if thread.name == "run-reader"]
    for thread in names:
        thread.join(120)
    time.sleep(run_reader.FRESH_S)  # what was answered before it was level
    snapshot = snapshot_of(runs)
    assert snapshot.status.behind_bytes == 0
    return snapshot


def long_run(path: Path, *, world: int = 1, lines: int = 20_000) -> RunWriter:
    """Each rank trains at 100 images/s in steps of a tenth of a second."""
    run = RunWriter(path, world=world)
    run.start()
    run.step(10)
    for rank in range(world):
        append_steps(path / f"rank-{rank}.jsonl", range(20, 10 * lines + 10, 10))
    return run


def append_steps(file: Path, steps: range) -> None:
    """Its last record again, for each of these."""
    line = json.loads(file.read_bytes().splitlines()[-1])
    before, after = json.dumps(line | {"step": "here"}).split('"here"')
    with file.open("a") as stream:
        stream.writelines(f"{before}{step}{after}\n" for step in steps)


@pytest.fixture
def left_unread(tmp_path: Path) -> Iterator[None]:
    """What is left of run a after the test: else its thread goes on beside the tests behind."""
    yield
    shutil.rmtree(tmp_path / "a")
    for thread in threading.enumerate():
        if thread.name == "run-reader":
            thread.join(60)
            assert not thread.is_alive()


def test_a_request_reads_nothing_itself(tmp_path: Path, left_unread: None) -> None:
    long_run(tmp_path / "a", world=64, lines=50)
    runs = Runs(tmp_path, STALL_S)

    def ask() -> float:
        begin = time.thread_time()
        snapshot_of(runs)
        return time.thread_time() - begin

    own: list[float] = []
    whole = cpu_s(lambda: own.append(ask()))
    assert own[0] < whole / 4


def test_an_interval_more_is_one_row_more(tmp_path: Path) -> None:
    run = long_run(tmp_path / "a", world=3, lines=300)
    files, curve = (
        [RankFile(run.path / f"rank-{rank}.jsonl", rank) for rank in range(3)],
        Intervals(),
    )

    def rows() -> int:
        for file in files:
            file.look()
            while file.read():
                pass
        return len([*curve.update([file.bins for file in files], {1: 0})])

    assert rows() == 300
    for step in (3010, 3020):
        run.step(step)
        assert rows() == 1
        assert curve.upto(0)[-1].step == step
    assert rows() == 0
    again = partial(curve.update, [file.bins for file in files], {1: 0, 2: 500})
    assert len([*itertools.islice(again(), 20)]) == 20  # all anew, and not to the end
    assert len([*again()]) == 302 - 20  # of which attempt 2 supersedes what is behind step 500
    assert [one.step for one in curve.upto(0)] == [*range(10, 510, 10)]
    assert len([*again()]) == 0  # what is superseded is looked at once


def test_the_collector_is_not_told_of_every_run_that_comes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is garbage at such a moment would stay for good."""
    told = list[float]()
    monkeypatch.setattr(run_reader, "leave_out_all", lambda: told.append(time.monotonic()))
    names = [f"run-{number}" for number in range(run_reader.CACHED + 2)]
    for name in names:
        run = RunWriter(tmp_path / name)
        run.start()
        run.step(10)
    runs = Runs(tmp_path, STALL_S)
    for name in names * 3:
        assert runs.snapshot(name) is not None
    assert len(told) == run_reader.CACHED


def test_intervals_are_the_same_read_at_once_or_as_they_grow(tmp_path: Path) -> None:
    """Also where ranks are apart, attempts resume, a rank joins, and bins become wider."""
    rng, reader = np.random.default_rng(5), Run(tmp_path / "a")

    def compare() -> None:
        reader.refresh(60)
        other = Run(tmp_path / "a")
        other.refresh(60)
        assert reader.intervals() == other.intervals()

    seen: list[IntervalStatus] = []
    for attempt, (world, begin, end) in enumerate([(2, 1, 500), (2, 400, 600), (3, 550, 1200)], 1):
        run = RunWriter(tmp_path / "a", world=world, attempt=attempt)
        run.start()
        order = [*itertools.product(range(begin, end), run.writers)]
        keys = [step + rng.uniform(0, 3) for step, _ in order]  # ranks are some steps apart
        last = {id(writer): 0 for writer in run.writers}
        for place in np.argsort(keys, kind="stable").tolist():
            step, writer = order[place]
            if step < last[id(writer)]:
                continue
            last[id(writer)] = step
            loss = float(rng.uniform(0, 2))
            writer.write("step", {"steps": 1, "wall_s": 1.0, "images": 5, "loss": loss}, step=step)
            if rng.uniform() < 0.005:
                compare()
        compare()
        seen = reader.intervals()
    assert [one.attempt for one in seen] == sorted(one.attempt for one in seen)
    assert seen[-1].step == 1199
    assert seen[0].first_step == 1


def test_a_history_is_read_without_being_asked_and_all_ranks_alike(tmp_path: Path) -> None:
    long_run(tmp_path / "a", world=3, lines=3000)
    reader = Run(tmp_path / "a")
    for _ in range(4):
        reader.refresh(0)  # a block
    assert reader.behind
    read = [file.tail.offset for file in reader.ranks.values()]
    assert max(read) - min(read) <= 256 << 10
    assert level(Runs(tmp_path, STALL_S)).counters[2].steps == 30_000


def test_while_a_history_is_read_the_newest_is_there(tmp_path: Path) -> None:
    """And no counter, which would look like a restart."""
    run = long_run(tmp_path / "a", world=2, lines=4000)
    run.writers[0].write("warning", {"message": "careful"})
    runs = Runs(tmp_path, STALL_S)
    snapshot = snapshot_of(runs)
    assert snapshot.status.behind_bytes > 0
    text = exposition(runs, "text/plain")[0].decode()
    assert 'gratis_step{run="a"} 40000.0' in text
    assert 'gratis_planned_steps{run="a"} 200.0' in text
    assert 'gratis_run_state{run="a",state="running"} 1.0' in text
    assert 'gratis_images_per_second{run="a"}' not in text
    assert 'gratis_trainer_images_per_second{run="a"} 200.0' in text
    assert 'gratis_resident_memory_bytes{rank="1",run="a"}' in text
    assert "_total{" not in text
    status = snapshot.status
    assert (status.state, status.startup, status.warnings) == ("running", None, ["careful"])
    status = level(runs).status
    assert (status.images_trained, status.step) == (2 * 4000 * 1000, 40_000)
    assert "gratis_trained_images_total{" in exposition(runs, "text/plain")[0].decode()


@pytest.fixture
def no_garbage() -> Iterator[None]:
    """Nobody looks for garbage: of all tests before there may be much."""
    gc.disable()
    yield
    gc.enable()


def test_no_answer_costs_what_reading_does(
    tmp_path: Path, no_garbage: None, left_unread: None
) -> None:
    """Neither the first one, nor any while the histories of many ranks are read."""
    long_run(tmp_path / "a", world=128, lines=120)
    whole = cpu_s(lambda: Run(tmp_path / "a").refresh())
    runs = Runs(tmp_path, STALL_S)
    for answer in range(4):
        assert cpu_s(lambda: snapshot_of(runs)) < whole / 4, answer
        time.sleep(run_reader.FRESH_S)


def test_reading_takes_its_share_of_a_core_and_no_more(tmp_path: Path, left_unread: None) -> None:
    long_run(tmp_path / "a", world=4, lines=10_000)
    runs, others = Runs(tmp_path, STALL_S), {*threading.enumerate()}
    snapshot_of(runs)
    (reader,) = {*threading.enumerate()} - others
    clock = Path(f"/proc/self/task/{reader.native_id}/schedstat")

    def look() -> NDArray[np.float64]:
        """Seconds: on the wall, of a core, and waited for one."""
        used, waited, _ = (int(number) / 1e9 for number in clock.read_text().split())
        return np.array([time.monotonic(), used, waited])

    begin = look()
    time.sleep(1.5)
    wall_s, used_s, waited_s = look() - begin
    assert snapshot_of(runs).status.behind_bytes > 0
    # of a busy machine one that never pauses gets little more than its share, and waits for the
    # rest; if it gets less there is no pause to be seen
    if used_s < 1.2 * run_reader.SHARE * (used_s + waited_s):
        pytest.skip(f"too busy: {used_s:.2f} s of a core came after {waited_s:.2f} s of waiting")
    assert 0.02 < used_s / wall_s < 1.25 * run_reader.SHARE
    assert used_s + waited_s < 0.9 * wall_s


def test_what_is_new_is_seen_while_a_history_is_read(tmp_path: Path, left_unread: None) -> None:
    run = long_run(tmp_path / "a", world=4)
    runs = Runs(tmp_path, STALL_S)
    for step in (200_010, 200_020):
        assert snapshot_of(runs).status.step == step - 10
        run.step(step)
        time.sleep(run_reader.FRESH_S)
        assert snapshot_of(runs).status.step == step
        time.sleep(run_reader.FRESH_S)
        assert snapshot_of(runs).status.behind_bytes > 0


def test_counters_and_curves_stay_while_much_is_caught_up_on(tmp_path: Path) -> None:
    """As of when all was read last, and never lower than before."""
    long_run(tmp_path / "a", lines=100)
    runs = Runs(tmp_path, STALL_S)
    before = level(runs)
    append_steps(tmp_path / "a" / "rank-0.jsonl", range(1010, 80_010, 10))
    time.sleep(run_reader.FRESH_S)
    snapshot = snapshot_of(runs)
    assert snapshot.status.behind_bytes > 0
    assert snapshot.status.step == 80_000
    assert (snapshot.counters, snapshot.intervals) == (before.counters, before.intervals)
    text = exposition(runs, "text/plain")[0].decode()
    assert 'gratis_trained_images_total{rank="0",run="a"} 100000.0' in text
    assert level(runs).counters[0].steps == 80_000


def test_many_short_files_have_summaries(tmp_path: Path) -> None:
    runs, kept = tmp_path / "runs", tmp_path / "cache"
    run = long_run(runs / "a", world=8, lines=700)
    sizes = [path.stat().st_size for path in run.path.iterdir()]
    assert max(sizes) < 1 << 20
    level(Runs(runs, STALL_S, kept))
    assert len([*kept.glob("*.json")]) == 8
    before = read_bytes()
    again = level(Runs(runs, STALL_S, kept))
    assert read_bytes() - before < sum(sizes) / 2  # the summaries too
    assert content(again) == content(level(Runs(runs, STALL_S)))


def read_bytes() -> int:
    """That this process has read, of files too."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("rchar"))


def test_a_list_of_runs_reads_those_that_grew(tmp_path: Path) -> None:
    """Of runs of other hosts, of which nobody here knows whether they go on."""
    writers = [RunWriter(tmp_path / f"run-{number}") for number in range(40)]
    for run in writers:
        run.start()
        run.step(10)
        path = run.path / "rank-0.jsonl"
        path.write_text(path.read_text().replace('"pid_namespace":', '"pid_namespace":1'))
    runs, read = Runs(tmp_path, STALL_S), []
    for step in (20, 30):
        writers[7].step(step)
        before = read_bytes()
        listing = {run.name: run.step for run in runs.listing().runs}
        read.append(read_bytes() - before)
        assert (len(listing), listing["run-7"], listing["run-8"]) == (40, step, 10)
        time.sleep(run_reader.FRESH_S)
    assert read[1] < read[0] / 10


def content(snapshot: RunSnapshot) -> tuple[object, ...]:
    return json.loads(snapshot.json_without_ages), snapshot.intervals, snapshot.counters


@pytest.fixture
def summed_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Summaries are worth it from 128 KiB of events on, some 200 records."""
    monkeypatch.setattr(summaries, "WORTH", 128 << 10)


def test_a_server_goes_on_from_a_summary(tmp_path: Path, summed_early: None) -> None:
    runs, kept = tmp_path / "runs", tmp_path / "cache"
    run = long_run(runs / "a", world=2, lines=2000)
    run.writers[0].write("eval", {"views": 1, "images": 9, "top1": 0.5}, epoch=3, step=100)
    size = sum(path.stat().st_size for path in run.path.iterdir())
    level(Runs(runs, STALL_S, kept))
    run.step(20_010)
    before = read_bytes()
    again = level(Runs(runs, STALL_S, kept))
    assert read_bytes() - before < size / 3
    assert content(again) == content(level(Runs(runs, STALL_S)))
    assert again.status.evaluations[0].top1_error == 0.5
    second = RunWriter(run.path, attempt=2, world=2)  # and on, into the next attempt
    second.start()
    second.step(15_000)
    anew = Runs(runs, STALL_S, kept)
    assert content(level(anew)) == content(level(Runs(runs, STALL_S)))


def other_bytes(summary: Path, events: Path) -> None:
    data = events.read_bytes()
    events.write_bytes(data.replace(b'"loss": 2.0', b'"loss": 1.0'))


def shorter(summary: Path, events: Path) -> None:
    data = events.read_bytes()
    events.write_bytes(data[: data.rindex(b"\n", 0, len(data) // 2) + 1])


def cut(summary: Path, events: Path) -> None:
    summary.write_bytes(summary.read_bytes()[:-100])


def nonsense(summary: Path, events: Path) -> None:
    summary.write_text('{"offset": 5, "mark": [1]}')


def rewrite(summary: Path, **fields: object) -> None:
    text = json.dumps(json.loads(summary.read_text().partition("\n")[2]) | fields)
    summary.write_text(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")


def of_another_version(summary: Path, events: Path) -> None:
    rewrite(summary, version=0)


def half_of_its_fields(summary: Path, events: Path) -> None:
    rewrite(summary, bins=[[1, 2]])


def damaged_values(summary: Path, events: Path) -> None:
    """That are JSON still."""
    data = re.sub(rb'"lifetime": \[[\d.]+', b'"lifetime": ["x"', summary.read_bytes())
    assert b'["x"' in data
    summary.write_bytes(data)


def a_folder(summary: Path, events: Path) -> None:
    summary.unlink()
    summary.mkdir()


@pytest.mark.parametrize(
    "harm",
    [
        other_bytes,
        shorter,
        cut,
        nonsense,
        of_another_version,
        half_of_its_fields,
        damaged_values,
        a_folder,
    ],
)
def test_a_summary_of_something_else_does_not_count(
    tmp_path: Path, summed_early: None, harm: Callable[[Path, Path], None]
) -> None:
    runs, kept = tmp_path / "runs", tmp_path / "cache"
    long_run(runs / "a", lines=400)
    level(Runs(runs, STALL_S, kept))
    harm(next(kept.glob("*.json")), runs / "a" / "rank-0.jsonl")
    assert content(level(Runs(runs, STALL_S, kept))) == content(level(Runs(runs, STALL_S)))


def test_old_summaries_go_and_a_cache_that_cannot_be_written_is_none(
    tmp_path: Path, summed_early: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, kept = tmp_path / "runs", tmp_path / "cache"
    long_run(runs / "a", lines=1000)
    kept.mkdir()
    (kept / "x.json").write_text("{}")
    monkeypatch.setattr(summaries, "KEPT_S", -60.0)
    level(Runs(runs, STALL_S, kept))
    assert not (kept / "x.json").exists()
    (tmp_path / "file").write_text("")
    assert level(Runs(runs, STALL_S, tmp_path / "file" / "cache")).status.step == 10_000


def test_the_thread_that_reads_ends_and_comes_again(tmp_path: Path) -> None:
    run = RunWriter(tmp_path / "a")
    run.start()
    run.step(10)
    runs = Runs(tmp_path, STALL_S)

    def shown(step: int) -> bool:
        return snapshot_of(runs).status.step == step

    for step in (20, 30):
        run.step(step)
        assert wait_for(partial(shown, step))
        assert wait_for(lambda: all(one.name != "run-reader" for one in threading.enumerate()))
