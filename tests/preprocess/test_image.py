"""bytes -> image: geometry, colours, odd files, rejects. The reference is Pillow's own resize of
the whole picture."""

from __future__ import annotations

import gzip
import io
import re
import struct
import zlib
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as Pillow

from benchmarks.shards.psnr import psnr, reference
from gratis import image
from gratis.dataset import EXTENSIONS
from gratis.image import Reject, central_box, to_image, to_picture
from gratis.preprocess.codecs import CODECS, CodecName, encode_jpeg, encode_ppm

SIZE = 64


def photo(width: int, height: int) -> NDArray[np.uint8]:
    """A smooth colour picture with some texture, so that JPEG and resampling both have something to
    do."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [x * 255 / width, y * 255 / height, 127 + 100 * np.sin(x / 9) * np.cos(y / 7)]
    return np.stack(channels, axis=2).clip(0, 255).astype(np.uint8)


def encoded(
    pixels: NDArray[np.generic], kind: str = "JPEG", mode: str | None = None, **options: object
) -> bytes:
    picture = Pillow.fromarray(pixels)
    file = io.BytesIO()
    (picture.convert(mode) if mode else picture).save(file, kind, **options)
    return file.getvalue()


def test_box_of_the_specification() -> None:  # trap 18
    left, top, right, bottom = central_box(500, 375, 256)
    assert (top, bottom) == (0, 375)
    assert left == pytest.approx(42 * 500 / 341)  # columns [42, 298) of the picture at 341 x 256
    assert right == pytest.approx(298 * 500 / 341)


@pytest.mark.parametrize(
    ("width", "height"), [(500, 375), (375, 500), (300, 300), (641, 427), (100, 81)]
)
def test_equals_resize_then_crop(width: int, height: int) -> None:
    pixels = photo(width, height)
    got = to_image(encoded(pixels, "PNG"), SIZE).pixels
    scale = SIZE / min(width, height)
    whole = Pillow.fromarray(pixels).resize(
        (int(width * scale + 0.5), int(height * scale + 0.5)), Pillow.Resampling.LANCZOS
    )
    x, y = (whole.width - SIZE) // 2, (whole.height - SIZE) // 2
    expected = np.asarray(whole.crop((x, y, x + SIZE, y + SIZE))).astype(int)
    difference = np.abs(got.astype(int) - expected)
    # pictures over four times the target are averaged first (reducing_gap), which moves a few
    # levels
    assert difference.max() <= (1 if min(width, height) < 4 * SIZE else 12)
    assert difference.mean() < 0.6


def test_a_circle_stays_a_circle() -> None:  # trap 18
    y, x = np.mgrid[0:375, 0:500]
    disc = (np.hypot(x - 249.5, y - 187) < 150).astype(np.uint8) * 255
    got = to_image(encoded(np.stack([disc] * 3, axis=2)), 256).pixels[..., 0] > 127
    assert got.any(axis=0).sum() / got.any(axis=1).sum() == pytest.approx(1, abs=0.01)


def test_shrinking_in_the_decoder_keeps_quality() -> None:
    pixels = photo(1000, 750)
    data = encoded(pixels, quality=95)
    whole = Pillow.open(io.BytesIO(data)).resize(
        (128, 128), Pillow.Resampling.LANCZOS, box=central_box(1000, 750, 128)
    )
    assert psnr(to_image(data, 128).pixels, np.asarray(whole)) > 45


def cmyk(ycck: bool) -> bytes:
    """A CMYK JPEG as Pillow writes it; with ycck, its Adobe marker says that the colours are
    YCCK."""
    inks = np.zeros((80, 100, 4), np.uint8)
    inks[:] = (0, 200, 200, 20)  # cyan, magenta, yellow, key: a strong red
    file = io.BytesIO()
    Pillow.frombytes("CMYK", (100, 80), inks.tobytes()).save(file, "JPEG", quality=95)
    data = bytearray(file.getvalue())
    marker = data.index(b"Adobe")
    assert data[marker + 11] == 0
    if ycck:
        data[marker + 11] = 2
    return bytes(data)


def odd_files() -> dict[str, bytes]:
    base = photo(100, 80)
    exif = Pillow.Exif()
    exif[0x0112] = 6
    depth16 = (np.arange(80 * 100, dtype=np.uint16).reshape(80, 100) * 8).astype(np.uint16)
    torn_exif = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12\0\x03\0\0\0\x01"
    return {
        "greyscale": encoded(base, mode="L"),
        "cmyk": cmyk(False),
        "ycck": cmyk(True),
        "png": encoded(base, "PNG"),
        "gif": encoded(base, "GIF"),
        "palette": encoded(base, "PNG", mode="P"),
        "alpha": encoded(base, "PNG", mode="RGBA"),
        "1-bit": encoded(base, "PNG", mode="1"),
        "16-bit": encoded(depth16, "PNG"),
        "progressive": encoded(base, progressive=True),
        "gzip": gzip.compress(encoded(base)),
        "exif-rotated": encoded(base, exif=exif),
        "exif-corrupt": encoded(base, exif=torn_exif),
        "one-pixel": encoded(photo(300, 1)),
    }


@pytest.mark.parametrize("kind", odd_files())
def test_odd_files_become_rgb_and_are_counted(kind: str) -> None:  # trap 20
    pixels, conversions = to_image(odd_files()[kind], SIZE)
    assert pixels.shape == (SIZE, SIZE, 3)
    assert pixels.dtype == np.uint8
    assert kind in conversions


def test_plain_file_counts_as_nothing() -> None:
    assert to_image(encoded(photo(100, 80)), SIZE).conversions == ()


def test_greyscale_has_equal_channels() -> None:  # trap 20
    pixels = to_image(odd_files()["greyscale"], SIZE).pixels
    assert (pixels[..., 0] == pixels[..., 1]).all()
    assert (pixels[..., 0] == pixels[..., 2]).all()


def test_cmyk_is_inverted_as_adobe_writes_it() -> None:  # trap 20
    red, green, blue = to_image(cmyk(False), SIZE).pixels.reshape(-1, 3).mean(axis=0)
    assert red > 200  # (255 - 0) * (255 - 20) / 255 = 235
    assert max(green, blue) < 80  # (255 - 200) * (255 - 20) / 255 = 51


def test_exif_rotation_is_ignored() -> None:  # trap 20
    plain = to_image(encoded(photo(100, 80)), SIZE).pixels
    assert (to_image(odd_files()["exif-rotated"], SIZE).pixels == plain).all()


def test_16_bit_takes_the_high_byte() -> None:
    level = np.full((70, 70), 0x80FF, np.uint16)
    assert (to_image(encoded(level, "PNG"), SIZE).pixels == 0x80).all()


def huge_png() -> bytes:
    """A PNG whose header claims 15000 x 15000 pixels."""
    data = bytearray(encoded(photo(10, 10), "PNG"))
    data[16:24] = struct.pack(">II", 15000, 15000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def animation() -> bytes:
    frames = [Pillow.fromarray(photo(20 + k, 20)) for k in (0, 0)]
    frames[1].paste((255, 0, 0), (0, 0, 10, 10))
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("empty", b""),
        ("truncated", encoded(photo(300, 200))[:3000]),
        ("truncated", encoded(photo(300, 200), "PNG")[:3000]),
        ("truncated", gzip.compress(encoded(photo(300, 200)))[:3000]),
        ("undecodable", b"this is no picture" * 20),
        ("undecodable", b"\xff\xd8\xff" + bytes(range(256))),
        ("too-large", huge_png()),
        ("multi-frame", animation()),
    ],
)
def test_rejects(kind: str, data: bytes) -> None:
    with pytest.raises(Reject) as caught:
        to_image(data, SIZE)
    assert caught.value.kind == kind


def test_the_same_file_is_rejected_in_the_same_words() -> None:
    """They are published: rejects.jsonl has to come out the same to the byte."""
    messages = []
    for _ in range(2):
        with pytest.raises(Reject) as caught:
            to_image(b"this is no picture" * 20, SIZE)
        # kept, so that nothing takes an address twice
        messages.append((str(caught.value), bytearray(1000)))
    assert "0x" not in messages[0][0]
    assert messages[0][0] == messages[1][0]


def test_any_damage_is_a_reject_or_an_image() -> None:
    """An image wherever Pillow decodes the whole of it, and nowhere else."""
    data = encoded(photo(60, 50))
    rng, images = np.random.default_rng(0), 0
    for _ in range(300):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), 3):
            damaged[place] = rng.integers(256)
        try:
            Pillow.open(io.BytesIO(damaged)).convert("RGB")
        except Exception:
            with pytest.raises(Reject):
                to_image(bytes(damaged), 16)
        else:
            assert to_image(bytes(damaged), 16).pixels.shape == (16, 16, 3)
            images += 1
    assert 100 < images < 200


def test_too_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "MAX_BYTES", 100)
    for data in (encoded(photo(60, 50)), gzip.compress(bytes(10_000))):
        with pytest.raises(Reject, match="too-large"):
            to_image(data, SIZE)


def test_codecs() -> None:
    pixels = photo(256, 256)
    assert (image.decode(encode_ppm(pixels)) == pixels).all()
    assert psnr(image.decode(encode_jpeg(pixels, 95)), pixels) > 37
    assert len(encode_jpeg(pixels, 50)) < len(encode_jpeg(pixels, 95))


@pytest.mark.parametrize("side", [1, 16, 17, 256])
def test_each_row_of_mcus_ends_with_a_restart_marker(side: int) -> None:
    """The markers are numbered modulo 8, the last row has none, and other pixels are nobody's."""
    rng = np.random.default_rng(side)
    pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
    data = encode_jpeg(pixels, 95)
    mcus = -(-side // 16)
    interval = data.index(b"\xff\xdd")
    assert int.from_bytes(data[interval + 4 : interval + 6], "big") == mcus
    scan = data[data.index(b"\xff\xda") :]
    assert re.findall(rb"\xff[\xd0-\xd7]", scan) == [
        b"\xff%c" % (0xD0 + k % 8) for k in range(mcus - 1)
    ]
    plain = encoded(pixels, quality=95, subsampling="4:2:0")
    assert (image.decode(data) == image.decode(plain)).all()


@pytest.mark.parametrize("kind", [*odd_files(), "comment"])
def test_a_picture_encodes_to_the_same_bytes_as_its_pixels(kind: str) -> None:
    """Nothing of the source but pixels goes into the JPEG that is made of it."""
    commented = encoded(photo(100, 80), comment=b"by nobody", dpi=(72, 72), icc_profile=b"x" * 200)
    data = commented if kind == "comment" else odd_files()[kind]
    picture, conversions = to_picture(data, SIZE)
    assert encode_jpeg(picture, 95) == encode_jpeg(to_image(data, SIZE).pixels, 95)
    assert conversions == to_image(data, SIZE).conversions


@pytest.mark.parametrize("quality", [80, 94, 100])
def test_noise_is_encoded_too(quality: int) -> None:
    """The largest files that a quality can give: Pillow's own buffer would not hold them."""
    noise = np.random.default_rng(0).integers(0, 2, (256, 256, 3), dtype=np.uint8) * np.uint8(255)
    assert image.decode(encode_jpeg(noise, quality)).shape == noise.shape


@pytest.mark.parametrize(
    "every", [pytest.param(10, marks=pytest.mark.slow), pytest.param(1, marks=pytest.mark.prove)]
)
def test_quality_on_photographs(ilsvrc500: Path, every: int) -> None:
    """Against a full decode and filter, through JPEG: no less than 37.6 dB, and what the reference
    itself keeps."""
    scores, ceiling = [], []
    for path in sorted((ilsvrc500 / "train").glob("*/*"))[::every]:
        expected = reference(Pillow.open(path).convert("RGB"))
        scores.append(
            psnr(image.decode(encode_jpeg(to_image(path.read_bytes()).pixels, 95)), expected)
        )
        ceiling.append(psnr(image.decode(encode_jpeg(expected, 95)), expected))
    print(f"{len(scores)} photographs: {np.mean(scores):.3f} dB of {np.mean(ceiling):.3f}")
    assert np.mean(scores) > max(37.6, float(np.mean(ceiling)) - 0.02)


@pytest.mark.parametrize("name", sorted(CODECS))
def test_a_codec_s_pixels_are_those_of_its_bytes(name: str) -> None:
    codec = CODECS[name]
    picture = Pillow.effect_noise((SIZE, SIZE), 50).convert("RGB")
    data, pixels = codec.sample(picture, 90)
    assert (image.decode(data) == pixels).all()
    assert Pillow.open(io.BytesIO(data)).format == codec.format
    assert (pixels == np.asarray(picture)).all() == codec.lossless


def test_readers_know_every_codec() -> None:
    assert CODECS.keys() == EXTENSIONS.keys() == set(get_args(CodecName))
