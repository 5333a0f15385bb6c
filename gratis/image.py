"""Image: the bytes of any file that claims to be a picture -> size x size RGB uint8, as in 2012;
or, of whole images, the picture with its shorter side at `size`.

The shorter side becomes `size`, the centre is cut out. Both are one resampling of the wanted window
(`central_box`), which equals resizing the whole picture and then cropping, without computing what
the crop throws away. JPEGs are first shrunk inside the decoder (by 2, 4 or 8, never below twice the
target) and other large pictures by whole-number averaging: 0.01 dB against the full decode, for a
quarter less CPU time. A JPEG that is not shrunk is decoded by the engine's library where it is sure
of the file: to the bit what Pillow gives, in less time.

Odd files are converted, and every conversion is named, so that it can be counted:
    greyscale                  one channel: repeated three times
    palette, 1-bit, 16-bit     converted to 8 bits a channel; of 16 bits, the high byte
    alpha                      dropped
    cmyk, ycck                 four channels, inverted as Adobe writes them (in ImageNet's JPEGs)
    png, gif, ...              not a JPEG, whatever the name says
    gzip                       a compressed file around the picture
    exif-rotated               orientation other than upright: ignored, as decoders did in 2012
    exif-corrupt               unreadable EXIF: ignored
    progressive                decoded like any other
    one-pixel                  a side of one pixel: stretched like any other
    long                       of whole images: the ends of the longer side are cut off
    small                      of whole images: the shorter side is below `size`, and stays so
    float                      clipped to 0 to 255; integers of 32 bits are taken for 16-bit ones
Colour profiles are ignored. Of a JPEG with previews behind it (MPO) the first picture is taken. A
TIFF's own orientation is obeyed, by Pillow: it is no EXIF.

What cannot become pixels raises Reject, with one of the kinds empty, truncated, undecodable,
too-large, multi-frame (animations, and TIFFs of several pages), unsupported (a known format that is
not read here, or not by this Pillow).
"""

from __future__ import annotations

import io
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageFile, UnidentifiedImageError, features
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from gratis import engine_jpeg
from gratis.dataset import MOST_PIXELS
from gratis.file_formats import PICTURE, name_format

MAX_BYTES = 64 << 20  # the largest file of ILSVRC2012 has 15 MB
MAX_PIXELS = MOST_PIXELS  # by the header, before anything is decoded: 300 MB as RGB
# beside JPEG; few formats leave hostile files few decoders to attack
FORMATS = ("PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
# shrinking inside the decoder stops at this multiple of the target, and the filter does the rest
REDUCING_GAP = 2
ORIENTATION = 0x0112
# what undoes each (EXIF and TIFF alike)
UPRIGHT = {
    2: Pillow.Transpose.FLIP_LEFT_RIGHT,
    3: Pillow.Transpose.ROTATE_180,
    4: Pillow.Transpose.FLIP_TOP_BOTTOM,
    5: Pillow.Transpose.TRANSPOSE,
    6: Pillow.Transpose.ROTATE_270,
    7: Pillow.Transpose.TRANSVERSE,
    8: Pillow.Transpose.ROTATE_90,
}
# tags of TIFF: whether this is a smaller version; bits of each channel; where other pictures lie
REDUCED, BITS_PER_SAMPLE, SUBIFDS = 254, 258, 330
COMPRESSION, DEFLATE = 259, (8, 32946)
# where strips lie and how long they are; the same of tiles
STRIPS, TILES = (273, 279), (324, 325)
# a conversion and a kind of Reject that others ask for
ROTATED = "exif-rotated"
UNSUPPORTED = "unsupported"


class Reject(ValueError):
    """A file that cannot become an image. `kind` is one word to count by, the message says more."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(f"{kind}: {reason}")
        self.kind = kind
        self.reason = reason


class Whole(NamedTuple):
    """How a picture keeps its shape: its longer side is at most max_aspect times the shorter one,
    of which the centre is kept; enlarge: a shorter side below `size` becomes `size` too."""

    max_aspect: float
    enlarge: bool


class Image(NamedTuple):
    """pixels uint8 [size,size,3], RGB; conversions: what was odd about the file, as listed
    above."""

    pixels: NDArray[np.uint8]
    conversions: tuple[str, ...]


def central_box(width: int, height: int, size: int) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) of the window, in source pixels, that becomes the size x size
    image.

    The picture would become round(size / min * side) pixels wide and high, and the crop would start
    at (that - size) / 2, truncated: 500x375 -> 341x256, columns 42 to 297."""
    left, right = _window(width, min(width, height), size)
    top, bottom = _window(height, min(width, height), size)
    return left, top, right, bottom


def whole_box(
    width: int, height: int, size: int, whole: Whole
) -> tuple[tuple[int, int], tuple[float, float, float, float]]:
    """Width and height of the stored image, and the window (left, top, right, bottom) in source
    pixels that becomes it.

    The picture would become round(size / min * side) pixels wide and high, halves upwards; what is
    longer than max_aspect allows loses its ends, half of it (rounded down) at the left or top:
    500x375 -> 341x256, all of it."""
    shorter = min(width, height)
    target = size if whole.enlarge else min(size, shorter)
    longest = int(whole.max_aspect * target)
    across, left, right = _stretch(width, shorter, target, longest)
    down, top, bottom = _stretch(height, shorter, target, longest)
    return (across, down), (left, top, right, bottom)


def to_image(data: bytes, size: int = 256) -> Image:
    """The file's central square at size x size. Raises Reject, and nothing else, for bytes that are
    no picture."""
    picture, conversions = to_picture(data, size)
    return Image(np.asarray(picture), conversions)


def to_image_as_seen(data: bytes, size: int = 256) -> Image:
    """`to_image` of what a viewer shows: upright by its EXIF, and what is transparent lies on
    white."""
    picture, conversions = to_picture(data, size, as_seen=True)
    return Image(np.asarray(picture), conversions)


def to_picture(
    data: bytes,
    size: int,
    *,
    as_seen: bool = False,
    whole: Whole | None = None,
    padded: bool = False,
) -> tuple[Pillow.Image, tuple[str, ...]]:
    """`to_image` (or `to_image_as_seen`) with an RGB picture instead of an array: two copies less
    where it is only encoded. whole: with the picture's own shape (`whole_box`). padded: RGBX will
    do, whose fourth byte says nothing: one copy less again."""
    if not data:
        raise Reject("empty", "the file has no bytes")
    if len(data) > MAX_BYTES:
        raise Reject("too-large", f"{len(data)} bytes, the limit is {MAX_BYTES}")
    with _parser_errors_as_rejects() as caught:
        picture, conversions = _read(data, size, as_seen, whole)
        if picture.mode != "RGB" and not (padded and picture.mode == "RGBX"):
            picture = picture.convert("RGB")
        picture.info = {}  # the file's comment would go into the JPEG that is made of it
    exif_warning = any("EXIF" in str(warning.message) for warning in caught)
    if exif_warning and "exif-corrupt" not in conversions:
        conversions.append("exif-corrupt")
    return picture, tuple(conversions)


def probe(data: bytes) -> tuple[str, int, int, str]:
    """Format, width, height and mode by the header, as Pillow names them. Raises Reject."""
    with _parser_errors_as_rejects():
        picture = _open(data)
    return picture.format or "", picture.width, picture.height, picture.mode


def decode_or_reject(data: bytes) -> NDArray[np.uint8]:
    """`decode` for a file that somebody else wrote. Raises Reject."""
    with _parser_errors_as_rejects():
        return decode(data)


def decode(data: bytes) -> NDArray[np.uint8]:
    """uint8 [height,width,3] of a JPEG or PPM that this project wrote. Raises Pillow's errors."""
    with Pillow.open(io.BytesIO(data), formats=("JPEG", "PPM")) as picture:
        return np.asarray(_rgb(picture))


@contextmanager
def _parser_errors_as_rejects() -> Iterator[list[warnings.WarningMessage]]:
    """Collects warnings instead of showing them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield caught
        except Reject:
            raise
        except Exception as error:  # parsers raise anything on hostile bytes
            raise Reject(*_diagnosis(error)) from None


def _window(side: int, shorter: int, size: int) -> tuple[float, float]:
    resized = (2 * size * side + shorter) // (2 * shorter)  # round half up, in integers
    start = (resized - size) // 2
    return start * side / resized, (start + size) * side / resized


def _stretch(side: int, shorter: int, target: int, longest: int) -> tuple[int, float, float]:
    """Of a side: pixels that are stored, and where those begin and end in the source's."""
    resized = (2 * target * side + shorter) // (2 * shorter)  # round half up, in integers
    kept = min(resized, longest)
    start = (resized - kept) // 2
    return kept, start * side / resized, (start + kept) * side / resized


def _read(
    data: bytes, size: int, as_seen: bool, whole: Whole | None
) -> tuple[Pillow.Image, list[str]]:
    conversions: list[str] = []
    if data.startswith(b"\x1f\x8b"):
        data = _gunzip(data)
        conversions.append("gzip")
    picture = _open(data)
    width, height = picture.size
    if width * height > MAX_PIXELS:
        raise Reject("too-large", f"{width} x {height} pixels, the limit is {MAX_PIXELS} pixels")
    if getattr(picture, "n_frames", 1) > 1:
        raise Reject("multi-frame", f"{getattr(picture, 'n_frames', 0)} frames")
    if isinstance(picture, TiffImageFile):
        _check_deflate(picture, data)
    conversions += _oddities(picture, data)
    orientation = _orientation(picture) if as_seen and ROTATED in conversions else 1
    drafted = picture.draft(None, (REDUCING_GAP * size, REDUCING_GAP * size))
    shrunk = drafted[1][2] / width if drafted else 1.0  # 1, 1/2, 1/4 or 1/8
    if as_seen and "alpha" in conversions:
        flat = _on_white(picture)
    else:
        flat = (_by_engine(picture, data) if shrunk == 1 else None) or _flatten(picture)
    if orientation in UPRIGHT:
        flat = flat.transpose(UPRIGHT[orientation])
        width, height = (height, width) if orientation > 4 else (width, height)
    stored, box = (size, size), central_box(width, height, size)
    if whole:
        stored, box = whole_box(width, height, size, whole)
        long = max(width, height) > whole.max_aspect * min(width, height)
        conversions += ["long"] * long + ["small"] * (min(stored) < size)
    scaled = (box[0] * shrunk, box[1] * shrunk, box[2] * shrunk, box[3] * shrunk)
    # the sources' own code enlarges by cubic interpolation; shrinking is Lanczos, 2 dB nearer to
    # the original than area
    method = Pillow.Resampling.LANCZOS if min(width, height) > size else Pillow.Resampling.BICUBIC
    small = flat.resize(stored, method, box=scaled, reducing_gap=float(REDUCING_GAP))
    return small, conversions


def _rgb(picture: Pillow.Image) -> Pillow.Image:
    return picture if picture.mode == "RGB" else picture.convert("RGB")  # convert alone would copy


def _gunzip(data: bytes) -> bytes:
    stream = zlib.decompressobj(wbits=31)
    plain = stream.decompress(data, MAX_BYTES + 1)
    if len(plain) > MAX_BYTES:
        raise Reject("too-large", f"more than {MAX_BYTES} bytes after gzip")
    if not stream.eof:
        raise Reject("truncated", "the gzip stream ends early")
    return plain


def _open(data: bytes) -> ImageFile.ImageFile:
    # the class itself: a camera's preview frames (MPO) would hide the picture
    if data.startswith(b"\xff\xd8"):
        return JpegImageFile(io.BytesIO(data))
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP" and not features.check("webp"):
        raise Reject(UNSUPPORTED, _not_built_in("WebP"))
    try:
        picture = Pillow.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        if known := name_format(data):
            raise _unsupported(*known) from None
        raise
    # their large pictures are no TIFF that is read here
    if isinstance(picture, TiffImageFile) and _is_raw(picture, data):
        raise _unsupported("a camera's raw file", PICTURE)
    return picture


def _check_deflate(picture: TiffImageFile, data: bytes) -> None:
    """Raises zlib.error for a damaged stream. libtiff 4.5 takes it, and gives as pixels what was in
    memory, other ones each time."""
    tags = picture.tag_v2
    if tags.get(COMPRESSION) not in DEFLATE:
        return
    for offsets, counts in (STRIPS, TILES):
        for offset, count in zip(tags.get(offsets, ()), tags.get(counts, ()), strict=False):
            stream, rest = zlib.decompressobj(), data[offset : offset + count]
            while rest and not stream.eof:
                stream.decompress(rest, MAX_BYTES)
                rest = stream.unconsumed_tail


def _unsupported(name: str, way_out: str) -> Reject:
    return Reject(UNSUPPORTED, f"it is {name}, which is not read here; {way_out}")


def _not_built_in(name: str) -> str:
    return f"it is {name}, which Pillow was built without here; gratis doctor says how to get it"


def _is_raw(picture: TiffImageFile, data: bytes) -> bool:
    """Whether it is a camera's (DNG, NEF, ARW, CR2): only previews lie where a TIFF's picture
    does."""
    preview = bool(picture.tag_v2.get(REDUCED, 0) & 1) and SUBIFDS in picture.tag_v2
    return preview or data.startswith(b"CR\x02", 8)


def _oddities(picture: ImageFile.ImageFile, data: bytes) -> list[str]:
    kind = picture.format or ""
    kinds = [] if kind == "JPEG" else [kind.lower()]
    if picture.mode == "CMYK":
        kinds.append("ycck" if picture.info.get("adobe_transform") == 2 else "cmyk")
    if picture.mode in ("L", "LA", "1", "I", "I;16", "I;16B", "F"):
        kinds.append("greyscale")
    if picture.mode == "1":
        kinds.append("1-bit")
    if _is_deep(picture, data):
        kinds.append("16-bit")
    if picture.mode == "F":
        kinds.append("float")
    if picture.mode in ("P", "PA"):
        kinds.append("palette")
    if picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info:
        kinds.append("alpha")
    if picture.info.get("progressive"):
        kinds.append("progressive")
    if min(picture.size) == 1:
        kinds.append("one-pixel")
    return kinds + _exif_oddities(picture)


def _is_deep(picture: ImageFile.ImageFile, data: bytes) -> bool:
    """Whether a channel has 16 bits or more, of integers."""
    if picture.mode.startswith("I"):
        return True
    if isinstance(picture, TiffImageFile):
        bits: tuple[int, ...] = picture.tag_v2.get(BITS_PER_SAMPLE, (1,))
        return max(bits) == 16
    if picture.format == "PPM":
        coding = picture.tile[0].args  # (mode, maximum) where the decoder has to scale
        return isinstance(coding, tuple) and coding[-1] > 255
    return picture.format == "PNG" and data[24] == 16  # bits per channel


def _exif_oddities(picture: ImageFile.ImageFile) -> list[str]:
    if "exif" not in picture.info:
        return []
    try:
        return [ROTATED] if _orientation(picture) not in (0, 1) else []
    except Exception:  # a broken EXIF block raises anything, and none of it touches the pixels
        return ["exif-corrupt"]


def _orientation(picture: ImageFile.ImageFile) -> int:
    """By its EXIF: 1 is upright, 2 to 8 are not; other values mean nothing."""
    value: int = picture.getexif().get(ORIENTATION, 1)
    return value


def _on_white(picture: ImageFile.ImageFile) -> Pillow.Image:
    picture.load()
    layer = picture.convert("RGBA")
    return Pillow.alpha_composite(Pillow.new("RGBA", layer.size, "white"), layer).convert("RGB")


def _by_engine(picture: ImageFile.ImageFile, data: bytes) -> Pillow.Image | None:
    """`_flatten` of a whole, baseline JPEG in colour, as RGBX; None for any other, which is for
    Pillow to decode, or to refuse in its words."""
    if picture.format != "JPEG" or picture.mode != "RGB":
        return None
    pixels = engine_jpeg.decode_words(data, picture.height, picture.width)
    if pixels is None:
        return None
    # of this form Pillow takes pixels where they lie
    return Pillow.frombuffer("RGBX", picture.size, pixels, "raw", "RGBX", 0, 1)


def _flatten(picture: ImageFile.ImageFile) -> Pillow.Image:
    """L or RGB, decoded. Greyscale stays one channel until it is resampled: a third of the work,
    the same values."""
    picture.load()
    if picture.mode in ("L", "RGB"):
        return picture
    if picture.mode.startswith("I"):
        high_byte = (np.asarray(picture).astype(np.int64) >> 8).clip(0, 255)
        return Pillow.fromarray(high_byte.astype(np.uint8))
    return picture.convert("L" if picture.mode in ("1", "LA") else "RGB")


def _diagnosis(error: Exception) -> tuple[str, str]:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, Pillow.DecompressionBombError):
        return "too-large", text
    # its message holds an address in memory, another one each time
    if isinstance(error, UnidentifiedImageError):
        return "undecodable", "UnidentifiedImageError: no image format that is read here"
    # a TIFF tells its compression when it is decoded
    if text == "OSError: decoder libtiff not available":
        return UNSUPPORTED, _not_built_in("a compressed TIFF")
    words = ("truncated", "not enough", "end of")
    early = isinstance(error, EOFError) or any(word in text.lower() for word in words)
    return ("truncated" if early else "undecodable"), text
