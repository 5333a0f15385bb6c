"""The layouts in which people have ImageNet and sets like it: what is listed, under which label,
and what is refused by its kind."""

from __future__ import annotations

import io
import json
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
from gratis.preprocess.sources.source import SourceOptions

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
    shutil.rmtree(images / "train")
    assert "has no class folders in train" in refusal(kaggle)


def test_kaggle_s_test_images_have_no_labels(kaggle: Path) -> None:
    test = f"{kaggle}/ILSVRC/Data/CLS-LOC/test"
    with pytest.raises(GratisError) as caught:
        open_source(str(kaggle), SourceOptions(val_from="test"))
    said = f"--val-from test: {test} has no labels, they were never published"
    assert str(caught.value) == said
    shutil.rmtree(test)
    assert open_source(str(kaggle)).notes == ()
    bare = open_source(str(kaggle), SourceOptions(unlabelled=True))
    assert bare.classes == ()
    assert [len(listing) for listing in bare.splits.values()] == [2, 2]


@pytest.mark.parametrize("order", [(1, 0), (0, 1, 1), ()])
def test_kaggle_s_mapping_is_in_the_order_of_labels(kaggle: Path, order: tuple[int, ...]) -> None:
    lines, path = MAPPING.splitlines(), kaggle / "LOC_synset_mapping.txt"
    path.write_text("".join(f"{lines[k]}\n" for k in order))
    said = f"{path} is no list of classes in the order of wnids; get it again"
    assert refusal(kaggle) == said


def test_of_kaggle_s_classes_each_has_an_image(kaggle: Path) -> None:
    folder = kaggle / "ILSVRC/Data/CLS-LOC/train/n01443537"
    (folder / "n01443537_1.JPEG").unlink()
    assert refusal(kaggle) == (
        f"{folder.parent} has no images of 1 of the 2 classes in LOC_synset_mapping.txt, n01443537 "
        "for one; unpack it again, or take those lines out"
    )


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


def imagefolder(root: Path, split: str, images: dict[str, int], rows: str, name: str) -> None:
    for path, seed in images.items():
        write(root / split / path, jpeg(seed))
    write(root / split / name, rows)


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("metadata.csv", "file_name,label\na.png,tench\nsub/b.png,goldfish\n"),
        (
            "metadata.csv",
            '\ufefflabel,file_name,note\r\ntench,a.png,"x, ""y"\r\ngoldfish,sub/b.png,\r\n',
        ),
        (
            "metadata.jsonl",
            '{"file_name": "a.png", "label": "tench"}\n\n'
            '{"file_name": "./sub/b.png", "label": "goldfish"}\n',
        ),
        ("metadata.csv", "file_name,Class\na.png,tench\nsub/b.png,goldfish\n"),
    ],
)
def test_an_imagefolder_with_metadata(name: str, rows: str, tmp_path: Path) -> None:
    imagefolder(tmp_path, "train", {"a.png": 1, "sub/b.png": 2}, rows, name)
    imagefolder(
        tmp_path, "validation", {"c.png": 3}, "file_name,label\nc.png,tench\n", "metadata.csv"
    )
    assert listed(tmp_path) == {
        "train": [("tench", jpeg(1)), ("goldfish", jpeg(2))],
        "val": [("tench", jpeg(3))],
    }


def test_an_imagefolder_with_one_list(tmp_path: Path) -> None:
    """In SRC itself: the split is the first folder's, and there is but training where it names
    none."""
    images = {"train/a.png": 1, "train/b.png": 2, "val/c.png": 3, "test/d.png": 4}
    rows = "file_name,label\n" + "".join(f"{path},{seed % 2}\n" for path, seed in images.items())
    imagefolder(tmp_path / "s", "", images, rows, "metadata.csv")
    assert listed(tmp_path / "s") == {
        "train": [("000001", jpeg(1)), ("000000", jpeg(2))],
        "val": [("000001", jpeg(3))],
    }
    assert any("test: not read" in note for note in open_source(str(tmp_path / "s")).notes)
    imagefolder(tmp_path / "f", "", {"a.png": 1}, "file_name,label\na.png,0\n", "metadata.csv")
    assert listed(tmp_path / "f") == {"train": [("000000", jpeg(1))]}


def test_an_imagefolder_loses_nothing_in_silence(tmp_path: Path) -> None:
    rows = "file_name,label\na.png,x\ngone.png,x\na.png,x\n"
    imagefolder(tmp_path, "train", {"a.png": 1, "more.png": 2}, rows, "metadata.csv")
    lost = [line.partition(f"{tmp_path}/train: ")[2] for line in open_source(str(tmp_path)).skipped]
    assert [line.partition(":")[0] for line in lost] == ["'gone.png'", "'a.png'", "'more.png'"]
    write(tmp_path / "train/metadata.csv", "file_name,label\n../a.png,x\n")
    assert "line 2 names '../a.png', which is outside" in refusal(tmp_path)
    write(tmp_path / "train/metadata.csv", "file,label\na.png,x\n")
    assert "metadata.csv, line 2 has no file_name" in refusal(tmp_path)
    write(tmp_path / "train/metadata.csv", "file_name,label\na.png,x\nmore.png,\n")
    assert "metadata.csv, line 3: it has no label" in refusal(tmp_path)
    write(tmp_path / "train/metadata.csv", "file_name,label\na.png,x\nmore.png,x\n")
    imagefolder(tmp_path, "val", {"c.png": 3}, "file_name,label\nc.png,y\n", "metadata.csv")
    assert "val/metadata.csv, line 2: label 'y' is no class of the training split" in refusal(
        tmp_path
    )
    write(tmp_path / "train/metadata.jsonl", "[]\n")
    assert "lie beside each other; remove one" in refusal(tmp_path)
    (tmp_path / "train/metadata.csv").unlink()
    assert "metadata.jsonl, line 1 is no JSON object" in refusal(tmp_path)


def test_a_list_without_labels_leaves_the_class_folders(tmp_path: Path) -> None:
    rows = "file_name,caption\ncat/a.png,one\ndog/b.png,two\n"
    imagefolder(tmp_path, "train", {"cat/a.png": 1, "dog/b.png": 2}, rows, "metadata.csv")
    assert listed(tmp_path) == {"train": [("cat", jpeg(1)), ("dog", jpeg(2))]}


def img2dataset_files(root: Path, fields: dict[str, object]) -> None:
    """As img2dataset 1.47.0 writes them."""
    for folder in ("00000", "00001"):
        for number in range(2):
            key = f"{folder}{number:04d}"
            write(root / folder / f"{key}.jpg", jpeg(number))
            told = {"key": key, "status": "success", "caption": "a cat", **fields}
            write(root / folder / f"{key}.json", json.dumps(told))
            write(root / folder / f"{key}.txt", "a cat")
        write(root / f"{folder}.parquet", b"PAR1 a list of the files PAR1")
        write(root / f"{folder}_stats.json", "{}")


def test_img2dataset_files(tmp_path: Path) -> None:
    img2dataset_files(tmp_path / "a", {"label": 1})
    found = listed(tmp_path / "a")
    assert found == {"train": [("000001", jpeg(number)) for number in (0, 1, 0, 1)]}
    named = [c.words for c in open_source(str(tmp_path / "a")).classes]
    assert named == ["000000", "000001"]
    img2dataset_files(tmp_path / "d", {"label": 1, "class_name": "tench"})
    assert [c.words for c in open_source(str(tmp_path / "d")).classes] == ["000000", "tench"]
    img2dataset_files(tmp_path / "b", {})
    line = refusal(tmp_path / "b")
    assert "b/00000: '000000000' has no label" in line
    assert "'key', 'status', 'caption'" in line
    unlabelled = open_source(str(tmp_path / "b"), SourceOptions(unlabelled=True))
    assert unlabelled.splits["train"].label.tolist() == [-1] * 4
    for split, label in (("train", 0), ("val", 0)):
        img2dataset_files(tmp_path / "c" / split, {"label": label})
    assert {k: len(v) for k, v in listed(tmp_path / "c").items()} == {"train": 4, "val": 4}


def test_img2dataset_tars_beside_their_lists(tmp_path: Path) -> None:
    """The .parquet beside each tar is no source, and is not even opened."""
    members = {"0.jpg": jpeg(1), "0.json": b'{"label": 0, "key": "0"}', "0.txt": b"a cat"}
    write_tar(tmp_path / "00000.tar", members)
    write(tmp_path / "00000.parquet", b"PAR1 a list of the tar PAR1")
    write(tmp_path / "00000_stats.json", "{}")
    assert listed(tmp_path) == {"train": [("000000", jpeg(1))]}


def shards(root: Path, *names: str) -> None:
    for seed, name in enumerate(names):
        write_tar(root / name, {f"{seed}.cls": b"0", f"{seed}.jpg": jpeg(seed)})


TIMM = {
    "splits": {
        "train": {"name": "train", "filenames": ["x-{00..01}.tar"], "shard_lengths": [1, 1]},
        "validation": {"name": "validation", "filenames": ["y-0.tar"], "shard_lengths": [1]},
    }
}
WIDS = {
    "__kind__": "wids-shard-index-v1",
    "wids_version": 1,
    "shardlist": [{"url": "x-00.tar", "nsamples": 1}, {"url": "x-01.tar", "nsamples": 1}],
}
NAMED = {
    "wids_version": 1,
    "datasets": [
        {"name": "x", "split": "train", "shardlist": WIDS["shardlist"]},
        {"name": "val", "shardlist": [{"url": "https://a.b/c/y-0.tar", "nsamples": 1}]},
    ],
}


@pytest.mark.parametrize(
    ("name", "told", "val"),
    [
        ("_info.json", TIMM, True),
        ("info.json", {"splits": list(TIMM["splits"].values())}, True),
        ("dataset.json", WIDS, False),
        ("shardindex.json", NAMED, True),
    ],
)
def test_lists_of_tars(name: str, told: dict[str, object], val: bool, tmp_path: Path) -> None:
    """The list says the splits, whatever the tars are called; what it does not name is told."""
    shards(tmp_path, "x-00.tar", "x-01.tar", "y-0.tar")
    write(tmp_path / name, json.dumps(told))
    expected = {"train": [("000000", jpeg(0)), ("000000", jpeg(1))]}
    assert listed(tmp_path) == (expected | {"val": [("000000", jpeg(2))]} if val else expected)
    notes = open_source(str(tmp_path)).notes
    assert notes == (
        ()
        if val
        else (f"not read, as {tmp_path}/{name} does not list them: y-0.tar in {tmp_path}",)
    )


def test_a_tar_names_no_other_split_than_its_folder(tmp_path: Path) -> None:
    shards(tmp_path / "train", "x-0.tar")
    shards(tmp_path / "val", "val-0.tar")
    assert [*listed(tmp_path)] == ["train", "val"]
    (tmp_path / "val/val-0.tar").rename(tmp_path / "val/train-1.tar")
    assert refusal(tmp_path) == (
        f"{tmp_path}/val/train-1.tar names another split than its folder, val; rename or move it"
    )


def test_what_is_of_a_tar_beside_it_is_not_named(tmp_path: Path) -> None:
    """By its name up to the first dot."""
    shards(tmp_path, "0.tar")
    for name in ("0.parquet", "0.b.parquet", "0.tar.idx", "1.b.parquet"):
        write(tmp_path / name, b"")
    assert open_source(str(tmp_path)).notes == (
        f"not read, beside tars: 1.b.parquet in {tmp_path}",
    )


def test_lists_that_contradict_the_tars(tmp_path: Path) -> None:
    shards(tmp_path, "x-00.tar", "x-01.tar", "y-0.tar")
    wrong = json.dumps(TIMM).replace('"shard_lengths": [1, 1]', '"shard_lengths": [1, 7]')
    write(tmp_path / "_info.json", wrong)
    line = refusal(tmp_path)
    assert f"{tmp_path}/x-01.tar has 1 samples, {tmp_path}/_info.json says 7" in line
    write(
        tmp_path / "_info.json",
        json.dumps(TIMM).replace("00..01", "00..02").replace("1, 1", "1, 1, 1"),
    )
    assert f"cannot read {tmp_path}/x-02.tar" in refusal(tmp_path)
    write(
        tmp_path / "_info.json",
        json.dumps(TIMM).replace("x-{00..01}.tar", "../x.tar").replace("1, 1", "1"),
    )
    assert "_info.json names '../x.tar', which is not in" in refusal(tmp_path)
    write(tmp_path / "_info.json", json.dumps(TIMM).replace("validation", "extra"))
    assert "_info.json has the split 'extra', which is none of" in refusal(tmp_path)


@pytest.mark.parametrize("lists", ["shardlist", "datasets"])
def test_a_list_of_webdataset_says_how_many_samples_there_are(tmp_path: Path, lists: str) -> None:
    shards(tmp_path, "x-00.tar", "x-01.tar")
    listed = [{"url": "x-00.tar", "nsamples": 1}, {"url": "x-01.tar", "nsamples": 1234}]
    told = {"shardlist": listed} if lists == "shardlist" else {}
    told["datasets"] = [{"name": "train", "shardlist": listed}]
    write(tmp_path / "dataset.json", json.dumps(told))
    assert refusal(tmp_path) == (
        f"{tmp_path}/x-01.tar has 1 samples, {tmp_path}/dataset.json says 1,234; get the tar again"
    )


def test_a_list_may_say_no_lengths(tmp_path: Path) -> None:
    shards(tmp_path, "x-00.tar", "x-01.tar")
    told = {"splits": {"train": {"name": "train", "filenames": ["x-{00..01}.tar"]}}}
    write(tmp_path / "_info.json", json.dumps(told))
    assert [len(images) for images in listed(tmp_path).values()] == [2]


def test_json_of_other_kinds_is_no_list(tmp_path: Path) -> None:
    shards(tmp_path, "x-00.tar")
    for text in ("[]", "{", "7", '{"shardlist": 3}', '{"splits": {"train": {"num_bytes": 1}}}'):
        write(tmp_path / "dataset.json", text)
        assert listed(tmp_path) == {"train": [("000000", jpeg(0))]}


# of the data b"x", as tensorboard 2.21.0's RecordWriter writes it
TFRECORD = bytes.fromhex("01000000000000000175de4178503daa61")


@pytest.mark.parametrize(
    ("name", "data", "what"),
    [
        ("train/index.json", b'{"version": 2, "shards": [{"format": "mds"}]}', "an MDS set"),
        ("shard.00000.mds", b"\1\0\0\0", "an MDS shard"),
        ("index.json", b'{"chunks": [], "config": {}}', "a set of LitData"),
        ("train_500_0.50_90.beton", b"\2\0\2\0", "a set of FFCV"),
        ("train-00000-of-01024", TFRECORD, "a TFRecord file"),
        ("x.tfrecord", b"", "a TFRecord file"),
        ("train.rec", b"\x0a\x23\xd7\xce", "a RecordIO file"),
        ("train.h5", b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
        ("train_lmdb/data.mdb", b"\0" * 64, "an LMDB database"),
        ("x.npy", b"\x93NUMPY", "a NumPy file"),
        ("x.npz", b"PK\3\4", "a NumPy file"),
        ("train-images-idx3-ubyte", b"\0\0\x08\3", "a file of MNIST's kind"),
        ("data_batch_1", b"\x80\x02}", "a pickle"),
        ("imagenet-object-localization-challenge.zip", b"PK\3\4", "a zip archive"),
        (
            "imagenet_object_localization_patched2019.tar.gz",
            b"\x1f\x8b\x08",
            "compressed with gzip",
        ),
        ("train.7z", b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    ],
)
def test_kinds_that_are_not_read(name: str, data: bytes, what: str, tmp_path: Path) -> None:
    """By SRC, and by the file itself; with what to give instead."""
    write(tmp_path / name, data)
    for root in (tmp_path, tmp_path / name):
        line = refusal(root)
        assert line.startswith(f"{tmp_path / name} is {what}")
        assert ", which is not read; " in line
        assert "give the" in line


def test_a_known_kind_beside_a_source_does_not_matter(tmp_path: Path) -> None:
    write(tmp_path / "train/c/1.jpg", jpeg(1))
    write(tmp_path / "Annotations.zip", b"PK\3\4")
    assert listed(tmp_path) == {"train": [("c", jpeg(1))]}


@pytest.mark.parametrize("name", ["train", "test", "a.pkl", "b.pickle", "data_batch_1"])
def test_pickles_of_cifar_are_known_by_their_names(name: str, tmp_path: Path) -> None:
    write(tmp_path / name, b"\x80\x02}")
    assert refusal(tmp_path).startswith(f"{tmp_path / name} is a pickle")


@pytest.mark.parametrize(
    ("files", "which"),
    [
        (["0.x", "1.x", "2.x", "3.npy"], "3.npy"),
        (["0.npy", "1.npy", "2.npy"], "0.npy"),
        (["a0", "a1", "a2", "a3", "z.npy"], "z.npy"),  # of another ending
        (["a/b/x.npy"], "a/b/x.npy"),
        (["a/b/c/x.npy"], None),
        (["a/x", "b/x", "c/x", "d/x.npy"], "d/x.npy"),
        (["a/x", "b/x", "c/x", "d/x", "e/x.npy"], None),
        ([".hidden.npy", ".a/x.npy"], None),
        (["a/x.npy", "b.npy"], "b.npy"),  # what lies nearer is named
    ],
)
def test_some_files_are_looked_at(files: list[str], which: str | None, tmp_path: Path) -> None:
    """Four of each ending, in SRC and two folders below it, in four folders of each."""
    for name in files:
        write(tmp_path / name, b"\x93NUMPY" if name.endswith("npy") else b"")
    line = refusal(tmp_path)
    if which:
        assert line.startswith(f"{tmp_path / which} is a NumPy file, which is not read")
    else:
        assert line.startswith(f"{tmp_path} holds neither ")


@pytest.mark.parametrize(("name", "found"), [("3.h5", True), ("4.h5", False)])
def test_of_an_ending_four_files_are_looked_at(name: str, found: bool, tmp_path: Path) -> None:
    for k in range(5):
        write(tmp_path / f"{k}.h5", b"\x89HDF\r\n\x1a\n" if f"{k}.h5" == name else b"")
    assert refusal(tmp_path).startswith(f"{tmp_path / name} is an HDF5 file") is found
