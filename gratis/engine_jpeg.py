"""Whole JPEGs by the engine's library, in less time than Pillow takes: for the shard stage, which
decodes each source, encodes each image that it writes, and decodes that once more."""

from __future__ import annotations

import ctypes
import threading
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FILE = Path(__file__).parent / "loader/engine/libgratis_engine.native.so"
VERSION = 7  # of its functions: GRATIS_ENGINE_VERSION of engine.h
# of an image: scratch memory of half again as many bytes is kept, and Pillow keeps none
MOST_PIXELS = 1 << 24
PLANES, WORDS = 0, 2  # forms of pixels: channels_last of engine.h


@cache
def _library(file: Path) -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(file))
        if library.gratis_engine_version() != VERSION:
            return None
    except (OSError, AttributeError):  # not compiled here, or something else
        return None
    place, number = ctypes.c_void_p, ctypes.c_int32
    library.gratis_new.restype = place
    library.gratis_free.argtypes = (place,)
    size, three = ctypes.c_int64, (number, number, number)
    library.gratis_decode.argtypes = (place, ctypes.c_char_p, size, *three, place)
    library.gratis_encode.argtypes = (place, ctypes.c_char_p, *three, number, place)
    library.gratis_encode.restype = size
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
    """The pixels uint8 [height,width,3] of a JPEG of that size, to the bit of libjpeg-turbo's; they
    lie in memory channel by channel. None where there is no engine, or it leaves the file to
    another decoder. For any thread."""
    planes = _decode(data, height, width, (3, height, width), PLANES)
    return None if planes is None else planes.transpose(1, 2, 0)


def decode_words(data: bytes, height: int, width: int) -> NDArray[np.uint8] | None:
    """The same as [height,width,4] in that order, with 255 behind each pixel."""
    return _decode(data, height, width, (height, width, 4), WORDS)


def encode(pixels: bytes, height: int, width: int, quality: int) -> bytes | None:
    """The JPEG that libjpeg-turbo makes of an image in 4:2:0, its Huffman tables fitted to it, with
    a restart marker behind each row of MCUs. pixels: RGB and a byte that does not count, row by
    row; quality: 1 to 100. None where there is no engine, or no memory. For any thread."""
    if len(pixels) != 4 * height * width:
        raise ValueError(f"{len(pixels)} bytes are not those of {height} x {width} pixels")
    if (found := _for(height, width)) is None:
        return None
    library, context = found
    file = ctypes.c_void_p()
    size = library.gratis_encode(context, pixels, 4, height, width, quality, ctypes.byref(file))
    return ctypes.string_at(file, size) if size else None


def _decode(
    data: bytes, height: int, width: int, shape: tuple[int, int, int], form: int
) -> NDArray[np.uint8] | None:
    if (found := _for(height, width)) is None:
        return None
    library, context = found
    pixels = np.empty(shape, np.uint8)
    place = pixels.ctypes.data
    status = library.gratis_decode(context, data, len(data), height, width, form, place)
    return pixels if status == 0 else None


def _for(height: int, width: int) -> tuple[Any, int] | None:
    """The library, and this thread's scratch memory, for an image of that size."""
    library = _library(FILE)
    if library is None or height * width > MOST_PIXELS:
        return None
    if not hasattr(_thread, "context"):
        _thread.context = _Context(library)
    context = _thread.context.address
    return None if context is None else (library, context)
