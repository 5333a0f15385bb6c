"""The label and the class's name that a sample of a tar tells, and what is said where it tells
none, or two."""

from __future__ import annotations

import io
import json
import re
import tarfile
from pathlib import Path

import pytest

from gratis.errors import GratisError
from gratis.preprocess.sources.labels import LONGEST_LABEL
from gratis.preprocess.sources.open import open_source

Members = list[tuple[str, bytes]]


def tar(path: Path, members: Members) -> Path:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path.parent


def label(root: Path, name: str, data: bytes) -> int:
    """Of one sample, whose image lies beside this member."""
    root.mkdir(exist_ok=True)
    source = open_source(str(tar(root / "x.tar", [("a.jpg", b"x"), (name, data)])))
    return int(source.splits["train"].label[0])


@pytest.mark.parametrize(
    "fields",
    [
        {"label": 3},
        {"label": "3"},
        {"label": " 03 "},
        {"label": 3.0},
        {"cls": 3},
        {"Class_ID": "3", "class_name": "tench"},
        {"classIndex": 3, "label": "tench"},
        {"class-label": 3, "label": None},
        {"label_idx": 3, "label": 3.0, "target": "3"},
        {"label": 3, "width": 7, "id": 8, "category_id": 9, "score": True, "labels": [1, 2]},
        {"exif": "x" * 5_000_000, "label": 3},
        {"label": 3, "target": 0.7, "class": ["fish", "tench"], "cls": True},
    ],
)
def test_a_label_in_json(tmp_path: Path, fields: dict[str, object]) -> None:
    assert label(tmp_path / "j", "a.json", json.dumps(fields).encode()) == 3
    assert label(tmp_path / "i", "a.JSON", b"\xef\xbb\xbf" + json.dumps(fields).encode()) == 3


@pytest.mark.parametrize("name", ["a.cls", "a.CLS", "a.Cls"])
@pytest.mark.parametrize("text", [b"3", b"03\n", b'"3"', b"3.0"])
def test_a_label_in_a_member_of_its_own(tmp_path: Path, name: str, text: bytes) -> None:
    assert label(tmp_path, name, text) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"label": 3.5}', "is '3.5', no class number from 0 to 99,999"),
        (b'{"label": true}', "is 'True', no class number"),
        (b'{"label": [3]}', r"is '\[3\]', no class number"),
        (b'{"label": -1}', "is '-1', no class number"),
        (b'{"class_id": 100000}', "is '100000', no class number"),
        (b'{"label": "tench"}', "is 'tench', no class number"),
        (b'{"caption": "a cat"}', r"no field label, cls or class_id but 'caption'"),
        (b"[3]", "no field label, cls or class_id but none at all"),
        (b"{", "no field label, cls or class_id but none at all"),
    ],
)
def test_what_is_no_label_is_shown(tmp_path: Path, text: bytes, message: str) -> None:
    with pytest.raises(GratisError, match=message):
        label(tmp_path, "a.json", text)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_two_labels_that_disagree_are_an_error_in_any_order(
    tmp_path: Path, order: tuple[int, ...]
) -> None:
    files = [("a.json", b'{"label": 5}'), ("a.cls", b"1"), ("a.jpg", b"x")]
    tar(tmp_path / "x.tar", [files[k] for k in order])
    with pytest.raises(GratisError, match=r"x\.tar: the labels of 'a' disagree, \d in 'a\.") as it:
        open_source(str(tmp_path))
    assert "5 in 'a.json'" in str(it.value)
    assert "1 in 'a.cls'" in str(it.value)


@pytest.mark.parametrize("fields", [{"label": 5, "class_id": 6}, {"label": "5", "cls": 1}])
def test_two_fields_that_disagree_are_an_error(tmp_path: Path, fields: dict[str, object]) -> None:
    with pytest.raises(GratisError, match="the labels of 'a' disagree"):
        label(tmp_path, "a.json", json.dumps(fields).encode())


def refusal(root: Path, members: Members) -> str:
    with pytest.raises(GratisError) as caught:
        open_source(str(tar(root / "train-0.tar", members)))
    return str(caught.value)


def test_a_missing_label_tells_what_is_there(tmp_path: Path) -> None:
    files = [("a.jpg", b"x" * 1234), ("a.txt", b"a caption"), ("a.npy", b"")]
    assert (
        "'a' has no label: of its members in order, 'a.jpg' (1,234 B), 'a.txt' (9 B), "
        "'a.npy' (0 B), none is a .cls or .json; add one, or go without labels: --unlabelled"
    ) in refusal(tmp_path, files)
    many = [("a.jpg", b"x"), *((f"a.{k}", b"") for k in range(9))]
    assert "'a.3' (0 B) and 5 more, none is" in refusal(tmp_path, many)


def test_a_label_elsewhere_in_the_tar_is_named(tmp_path: Path) -> None:
    line = refusal(
        tmp_path, [("b/a.jpg", b"x"), ("b/b.jpg", b"y"), ("b/a.CLS", b"0"), ("b/b.cls", b"0")]
    )
    # a header and a block for each of two images, then the label's own header
    assert f"'b/a.CLS' lies elsewhere in this tar, at byte {5 * 512:,}: a sample's memb" in line


def test_a_key_ends_at_its_first_dot(tmp_path: Path) -> None:
    line = refusal(tmp_path, [("a_0.5.cls", b"0"), ("a_0.5.jpg", b"x")])
    assert "a key ends at its first dot, so that one is a .5.cls" in line
    line = refusal(tmp_path, [("a.1.jpg", b"x"), ("a.2.jpg", b"y"), ("a.cls", b"0")])
    assert "has 2 images" in line
    assert "a key ends at its first dot" in line


def test_how_long_a_json_may_be_is_told(tmp_path: Path) -> None:
    text = json.dumps({"label": 0, "exif": "x" * LONGEST_LABEL}).encode()
    line = refusal(tmp_path, [("a.jpg", b"x"), ("a.json", text)])
    assert "the .json is longer than 16,777,216 bytes, the most that is read" in line


def words(root: Path, members: Members) -> list[str]:
    root.mkdir(exist_ok=True)
    return [c.words for c in open_source(str(tar(root / "train-0.tar", members))).classes]


def named(key: str, number: int, **fields: object) -> Members:
    return [(f"{key}.jpg", b"x"), (f"{key}.json", json.dumps(fields | {"label": number}).encode())]


def test_names_of_classes_in_json(tmp_path: Path) -> None:
    files = [
        *named("a", 2, class_name="great  white\nshark", wnid="n2"),
        *named("b", 0, synset="k"),
    ]
    assert words(tmp_path / "a", files) == ["k", "000001", "great white shark"]
    files = [*named("a", 1, Label_Name="\ud83d\udc1f"), *named("b", 0, class_name="\udce9")]
    assert words(tmp_path / "b", files) == ["000000", "🐟"]
    # a caption in such a field names no class
    files = [*named("a", 0, class_name="x"), *named("b", 0, class_name="y"), *named("c", 1)]
    assert words(tmp_path / "c", files) == ["000000", "000001"]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["n01440764_1", "n01443537_7", "n01440764_2"], ["n01440764", "n01443537"]),
        (["cat/1", "a/dog/1", "cat/2"], ["cat", "dog"]),
        (["n01440764/n01440764_1", "n02/2", "n01440764/n01440764_9"], ["n01440764", "n02"]),
        (["img/1", "img/2", "img/3"], None),
        (["cat/1", "dog/1", "bird/1"], None),
        (["1", "dog/1", "2"], None),
        (["./1", "./2", "./3"], None),
    ],
)
def test_names_of_classes_in_keys(
    tmp_path: Path, keys: list[str], expected: list[str] | None
) -> None:
    """The labels are 0, 1 and 0: only what is of one class alone names it."""
    files = [
        part
        for k, key in enumerate(keys)
        for part in [(f"{key}.jpg", b"x"), (f"{key}.cls", b"%d" % (k % 2))]
    ]
    assert words(tmp_path, files) == (expected or ["000000", "000001"])


def test_links_are_labels_and_images(tmp_path: Path) -> None:
    """As tar packs a folder in which files of equal contents were linked."""
    with tarfile.open(tmp_path / "train-0.tar", "w") as archive:
        for name, target, kind in (
            ("a.cls", None, None),
            ("a.jpg", None, None),
            ("b.cls", "a.cls", tarfile.LNKTYPE),
            ("b.jpg", "a.jpg", tarfile.SYMTYPE),
        ):
            info = tarfile.TarInfo(name)
            if target:
                info.type, info.linkname = kind or b"", target
            data = b"" if target else b"4"
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    train = open_source(str(tmp_path)).splits["train"]
    assert train.label.tolist() == [4, 4]
    assert len(set(train.offset.tolist())) == 1
    assert [train.item(row).key for row in range(2)] == ["a", "b"]


@pytest.mark.parametrize("unknown", [2, 1])
def test_a_class_of_val_that_train_lacks_is_an_error(tmp_path: Path, unknown: int) -> None:
    """Beyond train's largest, or between them."""
    tar(tmp_path / "train-0.tar", [("a.jpg", b"x"), ("a.cls", b"0")])
    second = b"2" if unknown == 1 else b"1"
    tar(tmp_path / "train-1.tar", [("b.jpg", b"x"), ("b.cls", second)])
    files = [("c.jpg", b"x"), ("c.cls", b"0"), ("d.jpg", b"x"), ("d.cls", b"%d" % unknown)]
    tar(tmp_path / "val-0.tar", files)
    place = re.escape(f"{tmp_path}/val-0.tar:d.jpg")
    with pytest.raises(
        GratisError, match=f"{place} of the split val has label {unknown}, which no sample of train"
    ):
        open_source(str(tmp_path))
