"""The layouts in which people have ImageNet and sets like it: what is listed, under which label,
and what is refused by its kind."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from gratis.errors import GratisError
from gratis.preprocess.sources.imagenet import DEVKIT, TRAIN, VAL
from gratis.preprocess.sources.open import open_source
from gratis.preprocess.sources.reader import ImageReader

MAPPING = "n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\n"
SOLUTION = (
    "ImageId,PredictionString\n"
    "ILSVRC2012_val_00000002,n01440764 1 1 15 15 n01440764 2 2 9 9 \n"
    "ILSVRC2012_val_00000001,n01443537 1 1 15 15 \n"
)


def jpeg(seed: int = 0) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
    Pillow.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def write(path: Path, data: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def listed(root: Path | str) -> dict[str, list[tuple[str, bytes]]]:
    """By split: each image's class and its bytes, in the order of their keys."""
    source, found = open_source(str(root)), {}
    with ImageReader() as reader:
        for split, listing in source.splits.items():
            items = sorted((listing.item(row) for row in range(len(listing))), key=lambda i: i.key)
            found[split] = [(source.classes[i.label].wnid, reader.read(i)) for i in items]
    return found


def refusal(root: Path | str) -> str:
    with pytest.raises(GratisError) as caught:
        open_source(str(root))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def kaggle(tmp_path: Path) -> Path:
    images = tmp_path / "k/ILSVRC/Data/CLS-LOC"
    write(images / "train/n01440764/n01440764_1.JPEG", jpeg(1))
    write(images / "train/n01443537/n01443537_1.JPEG", jpeg(2))
    write(images / "val/ILSVRC2012_val_00000001.JPEG", jpeg(3))
    write(images / "val/ILSVRC2012_val_00000002.JPEG", jpeg(4))
    write(images / "test/ILSVRC2012_test_00000001.JPEG", jpeg(5))
    write(tmp_path / "k/ILSVRC/Annotations/CLS-LOC/val/ILSVRC2012_val_00000001.xml", "<xml/>")
    write(tmp_path / "k/LOC_synset_mapping.txt", MAPPING)
    write(tmp_path / "k/LOC_val_solution.csv", SOLUTION)
    return tmp_path / "k"


KAGGLE = {
    "train": [("n01440764", jpeg(1)), ("n01443537", jpeg(2))],
    "val": [("n01443537", jpeg(3)), ("n01440764", jpeg(4))],
}


@pytest.mark.parametrize("inside", ["", "ILSVRC", "ILSVRC/Data", "ILSVRC/Data/CLS-LOC"])
def test_kaggle(kaggle: Path, inside: str) -> None:
    assert listed(kaggle / inside) == KAGGLE
    source = open_source(str(kaggle / inside))
    assert [c.words for c in source.classes] == [
        "tench, Tinca tinca",
        "goldfish, Carassius auratus",
    ]
    assert source.skipped == ()
    assert source.notes == (
        f"test: not read, {kaggle}/ILSVRC/Data/CLS-LOC/test: the labels of its images were never "
        f"published",
    )


def test_kaggle_by_a_relative_path(kaggle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(kaggle / "ILSVRC/Data/CLS-LOC")
    assert listed(".") == KAGGLE
    monkeypatch.chdir(kaggle)
    assert listed("ILSVRC/") == KAGGLE


def test_kaggle_with_the_validation_images_sorted(kaggle: Path) -> None:
    val = kaggle / "ILSVRC/Data/CLS-LOC/val"
    for number, wnid in ((1, "n01443537"), (2, "n01440764")):
        (val / wnid).mkdir()
        name = f"ILSVRC2012_val_0000000{number}.JPEG"
        (val / name).rename(val / wnid / name)
    (kaggle / "LOC_val_solution.csv").unlink()
    assert listed(kaggle) == KAGGLE


def test_kaggle_without_validation(kaggle: Path) -> None:
    shutil.rmtree(kaggle / "ILSVRC/Data/CLS-LOC/val")
    assert listed(kaggle) == {"train": KAGGLE["train"]}


def test_kaggle_that_contradicts_itself(kaggle: Path) -> None:
    images = kaggle / "ILSVRC/Data/CLS-LOC"
    solution = kaggle / "LOC_val_solution.csv"
    solution.write_text(SOLUTION.replace("n01443537", "n99999999"))
    assert f"{solution}, line 3: 'ILSVRC2012_val_00000001' has class 'n99999999'" in refusal(kaggle)
    solution.write_text(SOLUTION + "ILSVRC2012_val_00000001,n01440764 1 1 2 2\n")
    assert "gives 'ILSVRC2012_val_00000001' two classes" in refusal(kaggle)
    solution.write_text(SOLUTION + "ILSVRC2012_val_00000003,n01440764 1 1 2 2\n")
    assert "val has 2 images" in refusal(kaggle)
    solution.write_text(SOLUTION)
    write(images / "val/mine.JPEG", jpeg())
    assert "val holds 'mine.JPEG', which" in refusal(kaggle)
    (images / "val/mine.JPEG").unlink()
    shutil.move(images / "train/n01443537", kaggle.parent)
    assert "no images of 1 of the 2 classes in LOC_synset_mapping.txt, n01443537" in refusal(kaggle)
    shutil.move(kaggle.parent / "n01443537", images / "train")
    solution.unlink()
    assert "LOC_val_solution.csv is neither in it nor above" in refusal(kaggle)
    shutil.rmtree(images / "train/n01443537")
    write(images / "train/dogs/1.JPEG", jpeg())
    assert "train/dogs is no class of LOC_synset_mapping.txt" in refusal(kaggle)
    (kaggle / "LOC_synset_mapping.txt").unlink()
    assert "LOC_synset_mapping.txt is neither in it nor above" in refusal(kaggle)


@pytest.mark.parametrize("train", ["train", "ILSVRC2012_img_train", ""])
@pytest.mark.parametrize("names", [("n01440764", "n01443537"), ("cat", "dog"), ("a1", "b1")])
def test_one_tar_per_class(tmp_path: Path, train: str, names: tuple[str, str]) -> None:
    for number, name in enumerate(names):
        write_tar(tmp_path / train / f"{name}.tar", {f"{name}_1.JPEG": jpeg(number)})
    assert listed(tmp_path) == {"train": [(names[0], jpeg(0)), (names[1], jpeg(1))]}


def test_one_tar_per_class_with_validation(tmp_path: Path) -> None:
    def again() -> Path:
        shutil.rmtree(tmp_path / "s", ignore_errors=True)
        write_tar(tmp_path / "s/train/n01440764.tar", {"n01440764_1.JPEG": jpeg(1)})
        write_tar(tmp_path / "s/train/n01443537.tar", {"n01443537_1.JPEG": jpeg(2)})
        return tmp_path / "s"

    images = {f"ILSVRC2012_val_0000000{n}.JPEG": jpeg(n + 2) for n in (1, 2)}
    source = again()
    for name, wnid in zip(images, ("n01443537", "n01440764"), strict=True):
        write(source / "val" / wnid / name, images[name])
    in_class = {"train": KAGGLE["train"], "val": KAGGLE["val"][::-1]}  # by their keys
    assert listed(source) == in_class
    source = again()
    for name, wnid in zip(images, ("n01443537", "n01440764"), strict=True):
        write_tar(source / "val" / f"{wnid}.tar", {name: images[name]})
    assert listed(source) == in_class
    source = again()
    for name, data in images.items():
        write(source / "val" / name, data)
    assert "neither ILSVRC2012_devkit_t12.tar.gz nor LOC_val_solution.csv is in" in refusal(source)
    write(source / "LOC_val_solution.csv", SOLUTION)
    assert {data for _, data in listed(source)["val"]} == {jpeg(3), jpeg(4)}
    assert sorted(listed(source)["val"]) == sorted(KAGGLE["val"])
    source = again()
    write_tar(source / VAL, images)
    write(source / "LOC_val_solution.csv", SOLUTION)
    assert sorted(listed(source)["val"]) == sorted(KAGGLE["val"])


@pytest.mark.starts
def test_the_training_archive_unpacked_once(sample_source: Path, tmp_path: Path) -> None:
    """With the official validation archive and the devkit beside it: as the archives themselves."""
    with tarfile.open(sample_source / TRAIN) as archive:
        archive.extractall(tmp_path / "train", filter="data")
    for name in (VAL, DEVKIT):
        (tmp_path / name).symlink_to(sample_source / name)
    ours, theirs = open_source(str(tmp_path)), open_source(str(sample_source))
    assert [c.wnid for c in ours.classes] == [c.wnid for c in theirs.classes]
    for split, listing in theirs.splits.items():
        rows = [listing.item(row) for row in range(len(listing))]
        there = {i.name: (i.label, i.size) for i in rows}
        rows = [ours.splits[split].item(row) for row in range(len(ours.splits[split]))]
        assert {i.name: (i.label, i.size) for i in rows} == there


def test_tars_that_are_no_classes(tmp_path: Path) -> None:
    for name in ("00000", "00001"):  # shards, whose images have no labels
        write_tar(tmp_path / f"shards/{name}.tar", {f"{name}.jpg": jpeg()})
    assert "has no label" in refusal(tmp_path / "shards")
    for name in ("cats", "dogs"):
        write_tar(tmp_path / f"labels/{name}.tar", {f"{name}.cls": b"0", f"{name}.jpg": jpeg()})
    assert [label for label, _ in listed(tmp_path / "labels")["train"]] == ["000000"] * 2
    write_tar(tmp_path / "one/train/photos.tar", {"1.jpg": jpeg()})
    assert "has no label" in refusal(tmp_path / "one")
