"""Server-sent events: the run's intervals so far, then every interval as it ends, and the status
whenever it changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from urllib.parse import quote

from fastapi.sse import ServerSentEvent
from starlette.concurrency import run_in_threadpool

from gratis.server.models import IntervalStatus
from gratis.server.run_reader import FRESH_S, RunSnapshot
from gratis.server.runs import Runs

TICK_S = 0.5
Position = tuple[int, int]  # attempt and step
BEFORE_ALL: Position = (-1, -1)


async def stream(
    runs: Runs, name: str | None, last_id: str | None, closing: Callable[[], bool]
) -> AsyncIterator[ServerSentEvent]:
    """Events of the run `name`, or of whichever is the newest, until it (or, unnamed, every run) is
    deleted or the server closes.

    `status` events hold a RunStatus and have no id. `interval` events hold an IntervalStatus; their
    id is run, attempt and step, and a client that reconnects with it as Last-Event-ID is sent only
    what it missed."""
    shown, position, sent, over = "", BEFORE_ALL, "", False
    while not over:
        # training ends its server right after its last records: they are still to be read
        if over := closing():
            await asyncio.sleep(FRESH_S)
        snapshot = await run_in_threadpool(runs.snapshot, name)
        if snapshot is None and (name is not None or shown):
            return
        if snapshot is not None:
            if snapshot.status.name != shown:
                shown, sent = snapshot.status.name, ""
                position = parse_id(last_id, shown)
            if snapshot.json_without_ages != sent:
                sent = snapshot.json_without_ages
                yield ServerSentEvent(event="status", raw_data=snapshot.json)
            for interval in _later(snapshot, position):
                position = (interval.attempt, interval.step)
                yield ServerSentEvent(
                    event="interval",
                    id=make_id(shown, position),
                    raw_data=interval.model_dump_json(),
                )
        await asyncio.sleep(0 if over else TICK_S)


def make_id(name: str, position: Position) -> str:
    return f"{quote(name, safe='')}/{position[0]}.{position[1]}"


def parse_id(last_id: str | None, name: str) -> Position:
    """The position that an id names; BEFORE_ALL for any other id, or another run's."""
    run, _, position = (last_id or "").partition("/")
    attempt, _, step = position.partition(".")
    if run != quote(name, safe="") or not all(
        part.isdecimal() and len(part) < 16 for part in (attempt, step)
    ):
        return BEFORE_ALL
    return int(attempt), int(step)


def _later(snapshot: RunSnapshot, position: Position) -> list[IntervalStatus]:
    return [one for one in snapshot.intervals if (one.attempt, one.step) > position]
