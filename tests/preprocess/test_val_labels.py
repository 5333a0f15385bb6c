"""Labels of ILSVRC2012's validation images and class numbers of tables, worked out by hand."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from gratis.errors import GratisError
from gratis.preprocess.sources.class_numbers import ClassNumbers
from gratis.preprocess.sources.imagenet import META, TRUTH, Synset, read_devkit
from gratis.preprocess.sources.listing import ListingBuilder
from gratis.preprocess.sources.matlab import Cell, write_struct
from gratis.preprocess.sources.val_labels import (
    ValLabels,
    list_labelled_folder,
    list_labelled_tar,
    read_solution,
    read_truth,
)

WNIDS = ("n01", "n02", "n03")
# in the devkit's order, which is not that of the names
SYNSETS = [("n03", "carp", 1, 9, 0), ("n01", "tench, Tinca", 2, 8, 0), ("n02", "shark", 3, 7, 0)]
UPPER = ("n00", "fish", 4, 0, 3)


def tar(path: Path, files: dict[str, bytes], mode: str = "w:gz") -> str:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return str(path)


@pytest.fixture(params=["w:gz", "w"])
def devkit(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    names = ("WNID", "words", "ILSVRC2012_ID", "num_train_images", "num_children")
    rows: list[dict[str, Cell]] = [dict(zip(names, row, strict=True)) for row in (*SYNSETS, UPPER)]
    files = {META: write_struct("synsets", rows), TRUTH: b"2\n3\n3\n1\n"}
    return tar(tmp_path / "devkit", files, request.param)


NAMES = [f"ILSVRC2012_val_0000000{number}" for number in (1, 2, 3, 4)]


def test_the_devkits_truth_is_counted_from_1_and_in_its_own_order(devkit: str) -> None:
    """Class 2 is n01, which is label 0; 3 is n02, label 1; 1 is n03, label 2."""
    synsets, truth = read_devkit(devkit)
    assert synsets == [Synset(*row[:4]) for row in SYNSETS]
    assert truth == [2, 3, 3, 1]
    known = read_truth(devkit, WNIDS)
    assert known == ValLabels(devkit, dict(zip(NAMES, [0, 1, 1, 2], strict=True)))
    with pytest.raises(GratisError) as caught:
        read_truth(devkit, WNIDS[:2])
    assert str(caught.value) == (
        f"{devkit} has validation images of class n03, which the training split has not; get the "
        "missing class, or take the validation images away"
    )


def test_a_solution_names_each_image_once(tmp_path: Path) -> None:
    path = tmp_path / "solution.csv"
    path.write_text("\ufeffImageId,PredictionString\n\na,n03 1 2 3 4 n03 5 6 7 8 \nb,n01 1 1 1 1\n")
    assert read_solution(str(path), WNIDS).labels == {"a": 2, "b": 0}
    path.write_text("a,n03 1\na,n03 2\n")
    assert read_solution(str(path), WNIDS).labels == {"a": 2}
    path.write_text("a,n03 1\na,n01 2\n")
    with pytest.raises(GratisError) as caught:
        read_solution(str(path), WNIDS)
    assert str(caught.value) == f"{path} gives 'a' two classes; get the file again"
    path.write_text("ImageId,x\na,n03 1\nb,n04 2\n")
    with pytest.raises(GratisError) as caught:
        read_solution(str(path), WNIDS)
    assert str(caught.value) == (
        f"{path}, line 3: 'b' has class 'n04', which the training split has not; get the file "
        "again, or the missing class"
    )


KNOWN = ValLabels("L", {"a": 4, "b": 2})


def listed(builder: ListingBuilder) -> list[tuple[str, int]]:
    listing = builder.build()
    return [(item.name, item.label) for item in map(listing.item, range(len(listing)))]


def test_images_of_a_folder_and_a_tar_have_the_labels_of_their_names(tmp_path: Path) -> None:
    """By their stem; what is no image is left out, and told."""
    for name in ("b.JPEG", "a.jpg", "notes.txt", ".hidden.jpg"):
        (tmp_path / name).write_bytes(b"x")
    builder = ListingBuilder((), official=True)
    list_labelled_folder(str(tmp_path), KNOWN, builder)
    assert sorted(listed(builder)) == [("a.jpg", 4), ("b.JPEG", 2)]
    path = tar(tmp_path / "val.tar", {"x/b.JPEG": b"1", "a.jpg": b"22"}, "w")
    builder = ListingBuilder((), official=True)
    list_labelled_tar(path, KNOWN, builder)
    assert sorted(listed(builder)) == [("a.jpg", 4), ("x/b.JPEG", 2)]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("a.jpg b.jpg c.jpg", "{0} holds 'c.jpg', which L does not name; remove it, or get both"),
        ("a.jpg", "{0} has 1 images, L has labels of 2; get both again"),
        ("a.jpg a.png b.jpg", "{0} has 3 images, L has labels of 2; get both again"),
    ],
)
def test_images_and_labels_that_do_not_match(tmp_path: Path, names: str, message: str) -> None:
    for name in names.split():
        (tmp_path / name).write_bytes(b"x")
    builder = ListingBuilder((), official=True)
    with pytest.raises(GratisError) as caught:
        list_labelled_folder(str(tmp_path), KNOWN, builder)
    assert str(caught.value).startswith(message.format(tmp_path))


def test_classes_told_in_words_are_numbered_in_their_order() -> None:
    numbers = ClassNumbers(["shark", " carp ", "tench", "", "shark"])
    assert [numbers.number(text, "P") for text in ("carp", " shark", "tench ")] == [0, 1, 2]
    classes = numbers.classes(np.array([0, 1, 2], np.int32))
    assert [(one.wnid, one.words) for one in classes] == [
        (t, t) for t in ("carp", "shark", "tench")
    ]
    with pytest.raises(GratisError) as caught:
        numbers.number("eel", "P")
    assert str(caught.value) == (
        "P: label 'eel' is no class of the training split; relabel or remove it"
    )


def test_classes_told_in_numbers_are_these_numbers() -> None:
    numbers = ClassNumbers(["3", "1", " 2.0 "])
    assert [numbers.number(value, "P") for value in ("3", 1, 2.0, "0", 99_999)] == [
        3,
        1,
        2,
        0,
        99_999,
    ]
    classes = numbers.classes(np.array([3, 1], np.int32))
    assert [(one.wnid, one.words) for one in classes] == [
        (f"00000{k}", f"00000{k}") for k in range(4)
    ]
    named = ClassNumbers(None, ("carp", "shark"))
    assert [one.words for one in named.classes(np.array([0], np.int32))] == ["carp", "shark"]
    for value, message in (
        (2, "label 2 is no class number from 0 to 1; relabel it"),
        (-2, "label -2 is no class number from 0 to 1; relabel it"),
        (-1, "it has no label (-1), as test splits have; leave the file out, or go without labels"),
        (None, "it has no label (None), as test splits have"),
        ("eel", "label 'eel' is no class of the training split"),
    ):
        with pytest.raises(GratisError) as caught:
            named.number(value, "P")
        assert str(caught.value).startswith(f"P: {message}")


def test_what_is_lost_of_a_tar_of_validation_images_is_named(tmp_path: Path) -> None:
    path = tar(tmp_path / "val.tar", {"a.jpg": b"1", "b.jpg": b"22"}, "w")
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("c.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "../elsewhere.jpg"
        archive.addfile(link)
    builder = ListingBuilder((), official=True)
    list_labelled_tar(path, KNOWN, builder)
    assert sorted(listed(builder)) == [("a.jpg", 4), ("b.jpg", 2)]
    assert [line.partition(": 'c.jpg': ")[0] for line in builder.skipped] == [f"skipped {path}"]
