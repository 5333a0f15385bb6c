"""What the loader did, and the seconds of each stage: the counters that a run's events hold."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from gratis.events import LoaderCounters


class StageTimer:
    """The raw counters of the loader since they were last taken. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: defaultdict[str, float] = defaultdict(float)
        # .seconds: what the spans inside the one that is open have taken
        self._within = threading.local()

    def add(self, **amounts: float) -> None:
        with self._lock:
            for name, amount in amounts.items():
                self._sums[name] += amount

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Counts a span of this thread, without the spans inside it: DALI asks for bytes when it is
        asked to decode."""
        before, start = getattr(self._within, "seconds", 0.0), time.perf_counter()
        self._within.seconds = 0.0
        try:
            yield
        finally:
            took = time.perf_counter() - start
            self.add(**{name: took - self._within.seconds})
            self._within.seconds = before + took

    def take(self, *, depth: int, capacity: int) -> LoaderCounters:
        """The counters, which then begin at zero again. depth, capacity: of the queue of ready
        batches."""
        with self._lock:
            sums, self._sums = self._sums, defaultdict(float)
        return LoaderCounters(
            images=int(sums["images"]),
            batches=int(sums["batches"]),
            bytes_read=int(sums["bytes_read"]),
            read_s=sums["read_s"],
            decode_s=sums["decode_s"],
            finish_s=sums["finish_s"],
            transfer_s=sums["transfer_s"],
            wait_s=sums["wait_s"],
            blocked_s=sums["blocked_s"],
            queue_depth=depth,
            queue_capacity=capacity,
            native=int(sums["native"]),
            fallback=int(sums["fallback"]),
        )
