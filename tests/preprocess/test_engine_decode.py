"""The pixels that the shard stage takes for those of its JPEGs, and the headers of its tars."""

from __future__ import annotations

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

from gratis import engine_decode, image
from gratis.preprocess.codecs import CODECS, encode_jpeg
from gratis.preprocess.output.shard_writer import OWNER, tar_header


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


needs_engine = pytest.mark.skipif(
    engine_decode.decode(encode_jpeg(picture(16, 16), 95), 16, 16) is None,
    reason="the engine is not compiled here",
)


@needs_engine
@pytest.mark.parametrize("size", [(256, 256), (128, 128), (17, 17), (1, 1), (40, 23), (250, 333)])
@pytest.mark.parametrize("quality", [5, 75, 95, 100])
def test_the_engine_gives_what_pillow_gives(size: tuple[int, int], quality: int) -> None:
    for seed in range(3):
        data = encode_jpeg(picture(*size, seed), quality)
        pixels = engine_decode.decode(data, size[1], size[0])
        assert pixels is not None
        np.testing.assert_array_equal(pixels, image.decode(data))


@needs_engine
def test_what_is_not_whole_or_of_another_size_is_left_to_pillow() -> None:
    data = encode_jpeg(picture(64, 64), 95)
    assert engine_decode.decode(data, 64, 48) is None
    assert engine_decode.decode(data, 32, 32) is None
    for bad in (b"", b"\xff\xd8", data[:-2], data[: len(data) // 2], bytes(100)):
        assert engine_decode.decode(bad, 64, 64) is None


@pytest.mark.parametrize("there", [True, False])
def test_a_sample_is_the_same_without_the_engine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, there: bool
) -> None:
    if not there:
        monkeypatch.setattr(engine_decode, "FILE", tmp_path / "none.so")
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
    monkeypatch.setattr(engine_decode, "FILE", tmp_path / "none.so")
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
            pixels = engine_decode.decode(files[k], 300, 200 + k)
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
