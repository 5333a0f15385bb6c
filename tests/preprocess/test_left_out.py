"""What of a source is lost, and what is passed over: messages, counts and --max-rejects; and names
that harm nobody. The same for folders, tars, and both on a server."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
from PIL import Image as Pillow

from gratis import dataset
from gratis.errors import GratisError
from gratis.preprocess.index import IndexConfig, index_tars
from gratis.preprocess.merge import MergeConfig, merge_tasks
from gratis.preprocess.shards import ShardsConfig, make_shards
from gratis.preprocess.sources.listing import is_hidden
from gratis.preprocess.sources.open import open_source
from gratis.preprocess.sources.source import Source, SourceOptions
from gratis.preprocess.verify import VerifyConfig, verify_dataset

Place = Callable[[Path], str]


def jpeg(size: int = 16) -> bytes:
    file = io.BytesIO()
    Pillow.new("RGB", (size, size), "teal").save(file, "JPEG")
    return file.getvalue()


def files(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(jpeg())
    return root


def tar(path: Path, *names: str) -> None:
    """Labels are 0, all else is an image's bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name in names:
            data = b"0" if name.lower().endswith(".cls") else jpeg()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


@pytest.fixture(params=["here", "memory"])
def place(request: pytest.FixtureRequest) -> Place:
    """Makes the folder a source: as it is, or as a URL."""
    if request.param == "here":
        return str

    def upload(root: Path) -> str:
        address = f"memory://{root}"
        fsspec.filesystem("memory").put(f"{root}/", f"{root}/", recursive=True)
        return address

    return upload


def listed(source: Source) -> dict[str, list[str]]:
    """Names by split."""
    return {
        split: [listing.item(row).name for row in range(len(listing))]
        for split, listing in source.splits.items()
    }


@pytest.mark.parametrize(
    ("name", "hidden"),
    [
        ("._a.jpg", True),
        ("x/._a.jpg", True),
        ("__MACOSX/x/a.jpg", True),
        (".DS_Store", True),
        ("x/.cache/a.jpg", True),
        ("./.a", True),
        ("..a", True),
        ("./a.jpg", False),
        ("../a.jpg", False),
        ("x/../a.jpg", False),
        ("__MACOSX.jpg", False),
        ("a/_b.jpg", False),
        ("a.b", False),
        ("", False),
    ],
)
def test_hidden_names(name: str, hidden: bool) -> None:
    assert is_hidden(name) == hidden


def test_splits_of_tars(tmp_path: Path, place: Place) -> None:
    src = tmp_path / "test-val"  # SRC's own name says nothing
    tar(src / "imagenet1k-train-0000.tar", "a.jpg", "a.cls")
    tar(src / "imagenet1k-Validation-00.tar", "b.jpg", "b.cls")
    tar(src / "imagenet1k_test.tar", "c.jpg")
    tar(src / "._imagenet1k-train-0000.tar")
    source = open_source(place(src))
    assert listed(source) == {"train": ["a.jpg"], "val": ["b.jpg"]}
    assert len(source.notes) == 1
    assert source.notes[0].startswith("test: not read, 1 tar ")
    assert source.notes[0].endswith("_test.tar; --val-from test makes it the validation split")


def test_splits_of_folders(tmp_path: Path, place: Place) -> None:
    src = files(
        tmp_path, "ILSVRC_train/c/1.jpg", "Dev01/c/2.jpg", "TEST/3.jpg", "labels/x.jpg", ".x/y.jpg"
    )
    address = place(src)
    source = open_source(address)
    assert listed(source) == {"train": ["1.jpg"], "val": ["2.jpg"]}
    assert source.notes[0] == f"not read, as no split's folders: labels/ in {address}"
    assert source.notes[1].startswith(f"test: not read, {address}/TEST;")


def test_splits_of_folders_of_tars(tmp_path: Path, place: Place) -> None:
    tar(tmp_path / "training" / "00.tar", "a.jpg", "a.cls")
    tar(tmp_path / "valid" / "valid-00.TAR", "b.jpg", "b.cls")
    tar(tmp_path / "extra" / "00.tar", "c.jpg", "c.cls")
    source = open_source(place(tmp_path))
    assert listed(source) == {"train": ["a.jpg"], "val": ["b.jpg"]}
    assert "extra/" in source.notes[0]
    tar(tmp_path / "training" / "test-00.tar", "d.jpg", "d.cls")
    with pytest.raises(GratisError, match=r"test-00\.tar names another split than its folder, tra"):
        open_source(place(tmp_path))


def test_the_test_split_is_validated_on_if_asked(tmp_path: Path, place: Place) -> None:
    options = SourceOptions(val_from="test")
    for split in ("train", "val", "test"):
        files(tmp_path / "f", f"{split}/c/{split}.jpg")
        tar(tmp_path / "t" / f"{split}-0.tar", f"{split}.jpg", f"{split}.cls")
    for kind in "ft":
        source = open_source(place(tmp_path / kind), options)
        assert listed(source) == {"train": ["train.jpg"], "val": ["test.jpg"]}
        assert source.notes[0].startswith("val: not read, ")
        assert "--val-from" not in source.notes[0]
    tar(tmp_path / "n" / "train-0.tar", "a.jpg", "a.cls")
    with pytest.raises(GratisError, match=r"--val-from test: .*n has no split test; leave it out"):
        open_source(place(tmp_path / "n"), options)


def test_a_source_without_a_training_split_is_refused(tmp_path: Path, place: Place) -> None:
    for split in ("validation", "test"):
        tar(tmp_path / f"{split}-0.tar", "a.jpg", "a.cls")
    with pytest.raises(GratisError, match="holds the split val and test alone; put the training s"):
        open_source(place(tmp_path))


def test_what_lies_beside_is_named(tmp_path: Path, place: Place) -> None:
    """Tars beside class folders, class folders beside tars, a class that was not unpacked; and
    folders that only sound like a split's."""
    src = files(tmp_path / "f", "train/c/1.jpg", "train_test_split/x.txt")
    tar(src / "val.tar", "a.jpg")
    tar(src / "train" / "d.tar", "a.jpg")
    source = open_source(place(src))
    assert source.notes[0].startswith("not read, as no split's folders: train_test_split/ in")
    assert source.notes[1].startswith("not read, beside class folders: val.tar in ")
    assert source.skipped[0].endswith("f/train: 'd.tar': it is in no class folder")
    src = files(tmp_path / "t", "val/c/1.jpg", "training_logs/today/x.txt")
    tar(src / "00000.tar", "a.jpg", "a.cls")
    source = open_source(place(src))
    assert listed(source) == {"train": ["a.jpg"]}
    assert "not read, as they hold no tars: " in source.notes[0]
    assert "t/training_logs, " in source.notes[0]
    assert source.notes[0].endswith("t/val")


def test_two_folders_of_a_split(tmp_path: Path) -> None:
    files(tmp_path, "train/c/1.jpg", "val_a/c/2.jpg", "val_b/c/3.jpg")
    with pytest.raises(GratisError, match="two folders of the split val, 'val_a' and 'val_b'; ca"):
        open_source(str(tmp_path))
    source = open_source(str(files(tmp_path, "val/c/4.jpg")))
    assert listed(source)["val"] == ["4.jpg"]
    assert "not read, as no split's folders: val_a/, val_b/ in" in source.notes[0]


def test_hidden_files_are_passed_over_and_counted(tmp_path: Path, place: Place) -> None:
    names = ["._a.cls", "a.cls", "._a.jpg", "__MACOSX/._a.jpg", "a.jpg", ".DS_Store"]
    tar(tmp_path / "t" / "train-0.tar", *names)
    source = open_source(place(tmp_path / "t"))
    assert listed(source) == {"train": ["a.jpg"]}
    assert source.skipped == ()
    assert len(source.notes) == 1
    assert source.notes[0].startswith("passed over hidden files: 4, the first in ")
    assert source.notes[0].endswith("/t/train-0.tar: ._a.cls")
    src = files(tmp_path / "f", "train/c/1.jpg", "train/c/._1.jpg", "train/c/.DS_Store")
    files(src, "train/.DS_Store", "train/__MACOSX/c/1.jpg", "train/c/.cache/2.jpg")
    source = open_source(place(src))
    assert listed(source) == {"train": ["1.jpg"]}
    assert source.skipped == ()
    assert "hidden files: 5, the first" in source.notes[0]


def test_what_is_no_image_is_counted_and_what_is_lost_is_named(
    tmp_path: Path, place: Place
) -> None:
    src = files(tmp_path / "f", "train/c/1.jpg", "train/c/2.HEIC", "train/3.png", "train/c/s/4.jpg")
    files(src, "train/c/notes.txt", "train/c/Thumbs.db", "train/list.txt")
    source = open_source(place(src))
    assert listed(source) == {"train": ["1.jpg"]}
    assert [line.partition(": ")[2] for line in source.skipped] == [
        "'3.png': it is in no class folder",
        "'2.HEIC': images of its kind are not read; convert it",
        "'s': it is not a file",
    ]
    assert "files without an image's name: 3, the first in" in source.notes[0]
    tar(tmp_path / "t" / "0.tar", "a.jpg", "a.cls", "b.avif", "c.cls", "d.json", "d.txt")
    source = open_source(place(tmp_path / "t"))
    assert [line.partition(": ")[2] for line in source.skipped] == [
        "'b.avif': images of its kind are not read; convert it",
        "'c.cls': its sample has a label and no image",
    ]
    assert "samples without an image: 1, the first in" in source.notes[0]


def test_a_compressed_tar_is_lost(tmp_path: Path) -> None:
    tar(tmp_path / "train-0.tar", "a.jpg", "a.cls")
    (tmp_path / "train-1.tar.gz").write_bytes(b"x")
    assert open_source(str(tmp_path)).skipped == (
        f"skipped {tmp_path}: 'train-1.tar.gz': it is compressed; decompress it to a .tar",
    )


@pytest.mark.parametrize("name", ["a.PGM", "a.jfif", "a.jpe", "a.Jpeg", "a.pbm", "a.pnm"])
def test_endings_of_images(tmp_path: Path, place: Place, name: str) -> None:
    tar(tmp_path / "t" / "0.tar", name, "a.cls")
    assert listed(open_source(place(tmp_path / "t"))) == {"train": [name]}
    assert listed(open_source(place(files(tmp_path / "f", f"train/c/{name}")))) == {"train": [name]}


def test_a_map_beside_an_image_is_none(tmp_path: Path) -> None:
    tar(tmp_path / "0.tar", "a.pgm", "a.jpg", "a.cls", "b.PNM", "b.cls")
    assert listed(open_source(str(tmp_path))) == {"train": ["a.jpg", "b.PNM"]}
    tar(tmp_path / "1.tar", "a.pgm", "a.pbm", "a.cls")
    with pytest.raises(GratisError, match=r"'a' has 2 images, a\.pbm and a\.pgm"):
        open_source(str(tmp_path))


def test_long_keys_end_in_a_hash(tmp_path: Path, place: Place) -> None:
    """In any place of SRC alike, and those of different paths differ."""
    label, stem = "k" * 60, "u" * 36
    one = files(tmp_path / "1", f"train/{label}/{stem}.jpg", f"train/{label}/{stem}2.jpg")
    train = open_source(place(one)).splits["train"]
    keys = [train.item(row).key for row in range(2)]
    assert len(set(keys)) == 2
    assert all(len(key) == 90 and key[:73] == f"{label}_{'u' * 12}" for key in keys)
    other = files(tmp_path / "2", f"train/{label}/{stem}.jpg")
    assert open_source(str(other)).splits["train"].item(0).key == keys[0]
    tar(
        tmp_path / "t" / "0.tar", *(f"{'v' * 120}{k}.{end}" for k in "12" for end in ("jpg", "cls"))
    )
    source = open_source(place(tmp_path / "t"))
    keys = [source.splits["train"].item(row).key for row in range(2)]
    assert len(set(keys)) == 2
    assert all(len(key) == 90 for key in keys)
    before = source.fingerprint
    (tmp_path / "t" / "0.tar").rename(tmp_path / "t" / "1.tar")
    assert open_source(str(tmp_path / "t")).fingerprint != before


ODD = ["at 1.00\u202fPM", "a\nb", "\u200b", "\x07", "e\u0301"]


@pytest.mark.starts
@pytest.mark.parametrize("kind", ["folder", "tar"])
def test_unprintable_names_harm_nobody(tmp_path: Path, kind: str) -> None:
    src, out = tmp_path / "src", tmp_path / "out"
    if kind == "tar":
        names = [name.replace(".", ",") for name in ODD]
        tar(src / "0.tar", *(f"{name}.{end}" for name in names for end in ("jpg", "cls")))
    else:
        files(src, *(f"train/k/{name}.jpg" for name in ODD))
    make_shards(ShardsConfig(src=str(src), out=str(out), size=16, workers=1))
    assert dataset.read_manifest(out).splits["train"].samples == len(ODD)
    if kind == "tar":
        index_tars(IndexConfig(tars=str(src), workers=1))
        verify_dataset(VerifyConfig(shards=str(src)))


@pytest.mark.starts
def test_unprintable_names_are_escaped_where_they_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    src = files(tmp_path / "s\u2028rc", "train/k/a.jpg", "train/k/b\n.heic", "odd\rfolder/x.jpg")
    out = str(tmp_path / "o")
    with pytest.raises(GratisError, match=r"1 file is skipped .*'b\\n\.heic'"):
        make_shards(ShardsConfig(src=str(src), out=out, size=16, workers=1))
    said = capsys.readouterr()
    text = said.out + said.err
    assert r"s\u2028rc" in text
    assert r"odd\rfolder/" in text
    assert all(line.isprintable() for line in text.split("\n"))


@pytest.mark.starts
def test_what_is_lost_counts_towards_max_rejects(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"train/c/{k:02d}.heic" for k in range(12)]
    src, out = files(tmp_path / "src", "train/c/a.jpg", "train/c/.hidden", *names), tmp_path / "o"
    (src / "train/c/broken.jpg").write_bytes(b"no image")

    def config(**more: object) -> ShardsConfig:
        return ShardsConfig(src=str(src), out=str(out), size=16, workers=1, **more)  # type: ignore[arg-type]

    with pytest.raises(
        GratisError, match=r"12 files are skipped .*run again with --max-rejects 12"
    ):
        make_shards(config(max_rejects=11))
    assert not out.exists()
    said = capsys.readouterr().err.splitlines()
    assert sum(".heic" in line or ".hidden" in line for line in said) == 10
    assert "skipped 3 more" in said
    with pytest.raises(GratisError, match="--max-rejects 13, with 12 that the listing skipped"):
        make_shards(config(max_rejects=12))
    make_shards(config(max_rejects=12, task_id=0, num_tasks=2))
    with pytest.raises(GratisError, match="--max-rejects 13, with 12 that the listing skipped"):
        merge_tasks(MergeConfig(out=str(out), max_rejects=12))
    assert make_shards(config(max_rejects=13))
    assert make_shards(config())  # it is there already


@pytest.mark.starts
def test_index_passes_over_an_empty_tar_and_counts_what_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tar(tmp_path / "00000.tar", "a.jpg", "a.cls")
    for number, names in enumerate(([], [".hidden.jpg"], ["x.txt"]), 1):
        tar(tmp_path / f"{number:05d}.tar", *names)
    tar(tmp_path / "00009.tar", "b.JPG", "b.CLS", "c.cls")
    with pytest.raises(
        GratisError, match=r"1 file is skipped .*'c\.cls': its sample has a label an"
    ):
        index_tars(IndexConfig(tars=str(tmp_path), workers=1))
    assert not (tmp_path / ".work").exists()
    manifest = index_tars(IndexConfig(tars=str(tmp_path), workers=1, max_rejects=1))
    said = capsys.readouterr()
    assert said.err.count("it holds no images") == 2 * 3
    assert f"train: 2 images in 2 tars, the first {tmp_path}/00000.tar\n" in said.out
    assert [shard.name for shard in manifest.splits["train"].shards] == ["00000.tar", "00009.tar"]
    verify_dataset(VerifyConfig(shards=str(tmp_path)))


@pytest.mark.starts
def test_index_takes_test_for_validation_if_asked(tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        tar(tmp_path / f"{split}.tar", f"{split}.jpg", f"{split}.cls")
    for number, val_from in enumerate(("val", "test")):
        out = tmp_path / f"o{number}"
        index_tars(IndexConfig(tars=str(tmp_path), out=str(out), val_from=val_from, workers=1))  # type: ignore[arg-type]
        assert os.readlink(out / "val-00000.tar") == f"../{val_from}.tar"
