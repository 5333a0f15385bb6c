"""Whether the bytes of a sample are an image of the dataset, looked at before anything decodes
them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def invalid_rows(parts: list[NDArray[np.uint8]], codec: str, side: int) -> list[int]:
    """Those of the samples that are no PPM of side x side pixels, or a JPEG that a decoder would
    give up on."""
    if codec == "raw":
        header = b"P6\n%d %d\n255\n" % (side, side)
        first, size = len(header), len(header) + 3 * side * side
        return [
            row
            for row, part in enumerate(parts)
            if len(part) != size or part[:first].tobytes() != header
        ]
    from gratis.loader.reading.jpeg_check import well_formed  # with Numba: its import takes 0.4 s

    return [row for row, part in enumerate(parts) if not well_formed(part, side)]
