"""The stages that make batches, and what they keep from one epoch to the next: files, decoders,
buffers.

The way of the bytes from tar to batch, all of it on the prefetcher's thread but for DALI's own:

    EpochPlan                  which samples in which step, and their views: pure numbers
        | ids of a step
    BatchReader (reading/)     ShardReader: pread of the tars, from the ShardCache if they are on a
        |                      server; jpeg_check and Quarantine: bad samples are replaced
        | EncodedBatch: JPEG or PPM bytes, with the draws of their views
        |
        |-- device cpu, JPEGs --> decoding/native: the engine (engine/) decodes, resizes, normalises
        |                      | on threads of its own; what it refuses goes the next way
        |                      | into memory of the BufferPool, which nobody refers to any more
        |
        |-- device cpu --> decoding/cpu: DALI decodes the crop alone (without DALI Pillow, whole
        |                  images); of PPMs nothing is decoded; views/resize, if parts are resized
        |                      | Crops: where uint8 pixels lie, and the draws
        |                  Normaliser (views/): mirror, mean, colour noise, type, layout, one pass
        |                      | into that memory
        |
        '-- device cuda -> decoding/gpu: one DALI graph decodes, crops and normalises
                               | float32 on the device, copied out of DALI's memory
                           with engine="native" decoding/native_gpu: the engine's crops as bytes,
                               | copied to the device and finished there by torch
    BatchOperations: erasing; mixing with the image before, unless the engine has; soft labels
        |
    ReadyBatch: Batch (images, labels, ids), padded to b rows
        | queue (prefetch.py)
    EpochIterator (loader.py)

The second way is that of engine="dali", of PPMs and of the decoded cache too. With
LoaderConfig.decoded, CachedDecoder (decoding/) stands between reader and decoder: what was
decoded in an earlier epoch, for the CPU by the engine, comes from the DecodedCache as Crops (CPU)
or by torch_views (GPU)."""

from __future__ import annotations

from collections.abc import Generator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from gratis.choices import Engine
from gratis.loader.batch import Batch
from gratis.loader.decoding import gpu
from gratis.loader.decoding.cached_decoder import CachedDecoder, MakeImages
from gratis.loader.decoding.cpu import BatchCrops, decode
from gratis.loader.decoding.dali_runner import DaliRunner
from gratis.loader.decoding.decoded_cache import DecodedCache
from gratis.loader.decoding.native import Fill, NativeBatches, finish, neighbours_of
from gratis.loader.decoding.native_gpu import NativeImages
from gratis.loader.engine.decoder import NativeDecoder
from gratis.loader.epoch.epoch_plan import EpochPlan
from gratis.loader.epoch.stage_timer import StageTimer
from gratis.loader.pipeline.batch_operations import BatchOperations, labels_of
from gratis.loader.pipeline.batch_tensors import (
    blank_images,
    image_bytes,
    images_in,
    new_memory,
    pad_images,
)
from gratis.loader.pipeline.buffer_pool import BufferPool, Memory
from gratis.loader.plan import Ids
from gratis.loader.reading.batch_reader import BatchReader, EncodedBatch
from gratis.loader.reading.quarantine import Quarantine
from gratis.loader.reading.shard_reader import ShardReader
from gratis.loader.views.draw_mixing import Mix
from gratis.loader.views.normaliser import Crops, Normaliser
from gratis.network import FetchCancelled


class ReadyBatch(NamedTuple):
    """A batch, and what the queue needs to know of it."""

    batch: Batch
    samples: int  # rows that are samples
    copied: Any  # CUDA event after which the batch is on the device; None on the CPU


class BatchPipeline:
    """Plans of one loader, one after the other, to ready batches. For one thread at a time."""

    def __init__(
        self,
        plan: EpochPlan,
        shards: ShardReader,
        timer: StageTimer,
        quarantine: Quarantine,
        *,
        threads: int,
        decoded: DecodedCache | None,
        engine: Engine,
    ) -> None:
        self._shards, self._timer, self._threads = shards, timer, threads
        self._reader = BatchReader(shards, timer, quarantine)
        self._runner, self._resizer = (DaliRunner(timer, self._reader) for _ in range(2))
        self._cached: CachedDecoder | None = None
        if decoded:
            self._cached = CachedDecoder(decoded, self._reader, timer, threads, engine)
        native = engine == "native" and decoded is None
        self._native = NativeBatches(self._reader, self._runner, threads) if native else None
        self._native_images: NativeImages | None = None
        self._operations = BatchOperations(threads, plan.device)
        self._augmenter: NativeDecoder | None = None  # where DALI decodes: operations alone
        self._stream: Any = None
        if plan.device.type == "cuda":
            self._native_images = NativeImages(self._native) if self._native else None
            self._stream = torch.cuda.Stream(plan.device)  # type: ignore[no-untyped-call]
            # the cache's memory may have been that of a tensor which the consumer's stream is not
            # done with
            self._stream.wait_stream(torch.cuda.current_stream(plan.device))

    def batches(self, plan: EpochPlan, pool: BufferPool) -> Generator[ReadyBatch, None, None]:
        """Each batch waits for the pool before it is written."""
        done = 0
        for ready in self._on_cpu(plan, pool) if self._stream is None else self._on_gpu(plan, pool):
            yield ready
            del ready
            done += 1
        if done < len(plan.steps):  # the last step has no sample for this rank
            memory, none = self._wait(pool), np.empty(0, np.int64)
            if self._stream is None:
                images = self._images_of(plan, pool, memory)[: plan.padding(0)].zero_()
                batch, copied = Batch(images, *labels_of(plan, none, 0, None)), None
            else:
                with torch.cuda.stream(self._stream):
                    blank = partial(blank_images, plan)
                    batch, copied = self._to_device(plan, none, 0, None, blank)
            yield ReadyBatch(batch, 0, copied)

    def stop(self) -> None:
        """Ends a wait for a server. For any thread."""
        self._shards.stop()

    def close(self) -> None:
        native = self._native_images or self._native
        parts = (self._runner, self._resizer, self._cached, native, self._operations)
        for closing in (*parts, self._augmenter):
            if closing:
                closing.close()
        self._reader.close()
        self._shards.close()

    def _wait(self, pool: BufferPool) -> Memory:
        with self._timer.time("blocked_s"):
            memory = pool.get()
        if memory is None or pool.closed:
            raise FetchCancelled
        return memory

    @staticmethod
    def _images_of(plan: EpochPlan, pool: BufferPool, memory: Memory) -> torch.Tensor:
        """In that memory; NEW, and that of an epoch with other crops, is allocated."""
        fits = len(memory) == image_bytes(plan)
        return images_in(pool.lend(memory if fits else new_memory(plan)), plan)

    def _on_cpu(self, plan: EpochPlan, pool: BufferPool) -> Generator[ReadyBatch, None, None]:
        made = self._native.batches(plan) if self._native else self._by_dali(plan)
        for step, (wanted, fill) in enumerate(made, plan.first_step):
            mix = plan.mix(step)
            samples = len(wanted) - plan.partners(step, mix)
            memory = self._wait(pool)
            whole = self._images_of(plan, pool, memory)
            decoded = whole[: len(wanted)]
            rows = decoded.flatten(0, 1) if plan.config.views > 1 else decoded
            neighbours = neighbours_of(plan, len(wanted), mix, samples) if self._native else None
            ids = fill(rows, neighbours) if neighbours else fill(rows)
            with self._timer.time("finish_s"):
                self._operations.erase(decoded, wanted, plan)
                self._operations.mix(decoded, samples, None if neighbours else mix, plan)
            images = whole[: samples + plan.padding(samples)]
            images[samples:] = 0
            batch = Batch(images, *labels_of(plan, ids, samples, mix))
            yield ReadyBatch(batch, samples, None)
            del (
                whole,
                decoded,
                rows,
                images,
                batch,
                memory,
            )  # nobody refers to a batch but who took it

    def _by_dali(self, plan: EpochPlan) -> Generator[tuple[Ids, Fill], None, None]:
        """Of each step its samples' draw ids, and what fills their views."""
        normalise = Normaliser(plan.stats, plan.config, plan.epoch)
        for encoded, crops in self._crops(plan):
            yield encoded.wanted, partial(self._finish, plan, normalise, encoded, crops)

    def _finish(
        self,
        plan: EpochPlan,
        normalise: Normaliser,
        encoded: EncodedBatch,
        crops: Crops,
        rows: torch.Tensor,
    ) -> Ids:
        if plan.config.operations and self._augmenter is None:
            self._augmenter = NativeDecoder(self._threads)
        with self._timer.time("finish_s"):
            finish(self._augmenter, encoded.wanted, plan, normalise, crops, rows)
        return encoded.ids

    def _crops(self, plan: EpochPlan) -> BatchCrops:
        if self._cached is None:
            return decode(self._reader.batches(plan), plan, self._runner, self._threads)
        return self._cached.crops(plan, self._runner)

    def _on_gpu(self, plan: EpochPlan, pool: BufferPool) -> Generator[ReadyBatch, None, None]:
        with torch.cuda.stream(self._stream):  # of this thread alone
            made = enumerate(self._images(plan), plan.first_step)
            for step, (wanted, ids, make_images) in made:
                mix = plan.mix(step)
                samples = len(ids) - plan.partners(step, mix)
                self._wait(pool)
                with self._timer.time("transfer_s"):
                    images = partial(self._finished, make_images, wanted, samples, mix, plan)
                    batch, copied = self._to_device(plan, ids, samples, mix, images)
                yield ReadyBatch(batch, samples, copied)

    def _finished(
        self, make_images: MakeImages, wanted: Ids, samples: int, mix: Mix | None, plan: EpochPlan
    ) -> torch.Tensor:
        """On a GPU, without what precedes the batch's first sample."""
        images = make_images()
        self._operations.erase(images, wanted, plan)
        self._operations.mix(images, samples, mix, plan)
        return images[:samples]

    def _images(self, plan: EpochPlan) -> Generator[tuple[Ids, Ids, MakeImages], None, None]:
        """Of each step its samples' draw ids, their ids, and what makes their images."""
        if self._native_images:
            yield from self._native_images.images(plan)
        elif self._cached:
            for encoded, make_images in self._cached.images(plan, self._runner, self._resizer):
                yield encoded.wanted, encoded.ids, make_images
        else:
            batches = self._reader.batches(plan)
            for encoded, tensor in gpu.decode_views(batches, plan, self._runner, self._threads):
                make_images = partial(gpu.to_torch, tensor, plan, encoded)
                yield encoded.wanted, encoded.ids, make_images
                del tensor

    def _to_device(
        self, plan: EpochPlan, ids: Ids, samples: int, mix: Mix | None, make_images: MakeImages
    ) -> tuple[Batch, Any]:
        """A batch that torch owns, and the event after which it may be read. DALI may take its
        buffer back at once."""
        labels, padded_ids = labels_of(plan, ids, samples, mix)
        labels_there = labels.to(plan.device)  # waits for the stream, and so for the batch before
        batch = Batch(pad_images(make_images(), plan), labels_there, padded_ids)
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record(self._stream)
        if self._native_images is None:  # its buffers wait for themselves, while it decodes on
            self._stream.synchronize()
        return batch, copied
