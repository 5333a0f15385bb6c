"""Parquet files with the bytes of images in them: where each row's image lies, and its bytes.

Where images are stored as they are, a row is an offset and a size, as in a tar. Else it is a row of
a row group (rows.py), and whoever reads it holds that row group in memory, and no other.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gratis import addresses
from gratis.preprocess.sources.columns import NO_BYTES, Columns, TablePart, find_columns
from gratis.preprocess.sources.listing import Item
from gratis.preprocess.sources.parquet_pages import NotPlainError, value_places
from gratis.preprocess.sources.range_file import RangeFile, errors_as_damage
from gratis.preprocess.sources.rows import group_and_row, row_offset


def parquet_columns(path: str, *, labelled: bool) -> Columns | None:
    """The columns of images and labels; None where the file has no images in it."""
    with open_parquet(path) as file:
        return find_columns(path, file.schema_arrow, labelled=labelled)


def parquet_schema(path: str) -> Any:
    """pyarrow's Schema of the file."""
    with open_parquet(path) as file:
        return file.schema_arrow


def list_parquet(path: str, columns: Columns) -> Iterator[TablePart]:
    """The rows of the file, by row group."""
    wanted = [name for name in (columns.path, columns.label) if name]
    with addresses.Bytes(path) as raw, open_parquet(path) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=wanted, use_threads=False)
            offsets, sizes = _places(raw, file, group, columns.data)
            yield TablePart(offsets, sizes, columns.paths(table), columns.labels(table))


def parquet_labels(path: str, columns: Columns) -> Iterator[object]:
    """The labels alone, for which no image is read."""
    with open_parquet(path) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=[columns.label], use_threads=False)
            yield from columns.labels(table) or ()


class RowReader:
    """Reads images of rows by row group. Keeps the last row group's images."""

    def __init__(self) -> None:
        self._place: tuple[str, int] | None = None
        self._images: Any = None

    def read(self, item: Item) -> bytes:
        """The bytes of an image whose offset is below -1. Raises OSError or GratisError."""
        group, row = group_and_row(item.offset)
        if self._place != (item.container, group):
            self._place = self._images = None  # not two of them at once
            with open_parquet(item.container) as file:
                columns = find_columns(item.container, file.schema_arrow, labelled=False)
                assert columns is not None
                self._images = _read_images(file, group, columns.data)
            self._place = item.container, group
        data: bytes = self._images[row].as_py()
        return data


@contextmanager
def open_parquet(path: str) -> Iterator[Any]:
    """pyarrow's ParquetFile. GratisError for what it says of a damaged file, here and in the
    block."""
    import pyarrow.parquet

    with (
        errors_as_damage(path, "parquet"),
        RangeFile(path) as source,
        # else a thread of pyarrow reads, which may abort the process when that ends
        pyarrow.parquet.ParquetFile(source, pre_buffer=False) as file,
    ):
        yield file


def _places(
    raw: addresses.Bytes, file: Any, group: int, name: str
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Offset and size of each image of the row group; NO_BYTES where the row has none."""
    column = next(k for k in range(len(file.schema)) if file.schema.column(k).path == name)
    chunk = file.metadata.row_group(group).column(column)
    rows, statistics = chunk.num_values, chunk.statistics
    known = statistics is not None and statistics.has_null_count
    mean = np.full(rows, chunk.total_uncompressed_size // max(1, rows), np.int64)
    by_row = np.array([row_offset(group, row) for row in range(rows)], np.int64)
    if known and statistics.null_count == rows:
        return np.full(rows, NO_BYTES, np.int64), mean
    if not known or statistics.null_count:
        null = _read_images(file, group, name).is_null().to_numpy()
        return np.where(null, NO_BYTES, by_row), mean
    if chunk.compression == "UNCOMPRESSED" and not chunk.has_dictionary_page:
        begin = chunk.data_page_offset
        optional = file.schema.column(column).max_definition_level > 0
        try:
            offsets, sizes = value_places(raw, begin, begin + chunk.total_compressed_size, optional)
        except NotPlainError:
            return by_row, mean
        if len(offsets) == rows:
            return np.asarray(offsets, np.int64), np.asarray(sizes, np.int64)
    return by_row, mean


def _read_images(file: Any, group: int, name: str) -> Any:
    """The images of a row group, of which some may be null."""
    column = file.read_row_group(group, columns=[name], use_threads=False).column(0)
    return column.flatten()[0] if column.type.num_fields else column
