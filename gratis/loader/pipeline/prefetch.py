"""The producer: ready batches, made on a background thread while an epoch is under way, kept in a
short queue.

What an epoch needs (decoder, buffers, open files) stays for the next one: making it anew would cost
0.1 CPU s per epoch and the page faults of every buffer."""

from __future__ import annotations

import atexit
import os
import queue
import threading
import weakref

from gratis.loader.decoding.decoded_cache import Decoded
from gratis.loader.pipeline.stages import Ready, Stages, source_of
from gratis.loader.pipeline.work import Job, Meter
from gratis.loader.reading.quarantine import Quarantine
from gratis.loader.reading.remote import Helper, Stopped

LOOK_S = 1.0  # between looks whether the thread that is waited for lives


class Producer:
    """One epoch at a time: `begin`, then `take` until it gives None. `close` ends everything, at
    any time.

    Slots: `prefetch` batches are ready and one is with the consumer; the next is written once that
    one's place is free. Meanwhile it waits decoded, as bytes, a fourth of the size."""

    def __init__(
        self,
        job: Job,
        meter: Meter,
        threads: int,
        quarantine: Quarantine,
        decoded: Decoded | None = None,
    ) -> None:
        self._meter, self.closed = meter, False
        source = source_of(job)
        self._stages = Stages(job, source, meter, quarantine, threads=threads, decoded=decoded)
        self._ready: queue.SimpleQueue[Ready | BaseException | None] = queue.SimpleQueue()
        self._free: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        for slot in range(job.config.prefetch + 1):
            self._free.put(slot)
        self._ticket = self._left = 0  # batches of this epoch that were not taken
        self._held: int | None = None  # the slot of the batch that the consumer has
        self._thread: Helper | None = None
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

    def begin(self, job: Job) -> int:
        """The epoch's ticket, for `take`."""
        assert self.idle
        assert not self.closed
        self._left, self._ticket, self._ended = len(job.steps), self._ticket + 1, False
        self._thread = Helper(target=self._run, args=(job,), name="loader", daemon=True)
        self._thread.start()
        return self._ticket

    def take(self, ticket: int) -> Ready | None:
        """The next batch, None after the last. Raises what the thread raised; RuntimeError after
        `close` or `leave`."""
        if self.closed or self.idle or ticket != self._ticket:
            raise RuntimeError("this epoch was closed, or another one of the same loader has begun")
        with self._meter.time("wait_s"):
            item = self._next()
        if isinstance(item, Ready):
            if self._held is not None:
                self._free.put(self._held)
            self._held = item.slot
            self._left -= 1
            return item
        if item is not None:
            self.close()
            raise item
        if self.closed:  # meanwhile, by a signal's handler
            raise RuntimeError("this epoch was closed while it waited for a batch")
        self._join()
        return None

    def leave(self, ticket: int) -> None:
        """The consumer of an epoch goes: after its last batch all stays for the next epoch, before
        it all is closed."""
        if self.closed or self.idle or ticket != self._ticket:
            return
        if _in_helper() or self._left or self._next() is not None:
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
        self._stages.stop()
        self._free.put(None)
        if not _in_helper():
            self._join()
        elif not ended:
            return  # the thread closes them
        self._stages.close()

    def __del__(self) -> None:
        self.close()

    def _next(self) -> Ready | BaseException | None:
        """What the thread gives next. RuntimeError if there is none: a fork copies no thread."""
        while True:
            alive = self._thread is not None and self._thread.is_alive()
            try:
                return self._ready.get(timeout=LOOK_S if alive else 0)
            except queue.Empty:
                if not alive:
                    raise RuntimeError(
                        "the loader's thread is not here: was this process forked inside an epoch?"
                    ) from None

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
        self._thread = None

    def _run(self, job: Job) -> None:
        last: BaseException | None = None
        batches = self._stages.batches(job, self._slot)
        try:
            for ready in batches:
                self._ready.put(ready)
        except Stopped:
            pass
        except BaseException as error:  # handed to the consumer, whatever it is
            last = error
        batches.close()
        with self._ends:
            self._ended = True
            mine = self.closed
        if mine:
            self._stages.close()
        self._ready.put(last)
        last = None  # or its traceback and this frame would keep each other, and the buffers, alive

    def _slot(self) -> int:
        slot = self._free.get()
        if slot is None or self.closed:
            raise Stopped
        return slot


def _in_helper() -> bool:
    return isinstance(threading.current_thread(), Helper)


_producers: weakref.WeakSet[Producer] = weakref.WeakSet()


def _remember(producer: Producer) -> None:
    """At exit all must end before DALI's own exit handler: what is registered later runs
    earlier."""
    import nvidia.dali  # noqa: F401

    if not _producers:
        atexit.unregister(_close_all)
        atexit.register(_close_all)
    _producers.add(producer)


def _close_all() -> None:
    for producer in list(_producers):
        producer.close()


def _close_idle() -> None:
    for producer in list(_producers):
        if producer.idle:
            producer.close()


# A fork copies no thread: in the child a decoder that waits for the next epoch would be dead. Both
# build another.
os.register_at_fork(before=_close_idle)
