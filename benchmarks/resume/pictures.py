"""Pictures that say which sample they are: 16 squares, black or white, nine bits of an id and seven
of a checksum, which survive any decoder."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE, SQUARE = 64, 16
SAMPLES = 307  # a prime
DAMAGED = 100  # the sample that is damaged where one is
UNKNOWN = -1  # a picture that is none of them


def _bits(sample: int) -> int:
    return sample << 7 | (sample * 37 + 11) % 128


def picture(sample: int) -> bytes:
    """The JPEG of a sample."""
    bits = [_bits(sample) >> place & 1 for place in range(16)]
    squares = np.array(bits, np.uint8).reshape(4, 4) * 200 + 20
    grey = squares.repeat(SQUARE, 0).repeat(SQUARE, 1)
    file = io.BytesIO()
    Image.fromarray(grey).convert("RGB").save(file, "JPEG", quality=95)
    return file.getvalue()


def damaged(data: bytes) -> bytes:
    """As long as before, and no JPEG."""
    return data[:2] + bytes(len(data) - 2)


def id_of(pixels: NDArray[Any]) -> int:
    """The sample of grey levels [SIDE,SIDE] or [SIDE,SIDE,3]; UNKNOWN for another picture."""
    grey = pixels.reshape(SIDE, SIDE, -1)[SQUARE // 2 :: SQUARE, SQUARE // 2 :: SQUARE, 0]
    bits = sum(int(level > 128) << place for place, level in enumerate(grey.ravel()))
    sample = bits >> 7
    return sample if _bits(sample) == bits else UNKNOWN


def decoded_id(data: bytes) -> int:
    return id_of(np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
