"""A shard's tar and its DALI index, written sample by sample."""

from __future__ import annotations

import hashlib
import tarfile
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from gratis.preprocess.sources.tar import Member, idx_bytes, idx_line
from gratis.preprocess.sources.tar_headers import BLOCK

OWNER = "gratis"  # the same everywhere, so that equal samples give equal bytes


def tar_header(name: str, size: int) -> bytes:
    """The header of a member, as tarfile writes it; in a sixth of its time where the name is
    usual."""
    if not name.isascii() or len(name) > 100 or size >= 8**11:
        return _by_tarfile(name, size)
    header = bytearray(TEMPLATE)
    header[: len(name)] = name.encode()
    header[124:135] = b"%011o" % size
    header[148:156] = b" " * 8
    header[148:155] = b"%06o\0" % sum(header)
    return bytes(header)


def _by_tarfile(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    info.uname = info.gname = OWNER
    return info.tobuf(tarfile.USTAR_FORMAT)


TEMPLATE = _by_tarfile("", 0)


class ShardWriter:
    """Writes samples as USTAR members, and collects their index. digest (SHA-256) and bytes are of
    what was written so far."""

    def __init__(self, file: BinaryIO, extension: str) -> None:
        self._file = file
        self._extension = extension
        self.digest = hashlib.sha256()
        self.bytes = 0
        self.lines: list[str] = []  # of DALI's index
        self.offset: list[int] = []
        self.size: list[int] = []
        self.label: list[int] = []

    def add(self, key: str, data: bytes, label: int) -> None:
        self.label.append(label)
        self.size.append(len(data))
        self.offset.append(self.bytes + BLOCK)
        first = self._member(f"{key}.{self._extension}", data)
        second = self._member(f"{key}.cls", b"%d" % label)
        self.lines.append(idx_line((first, second)))

    def index(self) -> bytes:
        """DALI's index of the samples so far."""
        return idx_bytes(self.lines)

    def columns(self) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]:
        """Offsets, sizes and labels of the images so far, as in a dataset's index."""
        offset, size, label = self.offset, self.size, self.label
        return np.array(offset, np.int64), np.array(size, np.int32), np.array(label, np.int32)

    def close(self) -> None:
        """Ends the archive as tarfile does: two blocks of zeros, more up to a record of 20."""
        padded = -(-(self.bytes + 2 * BLOCK) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE
        self._write(bytes(padded - self.bytes))

    def _member(self, name: str, data: bytes) -> Member:
        self._write(tar_header(name, len(data)))
        member = Member(name, self.bytes, len(data))
        self._write(data + bytes(-len(data) % BLOCK))
        return member

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self.digest.update(data)
        self.bytes += len(data)
