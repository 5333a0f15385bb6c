"""JPEGs that are valid, and that loaders are known to read differently, by their headers (ITU T.81;
docs/loaders.md says who reads which how)."""

from __future__ import annotations

import struct
from collections.abc import Iterator

TURNED = "EXIF says that they are to be turned"
APART = "subsampled colour, in a scan for each component"
COARSE = "Y coarser than Cb and Cr"
RGB = "RGB with subsampled colour"
TWO_COLOURS = "marked as YCbCr and as RGB"
INKS = "CMYK without Adobe's marker"
ARITHMETIC = "arithmetic coding"
DEEP = "12 bits"
# who reads each otherwise than most do, as measured for docs/loaders.md
OTHERWISE = {
    TURNED: "OpenCV, torchcodec, nvImageCodec and DALI by default turn them",
    APART: "datago and kornia-rs show another picture",
    COARSE: "datago and kornia-rs show another picture, simplejpeg and PyTurboJPEG refuse them",
    RGB: "FFmpeg (SPDL, PyAV) shows other colours",
    TWO_COLOURS: "FFmpeg (SPDL, PyAV), datago and kornia-rs show other colours",
    INKS: "Pillow, torchvision and OpenCV invert them, DALI and TensorFlow do not",
    ARITHMETIC: "FFmpeg (SPDL, PyAV), datago and kornia-rs refuse them",
    DEEP: "most refuse them",
}
SOS, ORIENTATION = 0xDA, 0x0112
FRAMES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}


def disagreements(data: bytes) -> list[str]:
    """The keys of OTHERWISE that hold for a JPEG, in their order; none for what has no whole
    header."""
    frame, first_scan, transform = b"", b"", -1
    coding, jfif, turned = 0, False, False
    for marker, body in _segments(data):
        if marker in FRAMES:
            coding, frame = marker, body
        elif marker == SOS:
            first_scan = body
        elif marker == 0xE0 and body.startswith(b"JFIF\0"):
            jfif = True
        elif marker == 0xEE and body.startswith(b"Adobe") and len(body) > 11:
            transform = body[11]
        elif marker == 0xE1 and body.startswith(b"Exif\0\0"):
            turned = orientation(body[6:]) > 1
    if not first_scan or len(frame) < 9 or len(frame) < 6 + 3 * frame[5]:
        return []
    count, ids, factors = frame[5], tuple(frame[6::3]), frame[7::3]
    subsampled = len(set(factors)) > 1
    rgb = count == 3 and (transform == 0 or (transform < 0 and ids == (82, 71, 66)))
    holds = {
        TURNED: turned,
        APART: subsampled and first_scan[0] < count and coding in (0xC0, 0xC1),
        COARSE: any(factors[0] >> k & 15 < factor >> k & 15 for factor in factors for k in (0, 4)),
        RGB: rgb and subsampled and not jfif,
        TWO_COLOURS: rgb and jfif,
        INKS: count == 4 and transform < 0,
        ARITHMETIC: coding > 0xC8,
        DEEP: frame[0] == 12,
    }
    return [name for name in OTHERWISE if holds[name]]


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and body of each, up to the first scan's header; where they end they end."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill bytes
            at += 1
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        yield marker, data[at + 4 : end]
        if marker == SOS:
            return
        at = end


def orientation(exif: bytes) -> int:
    """1 to 8 of a TIFF header and its first directory; 1 where it says nothing."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    try:
        (begin,) = struct.unpack_from(f"{order}I", exif, 4)
        (entries,) = struct.unpack_from(f"{order}H", exif, begin)
        for number in range(entries):
            tag, _, _, value = struct.unpack_from(f"{order}HHIH", exif, begin + 2 + 12 * number)
            if tag == ORIENTATION:
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1
