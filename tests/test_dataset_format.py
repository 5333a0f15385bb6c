"""A dataset on disk: which formats a reader takes, the manifest to the byte, and what is said of
files that are none."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image as Pillow

from gratis.dataset import (
    ImageClass,
    Manifest,
    Shard,
    Split,
    class_words,
    is_decodable,
    parse_manifest,
    read_manifest,
    require_split,
    require_square,
)
from gratis.errors import GratisError
from gratis.schema import check_types


def with_format(root: Path, number: int, to: Path) -> Path:
    raw = json.loads((root / "manifest.json").read_bytes())
    (to / "manifest.json").write_text(json.dumps(raw | {"format": number}))
    return to


@pytest.mark.parametrize("number", [1, 2])
def test_a_reader_takes_its_format_and_the_one_before(
    jpeg_dataset: Path, tmp_path: Path, number: int
) -> None:
    assert read_manifest(with_format(jpeg_dataset, number, tmp_path)).format == number


@pytest.mark.parametrize("number", [0, 3])
def test_another_format_is_refused(jpeg_dataset: Path, tmp_path: Path, number: int) -> None:
    root = with_format(jpeg_dataset, number, tmp_path)
    with pytest.raises(
        GratisError, match=rf"has format {number}; this version reads 1 and 2: make"
    ):
        read_manifest(root)


SQUARE = Manifest(
    format=2,
    image_size=64,
    codec="jpeg",
    quality=95,
    seed=7,
    samples_per_shard=10,
    source="s",
    tools={"pillow": "1"},
    classes=(ImageClass(wnid="n1", words="tench, Tinca", ilsvrc_id=None),),
    splits={
        "train": Split(
            shards=(
                Shard(name="a.tar", samples=3, bytes=9, sha256="x"),
                Shard(name="b.tar", samples=4, bytes=9, sha256="y"),
            ),
            index_sha256="i",
            conversions={},
            rejects={"empty": 1},
        )
    },
    stats_sha256="t",
)
WHOLE = dataclasses.replace(SQUARE, shape="whole", max_aspect=2.0, enlarge=True)
TEXT = """{
 "format": 2,
 "image_size": 64,
 "codec": "jpeg",
 "quality": 95,
 "seed": 7,
 "samples_per_shard": 10,
 "source": "s",
 "tools": {
  "pillow": "1"
 },
 "classes": [
  {
   "wnid": "n1",
   "words": "tench, Tinca",
   "ilsvrc_id": null
  }
 ],
 "splits": {
  "train": {
   "shards": [
    {
     "name": "a.tar",
     "samples": 3,
     "bytes": 9,
     "sha256": "x"
    },
    {
     "name": "b.tar",
     "samples": 4,
     "bytes": 9,
     "sha256": "y"
    }
   ],
   "index_sha256": "i",
   "conversions": {},
   "rejects": {
    "empty": 1
   }
  }
 },
 "stats_sha256": "t"%s
}
"""


def test_the_manifest_to_the_byte() -> None:
    """Of square images nothing is said of shapes; what is not ASCII is written as it is."""
    assert SQUARE.to_json() == (TEXT % "").encode()
    shaped = ',\n "shape": "whole",\n "max_aspect": 2.0,\n "enlarge": true'
    assert WHOLE.to_json() == (TEXT % shaped).encode()
    for manifest in (SQUARE, WHOLE, dataclasses.replace(SQUARE, image_size=1)):
        assert parse_manifest(manifest.to_json(), "m") == manifest
        assert manifest.hash == hashlib.sha256(manifest.to_json()).hexdigest()
    assert dataclasses.replace(SQUARE, source="é").to_json() == (
        (TEXT % "").replace('"source": "s"', '"source": "é"').encode()
    )
    assert SQUARE.splits["train"].samples == 7


@pytest.mark.parametrize(
    "name",
    [
        "../a.tar",
        "/a.tar",
        "a/b.tar",
        "a.tar/../../y",
        "a.tar\n",
        "a.tar.sh",
        ".a.tar",
        "a.tAr",
        "é.tar",
        "a" * 202 + ".tar",
        ".tar",
        "a.tar ",
    ],
)
def test_what_is_no_shards_name(name: str) -> None:
    with pytest.raises(ValueError, match="is no shard's name"):
        Shard(name=name, samples=1, bytes=1, sha256="")


@pytest.mark.parametrize("name", ["a.tar", "train-00000.tar", "_a.b-c.tar", "a" * 201 + ".tar"])
def test_what_is_a_shards_name(name: str) -> None:
    assert Shard(name=name, samples=1, bytes=1, sha256="").name == name


def test_a_class_is_called_by_its_first_word() -> None:
    classes = (*SQUARE.classes, ImageClass(wnid="n2", words="carp", ilsvrc_id=2))
    assert [class_words(classes, label) for label in (0, 1)] == ["tench", "carp"]
    assert class_words((), -1) == "unlabelled"


def test_splits_and_shapes_that_are_not_there() -> None:
    assert require_split("R", SQUARE, "train") is SQUARE.splits["train"]
    two = dataclasses.replace(SQUARE, splits={"val": SQUARE.splits["train"], **SQUARE.splits})
    for wrong in ("test", None, ["train"]):
        with pytest.raises(GratisError) as caught:
            require_split("R", two, wrong)  # type: ignore[arg-type]
        assert str(caught.value) == f"R has no split {wrong!r}; it has train, val"
    require_square("R", SQUARE, "X")
    with pytest.raises(GratisError) as caught:
        require_square("R", WHOLE, "X")
    assert str(caught.value) == (
        "X needs square images of one size, and those of R keep their shape: make shards with "
        "--shape square"
    )


def test_where_there_is_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(GratisError) as caught:
        read_manifest(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} is no dataset: it has no manifest.json; make one with `gratis shards --src "
        f"... --out {tmp_path}`"
    )
    (tmp_path / "manifest.json").write_bytes(b"\xff")
    with pytest.raises(GratisError) as caught:
        read_manifest(tmp_path)
    assert str(caught.value) == f"{tmp_path}/manifest.json is not a manifest{WAY_OUT}"
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(GratisError) as caught:
        read_manifest(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/manifest.json cannot be read (Is a directory); verify the copy, or its "
        "permissions"
    )


WAY_OUT = "; make the shards again, or verify the copy"


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"codec": "png"}, "is damaged (images of 64 px in codec 'png')"),
        ({"image_size": 0}, "is damaged (images of 0 px in codec 'jpeg')"),
        ({"format": 3}, None),
        ({"classes": [{"wnid": "n"}]}, "is damaged ("),
        ({"seed": "7"}, "is damaged ("),
    ],
)
def test_a_damaged_manifest_is_named(changes: dict[str, Any], what: str | None) -> None:
    text = json.dumps(json.loads(SQUARE.to_json()) | changes).encode()
    with pytest.raises(GratisError) as caught:
        parse_manifest(text, "m.json")
    said = str(caught.value)
    if what is None:
        assert said == "m.json has format 3; this version reads 1 and 2: make the shards again"
    else:
        assert said.startswith(f"m.json {what}")
        assert said.endswith(WAY_OUT)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b"", "is not a manifest"),
        (b"[2]", "is not a manifest"),
        (b"{}", "is not a manifest"),
        (b"[" * 100_000, "is damaged (brackets within brackets)"),
        (b'{"format": 2}', "is damaged ('classes')"),
    ],
)
def test_what_is_no_manifest_is_named(text: bytes, what: str) -> None:
    with pytest.raises(GratisError) as caught:
        parse_manifest(text, "m.json")
    assert str(caught.value) == f"m.json {what}{WAY_OUT}"


def ppm(header: bytes, size: int) -> np.ndarray:
    return np.frombuffer(header + bytes(size), np.uint8)


@pytest.mark.parametrize(
    ("header", "size", "sound"),
    [
        (b"P6\n5 4\n255\n", 60, True),
        (b"P6\n4 5\n255\n", 60, False),
        (b"P6\n5 4\n255\n", 59, False),
        (b"P6\n5 4\n255\n", 61, False),
        (b"P6\n5 4\n254\n", 60, False),
        (b"P6 5 4\n255\n", 60, False),
    ],
)
def test_raw_pixels_have_their_header_and_their_length(
    header: bytes, size: int, sound: bool
) -> None:
    """Of an image of 4 rows and 5 columns."""
    assert is_decodable(ppm(header, size), "raw", 4, 5) is sound


def test_a_jpeg_has_the_size_that_the_index_says() -> None:
    buffer = io.BytesIO()
    Pillow.new("RGB", (24, 16), "teal").save(buffer, "JPEG")
    data = np.frombuffer(buffer.getvalue(), np.uint8).copy()  # that can be written: as is read
    found = {(h, w): is_decodable(data, "jpeg", h, w) for h in (16, 24) for w in (16, 24)}
    assert found == {(16, 24): True, (16, 16): False, (24, 16): False, (24, 24): False}
    assert not is_decodable(data[:-9], "raw", 16, 24)


@dataclass
class Inner:
    level: Literal["low", "high"]


@dataclass
class Outer:
    count: int
    share: float | None
    inner: Inner
    names: tuple[str, ...]
    sizes: dict[str, int]


FITTING: dict[str, Any] = {
    "count": 3,
    "share": 0.5,
    "inner": Inner("high"),
    "names": ("a", "b"),
    "sizes": {"a": 1, "b": 2},
}
NOT_FITTING: list[tuple[str, Any, str]] = [
    ("count", True, "count is True"),
    ("count", 3.0, "count is 3.0"),
    ("count", "3" * 500, "count is '3+[.]{3}3+'$"),
    ("share", 1, "share is 1"),
    ("share", "0.5", "share is '0.5'"),
    ("inner", {"level": "low"}, "inner is {'level': 'low'}"),
    ("inner", Inner("middle"), "level is 'middle'"),  # type: ignore[arg-type]
    ("inner", Inner(1), "level is 1"),  # type: ignore[arg-type]
    ("names", ["a"], r"names is \['a'\]"),
    ("names", ("a", 1), r"names is \('a', 1\)"),
    ("names", (1, "a"), r"names is \(1, 'a'\)"),
    ("sizes", None, "sizes is None"),
    ("sizes", [("a", 1)], r"sizes is \[\('a', 1\)\]"),
    ("sizes", {"a": 1, 2: 2}, "sizes is {'a': 1, 2: 2}"),
    ("sizes", {"a": "1", "b": 2}, "sizes is {'a': '1', 'b': 2}"),
]


def test_values_of_json_have_the_types_that_are_declared() -> None:
    check_types(Outer(**FITTING))
    check_types(Outer(**FITTING | {"share": None, "names": (), "sizes": {}}))
    for name, value, message in NOT_FITTING:
        with pytest.raises(TypeError, match=f"^{message}") as raised:
            check_types(Outer(**FITTING | {name: value}))
        assert len(str(raised.value)) < 60
