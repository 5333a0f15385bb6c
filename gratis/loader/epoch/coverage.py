"""Whether an epoch saw every sample exactly once, over all ranks."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from gratis.errors import GratisError


class Coverage(TypedDict):
    """Counts. A whole epoch has missing = duplicates = 0, and dropped = 0 unless the remainder is
    dropped."""

    seen: int  # different samples
    missing: int  # neither seen nor dropped
    duplicates: int  # sightings beyond the first
    dropped: int  # left out by remainder="drop", and indeed not seen


def coverage(
    ids: NDArray[np.int64], num_samples: int, dropped: NDArray[np.int64] | None = None
) -> Coverage:
    """Counted over the ids of an epoch's batches, of all ranks and in any order, padding (-1)
    included.

    `dropped` are the ids that the epoch leaves out (`Loader.dropped`). Takes num_samples * 8 bytes.
    GratisError for an id that the dataset does not have."""
    real = ids[ids >= 0].ravel()
    if len(real) and real.max() >= num_samples:
        raise GratisError(f"sample id {real.max()} is not in a dataset of {num_samples} samples")
    counts = np.bincount(real, minlength=num_samples)
    seen = int(np.count_nonzero(counts))
    left_out = 0 if dropped is None else int(np.count_nonzero(counts[dropped] == 0))
    return {
        "seen": seen,
        "missing": num_samples - seen - left_out,
        "duplicates": len(real) - seen,
        "dropped": left_out,
    }
