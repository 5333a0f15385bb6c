"""Whether bytes begin as a JPEG of the dataset does (ITU T.81, annex B): 4 us a sample, before DALI gets it.

DALI 2.4 raises where a sample cannot be decoded, but other threads of it still work in that batch's memory: a batch of
128 with one such sample often ends the process by a segmentation fault. What sectors that rotted destroy is found here.
A flipped bit inside a table may still reach DALI.
"""

from __future__ import annotations

from struct import error as CutShort
from struct import unpack_from

import numpy as np
from numpy.typing import NDArray

SOI, SOS, DQT, DHT = 0xFFD8, 0xDA, 0xDB, 0xC4
FRAMES = frozenset(range(0xC0, 0xD0)) - {DHT, 0xC8, 0xCC}
BARE = frozenset((0x01, *range(0xD0, 0xD8)))  # markers without a length


def begins_well(image: NDArray[np.uint8], side: int) -> bool:
    """Whether the segments before the first scan can be those of a side x side image. image: uint8 [bytes]."""
    data = image.data  # whose bytes are Python's ints
    try:
        if unpack_from(">H", data)[0] != SOI:
            return False
        at, framed = 2, False
        while True:
            if data[at] != 0xFF or data[at + 1] in (0x00, 0xFF):  # stray and fill bytes, which decoders skip
                at += 1
                continue
            marker = data[at + 1]
            at += 2
            if marker in BARE:
                continue
            (length,) = unpack_from(">H", data, at)
            if marker == SOS:
                return framed
            if length < 2 or not _segment_fits(data, marker, at + 2, at + length, side):
                return False
            framed |= marker in FRAMES
            at += length
    except (CutShort, IndexError):
        return False


def _segment_fits(data: memoryview, marker: int, at: int, end: int, side: int) -> bool:
    if marker in FRAMES:
        return unpack_from(">BHH", data, at) == (8, side, side)
    if marker == DQT:
        while at < end and data[at] >> 4 <= 1 and data[at] & 15 <= 3:
            at += 65 + 64 * (data[at] >> 4)
        return at == end
    if marker == DHT:
        while at < end and data[at] >> 4 <= 1 and data[at] & 15 <= 3:
            at += 17 + sum(data[at + 1 : at + 17])
        return at == end
    return True
