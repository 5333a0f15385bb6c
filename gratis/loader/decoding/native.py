"""JPEGs to finished views on the CPU by the engine (gratis.loader.engine), straight into a batch's
memory; DALI decodes, in the same batch, what the engine refuses.

Per 1,000 images see docs/measured.md. The engine checks what it decodes; what it refuses, damaged
files among it, gets the checks that DALI needs (gratis.jpeg_check), so that bad samples are named
or replaced as without it."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Callable, Generator
from dataclasses import replace
from functools import cache, partial

import numpy as np
import torch
from numpy.typing import NDArray

from gratis.choices import Engine
from gratis.dataset import Manifest
from gratis.errors import GratisError
from gratis.loader.config import LoaderConfig
from gratis.loader.decoding.cpu import decode
from gratis.loader.decoding.dali_runner import DaliRunner
from gratis.loader.decoding.pillow import dali_is_here
from gratis.loader.engine.decoder import Addresses, NativeDecoder, Neighbours, ViewBatch
from gratis.loader.engine.library import ISAS, Filter, Library, PixelType, Status, chosen_isa, load
from gratis.loader.epoch.epoch_plan import EpochPlan
from gratis.loader.plan import Draws, Ids
from gratis.loader.reading.batch_reader import BatchReader, EncodedBatch
from gratis.loader.views.draw_mixing import Mix
from gratis.loader.views.draw_operations import Program
from gratis.loader.views.normaliser import Crops, Normaliser

TYPES = {
    torch.float32: PixelType.FLOAT32,
    torch.bfloat16: PixelType.BFLOAT16,
    torch.float16: PixelType.FLOAT16,
    torch.uint8: PixelType.UINT8,
}
FILTERS = {"bilinear": Filter.TRIANGLE, "bicubic": Filter.CUBIC}
ABSENT = "the engine is not compiled here"
ADVICE = "install gratis again where there is a C compiler"
# Fills a batch's views [n*views,...] and says whose they are, int64 [n]: others may stand in. What
# `NativeBatches` give mixes them too, by Neighbours, where those are given
Fill = Callable[..., Ids]


def choose_engine(
    config: LoaderConfig, manifest: Manifest, device: torch.device, *, decoded: bool = False
) -> Engine:
    """Who decodes. decoded: whether images are kept so. GratisError where the engine is asked for
    by name, or for operations, and cannot."""
    operates = any(stage.operations for stage in config.stages)
    if operates and device.type == "cpu" and load() is None:
        raise GratisError(f"operations are the engine's, and {ABSENT}; {ADVICE}")
    if config.engine == "dali":
        return "dali"
    if manifest.codec == "raw":
        return "dali"  # nothing is decoded
    if device.type != "cpu" and (config.engine == "auto" or decoded):
        return "dali"  # until it is measured
    library = load()
    if library is not None:
        slow = config.engine == "auto" and is_slower_than_dali(library)
        return "dali" if slow and dali_is_here() else "native"
    if config.engine == "native":
        raise GratisError(f"engine='native': {ABSENT}; {ADVICE}, or take engine='auto'")
    tell_of_absence()
    return "dali"


def is_slower_than_dali(library: Library) -> bool:
    """Whether the engine is in plain C on x86-64, that is without AVX2: then it takes 1.5 times
    DALI's CPU time, resized 2.0 times (n = 5 each, ranges 1.48 to 1.59 and 1.85 to 2.13)."""
    return ISAS[chosen_isa(library)] == "portable" and platform.machine() in ("x86_64", "AMD64")


@cache
def tell_of_absence() -> None:
    """Once a process."""
    cost = "DALI decodes instead, for about twice the CPU time"
    if not dali_is_here():
        cost = "Pillow decodes instead, for several times the CPU time"
    warnings.warn(f"{ABSENT}: {cost}; {ADVICE}", RuntimeWarning, stacklevel=4)


class NativeBatches:
    """Batches of plans, one after the other, by the engine. For one thread at a time."""

    def __init__(self, reader: BatchReader, runner: DaliRunner, threads: int) -> None:
        """runner: of DALI, for what the engine refuses."""
        self._reader, self._runner, self._threads = reader, runner, threads
        self._decoder: NativeDecoder | None = None

    def close(self) -> None:
        """Frees the engine's memory; the next batch takes it anew."""
        if self._decoder:
            self._decoder.close()
        self._decoder = None

    def batches(self, plan: EpochPlan) -> Generator[tuple[Ids, Fill], None, None]:
        """Of each step its samples' draw ids, and what fills their views; to be called before the
        next is taken."""
        for batch, fill in self.encoded(plan):
            yield batch.wanted, fill

    def encoded(self, plan: EpochPlan) -> Generator[tuple[EncodedBatch, Fill], None, None]:
        """Likewise, with the samples themselves."""
        normaliser = Normaliser(plan.stats, plan.config, plan.epoch)
        for batch in self._reader.batches(plan, check=False):
            yield batch, partial(self._fill, batch, plan, normaliser)

    def _fill(
        self,
        batch: EncodedBatch,
        plan: EpochPlan,
        normaliser: Normaliser,
        rows: torch.Tensor,
        neighbours: Neighbours | None = None,
    ) -> Ids:
        if self._decoder is None:
            self._decoder = NativeDecoder(self._threads)
        timer = self._runner.timer
        asked = replace(view_batch(batch, plan, normaliser, rows), neighbours=neighbours)
        with timer.time("decode_s"):
            status = self._decoder(asked)
        refused = np.flatnonzero(status != Status.OK)
        timer.add(native=len(status) - len(refused), fallback=len(refused))
        if not len(refused):
            return batch.ids
        ids, views, decoder = batch.ids.copy(), plan.config.views, self._decoder
        checked = iter([self._reader.check(plan, batch.select(refused))])
        for part, crops in decode(checked, plan, self._runner, self._threads):
            ids[refused] = part.ids
            with timer.time("finish_s"):
                for k, row in enumerate(refused.tolist()):
                    those = crops.rows(slice(k * views, (k + 1) * views))
                    own, place = rows[row * views : (row + 1) * views], slice(row, row + 1)
                    if neighbours:
                        _finish_among(decoder, asked, row, plan, normaliser, those, own)
                    else:
                        finish(decoder, batch.wanted[place], plan, normaliser, those, own)
        return ids


def neighbours_of(plan: EpochPlan, samples: int, mix: Mix | None, mixed: int) -> Neighbours | None:
    """How the engine is to mix a batch of so many samples, the first `mixed` of which are written.
    None: not at all, or not before it is finished, as bytes, and where boxes are erased first."""
    if mix is None or plan.config.erasing or plan.config.dtype == torch.uint8:
        return None
    return Neighbours(samples, mixed, mix.lam, mix.box)


def _finish_among(  # noqa: PLR0917
    decoder: NativeDecoder,
    asked: ViewBatch,
    row: int,
    plan: EpochPlan,
    normaliser: Normaliser,
    crops: Crops,
    rows: torch.Tensor,
) -> None:
    """Crops of one sample of a batch that is mixed, to its views and those behind it. Where another
    sample stands in for it, mirror and shift are that one's."""
    shape = (1, plan.config.views)
    own = _normalised(_asked(plan, crops, rows, shape), crops, normaliser, plan)
    for there, here in ((asked.flip, own.flip), (asked.plus, own.plus), (asked.minus, own.minus)):
        if there is not None and here is not None:
            there[row] = here[0]
    pixels = np.zeros(asked.out.shape, np.uint64)
    pixels[row] = crops.pixels.ctypes.data + crops.start
    decoder.augment(asked, pixels, crops.stride, sample=row)


def finish(  # noqa: PLR0917
    decoder: NativeDecoder | None,
    wanted: Ids,
    plan: EpochPlan,
    normaliser: Normaliser,
    crops: Crops,
    rows: torch.Tensor,
) -> None:
    """Crops of the samples that the order names to finished views, rows as of `view_batch`, with
    the configuration's operations, which are the decoder's library's."""
    program = plan.program(wanted)
    if program is None or decoder is None:
        normaliser(crops, rows)
        return
    shape = (len(wanted), plan.config.views)
    asked = _normalised(_asked(plan, crops, rows, shape), crops, normaliser, plan)
    pixels = crops.pixels.ctypes.data + crops.start
    asked = _with_program(asked, program)
    decoder.augment(asked, pixels.astype(np.uint64).reshape(shape), crops.stride)


def view_batch(
    batch: EncodedBatch, plan: EpochPlan, normaliser: Normaliser, rows: torch.Tensor
) -> ViewBatch:
    """A batch's views as the engine is asked for them. rows: where they go, [n*views,...] in the
    configuration's type and layout."""
    config, draws, shape = plan.config, batch.draws, (len(batch.ids), plan.config.views)
    sides = np.full((len(rows), 2), config.crop) if batch.extents is None else batch.extents
    boxes = np.column_stack([draws.y, draws.x, sides])
    targets = None if batch.targets is None else batch.targets.astype(np.int32)
    asked, (data, size) = _asked(plan, draws, rows, shape), files_of(batch)
    if targets is None and (sides == config.crop).all():
        asked = replace(asked, filter=Filter.CROP)
    asked = replace(
        asked,
        data=data,
        size=size,
        shape=np.ascontiguousarray(plan.sizes(batch.ids).T.astype(np.int32)),
        rectangles=boxes.astype(np.int32).reshape(*shape, 4),
        targets=None if targets is None else targets.reshape(*shape, 4),
    )
    return _with_program(_normalised(asked, draws, normaliser, plan), plan.program(batch.wanted))


def _asked(
    plan: EpochPlan, draws: Draws | Crops, rows: torch.Tensor, shape: tuple[int, int]
) -> ViewBatch:
    """shape: samples and views of each. Without files and rectangles."""
    config = plan.config
    out = rows.data_ptr() + np.arange(len(rows)) * (rows.stride(0) * rows.element_size())
    return ViewBatch(
        data=np.zeros(shape[0], np.uint64),
        size=np.zeros(shape[0], np.int64),
        rectangles=np.zeros((*shape, 4), np.int32),
        out=out.astype(np.uint64).reshape(shape),
        height=config.crop,
        width=config.crop,
        flip=draws.flip.astype(np.uint8).reshape(shape),
        filter=FILTERS[config.interpolation],
        antialias=config.antialias,
        type=TYPES[config.dtype],
        channels_last=config.interleaved,
    )


def files_of(batch: EncodedBatch) -> tuple[Addresses, NDArray[np.int64]]:
    """Address and bytes of each sample."""
    begins = (batch.buffer.ctypes.data + batch.begins).astype(np.uint64)
    return begins, np.array([len(part) for part in batch.parts], np.int64)


def _with_program(asked: ViewBatch, program: Program | None) -> ViewBatch:
    if program is None:
        return asked
    steps = program.ops.shape[1]
    ops = program.ops.reshape(*asked.out.shape, steps)
    return replace(asked, ops=ops, values=program.values.reshape(*asked.out.shape, steps, -1))


def _normalised(
    asked: ViewBatch, draws: Draws | Crops, normaliser: Normaliser, plan: EpochPlan
) -> ViewBatch:
    """With scale, shift and mean, and the normaliser's bits. Of a mean that is the same everywhere
    one row is read, or, of planes, a number. Of bytes nothing."""
    if plan.config.dtype == torch.uint8:
        return asked
    shape, mean = asked.out.shape, normaliser.mean
    shift = normaliser.shift(draws).reshape(*shape, 3)
    scaled = replace(asked, scale=normaliser.factor, plus=shift)
    if normaliser.level is not None and not asked.channels_last:
        return replace(scaled, plus=shift - normaliser.level)
    side, top, left = normaliser.mean_region(draws)
    per_row, per_pixel = mean.strides[-2], mean.itemsize * (3 if asked.channels_last else 1)
    begins = mean.ctypes.data + side * mean.strides[0] + top * per_row + left * per_pixel
    return replace(
        scaled,
        minus=begins.astype(np.uint64).reshape(shape),
        minus_row=per_row // mean.itemsize if normaliser.level is None else 0,
        minus_plane=0 if asked.channels_last else mean.strides[1] // mean.itemsize,
    )
