"""Tars made by hand: every message to the letter, rare headers, and DALI's index of an archive."""

from __future__ import annotations

import pytest
from test_tar import BEGIN, END, header, padded, read, refusal

from gratis.preprocess.sources.tar import (
    BLOCK,
    LONGEST_EXTENSION,
    Member,
    extension_of,
    idx_bytes,
    idx_line,
)

WAY_OUT = "get it again, or pack again what `tar -xif` unpacks of it"
FIRST = "no member is before it"
LAST = "the last good member is 'a.jpg'"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            b"x" * BLOCK,
            "byte 0: no member's header is there: its checksum is wrong (unpack it first if it is "
            f"compressed); {FIRST}",
        ),
        (
            BEGIN + b"x" * BLOCK,
            f"byte 2560: no member's header is there: its checksum is wrong; {LAST}",
        ),
        (b"\0" * BLOCK, f"byte 0: one block of zeros is there, where two should end it; {FIRST}"),
        (BEGIN, f"byte 2560: it is cut short: two blocks of zeros should end it; {LAST}"),
        (
            BEGIN + header(b"b.jpg", b"1000"),
            "byte 2560: it is cut short: member 'b.jpg' reaches to byte 3584 of 3072; " + LAST,
        ),
        (
            BEGIN + header(b"long", b"1000", b"L"),
            "byte 2560: it is cut short: member 'of a long name' reaches to byte 3584 of 3072; "
            + LAST,
        ),
        (
            BEGIN + header(b"sparse", b"0", b"S")[:482] + b"\x01" + bytes(29),
            f"byte 2560: no member's header is there: its checksum is wrong; {LAST}",
        ),
    ],
)
def test_where_and_what_and_what_was_before(data: bytes, message: str) -> None:
    assert refusal(data) == f"x.tar is damaged as a tar at {message}; {WAY_OUT}"


def summed(block: bytearray) -> bytes:
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def test_the_longest_name_and_one_byte_more() -> None:
    """Of a mebibyte; nothing but the first part of it is a name."""
    for extra in (0, 1):
        size = LONGEST_EXTENSION + extra
        name = b"n.jpg".ljust(size, b"\0")
        data = header(b"long", b"%o" % size, b"L") + padded(name) + header(b"x", b"0") + bytes(END)
        if extra:
            limit = f"a name of {size} bytes is there; the limit is {LONGEST_EXTENSION}"
            assert f"at byte 0: {limit}; {FIRST}" in refusal(data)
        else:
            assert [member.name for member in read(data)] == ["n.jpg"]


def test_what_gnu_has_in_the_place_of_a_prefix_is_none() -> None:
    """Times of access, where ustar has the first part of a long name."""
    for magic, name in ((b"ustar  \0", "a.jpg"), (b"ustar\x0000", "12345/a.jpg")):
        block = bytearray(header(b"a.jpg", b"0", b"0", magic))
        block[345:350] = b"12345"
        assert [member.name for member in read(summed(block) + bytes(END))] == [name]


def test_a_sparse_file_of_the_older_kind_is_passed_over() -> None:
    """Its map of holes goes on in two blocks of its own, before its bytes."""
    block = bytearray(header(b"sparse.jpg", b"1000", b"S", b"ustar  \0"))
    block[482] = 1
    maps = [bytearray(b"m" * BLOCK) for _ in range(2)]
    maps[0][504], maps[1][504] = 1, 0
    data = summed(block) + b"".join(maps) + padded(b"s" * 512)
    skipped: list[tuple[str, str]] = []
    found = read(data + header(b"b.jpg", b"3") + padded(b"abc") + bytes(END), skipped)
    assert found == [Member("b.jpg", 5 * BLOCK, 3)]
    assert skipped == [("sparse.jpg", "it is a sparse file, not a plain file")]
    line = refusal(data[: 2 * BLOCK])
    assert "at byte 0: it is cut short in the map of a sparse file" in line


@pytest.mark.parametrize(
    ("name", "extension"),
    [
        ("a.jpg", "jpg"),
        ("x.y/a.seg.png", "seg.png"),
        ("a", ""),
        ("x.y/a", ""),
        ("x/.hidden", "hidden"),
        ("a.", ""),
        ("/.jpg", "jpg"),
    ],
)
def test_all_behind_the_first_dot_is_the_extension(name: str, extension: str) -> None:
    assert extension_of(name) == extension


def test_dali_s_index_of_an_archive() -> None:
    """Blanks separate its fields, and there are none in them; bytes that are no text stay."""
    parts = [Member("x y/a\tb.jpg", 512, 700), Member("x y/a\tb.cls", 2048, 1)]
    line = idx_line(parts)
    assert line == "jpg 512 700 x_y/a_b.jpg cls 2048 1 x_y/a_b.cls\n"
    other = idx_line([Member("\udce9.jpg", 1, 2)])
    assert idx_bytes([line, other]) == (
        b"v1.2 2\njpg 512 700 x_y/a_b.jpg cls 2048 1 x_y/a_b.cls\njpg 1 2 \xe9.jpg\n"
    )
    assert idx_bytes([]) == b"v1.2 0\n"
