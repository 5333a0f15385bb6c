"""What is listed, under which key and label, and one clear line for every source that contradicts
itself."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from gratis.errors import GratisError
from gratis.preprocess.output.store import WORK
from gratis.preprocess.shards import ShardsConfig, make_shards
from gratis.preprocess.sources.imagenet import DEVKIT, META, TRAIN, TRUTH, VAL
from gratis.preprocess.sources.listing import make_key
from gratis.preprocess.sources.open import open_source
from gratis.preprocess.sources.reader import ImageReader
from gratis.preprocess.stages.estimate import estimate
from gratis.preprocess.stages.shard import ShardTask


def jpeg(level: int = 100) -> bytes:
    file = io.BytesIO()
    Pillow.new("RGB", (20, 16), (level, level, level)).save(file, "JPEG")
    return file.getvalue()


def folders(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(jpeg())
    return root


def tar(
    files: list[tuple[str | tarfile.TarInfo, bytes]], kind: int = tarfile.USTAR_FORMAT
) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as archive:
        for name, data in files:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def with_archive(source: Path, root: Path, name: str, content: bytes) -> Path:
    """A copy of a source, one of its archives replaced."""
    shutil.copytree(source, root)
    (root / name).write_bytes(content)
    return root


@pytest.mark.parametrize(
    ("name", "wnid", "key"),
    [
        ("n01440764_10026.JPEG", "n01440764", "n01440764_10026"),
        ("cat 1.jpg", "cats", "cats_cat_1"),
        ("a.b.png", "x", "x_a_b"),
        ("ILSVRC2012_val_00000001.JPEG", None, "ILSVRC2012_val_00000001"),
        ("folder/é.jpg", "c", "c__"),
    ],
)
def test_keys(name: str, wnid: str | None, key: str) -> None:
    assert make_key(name, wnid) == key


def test_labels_against_an_independent_reading(sample_source: Path) -> None:  # trap 16
    """Ids are not in wnid order, and labels are: read by tarfile and SciPy here, by our own code
    there."""
    from scipy.io import loadmat  # half a second, for this test alone

    with tarfile.open(sample_source / DEVKIT) as kit:
        files = {name: kit.extractfile(name) for name in (META, TRUTH)}
        meta, truth = (file.read() for file in files.values() if file)
    wnid_of = {
        int(r["ILSVRC2012_ID"].item()): str(r["WNID"].item())
        for r in loadmat(io.BytesIO(meta))["synsets"][:, 0]
    }
    leaves = sorted(wnid for wnid in wnid_of.values() if wnid != "n00000000")
    source = open_source(str(sample_source))
    assert [c.wnid for c in source.classes] == leaves
    assert [c.ilsvrc_id for c in source.classes] != sorted(c.ilsvrc_id or 0 for c in source.classes)
    assert all(wnid_of[c.ilsvrc_id or 0] == c.wnid for c in source.classes)
    val, reader = source.splits["val"], ImageReader()
    assert [leaves[label] for label in val.label] == [wnid_of[int(line)] for line in truth.split()]
    with tarfile.open(sample_source / VAL) as archive:
        for row in (0, 77, 199):
            item = val.item(row)
            member = archive.extractfile(item.name)
            assert member
            assert reader.read(item) == member.read()
            assert item.key == f"ILSVRC2012_val_{row + 1:08d}"


def test_train_members_lie_where_listed(sample_source: Path) -> None:
    source = open_source(str(sample_source))
    train = source.splits["train"]
    with tarfile.open(sample_source / TRAIN) as outer:
        for row in (0, 555, 999):
            item = train.item(row)
            with tarfile.open(
                fileobj=outer.extractfile(f"{source.classes[item.label].wnid}.tar")
            ) as inner:
                member = inner.extractfile(item.name)
                assert member
                assert ImageReader().read(item) == member.read()


def test_tiny100_labels(tiny100: Path) -> None:  # trap 16
    source = open_source(str(tiny100))
    assert {split: len(listing) for split, listing in source.splits.items()} == {
        "train": 50_000,
        "val": 5_000,
    }
    for row in (0, 12_345, 49_999):
        item = source.splits["train"].item(row)
        assert item.name.startswith(source.classes[item.label].wnid + "_")
    assert (np.bincount(source.splits["val"].label) == 50).all()
    # read off the kit by hand: meta.mat's first row is (1, n04099969, rocking chair)
    assert [c.wnid for c in source.classes if c.ilsvrc_id == 1] == ["n04099969"]


def test_class_folders(tmp_path: Path) -> None:
    source = open_source(
        str(
            folders(
                tmp_path, "train/b/b_1.jpg", "train/a/1.jpg", "train/a/.hidden.jpg", "val/b/x.png"
            )
        )
    )
    assert [c.wnid for c in source.classes] == ["a", "b"]
    train, val = source.splits["train"], source.splits["val"]
    assert [train.item(k).key for k in range(len(train))] == ["a_1", "b_1"]
    assert val.label.tolist() == [1]
    assert ImageReader().read(train.item(0)) == jpeg()


def test_a_link_to_itself_is_skipped_with_a_line(tmp_path: Path) -> None:
    folder = tmp_path / "train" / "cat"
    folder.mkdir(parents=True)
    (folder / "1.jpg").write_bytes(b"1")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    source = open_source(str(tmp_path))
    assert len(source.splits["train"]) == 1
    assert source.skipped == (f"skipped {folder}: 'loop.jpg': it is not a file",)


def test_fingerprint_follows_names_sizes_and_classes(tmp_path: Path) -> None:
    root = folders(tmp_path, "train/a/1.jpg", "train/b/2.jpg")
    seen = {open_source(str(root)).fingerprint}
    assert open_source(str(root)).fingerprint in seen
    (root / "train/a/1.jpg").write_bytes(jpeg() + b"more")
    seen.add(open_source(str(root)).fingerprint)
    (root / "train/a/1.jpg").rename(root / "train/a/3.jpg")
    seen.add(open_source(str(root)).fingerprint)
    (root / "train/b").rename(root / "train/c")
    seen.add(open_source(str(root)).fingerprint)
    assert len(seen) == 4


def refusal(root: Path) -> str:
    with pytest.raises(GratisError) as caught:
        open_source(str(root))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_refuses_bad_folders(tmp_path: Path) -> None:
    assert "no such folder" in refusal(tmp_path / "nothing")
    assert "neither" in refusal(tmp_path)
    (tmp_path / "train").mkdir()
    assert "no class folders" in refusal(tmp_path)
    folders(tmp_path, "train/a/1.jpg")
    (tmp_path / "train/empty").mkdir()
    assert "train/empty holds no images" in refusal(tmp_path)
    (tmp_path / "train/empty").rmdir()
    folders(tmp_path, "val/z/1.jpg")
    assert "val/z has no counterpart" in refusal(tmp_path)


def test_says_what_lies_there_instead(tmp_path: Path) -> None:
    folders(tmp_path / "deep", "train/animals/cat/1.jpg", "train/animals/dog/1.jpg")
    line = refusal(tmp_path / "deep")
    assert "train/animals holds no images but cat/, dog/; class folders lie directly in" in line
    folders(tmp_path / "flat", "n01/1.jpg", "n02/1.jpg", "n03/1.jpg", "n04/1.jpg")
    assert "WebDataset tars but n01/, n02/, n03/ and 1 more; give the folder" in refusal(
        tmp_path / "flat"
    )
    folders(tmp_path / "texts", "train/a/1.jpg")
    (tmp_path / "texts/train/b").mkdir()
    (tmp_path / "texts/train/b/notes.txt").write_text("none")
    assert "train/b holds no images but notes.txt; fill" in refusal(tmp_path / "texts")


@pytest.mark.parametrize(
    ("there", "message"),
    [
        ([], "val has no class folders, nor anything else; sort the images"),
        (
            ["1.jpg", "2.jpg"],
            "val has no class folders but 1.jpg, 2.jpg; sort the images into class folders as "
            "train's, or "
            f"rename it to go without (the labels of the official images are in {DEVKIT}",
        ),
        (["notes.txt"], "val has no class folders but notes.txt; "),
    ],
)
def test_a_validation_split_without_classes_stops_before_a_shard(
    tmp_path: Path, there: list[str], message: str
) -> None:
    src, out = (
        folders(tmp_path / "src", "train/a/1.jpg", *(f"val/{name}" for name in there)),
        tmp_path / "out",
    )
    (src / "val").mkdir(exist_ok=True)
    with pytest.raises(GratisError, match=re.escape(message)):
        make_shards(ShardsConfig(src=str(src), out=str(out), size=16, workers=1))
    assert not out.exists()


def test_a_limit_that_empties_a_split_is_one_message(tmp_path: Path) -> None:
    source = open_source(
        str(folders(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "train/c/1.jpg", "val/b/1.jpg"))
    )
    with pytest.raises(
        GratisError,
        match=r"--limit-classes 1 leaves no image of the split val; with 2 there is one",
    ):
        source.limited(1, None)
    assert len(source.limited(2, None).splits["val"]) == 1


def test_images_beside_class_folders_are_skipped_with_a_line(tmp_path: Path) -> None:
    source = open_source(
        str(folders(tmp_path, "train/a/1.jpg", "train/x.jpg", "train/y.png", "val/a/2.jpg"))
    )
    train = tmp_path / "train"
    assert source.skipped == (
        f"skipped {train}: 'x.jpg': it is in no class folder",
        f"skipped {train}: 'y.png': it is in no class folder",
    )
    assert len(source.splits["train"]) == 1


@pytest.mark.parametrize("split", ["train", "val"])
def test_tars_without_images_are_an_error(tmp_path: Path, split: str) -> None:
    for name in ("train", "val"):
        image = [] if name == split else [("1.jpg", jpeg())]
        (tmp_path / f"{name}.tar").write_bytes(tar([*image, ("1.cls", b"0")]))
    assert f"the tars of the split {split} hold no images; fill or remove them" in refusal(tmp_path)


def descriptors() -> set[str]:
    """Archives that this process holds open."""
    links = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
    return {
        f"{link} {os.readlink(link)}"
        for link in links
        if os.path.lexists(link) and ".tar" in os.readlink(link)
    }


def test_of_many_tars_some_are_open_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for k in range(9):
        (tmp_path / f"{k}.tar").write_bytes(tar([(f"{k}.jpg", jpeg(k)), (f"{k}.cls", b"0")]))
    train = open_source(str(tmp_path)).splits["train"]
    monkeypatch.setattr("gratis.preprocess.sources.reader.max_open_files", lambda wanted: 3)
    before = descriptors()
    for _ in range(2):
        with ImageReader() as reader:
            for row in [*range(9), 8, 0, 4]:
                assert reader.read(train.item(row)) == jpeg(row)
            assert len(descriptors() - before) == 3
        assert descriptors() == before


def test_a_shard_leaves_no_archive_open(tmp_path: Path) -> None:
    """As one worker makes many."""
    (tmp_path / "x.tar").write_bytes(tar([("1.jpg", jpeg()), ("1.cls", b"0")]))
    items = (open_source(str(tmp_path)).splits["train"].item(0),)
    task = ShardTask(
        out=str(tmp_path / "o"),
        split="train",
        number=0,
        items=items,
        size=16,
        codec="jpeg",
        quality=90,
    )
    (tmp_path / "o" / WORK).mkdir(parents=True)
    before = descriptors()
    task.make(lambda position: None, lambda *counts: None)
    estimate(1, task)
    assert descriptors() == before


def test_a_pipe_among_tars_is_an_error_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.tar")
    assert f"{tmp_path / 'x.tar'} is a pipe, no file; remove it" in refusal(tmp_path)


def test_a_class_folder_in_no_encoding_is_one_message(tmp_path: Path) -> None:
    folders(tmp_path, "train/a/1.jpg", "train/\udce9t\udce9/1.jpg")
    assert r"train holds a class folder named '\udce9t\udce9': no UTF-8; rename it" in refusal(
        tmp_path
    )


@pytest.mark.parametrize("out", ["src", "src/shards", "src/../src/train/x", "link"])
def test_refuses_to_write_into_the_source(tmp_path: Path, out: str) -> None:
    src = folders(tmp_path / "src", "train/a/1.jpg")
    (tmp_path / "link").symlink_to(src)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(GratisError, match=r"lies in SRC .*; choose an OUT outside of it"):
        make_shards(ShardsConfig(src=str(src), out=str(tmp_path / out), size=16))
    assert sorted(tmp_path.rglob("*")) == before


def keys(root: Path) -> dict[str, str]:
    """By place in the source."""
    train = open_source(str(root)).splits["train"]
    return {
        os.path.relpath(item.source, root): item.key for item in map(train.item, range(len(train)))
    }


@pytest.mark.parametrize(
    "paths",
    [
        # 1/12 and 12/... begin alike
        [f"train/{label}/{name}.jpg" for label in range(12) for name in range(12)],
        ["train/n1/n10_1.jpg", "train/n10/n10_1.jpg", "train/n10/1.jpg"],
        ["train/a/x.jpg", "train/a/x.png", "train/a/photo (1).jpg", "train/a/photo [1].jpg"],
        [f"train/動物/{name}.jpg" for name in "猫犬鳥"],
        [f"train/a/{'x' * 87}{name}.jpg" for name in "猫犬鳥"],
    ],
)
def test_files_of_different_paths_have_different_keys(tmp_path: Path, paths: list[str]) -> None:
    """Only those that would share one are changed, all of them, and not by SRC's place nor by files
    that share none."""
    by_file = keys(folders(tmp_path / "one", *paths))
    assert len(set(by_file.values())) == len(paths)
    plain = [make_key(Path(path).name, Path(path).parent.name) for path in by_file]
    for key, by_name in zip(by_file.values(), plain, strict=True):
        assert key == by_name if plain.count(by_name) == 1 else key.startswith(by_name[:73] + "_")
        assert len(key) <= 90
    assert keys(folders(tmp_path / "other", *reversed(paths))) == by_file
    with_more = keys(folders(tmp_path / "other", "train/zz/more.jpg"))
    assert with_more == by_file | {"train/zz/more.jpg": "zz_more"}


def test_tars_may_share_names_and_have_folders(tmp_path: Path) -> None:
    """Each numbers its samples from 0; the keys and the fingerprint follow the tars' names where
    those decide them."""
    for name in ("00000", "00001"):
        members = [
            (f"{folder}/{k}.{kind}", jpeg() if kind == "jpg" else b"1")
            for folder in "ab"
            for k in range(2)
            for kind in ("jpg", "cls")
        ]
        (tmp_path / f"{name}.tar").write_bytes(
            tar([*members, (f"only{name}.jpg", jpeg()), (f"only{name}.cls", b"0")])
        )
    by_file, before = keys(tmp_path), open_source(str(tmp_path)).fingerprint
    assert len(set(by_file.values())) == 10
    assert by_file["00000.tar:only00000.jpg"] == "only00000"
    assert re.fullmatch("1_[0-9a-f]{16}", by_file["00001.tar:b/1.jpg"])
    (tmp_path / "00001.tar").rename(tmp_path / "00002.tar")
    assert open_source(str(tmp_path)).fingerprint != before


@pytest.mark.parametrize("name", [TRAIN, VAL, DEVKIT])
def test_refuses_a_missing_or_damaged_archive(
    sample_source: Path, tmp_path: Path, name: str
) -> None:
    root = with_archive(
        sample_source, tmp_path / "s", name, (sample_source / name).read_bytes()[:-30_000]
    )
    assert refusal(root).startswith(f"{root}/{name} is ")
    (root / name).unlink()
    assert f"lacks {name}" in refusal(root)


@pytest.mark.parametrize(
    ("name", "member", "last"),
    [
        (VAL, "ILSVRC2012_val_00000002.JPEG", "ILSVRC2012_val_00000001.JPEG"),
        (TRAIN, "n00000002.tar", "n00000001.tar"),
        (TRAIN, "n00000002_1.JPEG", "n00000002_0.JPEG"),  # in a tar in the tar
    ],
)
def test_a_flipped_bit_in_an_official_archive_is_refused_where_it_is(
    sample_source: Path, tmp_path: Path, name: str, member: str, last: str
) -> None:
    data = bytearray((sample_source / name).read_bytes())
    place = data.index(member.encode() + bytes(1))
    data[place] ^= 2
    line = refusal(with_archive(sample_source, tmp_path / "s", name, bytes(data)))
    within = ":n00000002.tar" if member == "n00000002_1.JPEG" else ""
    assert f"{name}{within} is damaged as a tar at byte {place}: " in line
    assert f"the last good member is '{last}'" in line


@pytest.mark.parametrize("packed", [True, False])
def test_a_flipped_bit_in_the_devkit_is_refused_where_it_is(
    sample_source: Path, tmp_path: Path, packed: bool
) -> None:
    data = bytearray(gzip.decompress((sample_source / DEVKIT).read_bytes()))
    place = data.index(TRUTH.encode())
    data[place] ^= 2
    kit = gzip.compress(bytes(data)) if packed else bytes(data)
    line = refusal(with_archive(sample_source, tmp_path / "s", DEVKIT, kit))
    assert f"{DEVKIT} is damaged as a tar at byte {place}: " in line
    assert f"the last good member is '{META}'" in line


def test_a_class_tar_without_an_end_is_refused(sample_source: Path, tmp_path: Path) -> None:
    """As one that was cut before it went into the archive."""
    with tarfile.open(sample_source / TRAIN) as outer:
        contents: list[tuple[str | tarfile.TarInfo, bytes]] = [
            (m.name, f.read()) for m in outer if (f := outer.extractfile(m))
        ]
    inner = contents[3][1]
    end = -(-len(inner.rstrip(b"\0")) // 512) * 512
    contents[3] = (contents[3][0], inner[:end])
    line = refusal(with_archive(sample_source, tmp_path / "s", TRAIN, tar(contents)))
    assert "n00000004.tar is damaged as a tar at byte " in line
    assert "it is cut short: two blocks of zeros should end it" in line


def test_refuses_ground_truth_of_another_length(sample_source: Path, tmp_path: Path) -> None:
    with tarfile.open(sample_source / DEVKIT) as kit:
        files = {name: kit.extractfile(name) for name in (META, TRUTH)}
        meta, truth = (file.read() for file in files.values() if file)
    short = tar([(META, meta), (TRUTH, truth[:-2])])
    line = refusal(with_archive(sample_source, tmp_path / "s", DEVKIT, short))
    assert "200 images" in line
    assert "199 lines" in line


def hostile(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def sparse(name: str) -> tarfile.TarInfo:
    """A file of 1 GB by its header and one block of data, in the PAX form of GNU tar."""
    info = tarfile.TarInfo(name)
    info.pax_headers = {
        "GNU.sparse.size": str(1 << 30),
        "GNU.sparse.numblocks": "1",
        "GNU.sparse.map": "0,512",
    }
    return info


def test_hostile_members_are_skipped_with_a_line(sample_source: Path, tmp_path: Path) -> None:
    with tarfile.open(sample_source / TRAIN) as outer:
        inner = {m.name: outer.extractfile(m) for m in outer}
        contents: list[tuple[str | tarfile.TarInfo, bytes]] = [
            (n, f.read()) for n, f in inner.items() if f
        ]
    with tarfile.open(fileobj=io.BytesIO(contents[0][1])) as first:
        good = [(m.name, first.extractfile(m)) for m in first]
        files: list[tuple[str | tarfile.TarInfo, bytes]] = [
            (name, f.read()) for name, f in good if f
        ]
    bad: list[tuple[str | tarfile.TarInfo, bytes]] = [
        ("/etc/passwd.jpg", b"x"),
        ("../../up.jpg", b"x"),
        ("../" + "x" * 10_000 + "\n.jpg", b"x"),
        ("/new\nline.jpg", b"x"),
        ("deep.tar", tar([("deeper.jpg", b"x")])),
        (hostile("link.jpg", tarfile.SYMTYPE, "/etc/passwd"), b""),
        (hostile("hard.jpg", tarfile.LNKTYPE, "nothing.jpg"), b""),
        (hostile("device.jpg", tarfile.CHRTYPE), b""),
        (hostile("folder.jpg", tarfile.DIRTYPE), b""),
        (hostile("fifo.jpg", tarfile.FIFOTYPE), b""),
        (sparse("sparse.jpg"), b"x" * 512),
    ]
    contents[0] = (contents[0][0], tar(files[:50] + bad + files[50:], tarfile.PAX_FORMAT))
    root = with_archive(sample_source, tmp_path / "s", TRAIN, tar(contents))
    source = open_source(str(root))
    assert len(source.splits["train"]) == 1000
    # neither a folder nor a tar is an image that could be lost
    assert len(source.skipped) == len(bad) - 2
    assert "files without an image's name: 1" in source.notes[0]
    assert all("\n" not in line and len(line) < 1000 for line in source.skipped)
    rows = [source.splits["train"].item(row) for row in (0, 49, 50, 99)]
    assert [ImageReader().read(item) for item in rows] == [files[k][1] for k in (0, 49, 50, 99)]


def test_refuses_an_archive_that_holds_a_class_twice(sample_source: Path, tmp_path: Path) -> None:
    with tarfile.open(sample_source / TRAIN) as outer:
        contents: list[tuple[str | tarfile.TarInfo, bytes]] = [
            (m.name, f.read()) for m in outer if (f := outer.extractfile(m))
        ]
    line = refusal(
        with_archive(sample_source, tmp_path / "s", TRAIN, tar([*contents, contents[3]]))
    )
    assert f"{contents[3][0]} twice" in line


def test_refuses_a_key_twice_in_one_archive(sample_source: Path, tmp_path: Path) -> None:
    with tarfile.open(sample_source / VAL) as outer:
        contents: list[tuple[str | tarfile.TarInfo, bytes]] = [
            (m.name, f.read()) for m in outer if (f := outer.extractfile(m))
        ]
    contents[7] = contents[6]
    assert "share the key" in refusal(
        with_archive(sample_source, tmp_path / "s", VAL, tar(contents))
    )


def names_in(path: Path) -> list[str]:
    with tarfile.open(path) as archive:
        return archive.getnames()


def test_nothing_is_written_outside_of_out(sample_source: Path, tmp_path: Path) -> None:
    """A whole run over an archive with names that point elsewhere: they cost a line each, and
    nothing else appears."""
    evil = tmp_path / "evil.jpg"
    with tarfile.open(sample_source / TRAIN) as outer:
        contents: list[tuple[str | tarfile.TarInfo, bytes]] = [
            (m.name, f.read()) for m in outer if (f := outer.extractfile(m))
        ]
    with tarfile.open(fileobj=io.BytesIO(contents[1][1])) as inner:
        files: list[tuple[str | tarfile.TarInfo, bytes]] = [
            (m.name, f.read()) for m in inner if (f := inner.extractfile(m))
        ]
    contents[1] = (contents[1][0], tar([("../evil.jpg", jpeg()), (str(evil), jpeg()), *files]))
    root = with_archive(sample_source, tmp_path / "s", TRAIN, tar(contents))
    make_shards(
        ShardsConfig(
            src=str(root),
            out=str(tmp_path / "o"),
            size=16,
            limit_per_class=3,
            workers=1,
            max_rejects=2,
        )
    )
    assert {path.name for path in tmp_path.iterdir()} == {"s", "o"}
    names = [name for path in (tmp_path / "o").glob("*.tar") for name in names_in(path)]
    assert len(names) == 2 * 60
    assert all("/" not in name and "evil" not in name for name in names)


def test_refuses_a_member_larger_than_its_tar(sample_source: Path, tmp_path: Path) -> None:
    data = bytearray((sample_source / VAL).read_bytes())
    data[124:136] = b"00077777777\0"
    data[148:156] = b"%06o\0 " % (sum(data[:148]) + sum(data[156:512]) + 8 * 32)
    assert "cut short" in refusal(with_archive(sample_source, tmp_path / "s", VAL, bytes(data)))


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Root may read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("closed", [".", "train", "train/b"])
def test_a_folder_that_may_not_be_read_is_one_message(closed: str) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are closed to other users
        os.chmod(folder, 0o755)
        src = Path(folder) / "src"
        for label in ("a", "b"):
            (src / "train" / label).mkdir(parents=True)
            (src / "train" / label / "1.jpg").write_bytes(b"1")
        open_source(str(src))
        (src / closed).chmod(0)
        with unprivileged(), pytest.raises(GratisError) as caught:
            open_source(str(src))
        (src / closed).chmod(0o755)
    assert str(caught.value) == f"cannot read {src / closed}: Permission denied; {MEND}"


MEND = "mend that, or its permissions, or give another SRC"
