"""The bytes of a listed file, from an archive, a folder or a URL."""

from __future__ import annotations

import os

from gratis import addresses
from gratis.open_files import max_open_files
from gratis.preprocess.sources.listing import Item
from gratis.preprocess.sources.parquet import RowReader

ARCHIVES = 1024  # a tar for each of ImageNet's classes is a usual source


class ImageReader:
    """Keeps local archives open until its block ends, of many the last; files of class folders are
    opened one by one."""

    def __init__(self) -> None:
        self._archives: dict[str, int] = {}
        self._most = max_open_files(ARCHIVES)
        self._rows = RowReader()

    def read(self, item: Item) -> bytes:
        """All bytes of the file. Raises OSError, or GratisError for a URL and a damaged parquet
        file."""
        if item.offset < -1:
            return self._rows.read(item)
        if addresses.is_url(item.container):
            if item.offset == -1:
                return addresses.read_range(addresses.join(item.container, item.name), 0, None)
            return addresses.read_range(item.container, item.offset, item.offset + item.size)
        if item.offset == -1:
            with open(os.path.join(item.container, item.name), "rb") as file:
                return file.read()
        if item.container not in self._archives:
            if len(self._archives) >= self._most:
                os.close(self._archives.pop(next(iter(self._archives))))
            self._archives[item.container] = os.open(item.container, os.O_RDONLY | os.O_CLOEXEC)
        return os.pread(self._archives[item.container], item.size, item.offset)

    def __enter__(self) -> ImageReader:
        return self

    def __exit__(self, *error: object) -> None:
        while self._archives:
            os.close(self._archives.popitem()[1])
