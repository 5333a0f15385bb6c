"""Arrow files with the bytes of images in them, as `save_to_disk` of `datasets` writes them: each
row's image lies in the file as it is, at an offset that the record batch's buffers tell."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gratis import addresses
from gratis.errors import GratisError
from gratis.preprocess.sources.columns import NO_BYTES, Columns, TablePart, find_columns
from gratis.preprocess.sources.range_file import RangeFile, errors_as_damage

FILE_MAGIC = b"ARROW1\0\0"  # of the file format; the stream format has none


def arrow_columns(path: str, *, labelled: bool) -> Columns | None:
    """The columns of images and labels; None where the file has no images in it."""
    with _open_messages(path) as (_, schema):
        return find_columns(path, schema, labelled=labelled)


def arrow_schema(path: str) -> Any:
    """pyarrow's Schema of the file."""
    with _open_messages(path) as (_, schema):
        return schema


def list_arrow(path: str, columns: Columns) -> Iterator[TablePart]:
    """The rows of the file, by record batch: one of them is in memory where the file is remote."""
    with _open_messages(path) as (file, schema):
        for batch, body, begin in _batches(path, file, schema):
            offsets, sizes = _places(path, columns.batch_data(batch), body, begin)
            yield TablePart(offsets, sizes, columns.paths(batch), columns.labels(batch))


def arrow_labels(path: str, columns: Columns) -> Iterator[object]:
    """The labels alone."""
    with _open_messages(path) as (file, schema):
        for batch, _, _ in _batches(path, file, schema):
            yield from columns.labels(batch) or ()


def _batches(path: str, file: Any, schema: Any) -> Iterator[tuple[Any, Any, int]]:
    """Each record batch with its body, and where that begins in the file."""
    import pyarrow.ipc

    while True:
        end = file.tell()
        try:
            message = pyarrow.ipc.read_message(file)
        except EOFError:
            if file.tell() == end:  # without the mark that ends the batches
                raise GratisError(
                    f"{path} is cut short at byte {end}: the mark that ends it is not there; get "
                    f"it again"
                ) from None
            return
        begin = file.tell() - message.body.size
        yield pyarrow.ipc.read_record_batch(message, schema), message.body, begin


@contextmanager
def _open_messages(path: str) -> Iterator[tuple[Any, Any]]:
    """The file, whose record batches come next, and its schema."""
    import pyarrow.ipc

    with errors_as_damage(path, "arrow"), _open(path) as file:
        if file.read(len(FILE_MAGIC)) != FILE_MAGIC:
            file.seek(0)
        yield file, pyarrow.ipc.read_schema(pyarrow.ipc.read_message(file))


def _open(path: str) -> Any:
    import pyarrow

    if addresses.is_url(path):
        return pyarrow.PythonFile(RangeFile(path), "r")
    return pyarrow.memory_map(path)


def _places(
    path: str, images: Any, body: Any, begin: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Offset and size of each image of a record batch, whose body begins at that byte; NO_BYTES
    where a row has none."""
    _, ends, data = images.buffers()
    number = np.int64 if str(images.type) == "large_binary" else np.int32
    if data is None or not len(images):
        return np.full(len(images), NO_BYTES, np.int64), np.zeros(len(images), np.int64)
    # a buffer of no bytes lies anywhere
    inside = data.address - body.address if data.size else 0
    if not 0 <= inside <= body.size - data.size:
        raise GratisError(f"{path} is compressed inside; write it without compression, or parquet")
    places = np.frombuffer(ends, number)[images.offset :][: len(images) + 1].astype(np.int64)
    null = images.is_null().to_numpy(zero_copy_only=False)
    return np.where(null, NO_BYTES, begin + inside + places[:-1]), np.diff(places)
