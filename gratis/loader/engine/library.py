"""The compiled library of this folder, by ctypes: where it is, what it is called with, and the
names of what it returns.

ctypes gives the lock of the interpreter back while it calls. Without a library (no compiler when
this was installed) or with one of another version `load` returns None, and DALI decodes."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gratis.engine_jpeg import VERSION
from gratis.errors import GratisError

FILE = Path(__file__).with_name("libgratis_engine.native.so")
ISA_VARIABLE = "GRATIS_ENGINE_ISA"
ISAS = ("portable", "avx2", "avx512")  # in ascending order; the number is the library's


class Status(IntEnum):
    """What became of a sample; see engine.h, which has the same names and numbers."""

    OK = 0
    NOT_JPEG = 1
    NOT_BASELINE = 2
    SAMPLING = 3
    COMPONENTS = 4
    ADOBE = 5
    EXIF = 6
    TABLES = 7
    SEGMENT = 8
    SIZE = 9
    MEMORY = 10
    TRUNCATED = 32
    MARKER = 33
    CODE = 34
    LENGTH = 35
    RECTANGLE = 64

    @property
    def damaged(self) -> bool:
        """Whether the file is; else another decoder may read it."""
        return Status.TRUNCATED <= self < Status.RECTANGLE


class Filter(IntEnum):
    CROP = 0
    TRIANGLE = 1
    CUBIC = 2


class Op(IntEnum):
    """Operations on a view's pixels, and what of a step's `VALUES` each reads; see engine.h."""

    NOTHING = 0
    BRIGHTNESS = 1
    CONTRAST = 2
    SATURATION = 3
    HUE = 4
    GREY = 5
    POSTERIZE = 6
    SOLARIZE = 7
    SOLARIZE_ADD = 8
    AUTOCONTRAST = 9
    EQUALIZE = 10
    SHARPNESS = 11
    BLUR = 12
    AFFINE = 13
    KEEP = 14
    MIX = 15


class PixelType(IntEnum):
    FLOAT32 = 0
    BFLOAT16 = 1
    FLOAT16 = 2
    UINT8 = 3


VALUES = 12  # numbers of a step
ITEM_SIZES = {PixelType.FLOAT32: 4, PixelType.BFLOAT16: 2, PixelType.FLOAT16: 2, PixelType.UINT8: 1}


class NeighboursStruct(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("total", "mixed")),
        ("arrived", ctypes.c_void_p),
        *((name, ctypes.c_float) for name in ("lam", "rest")),
        ("is_box", ctypes.c_int32),
        ("box", ctypes.c_int32 * 4),
    )


class JobStruct(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("samples", "views")),
        *((name, ctypes.c_void_p) for name in ("data", "size", "shape", "rectangles", "targets")),
        *((name, ctypes.c_void_p) for name in ("flip", "scale", "plus", "minus")),
        *((name, ctypes.c_int64) for name in ("minus_row", "minus_plane")),
        *((name, ctypes.c_void_p) for name in ("out", "status")),
        ("next", ctypes.c_int64),
        *((name, ctypes.c_int32) for name in ("out_height", "out_width", "filter", "antialias")),
        *((name, ctypes.c_int32) for name in ("type", "channels_last", "stream", "steps")),
        *((name, ctypes.c_void_p) for name in ("ops", "values")),
        ("out_plane", ctypes.c_int64),
        ("neighbours", ctypes.POINTER(NeighboursStruct)),
        ("shares", ctypes.c_int64),
    )


class Header(NamedTuple):
    """Of a file: width and height in pixels, 1 or 3 components, MCUs between restart markers (0:
    none)."""

    width: int
    height: int
    components: int
    restart_interval: int


class Library(NamedTuple):
    """Its functions; see engine.h."""

    best_isa: int
    new: Callable[[int], int | None]
    free: Callable[[int], None]
    probe: Callable[..., int]
    run: Callable[..., None]
    mix: Callable[..., None]
    erase: Callable[..., None]
    augment: Callable[..., None]


@cache
def load() -> Library | None:
    """The library, or None where there is none that fits."""
    return load_from(FILE)


def load_from(path: Path) -> Library | None:
    try:
        lib = ctypes.CDLL(str(path))
    except OSError:
        return None
    if lib.gratis_engine_version() != VERSION:
        return None
    lib.gratis_new.restype = ctypes.c_void_p
    lib.gratis_free.argtypes = (ctypes.c_void_p,)
    lib.gratis_free.restype = None
    lib.gratis_probe.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p)
    lib.gratis_run.argtypes = (ctypes.c_void_p, ctypes.POINTER(JobStruct))
    lib.gratis_run.restype = None
    for function in (lib.gratis_mix, lib.gratis_erase):
        function.argtypes, function.restype = (ctypes.c_int, ctypes.c_void_p), None
    pixels = (ctypes.c_void_p, ctypes.c_int64)
    lib.gratis_augment.argtypes = (ctypes.c_void_p, ctypes.POINTER(JobStruct), *pixels)
    lib.gratis_augment.restype = None
    calls = (lib.gratis_new, lib.gratis_free, lib.gratis_probe, lib.gratis_run)
    passes = (lib.gratis_mix, lib.gratis_erase, lib.gratis_augment)
    return Library(lib.gratis_best_isa(), *calls, *passes)


def chosen_isa(library: Library) -> int:
    """The best instruction set of this machine, or the one that the environment names. GratisError
    for a name that is none, or of a set that this machine lacks."""
    name = os.environ.get(ISA_VARIABLE)
    if not name:
        return library.best_isa
    able = ISAS[: library.best_isa + 1]
    if name not in able:
        raise GratisError(f"{ISA_VARIABLE} is {name!r}; here it may be {' or '.join(able)}")
    return ISAS.index(name)


def probe(library: Library, data: NDArray[np.uint8]) -> tuple[Status, Header]:
    """What the header of a file says; the numbers are right where the status is OK."""
    said = (ctypes.c_int32 * 4)()
    status = library.probe(data.ctypes.data, data.size, said)
    return Status(status), Header(*said)


def address(array: NDArray[Any] | None) -> int | None:
    return None if array is None else array.ctypes.data
