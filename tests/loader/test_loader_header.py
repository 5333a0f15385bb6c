"""JPEGs that the decoder would give up on are seen before it gets them, and no others."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from handmade import SIZE, picture
from nvidia.dali import Pipeline, fn, types
from PIL import Image

from gratis.jpeg_check import well_formed


def decoder() -> Callable[[bytes], bool]:
    """DALI's, of one JPEG at a time: whether it decodes."""
    current, pipeline = [np.empty(0, np.uint8)], []

    def decodes(data: bytes) -> bool:
        current[0] = np.frombuffer(data, np.uint8)
        if not pipeline:
            with Pipeline(
                1, 1, None, prefetch_queue_depth=1, exec_pipelined=False, exec_async=False
            ) as made:
                bytes_ = fn.external_source(
                    lambda: [current[0]], batch=True, no_copy=True, dtype=types.UINT8
                )
                made.set_outputs(fn.decoders.image(bytes_, device="cpu", adjust_orientation=False))
            pipeline.append(made)
        try:
            return bool(pipeline[0].run()[0].at(0).shape == (SIZE, SIZE, 3))
        except RuntimeError:
            pipeline.clear()
            return False

    return decodes


def accepted(data: bytes, side: int = SIZE) -> bool:
    return well_formed(np.frombuffer(data, np.uint8).copy(), side, side)


def jpeg(mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(1)).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


def segments(data: bytes) -> list[bytes]:
    """The marker segments, and from the first scan on the rest."""
    parts, at = [data[:2]], 2
    while data[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        parts, at = [*parts, data[at:end]], end
    return [*parts, data[at:]]


KINDS: dict[str, dict[str, Any]] = {
    "as preprocess writes it": {"quality": 95, "subsampling": "4:2:0", "optimize": True},
    "standard tables, restarts": {"quality": 75, "restart_marker_rows": 1},
    "progressive": {"progressive": True},
    "grey": {"mode": "L", "optimize": True},
}


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_of_a_header_is_seen_before_the_decoder_or_no_reason_for_it_to_give_up(
    kind: str, every: int
) -> None:
    """Bits before the (first) scan, of each byte two or three, in each kind others: DALI may die of
    a batch that has what it gives up on."""
    data, decodes = jpeg(**KINDS[kind]), decoder()
    bits = range(
        [*KINDS].index(kind) % every, 8 * (len(data) - len(segments(data)[-1]) + 14), every
    )
    passed = 0
    for bit in bits:
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        if accepted(bytes(flipped)):
            assert decodes(bytes(flipped)), (bit // 8, bit % 8)
            passed += 1
    print(f"{kind}: of {len(bits)} flipped bits {len(bits) - passed} are refused")
    assert 0.4 < passed / len(bits) < 0.9  # most bits are quantisation and symbols: other pixels


def test_jpegs_of_others_are_taken() -> None:
    decodes = decoder()
    for kind in KINDS.values():
        assert accepted(jpeg(**kind)), kind
    plain = jpeg()
    parts, exif = segments(plain), Image.Exif()
    exif[0x0112] = 6
    *begin, scans = segments(jpeg(progressive=True))
    frame = next(part for part in begin if part[1] == 0xC2)
    for others in (
        jpeg(subsampling="4:4:4"),
        jpeg(mode="CMYK"),
        jpeg(exif=exif, comment="x", icc_profile=bytes(3000)),
        plain + bytes(100),
        plain + b"\xff\xd8\xff",
        parts[0] + b"\xff\xff\xff" + b"".join(parts[1:]),
        b"".join(part for part in begin if part is not frame)
        + frame
        + scans,  # tables before the frame
        # as in Motion JPEG: the standard's own Huffman tables
        b"".join(part for part in parts if part[1] != 0xC4),
    ):
        assert accepted(others)
        assert decodes(others)
    assert not accepted(plain, SIZE + 1)


def test_a_jpeg_that_was_cut_or_overwritten_is_refused() -> None:
    data, random = jpeg(quality=95), np.random.default_rng(0)
    assert accepted(data)
    assert not [at for at in range(len(data)) if accepted(data[:at])]
    for at in range(0, 500, 20):
        assert not accepted(data[:at] + random.bytes(512) + data[at + 512 :]), at
    progressive = jpeg(progressive=True)
    assert accepted(progressive)
    assert not [at for at in range(len(progressive)) if accepted(progressive[:at])]
