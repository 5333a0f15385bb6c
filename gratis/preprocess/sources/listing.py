"""Listing: the files of a split, and where each one's bytes are. 14 million samples fit in a
gigabyte.

A row is one file: an archive member (container = the tar, offset in it) or a file of a class folder
(container = the folder, offset -1). Keys are derived from names when they are needed; where files
of different paths would share one, and where one is too long, a hash of the path is appended."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gratis import addresses
from gratis.errors import GratisError

IMAGE_NAME = re.compile(r"(?s).*\.(jpe?g|jpe|jfif|png|gif|bmp|webp|tiff?|p[bgnp]m)", re.IGNORECASE)
USUAL = (".JPEG", ".jpg", ".png")  # of such names, found in a fifth of the time
# images that are not read here: losing one is no less a loss
OTHER_IMAGE_NAME = re.compile(
    r"(?s).*\.(avif|hei[cf]|hif|j2[ck]|jp[2xf]|jxl|jxr|psd|tga|exr|dng|cr[23]|nef|arw|apng|dcm|"
    r"svgz?|ico|pcx)",
    re.IGNORECASE,
)
HIDDEN = re.compile(r"(^|/)(\.(?!\.?(/|$))|__MACOSX(/|$))")
UNSAFE = re.compile(r"[^A-Za-z0-9_-]")
LONGEST_KEY = 90  # a USTAR name has 100 bytes
HASH = 16  # hexadecimal digits: a million files may share a key
HIDDEN_FILES = "hidden files"
QUIET_S = 2.0  # a progress bar appears for listings that take longer


class Item(NamedTuple):
    """One source file, ready to be read and written: all that a worker needs to know about it."""

    container: str
    name: str
    # -1: `container` is a folder and `name` a file in it; below: a row (sources/rows.py)
    offset: int
    size: int
    label: int
    key: str

    @property
    def source(self) -> str:
        return f"{self.container}{'/' if self.offset == -1 else ':'}{self.name}"


@dataclass(frozen=True, kw_only=True)
class Listing:
    """One split's files. names holds all names in UTF-8, one after the other; row i's ends at
    name_end[i]."""

    wnids: tuple[str, ...]  # by label
    official: bool  # from official archives: names identify samples without their class
    containers: tuple[str, ...]
    container: NDArray[np.int32]
    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    label: NDArray[np.int32]  # -1: of no class
    names: bytes | bytearray
    name_end: NDArray[np.int64]
    # by its name alone, the key is too long or another file's too
    hashed: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.label)

    def item(self, row: int) -> Item:
        name = self.names[self.name_end[row - 1] if row else 0 : self.name_end[row]].decode(
            "utf-8", "surrogateescape"
        )
        label = int(self.label[row])
        key = make_key(name, None if self.official or label < 0 else self.wnids[label])
        container = self.containers[self.container[row]]
        if self.hashed[row]:
            key = key_with_hash(key, container, name)
        return Item(container, name, int(self.offset[row]), int(self.size[row]), label, key)

    def take(self, rows: NDArray[np.int64]) -> Listing:
        """These rows alone, in their order."""
        start = np.concatenate(([0], self.name_end[:-1])) if len(self) else self.name_end
        names = b"".join(self.names[start[row] : self.name_end[row]] for row in rows)
        return dataclasses.replace(
            self,
            container=self.container[rows],
            offset=self.offset[rows],
            size=self.size[rows],
            label=self.label[rows],
            names=names,
            name_end=np.cumsum(self.name_end[rows] - start[rows]),
            hashed=self.hashed[rows],
        )


class ListingBuilder:
    """Collects rows in machine integers. What is lost, as it should be a sample and cannot be, is
    skipped, with a message each in `skipped`; what is no sample is passed over, and counted."""

    def __init__(self, wnids: tuple[str, ...], *, official: bool) -> None:
        self.wnids = wnids
        self.official = official
        self.containers: list[str] = []
        self.skipped: list[str] = []
        self._passed: dict[str, tuple[int, str]] = {}  # by reason: how many, and the first one
        self._container, self._label = array("i"), array("i")
        self._offset, self._size, self._name_end = array("q"), array("q"), array("q")
        self._names = bytearray()
        # 64-bit hashes, not a set of strings: 14 million keys would take two gigabytes
        self._key_hash = array("q")
        self._too_long = array("q")  # rows

    def __len__(self) -> int:
        return len(self._label)

    @property
    def labels(self) -> NDArray[np.int32]:
        return np.array(self._label, np.int32)

    def skip(self, name: str, reason: str) -> None:
        self.skipped.append(f"skipped {self.containers[-1]}: {_short(name)!r}: {reason}")

    def pass_over(self, name: str, reason: str) -> None:
        """reason: what they are, "hidden files"."""
        count, first = self._passed.get(reason, (0, f"{self.containers[-1]}: {_short(name)}"))
        self._passed[reason] = count + 1, first

    def leave_out(self, name: str) -> None:
        """What has no image's name: it is lost if other programs read an image there."""
        if OTHER_IMAGE_NAME.fullmatch(name):
            self.skip(name, "images of its kind are not read; convert it")
        else:
            self.pass_over(name, "files without an image's name")

    @property
    def notes(self) -> list[str]:
        """A message for each reason for which something was passed over."""
        return [
            f"passed over {reason}: {count:,}, the first in {first}"
            for reason, (count, first) in self._passed.items()
        ]

    def add(self, path: str, offset: int, size: int, label: int) -> None:
        """Adds a file of the current (last) container. label: -1 where it is of no class."""
        name = path.removeprefix("./")
        if is_hidden(name):
            self.pass_over(path, HIDDEN_FILES)
            return
        if not (name.endswith(USUAL) or IMAGE_NAME.fullmatch(name)):
            self.leave_out(path)
            return
        if name[0] == "/" or (".." in name and ".." in name.split("/")):
            # nothing is ever extracted: this keeps keys sane
            self.skip(path, "its name points outside the archive")
            return
        key = make_key(name, None if self.official or label < 0 else self.wnids[label])
        if len(key) > LONGEST_KEY:
            self._too_long.append(len(self._label))
        self._key_hash.append(hash(key))
        self._container.append(len(self.containers) - 1)
        self._label.append(label)
        self._offset.append(offset)
        self._size.append(size)
        self._names += name.encode("utf-8", "surrogateescape")
        self._name_end.append(len(self._names))

    def build(self, *, unique: bool = True) -> Listing:
        """The listing, with a key of its own for every file, unless keys are not to be used
        (unique=False). GratisError where two of official archives would share one, or two of one
        path."""
        hashed = np.zeros(len(self), np.bool_)
        hashed[np.asarray(self._too_long, np.int64)] = True
        listing = Listing(
            wnids=self.wnids,
            official=self.official,
            containers=tuple(self.containers),
            container=np.asarray(self._container, np.int32),
            offset=np.asarray(self._offset, np.int64),
            size=np.asarray(self._size, np.int64),
            label=np.asarray(self._label, np.int32),
            names=self._names,
            name_end=np.asarray(self._name_end, np.int64),
            hashed=hashed,
        )
        return _distinct(listing, np.asarray(self._key_hash, np.int64)) if unique else listing


def refuse_empty(root: str, builders: Mapping[str, ListingBuilder]) -> None:
    """GratisError for a split without images. builders: by split."""
    for split, builder in builders.items():
        if not len(builder):
            lost = f" ({builder.skipped[0]})" if builder.skipped else ""
            raise GratisError(f"{root}: the split {split} has no images{lost}; fill or remove it")


def is_hidden(name: str) -> bool:
    """Whether a file of this path is for a file system, not for people: `._x`, `.DS_Store`,
    `__MACOSX/x`."""
    if name[:1] in "._" or "/." in name or "/_" in name:  # the search costs five times as much
        return HIDDEN.search(name) is not None
    return False


def _short(name: str) -> str:
    return name if len(name) <= 200 else name[:200] + "..."


def make_key(name: str, wnid: str | None) -> str:
    """The sample's key: the file's stem, with its class's name before it unless it starts with
    that. wnid None: the stem alone."""
    stem = name[name.rfind("/") + 1 :].rpartition(".")[0]
    key = stem if wnid is None or stem.startswith(wnid) else f"{wnid}_{stem}"
    # in a third of the time that the search takes
    return key if key.isascii() and key.replace("_", "").isalnum() else UNSAFE.sub("_", key)


def key_with_hash(key: str, container: str, name: str) -> str:
    """A key that other files share, with the hash of the path in SRC, so that SRC may be moved."""
    path = f"{addresses.name_of(container)}/{name}".encode("utf-8", "surrogateescape")
    return f"{key[: LONGEST_KEY - HASH - 1]}_{hashlib.sha256(path).hexdigest()[:HASH]}"


def _distinct(listing: Listing, hashes: NDArray[np.int64]) -> Listing:
    """The listing with distinct keys. hashes: of the keys by name alone, by row; changed here."""
    hashed = listing.hashed.copy()
    for one, other in _equal_pairs(hashes):
        if listing.item(one).key == listing.item(other).key:
            hashed[one] = hashed[other] = True  # so all that share one, whatever their order
    if not hashed.any():
        return listing
    listing = dataclasses.replace(listing, hashed=hashed)
    for row in np.flatnonzero(hashed).tolist():
        hashes[row] = hash(listing.item(row).key)
    for one, other in _equal_pairs(hashes):
        _refuse_clash(listing.item(one), listing.item(other))
    return listing


def _equal_pairs(hashes: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Rows of equal hashes: all rows of equal keys are among them."""
    order = np.argsort(hashes, kind="stable")
    ordered = hashes[order]
    for place in np.flatnonzero(ordered[1:] == ordered[:-1]):
        yield int(order[place]), int(order[place + 1])


def _refuse_clash(one: Item, other: Item) -> None:
    if one.key == other.key:
        raise GratisError(
            f"two files would share the key {one.key!r}: {one.source} and {other.source}; rename "
            f"or remove one"
        )
