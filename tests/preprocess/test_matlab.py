"""The devkit's meta.mat: read as SciPy reads it, written as SciPy writes it, and never trusted."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

from gratis.preprocess.sources import matlab
from gratis.preprocess.sources.imagenet import DEVKIT, read_devkit
from gratis.preprocess.sources.matlab import Cell, Value, read_struct, whole, write_struct

ROWS: list[dict[str, Cell]] = [
    {"number": 1, "word": "crêpe, pancake", "children": []},
    {"number": -(1 << 40), "word": "n01440764", "children": [3, 1, 2]},
    {"number": 7, "word": "", "children": 9},
]
HEADER = b"MATLAB 5.0 MAT-file, by hand".ljust(124) + b"\x00\x01IM"


def plain(rows: list[dict[str, Value]]) -> list[dict[str, object]]:
    return [{k: v if isinstance(v, str) else v.tolist() for k, v in row.items()} for row in rows]


def element(kind: int, content: bytes) -> bytes:
    return struct.pack("<II", kind, len(content)) + content + bytes(-len(content) % 8)


def small(kind: int, content: bytes) -> bytes:
    return struct.pack("<HH", kind, len(content)) + content.ljust(4, b"\0")


def array(number: int, shape: tuple[int, int], name: bytes, *parts: bytes) -> bytes:
    flags, dimensions = struct.pack("<II", number, 0), struct.pack("<ii", *shape)
    return element(
        14, element(6, flags) + element(5, dimensions) + small(1, name) + b"".join(parts)
    )


def one_field(*values: bytes, name: bytes = b"s", width: int = 4, rows: int = 1) -> bytes:
    fields = small(5, struct.pack("<i", width)), element(1, b"x".ljust(width, b"\0"))
    return array(2, (rows, 1), name, *fields, *values)


def double(value: float) -> bytes:
    return array(6, (1, 1), b"", element(9, struct.pack("<d", value)))


def test_what_is_written_is_read() -> None:
    rows = plain(read_struct(write_struct("synsets", ROWS), "synsets"))
    assert rows == [
        {"number": [1], "word": "crêpe, pancake", "children": []},
        {"number": [-(1 << 40)], "word": "n01440764", "children": [3, 1, 2]},
        {"number": [7], "word": "", "children": [9]},
    ]


def test_bytes_made_by_hand() -> None:
    """As MATLAB compresses them: small elements, doubles as bytes, texts of 16 bits a character."""
    number = array(6, (1, 1), b"", small(2, b"\x2a"))
    text = array(4, (1, 3), b"", element(4, "été".encode("utf-16-le")))
    empty = element(14, b"")
    pair = one_field(number, text, rows=2)
    data = HEADER + b"".join(
        element(15, zlib.compress(part)).rstrip(b"\0") for part in (double(1.0), pair)
    )
    assert plain(read_struct(data, "s")) == [{"x": [42]}, {"x": "été"}]
    assert plain(read_struct(HEADER + one_field(empty), "s")) == [{"x": []}]


@pytest.mark.parametrize("compressed", [False, True])
def test_equals_scipy(compressed: bool) -> None:
    scipy = pytest.importorskip("scipy.io", reason="needs scipy")
    table = np.zeros((len(ROWS), 1), dtype=[(name, "O") for name in ROWS[0]])
    for number, row in enumerate(ROWS):
        values = [np.zeros((1, 0)) if value == [] else value for value in row.values()]
        table[number, 0] = tuple(values)
    file = io.BytesIO()
    scipy.savemat(file, {"other": np.arange(3), "synsets": table}, do_compression=compressed)
    assert plain(read_struct(file.getvalue(), "synsets")) == plain(
        read_struct(write_struct("synsets", ROWS), "synsets")
    )
    theirs = scipy.loadmat(io.BytesIO(write_struct("synsets", ROWS)))["synsets"]
    assert [str(row["word"].squeeze()) for row in theirs[:2, 0]] == [r["word"] for r in ROWS[:2]]
    assert theirs[1, 0]["children"].tolist() == [[3, 1, 2]]
    if not compressed:
        written = ROWS[:2]  # SciPy writes an empty text in another way
        file = io.BytesIO()
        scipy.savemat(file, {"synsets": table[:2]})
        assert write_struct("synsets", written)[116:] == file.getvalue()[116:]


def test_the_official_layout(tiny100: Path) -> None:
    synsets, truth = read_devkit(str(tiny100 / DEVKIT))
    # read off the kit by hand: meta.mat's first row is (1, n04099969, rocking chair)
    first = next(synset for synset in synsets if synset.ilsvrc_id == 1)
    assert (first.wnid, first.words.partition(",")[0]) == ("n04099969", "rocking chair")
    assert len(synsets) == 100
    assert set(truth) == {synset.ilsvrc_id for synset in synsets}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no MATLAB 5 file"),
        (HEADER[:126] + b"MI", "no MATLAB 5 file in little-endian order"),
        (HEADER + one_field(double(1.0))[:-8], "reaches past the end"),
        (HEADER + struct.pack("<II", 14, 1 << 31), "reaches past the end"),
        (HEADER + one_field(double(1.0), rows=1 << 30), "1 values for 1073741824 elements"),
        (HEADER + one_field(double(1.0), rows=-1), "without a class or dimensions"),
        (HEADER + one_field(width=0), "fields of 0 bytes"),
        (HEADER + one_field(element(9, bytes(8))), "type 9 in an array's place"),
        (HEADER + one_field(one_field(double(1.0))), "an array of class 2"),
        (HEADER + element(15, zlib.compress(one_field(double(1.0)))[:20]), "ends early"),
        (HEADER + element(14, element(6, bytes(8))), "not enough values"),
    ],
)
def test_damage_is_a_value_error(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_struct(data, "s")


def test_any_cut_and_any_changed_byte_is_an_error_or_a_result() -> None:
    data = write_struct("s", [{"n": 3, "w": "word"}])
    for at in range(len(data)):
        for damaged in (data[:at], data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]):
            try:
                read_struct(damaged, "s")
            except (ValueError, KeyError):
                continue


def test_decompression_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matlab, "LIMIT", 1000)
    bomb = element(15, zlib.compress(bytes(1 << 20)))
    with pytest.raises(ValueError, match="more than 1000 bytes"):
        read_struct(HEADER + bomb, "s")


def test_another_name_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        read_struct(write_struct("s", ROWS), "synsets")


@pytest.mark.parametrize("value", ["3", np.array([]), np.array([1.0, 2.0]), np.array([1.5])])
def test_whole_numbers_only(value: Value) -> None:
    with pytest.raises(ValueError, match="no whole number"):
        whole(value)
    assert whole(np.array([3.0])) == 3
    for infinite in (np.inf, np.nan):
        with pytest.raises(ValueError, match="no whole number"):
            whole(np.array([infinite]))
