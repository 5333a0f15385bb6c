"""Every kind of odd image comes out as it is, or is rejected by name; a network's guesses are of
what a viewer shows."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from odd_images import CLEAR, FLAT, GREY, SIDE, corners, flat, odd_images, saved, stored, tiff
from PIL import Image as Pillow
from PIL import ImageOps, features

from gratis.errors import GratisError
from gratis.file_formats import MAGIC, name_format
from gratis.image import Image, Reject, to_image, to_image_as_seen
from gratis.preprocess.shards import ShardsConfig, make_shards

SIZE = 16
IMAGES = odd_images()
MOVING = {name for name in IMAGES if name.split()[-1] in ("animated", "pages")}
TURNED = {name for name in IMAGES if name.startswith("turned")}
NEEDS = {  # a feature of Pillow's build: what it brings
    "webp": {name for name in IMAGES if name.startswith("webp")},
    "libtiff": {
        f"tiff {how}"
        for how in ("lzw", "deflate", "old deflate", "packbits", "jpeg", "16 bits deflate")
    },
}
# by a word of the name, where the name of the format says nothing
COUNTED = {
    "progressive": "progressive",
    "gzip": "gzip",
    "cmyk": "cmyk",
    "palette": "palette",
    "transparent": "alpha",
    "RGBA": "alpha",
    "alpha": "alpha",
    "16": "16-bit",
    "float": "float",
    "1": "1-bit",
    "grey": "greyscale",
}


def readable(name: str) -> bool:
    return all(name not in names or features.check(one) for one, names in NEEDS.items())


def colour(name: str, on_white: bool) -> list[float]:
    words = name.split()
    if "1" in words or words[0] == "pbm":
        return [255] * 3
    grey = {"L", "LA", "grey", "pgm", "zero", "32", "float"} & {words[0], *words}
    value = np.full(3, GREY) if grey else np.array(FLAT)
    if on_white and ("transparent" in words or {"RGBA", "LA", "alpha"} & set(words)):
        opaque = CLEAR / 255 if name not in ("png transparent colour", "gif transparent") else 0.0
        return list(value * opaque + 255 * (1 - opaque))
    return list(value)


@pytest.mark.parametrize("name", sorted(IMAGES.keys() - MOVING - TURNED))
@pytest.mark.parametrize("as_seen", [False, True])
def test_the_colour_is_right_and_the_conversion_counted(name: str, as_seen: bool) -> None:
    if not readable(name):
        pytest.skip("Pillow is built without it")
    read = to_image_as_seen if as_seen else to_image
    pixels, conversions = read(IMAGES[name], SIZE)
    assert pixels.shape == (SIZE, SIZE, 3)
    # JPEG and lossy WebP round
    assert np.abs(pixels - np.array(colour(name, as_seen))).max() <= 2
    words = set(name.split())
    assert {kind for word, kind in COUNTED.items() if word in words} <= set(conversions)
    if not name.startswith("jpeg"):
        assert name.split(maxsplit=1)[0].replace("pgm", "ppm").replace("pbm", "ppm") in conversions


@pytest.mark.parametrize("name", sorted(MOVING))
def test_several_frames_are_a_reject(name: str) -> None:
    """Which of them the label is of, nobody says."""
    if not readable(name):
        pytest.skip("Pillow is built without it")
    for read in (to_image, to_image_as_seen):
        with pytest.raises(Reject, match=r"^multi-frame: 2 frames$"):
            read(IMAGES[name], SIZE)


@pytest.mark.parametrize("name", sorted(set().union(*NEEDS.values())))
def test_what_pillow_was_built_without_is_named(name: str) -> None:
    if readable(name):
        pytest.skip("Pillow is built with it")
    with pytest.raises(Reject, match=r"^unsupported: it is .*, which Pillow was built without"):
        to_image(IMAGES[name], SIZE)


def is_upright(image: Image) -> bool:
    """Of `corners`, three times as wide as high: the centre square of it."""
    quarter = SIZE // 4
    places = ((quarter, quarter), (quarter, -quarter), (-quarter, quarter), (-quarter, -quarter))
    got = [image.pixels[place].tolist() for place in places]
    expected = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]
    return bool(np.abs(np.array(got) - expected).max() <= 6)


@pytest.mark.parametrize("name", sorted(TURNED))
def test_orientation_is_obeyed_for_viewers_and_ignored_in_datasets(name: str) -> None:
    _, kind, orientation = name.split()
    assert is_upright(to_image_as_seen(IMAGES[name], SIZE))
    # a TIFF's is part of the format, and Pillow obeys it
    stays = orientation == "1" or kind == "tiff"
    assert is_upright(to_image(IMAGES[name], SIZE)) == stays
    for read in (to_image, to_image_as_seen):
        assert ("exif-rotated" in read(IMAGES[name], SIZE).conversions) != stays


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turning_is_of_the_whole_picture(orientation: int) -> None:
    """A large one, which the decoder shrinks, with sides that no factor divides: as if it had been
    turned by hand first, but for half a pixel, where the shrunk ones begin at the other side."""
    y, x = np.mgrid[0:371, 0:1003]
    slopes = [x * 255 / 1002, y * 255 / 370, (x + y) * 255 / 1372]
    upright = np.stack(slopes, axis=2).astype(np.uint8)
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": "4:4:4"}
    given = saved(Pillow.fromarray(stored(upright, orientation)), "JPEG", exif=exif, **options)
    by_hand = saved(Pillow.fromarray(upright), "JPEG", **options)
    difference = to_image_as_seen(given, 64).pixels.astype(int) - to_image(by_hand, 64).pixels
    assert np.abs(difference).max() <= 3


def iso_media(major: bytes, *compatible: bytes) -> bytes:
    body = b"ftyp" + major + bytes(4) + b"".join(compatible)
    return struct.pack(">I", len(body) + 4) + body + b"\0\0\0\x08mdat" + bytes(100)


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (iso_media(b"avif", b"mif1", b"miaf"), "AVIF"),
        (iso_media(b"mif1", b"mif1", b"avif"), "AVIF"),
        (iso_media(b"heic", b"mif1", b"heic"), "HEIC"),
        (iso_media(b"mif1", b"mif1", b"heic"), "HEIC"),
        (iso_media(b"crx ", b"isom"), r"a camera's raw file \(CR3\)"),
        (iso_media(b"isom", b"iso2", b"mp41"), r"video \(MP4 or QuickTime\)"),
        (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(50), "JPEG XL"),
        (b"\xff\x0a" + bytes(50), "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(50), "JPEG 2000"),
        (b"RIFF\0\0\0\0AVI LIST" + bytes(50), r"video \(AVI\)"),
        (b"8BPS\0\x01" + bytes(50), r"a Photoshop document \(PSD\)"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b'\xef\xbb\xbf  <svg width="1"/>', "SVG"),
        (b"<!DOCTYPE HTML><title>404</title>" + bytes(50), "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a pointer of Git LFS"),
        (b"%PDF-1.7\n" + bytes(50), "PDF"),
        (b"PK\x03\x04" + bytes(50), "a zip archive"),
        (bytes(128) + b"DICM" + bytes(50), "DICOM"),
    ],
)
def test_a_known_format_that_is_not_read_is_named(data: bytes, name: str) -> None:
    with pytest.raises(Reject, match=rf"^unsupported: it is {name}, which is not read here; "):
        to_image(data, SIZE)


def test_a_camera_s_raw_file_is_no_small_tiff() -> None:
    """DNG, NEF and ARW: the picture of the TIFF is a preview, and tag 330 says where others are."""
    thumbnail = tiff(np.asarray(flat()), tags={254: 1, 330: 4096})
    with pytest.raises(Reject, match="unsupported: it is a camera's raw file"):
        to_image(thumbnail, SIZE)
    # a reduced picture that is all there is, and a picture with others beside it, are read
    for tags in ({254: 1}, {330: 4096}):
        assert to_image(tiff(np.asarray(flat()), tags=tags), SIZE).conversions == ("tiff",)


def test_no_file_that_is_read_has_a_name_of_those_that_are_not() -> None:
    named = {name: name_format(data) for name, data in IMAGES.items()}
    assert {name: what for name, what in named.items() if what} == {}


def test_magics_do_not_hide_each_other() -> None:
    for offset, magic, name, way_out in MAGIC:
        assert name_format(bytes(offset) + magic + bytes(20)) == (name, way_out)


def test_transparency_is_on_white_before_it_is_resized() -> None:
    """A hidden colour of transparent pixels must not bleed into the visible ones."""
    pixels = np.zeros((4 * SIDE, 4 * SIDE, 4), np.uint8)
    pixels[:, ::2] = (255, 0, 0, 0)  # hidden red between opaque black
    pixels[:, 1::2, 3] = 255
    image = to_image_as_seen(saved(Pillow.fromarray(pixels), "PNG"), SIZE).pixels
    assert np.ptp(image.astype(int), axis=2).max() <= 1  # grey
    assert np.abs(image.mean() - 127.5) < 2


def test_the_corners_are_those_of_pillow() -> None:
    """`stored` against the library that most people turn by."""
    for orientation in range(1, 9):
        exif = Pillow.Exif()
        exif[0x0112] = orientation
        png = saved(Pillow.fromarray(stored(corners(), orientation)), "PNG", exif=exif)
        turned = ImageOps.exif_transpose(Pillow.open(io.BytesIO(png)))
        assert (np.asarray(turned) == corners()).all()


AVIF = iso_media(b"avif", b"mif1", b"miaf")


def source_of(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / "src" / "train" / "k" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder / "src"


@pytest.mark.starts
def test_a_format_that_is_not_read_is_said_before_anything_is_written(tmp_path: Path) -> None:
    """With the estimate, or by the worker that meets it first: not after all files."""
    for count in (3, 200):  # the estimate looks at 48
        folder = tmp_path / str(count)
        good = {f"{k:03}.png": saved(flat(), "PNG") for k in range(count)}
        src = source_of(folder, good | {"phone.jpg": AVIF})
        settings = {"src": str(src), "out": str(folder / "out"), "size": 16, "workers": 1}
        settings |= {"samples_per_shard": count + 1}
        wrong = r"phone\.jpg: it is AVIF, which is not read here; .*--max-rejects"
        with pytest.raises(GratisError, match=wrong):
            make_shards(ShardsConfig(**settings))
        assert not list(folder.glob("out/*.tar"))
        manifest = make_shards(ShardsConfig(**settings, max_rejects=1))
        assert manifest is not None
        assert manifest.splits["train"].samples == count
        assert manifest.splits["train"].rejects == {"unsupported": 1}


@pytest.mark.starts
def test_a_dry_run_says_it_too(tmp_path: Path) -> None:
    src = source_of(tmp_path, {"a.png": saved(flat(), "PNG"), "b.jpg": AVIF})
    config = ShardsConfig(src=str(src), out=str(tmp_path / "out"), dry_run=True)
    with pytest.raises(GratisError, match="it is AVIF"):
        make_shards(config)


@pytest.mark.starts
def test_images_that_lie_on_their_side_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {f"{k}.jpg": IMAGES[f"turned jpeg {k}"] for k in range(1, 9)}
    config = ShardsConfig(src=str(source_of(tmp_path, files)), out=str(tmp_path / "out"), size=16)
    manifest = make_shards(config)
    assert manifest is not None
    assert manifest.splits["train"].conversions == {"exif-rotated": 7}
    line = "7 images have an EXIF orientation other than upright; it is ignored, as in 2012"
    assert capsys.readouterr().out.splitlines()[-1] == line


def test_a_damaged_deflate_stream_in_a_tiff_is_a_reject() -> None:
    """libtiff 4.5 gives whatever is in memory there: other pixels each time, and no error."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 16, (SIDE, SIDE, 3), np.uint8)
    for compression in (8, 32946):
        strip = bytearray(zlib.compress(pixels.tobytes()))
        if features.check("libtiff"):
            whole = tiff(pixels, compression=compression, strip=bytes(strip))
            assert to_image(whole, SIZE).conversions == ("tiff",)
        strip[len(strip) // 2] ^= 0x55
        damaged = tiff(pixels, compression=compression, strip=bytes(strip))
        with pytest.raises(Reject, match=r"^undecodable: error: Error -3 while decompressing"):
            to_image(damaged, SIZE)
