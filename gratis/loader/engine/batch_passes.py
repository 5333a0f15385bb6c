"""Passes of the library over a finished batch, on threads of their own: mixing, erasing."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gratis.loader.engine.library import Library, PixelType, address, chosen_isa

AT_ONCE = 16384  # elements of an image, at most, that are mixed at a time: they stay in the cache


class Rows(NamedTuple):
    """Images of a batch in memory: address of the first, how many, bytes from one to the next."""

    address: int
    images: int
    row_bytes: int


class MixingStruct(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("rows", "before")),
        *((name, ctypes.c_int64) for name in ("images", "row_bytes")),
        *((name, ctypes.c_void_p) for name in ("segment", "group")),
        *((name, ctypes.c_int64) for name in ("groups", "next")),
        *((name, ctypes.c_float) for name in ("lam", "rest")),
        ("type", ctypes.c_int32),
    )


class ErasingStruct(ctypes.Structure):
    _fields_ = (
        ("rows", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("images", "row_bytes")),
        *((name, ctypes.c_void_p) for name in ("first", "boxes", "colours", "counters")),
        ("key", ctypes.c_uint32 * 2),
        *((name, ctypes.c_uint32) for name in ("epoch", "purpose")),
        ("next", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("height", "width", "type", "channels_last")),
    )


class BatchPasses:
    """For one caller at a time."""

    def __init__(self, library: Library, threads: int, isa: int | None = None) -> None:
        self._library = library
        self._isa = chosen_isa(library) if isa is None else isa
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads - 1, "passes") if threads > 1 else None

    def mix(
        self,
        rows: Rows,
        before: int | None,
        segments: NDArray[np.int64],
        lam: float,
        type: PixelType,
    ) -> None:
        """Each image with the one before it, by lam and 1 - lam, at the same places. before:
        address of what precedes the first; None: the last. segments int64 [n,2]: which elements of
        an image, from which one on and how many, at most AT_ONCE."""
        if not len(segments):
            return
        share = min(AT_ONCE, int(segments[:, 1].sum()) // self._threads)  # of a group
        most = max(1, share // int(segments[:, 1].max()))
        groups = np.append(np.arange(0, len(segments), most), len(segments)).astype(np.int64)
        job = MixingStruct(
            rows=rows.address,
            before=before,
            images=rows.images,
            row_bytes=rows.row_bytes,
            segment=address(segments),
            group=address(groups),
            groups=len(groups) - 1,
            lam=lam,
            rest=1.0 - lam,
            type=type,
        )
        self._run(self._library.mix, job)

    def erase(  # noqa: PLR0917
        self,
        rows: Rows,
        first: NDArray[np.int64],
        boxes: NDArray[np.int32],
        colours: NDArray[np.float32] | None,
        noise: tuple[NDArray[np.uint32], int, int, int],
        shape: tuple[int, int],
        type: PixelType,
        *,
        channels_last: bool,
    ) -> None:
        """Boxes int32 [n,4] (y, x, height, width), those of image i from first[i] to first[i + 1],
        to their colours float32 [n,3], or, where those are None, to standard normals. noise:
        counters uint32 [images,2], seed, epoch and purpose of Philox. shape: height and width of
        an image."""
        counters, seed, epoch, purpose = noise
        job = ErasingStruct(
            rows=rows.address,
            images=rows.images,
            row_bytes=rows.row_bytes,
            first=address(first),
            boxes=address(boxes),
            colours=address(colours),
            counters=address(counters),
            key=(ctypes.c_uint32 * 2)(seed & 0xFFFFFFFF, seed >> 32),
            epoch=epoch,
            purpose=purpose,
            height=shape[0],
            width=shape[1],
            type=type,
            channels_last=channels_last,
        )
        self._run(self._library.erase, job)

    def _run(self, function: Callable[..., None], job: Any) -> None:
        others = []
        try:  # at the interpreter's end a pool takes nothing more
            if self._pool:
                for _ in range(self._threads - 1):
                    others.append(self._pool.submit(function, self._isa, ctypes.byref(job)))
            function(self._isa, ctypes.byref(job))
        finally:
            for other in others:
                other.result()

    def close(self) -> None:
        """Ends the threads."""
        if self._pool:
            self._pool.shutdown()
        self._pool, self._threads = None, 1
