"""Server-sent events: the run's intervals so far, then every interval as it ends, and the status
whenever it changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from urllib.parse import quote

from fastapi.sse import ServerSentEvent
from starlette.concurrency import run_in_threadpool

from gratis.server.models import IntervalStatus
from gratis.server.runs import FRESH_S, Runs, RunSnapshot

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
        view = await run_in_threadpool(runs.view, name)
        if view is None and (name is not None or shown):
            return
        if view is not None:
            if view.status.name != shown:
                shown, position, sent = view.status.name, parse_id(last_id, view.status.name), ""
            if view.json_without_ages != sent:
                sent = view.json_without_ages
                yield ServerSentEvent(event="status", raw_data=view.json)
            for interval in _later(view, position):
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
    """The position that an id names; before all if it is not one of ours, or another run's."""
    run, _, position = (last_id or "").partition("/")
    attempt, _, step = position.partition(".")
    if run != quote(name, safe="") or not all(
        part.isdecimal() and len(part) < 16 for part in (attempt, step)
    ):
        return BEFORE_ALL
    return int(attempt), int(step)


def _later(view: RunSnapshot, position: Position) -> list[IntervalStatus]:
    """What came after `position`; nothing while the server is still reading, as the intervals are
    still being merged."""
    if view.status.behind_bytes:
        return []
    return [interval for interval in view.intervals if (interval.attempt, interval.step) > position]
