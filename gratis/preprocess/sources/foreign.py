"""Kinds of sets that are not read here: each is known by its first bytes or its name, and refused
with what to give instead."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from gratis import addresses
from gratis.errors import GratisError
from gratis.preprocess.sources.listing import is_hidden

HEAD = 512  # bytes of a file that are looked at
MOST_FILES = 4  # of a folder and an ending
DEEPEST = 2  # folders below SRC
INDEX = "index.json"  # of MDS and LitData
MASK = 0xA282EAD8  # TFRecord's checksums are rotated, and this is added


class Kind(NamedTuple):
    """knows(name, first bytes); instead: what to do."""

    what: str
    instead: str
    knows: Callable[[str, bytes], bool]


def refuse_foreign(root: str) -> None:
    """GratisError where SRC is, or holds, a set of a kind that is known and not read."""
    for path in _files(root):
        kind = _kind(path)
        if kind:
            raise GratisError(f"{path} is {kind.what}, which is not read; {kind.instead}")


def _kind(path: str) -> Kind | None:
    name = os.path.basename(path)
    with addresses.Bytes(path) as file:
        head = file.read(0, HEAD if name != INDEX else file.size)
    return next((kind for kind in KINDS if kind.knows(name.lower(), head)), None)


def _files(root: str, depth: int = 0) -> Iterator[str]:
    """Some files of each ending, those of SRC before those of its folders."""
    if not addresses.is_folder(root):
        if addresses.is_file(root):
            yield root
        return
    listed = [entry for entry in addresses.entries(root) if not is_hidden(entry.name)]
    seen: dict[str, int] = {}
    for entry in listed:
        ending = os.path.splitext(entry.name)[1].lower()
        seen[ending] = seen.get(ending, 0) + 1
        regular = not entry.is_folder and entry.size >= 0
        if regular and seen[ending] <= MOST_FILES:
            yield addresses.join(root, entry.name)
    folders = [entry.name for entry in listed if entry.is_folder]
    for name in folders[:MOST_FILES] if depth < DEEPEST else ():
        yield from _files(addresses.join(root, name), depth + 1)


def _starts(*beginnings: bytes) -> Callable[[str, bytes], bool]:
    return lambda name, head: head.startswith(beginnings)


def _ends(*endings: str) -> Callable[[str, bytes], bool]:
    return lambda name, head: name.endswith(endings)


def _is_tfrecord(name: str, head: bytes) -> bool:
    """A record is its length, the checksum of that, the data and its checksum."""
    if len(head) < 12:
        return False
    (told,) = struct.unpack("<I", head[8:12])
    checksum = _crc32c(head[:8])
    return bool(told == ((checksum >> 15 | checksum << 17) + MASK) & 0xFFFFFFFF)


def _crc32c(data: bytes) -> int:
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def _is_index(word: str) -> Callable[[str, bytes], bool]:
    def knows(name: str, head: bytes) -> bool:
        if name != INDEX:
            return False
        try:
            return word in json.dumps(json.loads(head))
        except (ValueError, RecursionError):
            return False

    return knows


def _is_mnist(name: str, head: bytes) -> bool:
    return head[:2] == b"\0\0" and head[2:3] == b"\x08" and "idx" in name


def _is_pickle(name: str, head: bytes) -> bool:
    named = name.endswith((".pkl", ".pickle")) or "_batch" in name or name in ("train", "test")
    return named and head[:1] == b"\x80"


IMAGES = "give the images that it was made from, in class folders"
SHARDS = "or write it as WebDataset tars with webdataset.ShardWriter: x.jpg and x.cls"
UNPACK = "unpack it, and give the folder"
# in the order in which they are asked
KINDS = (
    Kind("an MDS set (mosaicml-streaming)", f"{IMAGES}, {SHARDS}", _is_index('"format": "mds"')),
    Kind("an MDS shard (mosaicml-streaming)", f"{IMAGES}, {SHARDS}", _ends(".mds", ".mds.zstd")),
    Kind("a set of LitData", f"{IMAGES}, {SHARDS}", _is_index('"chunks"')),
    Kind("a set of FFCV", f"{IMAGES}, {SHARDS}", _ends(".beton")),
    Kind("a TFRecord file", f"{IMAGES}, {SHARDS}", _is_tfrecord),
    Kind("a TFRecord file", f"{IMAGES}, {SHARDS}", lambda name, head: ".tfrecord" in name),
    Kind("a RecordIO file (MXNet)", f"{IMAGES}, {SHARDS}", _starts(b"\x0a\x23\xd7\xce")),
    Kind("an HDF5 file", f"{IMAGES}, {SHARDS}", _starts(b"\x89HDF\r\n\x1a\n")),
    Kind("an LMDB database", f"{IMAGES}, {SHARDS}", _ends("data.mdb", ".lmdb")),
    Kind("a set of Lance", f"{IMAGES}, {SHARDS}", _ends(".lance")),
    Kind("a NumPy file", f"{IMAGES}, {SHARDS}", _starts(b"\x93NUMPY")),
    Kind("a NumPy file", f"{IMAGES}, {SHARDS}", _ends(".npz")),
    Kind("a file of MNIST's kind", f"{IMAGES}, {SHARDS}", _is_mnist),
    Kind("a pickle, as CIFAR's batches are", f"{IMAGES}, {SHARDS}", _is_pickle),
    Kind("a file of PyTorch", f"{IMAGES}, {SHARDS}", _ends(".pt", ".pth")),
    Kind("a zip archive", UNPACK, _starts(b"PK\3\4", b"PK\5\6")),
    Kind("a 7z archive", UNPACK, _starts(b"7z\xbc\xaf\x27\x1c")),
    Kind("a RAR archive", UNPACK, _starts(b"Rar!\x1a\x07")),
    Kind("compressed with gzip", UNPACK, _starts(b"\x1f\x8b")),
    Kind("compressed with bzip2", UNPACK, _starts(b"BZh")),
    Kind("compressed with xz", UNPACK, _starts(b"\xfd7zXZ")),
    Kind("compressed with Zstandard", UNPACK, _starts(b"\x28\xb5\x2f\xfd")),
)
