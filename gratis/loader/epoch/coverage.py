"""Whether an epoch saw every sample exactly once, over all ranks."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from gratis.errors import GratisError


class Coverage(TypedDict):
    """Counts. A whole epoch has missing = duplicates = 0, and dropped = 0 unless the remainder is
    dropped. With `repeats` a sample that lacks two of its times counts twice as missing."""

    seen: int  # different samples
    missing: int  # neither seen nor dropped
    duplicates: int  # sightings beyond the first, or beyond `repeats`
    dropped: int  # left out by remainder="drop", and indeed not seen


def coverage(
    ids: NDArray[np.int64],
    num_samples: int,
    dropped: NDArray[np.int64] | None = None,
    repeats: int = 1,
) -> Coverage:
    """Counted over the ids of an epoch's batches, of all ranks and in any order, padding (-1)
    included.

    `dropped` are the ids that the epoch leaves out (`Loader.dropped`); repeats: how often it has
    each sample. Takes num_samples * 16 bytes. GratisError for an id that the dataset does not
    have."""
    real = ids[ids >= 0].ravel()
    if len(real) and real.max() >= num_samples:
        raise GratisError(f"sample id {real.max()} is not in a dataset of {num_samples} samples")
    counts = np.bincount(real, minlength=num_samples)
    lacking = np.maximum(repeats - counts, 0)
    left_out = 0
    if dropped is not None:
        left_out = int(np.minimum(np.bincount(dropped, minlength=num_samples), lacking).sum())
    return {
        "seen": int(np.count_nonzero(counts)),
        "missing": int(lacking.sum()) - left_out,
        "duplicates": len(real) - (repeats * num_samples - int(lacking.sum())),
        "dropped": left_out,
    }
