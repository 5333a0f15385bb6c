"""Batches of views through the library: checks what it is called with, and shares a batch among
threads."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gratis.errors import GratisError
from gratis.loader.engine.library import (
    ISAS,
    ITEM_SIZES,
    VALUES,
    Filter,
    JobStruct,
    Library,
    NeighboursStruct,
    PixelType,
    Status,
    address,
    chosen_isa,
    load,
)

Addresses = NDArray[np.uint64]
Floats = NDArray[np.float32]
OPTIONAL = ("shape", "targets", "flip", "scale", "plus", "minus", "ops", "values")
STREAM_FROM = 8 << 20  # bytes of a batch that no cache keeps until somebody reads it


class Neighbours:
    """How a batch of n samples is mixed while it is made: each with the one before it, the first
    with the last. Of the same batch an object of its own."""

    def __init__(
        self, total: int, mixed: int, lam: float, box: tuple[int, int, int, int] | None
    ) -> None:
        """total: n; mixed: how many of them are written, n or n - 1: then the last precedes the
        first and is nothing else. lam: the share of a sample itself. box: y, x, height, width,
        inside the view, of what is the one before alone; lam is not looked at then."""
        self.total, self.mixed, self.lam, self.box = total, mixed, lam, box
        self._arrived = np.zeros(total, np.int32)

    def struct(self) -> NeighboursStruct:
        return NeighboursStruct(
            total=self.total,
            mixed=self.mixed,
            arrived=address(self._arrived),
            lam=self.lam,
            rest=1.0 - self.lam,
            is_box=self.box is not None,
            box=self.box or (0, 0, 0, 0),
        )


@dataclass(frozen=True, kw_only=True)
class ViewBatch:
    """n samples with v views each, and where they go. All arrays are C-contiguous and stay alive as
    long as they are in use; nothing is copied.

    data uint64 [n], size int64 [n]: address and bytes of each file. rectangles int32 [n,v,4]: y, x,
    height and width in the image. out uint64 [n,v]: address of each finished view. height, width:
    of the views; 0: their rectangles' own. targets int32 [n,v,4], of resized views: height and
    width that the rectangle is resized to, y and x of the view's corner there; None: the view is
    all of it. antialias: a filter widens where it shrinks, as Pillow's do; else it looks at 2 or 4
    pixels along each axis. flip uint8 [n,v]: 1 mirrors. A value is pixel * scale + (plus - minus),
    or channels last (pixel * scale + plus) - minus, in float32 with a fused multiplication: scale
    float32 [3], plus float32 [n,v,3], minus uint64 [n,v]: address of the first float32 for each
    view, minus_row floats from one row to the next and minus_plane from one channel to the next
    (channels last: they are adjacent). Of uint8 there is neither. shape int32 [n,2]: height and
    width of the images, whose status is SIZE if they have another; None: any.

    ops int32 [n,v,steps] and values float32 [n,v,steps,VALUES]: the program of each view, an `Op`
    and its numbers for each step; None: no programs. neighbours: how the samples are mixed, not of
    uint8, nor where height is 0; None: not at all."""

    data: Addresses
    size: NDArray[np.int64]
    rectangles: NDArray[np.int32]
    out: Addresses
    height: int
    width: int
    shape: NDArray[np.int32] | None = None
    targets: NDArray[np.int32] | None = None
    flip: NDArray[np.uint8] | None = None
    scale: Floats | None = None
    plus: Floats | None = None
    minus: Addresses | None = None
    minus_row: int = 0
    minus_plane: int = 0
    ops: NDArray[np.int32] | None = None
    values: Floats | None = None
    filter: Filter = Filter.CROP
    antialias: bool = True
    type: PixelType = PixelType.FLOAT32
    channels_last: bool = False
    neighbours: Neighbours | None = None

    def __post_init__(self) -> None:
        samples, views = self.out.shape
        steps = 0 if self.ops is None else self.ops.shape[-1]
        wanted: dict[str, tuple[type[np.generic], tuple[int, ...]]] = {
            "data": (np.uint64, (samples,)),
            "size": (np.int64, (samples,)),
            "rectangles": (np.int32, (samples, views, 4)),
            "out": (np.uint64, (samples, views)),
            "shape": (np.int32, (samples, 2)),
            "targets": (np.int32, (samples, views, 4)),
            "flip": (np.uint8, (samples, views)),
            "scale": (np.float32, (3,)),
            "plus": (np.float32, (samples, views, 3)),
            "minus": (np.uint64, (samples, views)),
            "ops": (np.int32, (samples, views, steps)),
            "values": (np.float32, (samples, views, steps, VALUES)),
        }
        for name, (dtype, shape) in wanted.items():
            array = getattr(self, name)
            if array is None and name in OPTIONAL:
                continue
            if array.dtype != dtype or array.shape != shape or not array.flags.c_contiguous:
                raise ValueError(f"{name} is {array.dtype} {array.shape}, not {dtype} {shape}")
        sized = self.height > 0 and self.width > 0
        needs_size = self.filter != Filter.CROP or self.ops is not None
        if not sized and (needs_size or (self.height, self.width) != (0, 0)):
            raise ValueError(f"views of {self.height} x {self.width} pixels")
        if self.targets is not None and self.filter == Filter.CROP:
            raise ValueError("targets are for a filter that resizes")
        if self.neighbours and (self.type == PixelType.UINT8 or not sized):
            raise ValueError("bytes, and views of any size, are not mixed")
        if self.neighbours and self.neighbours.total != samples:
            raise ValueError(f"neighbours of {self.neighbours.total} samples, not {samples}")

    def struct(self, status: NDArray[np.int32]) -> JobStruct:
        samples, views = self.out.shape
        view_bytes = 3 * self.height * self.width * ITEM_SIZES[self.type]
        return JobStruct(
            samples=samples,
            views=views,
            data=address(self.data),
            size=address(self.size),
            shape=address(self.shape),
            rectangles=address(self.rectangles),
            targets=address(self.targets),
            flip=address(self.flip),
            scale=address(self.scale),
            plus=address(self.plus),
            minus=address(self.minus),
            minus_row=self.minus_row,
            minus_plane=self.minus_plane,
            out=address(self.out),
            status=address(status),
            out_height=self.height,
            out_width=self.width,
            filter=self.filter,
            antialias=self.antialias,
            type=self.type,
            channels_last=self.channels_last,
            stream=samples * views * view_bytes >= STREAM_FROM,
            steps=0 if self.ops is None else self.ops.shape[-1],
            ops=address(self.ops),
            values=address(self.values),
            neighbours=self.neighbours and ctypes.pointer(self.neighbours.struct()),
        )


class NativeDecoder:
    """Decodes batches on some threads, each with scratch memory of its own. For one caller at a
    time."""

    def __init__(
        self, threads: int = 1, *, isa: str | None = None, library: Library | None = None
    ) -> None:
        """GratisError where there is no library. isa: "portable", "avx2" or "avx512"; None: the
        best of this machine, or that of the environment's GRATIS_ENGINE_ISA."""
        library = library or load()
        if library is None:
            raise GratisError(
                "the engine is not compiled here; `make install` with a C compiler does"
            )
        number = chosen_isa(library) if isa is None else ISAS.index(isa)
        self._library, self.isa = library, ISAS[number]
        self._contexts = [context for _ in range(threads) if (context := library.new(number))]
        if len(self._contexts) < threads:
            self.close()
            raise GratisError(
                f"no memory or no instruction set for the engine on {threads} threads"
            )
        self._pool = ThreadPoolExecutor(threads - 1, "engine") if threads > 1 else None

    def __call__(self, batch: ViewBatch) -> NDArray[np.int32]:
        """Fills the batch's views; a `Status` for each sample, int32 [n]. Views of a sample that is
        not OK hold anything, and where samples are mixed so do those behind it, until `augment`
        brings it."""
        status = np.full(len(batch.size), Status.MEMORY, np.int32)
        job = batch.struct(status)
        if batch.neighbours:  # to one thread, whose cache holds them; at first many, at last few
            job.shares = len(self._contexts) + len(self._contexts) // 2
        self._share(self._library.run, job)
        return status

    def augment(
        self, batch: ViewBatch, pixels: Addresses, stride: int, *, sample: int | None = None
    ) -> None:
        """The batch's programs and all that follows them, on views that are decoded and resized:
        pixels uint64 [n,v], the address of each view's RGB triplets in rows that are stride bytes
        apart. Of the batch neither data nor size nor rectangles are looked at. sample: of that one
        alone, to be mixed with the batch's others, which came before or will come."""
        status = np.full(len(batch.out), Status.OK, np.int32)
        job = batch.struct(status)
        if sample is not None:
            job.next, job.samples = sample, sample + 1
        self._share(self._library.augment, job, address(pixels), stride)
        if (status != Status.OK).any():
            raise MemoryError("no memory for the engine's operations")

    def _share(self, function: Callable[..., None], job: JobStruct, *more: Any) -> None:
        others: list[Future[None]] = []
        try:  # at the interpreter's end a pool takes nothing more, while what it took still runs
            if self._pool:
                for context in self._contexts[1:]:
                    others.append(self._pool.submit(function, context, ctypes.byref(job), *more))
            function(self._contexts[0], ctypes.byref(job), *more)
        finally:
            for other in others:
                other.result()

    def close(self) -> None:
        """Gives back the scratch memory; for any number of times."""
        if pool := getattr(self, "_pool", None):
            pool.shutdown()
            self._pool = None
        while self._contexts:
            self._library.free(self._contexts.pop())

    def __enter__(self) -> NativeDecoder:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_contexts"):
            self.close()


def whole_images(
    data: Addresses, size: NDArray[np.int64], out: Addresses, extents: NDArray[np.integer[Any]]
) -> ViewBatch:
    """Images [n] as they are, as bytes [height,width,3]. extents [n,2]: height and width of each;
    of an image that has others the status is SIZE."""
    shape = np.ascontiguousarray(extents, np.int32)
    return ViewBatch(
        data=data,
        size=size,
        shape=shape,
        rectangles=np.column_stack([np.zeros_like(shape), shape])[:, None],
        out=out[:, None],
        height=0,
        width=0,
        type=PixelType.UINT8,
        channels_last=True,
    )


def addresses(arrays: Sequence[NDArray[Any]]) -> Addresses:
    """Of the first byte of each, uint64 [n]. They must outlive it."""
    return np.array([array.ctypes.data for array in arrays], np.uint64)
