"""Event files as they are written and read on, and the fields of their records."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from gratis.events import EventTail, EventWriter, parse_record
from gratis.fields import command, count, integer, number, section, share, text


def kinds(tail: EventTail) -> list[str]:
    return [record["kind"] for record in tail.read()]


def test_a_line_that_a_killed_writer_tore_is_ended_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "a" / "rank-3.jsonl"
    EventWriter(path, attempt=1, rank=3).write("start", {"share": float("nan"), "of": [1e400, 2]})
    with path.open("ab") as file:
        file.write(b'{"v":1,"kind":"st')
    writer = EventWriter(path, attempt=2, rank=3)
    writer.write("step", {"x": 0.5}, epoch=0, step=7)
    writer.write("end", {})
    first, torn, step, end = path.read_bytes().splitlines()
    assert torn == b'{"v":1,"kind":"st'
    assert json.loads(first)["of"] == [None, 2]
    assert json.loads(first)["share"] is None
    record = json.loads(step)
    assert list(record) == ["v", "kind", "t", "mono", "attempt", "rank", "epoch", "step", "x"]
    assert (record["attempt"], record["rank"], record["epoch"], record["step"]) == (2, 3, 0, 7)
    assert "step" not in json.loads(end)
    tail = EventTail(path)
    assert kinds(tail) == ["start", "step", "end"]
    assert tail.garbage == 1


def test_a_full_disk_is_one_warning(capsys: pytest.CaptureFixture[str]) -> None:
    writer = EventWriter(Path("/dev/full"), attempt=1, rank=0)
    writer.write("start", {})
    writer.write("end", {})
    printed = capsys.readouterr()
    assert printed.err == "warning: events are lost: /dev/full: No space left on device\n"
    assert not printed.out


def test_a_file_is_read_on_and_from_its_start_once_it_is_shorter(tmp_path: Path) -> None:
    path = tmp_path / "rank-0.jsonl"
    line = b'{"kind":"%s","t":1}\n'
    tail = EventTail(path)
    assert tail.read() == []
    path.write_bytes(line % b"a" + line % b"b" + b'{"kind":"c"')
    assert kinds(tail) == ["a", "b"]
    assert kinds(tail) == []
    with path.open("ab") as file:
        file.write(b',"t":2}\n\n \nno record\n{"kind":1,"t":1}\n{"kind":"t"}\n')
    assert kinds(tail) == ["c"]
    assert (tail.garbage, tail.offset) == (3, path.stat().st_size)
    path.write_bytes(line % b"d")
    assert kinds(tail) == ["d"]
    assert tail.offset == len(line % b"d")
    with path.open("ab") as file:
        file.write(line % b"e")
    assert kinds(tail) == ["e"]
    # a line longer than the limit is passed by, and counts as one for each time
    path.write_bytes(b"x" * 300 + b"\n" + line % b"f")
    short = EventTail(path)
    assert [record["kind"] for _ in range(6) for record in short.read(100)] == ["f"]
    assert short.garbage == 3


# of a value: as a number, a count, a whole number and a share
VALUES: list[tuple[Any, Any, Any, Any, Any]] = [
    (3, 3.0, 3.0, 3, 1.0),
    (3.0, 3.0, 3.0, 3, 1.0),
    (0.5, 0.5, 0.5, None, 0.5),
    (0, 0.0, 0.0, 0, 0.0),
    (-2, -2.0, 0.0, None, 0.0),
    (-0.5, -0.5, 0.0, None, 0.0),
    (True, None, 0.0, None, None),
    ("3", None, 0.0, None, None),
    (None, None, 0.0, None, None),
    (float("nan"), None, 0.0, None, None),
    (float("inf"), None, 0.0, None, None),
    (10**15, None, 0.0, None, None),
    (10**15 - 1, 1e15 - 1, 1e15 - 1, 10**15 - 1, 1.0),
    (-(10**15), None, 0.0, None, None),
]


def test_fields_are_read_as_what_they_are() -> None:
    for value, *expected in VALUES:
        record = {"a": value}
        found = [of(record, "a") for of in (number, count, integer, share)]
        assert found == expected, value
        assert [type(one) for one in found] == [type(one) for one in expected]
        assert section(record, "a") == {}
    missing = [of({}, "a") for of in (number, count, integer, share, text)]
    assert missing == [None, 0.0, None, None, None]
    assert section({"a": {"b": 1}}, "a") == {"b": 1}


def test_texts_tell_no_paths_and_no_secrets() -> None:
    said: list[tuple[str, str, str]] = [
        ("two\n  lines\t", "two lines", "two lines"),
        ("no /home/me/data/x.tar there", "no x.tar there", "no .../x.tar there"),
        ("in ~/x and ./y/z", "in x and z", "in .../x and .../z"),
        ("s3://key:word@host/b?sig=1", "s3://host/b?...", "s3://host/b?..."),
        ("half \ud800 a pair", "half ? a pair", "half ? a pair"),
        ("3/4 of it", "3/4 of it", "3/4 of it"),
    ]
    for value, line, words in said:
        assert text({"a": value}, "a") == line
        assert command({"a": value}, "a") == words
    assert text({"a": "x" * 2000}, "a") == "x" * 300
    assert command({"a": "x" * 2000}, "a") == "x" * 1000
    assert command({"a": 1}, "a") is None


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rank-0.jsonl")
    with pytest.raises(OSError, match="Illegal seek"):
        EventTail(tmp_path / "rank-0.jsonl").read()


def test_half_a_character_is_a_text_as_others_are() -> None:
    """As names of files have them that are no UTF-8."""
    line = b'{"kind":"x","t":1,"name":"a\xed\xb3\xbf"}'
    assert parse_record(line) == {"kind": "x", "t": 1, "name": "a\udcff"}
    assert parse_record(b'{"kind":"x","t":1,"name":"\xff"}') is None
