"""Rows of a compressed parquet file: whoever wants one has to read its row group, a hundred images
or a hundred megabytes.

Such a row's offset in a listing is below -1. So that a row group is not read once for each of its
rows, the shuffle of a split keeps the rows of a row group to few shards, and a shard reads its rows
group by group.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gratis.preprocess.sources.listing import Listing

# A row group goes to at most so many shards and one: it is read as often. With row groups of 100
# images and shards of 1,000, a shard's images are from 80 places of the source.
SHARDS_TOGETHER = 8
FIRST = -2  # the offset of row 0 of row group 0
ROW_BITS = 32


def row_offset(group: int, row: int) -> int:
    """The offset that stands for a row of a row group."""
    return FIRST - (group << ROW_BITS | row)


def group_and_row(offset: int) -> tuple[int, int]:
    """What `row_offset` was made of."""
    return divmod(FIRST - offset, 1 << ROW_BITS)


def row_groups(listing: Listing) -> NDArray[np.int64] | None:
    """By row of the listing, a number of its row group; None where no file is read by row groups.
    Files that are read by themselves have a number each."""
    by_group = listing.offset <= FIRST
    if not by_group.any():
        return None
    groups = (FIRST - listing.offset) >> ROW_BITS
    pairs = np.stack([listing.container.astype(np.int64), np.where(by_group, groups, -1)])
    pairs[0, ~by_group] = -1 - np.flatnonzero(~by_group)
    return np.unique(pairs, axis=1, return_inverse=True)[1].ravel().astype(np.int64)


def keep_together(
    order: NDArray[np.int64], groups: NDArray[np.int64], samples_per_shard: int
) -> NDArray[np.int64]:
    """A shuffled order of rows, changed so that shards read few row groups, each at once.

    Row groups follow each other at random; the rows of as many as fill SHARDS_TOGETHER shards stay
    shuffled among each other, and each shard's are then sorted by row group."""
    _, first, inverse = np.unique(groups[order], return_index=True, return_inverse=True)
    turn = np.argsort(first)  # groups as the random order comes to them
    begin = np.empty(len(turn), np.int64)
    counts = np.bincount(inverse)[turn]
    begin[turn] = np.cumsum(counts) - counts
    together = begin // (SHARDS_TOGETHER * samples_per_shard)
    order = order[np.argsort(together[inverse], kind="stable")]
    shard = np.arange(len(order)) // samples_per_shard
    return order[np.lexsort((groups[order], shard))]
