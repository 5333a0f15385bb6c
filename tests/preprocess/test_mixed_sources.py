"""Sources in which two kinds lie beside each other: what is not read is lost by name, or refused."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from gratis.errors import GratisError
from gratis.preprocess.sources.open import open_source
from gratis.preprocess.sources.source import Source, SourceOptions

IMAGE = b"\xff\xd8\xff\xd9"  # sources are listed by name
UNLABELLED = SourceOptions(unlabelled=True)


def write(root: Path, files: dict[str, bytes]) -> str:
    """A tar where the name ends so: its one member is an image of the tar's name."""
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".tar":
            with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
                info = tarfile.TarInfo(f"{path.stem}_1.JPEG")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        else:
            path.write_bytes(data)
    return str(root)


def listed(source: Source) -> dict[str, dict[str, int]]:
    """By split: names of the files and their labels."""
    return {
        split: {item.name: item.label for item in map(listing.item, range(len(listing)))}
        for split, listing in source.splits.items()
    }


@pytest.mark.parametrize(
    "beside", ["train/n01443537/a.JPEG", "train/n01443537.tar.gz", "train/n01443537_2.JPEG"]
)
def test_a_class_beside_tars_of_classes_is_lost_by_name(tmp_path: Path, beside: str) -> None:
    # ImageNet's archive of which some tars are unpacked already
    source = open_source(write(tmp_path, {"train/n01440764.tar": IMAGE, beside: IMAGE}))
    assert listed(source) == {"train": {"n01440764_1.JPEG": 0}}
    (lost,) = source.skipped
    assert beside.split("/")[1] in lost


def test_what_lies_beside_the_validation_split_s_tars_of_classes_is_lost_by_name(
    tmp_path: Path,
) -> None:
    files = [
        "train/n01440764.tar",
        "train/n01443537.tar",
        "val/n01440764.tar",
        "val/n01443537/a.jpg",
    ]
    source = open_source(write(tmp_path, dict.fromkeys(files, IMAGE)))
    (lost,) = source.skipped
    assert f"{tmp_path}/val" in lost and "'n01443537'" in lost


def test_tars_beside_the_folder_of_tars_of_classes_are_named(tmp_path: Path) -> None:
    files = ["train/n01440764.tar", "train/n01443537.tar", "test.tar"]
    source = open_source(write(tmp_path, dict.fromkeys(files, IMAGE)))
    assert [note for note in source.notes if "test.tar" in note]


@pytest.mark.parametrize("name", ["constrained", "retrained"])
def test_a_folder_with_train_inside_a_word_is_no_training_split(tmp_path: Path, name: str) -> None:
    files = [f"{name}/cat.tar", f"{name}/dog.tar"]
    with pytest.raises(GratisError, match=f"but {name}/"):
        open_source(write(tmp_path, dict.fromkeys(files, IMAGE)))


def test_a_folder_in_a_class_folder_is_lost_by_name(tmp_path: Path) -> None:
    train = ["train/n01440764.tar", "train/n01443537.tar"]
    val = ["val/n01440764/a.JPEG", "val/n01443537/b.JPEG", "val/n01443537/more/c.JPEG"]
    source = open_source(write(tmp_path, dict.fromkeys([*train, *val], IMAGE)))
    assert listed(source)["val"] == {"a.JPEG": 0, "b.JPEG": 1}
    (lost,) = source.skipped
    assert "'more'" in lost


def test_a_folder_in_a_class_folder_of_kaggle_s_copy_is_lost_by_name(tmp_path: Path) -> None:
    images = "ILSVRC/Data/CLS-LOC/train/n01440764"
    files = {f"{images}/a.JPEG": IMAGE, f"{images}/more/b.JPEG": IMAGE}
    source = open_source(write(tmp_path, {**files, "LOC_synset_mapping.txt": b"n01440764 tench\n"}))
    (lost,) = source.skipped
    assert "'more'" in lost


def test_without_labels_the_test_split_is_not_trained_on_either(tmp_path: Path) -> None:
    root = write(tmp_path, {"test/a.jpg": IMAGE, "val/b.jpg": IMAGE})
    with pytest.raises(GratisError, match="holds the split val and test alone"):
        open_source(root, UNLABELLED)


@pytest.mark.parametrize("image", ["preview.jpg", "assets/preview.jpg"])
@pytest.mark.parametrize("name", ["0.tar", "0.tar.gz", "data/a.parquet", "a.zip"])
def test_without_labels_what_may_hold_images_beside_images_is_lost_by_name(
    tmp_path: Path, name: str, image: str
) -> None:
    source = open_source(write(tmp_path, {name: IMAGE, image: IMAGE}), UNLABELLED)
    (lost,) = source.skipped
    assert name in lost


def test_without_labels_tars_alone_are_read(tmp_path: Path) -> None:
    source = open_source(write(tmp_path, {"train/0.tar": IMAGE, "notes.txt": b"x"}), UNLABELLED)
    assert listed(source) == {"train": {"0_1.JPEG": -1}}
