"""Which run the reading thread turns to, by a clock that waits for nobody; and how long what it has
read is fresh."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gratis.events import EventWriter
from gratis.server.run_reader import CACHED, HeldRun, RunReader
from gratis.server.summaries import Summaries

NOW = 1000.0


class Clock(threading.Condition):
    """Goes on by what is waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.waited = NOW, list[float]()

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> bool:
        assert timeout is not None
        self.waited.append(timeout)
        self.now += timeout
        return bool(predicate())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    fake = SimpleNamespace(monotonic=lambda: clock.now, thread_time=lambda: 0.0)
    monkeypatch.setattr("gratis.server.run_reader.time", fake)
    monkeypatch.setattr("gratis.server.run_reader.IDLE_S", 120.0)  # as it is outside of tests
    return clock


def held(
    *, asked: float = NOW, looked: float = NOW, read: float = NOW, unfinished: bool = False
) -> HeldRun:
    run: Any = SimpleNamespace(unfinished=unfinished)
    return HeldRun(run, asked, looked, read)


def reader(clock: Clock, *runs: HeldRun) -> RunReader:
    made = RunReader(60.0, Summaries())
    made._changed = clock
    made._thread = threading.current_thread()
    made._held.update({Path(str(k)): run for k, run in enumerate(runs)})
    return made


def test_a_run_is_waited_for_until_it_was_read_since() -> None:
    assert held(read=NOW - 0.1).waited_for
    assert not held(read=NOW).waited_for
    assert not held(read=NOW + 1).waited_for
    assert HeldRun(held().run, 0.0).waited_for  # a new one


def test_whoever_is_waited_for_comes_first_the_longest_not_looked_at(clock: Clock) -> None:
    idle = held(looked=NOW - 500, unfinished=True)
    later, first = held(read=0, looked=NOW - 5), held(read=0, looked=NOW - 6)
    assert reader(clock, idle, later, first)._next() is first
    assert clock.waited == []


def test_then_what_is_not_read_to_its_end_unless_it_cannot_be(clock: Clock) -> None:
    bad = held(looked=NOW - 900, unfinished=True)
    bad.error = OSError()
    later, first = (held(looked=NOW - k, unfinished=True) for k in (5, 6))
    old = held(looked=NOW - 700)
    assert reader(clock, bad, old, later, first)._next() is first
    assert reader(clock, bad, held(looked=NOW - 950))._next().looked == NOW - 950  # type: ignore[union-attr]


def test_then_one_a_second_while_somebody_asks(clock: Clock) -> None:
    one, other = held(looked=NOW - 0.7), held(looked=NOW - 0.2)
    made = reader(clock, other, one)
    assert made._next() is one
    assert clock.waited == pytest.approx([0.3])
    one.looked = clock.now
    assert made._next() is other
    assert clock.waited == pytest.approx([0.3, 0.5])


def test_without_requests_for_two_minutes_the_thread_ends(clock: Clock) -> None:
    old = held(asked=NOW - 120, looked=NOW - 500)
    made = reader(clock, old)
    assert made._next() is None
    assert made._thread is None
    newer = held(asked=NOW - 119.9, looked=NOW - 3)
    made = reader(clock, old, newer)
    assert made._next() is newer
    assert made._thread is not None
    newer.looked = NOW
    assert made._next() is None  # the second that it would wait is one too many
    unfinished = held(asked=0, looked=NOW, unfinished=True)
    assert reader(clock, old, unfinished)._next() is unfinished


def make_run(folder: Path) -> Path:
    writer = EventWriter(folder / "rank-0.jsonl", attempt=1, rank=0)
    writer.write("start", {"run": folder.name})
    writer.close()
    return folder


def test_requests_at_once_share_a_read_and_later_ones_do_not(tmp_path: Path) -> None:
    made, path = RunReader(60.0, Summaries()), make_run(tmp_path / "a")
    first = made.snapshot(path)
    one = made._held[path]
    one.read = one.asked = one.read + 1000  # by its clock nothing has gone by since
    assert made.snapshot(path) is first
    one.read = one.asked = one.read - 2000
    again = made.snapshot(path)
    assert again is not first
    assert again.status.name == first.status.name == "a"
    assert (again.json, again.intervals_json) == (
        again.status.model_dump_json(),
        '{"intervals":[]}',
    )


def test_so_many_runs_are_held(tmp_path: Path) -> None:
    """The least recently asked for goes, unless somebody waits for it."""
    made = RunReader(60.0, Summaries())
    paths = [make_run(tmp_path / str(k)) for k in range(CACHED + 3)]
    for path in paths[:CACHED]:
        made.snapshot(path)
    made.snapshot(paths[0])
    made.snapshot(paths[CACHED])
    assert [*made._held] == [*paths[2:CACHED], paths[0], paths[CACHED]]


def test_what_cannot_be_read_is_an_error_for_whoever_asks(tmp_path: Path) -> None:
    """And is read again for whoever asks later."""
    made, path = RunReader(60.0, Summaries()), make_run(tmp_path / "a")
    made.snapshot(path)
    one = made._held[path]
    run, one.run = one.run, SimpleNamespace(level=1, unfinished=False)  # type: ignore[assignment]
    one.read = one.asked = one.read - 2000
    with pytest.raises(RuntimeError, match=r"^a cannot be read$") as caught:
        made.snapshot(path)
    assert isinstance(caught.value.__cause__, AttributeError)
    one.run = run
    one.read = one.asked = one.read - 2000
    assert made.snapshot(path).status.name == "a"
