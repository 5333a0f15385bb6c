"""The official ILSVRC2012 archives, made by hand with tarfile: three classes, whose numbers in the
devkit are not in the order of their wnids."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from gratis.dataset import ImageClass
from gratis.errors import GratisError
from gratis.preprocess.sources.imagenet import DEVKIT, META, TRAIN, TRUTH, VAL, check_md5
from gratis.preprocess.sources.matlab import Cell, write_struct
from gratis.preprocess.sources.open import open_source
from gratis.preprocess.sources.reader import ImageReader
from gratis.preprocess.sources.source import DEFAULT, Source, SourceOptions

Files = Iterable[tuple[str, bytes]]
FIELDS = ("WNID", "words", "ILSVRC2012_ID", "num_train_images", "num_children")
# by the devkit's number: 1 is the last wnid; the fourth is no leaf
SYNSETS = [
    ("n00000003", "carp", 1, 2, 0),
    ("n00000001", "tench, Tinca", 2, 1, 0),
    ("n00000002", "shark", 3, 1, 0),
    ("n00000000", "fish", 4, 0, 3),
]
LABELS = {"n00000001": 0, "n00000002": 1, "n00000003": 2}
# in the order in which the archive has them
PICTURES = {
    "n00000002": ["n00000002_8"],
    "n00000003": ["n00000003_5", "n00000003_1"],
    "n00000001": ["n00000001_4"],
}
TRUTHS = [2, 3, 3, 1]  # of the validation images by their names


def picture(name: str) -> bytes:
    return f"the picture {name}".encode() * 40


def tar(files: Files) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def class_tars(pictures: dict[str, list[str]]) -> list[tuple[str, bytes]]:
    return [
        (f"{wnid}.tar", tar((f"{name}.JPEG", picture(name)) for name in names))
        for wnid, names in pictures.items()
    ]


def val_name(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}.JPEG"


def write(
    root: Path,
    *,
    synsets: list[tuple[str, str, int, int, int]] = SYNSETS,
    train: Files = (),
    val: Iterable[int] = (3, 1, 4, 2),
    truths: list[int] = TRUTHS,
) -> Path:
    root.mkdir()
    rows: list[dict[str, Cell]] = [dict(zip(FIELDS, row, strict=True)) for row in synsets]
    truth = "".join(f"{number}\n" for number in truths).encode()
    kit = tar([(META, write_struct("synsets", rows)), (TRUTH, truth)])
    (root / DEVKIT).write_bytes(kit)  # somebody has unpacked it: of the packed one test_val_labels
    (root / TRAIN).write_bytes(tar(train or class_tars(PICTURES)))
    files = [(val_name(k), picture(val_name(k))) for k in val]
    (root / VAL).write_bytes(tar([("._x.JPEG", b""), *files]))
    return root


def read(source: Source, split: str) -> dict[str, tuple[str, int]]:
    """By image name, its key and label; that its bytes are those of its name is looked at here."""
    listing, found = source.splits[split], {}
    with ImageReader() as reader:
        for item in map(listing.item, range(len(listing))):
            stem = item.name.removesuffix(".JPEG")
            assert reader.read(item) == picture(stem if split == "train" else item.name)
            found[item.name] = (item.key, item.label)
    assert len(found) == len(listing)
    return found


def test_every_image_is_listed_with_its_label(tmp_path: Path) -> None:
    root = write(tmp_path / "s")
    source = open_source(str(root))
    assert source.classes == (
        ImageClass(wnid="n00000001", words="tench, Tinca", ilsvrc_id=2),
        ImageClass(wnid="n00000002", words="shark", ilsvrc_id=3),
        ImageClass(wnid="n00000003", words="carp", ilsvrc_id=1),
    )
    assert read(source, "train") == {
        f"{name}.JPEG": (name, LABELS[wnid]) for wnid, names in PICTURES.items() for name in names
    }
    assert read(source, "val") == {
        val_name(k): (f"ILSVRC2012_val_{k:08d}", label) for k, label in enumerate([0, 1, 1, 2], 1)
    }
    assert source.splits["train"].containers == (str(root / TRAIN),)
    assert source.splits["val"].containers == (str(root / VAL),)
    assert (source.skipped, source.notes) == ((), ())
    bare = open_source(str(root), SourceOptions(unlabelled=True))
    assert bare.classes == ()
    assert {label for _, label in read(bare, "train").values()} == {-1}
    assert {label for _, label in read(bare, "val").values()} == {-1}


def test_what_is_lost_of_the_archives_is_named(tmp_path: Path) -> None:
    other = [("n00000009.tar", tar([])), ("n00000001.txt", b""), ("notes", b"1")]
    root = write(tmp_path / "s", train=[*class_tars(PICTURES), *other])
    source = open_source(str(root))
    assert source.skipped == tuple(
        f"skipped {root}/{TRAIN}: {name!r}: it is no class of the devkit" for name, _ in other
    )
    assert len(source.splits["train"]) == 4


def refusal(root: Path, options: SourceOptions = DEFAULT) -> str:
    with pytest.raises(GratisError) as caught:
        open_source(str(root), options)
    return str(caught.value)


@pytest.mark.parametrize("name", [TRAIN, VAL, DEVKIT])
def test_none_of_the_three_may_be_missing(tmp_path: Path, name: str) -> None:
    root = write(tmp_path / "s")
    (root / name).unlink()
    assert refusal(root) == f"{root} lacks {name}; put it beside the other archives"


def test_the_test_split_has_no_labels(tmp_path: Path) -> None:
    said = "--val-from test: the labels of the official test images are not public"
    assert refusal(write(tmp_path / "s"), SourceOptions(val_from="test")) == said


MORE = {**PICTURES, "n00000003": ["n00000003_5"]}
FEWER = {wnid: names for wnid, names in PICTURES.items() if wnid != "n00000002"}
TWICE = class_tars(PICTURES) + class_tars({"n00000001": ["n00000001_4"]})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": class_tars(FEWER)}, "{train} lacks n00000002.tar, a class of {kit}; get the"),
        (
            {"train": class_tars(MORE)},
            "{train}: n00000003.tar has 1 images, {kit} says 2; get both again",
        ),
        ({"train": TWICE}, "{train} holds n00000001.tar twice; get the archive again"),
        ({"val": (1, 2, 3)}, "{val} has 3 images, the ground truth in {kit} has 4 lines; get both"),
        (
            {"val": (5, 1, 2, 3, 4)},
            "{val} has 5 images, the ground truth in {kit} has 4 lines; get both again",
        ),
        (
            {"truths": [2, 3, 4, 1]},
            "the ground truth in {kit} names class 4 for ILSVRC2012_val_00000003.JPEG: no such",
        ),
        (
            {"synsets": [*SYNSETS, ("n00000003", "x", 5, 2, 0)]},
            "{root}/{kit} lists 4 classes, 3 different; get it again",
        ),
        ({"synsets": SYNSETS[3:]}, "{root}/{kit} lists 0 classes, 0 different; get it again"),
        ({"truths": []}, "{val} has 4 images, the ground truth in {kit} has 0 lines; get both"),
    ],
)
def test_archives_that_contradict_each_other(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    root = write(tmp_path / "s", **changes)  # type: ignore[arg-type]
    places = {"train": root / TRAIN, "val": root / VAL, "kit": DEVKIT, "root": root}
    assert refusal(root).startswith(message.format(**places))


def test_another_devkit_is_a_message(tmp_path: Path) -> None:
    root = write(tmp_path / "s")
    kit = root / DEVKIT
    whole = kit.read_bytes()
    damaged = tar([(META, b"x" * 128), (TRUTH, b"1")])
    for data, said in (
        (b"\x1f\x8b\x08damaged", "no ILSVRC2012 devkit ("),
        (tar([(META, b"x")]), "no ILSVRC2012 devkit (no MATLAB 5 file"),
        (tar([(TRUTH, b"1")]), f"no ILSVRC2012 devkit ('{META}')"),
        (damaged, "no ILSVRC2012 devkit (no MATLAB 5 file in little-endian order); get it again"),
        (whole.replace(b"\n3\n1\n", b"\nx\n1\n"), "no ILSVRC2012 devkit (invalid literal"),
        (whole[:3000], "damaged as a tar"),
        (bytes((64 << 20) + 1), "no ILSVRC2012 devkit (unpacked it has more than 67108864 bytes)"),
    ):
        kit.write_bytes(data)
        assert refusal(root).startswith(f"{kit} is {said}")


def test_md5_sums_are_compared_one_by_one(tmp_path: Path) -> None:
    """Of several chunks, too."""
    files = {"a": b"first", "b": bytes(range(256)) * 70_000}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    published = {name: hashlib.md5(data).hexdigest() for name, data in files.items()}
    check_md5(str(tmp_path), published)
    with pytest.raises(GratisError) as caught:
        check_md5(str(tmp_path), published | {"b": "0" * 32})
    assert str(caught.value) == (
        f"{tmp_path}/b has md5 {published['b']}, the published one is {'0' * 32}; get it again"
    )
    with pytest.raises(GratisError) as caught:
        check_md5(str(tmp_path), {"c": "0" * 32} | published)
    assert str(caught.value) == (
        f"{tmp_path} lacks c, so that there is no md5 to check; leave --check-md5 out"
    )
