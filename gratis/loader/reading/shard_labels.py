"""Is a shard that is opened the one that the index speaks of? Shards that were swapped, or replaced
by another of the same size, would train under wrong labels: of raw pixels all are equally long.

A few samples' tar headers and `.cls` members are held against the index, the rarest classes' first:
32 reads of a kilobyte, once for each shard. `gratis verify` compares all of it."""

from __future__ import annotations

import os
from bisect import bisect_left
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gratis.dataset import Index
from gratis.errors import GratisError

BLOCK = 512  # of a tar: a header, and what contents are filled up to
SAMPLES = 16  # of a shard; half of them by class


def check_labels(file: int, path: Path, index: Index, shard: int) -> None:
    """GratisError if the open file is not the index's shard of that number, as far as some of its
    samples tell."""
    seen = [_agrees(file, index, int(row)) for row in _chosen(index, shard)]
    if False in seen or (seen and True not in seen):
        wrong = (
            "holds other samples or labels than the index says: it is not the shard of that name"
        )
        raise GratisError(f"{path} {wrong}; verify the copy of the dataset")


def _chosen(index: Index, shard: int) -> NDArray[np.int64]:
    """Rows of the index, which runs through the shards in order. An image that several rows share
    is named for one of them."""
    # NumPy's searchsorted would copy the whole column, which lies in the file, unaligned
    first, end = (bisect_left(index.shard, number) for number in (shard, shard + 1))
    _, at, shared = np.unique(index.offset[first:end], return_index=True, return_counts=True)
    rows = first + np.sort(at[shared == 1])
    if not len(rows):
        return rows
    _, rare, counts = np.unique(index.label[rows], return_index=True, return_counts=True)
    rarest = rows[rare[np.argsort(counts, kind="stable")][: SAMPLES // 2]]
    spread = rows[np.linspace(0, len(rows) - 1, SAMPLES // 2).astype(np.int64)]
    chosen: NDArray[np.int64] = np.unique(np.concatenate([rarest, spread]))
    return chosen


def _agrees(file: int, index: Index, row: int) -> bool | None:
    """Whether the sample's header and label are there; None where a header is damaged."""
    offset, size = int(index.offset[row]), int(index.size[row])
    label = int(index.label[row])
    image = _header(os.pread(file, BLOCK, max(0, offset - BLOCK)))
    if image is None:
        return None
    name, length = image
    if length != size:
        return False
    found = [] if label < 0 else _labels_beside(file, name.partition(".")[0], offset, size)
    return label in found if found else True


def _labels_beside(file: int, key: str, offset: int, size: int) -> list[int]:
    """What the `.cls` member before or behind the image says; [] where there is none of its key."""
    found = []
    for at in (offset - 3 * BLOCK, offset + -(-size // BLOCK) * BLOCK):
        block = os.pread(file, 2 * BLOCK, at) if at >= 0 else b""
        header = _header(block[:BLOCK])
        if header and header[0] == f"{key}.cls" and header[1] <= BLOCK:
            text = block[BLOCK : BLOCK + header[1]].strip()
            found += [int(text)] if text.isdigit() else []
    return found


def _header(block: bytes) -> tuple[str, int] | None:
    """A member's name, without its folders, and its size; None for what is no header."""
    try:
        blank = block[:148] + b" " * 8 + block[156:]
        if len(block) < BLOCK or sum(blank) != int(block[148:156].strip(b"\0 "), 8):
            return None
        size = int(block[124:136].strip(b"\0 "), 8)
    except ValueError:
        return None
    return block[:100].partition(b"\0")[0].decode(errors="replace").rpartition("/")[2], size
