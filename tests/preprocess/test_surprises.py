"""What other loaders read in another way, or not at all (`findings/`), through shards and loader:
each input comes out right, or is named."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from handmade import picture
from numpy.typing import NDArray
from PIL import Image, features
from small import gratis

from benchmarks.jpeg.kinds import kinds
from gratis.loader import Loader, LoaderConfig

SIDE = 64
NEAR = 8  # levels in the mean, of JPEGs; two pictures are 60 apart
Pixels = NDArray[np.uint8]


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def on_its_side() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def files() -> dict[str, tuple[bytes, Pixels]]:
    """File by name, and its pixels as Pillow has them, not turned."""
    image = Image.fromarray(picture(1, 200))
    palette = image.quantize(64)
    apart = kinds()["a scan for each component"]
    found = {
        "palette.PNG": saved(palette, "PNG"),
        "capitals.JPG": saved(image, "JPEG", quality=95),
        "apart.jpg": apart,
    }
    if features.check("webp"):
        for width in range(190, 200):  # pixel chunks of odd and of even lengths
            part = image.crop((0, 0, width, width))
            name = f"lossless-{width}.webp"
            found[name] = saved(part, "WEBP", lossless=True, exif=on_its_side())
    return {
        name: (data, np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
        for name, data in found.items()
    }


def stored(pixels: Pixels) -> Pixels:
    """The central square at SIDE, by another filter than the product's is near enough."""
    height, width = pixels.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(pixels[top : top + side, left : left + side])
    return np.asarray(square.resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def made(src: Path, out: Path) -> str:
    done = gratis("shards", "--src", str(src), "--out", str(out), "--size", str(SIDE))
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def samples(root: Path) -> dict[str, Pixels]:
    """What the loader yields of each key, uint8 [SIDE,SIDE,3]."""
    forms: dict[str, Any] = {"normalize": None, "dtype": torch.uint8, "layout": "nhwc"}
    config = LoaderConfig(augment=False, crop=SIDE, batch_size=64, **forms)
    with Loader(root, "train", config) as loader:
        reader = loader.shard_reader()
        try:
            return {
                reader.key(int(sample)): image.numpy()
                for images, _, ids in loader
                for image, sample in zip(images, ids, strict=True)
            }
        finally:
            reader.close()


@pytest.mark.starts
def test_files_that_others_read_in_another_way_or_leave_out(tmp_path: Path) -> None:
    """Palettes give colours (ray-read-images-palette), WebP is read (ray-read-images-webp,
    nvimagecodec-lossless-webp-exif), endings in capitals too, and chroma in a scan of its own
    (kornia-rs-jpeg-scans)."""
    expected = files()
    for name, (data, _) in expected.items():
        path = tmp_path / "src" / "train" / "a" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    made(tmp_path / "src", tmp_path / "out")
    found = samples(tmp_path / "out")
    assert len(found) == len(expected)
    for name, (_, pixels) in expected.items():
        (image,) = [one for key, one in found.items() if Path(name).stem in key]
        difference = np.abs(image.astype(int) - stored(pixels)).mean()
        assert difference < NEAR, name


def tar_of(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


@pytest.mark.starts
def test_names_with_a_dot_before_and_endings_in_capitals(tmp_path: Path) -> None:
    """A hidden name is told as passed over and joins no other sample (webdataset-writer-dot-names);
    .PNG and .png in one archive are images alike (ray-webdataset-uppercase)."""
    kind: Callable[[int], Image.Image] = lambda number: Image.fromarray(picture(number))  # noqa: E731
    png, jpeg = saved(kind(1), "PNG"), saved(kind(2), "JPEG")
    tar_of(
        tmp_path / "src" / "train-0.tar",
        {
            "a.PNG": png,
            "a.cls": b"0",
            "b.png": png,
            "b.cls": b"1",
            "c.JPG": jpeg,
            "c.cls": b"1",
            ".top.jpg": jpeg,
            ".top.cls": b"0",
            "in/.x.jpg": jpeg,
            "in/.x.cls": b"0",
            "in/.y.jpg": jpeg,
            "in/.y.cls": b"1",
        },
    )
    text = made(tmp_path / "src", tmp_path / "out")
    assert "hidden" in text
    found = samples(tmp_path / "out")
    assert sorted(found) == ["a", "b", "c"]
    assert np.array_equal(found["a"], found["b"])
    assert np.abs(found["c"].astype(int) - picture(2)).mean() < NEAR


@pytest.mark.starts
@pytest.mark.parametrize("label", [b"1.5", b"True", b"None"])
def test_labels_that_are_no_whole_numbers_are_shown(tmp_path: Path, label: bytes) -> None:
    """webdataset-writer-labels: before any image is made, not when an epoch reads it."""
    jpeg = saved(Image.fromarray(picture(2)), "JPEG")
    members = {"a.jpg": jpeg, "a.cls": b"0", "b.jpg": jpeg, "b.cls": label}
    tar_of(tmp_path / "src" / "train-0.tar", members)
    src, out = str(tmp_path / "src"), str(tmp_path / "out")
    done = gratis("shards", "--src", src, "--out", out, "--size", str(SIDE))
    assert done.returncode == 2
    assert label.decode() in done.stderr
    assert "Traceback" not in done.stderr
