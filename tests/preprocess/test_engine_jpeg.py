"""What the engine's library does for the shard stage: sources' pixels, its JPEGs, and their pixels.
Also the headers of its tars."""

from __future__ import annotations

import ctypes
import io
import random
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from odd_images import odd_images
from PIL import Image, ImageFile

from gratis import engine_jpeg, image
from gratis.preprocess import codecs
from gratis.preprocess.codecs import CODECS, encode_jpeg
from gratis.preprocess.output.shard_writer import OWNER, tar_header


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


needs_engine = pytest.mark.skipif(
    engine_jpeg.decode(encode_jpeg(picture(16, 16), 95), 16, 16) is None,
    reason="the engine is not compiled here",
)


@needs_engine
@pytest.mark.parametrize("size", [(256, 256), (128, 128), (17, 17), (1, 1), (40, 23), (250, 333)])
@pytest.mark.parametrize("quality", [5, 75, 95, 100])
def test_the_engine_gives_what_pillow_gives(size: tuple[int, int], quality: int) -> None:
    for seed in range(3):
        data = encode_jpeg(picture(*size, seed), quality)
        pixels = engine_jpeg.decode(data, size[1], size[0])
        assert pixels is not None
        np.testing.assert_array_equal(pixels, image.decode(data))


@needs_engine
def test_what_is_not_whole_or_of_another_size_is_left_to_pillow() -> None:
    data = encode_jpeg(picture(64, 64), 95)
    assert engine_jpeg.decode(data, 64, 48) is None
    assert engine_jpeg.decode(data, 32, 32) is None
    for bad in (b"", b"\xff\xd8", data[:-2], data[: len(data) // 2], bytes(100)):
        assert engine_jpeg.decode(bad, 64, 64) is None


def by_pillow(pixels: Image.Image, quality: int, **more: object) -> bytes:
    """Without a way round it: the whole file in one buffer."""
    file = io.BytesIO()
    ImageFile.MAXBLOCK = 1 << 22
    options = {"subsampling": "4:2:0", "optimize": True, "restart_marker_rows": 1, **more}
    pixels.save(file, "JPEG", quality=quality, **options)
    return file.getvalue()


def by_engine(pixels: Image.Image, quality: int, isa: int, channels: int) -> bytes:
    library = engine_jpeg._library(engine_jpeg.FILE)
    assert library
    context, file = library.gratis_new(isa), ctypes.c_void_p()
    data = pixels.tobytes("raw", "RGBX" if channels == 4 else "RGB")
    size = (channels, pixels.height, pixels.width)
    count = library.gratis_encode(context, data, *size, quality, ctypes.byref(file))
    encoded = ctypes.string_at(file, count)
    library.gratis_free(context)
    return encoded


def drawn(width: int, height: int, chance: np.random.Generator) -> Image.Image:
    """A picture between smooth and noise, or one colour, with edges that lie anywhere."""
    noise = chance.integers(0, 256, (height, width, 3)).astype(float)
    smooth = np.asarray(picture(width, height, int(chance.integers(1 << 30)))).astype(float)
    share = chance.choice([0, 0.02, 0.2, 1])
    mixed = smooth + share * (noise - smooth)
    if chance.random() < 0.2:
        mixed = np.where(noise > chance.integers(256), 255.0, 0.0)
    if chance.random() < 0.1:
        mixed[:] = mixed[0, 0]
    return Image.fromarray(mixed.astype(np.uint8))


SIDES = [1, 7, 8, 9, 15, 16, 17, 24, 25, 31, 32, 33, 63, 64, 65, 100, 255, 256, 257, 341]


def hold_against_pillow(count: int, seed: int) -> None:
    chance = np.random.default_rng(seed)
    library = engine_jpeg._library(engine_jpeg.FILE)
    assert library
    for number in range(count):
        width, height = (int(chance.choice(SIDES)) for _ in range(2))
        quality = int(chance.integers(1, 101)) if number % 3 else 95
        pixels, isa = drawn(width, height, chance), number % (library.gratis_best_isa() + 1)
        wanted = by_pillow(pixels, quality)
        for channels in (3, 4):
            assert by_engine(pixels, quality, isa, channels) == wanted, (width, height, quality)


@needs_engine
def test_the_engine_makes_pillows_bytes() -> None:
    hold_against_pillow(150, 0)


@needs_engine
@pytest.mark.prove
def test_the_engine_makes_pillows_bytes_of_many_pictures() -> None:
    hold_against_pillow(20_000, 1)


@needs_engine
@pytest.mark.parametrize("quality", range(1, 101))
def test_coefficients_are_rounded_as_pillow_rounds_them(quality: int) -> None:
    """Of noise, by the tables of every quality; and of one that has every mean."""
    noise = np.random.default_rng(quality).integers(0, 256, (64, 64, 3), np.uint8)
    means = np.repeat(np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16), 8, 0), 8, 1)
    for array in (noise, np.repeat(means[..., None], 3, 2)):
        pixels = Image.fromarray(array)
        assert encode_jpeg(pixels, quality) == by_pillow(pixels, quality)


@pytest.mark.parametrize("there", [True, False])
def test_jpegs_are_the_same_without_the_engine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, there: bool
) -> None:
    if not there:
        monkeypatch.setattr(engine_jpeg, "FILE", tmp_path / "none.so")
    for size in ((96, 96), (41, 70)):
        wanted = by_pillow(picture(*size), 90)
        assert encode_jpeg(picture(*size), 90) == wanted
        assert encode_jpeg(picture(*size).convert("RGBX"), 90) == wanted
        assert encode_jpeg(np.asarray(picture(*size)), 90) == wanted


def test_what_a_pictures_file_said_is_written_by_pillow() -> None:
    pixels = picture(40, 40)
    pixels.info["comment"] = b"of a camera"
    assert encode_jpeg(pixels, 90) == by_pillow(pixels, 90)
    assert b"of a camera" in encode_jpeg(pixels, 90)


@needs_engine
def test_a_pillow_with_another_library_writes_its_own_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The engine's are held against them first."""
    assert codecs._engine_agrees(91)
    codecs._engine_agrees.cache_clear()
    save = Image.Image.save

    def other(self: Image.Image, *arguments: object, **options: object) -> None:
        save(self, *arguments, **options, comment="another library")  # type: ignore[arg-type]

    monkeypatch.setattr(Image.Image, "save", other)
    assert b"another library" in encode_jpeg(picture(40, 40), 91)
    codecs._engine_agrees.cache_clear()


def test_pixels_of_another_size_are_not_read() -> None:
    with pytest.raises(ValueError, match="100 bytes are not those of 5 x 6 pixels"):
        engine_jpeg.encode(bytes(100), 5, 6, 95)


@pytest.mark.parametrize("there", [True, False])
def test_a_sample_is_the_same_without_the_engine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, there: bool
) -> None:
    if not there:
        monkeypatch.setattr(engine_jpeg, "FILE", tmp_path / "none.so")
    data, pixels = CODECS["jpeg"].sample(picture(96, 96), 95)
    with Image.open(io.BytesIO(data)) as read:
        np.testing.assert_array_equal(pixels, np.asarray(read.convert("RGB")))


@needs_engine
def test_pillow_decodes_no_sample_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which takes three times as long."""
    decoded, opened = [], Image.open

    def counted(*arguments: object, **options: object) -> Image.Image:
        decoded.append(1)
        return opened(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Image, "open", counted)
    CODECS["jpeg"].sample(picture(64, 64), 95)
    assert not decoded


def photograph(**options: object) -> bytes:
    file = io.BytesIO()
    picture(90, 70).save(file, "JPEG", **options)
    return file.getvalue()


def sources() -> Iterator[bytes]:
    """JPEGs of many writers, whole and damaged, and what is no JPEG."""
    yield from odd_images().values()
    yield photograph(comment=b"of a camera") + b"what follows the picture" * 9
    for options in ({"subsampling": 0}, {"subsampling": 1}, {"progressive": True}, {"quality": 5}):
        yield photograph(**options)
    whole, chance = photograph(restart_marker_rows=1, quality=90), random.Random(0)
    for end in (2, 20, 200, 600, len(whole) // 2, len(whole) - 9, len(whole) - 2, len(whole) - 1):
        yield whole[:end]
    for _ in range(300):
        damaged = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            damaged[chance.randrange(len(whole))] = chance.randrange(256)
        yield bytes(damaged)


def outcome(data: bytes, size: int) -> object:
    try:
        made, conversions = image.to_picture(data, size)
    except image.Reject as reject:
        return reject.kind, reject.reason
    return made.tobytes(), made.info, conversions


@needs_engine
def test_sources_become_the_same_without_the_engine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same pixels and conversions, and rejects in the same words."""
    everything = [(data, size) for data in sources() for size in (16, 64)]
    made = [outcome(*one) for one in everything]
    monkeypatch.setattr(engine_jpeg, "FILE", tmp_path / "none.so")
    assert made == [outcome(*one) for one in everything]


@needs_engine
@pytest.mark.parametrize(("size", "loads"), [(64, 0), (16, 1)])
def test_pillow_decodes_a_photograph_only_where_it_shrinks_it(
    monkeypatch: pytest.MonkeyPatch, size: int, loads: int
) -> None:
    loaded, load = set(), ImageFile.ImageFile.load

    def counted(self: ImageFile.ImageFile) -> object:
        loaded.add(id(self))
        return load(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", counted)
    image.to_picture(photograph(), size)
    assert len(loaded) == loads


@needs_engine
def test_threads_decode_at_once() -> None:
    """Each with scratch memory of its own: the library lets others run while it decodes."""
    files = [encode_jpeg(picture(200 + k, 300, k), 90) for k in range(4)]
    wanted = [image.decode(data) for data in files]
    wrong: list[int] = []

    def decode_often(k: int) -> None:
        for _ in range(30):
            pixels = engine_jpeg.decode(files[k], 300, 200 + k)
            if pixels is None or not np.array_equal(pixels, wanted[k]):
                wrong.append(k)

    threads = [threading.Thread(target=decode_often, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


NAMES = ["a.jpg", "n01440764_10026.jpg", "x" * 100, "x" * 60 + "/" + "y" * 60, "ü.jpg", "a b.cls"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [0, 1, 3, 511, 31_790, 8**7, 8**11 - 1])
def test_headers_are_those_of_tarfile(name: str, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.uname, info.gname = size, 0o644, OWNER, OWNER
    assert tar_header(name, size) == info.tobuf(tarfile.USTAR_FORMAT)
