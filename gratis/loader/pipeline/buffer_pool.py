"""Memory for batches on the CPU, which is written again only when nothing refers to it any more.

Each batch gets an array object of its own over the memory. torch keeps that object as long as the
tensor's storage lives, and with it whatever shares the storage, here or in another library: slices
and views, NumPy arrays, DLPack and what is made of it, what autograd saved. When the object goes,
nothing can read the memory, and it comes back here."""

from __future__ import annotations

import queue
import weakref
from collections import deque
from contextlib import suppress

import numpy as np
import torch
from numpy.typing import NDArray

Memory = NDArray[np.uint8]

NEW: Memory = np.empty(0, np.uint8)  # leave to allocate


class BufferPool:
    """Says when the next batch may be written, and where. One thread writes, one takes.

    A loop that lets each batch go for the next has `prefetch` + 1 buffers in turn: one with it, the
    others ready, and nothing is allocated after the first batches. Who keeps more gets more: as
    many are made ready in advance, in new memory. Of what then comes back beyond `prefetch` + 1 one
    buffer waits for the next time, the rest is freed: who keeps a batch for good seems to keep
    another whenever the loader's own thread lets one go later than the loop does."""

    def __init__(self, prefetch: int) -> None:
        self._prefetch, self.closed = prefetch, False
        self._free: queue.SimpleQueue[Memory | None] = queue.SimpleQueue()
        self._spare: deque[Memory] = deque(maxlen=1)  # for the next that would be NEW
        self._begun = self._taken = 0  # batches; each is counted by one thread alone
        self._lent: set[object] = set()  # a key for each buffer that somebody refers to
        self._allow_up_to(prefetch + 1)

    def get(self) -> Memory | None:
        """Waits until a batch may be written; where, NEW for who allocates it, None after
        `close`."""
        memory = self._free.get()
        self._begun += 1
        return memory

    def lend(self, memory: Memory) -> torch.Tensor:
        """uint8, over this memory, which comes back when nothing refers to it any more."""
        array, key = memory.view(), object()
        self._lent.add(key)
        weakref.finalize(array, self._came_back, memory, key).atexit = False
        return torch.from_numpy(array)

    def want(self) -> None:
        """The next batch is about to be taken. At this moment a usual loop still has the last one;
        who has more will not let one go for it."""
        keeps_more = len(self._lent) - self._unread > 1
        self._allow_up_to(self._prefetch + keeps_more)

    def taken(self, *, on_device: bool) -> None:
        """The next batch was taken. on_device: its memory is the device's, and nothing of it will
        come back here."""
        self._taken += 1
        if on_device:
            self._allow_up_to(self._prefetch)

    def close(self) -> None:
        """Frees what nobody refers to, and ends a wait."""
        self.closed = True
        self._spare.clear()
        with suppress(queue.Empty):
            while True:
                self._free.get_nowait()
        self._free.put(None)

    def _came_back(self, memory: Memory, key: object) -> None:
        """On any thread, inside anything that frees an object: it must wait for nothing."""
        self._lent.discard(key)
        if self.closed:
            return
        if self._unread + self._free.qsize() > self._prefetch:
            self._spare.append(memory)
        else:
            self._free.put(memory)

    @property
    def _unread(self) -> int:
        """Batches that are being written or are ready."""
        return self._begun - self._taken

    def _allow_up_to(self, number: int) -> None:
        """Together with those unread, so many may be written; where none is free in the spare
        buffer, then in new ones."""
        for _ in range(number - self._unread - self._free.qsize()):
            self._free.put(self._spare.pop() if self._spare else NEW)
