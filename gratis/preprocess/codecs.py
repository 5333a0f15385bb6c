"""Codecs: the form in which a shard's images are written. A new codec is one entry of CODECS, its
name in `CodecName`, and its extension in gratis.dataset.EXTENSIONS, for readers."""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageFile

from gratis import engine_jpeg, image

CodecName = Literal["jpeg", "raw"]


class Codec(NamedTuple):
    """format: as Pillow names it. encode(picture, quality): the member's bytes, of an RGB picture
    or, where it is not lossless, of an RGBX one. lossless: the picture's own pixels are what the
    bytes decode to."""

    format: str
    encode: Callable[[Pillow.Image, int], bytes]
    lossless: bool

    def sample(self, picture: Pillow.Image, quality: int) -> tuple[bytes, NDArray[np.uint8]]:
        """The member's bytes, and the pixels uint8 [height,width,3] that they decode to."""
        data = self.encode(picture, quality)
        if self.lossless:
            return data, np.asarray(picture)
        return data, decode_jpeg(data, picture.height, picture.width)


def decode_jpeg(data: bytes, height: int, width: int) -> NDArray[np.uint8]:
    """Pixels uint8 [height,width,3] of a JPEG of that size that was encoded here."""
    pixels = engine_jpeg.decode(data, height, width)
    return image.decode(data) if pixels is None else pixels


def encode_jpeg(pixels: NDArray[np.uint8] | Pillow.Image, quality: int) -> bytes:
    """Baseline JPEG, colour at half resolution (4:2:0), Huffman tables fitted to the image, a
    restart marker at the end of each row of MCUs; of uint8 [height,width,3], or an RGB or RGBX
    picture. quality: 1 to 100. The engine's library makes the same bytes as Pillow in less than a
    third of the time.

    Chosen by `gratis bench shards` (125 ILSVRC photographs, libjpeg-turbo 2.1.5 through pillow-simd
    12.1.1, CPU ms on one core of an EPYC; dB against the full decode and Lanczos filter):

        quality subsampling tables                bytes  encode  decode     dB
        95      4:4:4       fitted               41,131    1.09   0.495  40.66
        95      4:2:0       standard             33,307    0.25   0.362  37.38
        95      4:2:0       fitted               31,790    0.79   0.364  37.38   <- the default
        95      4:2:0       fitted, progressive  30,188    1.76   1.063  37.38
        90      4:4:4       fitted               28,600    0.87   0.386  37.27
        90      4:2:0       fitted               22,936    0.63   0.314  35.30
        85      4:2:0       fitted               18,506    0.58   0.302  33.89

    Quality 95 is what ImageNet's own 256-pixel sets were made at. Fitted tables cost Pillow 0.5 ms
    once; they save 4.6 % of the bytes and, in DALI's crop decoder, 2.7 % of each epoch's decoding
    (paired, n = 15, quartiles 2.3 and 3.8), which over 90 epochs is more than they cost.
    Progressive saves another 5 % of bytes and triples the decoding.

    Restart markers make each row of 16 pixels a stream of its own: `gratis.loader.engine` decodes
    several at once, and none that a crop does not need. They take 0.15 % of the bytes (500 of these
    photographs); decoders that read one stream lose 3 to 4 % of their time by them."""
    picture = Pillow.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels
    if not picture.info and picture.mode in ("RGB", "RGBX") and _engine_agrees(quality):
        words = picture.tobytes("raw", "RGBX")
        if data := engine_jpeg.encode(words, picture.height, picture.width, quality):
            return data
    return _encode_by_pillow(picture, quality)


@cache
def _engine_agrees(quality: int) -> bool:
    """Whether the engine makes Pillow's bytes of a drawn picture; not where Pillow was built with
    another library than libjpeg-turbo. Once in a process, for the time of one image."""
    width, height = 87, 55
    noise = (np.arange(4 * height * width, dtype=np.uint32) * np.uint32(2654435761)) >> 19
    slope = np.arange(4 * width, dtype=np.uint32) // 3
    words = ((noise.reshape(height, -1) & 31) + slope).astype(np.uint8).tobytes()
    picture = Pillow.frombytes("RGBX", (width, height), words)
    return engine_jpeg.encode(words, height, width, quality) == _encode_by_pillow(picture, quality)


def _encode_by_pillow(picture: Pillow.Image, quality: int) -> bytes:
    # fitting needs the whole file in one buffer, and Pillow's own guess (height * width) is too
    # small for noise
    ImageFile.MAXBLOCK = max(1 << 16, 8 * picture.height * picture.width)
    file = io.BytesIO()
    picture.save(
        file, "JPEG", quality=quality, subsampling="4:2:0", optimize=True, restart_marker_rows=1
    )
    return file.getvalue()


def encode_ppm(pixels: NDArray[np.uint8] | Pillow.Image) -> bytes:
    """Binary PPM (P6): a header of a few bytes, then the pixels as they are."""
    array = np.asarray(pixels)
    height, width, _ = array.shape
    return b"P6\n%d %d\n255\n" % (width, height) + array.tobytes()


CODECS: dict[str, Codec] = {
    "jpeg": Codec("JPEG", encode_jpeg, lossless=False),
    "raw": Codec("PPM", lambda picture, _: encode_ppm(picture), lossless=True),
}
