"""A file for pyarrow to read from, local or at an address."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

from gratis import addresses
from gratis.errors import GratisError


class RangeFile(io.RawIOBase):
    """Each read asks for the bytes that are wanted and no more, and is tried again where the
    network fails."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._bytes = addresses.Bytes(path)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._bytes.size}[whence]
        self._at = base + offset
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        end = self._bytes.size
        if size is not None and size >= 0:
            end = min(end, self._at + size)
        if end <= self._at:
            return b""
        if addresses.is_url(self._path):
            data = addresses.read_range(self._path, self._at, end)
        else:
            data = self._bytes.read(self._at, end - self._at)
        self._at += len(data)
        return data

    def close(self) -> None:
        if not self.closed:
            self._bytes.file.close()
        super().close()


@contextmanager
def errors_as_damage(path: str, kind: str) -> Iterator[None]:
    """Turns what pyarrow says of a damaged file into a GratisError. kind: of the file."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, ValueError, EOFError, OSError) as error:
        # of a disk or a server: they have a number, or come from gratis.addresses
        if isinstance(error, OSError) and (error.errno or addresses.is_url(path)):
            raise
        reason = " ".join(str(error).split())[:300]
        what, way_out = f"damaged as {kind}", "get it again"
        if kind == "arrow":  # other programs write what the file's footer alone leads to
            what += ", or written in another way than `datasets` does"
            way_out += ", or write it as parquet"
        raise GratisError(f"{path} is {what} ({reason}); {way_out}") from None
