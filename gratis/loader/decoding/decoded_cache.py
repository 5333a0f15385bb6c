"""Samples that stay decoded: a split's whole images in memory, so that an epoch decodes only what
none before it did.

Batches are those of a loader without it, to the bit on a CPU: a part of a whole decoded image
equals what the decoder makes of that part alone, and the same pass finishes both. Filled while
training runs, with what each step lacks; a sample that cannot be decoded whole never enters, and a
batch that has one is made as without the store. Each rank keeps a copy of its own: over the epochs
it needs every sample."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gratis.choices import Place
from gratis.dataset import Manifest
from gratis.errors import GratisError
from gratis.loader.config import LoaderConfig
from gratis.loader.decoding import gpu
from gratis.loader.decoding.cpu import (
    Runner,
    crop_pipeline,
    crops_of,
    decode,
    encoded,
    rectangles,
    spoilt,
    undecodable,
)
from gratis.loader.pipeline.work import Job, Meter, Reader, Work
from gratis.loader.reading.shards import Ids, Source
from gratis.loader.views.normaliser import Crops
from gratis.memory import available_bytes

AsRead = Callable[[Work], Generator[tuple[Work, Any], None, None]]
Made = Callable[[], Tensor]

DEVICE_SHARE = 0.5  # of a device's free memory; training itself comes later and needs the rest
HOST_SHARE = (
    0.25  # of the memory that is free on the machine; the page cache of the shards lives there too
)
MISSING, THERE, SPOILT = 0, 1, 2


def choose(
    config: LoaderConfig,
    manifest: Manifest,
    samples: int,
    device: torch.device,
    *,
    local_world: int,
) -> Place:
    """Where a split's pixels are kept. `auto`: on the device if they fit, else in the machine's
    memory, else nowhere.

    The budget is `decoded_gb`, or a share of what is free now. local_world: ranks on this machine;
    those on one device, or all that use the machine's memory, share it. GratisError: what was asked
    for is not possible."""
    if config.decoded == "none":
        return "none"
    if config.decoded == "device" and (device.type != "cuda" or config.area):
        reason = (
            "parts are resized by the decoder's library"
            if config.area
            else f"the loader's device is {device}"
        )
        raise GratisError(f"decoded='device': {reason}; take 'host' or 'auto'")
    places: tuple[Place, ...] = (
        ("host",) if device.type != "cuda" or config.area else ("device", "host")
    )
    if config.decoded != "auto":
        places = tuple(place for place in places if place == config.decoded)
    elif device.type != "cuda" and manifest.codec == "raw":
        return "none"  # nothing is decoded, and the page cache holds the same pixels
    nbytes = 3 * samples * manifest.image_size**2
    free = {place: _budget(config, place, device, local_world) for place in places}
    for place in places:
        if nbytes <= free[place]:
            return place
    if config.decoded != "auto":
        way_out = (
            "raise decoded_gb" if config.decoded_gb else "set decoded_gb if it fits all the same"
        )
        most = f"{nbytes / 1e9:.3g} GB of pixels are more than the {free[places[0]] / 1e9:.3g} GB"
        raise GratisError(
            f"decoded={config.decoded!r}: {most} meant for them; {way_out}, or take decoded='auto'"
        )
    return "none"


def _budget(config: LoaderConfig, place: Place, device: torch.device, local_world: int) -> float:
    """Bytes, of one rank: its part of what those have together who keep their pixels in the same
    memory."""
    sharers = -(-local_world // torch.cuda.device_count()) if place == "device" else local_world
    if config.decoded_gb is not None:
        return config.decoded_gb * 1e9 / sharers
    if place == "device":
        return DEVICE_SHARE * torch.cuda.mem_get_info(device)[0] / sharers
    return HOST_SHARE * available_bytes() / sharers


class Decoded:
    """The pixels, uint8 [N,S,S,3] on a device or in the machine's memory, and which of them are
    there."""

    def __init__(self, count: int, size: int, device: torch.device | None) -> None:
        # host: taken as written
        self.pixels = torch.empty((count, size, size, 3), dtype=torch.uint8, device=device)
        self.state = np.full(count, MISSING, np.int8)

    def put(self, ids: Ids, pixels: Tensor) -> None:
        places = torch.from_numpy(ids).to(self.pixels.device)
        self.pixels[places] = pixels.to(self.pixels.device)
        if self.pixels.device.type == "cuda" or pixels.device.type == "cuda":
            torch.cuda.current_stream().synchronize()  # the decoder takes its buffer back
        self.state[ids] = THERE

    def lacks(self, ids: Ids) -> Ids:
        """Those that were never tried."""
        never: Ids = ids[self.state[ids] == MISSING]
        return never

    def holds(self, ids: Ids) -> bool:
        return bool((self.state[ids] == THERE).all())


class Keeper:
    """Steps of a job from the store, which it fills. For one thread at a time."""

    def __init__(
        self, decoded: Decoded, source: Source, reader: Reader, meter: Meter, threads: int
    ) -> None:
        self._decoded, self._source, self._reader = decoded, source, reader
        self._meter, self._threads = meter, threads
        self._feed: tuple[Any, ...] = ()
        self._pipeline: Any = None
        self._mean: Tensor | None = None  # on the device

    def close(self) -> None:
        """Ends the decoder. The store stays."""
        self._pipeline, self._feed = None, ()

    def steps(self, job: Job) -> Iterator[tuple[Work, bool]]:
        """Each step's samples, without bytes, and whether the store holds all of them."""
        order = job.order()
        steps = job.wanted(order)
        if any(not self._decoded.holds(wanted) for wanted in steps):  # else nothing is read
            self._source.begin(order, job.config.batch_size, job.first_step)
        for number, wanted in enumerate(steps):
            held = self._decoded.holds(wanted)
            if not held:
                self._source.at(job.first_step + number)
                lacking = self._decoded.lacks(wanted)
                if number + 1 < len(steps) and len(later := self._decoded.lacks(steps[number + 1])):
                    self._source.expect(later)
                if len(lacking):
                    self._fill(lacking, whole_job(job))
                held = self._decoded.holds(wanted)
            draws, extents = job.draws(wanted)
            yield Work(wanted, wanted, draws, extents, [], np.empty(0, np.uint8)), held

    def crops(
        self, job: Job, as_read: AsRead, resizer: Runner
    ) -> Generator[tuple[Work, Crops], None, None]:
        """On the CPU: each step's crops where they lie. as_read: what decodes a batch as without a
        store; resizer: for parts that are resized. Each is valid until the next is taken."""
        size, pixels = job.manifest.image_size, self._decoded.pixels
        for work, held in self.steps(job):
            if not held:
                yield from as_read(self._reader.read(job, work.wanted))
            elif job.config.area:
                yield from decode(iter([self._as_raw(work)]), raw_job(job), resizer, self._threads)
            else:
                begins = work.ids * (3 * size * size)
                yield (
                    work,
                    crops_of(work, pixels.numpy().reshape(-1), begins, job, side=size, corner=True),
                )

    def images(
        self, job: Job, as_read: AsRead, resizer: Runner
    ) -> Generator[tuple[Work, Made], None, None]:
        """On a GPU: each step, and what makes its finished images on the current stream."""
        for work, held in self.steps(job):
            if not held:
                found = as_read(self._reader.read(job, work.wanted))
            elif job.config.area:
                found = gpu.decode_and_finish(
                    iter([self._as_raw(work)]), raw_job(job), resizer, self._threads
                )
            else:
                yield work, partial(self._finished, work, job)
                continue
            for done, tensor in found:
                yield done, partial(gpu.to_torch, tensor, job)

    def _finished(self, work: Work, job: Job) -> Tensor:
        store, ids = self._decoded.pixels, torch.from_numpy(work.ids)
        if self._mean is None:
            self._mean = torch.from_numpy(job.stats.mean).to(job.device)
        if store.device.type == "cpu":  # what crosses is a copy that the device can fetch by itself
            some = torch.empty(
                (len(ids), *store.shape[1:]),
                dtype=torch.uint8,
                pin_memory=job.device.type == "cuda",
            )
            torch.index_select(store, 0, ids, out=some)
            store, ids = some.to(job.device, non_blocking=True), torch.arange(len(ids))
        return gpu.finish(store, ids, work.draws, self._mean, job)

    def _as_raw(self, work: Work) -> Work:
        """The samples as if they had been stored as raw pixels. Of a store in the machine's
        memory."""
        flat = self._decoded.pixels.numpy()
        return work._replace(parts=[flat[sample].reshape(-1) for sample in work.ids.tolist()])

    def _fill(self, ids: Ids, job: Job) -> None:
        with self._meter.time("read_s"):
            # a stand-in has a place of its own in the store
            work = self._reader.read(job, ids, mended=False)
        self._meter.add(bytes_read=sum(map(len, work.parts)))
        with self._meter.time("decode_s"):
            rows, pixels = self._decode(work, job)
            if len(rows):
                self._decoded.put(ids[rows], pixels)
        self._decoded.state[np.delete(ids, rows)] = SPOILT

    def _decode(self, work: Work, job: Job) -> tuple[NDArray[np.int64], Tensor]:
        """Rows that can be decoded whole, and their pixels, uint8 [n,S,S,3]; valid until the next
        call."""
        rows = np.delete(np.arange(len(work.ids)), spoilt(work, job))
        work = part_of(work, rows)
        if not len(rows):
            return rows, torch.empty(0)
        if job.manifest.codec == "raw":
            return rows, torch.from_numpy(np.stack(encoded(work, job)))
        try:
            return rows, self._run(work, job)
        except RuntimeError:
            self._pipeline = None  # an error spoils it
            if not (bad := undecodable(work, job)):
                raise
        kept = np.delete(np.arange(len(rows)), bad)
        return rows[kept], self._run(part_of(work, kept), job) if len(kept) else torch.empty(0)

    def _run(self, work: Work, job: Job) -> Tensor:
        self._feed = (encoded(work, job), *rectangles(work, whole=True))
        if self._pipeline is None:
            self._pipeline = whole_pipeline(lambda: self._feed, job, self._threads)
        (images,) = self._pipeline.run()
        tensor = images.as_tensor()
        if job.device.type == "cuda":
            return torch.utils.dlpack.from_dlpack(tensor)
        return torch.from_numpy(np.asarray(tensor))


def whole_job(job: Job) -> Job:
    """The same rank's job, were it to see whole images."""
    config = replace(
        job.config, augment=False, views=10, area=None, bad_samples="raise", decoded="none"
    )
    return replace(job, config=config)


def raw_job(job: Job) -> Job:
    """The same job, were the dataset of raw pixels."""
    return replace(job, manifest=replace(job.manifest, codec="raw", quality=None))


def part_of(work: Work, rows: NDArray[np.int64]) -> Work:
    return work._replace(
        ids=work.ids[rows], wanted=work.wanted[rows], parts=[work.parts[row] for row in rows]
    )


def whole_pipeline(feed: Any, job: Job, threads: int) -> Any:
    """Whole images, by the decoder that serves the job's device."""
    if job.device.type == "cuda":
        return gpu.image_pipeline(lambda: feed()[:1], job, threads)
    return crop_pipeline(feed, job, threads, job.manifest.image_size, rows=job.rows, lockstep=True)
