"""Batches from the decoded cache, which is filled with what each step lacks.

Batches are those of a loader without the cache, to the bit on a CPU: a part of a whole decoded
image equals what the decoder makes of that part alone, and the same pass normalises both. A sample
that cannot be decoded whole never enters, and a batch that has one is made as without the cache."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gratis.choices import Engine
from gratis.loader.decoding import gpu
from gratis.loader.decoding.bad_samples import device_error, undecodable
from gratis.loader.decoding.cpu import BatchCrops, crops_of, decode
from gratis.loader.decoding.crop_graph import crop_pipeline, dali_samples, rectangles, stored_pixels
from gratis.loader.decoding.dali_runner import DaliRunner
from gratis.loader.decoding.decoded_cache import BAD, PRESENT, DecodedCache
from gratis.loader.decoding.native import files_of
from gratis.loader.decoding.pillow import dali_is_here, decode_by_pillow
from gratis.loader.engine.decoder import NativeDecoder, addresses, whole_images
from gratis.loader.engine.library import Status
from gratis.loader.epoch.epoch_plan import EpochPlan
from gratis.loader.epoch.stage_timer import StageTimer
from gratis.loader.plan import Ids, samples_of
from gratis.loader.reading.batch_reader import BatchReader, EncodedBatch, invalid_rows
from gratis.loader.views.normalisation import normalisation
from gratis.loader.views.torch_views import apply_views

MakeImages = Callable[[], Tensor]


class CachedDecoder:
    """Batches of a plan from the cache, which it fills. For one thread at a time."""

    def __init__(
        self,
        cache: DecodedCache,
        reader: BatchReader,
        timer: StageTimer,
        threads: int,
        engine: Engine = "dali",
    ) -> None:
        """engine: native fills a cache in the machine's memory by the engine, and what it refuses
        as dali does."""
        self._cache, self._reader, self._shards = cache, reader, reader.shards
        self._timer, self._threads = timer, threads
        self._inputs: list[tuple[Any, ...]] = []  # of the batch that is being decoded whole
        self._pipeline: Any = None
        self._native = engine == "native"
        self._engine: NativeDecoder | None = None

    def close(self) -> None:
        """Ends the decoder. The cache stays."""
        self._pipeline = None
        if self._engine:
            self._engine.close()
        self._engine = None
        self._inputs.clear()

    def steps(self, plan: EpochPlan) -> Iterator[tuple[EncodedBatch, bool]]:
        """Each step's samples, without bytes, and whether the cache holds all of them."""
        steps = list(plan.ids_by_step())
        samples = [samples_of(wanted) for wanted in steps]
        if any(not self._cache.holds(ids) for ids in samples):  # else nothing is read
            self._shards.begin(plan.sample_order, plan.config.batch_size, plan.first_step)
        for number, (wanted, ids) in enumerate(zip(steps, samples, strict=True)):
            held = self._cache.holds(ids)
            if not held:
                self._shards.at(plan.first_step + number)
                lacking = self._cache.lacks(ids)
                if number + 1 < len(steps) and len(later := self._cache.lacks(samples[number + 1])):
                    self._shards.expect(later)
                if len(lacking):
                    self._fill(lacking, _whole_plan(plan))
                held = self._cache.holds(ids)
            views, none = plan.draws(wanted), np.empty(0, np.uint8)
            yield EncodedBatch(wanted, ids, *views[:2], [], none, views.targets), held

    def crops(self, plan: EpochPlan, runner: DaliRunner) -> BatchCrops:
        """On the CPU: each step's crops where they lie. runner: decodes what the cache does not
        hold. Each is valid until the next is taken."""
        size, pixels = plan.manifest.image_size, self._cache.pixels
        for batch, held in self.steps(plan):
            if not held:
                read = iter([self._read(plan, batch.wanted)])
                yield from decode(read, plan, runner, self._threads)
            elif plan.resizes:
                raw = iter([self._as_raw(batch)])
                yield from decode(raw, _raw_plan(plan), runner, self._threads)
            else:
                flat, begins = pixels.numpy().reshape(-1), batch.ids * (3 * size * size)
                yield batch, crops_of(batch, flat, begins, plan, side=size, corner=True)

    def images(
        self, plan: EpochPlan, runner: DaliRunner, resizer: DaliRunner
    ) -> Generator[tuple[EncodedBatch, MakeImages], None, None]:
        """On a GPU: each step, and what makes its normalised images on the current stream."""
        mean = torch.from_numpy(normalisation(plan.stats, plan.config, plan.epoch).mean)
        there = mean.to(plan.device)
        for batch, held in self.steps(plan):
            if not held:
                encoded = iter([self._read(plan, batch.wanted)])
                decoded = gpu.decode_views(encoded, plan, runner, self._threads)
            elif plan.resizes:
                raw = iter([self._as_raw(batch)])
                decoded = gpu.decode_views(raw, _raw_plan(plan), resizer, self._threads)
            else:
                yield batch, partial(self._apply_views, batch, plan, there)
                continue
            for read, tensor in decoded:
                yield read, partial(gpu.to_torch, tensor, plan, read)

    def _apply_views(self, batch: EncodedBatch, plan: EpochPlan, mean: Tensor) -> Tensor:
        pixels, ids = self._cache.pixels, torch.from_numpy(batch.ids)
        if pixels.device.type == "cpu":  # what crosses is a copy that the device fetches by itself
            shape, pinned = (len(ids), *pixels.shape[1:]), plan.device.type == "cuda"
            some = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
            torch.index_select(pixels, 0, ids, out=some)
            pixels, ids = some.to(plan.device, non_blocking=True), torch.arange(len(ids))
        program, of_epoch = plan.program(batch.wanted), (plan.stats, plan.config, plan.epoch)
        return apply_views(pixels, ids, batch.draws, mean, *of_epoch, program)

    def _as_raw(self, batch: EncodedBatch) -> EncodedBatch:
        """The samples as if they had been stored as raw pixels. Of a cache in the machine's
        memory."""
        return batch._replace(
            parts=[self._cache.part(sample).numpy() for sample in batch.ids.tolist()]
        )

    def _read(self, plan: EpochPlan, ids: Ids, *, check: bool = True) -> EncodedBatch:
        with self._timer.time("read_s"):
            batch = self._reader.read(plan, ids, check=check)
        self._timer.add(bytes_read=sum(map(len, batch.parts)))
        return batch

    def _fill(self, ids: Ids, plan: EpochPlan) -> None:
        batch = self._read(plan, ids, check=False)  # a stand-in has a place of its own in the cache
        with self._timer.time("decode_s"):
            if self._native:
                refused = self._fill_by_engine(batch, plan)
                ids, batch = ids[refused], batch.select(refused)
            rows, images = self._decode(batch, plan)
            if len(rows):
                self._cache.put(ids[rows], images)
        self._cache.state[np.delete(ids, rows)] = BAD

    def _fill_by_engine(self, batch: EncodedBatch, plan: EpochPlan) -> NDArray[np.int64]:
        """Straight into the cache; the rows that the engine refuses."""
        if self._engine is None:
            self._engine = NativeDecoder(self._threads)
        out = addresses([self._cache.part(sample).numpy() for sample in batch.ids.tolist()])
        extents = plan.sizes(batch.ids).T
        status = self._engine(whole_images(*files_of(batch), out, extents))
        refused = np.flatnonzero(status != Status.OK)
        decoded = np.delete(batch.ids, refused)
        self._timer.add(native=len(decoded), fallback=len(refused))
        self._cache.state[decoded] = PRESENT
        return refused

    def _decode(
        self, batch: EncodedBatch, plan: EpochPlan
    ) -> tuple[NDArray[np.int64], list[Tensor]]:
        """Rows that can be decoded whole, and their pixels, uint8 [height,width,3]; valid until the
        next call."""
        bad = invalid_rows(batch.parts, plan.manifest.codec, plan.sizes(batch.ids))
        rows = np.delete(np.arange(len(batch.ids)), bad)
        batch = batch.select(rows)
        if not len(rows):
            return rows, []
        if plan.manifest.codec == "raw":
            return rows, [torch.from_numpy(pixels) for pixels in stored_pixels(batch, plan)]
        if not dali_is_here():
            _, parts, bad = decode_by_pillow(batch, plan)
            good = np.delete(np.arange(len(rows)), bad)
            sizes = plan.sizes(batch.ids).T.tolist()
            return rows[good], [
                torch.from_numpy(parts[row].reshape(*sizes[row], 3)) for row in good.tolist()
            ]
        try:
            return rows, self._run(batch, plan)
        except RuntimeError as error:
            self._pipeline = None  # an error breaks it
            if not (bad := undecodable(batch, plan)):
                raise device_error(error, plan.device) from None
        kept = np.delete(np.arange(len(rows)), bad)
        return rows[kept], self._run(batch.select(kept), plan) if len(kept) else []

    def _run(self, batch: EncodedBatch, plan: EpochPlan) -> list[Tensor]:
        self._inputs[:] = [(dali_samples(batch, plan), *rectangles(batch, plan, whole=True))]
        if self._pipeline is None:
            inputs = self._inputs  # not self: a pipeline is a cycle and would keep the cache alive
            self._pipeline = _whole_pipeline(lambda: inputs[0], plan, self._threads)
        (images,) = self._pipeline.run()
        if plan.device.type == "cuda":
            if plan.whole:
                return [torch.utils.dlpack.from_dlpack(image) for image in images]
            return list(gpu.stacked(images))
        return [torch.from_numpy(np.asarray(images.at(row))) for row in range(len(batch.ids))]


def _whole_plan(plan: EpochPlan) -> EpochPlan:
    """The same rank's plan, were it to see whole images."""
    of_evaluation: dict[str, Any] = {
        "augment": False,
        "repeats": 1,
        "operations": (),
        "mix": (),
        "erasing": None,
        "schedule": (),
        "resize": None,
    }
    config = replace(
        plan.config, views=10, area=None, crop_chunk=1, bad_samples="raise", **of_evaluation
    )
    return replace(plan, config=config)


def _raw_plan(plan: EpochPlan) -> EpochPlan:
    """The same plan, were the dataset of raw pixels."""
    return replace(plan, manifest=replace(plan.manifest, codec="raw", quality=None))


def _whole_pipeline(feed: Any, plan: EpochPlan, threads: int) -> Any:
    """Whole images, by the decoder that serves the plan's device."""
    if plan.device.type == "cuda":
        return gpu.image_pipeline(lambda: feed()[:1], plan, threads)
    side = plan.manifest.image_size
    return crop_pipeline(feed, plan, threads, side, rows=plan.rows + 1, lockstep=True)
