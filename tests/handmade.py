"""A dataset on disk written without the preprocess stage, so that the loader is tested against the
contract alone."""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gratis.atomic import sha256_file
from gratis.dataset import (
    FORMAT,
    MANIFEST,
    STATS,
    ImageClass,
    Index,
    Manifest,
    Shard,
    Split,
    Stats,
    index_name,
    read_index,
    read_manifest,
    write_index,
    write_stats,
)

SIZE, CLASSES = 64, 7
FEW = 41  # samples: 1 in the last shard of 10, and 5 in the last batch of 12


@cache
def picture(number: int, size: int = SIZE, width: int | None = None) -> NDArray[np.uint8]:
    """A smooth random picture of that height, square without a width: JPEG at quality 95 keeps it
    well, and every place of it is different."""
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return np.asarray(small.resize((width or size, size), Image.Resampling.BICUBIC))


def encode(image: NDArray[np.uint8], codec: str, **options: Any) -> bytes:
    if codec == "raw":
        return b"P6\n%d %d\n255\n" % (image.shape[1], image.shape[0]) + image.tobytes()
    return _jpeg(image.tobytes(), image.shape, tuple(({"quality": 95} | options).items()))


@cache
def _jpeg(pixels: bytes, shape: tuple[int, ...], options: tuple[tuple[str, Any], ...]) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(np.frombuffer(pixels, np.uint8).reshape(shape))
    image.save(buffer, "JPEG", **dict(options))
    return buffer.getvalue()


def write_dataset(
    root: Path,
    images: list[NDArray[np.uint8]],
    *,
    codec: str = "jpeg",
    per_shard: int = 10,
    options: Callable[[int], dict[str, Any]] = lambda _: {},
) -> Path:
    """options: of each JPEG, as Pillow has them. Images of several sizes make a whole dataset."""
    whole = len({image.shape for image in images}) > 1
    root.mkdir(parents=True)
    count = len(images)
    labels = [i % CLASSES for i in range(count)]
    shards, rows = [], []
    extension = {"jpeg": "jpg", "raw": "ppm"}[codec]
    for number, first in enumerate(range(0, count, per_shard)):
        path = root / f"train-{number:05d}.tar"
        members = []  # offset and size of each image
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for i in range(first, min(first + per_shard, count)):
                for name, data in (
                    (f"s_{i}.{extension}", encode(images[i], codec, **options(i))),
                    (f"s_{i}.cls", b"%d" % labels[i]),
                ):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    if name.endswith(extension):
                        members.append((tar.offset + tarfile.BLOCKSIZE, len(data)))
                    tar.addfile(member, io.BytesIO(data))
        rows += [(number, *member, labels[first + k]) for k, member in enumerate(members)]
        shards.append(
            Shard(
                name=path.name,
                samples=len(members),
                bytes=path.stat().st_size,
                sha256=sha256_file(path),
            )
        )
    table = np.array(rows).T
    index = Index(
        table[0].astype(np.int32),
        table[1].astype(np.int64),
        table[2].astype(np.int32),
        table[3].astype(np.int32),
        *(np.array([image.shape[k] for image in images], np.int32) for k in (1, 0) if whole),
    )
    split = Split(
        shards=tuple(shards),
        index_sha256=write_index(root, "train", index),
        conversions={},
        rejects={},
    )
    manifest = Manifest(
        format=FORMAT,
        image_size=min(images[0].shape[:2]),
        shape="whole" if whole else "square",
        codec=codec,
        quality=95 if codec == "jpeg" else None,
        seed=0,
        samples_per_shard=per_shard,
        source="handmade",
        tools={},
        splits={"train": split},
        stats_sha256=write_stats(root, statistics(images)),
        classes=tuple(
            ImageClass(wnid=f"n{i:08d}", words=f"class {i}", ilsvrc_id=None) for i in range(CLASSES)
        ),
    )
    (root / MANIFEST).write_bytes(manifest.to_json())
    return root


def as_validation(shards: Path) -> Path:
    """The dataset whose training split is its validation split too."""
    manifest = read_manifest(shards)
    shutil.copy(shards / index_name("train"), shards / index_name("val"))
    splits = {"train": manifest.splits["train"], "val": manifest.splits["train"]}
    (shards / MANIFEST).write_bytes(replace(manifest, splits=splits).to_json())
    return shards


def centres(images: list[NDArray[np.uint8]], crop: int) -> NDArray[np.float64]:
    """[n,3,crop,crop]: of images that `write_dataset` has written, as Pillow reads them, less the
    mean image. The margin is even."""
    stored = [np.asarray(Image.open(io.BytesIO(encode(one, "jpeg")))) for one in images]
    margin = (len(images[0]) - crop) // 2
    inside = slice(margin, margin + crop)
    pixels = np.stack(stored).astype(np.float64) - statistics(images).mean
    return pixels[:, inside, inside].transpose(0, 3, 1, 2)


def rotten(folder: Path, *damaged: int, count: int = 101, **more: Any) -> Path:
    """The same dataset after bit rot: the beginnings of these samples are zeros. more: as of
    `write_dataset`."""
    root = write_dataset(folder / "rot", [picture(i) for i in range(count)], **more)
    with np.load(root / "train.index.npz") as index:
        places = [(int(index["shard"][sample]), int(index["offset"][sample])) for sample in damaged]
    for shard, offset in places:
        with (root / f"train-{shard:05d}.tar").open("r+b") as file:
            file.seek(offset)
            file.write(bytes(400))
    return root


def statistics(images: list[NDArray[np.uint8]]) -> Stats:
    rows = [image.reshape(-1, 3).astype(np.float64) for image in images]
    count, total = sum(map(len, rows)), np.sum([one.sum(0) for one in rows], axis=0)
    products = np.sum([one.T @ one for one in rows], axis=0)  # whole numbers, and exact
    covariance = (products - np.outer(total, total) / count) / (count - 1)
    values, vectors = np.linalg.eigh(covariance)
    components = values[::-1].copy(), vectors[:, ::-1].copy(), len(images)
    if len({image.shape for image in images}) > 1:
        none = np.empty((0, 0, 3), np.float32)
        mean = total / count
        deviation = np.sqrt(products.diagonal() / count - mean**2)
        return Stats(none, *components, channel_mean=mean, channel_std=deviation)
    return Stats(np.stack(images).mean(0, dtype=np.float64).astype(np.float32), *components)


def write_large_index(small: Path, root: Path, count: int) -> Path:
    """A dataset of `count` samples whose index points into the shards of a small one, over and
    over."""
    root.mkdir()
    manifest, index = read_manifest(small), read_index(small, "train")
    for path in (*small.glob("*.tar"), small / STATS):
        (root / path.name).symlink_to(path)
    rows = np.sort(np.arange(count) % len(index.label))  # by shard, as an index is
    split = manifest.splits["train"]
    counts = np.bincount(index.shard[rows], minlength=len(split.shards))
    sha256 = write_index(root, "train", index.rows(rows))
    shards = tuple(
        replace(shard, samples=int(n)) for shard, n in zip(split.shards, counts, strict=True)
    )
    large = replace(split, shards=shards, index_sha256=sha256)
    (root / MANIFEST).write_bytes(replace(manifest, splits={"train": large}).to_json())
    return root
