"""Listing: what a split consists of and where each file's bytes lie. 14 million samples fit in a gigabyte.

A row is one file: an archive member (container = the tar, offset in it) or a file of a class folder (container = the
folder, offset -1). Keys are derived from names when they are needed.
"""

from __future__ import annotations

import os
import re
from array import array
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from preprocess.errors import UserError

IMAGE_NAME = re.compile(r"(?s).*\.(jpe?g|png|gif|bmp|webp|tiff?|ppm)", re.IGNORECASE)
UNSAFE = re.compile(r"[^A-Za-z0-9_-]")
LONGEST_KEY = 90  # a USTAR name has 100 bytes


class Item(NamedTuple):
    """One source file, ready to be read and written: all that a worker needs to know about it."""

    container: str
    name: str
    offset: int  # -1: `container` is a folder and `name` a file in it
    size: int
    label: int
    key: str

    @property
    def source(self) -> str:
        return f"{self.container}/{self.name}" if self.offset < 0 else f"{self.container}:{self.name}"


@dataclass(frozen=True, kw_only=True)
class Listing:
    """One split's files. names holds all names in UTF-8, one after the other; row i's ends at name_end[i]."""

    wnids: tuple[str, ...]  # by label
    official: bool  # from official archives: names identify samples without their class
    containers: tuple[str, ...]
    container: NDArray[np.int32]
    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    label: NDArray[np.int32]
    names: bytes
    name_end: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.label)

    def item(self, row: int) -> Item:
        name = self.names[self.name_end[row - 1] if row else 0 : self.name_end[row]].decode("utf-8", "surrogateescape")
        label = int(self.label[row])
        key = make_key(name, None if self.official else self.wnids[label])
        container = self.containers[self.container[row]]
        return Item(container, name, int(self.offset[row]), int(self.size[row]), label, key)


class ListingBuilder:
    """Collects rows in machine integers; skips what cannot be a sample, with a line that says why."""

    def __init__(self, wnids: tuple[str, ...], *, official: bool) -> None:
        self.wnids = wnids
        self.official = official
        self.containers: list[str] = []
        self.skipped: list[str] = []
        self._container, self._label = array("i"), array("i")
        self._offset, self._size, self._name_end = array("q"), array("q"), array("q")
        self._names = bytearray()

    def __len__(self) -> int:
        return len(self._label)

    def skip(self, name: str, reason: str) -> None:
        shown = name if len(name) <= 200 else name[:200] + "..."
        self.skipped.append(f"skipped {self.containers[-1]}: {shown!r}: {reason}")

    def add(self, path: str, offset: int, size: int, label: int) -> None:
        """Adds a file of the current (last) container."""
        name = path.removeprefix("./")
        reason = objection(name, None if self.official else self.wnids[label])
        if reason:
            self.skip(path, reason)
            return
        self._container.append(len(self.containers) - 1)
        self._label.append(label)
        self._offset.append(offset)
        self._size.append(size)
        self._names += name.encode("utf-8", "surrogateescape")
        self._name_end.append(len(self._names))

    def build(self) -> Listing:
        listing = Listing(
            wnids=self.wnids,
            official=self.official,
            containers=tuple(self.containers),
            container=np.asarray(self._container, np.int32),
            offset=np.asarray(self._offset, np.int64),
            size=np.asarray(self._size, np.int64),
            label=np.asarray(self._label, np.int32),
            names=bytes(self._names),
            name_end=np.asarray(self._name_end, np.int64),
        )
        _refuse_clashes(listing)
        return listing


def objection(name: str, wnid: str | None) -> str | None:
    """Why a file of this name cannot be a sample, or None. Nothing is ever extracted: this keeps keys sane."""
    if name.startswith("/") or ".." in name.split("/"):
        return "its name points outside the archive"
    if any(not character.isprintable() for character in name):
        return "its name holds characters that cannot be printed"
    if not IMAGE_NAME.fullmatch(name):
        return "its name is not an image's"
    if len(make_key(name, wnid)) > LONGEST_KEY:
        return f"its key would be longer than {LONGEST_KEY} characters"
    return None


def make_key(name: str, wnid: str | None) -> str:
    """The sample's key: the file's stem, behind its class's name if it does not start with it; wnid None: as it is."""
    stem = os.path.basename(name).rpartition(".")[0]
    return UNSAFE.sub("_", stem if wnid is None or stem.startswith(wnid) else f"{wnid}_{stem}")


def _refuse_clashes(listing: Listing) -> None:
    # 64-bit hashes, not a set of strings: 14 million keys would take two gigabytes
    hashes = np.fromiter((hash(listing.item(row).key) for row in range(len(listing))), np.int64, len(listing))
    order = np.argsort(hashes, kind="stable")
    for place in np.flatnonzero(np.diff(hashes[order]) == 0):
        one, two = listing.item(int(order[place])), listing.item(int(order[place + 1]))
        if one.key == two.key:
            raise UserError(f"two files would share the key {one.key!r}: {one.source} and {two.source}; rename one")
