"""What is made of a listed source: its fingerprint, a part of it, what is said of it; and its
bytes, from folders and archives here and at a URL."""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pytest
from handmade import encode, picture, write_dataset

from gratis import dataset
from gratis.dataset import ImageClass
from gratis.errors import GratisError
from gratis.preprocess.sources.listing import Item, ListingBuilder
from gratis.preprocess.sources.open import open_source
from gratis.preprocess.sources.range_file import RangeFile
from gratis.preprocess.sources.reader import ARCHIVES, ImageReader, stamps_of
from gratis.preprocess.sources.rows import row_groups, row_offset
from gratis.preprocess.sources.source import Source

CLASSES = tuple(ImageClass(wnid=w, words=f"a {w}", ilsvrc_id=None) for w in ("a", "b", "c"))
WNIDS = ("a", "b", "c")


def source(train: str = "abcabcab", val: str = "bc", **more: object) -> Source:
    """Images by their classes, in tars of three."""
    splits = {}
    for split, images in {"train": train, "val": val}.items():
        builder = ListingBuilder(WNIDS, official=True)
        for k, wnid in enumerate(images):
            if k % 3 == 0:
                builder.containers.append(f"{split}-{k // 3}.tar")
            builder.add(f"{split}{k}.jpg", 512 * (k + 1), 100 + k, WNIDS.index(wnid))
        splits[split] = builder.build()
    return Source(classes=CLASSES, splits=splits, skipped=(), **more)  # type: ignore[arg-type]


def names(part: Source, split: str = "train") -> list[str]:
    listing = part.splits[split]
    return [listing.item(row).name for row in range(len(listing))]


def test_a_part_has_the_first_of_each_class() -> None:
    """Of a, b, c, a, b, c, a, b."""
    whole = source()
    assert whole.limited(None, None) is whole
    part = whole.limited(2, None)
    assert part.classes == CLASSES[:2]
    assert names(part) == [f"train{k}.jpg" for k in (0, 1, 3, 4, 6, 7)]
    assert names(part, "val") == ["val0.jpg"]
    part = whole.limited(None, 2)
    assert part.classes == CLASSES
    assert names(part) == [f"train{k}.jpg" for k in (0, 1, 2, 3, 4, 5)]
    part = whole.limited(2, 1)
    assert names(part) == ["train0.jpg", "train1.jpg"]
    kept, there = part.splits["train"].item(1), whole.splits["train"].item(1)
    assert kept == there
    part = source("ccbbaa").limited(None, 1)
    assert names(part) == ["train0.jpg", "train2.jpg", "train4.jpg"]
    with pytest.raises(GratisError) as caught:
        whole.limited(1, None)
    assert str(caught.value) == (
        "--limit-classes 1 leaves no image of the split val; with 2 there is one; or take val out "
        "of SRC"
    )


def test_without_labels_there_are_no_classes() -> None:
    bare = source().without_labels()
    assert (bare.classes, bare.splits["train"].label.tolist()) == ((), [-1] * 8)
    assert [bare.splits["val"].item(k).key for k in range(2)] == ["val0", "val1"]


def renamed(part: Source) -> Source:
    return dataclasses.replace(
        part, splits={"train": part.splits["val"], "val": part.splits["val"]}
    )


def test_another_source_has_another_fingerprint() -> None:
    """Where the images lie does not count, nor how they are cut into archives."""
    one = source()
    words = dataclasses.replace(CLASSES[0], words="another")
    number = dataclasses.replace(CLASSES[0], ilsvrc_id=3)
    listing = one.splits["train"]
    others = [
        source("abcabcaa"),
        source("abcabca"),
        source(val="cb"),
        one.without_labels(),
        renamed(one),
        dataclasses.replace(one, splits={"train": listing}),
        dataclasses.replace(one, classes=(words, *CLASSES[1:])),
        dataclasses.replace(one, classes=(number, *CLASSES[1:])),
        dataclasses.replace(
            one, splits=one.splits | {"train": dataclasses.replace(listing, size=listing.size + 1)}
        ),
        dataclasses.replace(
            one,
            splits=one.splits
            | {"train": dataclasses.replace(listing, names=listing.names.replace(b"0", b"9"))},
        ),
        dataclasses.replace(
            one,
            splits=one.splits
            | {"train": dataclasses.replace(listing, hashed=np.ones(8, np.bool_))},
        ),
    ]
    found = [each.fingerprint for each in (one, *others)]
    assert len(set(found)) == len(found)
    moved = dataclasses.replace(listing, offset=listing.offset + 1, containers=("x",) * 3)
    same = dataclasses.replace(one, splits={"val": one.splits["val"], "train": moved})
    assert same.fingerprint == one.fingerprint
    assert len(one.fingerprint) == 64


def test_what_is_said_of_a_source(capsys: pytest.CaptureFixture[str]) -> None:
    """At most ten examples, notes and what is lost together, but one of what is lost at least."""
    lost = tuple(f"skipped {k}" for k in range(12))
    dataclasses.replace(source(val="c"), skipped=lost, notes=("a note", "x\ny")).report()
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "train: 8 images in 3 tars, the first train-0.tar",
        "val: 1 image in 1 tar, val-0.tar",
    ]
    assert err.splitlines() == ["a note", "x\\ny", *lost[:8], "skipped 4 more"]
    dataclasses.replace(source(), skipped=lost[:2], notes=("n",) * 11).report()
    assert capsys.readouterr().err.splitlines() == ["n"] * 11 + ["skipped 0", "skipped 1 more"]
    dataclasses.replace(source(), skipped=lost[:10]).report()
    assert capsys.readouterr().err.splitlines() == [*lost[:10]]


@pytest.mark.parametrize(
    ("container", "offset", "kind"),
    [("a", -1, "folder"), ("a.tar", 0, "tar"), ("a.parquet", -2, "table"), ("a.arrow", 9, "table")],
)
def test_what_images_lie_in(
    container: str, offset: int, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    builder = ListingBuilder((), official=True)
    builder.containers.append(container)
    builder.add("a.jpg", offset, 1, -1)
    Source(classes=(), splits={"train": builder.build()}, skipped=()).report()
    assert capsys.readouterr().out == f"train: 1 image in 1 {kind}, {container}\n"


def test_more_lost_than_may_be_is_an_error() -> None:
    one = dataclasses.replace(source(), skipped=("skipped a.tar: 'x': y",))
    one.refuse_lost(1)
    with pytest.raises(GratisError) as caught:
        one.refuse_lost(0)
    assert str(caught.value) == (
        "1 file is skipped (a.tar: 'x': y); mend what is named above, or run again with "
        "--max-rejects 1"
    )
    many = dataclasses.replace(source(), skipped=("skipped a",) * 1200)
    with pytest.raises(
        GratisError, match=r"^1,200 files are skipped \(a\); .* --max-rejects 1200$"
    ):
        many.refuse_lost(1199)


def test_of_files_that_are_read_alone_each_is_a_group() -> None:
    """Beside rows of row groups: three files, two rows of one group and one of another."""
    builder = ListingBuilder((), official=True)
    builder.containers += ["f", "a.parquet", "b.parquet", "c.tar"]
    rows = [(0, -1), (1, row_offset(0, 0)), (0, -1), (1, row_offset(0, 1)), (3, 512)]
    rows.append((2, row_offset(0, 0)))
    for k, (_, offset) in enumerate(rows):
        builder.add(f"{k}.jpg", offset, 1, -1)
    container = np.array([container for container, _ in rows], np.int32)
    listing = dataclasses.replace(builder.build(), container=container)
    groups = row_groups(listing)
    assert groups is not None
    assert groups[1] == groups[3]
    assert len(set(groups.tolist())) == 5
    alone = dataclasses.replace(listing, offset=np.full(6, -1, np.int64))
    assert row_groups(alone) is None


def test_bytes_are_those_that_were_listed(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    here = str(tmp_path)
    with ImageReader() as reader:
        assert reader.read(Item(here, "a", -1, 10, 0, "k")) == b"0123456789"
        assert reader.read(Item(f"{here}/a", "x", 3, 4, 0, "k")) == b"3456"
        assert reader.read(Item(here, "a", -1, -1, 0, "k")) == b"0123456789"  # no size is known
        for item, place, there in (
            (Item(here, "a", -1, 9, 0, "k"), f"{here}/a", "10 bytes, 9 were listed"),
            (Item(f"{here}/a", "x", 8, 4, 0, "k"), f"{here}/a:x", "2 bytes, 4 were listed"),
            (Item(here, "a", -1, 0, 0, "k"), f"{here}/a", "10 bytes, 0 were listed"),
        ):
            with pytest.raises(GratisError) as caught:
                reader.read(item)
            said = f"{place} changed while it was read: it has {there}; what is finished stays:"
            assert str(caught.value).startswith(said)
        with pytest.raises(FileNotFoundError):
            reader.read(Item(here, "b", -1, 1, 0, "k"))


def test_bytes_at_a_url(tmp_path: Path) -> None:
    files, place = fsspec.filesystem("memory"), f"/bytes{tmp_path}"
    files.pipe_file(f"{place}/a", b"0123456789")
    url = f"memory:/{place}"
    with ImageReader() as reader:
        assert reader.read(Item(url, "a", -1, 10, 0, "k")) == b"0123456789"
        assert reader.read(Item(url, "a", -1, 0, 0, "k")) == b"0123456789"  # as web servers list it
        assert reader.read(Item(f"{url}/a", "x", 3, 4, 0, "k")) == b"3456"
        with pytest.raises(GratisError, match="it has 10 bytes, 9 were listed"):
            reader.read(Item(url, "a", -1, 9, 0, "k"))
        with pytest.raises(GratisError, match="2 bytes came, 4 were asked for; it has changed"):
            reader.read(Item(f"{url}/a", "x", 8, 4, 0, "k"))
    assert stamps_of([url, f"{url}/a"]) == {}


def open_files(folder: Path) -> int:
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        try:
            count += os.readlink(link).startswith(str(folder))
        except FileNotFoundError:  # of the listing itself
            continue
    return count


def test_of_many_archives_the_last_stay_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gratis.preprocess.sources.reader.ARCHIVES", 3)
    items = []
    for k in range(5):
        (tmp_path / f"{k}.tar").write_bytes(b"%d" % k * 4)
        items.append(Item(str(tmp_path / f"{k}.tar"), "x", 1, 2, 0, "k"))
    assert ARCHIVES == 1024
    with ImageReader() as reader:
        for k, item in enumerate([*items, *items, items[4]]):
            assert reader.read(item) == b"%d" % min(k % 5 if k < 10 else 4, 4) * 2
            assert open_files(tmp_path) == min(k + 1, 3)
    assert open_files(tmp_path) == 0


def touched(path: Path) -> None:
    os.utime(path, (1, 1))


def longer(path: Path) -> None:
    status = path.stat()
    path.write_bytes(b"12345")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("change", [touched, longer, Path.unlink])
def test_an_archive_that_is_another_now_is_told(
    tmp_path: Path, change: Callable[[Path], object]
) -> None:
    """Unless the block ends by an error of its own."""
    archive, other = tmp_path / "a.tar", tmp_path / "b.tar"
    for path in (archive, other):
        path.write_bytes(b"1234")
    stamps = stamps_of([str(archive), str(other), str(tmp_path), str(tmp_path / "nowhere")])
    assert [*stamps] == [str(archive), str(other)]
    with ImageReader(stamps):
        pass
    change(archive)
    with (
        pytest.raises(
            GratisError, match=rf"^{archive} changed while it was read: its size or time"
        ),
        ImageReader(stamps),
    ):
        pass
    with pytest.raises(KeyError), ImageReader(stamps):
        raise KeyError


@pytest.mark.parametrize("remote", [False, True])
def test_a_file_at_an_address_reads_as_any_other(tmp_path: Path, remote: bool) -> None:
    """Held against io.BytesIO, by every way to seek and sizes around the file's end."""
    data, path = bytes(range(100)), str(tmp_path / "a")
    if remote:
        path = f"memory://range{tmp_path}/a"
        fsspec.filesystem("memory").pipe_file(f"/range{tmp_path}/a", data)
    else:
        Path(path).write_bytes(data)
    known, rng = io.BytesIO(data), np.random.default_rng(0)
    with RangeFile(path) as ours:
        assert (ours.readable(), ours.seekable(), ours.writable()) == (True, True, False)
        for size in (0, 1, None, -1, 5, 95, 100, 101):
            for offset, whence in ((0, 0), (7, 0), (3, 1), (0, 1), (-5, 2), (0, 2), (4, 2)):
                assert ours.seek(offset, whence) == known.seek(offset, whence)
                assert ours.read(size) == known.read(size)
                assert ours.tell() == known.tell()
        for number in rng.integers(0, 30, 30).tolist():
            if ours.tell() == 100:
                assert ours.seek(0) == known.seek(0)
            assert ours.read(number) == known.read(number)
            assert ours.tell() == known.tell()
    assert ours.closed
    ours.close()


def test_a_dataset_of_ours_is_a_source(tmp_path: Path) -> None:
    """By its manifest alone, so that no folder need be listed; here and at a URL."""
    root = write_dataset(tmp_path / "d", [picture(k, 16) for k in range(9)], per_shard=4)
    (root / "other.tar").write_bytes(b"not named")
    place = f"/ours{tmp_path}"
    for path in root.iterdir():
        fsspec.filesystem("memory").pipe_file(f"{place}/{path.name}", path.read_bytes())
    for src in (str(root), f"memory:/{place}"):
        found = open_source(src)
        assert [*found.splits] == ["train"]
        listing = found.splits["train"]
        assert listing.containers == tuple(f"{src}/train-0000{k}.tar" for k in range(3))
        assert listing.label.tolist() == [k % 7 for k in range(9)]
        assert [entry.words for entry in found.classes] == [f"class {k}" for k in range(7)]
        assert (found.skipped, found.notes) == ((), ())
        with ImageReader() as reader:
            assert reader.read(listing.item(8)) == encode(picture(8, 16), "jpeg")
    drop_a_class(root)
    with pytest.raises(
        GratisError, match=rf"{root} holds label 6, its manifest 6 classes; copy it"
    ):
        open_source(str(root))


def drop_a_class(root: Path) -> None:
    manifest = dataset.read_manifest(root)
    fewer = dataclasses.replace(manifest, classes=manifest.classes[:-1])
    (root / dataset.MANIFEST).write_bytes(fewer.to_json())
