"""Images that keep their shape: what `shards --shape whole` and `index` write of them, against
Pillow, NumPy and whole numbers by hand."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import tarfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as Pillow

from gratis import dataset, image
from gratis.errors import GratisError
from gratis.preprocess.index import IndexConfig, index_tars
from gratis.preprocess.inspect import InspectConfig, inspect_dataset
from gratis.preprocess.shards import ShardsConfig, make_shards
from gratis.preprocess.statistics import Accumulator, finish, merge, no_sums
from gratis.preprocess.verify import VerifyConfig, verify_dataset

SIZE = 32
PLAIN = image.Whole(4.0, enlarge=False)
# width and height of the source: of the stored image
SIZES = {
    (64, 48): (43, 32),  # 42.67 upwards
    (48, 64): (32, 43),
    (32, 32): (32, 32),
    (500, 375): (43, 32),
    (20, 30): (20, 30),  # small: as it is
    (300, 40): (128, 32),  # 240 wide: cut to four times the height
    (1, 9): (1, 4),
    (65, 64): (33, 32),  # 32.5 upwards
}


def pixels_of(number: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """uint8 [height,width,3], of a width and a height."""
    small = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return np.asarray(Pillow.fromarray(small).resize(size, Pillow.Resampling.BICUBIC))


def encoded(pixels: NDArray[np.uint8], kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    Pillow.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def source(root: Path, kind: str = "PNG") -> Path:
    for split, first in (("train", 0), ("val", 100)):
        for number, size in enumerate(SIZES):
            folder = root / split / f"class{number % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            name = f"{split}{number}.{kind.lower()}"
            (folder / name).write_bytes(encoded(pixels_of(first + number, size), kind))
    return root


def decoded(root: Path, split: str) -> list[NDArray[np.uint8]]:
    """The images in order, by tarfile and Pillow."""
    images = []
    for path in sorted(root.glob(f"{split}*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith((".jpg", ".ppm")) and (file := tar.extractfile(member)):
                    images.append(np.asarray(Pillow.open(file).convert("RGB")))
    return images


def digests(root: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in root.iterdir()}


@pytest.mark.parametrize(("source_size", "stored"), list(SIZES.items()))
def test_the_shorter_side_becomes_the_size(
    source_size: tuple[int, int], stored: tuple[int, int]
) -> None:
    original = pixels_of(1, source_size)
    picture, conversions = image.to_picture(encoded(original), SIZE, whole=PLAIN)
    assert picture.size == stored
    assert ("long" in conversions) == (max(source_size) > 4 * min(source_size))
    assert ("small" in conversions) == (min(source_size) < SIZE)
    if min(source_size) <= 2 * SIZE and max(source_size) <= 4 * min(source_size):
        method = Pillow.Resampling.LANCZOS
        by_pillow = Pillow.fromarray(original).resize(stored, method)  # all of it, in one step
        assert (np.asarray(picture) == np.asarray(by_pillow)).all()
    square, _ = image.to_picture(encoded(original), SIZE)
    assert square.size == (SIZE, SIZE)


def test_what_is_too_long_keeps_its_centre() -> None:
    original = pixels_of(1, (128, 32)).copy()
    original[:, :32], original[:, 96:] = 0, 255  # the ends that go
    picture, _ = image.to_picture(encoded(original), SIZE, whole=image.Whole(2.0, enlarge=False))
    assert (np.asarray(picture) == original[:, 32:96]).all()


def test_small_images_are_enlarged_on_request() -> None:
    picture, conversions = image.to_picture(
        encoded(pixels_of(1, (20, 30))), SIZE, whole=image.Whole(4.0, enlarge=True)
    )
    assert picture.size == (32, 48)
    assert "small" not in conversions


@pytest.mark.parametrize("size", [(2400, 1800), (1801, 2399)])
def test_a_large_jpeg_is_all_there(size: tuple[int, int]) -> None:
    """Shrunk inside the decoder first: no edge of it is lost, and nothing is moved."""
    original = pixels_of(3, size)
    picture, _ = image.to_picture(encoded(original, "JPEG", quality=95), 256, whole=PLAIN)
    expected = Pillow.fromarray(original).resize(picture.size, Pillow.Resampling.LANCZOS)
    apart = np.abs(np.asarray(picture).astype(int) - np.asarray(expected))
    assert min(picture.size) == 256
    assert apart.mean() < 0.5


def exact(images: list[NDArray[np.uint8]]) -> tuple[list[float], list[list[float]]]:
    """Mean and covariance of all pixels, by fractions."""
    rows = np.concatenate([one.reshape(-1, 3) for one in images]).astype(object)
    count = len(rows)
    first = rows.sum(axis=0)
    second = rows.T @ rows
    covariance = [
        [
            float(Fraction(second[i, j], count) - Fraction(first[i] * first[j], count**2))
            for j in range(3)
        ]
        for i in range(3)
    ]
    return [float(Fraction(int(value), count)) for value in first], covariance


def test_statistics_of_channels_are_exact() -> None:
    images = [pixels_of(k, size) for k, size in enumerate(SIZES)]
    images.append(np.full((300, 301, 3), 255, np.uint8))  # the largest sums
    accumulator = Accumulator(None)
    for one in images:
        accumulator.add(one)
    stats = finish(accumulator.sums())
    mean, covariance = exact(images)
    assert stats.channel_mean is not None
    assert stats.channel_std is not None
    assert stats.channel_mean.tolist() == mean
    np.testing.assert_allclose(stats.channel_std**2, np.diag(covariance), rtol=1e-14)
    vectors = stats.eigenvectors
    np.testing.assert_allclose(vectors * stats.eigenvalues @ vectors.T, covariance, atol=1e-9)
    assert stats.mean.shape == (0, 0, 3)


def test_any_split_of_sizes_gives_the_same_bits() -> None:
    """Also where a part happens to be square and of one size."""
    images = [pixels_of(k, (16, 16)) for k in range(4)]
    images += [pixels_of(9 + k, size) for k, size in enumerate(SIZES)]
    whole = Accumulator(None)
    for one in images:
        whole.add(one)
    expected = finish(whole.sums())
    for cut, begins in ((4, 16), (2, 16), (7, None)):
        parts = [Accumulator(begins), Accumulator(begins)]
        for number, one in enumerate(images):
            parts[number >= cut].add(one)
        found = finish(merge(merge(no_sums(None), parts[1].sums()), parts[0].sums()))
        for a, b in zip(found, expected, strict=True):
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def test_channels_of_square_images_are_those_of_their_mean_image() -> None:
    images = [pixels_of(k, (16, 16)) for k in range(5)]
    square, whole = Accumulator(16), Accumulator(None)
    for one in images:
        square.add(one)
        whole.add(one)
    for a, b in zip(finish(square.sums()).channels, finish(whole.sums()).channels, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.starts
@pytest.mark.parametrize("codec", ["jpeg", "raw"])
def test_a_whole_dataset_by_hand(
    tmp_path: Path, codec: str, capsys: pytest.CaptureFixture[str]
) -> None:
    src, out = source(tmp_path / "src"), tmp_path / "out"
    config = ShardsConfig(
        src=str(src),
        out=str(out),
        size=SIZE,
        shape="whole",
        codec=codec,
        workers=1,  # type: ignore[arg-type]
    )
    make_shards(config)
    manifest = dataset.read_manifest(out)
    assert (manifest.format, manifest.shape, manifest.max_aspect) == (2, "whole", 4.0)
    for split in ("train", "val"):
        images, index = decoded(out, split), dataset.read_index(out, split)
        assert index.width is not None
        assert index.height is not None
        sizes = list(zip(index.width.tolist(), index.height.tolist(), strict=True))
        assert sizes == [one.shape[1::-1] for one in images]
        assert sorted(sizes) == sorted(SIZES.values())
        assert manifest.splits[split].conversions["long"] == 2
    mean, covariance = exact(decoded(out, "train"))
    stats = dataset.read_stats(out, manifest.stats_sha256)
    assert stats.channel_mean is not None
    assert stats.channel_mean.tolist() == mean
    np.testing.assert_allclose(stats.channels[1] ** 2, np.diag(covariance), rtol=1e-14)
    with np.load(out / "stats.npz") as arrays:
        assert "mean" not in arrays
    verify_dataset(VerifyConfig(shards=str(out)))
    inspect_dataset(InspectConfig(shards=str(out), png=tmp_path / "png", src=str(src)))
    shown = capsys.readouterr().out
    assert "whole images, shorter side 32 px" in shown
    assert "width: 1 to 128" in shown
    assert f"mean R, G, B {mean[0]:.2f}, {mean[1]:.2f}, {mean[2]:.2f}; deviation" in shown
    assert {path.name for path in (tmp_path / "png").iterdir()} == {
        *("components.png", "classes.png", "montage.png")
    }


@pytest.mark.starts
def test_the_same_bytes_by_any_workers_and_after_any_interruption(tmp_path: Path) -> None:
    src = source(tmp_path / "src")
    common = {"src": str(src), "size": SIZE, "shape": "whole", "samples_per_shard": 3}
    make_shards(ShardsConfig(out=str(tmp_path / "one"), workers=1, **common))  # type: ignore[arg-type]
    make_shards(ShardsConfig(out=str(tmp_path / "two"), workers=2, **common))  # type: ignore[arg-type]
    three = str(tmp_path / "three")
    for task in (1, 0):  # half of the shards; then all that is missing
        part = {"task_id": task, "num_tasks": 2} if task else {}
        make_shards(ShardsConfig(out=three, workers=1, **common, **part))  # type: ignore[arg-type]
    assert digests(tmp_path / "one") == digests(tmp_path / "two") == digests(tmp_path / "three")


@pytest.mark.starts
def test_square_files_say_nothing_of_shapes(tmp_path: Path) -> None:
    src, out = source(tmp_path / "src"), tmp_path / "out"
    make_shards(ShardsConfig(src=str(src), out=str(out), size=SIZE, workers=1))
    raw = json.loads((out / "manifest.json").read_text())
    assert not {"shape", "max_aspect", "enlarge"} & set(raw)
    with np.load(out / "train.index.npz") as index, np.load(out / "stats.npz") as stats:
        assert set(index) == {"shard", "offset", "size", "label"}
        assert set(stats) == {"mean", "eigenvalues", "eigenvectors", "num_images"}
    with pytest.raises(GratisError, match=r"shape square there and whole asked for.*another OUT"):
        make_shards(ShardsConfig(src=str(src), out=str(out), size=SIZE, shape="whole", workers=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"max_aspect": 3.0},
            "--max-aspect is for images that keep their shape; add --shape whole",
        ),
        ({"enlarge": True}, "--enlarge is for images"),
        ({"shape": "whole", "max_aspect": 0.5}, "--max-aspect 0.5: between 1 and 15"),
        ({"shape": "whole", "max_aspect": float("nan")}, "--max-aspect nan"),
    ],
)
def test_options_that_contradict(options: dict[str, object], message: str) -> None:
    with pytest.raises(GratisError, match=message):
        ShardsConfig(src="x", **options)  # type: ignore[arg-type]


def foreign(root: Path) -> Path:
    """A tar of JPEGs of many sizes, some with EXIF that says they are turned."""
    root.mkdir()
    with tarfile.open(root / "0.tar", "w") as tar:
        for number, size in enumerate(SIZES):
            exif = Pillow.Exif()
            exif[0x0112] = 6
            options = {"exif": exif} if number % 2 else {}
            data = encoded(pixels_of(number, size), "JPEG", quality=95, **options)
            for name, content in ((f"{number}.jpg", data), (f"{number}.cls", b"%d" % (number % 3))):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return root


@pytest.mark.starts
def test_foreign_images_of_any_size_stay_where_they_are(tmp_path: Path) -> None:
    root = foreign(tmp_path / "t")
    before = (root / "0.tar").read_bytes()
    manifest = index_tars(IndexConfig(tars=str(root), workers=1))
    assert (root / "0.tar").read_bytes() == before
    assert (manifest.shape, manifest.image_size, manifest.max_aspect) == ("whole", 48, None)
    index = dataset.read_index(root, "train")
    assert index.width is not None
    assert index.height is not None
    # as the header has them, whatever EXIF says
    assert list(zip(index.width.tolist(), index.height.tolist(), strict=True)) == list(SIZES)
    mean, _ = exact(decoded(root, "0"))
    assert dataset.read_stats(root).channels[0].tolist() == mean
    verify_dataset(VerifyConfig(shards=str(root)))


@pytest.mark.starts
@pytest.mark.parametrize("bad", ["cmyk", "png", "long"])
def test_odd_foreign_images_are_left_out_on_request(tmp_path: Path, bad: str) -> None:
    root = foreign(tmp_path / "t")
    picture = Pillow.fromarray(pixels_of(1, (1, 101) if bad == "long" else (20, 30)))
    data = {"cmyk": ("x.jpg", "CMYK", "JPEG"), "png": ("x.png", "RGB", "PNG")}
    name, mode, kind = data.get(bad, ("x.jpg", "RGB", "JPEG"))
    file = io.BytesIO()
    picture.convert(mode).save(file, kind)
    with tarfile.open(root / "1.tar", "w") as tar:
        for member, content in (
            *(("a.jpg", encoded(pixels_of(2, (20, 30)), "JPEG")), ("a.cls", b"1")),
            *((name, file.getvalue()), ("x.cls", b"1")),
        ):
            info = tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    with pytest.raises(
        GratisError, match=r"too-long\)" if bad == "long" else "gratis shards --src"
    ):
        index_tars(IndexConfig(tars=str(root), workers=1))
    manifest = index_tars(IndexConfig(tars=str(root), workers=1, max_rejects=1))
    assert manifest.splits["train"].samples == len(SIZES) + 1
    verify_dataset(VerifyConfig(shards=str(root)))


@pytest.mark.starts
@pytest.mark.parametrize("value", [0, -1, 33, 1 << 20])
def test_verify_finds_sizes_that_are_not_the_files(
    tmp_path: Path, value: int, capsys: pytest.CaptureFixture[str]
) -> None:
    root = foreign(tmp_path / "t")
    manifest = index_tars(IndexConfig(tars=str(root), workers=1))
    index = dataset.read_index(root, "train")
    assert index.width is not None
    width = index.width.copy()  # of a mapped file
    width[2] = value
    index = index._replace(width=width)
    sha256 = dataset.write_index(root, "train", index)
    split = dataclasses.replace(manifest.splits["train"], index_sha256=sha256)
    changed = dataclasses.replace(manifest, splits={"train": split})
    (root / "manifest.json").write_bytes(changed.to_json())
    with pytest.raises(GratisError, match="1 finding"):
        verify_dataset(VerifyConfig(shards=str(root)))
    assert f"no image of {value} x 32 pixels that the loader decodes" in capsys.readouterr().out


@pytest.mark.starts
def test_verify_finds_a_manifest_of_another_shape(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = foreign(tmp_path / "t")
    manifest = index_tars(IndexConfig(tars=str(root), workers=1))
    other = dataclasses.replace(manifest, shape="square")
    (root / "manifest.json").write_bytes(other.to_json())
    with pytest.raises(GratisError, match="findings"):
        verify_dataset(VerifyConfig(shards=str(root)))
    shown = capsys.readouterr().out
    assert "says square images, the statistics are of whole ones" in shown
    assert "has sizes of images, and manifest.json says square ones" in shown


@pytest.mark.parametrize(("field", "value"), [("shape", "round"), ("shape", 3), ("enlarge", "no")])
def test_a_manifest_with_another_shape_is_damaged(
    tmp_path: Path, field: str, value: object
) -> None:
    manifest = dataset.Manifest(
        format=2,
        image_size=8,
        codec="jpeg",
        quality=95,
        seed=0,
        samples_per_shard=1,
        source="",
        tools={},
        classes=(),
        splits={},
        stats_sha256="",
        shape="whole",
    )
    raw = json.loads(manifest.to_json()) | {field: value}
    (tmp_path / "manifest.json").write_text(json.dumps(raw))
    with pytest.raises(GratisError, match=f"is damaged .{field} is"):
        dataset.read_manifest(tmp_path)
