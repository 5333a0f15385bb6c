"""MATLAB 5 files (.mat), as far as the ILSVRC2012 devkit uses them: one struct array of texts and
numbers, compressed or not.

An element is a tag (type, bytes), then the data, filled up to 8 bytes; an array is an element that
holds flags, dimensions, a name and its content as elements. The format's reference is MathWorks'
"MAT-File Format", chapter 1.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Value = str | NDArray[np.generic]  # of a field: a text, or numbers in one dimension
Cell = str | int | Sequence[int]  # what a field is written from

LIMIT = 64 << 20  # bytes after decompression; the official meta.mat has half a million
HEADER, VERSION = 128, b"\x00\x01IM"  # version 1, little-endian
# types of elements
INT8, INT32, UINT32, DOUBLE, INT64, MATRIX, COMPRESSED, UTF8 = 1, 5, 6, 9, 12, 14, 15, 16
NUMBERS = {1: "i1", 2: "u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8"}
NUMBERS |= {12: "<i8", 13: "<u8"}
TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16-le", 16: "utf-8", 17: "utf-16-le", 18: "utf-32-le"}
# classes of arrays
STRUCT, CHAR, DOUBLES, INT64S = 2, 4, 6, 14
NUMERIC = range(DOUBLES, 16)


def read_struct(data: bytes, name: str) -> list[dict[str, Value]]:
    """The elements of the file's struct array `name`, each as its fields. ValueError or zlib.error
    where the file is damaged or holds what is not read here, KeyError where it has no such
    array."""
    if data[HEADER - len(VERSION) : HEADER] != VERSION:
        raise ValueError("no MATLAB 5 file in little-endian order")
    for kind, content in _elements(data[HEADER:]):
        elements = _elements(_decompress(content)) if kind == COMPRESSED else [(kind, content)]
        for inner, array in elements:
            if inner == MATRIX and array:
                array_class, shape, label, parts = _array(array)
                if label == name and array_class == STRUCT:
                    return _rows(math.prod(shape), parts)
    raise KeyError(name)


def whole(value: Value) -> int:
    """The one whole number that a field holds. ValueError where it holds something else."""
    if isinstance(value, str) or value.size != 1 or not float(value[0]).is_integer():
        raise ValueError(f"{value!r:.50} is no whole number")
    return int(value[0])


def write_struct(name: str, rows: Sequence[dict[str, Cell]]) -> bytes:
    """A file that holds the struct array [rows, 1] under this name, uncompressed and without a
    date. All but the text at its start is what SciPy's savemat writes."""
    fields = list(rows[0])
    width = max(map(len, fields)) + 1
    content = [
        _head(STRUCT, (len(rows), 1), name),
        struct.pack("<HHi", INT32, 4, width),  # a small element
        _element(INT8, b"".join(field.encode().ljust(width, b"\0") for field in fields)),
        *(_cell(row[field]) for row in rows for field in fields),
    ]
    start = b"MATLAB 5.0 MAT-file".ljust(HEADER - 12) + bytes(8) + VERSION
    return start + _element(MATRIX, b"".join(content))


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and content of the elements that lie one after the other."""
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from("<II", data[at : at + 8].ljust(8, b"\0"))
        begin, small = at + 8, kind >> 16
        if small:  # type and size share a word, and the content is in the next
            kind, size, begin = kind & 0xFFFF, small, at + 4
        if size > len(data) - begin or (small and size > 4):
            raise ValueError(f"an element of {size} bytes reaches past the end")
        yield kind, data[begin : begin + size]
        at = at + 8 if small else begin + size + (-size % 8 if kind != COMPRESSED else 0)


def _decompress(data: bytes) -> bytes:
    stream = zlib.decompressobj()
    plain = stream.decompress(data, LIMIT)
    if not stream.eof:
        raise ValueError(f"a compressed element ends early, or has more than {LIMIT} bytes")
    return plain


def _array(content: bytes) -> tuple[int, list[int], str, list[tuple[int, bytes]]]:
    """Class, dimensions, name and the elements that follow."""
    (_, flags), (_, dimensions), (_, name), *parts = _elements(content)
    shape = np.frombuffer(dimensions, "<i4").tolist()
    if not flags or min(shape, default=-1) < 0:
        raise ValueError("an array without a class or dimensions")
    return flags[0], shape, name.decode("latin-1"), parts


def _rows(count: int, parts: list[tuple[int, bytes]]) -> list[dict[str, Value]]:
    (_, width), (_, names), *cells = parts
    step = int.from_bytes(width, "little")
    if not step or len(names) % step:
        raise ValueError(f"names of fields of {step} bytes")
    starts = range(0, len(names), step)
    fields = [names[k : k + step].partition(b"\0")[0].decode("latin-1") for k in starts]
    if not fields or len(cells) != count * len(fields):
        raise ValueError(f"{len(cells)} values for {count} elements of {len(fields)} fields")
    values = [_value(kind, content) for kind, content in cells]
    starts = range(0, len(values), len(fields))
    return [dict(zip(fields, values[k : k + len(fields)], strict=True)) for k in starts]


def _value(kind: int, content: bytes) -> Value:
    if kind != MATRIX:
        raise ValueError(f"an element of type {kind} in an array's place")
    if not content:
        return np.empty(0)
    array, shape, _, parts = _array(content)
    kind, data = parts[0] if parts else (UTF8, b"")
    if array == CHAR and kind in TEXTS and shape[0] <= 1:
        return data.decode(TEXTS[kind])
    if array in NUMERIC and kind in NUMBERS:
        return np.frombuffer(data, NUMBERS[kind])
    raise ValueError(f"an array of class {array} and type {kind} in a field")


def _element(kind: int, content: bytes) -> bytes:
    return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)


def _head(array: int, shape: tuple[int, int], name: str = "") -> bytes:
    flags, dimensions = struct.pack("<II", array, 0), struct.pack("<ii", *shape)
    return _element(UINT32, flags) + _element(INT32, dimensions) + _element(INT8, name.encode())


def _cell(value: Cell) -> bytes:
    if isinstance(value, str):
        array, kind, shape, data = CHAR, UTF8, (1, len(value)), value.encode()
    elif isinstance(value, int):
        array, kind, shape, data = INT64S, INT64, (1, 1), struct.pack("<q", value)
    elif value:
        data = struct.pack(f"<{len(value)}q", *value)
        array, kind, shape = INT64S, INT64, (1, len(value))
    else:  # as MATLAB has it, whose numbers are doubles
        array, kind, shape, data = DOUBLES, DOUBLE, (1, 0), b""
    return _element(MATRIX, _head(array, shape) + _element(kind, data))
