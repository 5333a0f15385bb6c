"""A clock that a busy machine holds up."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

TICK_S = 0.05


class OwnClock:
    """seconds: that a thread of this process slept, by its count of short sleeps. Where the process
    gets no CPU it stands still, and where others are at work it is slow: never ahead of the clock
    on the wall, so that a limit on it is kept wherever one on that would be. It is to be half of
    what the fault would take, at most, or a slow clock could hide that."""

    seconds = 0.0


@contextmanager
def own_clock() -> Iterator[OwnClock]:
    clock, end = OwnClock(), threading.Event()

    def tick() -> None:
        while not end.wait(TICK_S):
            clock.seconds += TICK_S

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        yield clock
    finally:
        end.set()
        thread.join()
