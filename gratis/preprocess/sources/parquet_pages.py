"""Where the values of a column lie in a parquet file, if they are stored as they are: not
compressed, and not by way of a dictionary. `datasets` 5.2.0 writes images so (2.19.2 does not).

    column chunk    pages, one after the other
    page            header (Thrift, compact protocol), levels, values
    value           its length, 4 bytes, little-endian; then its bytes

pyarrow reads row groups as a whole and tells no positions.
Formats: github.com/apache/parquet-format, README.md, src/main/thrift/parquet.thrift, Encodings.md.
"""

from __future__ import annotations

import struct
from array import array
from typing import NamedTuple

from gratis import addresses

LONGEST_HEADER = 1 << 16  # bytes; a page's statistics are in it
DATA_PAGE, DATA_PAGE_V2 = 0, 3
PLAIN = 0
# numbers of the fields in parquet.thrift
TYPE, COMPRESSED_SIZE, DATA_HEADER, DATA_HEADER_V2 = 1, 3, 5, 8
NUM_VALUES, ENCODING, ENCODING_V2, DEFINITION_BYTES, REPETITION_BYTES = 1, 2, 4, 5, 6


class Page(NamedTuple):
    """A data page: its values lie in bytes [begin, end) of the file."""

    begin: int
    end: int
    values: int


class NotPlainError(Exception):
    """The values do not lie in the file as they are."""


def value_places(
    file: addresses.Bytes, begin: int, end: int, optional: bool
) -> tuple[array[int], array[int]]:
    """Offset and size of each value of the column chunk in bytes [begin, end) of the file, none of
    which is null. optional: they could be. NotPlainError where the values are stored another way,
    or lie outside of the chunk."""
    offsets, sizes = array("q"), array("q")
    while begin < end:
        page = _read_page(file, begin, optional)
        at = page.begin
        for _ in range(page.values):
            (size,) = struct.unpack("<I", _read(file, at, 4))
            offsets.append(at + 4)
            sizes.append(size)
            at += 4 + size
        if at != page.end or page.end > end:
            raise NotPlainError
        begin = page.end
    return offsets, sizes


def _read_page(file: addresses.Bytes, begin: int, optional: bool) -> Page:
    header = file.read(begin, LONGEST_HEADER)
    try:
        fields, length = _read_struct(header, 0)
        data = fields.get(DATA_HEADER, fields.get(DATA_HEADER_V2))
        if not isinstance(data, dict) or fields[TYPE] not in (DATA_PAGE, DATA_PAGE_V2):
            raise NotPlainError
        first = fields[TYPE] == DATA_PAGE
        if data[ENCODING if first else ENCODING_V2] != PLAIN:
            raise NotPlainError
        values = begin + length
        end = values + int(fields[COMPRESSED_SIZE])  # type: ignore[call-overload]
        if not first:
            values += data[DEFINITION_BYTES] + data[REPETITION_BYTES]
        elif optional:
            (levels,) = struct.unpack("<I", _read(file, values, 4))
            values += 4 + levels
        return Page(values, end, data[NUM_VALUES])
    except (IndexError, KeyError):
        raise NotPlainError from None


def _read(file: addresses.Bytes, at: int, size: int) -> bytes:
    data = file.read(at, size)
    if len(data) != size:
        raise NotPlainError
    return data


def _read_struct(data: bytes, at: int) -> tuple[dict[int, object], int]:
    """The fields of a Thrift structure by number, and where it ends. IndexError where it is not
    whole."""
    fields: dict[int, object] = {}
    number = 0
    while head := data[at]:
        at += 1
        if step := head >> 4:
            number += step
        else:
            number, at = _read_int(data, at)
        fields[number], at = _read_value(data, at, head & 15)
    return fields, at + 1


def _read_value(data: bytes, at: int, kind: int) -> tuple[object, int]:
    if kind in (1, 2):  # true, false
        return kind == 1, at
    if kind in (4, 5, 6):  # integers
        return _read_int(data, at)
    if kind == 8:  # bytes
        length, at = _read_varint(data, at)
        return None, at + length
    if kind == 12:
        return _read_struct(data, at)
    raise IndexError  # no other is in a page's header


def _read_int(data: bytes, at: int) -> tuple[int, int]:
    value, at = _read_varint(data, at)
    return value >> 1 ^ -(value & 1), at


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
