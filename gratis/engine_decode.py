"""Whole JPEGs through the engine's library, in a third of Pillow's time: for the shard stage, which
decodes each image that it writes once more."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FILE = Path(__file__).parent / "loader/engine/libgratis_engine.native.so"


@cache
def _engine(file: Path) -> tuple[ctypes.CDLL, int] | None:
    """The library and scratch memory of its, which is this thread's for good; None without."""
    try:
        library = ctypes.CDLL(str(file))
        library.gratis_new.restype = ctypes.c_void_p
        side, place = ctypes.c_int32, ctypes.c_void_p
        arguments = (place, ctypes.c_char_p, ctypes.c_int64, side, side, place)
        library.gratis_decode.argtypes = arguments
    except (OSError, AttributeError):  # not compiled here, or an older one
        return None
    context = library.gratis_new(library.gratis_best_isa())
    return (library, context) if context else None


def decode(data: bytes, height: int, width: int) -> NDArray[np.uint8] | None:
    """The pixels uint8 [height,width,3] of a JPEG of that size, to the bit of libjpeg-turbo's; None
    where there is no engine, or it leaves the file to another decoder. For one thread of a
    process."""
    engine = _engine(FILE)
    if engine is None:
        return None
    library, context = engine
    pixels = np.empty((height, width, 3), np.uint8)
    status = library.gratis_decode(context, data, len(data), height, width, pixels.ctypes.data)
    return pixels if status == 0 else None
