"""The index command from its options to the published files, its tasks run in this process."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from handmade import encode, picture
from odd_images import arithmetic
from PIL import Image

from gratis import dataset
from gratis.dataset import MOST_ASPECT, Manifest
from gratis.errors import GratisError
from gratis.preprocess.execution.workers import TaskProgress
from gratis.preprocess.index import IndexConfig, IndexTask, index_tars
from gratis.preprocess.output.store import WORK

Sides = tuple[int, int]  # height, width
SQUARE: Sides = (16, 16)


def jpeg(number: int, sides: Sides = SQUARE) -> bytes:
    data: bytes = encode(picture(number, *sides), "jpeg")
    return data


def samples(first: int, *sides: Sides) -> list[tuple[str, bytes]]:
    """Of as many images from this number on, whose label is the number."""
    return [
        part
        for k, side in enumerate(sides, first)
        for part in ((f"k{k}.jpg", jpeg(k, side)), (f"k{k}.cls", b"%d" % k))
    ]


def archive(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


class Here:
    """Runs tasks in this process. excluded: the images that crash a decoder, by position."""

    def __init__(self, *excluded: int) -> None:
        self.excluded = excluded
        self.workers = 0
        self.tasks: list[IndexTask] = []
        self.done = TaskProgress()

    def __call__(self, tasks: Iterable[IndexTask], workers: int) -> Iterator[TaskProgress]:
        self.workers = workers
        for given in tasks:
            made: list[TaskProgress] = []
            self.tasks.append(given)
            task = dataclasses.replace(given, excluded=dict.fromkeys(self.excluded, "crashed"))
            task.make(lambda at: None, lambda *new, to=made: to.append(TaskProgress(*new)))
            for new in made:
                self.done = self.done.plus(new)
            yield from made


def index(root: Path, **options: object) -> Manifest:
    return index_tars(IndexConfig(tars=str(root), **options), Here())  # type: ignore[arg-type]


def check(root: Path, split: str, tars: dict[str, Path], left_out: tuple[str, ...] = ()) -> None:
    """Manifest, index and DALI's index of a split against what tarfile reads; tars: by shard."""
    manifest = dataset.read_manifest(root)
    found = manifest.splits[split]
    columns = dataset.read_index(root, split, found.index_sha256)
    assert [shard.name for shard in found.shards] == [f"{name}.tar" for name in tars]
    rows = []
    for number, (name, path) in enumerate(tars.items()):
        assert (root / f"{name}.tar").resolve() == path.resolve()
        data, lines = path.read_bytes(), []
        with tarfile.open(path) as tar:
            members = tar.getmembers()
        for image, label in zip(members[::2], members[1::2], strict=True):
            if image.name in left_out:
                continue
            parts = (
                f"{one.name[-3:]} {one.offset_data} {one.size} {one.name}" for one in (image, label)
            )
            lines.append(" ".join(parts))
            known = int(data[label.offset_data :][: label.size])
            rows.append((number, image.offset_data, image.size, known))
        idx = (root / f"{name}.idx").read_text()
        assert idx == "\n".join([f"v1.2 {len(lines)}", *lines, ""])
        shard = found.shards[number]
        assert (shard.samples, shard.bytes) == (len(lines), len(data))
        assert shard.sha256 == hashlib.sha256(data).hexdigest()
    table = [columns.shard, columns.offset, columns.size, columns.label]
    assert [*zip(*(np.asarray(column).tolist() for column in table), strict=True)] == rows


def test_tars_stay_where_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    two = archive(tmp_path / "t" / "0.tar", samples(0, SQUARE, SQUARE))
    three = archive(tmp_path / "t" / "1.tar", samples(1, SQUARE, SQUARE, SQUARE))
    val = archive(tmp_path / "t" / "val-0.tar", samples(3, SQUARE))
    root, before = two.parent, [path.read_bytes() for path in (two, three, val)]
    run = Here()
    manifest = index_tars(IndexConfig(tars=str(root), workers=2), run)
    total = sum(len(jpeg(k)) for k in (0, 1, 1, 2, 3, 3))
    assert run.done == TaskProgress(images=6, bytes_in=total)
    assert run.workers == 2
    assert [path.read_bytes() for path in (two, three, val)] == before
    assert [path.is_symlink() for path in (two, three, val)] == [False] * 3
    check(root, "train", {"0": two, "1": three})
    check(root, "val", {"val-0": val})
    told = [manifest.format, manifest.image_size, manifest.shape, manifest.codec, manifest.seed]
    assert told == [2, 16, "square", "jpeg", 0]
    assert (manifest.quality, manifest.samples_per_shard) == (None, 3)
    assert [(one.wnid, one.words) for one in manifest.classes] == [
        (f"00000{k}",) * 2 for k in (0, 1, 2, 3)
    ]
    decoded = [np.asarray(Image.open(io.BytesIO(jpeg(k))), np.float64) for k in (0, 1, 1, 2, 3)]
    stats = dataset.read_stats(root)
    assert stats.num_images == 5
    np.testing.assert_allclose(stats.mean, np.mean(decoded, axis=0), atol=1e-4)
    assert not (root / WORK).exists()
    line = "5 train and 1 val images of 4 classes, 16 px, in 3 shards"
    assert capsys.readouterr().out.endswith(f"\n{root}: {line}\n")
    assert index_tars(IndexConfig(tars=str(root)), run) == manifest
    again = f"{root} is a dataset already: {line}; remove manifest.json to index its tars again\n"
    assert capsys.readouterr().out == again
    assert len(run.tasks) == 3


def test_more_workers_than_tars_are_not_started(tmp_path: Path) -> None:
    run = Here()
    archive(tmp_path / "0.tar", samples(0, SQUARE))
    index_tars(IndexConfig(tars=str(tmp_path), workers=9), run)
    assert run.workers == 1
    (task,) = run.tasks
    assert (task.tolerant, task.size, task.codec, task.root) == (False, 16, "jpeg", str(tmp_path))


def test_apart_from_the_tars_there_are_links(tmp_path: Path) -> None:
    """In folders by split, of any name; what an earlier index has left of others goes."""
    tars, out = tmp_path / "t", tmp_path / "o"
    first = archive(tars / "train" / "b c.tar", samples(0, SQUARE, SQUARE))
    second = archive(tars / "train" / "d.tar", samples(2, SQUARE))
    val = archive(tars / "val" / "e.tar", samples(0, SQUARE))
    index(tars, out=str(out))
    check(out, "train", {"train-00000": first, "train-00001": second})
    check(out, "val", {"val-00000": val})
    links = {path.name: os.readlink(path) for path in out.glob("*.tar")}
    assert links["train-00001.tar"] == "../t/train/d.tar"
    assert sorted(path.name for path in tars.rglob("*")) == [
        "b c.tar",
        "d.tar",
        "e.tar",
        "train",
        "val",
    ]
    (out / dataset.MANIFEST).unlink()
    (out / "notes").touch()
    first.unlink()
    val.unlink()
    val.parent.rmdir()
    index(tars, out=str(out))
    check(out, "train", {"train-00000": second})
    assert sorted(path.name for path in out.iterdir()) == [
        *("manifest.json", "notes", "rejects.jsonl", "stats.npz"),
        *("train-00000.idx", "train-00000.tar", "train.index.npz"),
    ]


def test_images_of_several_sizes_are_whole(tmp_path: Path) -> None:
    """The shorter sides are 16, 17, 20 and 30: the upper one of the middle is the dataset's."""
    tar = archive(tmp_path / "0.tar", samples(0, (16, 16), (20, 24), (40, 30), (17, 19)))
    manifest = index(tmp_path)
    check(tmp_path, "train", {"0": tar})
    assert (manifest.shape, manifest.image_size, manifest.max_aspect) == ("whole", 20, None)
    columns = dataset.read_index(tmp_path, "train")
    assert columns.height is not None
    assert columns.width is not None
    assert columns.height.tolist() == [16, 20, 40, 17]
    assert columns.width.tolist() == [16, 24, 30, 19]
    assert len(dataset.read_stats(tmp_path).mean) == 0


@pytest.mark.parametrize("sides", [(16, 20), (20, 16)])
def test_of_one_size_and_not_square_they_are_whole_too(tmp_path: Path, sides: Sides) -> None:
    archive(tmp_path / "0.tar", samples(0, sides, sides))
    assert index(tmp_path).shape == "whole"


def test_pixmaps_are_a_codec_of_their_own(tmp_path: Path) -> None:
    files = [("a.ppm", encode(picture(0, 16), "raw")), ("a.cls", b"0")]
    tar = archive(tmp_path / "0.tar", files)
    manifest = index(tmp_path)
    assert (manifest.codec, manifest.shape, manifest.image_size) == ("raw", "square", 16)
    check(tmp_path, "train", {"0": tar})


def test_labels_are_read_or_not(tmp_path: Path) -> None:
    for name in ("0.tar", "test-0.tar"):
        archive(tmp_path / name, samples(0, SQUARE))
    manifest = index(tmp_path, unlabelled=True, val_from="test")
    assert manifest.classes == ()
    assert [*manifest.splits] == ["train", "val"]
    for split in manifest.splits:
        assert dataset.read_index(tmp_path, split).label.tolist() == [-1]


BROKEN = jpeg(7)[:200]
LONG = jpeg(8, (8, 8 * MOST_ASPECT + 1))
PNG = io.BytesIO()
Image.new("RGB", (16, 16)).save(PNG, "PNG")
CMYK = io.BytesIO()
Image.new("CMYK", (16, 16)).save(CMYK, "JPEG")


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("data", "kind"), [(BROKEN, "truncated"), (LONG, "too-long")], ids=["torn", "long"]
)
def test_what_no_training_takes_is_left_out_on_request(
    tmp_path: Path, data: bytes, kind: str, first: bool
) -> None:
    """Also where it is the first of all."""
    bad, good = [("x.jpg", data), ("x.cls", b"1")], samples(0, SQUARE, SQUARE)
    tar = archive(tmp_path / "0.tar", bad + good if first else good + bad)
    names = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(GratisError, match=rf"\(1 {kind}\): train/x\.jpg"):
        index(tmp_path)
    assert not (tmp_path / dataset.MANIFEST).exists()
    manifest = index(tmp_path, max_rejects=1)
    check(tmp_path, "train", {"0": tar}, left_out=("x.jpg",))
    assert manifest.splits["train"].rejects == {kind: 1}
    assert (manifest.shape, manifest.image_size) == ("square", 16)
    assert manifest == dataset.read_manifest(tmp_path)
    (row,) = map(json.loads, (tmp_path / dataset.REJECTS).read_text().splitlines())
    assert (row["split"], row["key"], row["file"], row["kind"]) == ("train", "x", "x.jpg", kind)
    assert names == ["0.tar"]


@pytest.mark.parametrize("first", [SQUARE, (24, 24), (16, 20)])
def test_a_first_image_that_crashes_a_decoder_sets_no_size(tmp_path: Path, first: Sides) -> None:
    """All others are square, of 16 pixels; statistics are of each place where the first was too."""
    archive(tmp_path / "0.tar", samples(0, first, SQUARE, SQUARE))
    manifest = index_tars(IndexConfig(tars=str(tmp_path), max_rejects=1), Here(0))
    assert manifest == dataset.read_manifest(tmp_path)
    assert (manifest.shape, manifest.image_size) == ("square" if first == SQUARE else "whole", 16)
    assert len(dataset.read_stats(tmp_path).mean) == (16 if first == SQUARE else 0)
    widths = dataset.read_index(tmp_path, "train").width
    assert (None if widths is None else widths.tolist()) == (None if first == SQUARE else [16, 16])


def test_a_key_may_be_there_twice(tmp_path: Path) -> None:
    """None is written; two images of one name in a tar are two."""
    tar = archive(tmp_path / "0.tar", [*samples(0, SQUARE, SQUARE), *samples(0, SQUARE)])
    index(tmp_path)
    check(tmp_path, "train", {"0": tar})


@pytest.mark.parametrize("first", [True, False])
def test_a_jpeg_that_pillow_alone_decodes_is_none(tmp_path: Path, first: bool) -> None:
    odd, good = [("x.jpg", arithmetic(jpeg(1))), ("x.cls", b"1")], samples(0, SQUARE)
    archive(tmp_path / "0.tar", odd + good if first else good + odd)
    if first:
        said = (
            rf"'x\.jpg' is a JPEG that Pillow decodes and .* gratis shards --src {tmp_path} makes"
        )
        refused(tmp_path, said, max_rejects=1)
        return
    manifest = index(tmp_path, max_rejects=1)
    assert manifest.splits["train"].rejects == {"undecodable": 1}
    assert f"gratis shards --src {tmp_path} writes it" in (tmp_path / dataset.REJECTS).read_text()


def test_a_pixmap_of_another_program_is_named(tmp_path: Path) -> None:
    good = encode(picture(0, 16), "raw")
    other = good.replace(b"P6\n16 16\n", b"P6 16 16 ")
    files = [("a.ppm", good), ("a.cls", b"0"), ("b.ppm", other), ("b.cls", b"0")]
    archive(tmp_path / "0.tar", files)
    refused(tmp_path, r"0\.tar: 'b\.ppm' is no PPM as this project writes it, .*makes them so$")


def test_as_long_as_may_be_is_not_too_long(tmp_path: Path) -> None:
    archive(tmp_path / "0.tar", samples(0, SQUARE, (8, 8 * MOST_ASPECT)))
    assert index(tmp_path).splits["train"].samples == 2


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize(
    ("name", "data", "what"),
    [("x.png", PNG.getvalue(), "16 x 16 RGB PNG"), ("x.jpg", CMYK.getvalue(), "16 x 16 CMYK JPEG")],
    ids=["png", "cmyk"],
)
def test_images_of_another_kind_are_sent_to_the_shards_command(
    tmp_path: Path, at: int, name: str, data: bytes, what: str
) -> None:
    files = samples(0, SQUARE)
    files[2 * at : 2 * at] = [(name, data), ("x.cls", b"1")]
    archive(tmp_path / "0.tar", files)
    if not at:
        what = what.replace("RGB ", "") if name == "x.png" else what
    way_out = f"where the loader needs RGB or greyscale JPEGs: gratis shards --src {tmp_path} makes"
    with pytest.raises(GratisError, match=rf"0\.tar: '{name}' is {what}, .*{way_out} them so"):
        index(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["0.tar"]
    if at:
        manifest = index(tmp_path, max_rejects=1)
        assert manifest.splits["train"].rejects == {"unsupported": 1}


@pytest.mark.parametrize("apart", [False, True])
def test_a_tar_of_which_nothing_can_be_used_ends_it(tmp_path: Path, apart: bool) -> None:
    root, out = tmp_path / "t", tmp_path / "o"
    archive(root / "0.tar", samples(0, SQUARE))
    bad = archive(root / "1.tar", [("x.jpg", BROKEN), ("x.cls", b"1")])
    with pytest.raises(GratisError, match=rf"^{bad} holds no image that can be used; move it"):
        index(root, max_rejects=9, **({"out": str(out)} if apart else {}))
    assert sorted(path.name for path in root.glob("*.tar")) == ["0.tar", "1.tar"]
    assert not ((out if apart else root) / dataset.MANIFEST).exists()


def test_where_no_image_can_be_read_the_first_one_is_named(tmp_path: Path) -> None:
    archive(
        tmp_path / "0.tar", [("x.jpg", BROKEN), ("x.cls", b"1"), ("y.jpg", b"no"), ("y.cls", b"0")]
    )
    said = f"{tmp_path} holds no image of the train split that can be read; {tmp_path}/0.tar:x.jpg "
    with pytest.raises(GratisError, match=f"^{said}is the first: "):
        index(tmp_path, max_rejects=9)


def refused(root: Path, message: str, **options: object) -> None:
    before = sorted((path.name, path.is_symlink()) for path in root.rglob("*"))
    with pytest.raises(GratisError, match=message):
        index(root, **options)
    assert sorted((path.name, path.is_symlink()) for path in root.rglob("*")) == before


def test_what_is_no_folder_of_tars_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "x", rf"^no such folder: {tmp_path}/x; give the one that holds the tars")
    refused(tmp_path, rf"^{tmp_path} holds no tars; give the folder that does")
    with pytest.raises(GratisError, match="index reads local folders, not s3://b/x"):
        index_tars(IndexConfig(tars="s3://b/x"), Here())
    archive(tmp_path / "0.tar", samples(0, SQUARE))
    with pytest.raises(GratisError, match="index reads local folders, not s3://b/o"):
        index_tars(IndexConfig(tars=str(tmp_path), out="s3://b/o"), Here())
    (tmp_path / WORK).mkdir()
    (tmp_path / WORK / "plan.json").touch()
    refused(tmp_path, rf"^{tmp_path} holds unfinished work of the shards command; finish")


@pytest.mark.parametrize("name", ["train/0.tar", "a b.tar"])
def test_tars_that_no_loader_could_name_need_another_folder(tmp_path: Path, name: str) -> None:
    archive(tmp_path / name, samples(0, SQUARE))
    refused(tmp_path, rf"{name} cannot stay where it is: give --out, a folder for the dataset with")


def test_files_of_others_are_not_written_over(tmp_path: Path) -> None:
    """Beside the tars an .idx; apart from them a tar, which no index writes."""
    root, out = tmp_path / "t", tmp_path / "o"
    archive(root / "0.tar", samples(0, SQUARE))
    (root / "0.idx").write_text("somebody else's")
    refused(root, rf"^{root} holds 0\.idx: no unfinished run")
    archive(out / "train-00000.tar", samples(5, SQUARE))
    refused(root, rf"^{out} holds train-00000\.tar: no unfinished run", out=str(out))
    assert (root / "0.idx").read_text() == "somebody else's"
    assert [path.name for path in out.iterdir()] == ["train-00000.tar"]
    assert not (out / "train-00000.tar").is_symlink()
