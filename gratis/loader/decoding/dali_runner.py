"""Drives a DALI pipeline: batches of bytes in, decoded images out, errors sorted out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from itertools import chain
from typing import Any

from gratis.errors import GratisError
from gratis.loader.decoding.bad_samples import replace_bad_samples
from gratis.loader.decoding.crop_graph import Feed
from gratis.loader.epoch.epoch_plan import EpochPlan
from gratis.loader.epoch.stage_timer import StageTimer
from gratis.loader.reading.batch_reader import BatchReader, EncodedBatch


class DaliRunner:
    """Drives one DALI pipeline over batches, epoch after epoch. After an error, and after `close`,
    it is built anew."""

    def __init__(self, timer: StageTimer, reader: BatchReader) -> None:
        self.timer, self.reader = timer, reader
        self._pipeline: Any = None
        self._built_for: object = None
        self._feed: Feed = tuple

    def run(
        self,
        batches: Iterator[EncodedBatch],
        plan: EpochPlan,
        build: Callable[[Feed], Any],
        inputs: Callable[[EncodedBatch], tuple[Any, ...]],
        key: object = None,
    ) -> Generator[tuple[EncodedBatch, Any], None, None]:
        """Each batch with DALI's output for it, valid until the next is taken. A new key asks for a
        new pipeline."""
        # DALI does not copy: all must live until it is done
        pending: deque[tuple[EncodedBatch, tuple[Any, ...]]] = deque()
        source = [batches]
        failed: list[GratisError] = []

        def feed() -> tuple[Any, ...]:
            try:
                batch = next(source[0])  # its StopIteration is DALI's end of data
            except GratisError as error:  # of this step; the batches before it come first
                failed.append(error)
                raise StopIteration from None
            pending.append((batch, inputs(batch)))
            return pending[-1][1]

        self._feed = feed
        while True:
            if self._pipeline is None or self._built_for != key:
                self._pipeline, self._built_for = build(self._next), key
            try:
                with self.timer.time("decode_s"):
                    self._pipeline.schedule_run()
                    (output,) = self._pipeline.share_outputs()  # waits until the batch is there
            except StopIteration:
                self._pipeline.reset()
                if failed:
                    raise failed[0] from None
                return
            except RuntimeError as error:
                self._pipeline = None
                broken = [batch for batch, _ in pending]
                good = replace_bad_samples(self.reader, error, broken, plan)
                source[0] = chain(good, source[0])
                pending.clear()
                continue
            yield pending.popleft()[0], output
            del output
            self._pipeline.release_outputs()

    def _next(self) -> tuple[Any, ...]:
        return self._feed()  # of the epoch that is under way: the pipeline outlives it

    def close(self) -> None:
        """Ends DALI's threads and frees its buffers."""
        self._pipeline, self._feed = None, tuple
