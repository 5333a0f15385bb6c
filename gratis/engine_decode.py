"""Whole JPEGs through the engine's library, in less time than Pillow takes: for the shard stage,
which decodes each source, and once more each image that it writes."""

from __future__ import annotations

import ctypes
import threading
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FILE = Path(__file__).parent / "loader/engine/libgratis_engine.native.so"
# of an image: scratch memory of half again as many bytes is kept, and Pillow keeps none
MOST_PIXELS = 1 << 24


@cache
def _library(file: Path) -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(file))
        library.gratis_new.restype = ctypes.c_void_p
        library.gratis_free.argtypes = (ctypes.c_void_p,)
        side, place = ctypes.c_int32, ctypes.c_void_p
        arguments = (place, ctypes.c_char_p, ctypes.c_int64, side, side, place)
        library.gratis_decode.argtypes = arguments
    except (OSError, AttributeError):  # not compiled here, or an older one
        return None
    return library


class _Context:
    """Scratch memory of the library's, for one thread. address: None where memory is short."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self.address: int | None = library.gratis_new(library.gratis_best_isa())

    def __del__(self) -> None:
        self._library.gratis_free(self.address)


_thread = (
    threading.local()
)  # .context: a _Context, from the first image on; it goes with the thread


def decode(data: bytes, height: int, width: int) -> NDArray[np.uint8] | None:
    """The pixels uint8 [height,width,3] of a JPEG of that size, to the bit of libjpeg-turbo's; None
    where there is no engine, or it leaves the file to another decoder. For any thread."""
    library = _library(FILE)
    if library is None or height * width > MOST_PIXELS:
        return None
    if not hasattr(_thread, "context"):
        _thread.context = _Context(library)
    context = _thread.context.address
    if context is None:
        return None
    pixels = np.empty((height, width, 3), np.uint8)
    status = library.gratis_decode(context, data, len(data), height, width, pixels.ctypes.data)
    return pixels if status == 0 else None
