"""Sources in which kinds lie beside each other, or of which a part has no label: what is not read
is lost by name, or refused."""

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
        if path.suffix.lower() == ".tar":
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
    assert f"{tmp_path}/val" in lost
    assert "'n01443537'" in lost


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


def test_a_row_without_a_label_ends_no_list(tmp_path: Path) -> None:
    rows = b'{"file_name": "a/1.jpg", "label": 0}\n{"file_name": "b/2.jpg"}\n'
    root = write(tmp_path, {"train/a/1.jpg": IMAGE, "train/b/2.jpg": IMAGE})
    (tmp_path / "train/metadata.jsonl").write_bytes(rows)
    with pytest.raises(GratisError, match="line 2: it has no label"):
        open_source(root)
    (tmp_path / "train/metadata.jsonl").write_bytes(b"\n".join(reversed(rows.splitlines())))
    with pytest.raises(GratisError, match="line 1: it has no label"):
        open_source(root)


def metadata(root: Path, *labels: str, header: str = "file_name,label") -> str:
    """Images 0.jpg, 1.jpg ... with a list of these labels."""
    write(root, {f"train/{number}.jpg": IMAGE for number in range(len(labels))})
    rows = "".join(f"{number}.jpg,{label}\r\n" for number, label in enumerate(labels))
    (root / "train/metadata.csv").write_text(f"\ufeff{header}\r\n{rows}")
    return str(root)


@pytest.mark.parametrize("labels", [("10", "2", "0"), ("10.0", "2.0", "0.0"), (" 10", "2 ", "00")])
def test_numbers_in_a_csv_stay_those_numbers(tmp_path: Path, labels: tuple[str, ...]) -> None:
    # pandas writes a column in which one was missing as floats
    found = listed(open_source(metadata(tmp_path, *labels)))
    assert found == {"train": {"0.jpg": 10, "1.jpg": 2, "2.jpg": 0}}


@pytest.mark.parametrize("none", ["-1", "", "-1.0", " -1"])
@pytest.mark.parametrize("other", ["0", "cat"])
def test_no_label_is_no_class(tmp_path: Path, none: str, other: str) -> None:
    with pytest.raises(GratisError, match="line 3: it has no label"):
        open_source(metadata(tmp_path, other, none))


def test_a_list_of_labels_is_an_error_of_its_own(tmp_path: Path) -> None:
    root = write(tmp_path, {"train/a.jpg": IMAGE, "train/b.jpg": IMAGE})
    rows = b'{"file_name": "a.jpg", "label": "cat"}\n{"file_name": "b.jpg", "label": ["cat"]}\n'
    (tmp_path / "train/metadata.jsonl").write_bytes(rows)
    with pytest.raises(GratisError, match="line 2: label"):
        open_source(root)


def test_a_validation_split_without_a_list_beside_one_with_is_an_error(tmp_path: Path) -> None:
    metadata(tmp_path, "cat")
    with pytest.raises(GratisError, match="val has no metadata"):
        open_source(write(tmp_path, {"val/cat/1.jpg": IMAGE}))


def test_a_test_split_without_labels_is_named(tmp_path: Path) -> None:
    metadata(tmp_path, "cat")
    source = open_source(
        write(tmp_path, {"test/1.jpg": IMAGE, "test/metadata.csv": b"file_name\n"})
    )
    assert [note for note in source.notes if note.startswith("test: not read")]
    assert not source.skipped


def test_images_in_a_folder_that_no_row_is_of_are_lost_by_name(tmp_path: Path) -> None:
    metadata(tmp_path, "cat")
    source = open_source(write(tmp_path, {"train/more/a.jpg": IMAGE}))
    (lost,) = source.skipped
    assert "train/more: 'a.jpg'" in lost


def test_a_column_of_splits_is_followed(tmp_path: Path) -> None:
    rows = [b"file_name,label,split", b"a/1.jpg,x,train", b"a/2.jpg,x,val", b"a/3.jpg,x,test"]
    files = {f"a/{number}.jpg": IMAGE for number in (1, 2, 3)}
    root = write(tmp_path, {**files, "metadata.csv": b"\n".join(rows)})
    found = open_source(root)
    assert listed(found) == {"train": {"1.jpg": 0}, "val": {"2.jpg": 0}}
    assert not found.skipped
    way = "--val-from test makes it the validation split"
    assert found.notes == (f"test: not read, 1 images; {way}",)
    tested = open_source(root, SourceOptions(val_from="test"))
    assert listed(tested)["val"] == {"3.jpg": 0}
    (tmp_path / "metadata.csv").write_bytes(b"\n".join(rows).replace(b"test", b"more"))
    with pytest.raises(GratisError, match="line 4 has the split 'more'"):
        open_source(root)


@pytest.mark.parametrize("named", [True, False])
def test_images_of_a_test_split_are_lost_where_a_list_names_others(
    tmp_path: Path, named: bool
) -> None:
    """Where none does, they are the test split, and not read."""
    rows = [b"file_name,label,split", b"a/1.jpg,x,train", b"test/1.jpg,x,test"]
    rows = rows if named else rows[:2]
    files = dict.fromkeys(("a/1.jpg", "test/1.jpg", "test/more/2.jpg"), IMAGE)
    source = open_source(write(tmp_path, {**files, "metadata.csv": b"\n".join(rows)}))
    expected = (f"skipped {tmp_path}/test/more: '2.jpg': no list names it",)
    assert source.skipped == (expected if named else ())


def test_unfinished_folders_of_img2dataset_and_others_are_named(tmp_path: Path) -> None:
    images = [f"{folder}/{folder}0" for folder in ("00000", "00001")]
    files = {f"{image}.jpg": IMAGE for image in images}
    labels = {f"{image}.json": b'{"label": 0}' for image in images}
    more = {"00000_stats.json": b"{}", "val/a/b.jpg": IMAGE, "00000/000009.avif": IMAGE}
    source = open_source(write(tmp_path, {**files, **labels, **more}))
    assert listed(source) == {"train": {"000000.jpg": 0}}
    assert [note for note in source.notes if "00001/, val/" in note]
    assert [lost for lost in source.skipped if "000009.avif" in lost]


@pytest.mark.parametrize(
    "names",
    [("inettrain0.tar", "inetval0.tar"), ("a.tar", "Atrain.tar"), ("xtraining.tar", "xtest.tar")],
)
def test_splits_glued_to_other_words_are_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(GratisError, match="may be of the training split"):
        open_source(write(tmp_path, {**dict.fromkeys(names, IMAGE), "a.cls": b"0"}), UNLABELLED)


def test_names_that_all_hold_train_are_the_training_split(tmp_path: Path) -> None:
    names = ["inettrain0.tar", "inettrain1.tar"]
    source = open_source(write(tmp_path, dict.fromkeys(names, IMAGE)), UNLABELLED)
    assert len(source.splits["train"]) == 2


@pytest.mark.parametrize("name", ["val.parquet", "val.tar", "val.TAR.GZ", "val.zip"])
def test_what_may_hold_images_beside_class_folders_is_named(tmp_path: Path, name: str) -> None:
    source = open_source(write(tmp_path, {"train/a/1.jpg": IMAGE, name: IMAGE}))
    assert [note for note in source.notes if name in note]


KAGGLE = "ILSVRC/Data/CLS-LOC"
WNIDS = ("n01440764", "n01443537")


@pytest.mark.parametrize("src", ["", KAGGLE])
def test_kaggle_s_copy_needs_no_mapping(tmp_path: Path, src: str) -> None:
    # as people who have sorted val into class folders keep it
    places = [f"{KAGGLE}/{split}/{wnid}" for split in ("train", "val") for wnid in WNIDS]
    write(tmp_path, {f"{place}/a.JPEG": IMAGE for place in places})
    source = open_source(str(tmp_path / src))
    assert [entry.wnid for entry in source.classes] == list(WNIDS)
    assert source.splits["val"].label.tolist() == [0, 1]
    unlabelled = open_source(str(tmp_path / src), UNLABELLED).splits
    assert (len(unlabelled["train"]), len(unlabelled["val"])) == (2, 2)


@pytest.mark.parametrize("name", ["val/a.JPEG", "train/n01443537.tar", "train/n01443537.tar.gz"])
def test_what_is_in_no_class_folder_of_kaggle_s_copy_is_lost_by_name(
    tmp_path: Path, name: str
) -> None:
    files = [f"{KAGGLE}/{split}/{WNIDS[0]}/{split}.JPEG" for split in ("train", "val")]
    source = open_source(write(tmp_path, dict.fromkeys([*files, f"{KAGGLE}/{name}"], IMAGE)))
    (lost,) = source.skipped
    assert f"{name.split('/')[1]!r}: it is in no class folder" in lost


@pytest.mark.parametrize("deep", ["ds", "train", "a/b"])
def test_without_labels_splits_further_below_are_not_one(tmp_path: Path, deep: str) -> None:
    root = write(tmp_path, {f"{deep}/train/1.jpg": IMAGE, f"{deep}/test/2.jpg": IMAGE})
    with pytest.raises(GratisError, match=f"{deep} holds the splits test and train"):
        open_source(root, UNLABELLED)


@pytest.mark.parametrize("name", ["1.tar.lz4", "2.tar.part", "val.zip", "val-0.parquet", "a.jpg"])
def test_what_may_hold_images_beside_webdataset_tars_is_named(tmp_path: Path, name: str) -> None:
    theirs = ["0.parquet", "0.tar.idx", "0.idx", "0_stats.json", "README.md"]  # of 0.tar
    labels = {"0.tar": IMAGE, **dict.fromkeys([name, *theirs], IMAGE)}
    root = write(tmp_path, labels)
    with tarfile.open(f"{root}/0.tar", "a") as archive:
        info = tarfile.TarInfo("0_1.cls")
        info.size = 1
        archive.addfile(info, io.BytesIO(b"0"))
    (note,) = open_source(root).notes
    assert note == f"not read, beside tars: {name} in {root}"


@pytest.mark.parametrize("name", ["a.cr2", "a.NEF", "a.dcm", "a.heic", "a.apng"])
def test_photographs_of_kinds_that_are_not_read_are_lost(tmp_path: Path, name: str) -> None:
    source = open_source(write(tmp_path, {"train/k/1.jpg": IMAGE, f"train/k/{name}": IMAGE}))
    (lost,) = source.skipped
    assert name in lost


@pytest.mark.parametrize("name", ["val", "test", "train-1.tar"])
def test_a_split_that_is_a_link_to_nothing_is_an_error(tmp_path: Path, name: str) -> None:
    root = write(tmp_path, {"train/k/1.jpg": IMAGE})
    (tmp_path / name).symlink_to("nowhere")
    for options in (SourceOptions(), UNLABELLED):
        with pytest.raises(GratisError, match=f"{name} names a split and is neither"):
            open_source(root, options)


def test_a_class_that_is_a_link_to_nothing_is_lost_by_name(tmp_path: Path) -> None:
    root = write(tmp_path, {"train/k/1.jpg": IMAGE})
    (tmp_path / "train/z").symlink_to("nowhere")
    (lost,) = open_source(root).skipped
    assert lost.endswith("'z': it is not a file")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("x-train.tfrecord-00000-of-00001", "a TFRecord file"), ("train.pt", "a file of PyTorch")],
)
def test_more_kinds_are_refused_by_name(tmp_path: Path, name: str, kind: str) -> None:
    with pytest.raises(GratisError, match=f"{name} is {kind}, which is not read"):
        open_source(write(tmp_path, {name: b"PK\3\4..............."}))


def test_a_file_as_src_is_not_called_missing(tmp_path: Path) -> None:
    root = write(tmp_path, {"a.tar": IMAGE})
    with pytest.raises(GratisError, match="is a file; give the folder"):
        open_source(f"{root}/a.tar")


def test_several_tars_of_a_class_are_no_classes(tmp_path: Path) -> None:
    files = ["cat-0.tar", "cat-1.tar", "dog-0.tar"]
    with pytest.raises(GratisError, match="has no label"):
        open_source(write(tmp_path, dict.fromkeys(files, IMAGE)))


def test_what_a_list_of_tars_does_not_name_is_named(tmp_path: Path) -> None:
    files = dict.fromkeys(["a-0.tar", "a-1.TAR", "val/0.tar", "more/0.tar"], IMAGE)
    shards = b'{"shardlist": [{"url": "a-0.tar"}, {"url": "more/0.tar"}]}'
    source = open_source(write(tmp_path, {**files, "dataset.json": shards}), UNLABELLED)
    (note,) = [note for note in source.notes if "does not list" in note]
    assert "a-1.TAR, val/ in" in note


@pytest.mark.parametrize("beside", [{}, {"00000/0.json": b'{"caption": "a cat"}'}])
def test_an_image_without_a_label_in_img2dataset_s_folders_says_the_way_out(
    tmp_path: Path, beside: dict[str, bytes]
) -> None:
    root = write(tmp_path, {"00000/0.jpg": IMAGE, "00000_stats.json": b"{}", **beside})
    with pytest.raises(GratisError, match="has no label") as caught:
        open_source(root)
    assert str(caught.value).endswith("or go without labels: --unlabelled")


@pytest.mark.parametrize("label", ["1", "cat"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_of_which_every_image_is_missing_is_an_error(
    tmp_path: Path, split: str, label: str
) -> None:
    for name in ("train", "val"):
        rows = f"file_name,label\na.jpg,{label}\n".encode()
        write(tmp_path, {f"{name}/metadata.csv": rows, f"{name}/a.jpg": IMAGE})
    (tmp_path / split / "a.jpg").unlink()
    with pytest.raises(GratisError, match=f"the split {split} has no images .*'a.jpg'"):
        open_source(str(tmp_path))


@pytest.mark.parametrize("options", [SourceOptions(), UNLABELLED])
def test_folders_of_img2dataset_without_images_are_an_error(
    tmp_path: Path, options: SourceOptions
) -> None:
    root = write(tmp_path, {"00000/a.json": b"{}", "00000_stats.json": b"{}"})
    with pytest.raises(GratisError, match="the split train has no images"):
        open_source(root, options)
