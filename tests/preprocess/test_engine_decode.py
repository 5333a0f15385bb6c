"""The pixels that the shard stage takes for those of its JPEGs, and the headers of its tars."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

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


NAMES = ["a.jpg", "n01440764_10026.jpg", "x" * 100, "x" * 60 + "/" + "y" * 60, "ü.jpg", "a b.cls"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [0, 1, 3, 511, 31_790, 8**7, 8**11 - 1])
def test_headers_are_those_of_tarfile(name: str, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.uname, info.gname = size, 0o644, OWNER, OWNER
    assert tar_header(name, size) == info.tobuf(tarfile.USTAR_FORMAT)
