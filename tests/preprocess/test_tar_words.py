"""Tars made by hand: every message to the letter, rare headers, and DALI's index of an archive."""

from __future__ import annotations

import io
import tarfile

import pytest
from test_tar import BEGIN, END, Archive, contents, header, padded, read, refusal, special, tar

from gratis.errors import GratisError
from gratis.preprocess.sources.tar import (
    BLOCK,
    LONGEST_EXTENSION,
    MOST_PADDING,
    Member,
    extension_of,
    idx_bytes,
    idx_line,
    members,
)

WAY_OUT = "get it again, or pack again what `tar -xif` unpacks of it"
FIRST = "no member is before it"
LAST = "the last good member is 'a.jpg'"


def pax(kind: bytes = b"x", **records: str) -> bytes:
    """A header with these records, by the rule of POSIX: a line's length counts its own digits."""
    data = b""
    for key, value in records.items():
        rest = f" {key}={value}\n".encode("utf-8", "surrogateescape")
        length = next(n for n in range(len(rest), len(rest) + 9) if n == len(str(n)) + len(rest))
        data += str(length).encode() + rest
    return header(b"pax", b"%o" % len(data), kind) + padded(data)


def named(name: bytes, size: bytes = b"0") -> bytes:
    """GNU's way of a long name."""
    return header(b"long", b"%o" % len(name), b"L") + padded(name) + header(b"short", size)


def by_tarfile(data: bytes) -> list[Member]:
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as archive:
        return [Member(m.name, m.offset_data, m.size) for m in archive if m.isreg()]


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
        (
            BEGIN + b"\0" + b"x" * 511,  # no block of zeros
            f"byte 2560: no member's header is there: its checksum is wrong; {LAST}",
        ),
        (b"\0" * BLOCK, f"byte 0: one block of zeros is there, where two should end it; {FIRST}"),
        (BEGIN, f"byte 2560: it is cut short: two blocks of zeros should end it; {LAST}"),
        (
            BEGIN + header(b"b.jpg", b"1000"),
            "byte 2560: it is cut short: member 'b.jpg' reaches to byte 3584 of 3072; " + LAST,
        ),
        (
            BEGIN + header(b"b.jpg", b"00000001000"),  # as most programs write it
            "byte 2560: it is cut short: member 'b.jpg' reaches to byte 3584 of 3072; " + LAST,
        ),
        (
            header(b"a.jpg", b"1000") + bytes(BLOCK),
            f"byte 1024: it is cut short: two blocks of zeros should end it; {LAST}",
        ),
        (
            BEGIN + header(b"link", b"0", b"2") + b"x" * BLOCK,
            "byte 3072: no member's header is there: its checksum is wrong; "
            "the last good member is 'link'",
        ),
        (
            BEGIN + named(b"n")[: 2 * BLOCK] + bytes(END),
            "byte 3584: a header that belongs to the next member is the last one; " + LAST,
        ),
        (
            BEGIN + header(b"long", b"1000", b"L"),
            "byte 2560: it is cut short: member 'of a long name' reaches to byte 3584 of 3072; "
            + LAST,
        ),
        (
            named(b"n" * 999) + header(b"b.jpg", b"x"),
            f"byte 2048: the header there gives no size; the last good member is '{200 * 'n'}'",
        ),
        (
            named(b"n" * 999, size=b"1000"),
            f"byte 1536: it is cut short: member '{200 * 'n'}' reaches to byte 2560 of 2048; "
            + FIRST,
        ),
        (
            BEGIN + header(b"sparse", b"0", b"S")[:482] + b"\x01" + bytes(29),
            f"byte 2560: no member's header is there: its checksum is wrong; {LAST}",
        ),
    ],
)
def test_where_and_what_and_what_was_before(data: bytes, message: str) -> None:
    assert refusal(data) == f"x.tar is damaged as a tar at {message}; {WAY_OUT}"


def test_an_archive_that_has_become_shorter_than_it_was() -> None:
    line = refusal(BEGIN + b"x" * 100, len(BEGIN) + BLOCK)
    assert "at byte 2560: it is cut short: two blocks of zeros should end it" in line


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
    """Times of access, where ustar has the first part of a long name, of one byte or more."""
    for magic, prefix, name in (
        (b"ustar  \0", b"12345", "a.jpg"),
        (b"ustar\x0000", b"12345", "12345/a.jpg"),
        (b"ustar\x0000", b"1", "1/a.jpg"),
    ):
        block = bytearray(header(b"a.jpg", b"0", b"0", magic))
        block[345 : 345 + len(prefix)] = prefix
        assert [member.name for member in read(summed(block) + bytes(END))] == [name]


def test_fields_that_are_full_to_their_last_byte() -> None:
    """Each ends where the next one begins: name, linked name, and first part of the name."""
    blocks = [bytearray(header(b"n" * 100, b"3")), bytearray(header(b"l" * 100, b"0", b"1"))]
    for block in blocks:
        block[100:124] = b"0000644\0" * 3
        block[157:257] = b"p" * 54 + b"/" + b"n" * 45
        block[345:501] = b"p" * 155 + b"x"
    blocks[1][157:257] = b"t" * 100
    data = padded(b"abc").join(map(summed, blocks))
    skipped: list[tuple[str, str]] = []
    (found,) = read(data + bytes(END), skipped)
    assert found == Member("p" * 155 + "/" + "n" * 100, BLOCK, 3)
    why = f"it is a link to '{'t' * 100}', which is no file of this tar"
    assert skipped == [("p" * 155 + "/" + "l" * 100, why)]


def test_what_has_no_bytes_has_none_whatever_its_size_says() -> None:
    """Links, devices, folders, pipes and labels, as tarfile reads them too; of what no program
    knows the bytes are passed over. A folder's name ends with a slash in the oldest tars alone."""
    kinds = (b"1", b"2", b"3", b"4", b"5", b"6", b"V")
    data = b"".join(header(b"is " + kind, b"1000", kind) for kind in kinds)
    data += header(b"folder/", b"0", b"\0", b"") + header(b"other/", b"3", b"Q") + padded(b"abc")
    data += header(b"plain/", b"3") + padded(b"abc") + header(b"b", b"3", b"7") + padded(b"abc")
    skipped: list[tuple[str, str]] = []
    found = read(data + bytes(END), skipped)
    assert found == [Member("plain/", 11 * BLOCK, 3), Member("b", 13 * BLOCK, 3)]
    of_no_file = "it is a link to '.', which is no file of this tar"
    device, pipe = "it is a device, not a plain file", "it is a named pipe, not a plain file"
    reasons = {"is 1": of_no_file, "is 2": of_no_file, "is 3": device, "is 4": device, "is 6": pipe}
    assert skipped == list(reasons.items())
    nothing = [member for member in by_tarfile(data + bytes(END)) if member.name == "b"]
    assert nothing == found[1:]


def test_records_of_pax() -> None:
    """Of all that follow, of the next member, of both; beside a GNU name; and a size among them,
    which is no size of another such header."""
    plain = header(b"short", b"00000000003") + padded(b"abc")  # as most programs write it
    data = b"".join(
        [
            pax(path="first") + plain,
            pax(b"X", path="Solaris") + plain,
            pax(b"g", path="all", comment="none") + pax(b"g", comment="other") + plain,
            pax(path="own", mtime="1.5") + plain,
            pax(mtime="1.5") + plain,
        ]
    )
    found = read(data + bytes(END))
    assert [member.name for member in found] == ["first", "Solaris", "all", "own", "all"]
    assert found == by_tarfile(data + bytes(END))
    # a second tar is none of those that follow
    again = data + bytes(END) + pax(mtime="1.5") + plain + bytes(END)
    assert [member.name for member in read(again)][5:] == ["short"]
    nothing = header(b"short", b"0") + padded(b"abc")
    gnu = header(b"long", b"4", b"L") + padded(b"long")
    gnu_link = header(b"longer", b"4", b"K") + padded(b"long")
    link = header(b"link", b"1000", b"2")
    for before in (
        pax(size="3") + gnu,
        gnu + pax(size="3"),
        gnu + pax(comment="none") + pax(size="3"),
        pax(b"g", size="3") + gnu,
    ):
        assert contents(before + nothing + bytes(END)) == [("long", b"abc")]
    followed = contents(gnu + plain + gnu_link + link + pax(linkpath="long") + link + bytes(END))
    assert followed == [("long", b"abc"), ("link", b"abc"), ("link", b"abc")]
    for size in ("-1", "many"):
        assert "at byte 1024: the header there gives no size; " in refusal(
            pax(size=size) + plain + bytes(END)
        )


def test_a_link_by_the_bytes_of_its_name() -> None:
    """In no encoding, from its own folder on. Of a long one the message has the beginning."""
    files = header(b"x/\xe9.jpg", b"3") + padded(b"abc")
    link = bytearray(header(b"x/link", b"0", b"2"))
    link[157:162] = b"\xe9.jpg"
    assert contents(summed(link) + files + bytes(END)) == [
        ("x/link", b"abc"),
        ("x/\udce9.jpg", b"abc"),
    ]
    skipped: list[tuple[str, str]] = []
    assert not read(pax(linkpath="t" * 300) + header(b"l", b"0", b"1") + bytes(END), skipped)
    assert skipped == [("l", f"it is a link to '{'t' * 200}', which is no file of this tar")]


def test_forty_links_one_behind_the_other() -> None:
    """As many as Linux follows: `cat` says ELOOP of one more."""
    for count in (40, 41):
        links = [(special(str(k), tarfile.SYMTYPE, str(k + 1)), b"") for k in range(count)]
        found = read(tar(*links, (str(count), b"abc")))
        assert [member.name for member in found] == [str(k) for k in range(count - 40, count + 1)]
        assert {(member.offset, member.size) for member in found} == {((count + 1) * BLOCK, 3)}


@pytest.mark.parametrize("before", [b"", b"bytes that are not of the tar"])
def test_how_many_zeros_may_follow(before: bytes) -> None:
    """Behind the last tar 4 MiB; between two as many as fill up a record of the first, which counts
    from where that begins, or two blocks."""

    def joined(blocks: int, zeros: int) -> bytes:
        """A member of so many blocks with its header, zeros, another tar behind."""
        one = header(b"a", b"%o" % (BLOCK * (blocks - 1))) + b"a" * (BLOCK * (blocks - 1))
        return before + one + bytes(BLOCK * zeros) + header(b"b", b"0") + bytes(END)

    def names(data: bytes) -> list[str]:
        start, end = len(before), len(data)
        archive = Archive(data + b"behind it")
        found = members(archive, "x.tar", lambda name, reason: None, start, end)
        return [member.name for member in found]

    assert names(before + BEGIN + bytes(MOST_PADDING)) == ["a.cls", "a.jpg"]
    for blocks, zeros in ((18, 2), (19, 21), (1, 19), (5, 2), (7, 13)):
        assert names(joined(blocks, zeros)) == ["a", "b"]
    assert names(joined(5, 2) + joined(4, 16)[len(before) :]) == ["a", "b", "a", "b"]
    for blocks, zeros in ((18, 22), (1, 39), (5, 3), (19, 20), (20, 1)):
        with pytest.raises(GratisError, match="zeros"):
            names(joined(blocks, zeros))


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
        ("x/y.z/a.jpg", "jpg"),
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
