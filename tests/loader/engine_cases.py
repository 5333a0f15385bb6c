"""JPEGs by Pillow, and batches for the engine in the form that tests look at: lists of arrays."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from gratis.loader.engine.decoder import NativeDecoder, ViewBatch, addresses
from gratis.loader.engine.library import ISAS, PixelType, Status, load

Pixels = NDArray[np.uint8]
Box = tuple[int, int, int, int]  # y, x, height, width

LIBRARY = load()
needs_library = pytest.mark.skipif(
    LIBRARY is None, reason="needs the engine: python setup.py build_ext --inplace, with a compiler"
)
ABLE = ISAS[: LIBRARY.best_isa + 1] if LIBRARY else ISAS[:1]
NUMPY = {
    PixelType.FLOAT32: np.float32,
    PixelType.BFLOAT16: np.uint16,
    PixelType.FLOAT16: np.float16,
    PixelType.UINT8: np.uint8,
}


@lru_cache(256)
def photo(height: int, width: int, number: int = 0, noise: float = 12) -> Pixels:
    """Coarse colours with edges, and noise over them."""
    rng = np.random.default_rng([number, height, width])
    coarse = rng.integers(0, 256, (-(-height // 9), -(-width // 9), 3))
    large = coarse.repeat(9, axis=0).repeat(9, axis=1)[:height, :width]
    pixels = (large + rng.normal(0, noise, large.shape)).clip(0, 255).astype(np.uint8)
    pixels.flags.writeable = False
    return pixels


def jpeg(pixels: Pixels, *, mode: str = "RGB", quality: int = 95, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, "JPEG", quality=quality, **options)
    return file.getvalue()


@lru_cache(256)
def decoded(data: bytes) -> Pixels:
    """uint8 [height,width,3] by libjpeg-turbo."""
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("RGB"))


def views(
    decoder: NativeDecoder,
    files: Sequence[bytes],
    boxes: Sequence[Sequence[Box]],
    *,
    size: tuple[int, int] = (0, 0),
    type: PixelType = PixelType.UINT8,
    channels_last: bool = False,
    misaligned: int = 0,
    **options: Any,
) -> tuple[list[Status], list[list[NDArray[Any]]]]:
    """Statuses, and the finished views [height,width,3] of each file. Bytes before and behind each
    view are checked to be as they were."""
    data = [np.frombuffer(file, np.uint8).copy() for file in files]
    dtype = np.dtype(NUMPY[type])
    shapes = [[size if size[0] else box[2:] for box in row] for row in boxes]
    guard = 128
    stores = [
        [np.full(2 * guard + 3 * h * w * dtype.itemsize + 64, 0xA5, np.uint8) for h, w in row]
        for row in shapes
    ]

    def begin(store: Pixels) -> int:
        return guard + -(store.ctypes.data + guard) % 64 + misaligned * dtype.itemsize

    out = [[store.ctypes.data + begin(store) for store in row] for row in stores]
    batch = ViewBatch(
        data=addresses(data),
        size=np.array([len(file) for file in files], np.int64),
        rectangles=np.array(boxes, np.int32).reshape(len(files), -1, 4),
        out=np.array(out, np.uint64).reshape(len(files), -1),
        height=size[0],
        width=size[1],
        type=type,
        channels_last=channels_last,
        **options,
    )
    status = [Status(number) for number in decoder(batch)]

    def read(store: Pixels, height: int, width: int) -> NDArray[Any]:
        first, count = begin(store), 3 * height * width * dtype.itemsize
        assert (store[:first] == 0xA5).all()
        assert (store[first + count :] == 0xA5).all()
        flat = store[first : first + count].view(dtype)
        if channels_last:
            return flat.reshape(height, width, 3)
        return flat.reshape(3, height, width).transpose(1, 2, 0)

    made = [
        [read(s, *shape) for s, shape in zip(*rows, strict=True)]
        for rows in zip(stores, shapes, strict=True)
    ]
    return status, made


def cut(pixels: NDArray[Any], box: Box) -> NDArray[Any]:
    y, x, height, width = box
    return pixels[y : y + height, x : x + width]


def random_box(rng: np.random.Generator, height: int, width: int) -> Box:
    h, w = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
    return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w
