"""Ready batches, made on a background thread while an epoch is under way, kept in a short queue.

What an epoch needs (decoder, buffers, open files) stays for the next one: making it anew would cost
0.1 CPU s per epoch and the page faults of every buffer."""

from __future__ import annotations

import os
import queue
import threading
import weakref
from functools import partial

from gratis.loader.decoding.exit_order import run_before_dali_s
from gratis.loader.epoch.epoch_plan import EpochPlan
from gratis.loader.epoch.stage_timer import StageTimer
from gratis.loader.pipeline.batch_pipeline import BatchPipeline, ReadyBatch
from gratis.loader.pipeline.buffer_pool import BufferPool
from gratis.loader.reading.remote import LoaderThread
from gratis.network import FetchCancelled

POLL_S = 1.0  # between looks whether the thread that is waited for lives


class Prefetcher:
    """One epoch at a time: `begin`, then `take` until it gives None. `close` ends everything, at
    any time.

    `prefetch` batches are ready and one is with the consumer; the next is written once the pool
    lets it. Meanwhile it waits decoded, as bytes, a fourth of the size."""

    def __init__(self, pipeline: BatchPipeline, timer: StageTimer, prefetch: int) -> None:
        self._pipeline, self._timer, self.closed = pipeline, timer, False
        self._ready: queue.SimpleQueue[ReadyBatch | BaseException | None] = queue.SimpleQueue()
        self._pool = BufferPool(prefetch)
        self._ticket = self._left = 0  # batches of this epoch that were not taken
        self._thread: LoaderThread | None = None
        self._ends = threading.RLock()  # again, where what is collected under it closes
        self._ended = False  # the thread will close nothing any more
        _remember(self)

    @property
    def depth(self) -> int:
        return 0 if self.idle else self._ready.qsize()

    @property
    def idle(self) -> bool:
        """No epoch is under way."""
        return self._thread is None

    @property
    def under_way(self) -> bool:
        """Batches of an epoch are still to be taken."""
        return not self.closed and not self.idle and self._left > 0

    def begin(self, plan: EpochPlan) -> int:
        """The epoch's ticket, for `take`."""
        assert self.idle
        assert not self.closed
        self._left, self._ticket, self._ended = len(plan.steps), self._ticket + 1, False
        self._thread = LoaderThread(target=self._run, args=(plan,), name="loader", daemon=True)
        self._thread.start()
        return self._ticket

    def take(self, ticket: int) -> ReadyBatch | None:
        """The next batch, None after the last. Raises what the thread raised; RuntimeError after
        `close` or `leave`."""
        if self.closed or self.idle or ticket != self._ticket:
            raise RuntimeError("this epoch was closed, or another one of the same loader has begun")
        self._pool.want()
        with self._timer.time("wait_s"):
            item = self._next()
        if isinstance(item, ReadyBatch):
            self._pool.taken(on_device=item.copied is not None)
            self._left -= 1
            return item
        if item is not None:
            self.close()
            raise item
        if self.closed or self.idle:  # meanwhile, by a signal's handler or another thread
            raise RuntimeError("this epoch was closed while it waited for a batch")
        self._join()
        return None

    def leave(self, ticket: int) -> None:
        """The consumer of an epoch goes: after its last batch all stays for the next epoch, before
        it all is closed."""
        if self.closed or self.idle or ticket != self._ticket:
            return
        if _in_loader_thread() or self._left or self._next() is not None:
            self.close()
        else:
            self._join()

    def close(self) -> None:
        """Ends the thread and frees files, decoder and buffers. Batches that were taken stay
        valid."""
        with self._ends:
            if self.closed:
                return
            self.closed, ended = True, self.idle or self._ended
        self._pipeline.stop()
        self._pool.close()
        if not _in_loader_thread():
            self._join()
        elif not ended:
            return  # the thread closes them
        self._pipeline.close()

    def __del__(self) -> None:
        self.close()

    def _next(self) -> ReadyBatch | BaseException | None:
        """What the thread gives next; None once another thread of the consumer's has closed or left
        the epoch. RuntimeError if there is no thread: a fork copies none."""
        while True:
            thread = self._thread
            alive = thread is not None and thread.is_alive()
            try:
                return self._ready.get(timeout=POLL_S if alive else 0)
            except queue.Empty:
                if self.closed or self.idle:
                    return None
                if not alive:
                    raise RuntimeError(
                        "the loader's thread is not here: was this process forked inside an epoch?"
                    ) from None

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
        self._thread = None

    def _run(self, plan: EpochPlan) -> None:
        last: BaseException | None = None
        batches = self._pipeline.batches(plan, self._pool)
        try:
            for ready in batches:
                self._ready.put(ready)
                del ready  # it is the consumer's, who alone refers to it
        except FetchCancelled:
            pass
        except BaseException as error:  # handed to the consumer, whatever it is
            last = error
        batches.close()
        with self._ends:
            self._ended = True
            mine = self.closed
        if mine:
            self._pipeline.close()
        self._ready.put(last)
        last = None  # or its traceback and this frame would keep each other, and the buffers, alive


def _in_loader_thread() -> bool:
    return isinstance(threading.current_thread(), LoaderThread)


_prefetchers: weakref.WeakSet[Prefetcher] = weakref.WeakSet()


def _remember(prefetcher: Prefetcher) -> None:
    if not _prefetchers:
        run_before_dali_s(_close_all)
    _prefetchers.add(prefetcher)


def _close_all(*, idle_alone: bool = False) -> None:
    for prefetcher in list(_prefetchers):
        if prefetcher.idle or not idle_alone:
            prefetcher.close()


# A fork copies no thread: in the child a decoder that waits for the next epoch would be dead. Both
# build another.
os.register_at_fork(before=partial(_close_all, idle_alone=True))
