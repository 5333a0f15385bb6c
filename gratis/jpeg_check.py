"""Whether a decoder will be content with a JPEG's bytes (ITU T.81, annex B, as libjpeg-turbo reads
it).

DALI 2.4 raises where a sample cannot be decoded, but other threads of it still work in that batch's
memory: a batch of 128 with one such sample often ends the process by a segmentation fault. So
whatever makes libjpeg-turbo give up is looked for here, before DALI gets the bytes. Wrong
coefficients do not: they are other pixels. An end that is missing does, once the decoder comes to
it; it is looked for too, for else the epoch's crop would say whether a sample is bad. What
arithmetic coding makes is refused.

Compiled, as Python would take 3 % of the decoding time for it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gratis.jit import call_kernel, inner_jit, jit

SOI, EOI, SOS, DQT, DNL, DRI, DHT, COMMENT = 0xD8, 0xD9, 0xDA, 0xDB, 0xDC, 0xDD, 0xC4, 0xFE
SEQUENTIAL, EXTENDED, PROGRESSIVE = 0xC0, 0xC1, 0xC2
# Huffman tables 0 and 1, which libjpeg-turbo has itself if frames are not progressive
STANDARD = 0b11 | 0b11 << 16
# tables so far, a bit each: Huffman's DC from 0, AC from 16; all that were defined, and the good
# ones
DEFINED, HUFFMAN, QUANTISATION, KIND, FRAME = range(5)


def well_formed(image: NDArray[np.uint8], height: int, width: int) -> bool:
    """Whether the segments of a JPEG of that size in pixels are whole and agree, and there is an
    end. image: uint8 [bytes]."""
    return bool(call_kernel(_walk, image, height, width))


@jit()
def _walk(data: Any, height: Any, width: Any) -> Any:
    """From segment to segment."""
    size, at = len(data), 2
    if size < 4 or data[0] != 0xFF or data[1] != SOI:
        return False
    state = np.zeros(5, np.int64)
    while True:
        while at + 1 < size and data[at] == 0xFF and data[at + 1] == 0xFF:  # fill bytes
            at += 1
        if at + 4 > size or data[at] != 0xFF:
            return False
        marker, begin, end = data[at + 1], at + 4, at + 2 + _word(data, at + 2)
        if end < begin or end > size:
            return False
        if not _segment(data, marker, begin, end, height, width, state):
            return False
        at = end
        if marker == SOS:
            # every component: the only scan
            if state[KIND] != PROGRESSIVE and data[begin] == data[state[FRAME] + 5]:
                return _ends(data, at)
            at = _next(data, at)
            if at + 1 < size and data[at + 1] == EOI:
                return True


@inner_jit
def _segment(  # noqa: PLR0917
    data: Any, marker: Any, begin: Any, end: Any, height: Any, width: Any, state: Any
) -> Any:
    """Whether it fits. What it defines is noted in state."""
    if marker == DHT:
        return _huffman(data, begin, end, state)
    if marker == DQT:
        return _quantisation(data, begin, end, state)
    if marker in (SEQUENTIAL, EXTENDED, PROGRESSIVE):
        only = state[KIND] == 0
        state[KIND], state[FRAME] = marker, begin
        return only and _frame(data, begin, end, height, width)
    if marker == SOS:
        good = state[KIND] != 0 and _band(data, begin, end, state)
        return good and _components(data, begin, end, state)
    if marker == DRI:
        return end - begin == 2
    return marker in (DNL, COMMENT) or marker >> 4 == 0xE  # what applications add


@inner_jit
def _word(data: Any, at: Any) -> Any:
    return (np.int64(data[at]) << 8) + np.int64(data[at + 1])


@inner_jit
def _huffman(data: Any, at: Any, end: Any, state: Any) -> Any:
    """A table is as none if its codes take all there are, or more, or if a DC length is above
    15."""
    while end - at > 16:
        kind, count, taken = np.int64(data[at]), np.int64(0), np.int64(0)
        for length in range(1, 17):
            codes = np.int64(data[at + length])
            count += codes
            taken += codes << (16 - length)
        at += 17 + count
        if kind & 0xEC or count > 256 or at > end:
            return False
        good = taken < 1 << 16
        if kind < 16:
            for k in range(at - count, at):
                good = good and data[k] <= 15
        state[DEFINED] |= 1 << kind
        state[HUFFMAN] = state[HUFFMAN] | 1 << kind if good else state[HUFFMAN] & ~(1 << kind)
    return at == end


@inner_jit
def _quantisation(data: Any, at: Any, end: Any, state: Any) -> Any:
    while at < end:
        kind = np.int64(data[at])
        if kind & 0xEC:
            return False
        state[QUANTISATION] |= 1 << (kind & 3)
        at += 65 + 4 * (kind & 16)
    return at == end


@inner_jit
def _frame(data: Any, at: Any, end: Any, height: Any, width: Any) -> Any:
    if end - at < 6 or data[at] != 8:
        return False
    if _word(data, at + 1) != height or _word(data, at + 3) != width:
        return False
    count = np.int64(data[at + 5])
    if count not in (1, 3, 4) or end - at != 6 + 3 * count:
        return False
    for shift in (4, 0):  # the sampling factors along x, then along y
        most = np.int64(0)
        for k in range(at + 7, end, 3):
            most = max(most, np.int64(data[k]) >> shift & 15)
        for k in range(at + 7, end, 3):
            factor = np.int64(data[k]) >> shift & 15
            if factor == 0 or most > 4 or most % factor != 0:
                return False
    return True


@inner_jit
def _band(data: Any, at: Any, end: Any, state: Any) -> Any:
    """Which coefficients a scan has, and of them which bits: decoders look at that in progressive
    frames alone."""
    count = np.int64(data[at])
    if count < 1 or end - at != 4 + 2 * count:
        return False
    if state[KIND] != PROGRESSIVE:
        return True
    low, high = data[end - 3], data[end - 2]
    before, after = np.int64(data[end - 1]) >> 4, np.int64(data[end - 1]) & 15
    band = high == 0 if low == 0 else low <= high <= 63 and count == 1
    return band and after <= 13 and (before == 0 or after == before - 1)


@inner_jit
def _components(data: Any, at: Any, end: Any, state: Any) -> Any:
    """Whether a scan's are the frame's, in its order, and what they are coded with is defined."""
    k, blocks = state[FRAME] + 6, np.int64(0)
    last = k + 3 * np.int64(data[k - 1])
    whole = state[KIND] != PROGRESSIVE
    good = state[HUFFMAN] | (STANDARD & ~state[DEFINED]) if whole else state[HUFFMAN]
    direct = whole or (data[end - 3] == 0 and data[end - 1] < 16)
    other = whole or data[end - 3] > 0
    for place in range(at + 1, end - 3, 2):
        while k < last and data[k] != data[place]:
            k += 3
        if k == last or data[k + 2] > 3 or not state[QUANTISATION] >> np.int64(data[k + 2]) & 1:
            return False
        factors, tables = np.int64(data[k + 1]), np.int64(data[place + 1])
        if direct and not good >> (tables >> 4) & 1:
            return False
        if other and not good >> (16 + (tables & 15)) & 1:
            return False
        blocks += (factors >> 4) * (factors & 15)
        k += 3
    return data[at] == 1 or blocks <= 10


@inner_jit
def _next(data: Any, at: Any) -> Any:
    """Where the next segment begins, behind a scan that is not the only one."""
    while at + 1 < len(data) and (
        data[at] != 0xFF or data[at + 1] in (0x00, 0x01) or data[at + 1] >> 3 == 0xD0 >> 3
    ):
        at += 1
    return at


@inner_jit
def _ends(data: Any, begin: Any) -> Any:
    at = len(data) - 2
    while at >= begin and (data[at] != 0xFF or data[at + 1] != EOI):
        at -= 1
    return at >= begin
