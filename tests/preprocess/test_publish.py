"""The reduce step, from receipts made by hand to a dataset whose every number is known."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from numpy.typing import NDArray

from gratis.dataset import ImageClass, Manifest, read_index, read_manifest, read_stats
from gratis.errors import GratisError
from gratis.preprocess.output.receipt import ShardReceipt, write_receipt
from gratis.preprocess.output.store import WORK, LocalStore, RemoteStore, Store, open_store
from gratis.preprocess.stages.publish import already_there, announce, publish, summary
from gratis.preprocess.statistics import PixelSums

SIZE = 8
CLASSES = tuple(ImageClass(wnid=f"n0000000{i}", words=f"c{i}", ilsvrc_id=None) for i in range(3))
DRAFT = Manifest(
    format=2,
    image_size=SIZE,
    codec="jpeg",
    quality=95,
    seed=0,
    samples_per_shard=4,
    source="handmade",
    tools={"pillow": "1"},
    splits={},
    stats_sha256="",
    classes=CLASSES,
)
WHOLE = dataclasses.replace(DRAFT, shape="whole")


def sums_of(images: int, level: int, *, whole: bool) -> PixelSums:
    """Of images that are one grey level all over; whole ones are twice as wide."""
    places = images * SIZE * SIZE * (2 if whole else 1)
    pixels = np.full(3, level * places) if whole else np.full((SIZE, SIZE, 3), level * images)
    products = np.full((3, 3), level * level * places)
    return PixelSums(images, places, pixels.astype(np.int64), products.astype(np.int64))


def receipt_of(name: str, first: int, count: int, level: int, *, whole: bool) -> ShardReceipt:
    rows: NDArray[np.int64] = np.arange(first, first + count)
    split = name.partition("-")[0]
    kind = "empty" if first else "truncated"  # where no sample comes before it
    reject = {"split": split, "key": "k", "file": f"{name}.jpg", "kind": kind, "reason": "no"}
    return ShardReceipt(
        offset=512 * rows,
        size=(rows + 1).astype(np.int32),
        label=(rows % 3).astype(np.int32),
        bytes=100 + count,
        sha256=f"{first:064d}",
        conversions={"gzip": count, "alpha": 1} if count else {},
        rejects=[] if count else [reject],
        sums=sums_of(count, level, whole=whole) if split == "train" else None,
        width=np.full(count, 2 * SIZE, np.int32) if whole else None,
        height=np.full(count, SIZE, np.int32) if whole else None,
    )


def published(
    tmp_path: Path, samples: dict[str, int], draft: Manifest = DRAFT, **more: Any
) -> tuple[Path, Manifest]:
    """A dataset of shards of so many samples each, labels and sizes counted through them; 0: every
    file was rejected. A shard's images have ten times the grey level of the one before."""
    root, number = tmp_path / "out", 0
    (root / WORK).mkdir(parents=True)
    store, splits = LocalStore(str(root)), dict[str, list[str]]()
    for place, (name, count) in enumerate(samples.items()):
        (root / f"{name}.tar").write_bytes(bytes(100 + count))
        (root / f"{name}.idx").write_bytes(b"")
        receipt = receipt_of(name, number, count, 10**place, whole=draft.shape == "whole")
        write_receipt(store, name, receipt)
        splits.setdefault(name.partition("-")[0], []).append(name)
        number += count
    return root, publish(store, draft, splits, **{"max_rejects": 1} | more)


def test_after_a_shard_that_was_rejected_whole_rows_name_their_own(tmp_path: Path) -> None:
    """Its archive goes, and the numbers of those behind it move up."""
    root, manifest = published(tmp_path, {"train-00000": 2, "train-00001": 0, "train-00002": 3})
    split = manifest.splits["train"]
    assert [shard.name for shard in split.shards] == ["train-00000.tar", "train-00002.tar"]
    assert [shard.samples for shard in split.shards] == [2, 3]
    assert [shard.bytes for shard in split.shards] == [102, 103]
    assert [int(shard.sha256) for shard in split.shards] == [0, 2]
    index = read_index(root, "train", split.index_sha256)
    assert index.shard.tolist() == [0, 0, 1, 1, 1]
    assert index.size.tolist() == [1, 2, 3, 4, 5]
    assert index.offset.tolist() == [0, 512, 1024, 1536, 2048]
    assert index.label.tolist() == [0, 1, 2, 0, 1]
    types = [column.dtype for column in index[:4] if column is not None]
    assert types == [np.int32, np.int64, np.int32, np.int32]
    assert (index.width, index.height) == (None, None)
    assert split.rejects == {"empty": 1}
    assert [*split.conversions.items()] == [("alpha", 2), ("gzip", 5)]
    assert {path.name for path in root.glob("*.tar")} == {"train-00000.tar", "train-00002.tar"}
    assert not (root / "train-00001.idx").exists()


@pytest.mark.parametrize("draft", [DRAFT, WHOLE])
def test_what_is_published(tmp_path: Path, draft: Manifest) -> None:
    """2 images of level 1 and 1 of level 10 are for training: 4 on average, a variance of 18."""
    root, manifest = published(
        tmp_path, {"train-00000": 2, "train-00001": 1, "val-00000": 3, "val-00001": 0}, draft
    )
    assert manifest == read_manifest(root)
    filled = {"splits": manifest.splits, "stats_sha256": manifest.stats_sha256}
    assert manifest == dataclasses.replace(draft, **filled)  # type: ignore[arg-type]
    assert [*manifest.splits] == ["train", "val"]
    assert hashlib.sha256((root / "stats.npz").read_bytes()).hexdigest() == manifest.stats_sha256
    stats = read_stats(root)
    assert stats.num_images == 3
    mean, std = stats.channels
    np.testing.assert_allclose(mean, 4)
    np.testing.assert_allclose(std, np.sqrt(18), rtol=1e-12)
    np.testing.assert_allclose(stats.eigenvalues, [54, 0, 0], atol=1e-9)
    assert stats.mean.shape == ((SIZE, SIZE, 3) if draft is DRAFT else (0, 0, 3))
    index = read_index(root, "val", manifest.splits["val"].index_sha256)
    assert index.size.tolist() == [4, 5, 6]
    if draft is WHOLE:
        assert index.width is not None
        assert index.height is not None
        assert index.width.tolist() == [2 * SIZE] * 3
        assert index.height.tolist() == [SIZE] * 3
    rows = [json.loads(line) for line in (root / "rejects.jsonl").read_text().splitlines()]
    assert [(row["split"], row["file"]) for row in rows] == [("val", "val-00001.jpg")]
    expected = {"manifest.json", "stats.npz", "rejects.jsonl", "val-00000.tar", "val-00000.idx"}
    expected |= {f"train-0000{i}.{kind}" for i in (0, 1) for kind in ("tar", "idx")}
    expected |= {"train.index.npz", "val.index.npz"}
    assert {path.name for path in root.iterdir()} == expected


def test_more_rejects_than_allowed_publish_nothing(tmp_path: Path) -> None:
    with pytest.raises(GratisError) as caught:
        published(tmp_path, {"train-00000": 2, "train-00001": 0, "train-00002": 0})
    assert str(caught.value) == (
        "2 files cannot be used (2 empty): train/train-00001.jpg (empty); train/train-00002.jpg "
        f"(empty); see {tmp_path}/out/rejects.jsonl; nothing is published: mend them and run again,"
        " which tries them again, or run again with --max-rejects 2"
    )
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert (tmp_path / "out" / WORK).exists()


def test_of_many_rejects_five_are_named(tmp_path: Path) -> None:
    """All of them are in the file."""
    for rejects, more in ((5, False), (6, True)):
        root = tmp_path / str(rejects)
        names = {"train-00000": 0, "train-00001": 1}
        with pytest.raises(GratisError) as caught:
            published(root, names | {f"val-0000{i}": 0 for i in range(rejects - 1)})
        said = str(caught.value)
        assert said.startswith(f"{rejects} files cannot be used ({rejects - 1} empty, 1 truncated)")
        assert ("val/val-00003.jpg (empty); ...; see" in said) is more
        assert ("val/val-00003.jpg (empty); see" in said) is not more
        lines = (root / "out" / "rejects.jsonl").read_text().splitlines()
        assert [json.loads(line)["kind"] for line in lines] == ["truncated"] + ["empty"] * (
            rejects - 1
        )


def test_what_the_listing_lost_counts_too(tmp_path: Path) -> None:
    names = {"train-00000": 2, "train-00001": 0}
    published(tmp_path / "a", names, lost=2, max_rejects=3)
    with pytest.raises(GratisError) as caught:
        published(tmp_path / "b", names, lost=1_000, max_rejects=1_000)
    assert str(caught.value).endswith("--max-rejects 1001, with 1,000 that the listing skipped")


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ({"train-00000": 0}, "no file of the training split could be used, 1 were rejected"),
        ({"train-00000": 1, "val-00000": 0}, "no file of the split val could be used"),
    ],
)
def test_a_split_without_images_is_an_error(
    tmp_path: Path, samples: dict[str, int], message: str
) -> None:
    with pytest.raises(GratisError, match=f"^{message}$"):
        published(tmp_path, samples)
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.parametrize(
    ("samples", "changes", "text"),
    [
        (
            {"train-00000": 2, "val-00000": 1},
            {},
            "2 train and 1 val images of 3 classes, 8 px, in 2 shards",
        ),
        ({"train-00000": 1}, {}, "1 train image of 3 classes, 8 px, in 1 shard"),
        (
            {"train-00000": 1200, "train-00001": 34},
            {"classes": CLASSES[:1]},
            "1,234 train images of 1 class, 8 px, in 2 shards",
        ),
        (
            {"train-00000": 2},
            {"classes": (), "shape": "whole"},
            "2 train images without labels, whole, shorter side 8 px, in 1 shard",
        ),
    ],
)
def test_a_dataset_in_a_line(
    tmp_path: Path, samples: dict[str, int], changes: dict[str, Any], text: str
) -> None:
    _, manifest = published(tmp_path, samples, dataclasses.replace(DRAFT, **changes))
    assert summary(manifest) == text


@pytest.mark.parametrize(
    ("turned", "line"),
    [
        ((0, 0), ""),
        ((1, 0), "1 image has an EXIF"),
        ((1, 1), "2 images have an EXIF"),
        ((2000, 1), "2,001 images have an EXIF"),
    ],
)
def test_images_that_lie_on_their_side_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], turned: tuple[int, int], line: str
) -> None:
    _, manifest = published(tmp_path, {"train-00000": 1, "val-00000": 1})
    splits = {
        name: dataclasses.replace(split, conversions={"exif-rotated": count} if count else {})
        for (name, split), count in zip(manifest.splits.items(), turned, strict=True)
    }
    announce("OUT", dataclasses.replace(manifest, splits=splits))
    more = f"{line} orientation other than upright; it is ignored, as in 2012\n" if line else ""
    assert capsys.readouterr().out == f"OUT: {summary(manifest)}\n{more}"


@pytest.mark.parametrize("remote", [False, True])
def test_what_is_published_is_taken_or_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], remote: bool
) -> None:
    """By its settings; other tools made the same bytes."""
    root, manifest = published(tmp_path, {"train-00000": 2})
    (root / WORK).mkdir()
    store: Store = LocalStore(str(root))
    if remote:
        store = open_store(f"memory://{root}")
        assert isinstance(store, RemoteStore)
        fsspec.filesystem("memory").put(f"{root}/", f"{root}/", recursive=True)
    assert already_there(store) == manifest
    assert not store.sizes(WORK)
    if not remote:
        assert not (root / WORK).exists()
    assert already_there(store, dataclasses.replace(DRAFT, tools={"pillow": "2"})) == manifest
    assert capsys.readouterr().out == (
        f"{store.address} is already there: 2 train images of 3 classes, 8 px, in 1 shard\n" * 2
    )
    with pytest.raises(GratisError) as caught:
        already_there(store, dataclasses.replace(DRAFT, seed=1, quality=90))
    assert str(caught.value) == (
        f"{store.address} is another dataset: quality 95 there and 90 asked for, seed 0 there and "
        "1 asked for; remove it, or choose another OUT"
    )
    (root / WORK).mkdir(exist_ok=True)
    store.write("manifest.json", manifest.to_json()[:-10])
    with pytest.raises(GratisError, match=f"^{store.address}/manifest.json is not a manifest"):
        already_there(store)
