"""The bytes of a listed file, from an archive, a folder or a URL."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from gratis import addresses
from gratis.errors import GratisError
from gratis.open_files import max_open_files
from gratis.preprocess.sources.listing import Item
from gratis.preprocess.sources.parquet import RowReader

ARCHIVES = 1024  # a tar for each of ImageNet's classes is a usual source
NO_STAMPS: Mapping[str, Stamp] = MappingProxyType({})
CHANGED = (
    "what is finished stays: when it is whole again give the same command again, or, if it is "
    "another one now, add --discard"
)


class Stamp(NamedTuple):
    """Of a local archive when its files were listed; another one is of another archive."""

    size: int
    changed_ns: int  # when it was last written


def stamps_of(containers: Iterable[str]) -> dict[str, Stamp]:
    """Of those that are local files."""
    stamps: dict[str, Stamp] = {}
    for container in containers:
        if not addresses.is_url(container) and os.path.isfile(container):
            status = os.stat(container)
            stamps[container] = Stamp(status.st_size, status.st_mtime_ns)
    return stamps


class ImageReader:
    """Keeps local archives open until its block ends, of many the last; files of class folders are
    opened one by one. stamps: of archives when they were listed; GratisError at the end of the
    block where one is another now."""

    def __init__(self, stamps: Mapping[str, Stamp] = NO_STAMPS) -> None:
        self._stamps = stamps
        self._archives: dict[str, int] = {}
        self._most = max_open_files(ARCHIVES)
        self._rows = RowReader()

    def read(self, item: Item) -> bytes:
        """All bytes of the file. Raises OSError; GratisError for a URL, a damaged parquet file, and
        a file that is not as long as it was listed: that it was cut meanwhile is not its fault."""
        if item.offset < -1:
            return self._rows.read(item)
        data = self._read(item)
        # a web server's list of a folder has no sizes
        listed = item.size > 0 or not addresses.is_url(item.container)
        if listed and 0 <= item.size != len(data):
            changed = f"it has {len(data):,} bytes, {item.size:,} were listed"
            raise GratisError(f"{item.source} changed while it was read: {changed}; {CHANGED}")
        return data

    def _read(self, item: Item) -> bytes:
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

    def __exit__(self, kind: object, *_: object) -> None:
        while self._archives:
            os.close(self._archives.popitem()[1])
        if kind is None:
            self._refuse_changed()

    def _refuse_changed(self) -> None:
        now = stamps_of(self._stamps)
        for container, stamp in self._stamps.items():
            if now.get(container) != stamp:
                what = "its size or time is another than when it was listed"
                raise GratisError(f"{container} changed while it was read: {what}; {CHANGED}")
