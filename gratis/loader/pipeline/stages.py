"""The stages of the producer, and what they keep from one epoch to the next: files, decoder,
buffers."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from gratis.loader.batch import IGNORE, Batch
from gratis.loader.decoding import gpu
from gratis.loader.decoding.cpu import Mender, Runner, decode, decode_raw, needs_pipeline
from gratis.loader.decoding.decoded_cache import Decoded, Keeper, Made
from gratis.loader.pipeline.work import Job, Meter, Reader, Work
from gratis.loader.plan import PAD
from gratis.loader.reading.cache import Cache
from gratis.loader.reading.quarantine import Quarantine
from gratis.loader.reading.shards import Ids, Source
from gratis.loader.views.normaliser import Crops, Finisher

Slot = Callable[[], int]


class Ready(NamedTuple):
    batch: Batch
    samples: int  # rows that are samples
    copied: Any  # CUDA event after which the batch is on the device; None on the CPU
    slot: int  # comes back when the consumer has taken the next batch


class Stages:
    """Jobs of one loader, one after the other, to ready batches. For one thread at a time."""

    def __init__(
        self,
        job: Job,
        source: Source,
        meter: Meter,
        quarantine: Quarantine,
        *,
        threads: int,
        decoded: Decoded | None,
    ) -> None:
        self._source, self._meter, self._threads = source, meter, threads
        self._reader = Reader(source, meter, quarantine)
        self._mender = Mender(self._reader, source, quarantine)
        self._runner, self._resizer = Runner(meter, self._mender), Runner(meter, self._mender)
        self._keeper = Keeper(decoded, source, self._reader, meter, threads) if decoded else None
        self._ring: dict[int, torch.Tensor] = {}
        self._stream: Any = None
        if job.device.type == "cuda":
            self._stream = torch.cuda.Stream(job.device)  # type: ignore[no-untyped-call]
            # the store's memory may have been that of a tensor which the consumer's stream is not
            # done with
            self._stream.wait_stream(torch.cuda.current_stream(job.device))

    def batches(self, job: Job, slot: Slot) -> Generator[Ready, None, None]:
        """Each batch takes a slot before it is written; one that has come back is written again."""
        done = 0
        for ready in self._on_cpu(job, slot) if self._stream is None else self._on_gpu(job, slot):
            yield ready
            done += 1
        if done < len(job.steps):  # the last step has no sample for this rank
            number, none = slot(), np.empty(0, np.int64)
            if self._stream is None:
                batch, copied = Batch(_blank(job), *_rows(job, none)), None
            else:
                with torch.cuda.stream(self._stream):
                    batch, copied = _to_device(job, none, _blank(job), self._stream)
            yield Ready(batch, 0, copied, number)

    def stop(self) -> None:
        """Ends a wait for a server. For any thread."""
        self._source.stop()

    def close(self) -> None:
        for closing in (self._runner, self._resizer, self._keeper):
            if closing:
                closing.close()
        self._reader.close()
        self._source.close()
        self._ring.clear()

    def _on_cpu(self, job: Job, slot: Slot) -> Generator[Ready, None, None]:
        finish = Finisher(job.stats, job.config, job.epoch)
        for work, crops in self._crops(job):
            with self._meter.time("blocked_s"):
                number = slot()
            with self._meter.time("finish_s"):
                images = (
                    self._ring[number]
                    if number in self._ring
                    else self._ring.setdefault(number, _blank(job))
                )
                rows = images.flatten(0, 1) if job.config.views > 1 else images
                finish(crops, rows[: len(crops.start)])
                rows[len(crops.start) :] = 0
            yield Ready(Batch(images, *_rows(job, work.ids)), len(work.ids), None, number)

    def _crops(self, job: Job) -> Generator[tuple[Work, Crops], None, None]:
        if self._keeper:
            return self._keeper.crops(
                job, lambda work: self._decode(iter([work]), job), self._resizer
            )
        return self._decode(self._reader.works(job), job)

    def _decode(self, works: Iterator[Work], job: Job) -> Generator[tuple[Work, Crops], None, None]:
        if needs_pipeline(job):
            return decode(works, job, self._runner, self._threads)
        return decode_raw(works, job, self._mender)

    def _on_gpu(self, job: Job, slot: Slot) -> Generator[Ready, None, None]:
        with torch.cuda.stream(self._stream):  # of this thread alone
            for work, make in self._images(job):
                with self._meter.time("blocked_s"):
                    number = slot()
                with self._meter.time("transfer_s"):
                    batch, copied = _to_device(job, work.ids, make(), self._stream)
                yield Ready(batch, len(work.ids), copied, number)

    def _images(self, job: Job) -> Generator[tuple[Work, Made], None, None]:
        if self._keeper:
            yield from self._keeper.images(
                job, lambda work: self._finish(iter([work]), job), self._resizer
            )
        else:
            for work, tensor in self._finish(self._reader.works(job), job):
                yield work, partial(gpu.to_torch, tensor, job)
                del tensor

    def _finish(self, works: Iterator[Work], job: Job) -> Generator[tuple[Work, Any], None, None]:
        return gpu.decode_and_finish(works, job, self._runner, self._threads)


def source_of(job: Job) -> Source:
    """The files of the job's split, on this machine or on a server."""
    split = job.manifest.splits[job.split]
    limit = int(job.config.cache_gb * 1e9)
    cache = Cache(job.remote, job.root, split.shards, limit) if job.remote else None
    return Source(job.root, split, job.index, cache)


def _to_device(job: Job, ids: Ids, images: torch.Tensor, stream: Any) -> tuple[Batch, Any]:
    """A batch that torch owns, and the event after which it may be read. DALI may take its buffer
    back at once."""
    labels, ids_ = _rows(job, ids)
    batch = Batch(padded(images, job), labels.to(job.device), ids_)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record(stream)
    stream.synchronize()
    return batch, copied


def padded(images: torch.Tensor, job: Job) -> torch.Tensor:
    """The images, with rows of zeros up to a whole batch, in the batch's memory layout, which
    torch.cat would lose."""
    if len(images) == job.rows:
        return images
    whole = _blank(job)
    whole[: len(images)] = images
    return whole


def _blank(job: Job) -> torch.Tensor:
    """Zeros in the shape, type and memory layout of a batch's images."""
    config, rows, side = job.config, job.rows * job.config.views, job.config.crop
    shape = (rows, side, side, 3) if config.channels_last else (rows, 3, side, side)
    if job.device.type == "cpu":
        images = _zeros(shape, config.dtype)
    else:
        images = torch.zeros(shape, dtype=config.dtype, device=job.device)
    images = images.permute(0, 3, 1, 2) if config.channels_last else images
    return images.view(job.rows, config.views, *images.shape[1:]) if config.views > 1 else images


def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """On the CPU, in memory that NumPy takes: it asks for pages of 2 MB (madvise), which torch does
    not. Writing the buffers through then costs the loader 6 % less CPU time (paired, n = 16,
    quartiles -1 and 11, on a busy machine). Such pages for all that is allocated, DALI's buffers
    too, gained no more."""
    return (
        torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8))
        .view(dtype)
        .view(shape)
    )


def _rows(job: Job, ids: Ids) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels and ids int64 [b] on the CPU, padded."""
    all_ids, labels = np.full(job.rows, PAD, np.int64), np.full(job.rows, IGNORE, np.int64)
    all_ids[: len(ids)], labels[: len(ids)] = ids, job.index.label[ids]
    return torch.from_numpy(labels), torch.from_numpy(all_ids)
