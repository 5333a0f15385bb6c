"""Headers alone say on which JPEGs loaders disagree; and all that can be had here agree on ours."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from benchmarks.jpeg.agreement import COLUMNS, difference
from benchmarks.jpeg.decoders import DECODERS
from benchmarks.jpeg.kinds import as_gratis_writes, kinds, natural, photograph
from gratis.jpeg_variants import (
    APART,
    ARITHMETIC,
    COARSE,
    DEEP,
    INKS,
    OTHERWISE,
    RGB,
    TURNED,
    TWO_COLOURS,
    disagreements,
    orientation,
)

KINDS = kinds()
DISPUTED = {
    "EXIF: on its side": TURNED,
    "a scan for each component": APART,
    "Y at half the resolution of Cb, Cr": COARSE,
    "RGB by Adobe marker 0, subsampled": RGB,
    "RGB by ids R, G, B, subsampled": RGB,
    "YCbCr by JFIF, RGB by Adobe marker 0": TWO_COLOURS,
    "YCbCr by JFIF, RGB by ids R, G, B": TWO_COLOURS,
    "CMYK, no Adobe marker": INKS,
    "arithmetic coding": ARITHMETIC,
    "12 bits": DEEP,
}
# decoders whose arithmetic is their own; what `benchmarks.jpeg.agreement` found, and half more
ROUNDING = {
    "TensorFlow": 18,
    "TurboLoader": 18,
    "SPDL": 27,
    "PyAV": 27,
    "datago": 6,
    "kornia-rs": 6,
}


@pytest.mark.parametrize("name", KINDS)
def test_the_header_says_what_loaders_disagree_on(name: str) -> None:
    assert disagreements(KINDS[name]) == ([DISPUTED[name]] if name in DISPUTED else [])


def test_every_disagreement_has_a_file() -> None:
    assert set(DISPUTED.values()) == set(OTHERWISE)
    assert {kind for column in COLUMNS.values() for kind in column} == set(KINDS)


def test_what_is_cut_off_or_no_jpeg_says_nothing_and_raises_nothing() -> None:
    for data in KINDS.values():
        for end in range(0, 400, 7):
            disagreements(data[:end])
    assert disagreements(b"") == disagreements(b"\xff\xd8") == []
    assert disagreements(b"\xff\xd8" + b"\xff" * 50) == []


@pytest.mark.parametrize("order", ["<", ">"])
def test_orientation_is_pillow_s(order: str) -> None:
    for value in (1, 2, 3, 4, 5, 6, 7, 8, 0, 9):
        exif = Image.Exif()
        exif.endian = order
        exif[0x010F] = "a maker"
        exif[0x0112] = value
        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, "JPEG", exif=exif)
        assert (disagreements(file.getvalue()) == [TURNED]) == (2 <= value <= 8)
        assert orientation(exif.tobytes()[6:]) == (value if 1 <= value <= 8 else 1)
    for torn in (b"", b"II*\0", b"MM\0*\0\0\0\x08\xff\xff", b"MM\0*\xff\xff\xff\xff"):
        assert orientation(torn) == 1


@pytest.mark.parametrize("name", ["4:4:4", "RGB by Adobe marker 0", "RGB by ids R, G, B"])
def test_the_files_show_what_they_are_made_of(name: str) -> None:
    """Of those without subsampling: two levels of quantisation, and of colours what rounding is."""
    with Image.open(io.BytesIO(KINDS[name])) as image:
        apart = np.abs(np.asarray(image.convert("RGB")).astype(int) - photograph())
    assert apart.max() <= 4


def test_a_shard_s_jpeg_is_of_the_kind_that_all_read_alike() -> None:
    """Baseline, 8 bits, 4:2:0, ids 1, 2, 3, one scan of all three, JFIF, and no Adobe marker."""
    data = as_gratis_writes()
    assert data[:4] == b"\xff\xd8\xff\xe0"
    assert data[6:11] == b"JFIF\0"
    assert b"Adobe" not in data
    frame = data.index(b"\xff\xc0")
    assert data[frame + 4] == 8
    assert data[frame + 9 : frame + 19] == bytes([3, 1, 0x22, 0, 2, 0x11, 1, 3, 0x11, 1])
    assert data.count(b"\xff\xda") == 1
    assert data[data.index(b"\xff\xda") + 4] == 3
    assert disagreements(data) == []


@pytest.mark.parametrize("name", [name for name in DECODERS if name != "SPDL"])
def test_loaders_that_are_installed_agree_on_a_shard_s_jpeg(name: str) -> None:
    try:
        decode, _ = DECODERS[name].make()
    except (ImportError, OSError, RuntimeError) as error:
        pytest.skip(f"not installed: {error}")
    data = as_gratis_writes()
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image)
    apart = difference(np.asarray(decode(data)), expected)
    assert int(apart) <= ROUNDING.get(name, 0)
    assert np.abs(expected.astype(int) - natural()).mean() < 8  # and it is the picture
