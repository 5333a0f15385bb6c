"""The producer: ready batches of one epoch, made on a background thread and kept in a short queue."""

from __future__ import annotations

import atexit
import queue
import threading
import weakref
from collections.abc import Generator
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
import torch

from loader.batch import IGNORE, Batch
from loader.decode import decode_jpeg, decode_raw
from loader.finish import Finisher
from loader.gpu import decode_and_finish, to_torch
from loader.plan import PAD
from loader.source import Ids, Source
from loader.work import Job, Meter, read_works


class Ready(NamedTuple):
    batch: Batch
    samples: int  # rows that are samples
    copied: Any  # CUDA event after which the batch is on the device; None on the CPU


class Producer:
    """Makes a job's batches in a thread of its own, which ends with the job, with `stop`, or when this is dropped."""

    def __init__(self, job: Job, meter: Meter, threads: int) -> None:
        self._meter = meter
        self._ready: queue.Queue[Ready | BaseException | None] = queue.Queue(job.config.prefetch)
        stopping = threading.Event()
        work = (job, meter, threads, self._ready, stopping)
        thread = threading.Thread(target=_run, args=work, name="loader", daemon=True)
        thread.start()
        self.stop = weakref.finalize(self, _stop, thread, self._ready, stopping)
        _stop_at_exit(self)

    @property
    def depth(self) -> int:
        return self._ready.qsize()

    def take(self) -> Ready | None:
        """The next batch, None after the last. Raises what the thread raised; RuntimeError after `stop`."""
        if not self.stop.alive:
            raise RuntimeError("this epoch was closed, or another one of the same loader has begun")
        with self._meter.time("wait_s"):
            item = self._ready.get()
        if isinstance(item, Ready):
            return item
        self.stop()
        if item is not None:
            raise item
        return None


_producers: weakref.WeakSet[Producer] = weakref.WeakSet()


def _stop_at_exit(producer: Producer) -> None:
    """An epoch left open must end before DALI's own exit handler: what is registered later runs earlier."""
    import nvidia.dali  # noqa: F401

    if not _producers:
        atexit.unregister(_stop_all)
        atexit.register(_stop_all)
    _producers.add(producer)


def _stop_all() -> None:
    for producer in list(_producers):
        producer.stop()


def _stop(thread: threading.Thread, ready: queue.Queue[Any], stopping: threading.Event) -> None:
    stopping.set()
    while not ready.empty():  # a put that is waiting gets its place; after it the thread looks at `stopping`
        ready.get_nowait()
    thread.join()


def _run(job: Job, meter: Meter, threads: int, ready: queue.Queue[Any], stopping: threading.Event) -> None:
    last: BaseException | None = None
    try:
        with closing(_batches(job, meter, threads)) as batches:
            for batch in batches:
                if stopping.is_set():
                    return
                with meter.time("blocked_s"):
                    ready.put(batch)
                if stopping.is_set():
                    return
    except BaseException as error:  # handed to the consumer, whatever it is
        last = error
    if not stopping.is_set():
        ready.put(last)


def _batches(job: Job, meter: Meter, threads: int) -> Generator[Ready, None, None]:
    with closing(Source(job.root, job.manifest.splits[job.split], job.index)) as source:
        make = _on_cpu if job.device.type == "cpu" else _on_gpu
        done = 0
        with closing(make(job, source, meter, threads)) as batches:
            for batch in batches:
                yield batch
                done += 1
        if done < len(job.steps):  # the last step has no sample for this rank
            labels, ids = _rows(job, np.empty(0, np.int64))
            yield Ready(Batch(_blank(job), labels.to(job.device), ids), 0, None)


def _on_cpu(job: Job, source: Source, meter: Meter, threads: int) -> Generator[Ready, None, None]:
    """One buffer is with the consumer, `prefetch` wait in the queue, one is being filled."""
    ring = [_blank(job) for _ in range(min(job.config.prefetch + 2, len(job.steps)))]
    finish = Finisher(job.stats, job.config, job.epoch)
    works = read_works(job, source, meter)
    decoded = decode_raw(works, job) if job.manifest.codec == "raw" else decode_jpeg(works, job, source, meter, threads)
    with closing(decoded):
        for number, (work, crops) in enumerate(decoded):
            images = ring[number % len(ring)]
            with meter.time("finish_s"):
                rows = images.flatten(0, 1) if job.config.views > 1 else images
                finish(crops, rows[: len(crops.start)])
                rows[len(crops.start) :] = 0
            yield Ready(Batch(images, *_rows(job, work.ids)), len(work.ids), None)


def _on_gpu(job: Job, source: Source, meter: Meter, threads: int) -> Generator[Ready, None, None]:
    stream = torch.cuda.Stream(job.device)  # type: ignore[no-untyped-call]
    done = decode_and_finish(read_works(job, source, meter), job, source, meter, threads)
    with closing(done):
        for work, tensor in done:
            with meter.time("transfer_s"), torch.cuda.stream(stream):
                images, (labels, ids) = to_torch(tensor, job), _rows(job, work.ids)
                if missing := job.rows - len(images):
                    images = torch.cat([images, images.new_zeros(missing, *images.shape[1:])])
                if job.config.channels_last and job.config.views == 1:
                    images = images.contiguous(memory_format=torch.channels_last)
                copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
                batch = Batch(images, labels.to(job.device), ids)
                copied.record(stream)
                stream.synchronize()  # DALI takes its buffer back after this
            yield Ready(batch, len(work.ids), copied)


def _blank(job: Job) -> torch.Tensor:
    """Zeros in the shape, type and memory layout of a batch's images."""
    config = job.config
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    shape = (job.rows * config.views, 3, config.crop, config.crop)
    images = torch.empty(shape, dtype=config.dtype, device=job.device, memory_format=layout).zero_()
    return images.view(job.rows, config.views, *shape[1:]) if config.views > 1 else images


def _rows(job: Job, ids: Ids) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels and ids int64 [b] on the CPU, padded."""
    all_ids, labels = np.full(job.rows, PAD, np.int64), np.full(job.rows, IGNORE, np.int64)
    all_ids[: len(ids)], labels[: len(ids)] = ids, job.index.label[ids]
    return torch.from_numpy(labels), torch.from_numpy(all_ids)
