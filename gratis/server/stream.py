"""Server-sent events: the run's course so far, then every interval as it ends, and the status
whenever it changes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from urllib.parse import quote

from fastapi.sse import ServerSentEvent
from starlette.concurrency import run_in_threadpool

from gratis.server.models import Interval
from gratis.server.runs import FRESH_S, Runs, View

TICK_S = 0.5
Place = tuple[int, int]  # attempt and step
NOWHERE: Place = (-1, -1)


async def stream(
    runs: Runs, name: str | None, last_id: str | None, closing: Callable[[], bool]
) -> AsyncIterator[ServerSentEvent]:
    """Events of the run `name`, or of whichever is the newest, until it (or, unnamed, every run) is
    deleted or the server closes.

    `status` events hold a RunStatus and have no id. `interval` events hold an Interval; their id is
    run, attempt and step, and a client that comes back with it as Last-Event-ID is sent what it
    missed alone."""
    shown, place, told, over = "", NOWHERE, "", False
    while not over:
        # training ends its server right after its last words: they are still to be read
        if over := closing():
            await asyncio.sleep(FRESH_S)
        view = await run_in_threadpool(runs.view, name)
        if view is None and (name is not None or shown):
            return
        if view is not None:
            if view.status.name != shown:
                shown, place, told = view.status.name, parse_id(last_id, view.status.name), ""
            if view.lasting != told:
                told = view.lasting
                yield ServerSentEvent(event="status", raw_data=view.words)
            for interval in _later(view, place):
                place = (interval.attempt, interval.step)
                yield ServerSentEvent(
                    event="interval", id=make_id(shown, place), raw_data=interval.model_dump_json()
                )
        await asyncio.sleep(0 if over else TICK_S)


def make_id(name: str, place: Place) -> str:
    return f"{quote(name, safe='')}/{place[0]}.{place[1]}"


def parse_id(last_id: str | None, name: str) -> Place:
    """The place that an id names; nowhere if it is none of ours, or another run's."""
    run, _, place = (last_id or "").partition("/")
    attempt, _, step = place.partition(".")
    if run != quote(name, safe="") or not all(
        part.isdecimal() and len(part) < 16 for part in (attempt, step)
    ):
        return NOWHERE
    return int(attempt), int(step)


def _later(view: View, place: Place) -> list[Interval]:
    """What came after `place`; nothing while the server is still reading, as the intervals are
    still being merged."""
    if view.status.behind_bytes:
        return []
    return [interval for interval in view.intervals if (interval.attempt, interval.step) > place]
