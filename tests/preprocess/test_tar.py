"""Tars of every kind come out as tarfile and GNU tar say; a damaged one is refused where the damage
is, and never ends in silence."""

from __future__ import annotations

import io
import random
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from gratis.errors import GratisError
from gratis.preprocess.sources import tar as tar_module
from gratis.preprocess.sources.tar import Member, members
from gratis.preprocess.sources.tar_headers import BLOCK

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT}
END = 2 * BLOCK
Entry = tuple[str | tarfile.TarInfo, bytes]


class Archive:
    """Bytes as the reader takes them."""

    def __init__(self, data: bytes) -> None:
        self.data, self.size = data, len(data)

    def read(self, start: int, size: int) -> bytes:
        return self.data[start : start + size]


def tar(*entries: Entry, kind: str = "ustar") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=FORMATS[kind]) as archive:
        for name, data in entries:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def read(
    data: bytes, skipped: list[tuple[str, str]] | None = None, end: int | None = None
) -> list[Member]:
    """end: that of the tar, if other bytes are behind it in its archive."""
    messages = [] if skipped is None else skipped
    end = len(data) if end is None else end
    return list(members(Archive(data), "x.tar", lambda *what: messages.append(what), 0, end))


def contents(data: bytes) -> list[tuple[str, bytes]]:
    return [(name, data[offset : offset + size]) for name, offset, size in read(data)]


def refusal(data: bytes, end: int | None = None) -> str:
    with pytest.raises(GratisError) as caught:
        read(data, end=end)
    assert "\n" not in str(caught.value)
    return str(caught.value)


SAMPLES: list[Entry] = [
    ("a.cls", b"1"),
    ("a.jpg", b"a" * 700),
    ("b.cls", b"22"),
    ("b.jpg", b"b" * 1024),
    ("empty.txt", b""),
]
FILES: dict[str, list[Entry]] = {
    "short names": SAMPLES,
    "folders": [(f"{'d' * 90}/{'e' * 50}/{name}", data) for name, data in SAMPLES],
    "other alphabets": [(f"猫/{name}", data) for name, data in SAMPLES],
    "no encoding": [(f"\udce9{name}", data) for name, data in SAMPLES],
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("names", FILES)
def test_members_are_those_that_were_written(kind: str, names: str) -> None:
    files = FILES[names]
    assert contents(tar(*files, kind=kind)) == files


@pytest.mark.parametrize("kind", ["pax", "gnu"])
@pytest.mark.parametrize("longest", [100, 101, 255, 256, 500, 5000])
def test_long_names(kind: str, longest: int) -> None:
    """Beside each other: what a header says of one member is not said of the next."""
    name = "n" * (longest - 4)
    files = [(f"{name}.jpg", b"1"), ("short.jpg", b"22"), (f"{name}.png", b"333"), ("z", b"")]
    assert contents(tar(*files, kind=kind)) == files


@pytest.mark.parametrize("longest", [256, 5000])
def test_pax_and_gnu_headers_before_one_member(longest: int) -> None:
    """GNU tar 1.x writes long names after a pax header of times; either may give the name."""
    info = tarfile.TarInfo("n" * longest)
    info.pax_headers, info.size = {"mtime": "1.5"}, 3
    gnu = info.tobuf(tarfile.GNU_FORMAT)
    times = tarfile.TarInfo("x")
    times.pax_headers, times.mtime = {"comment": "none"}, 1.5
    pax = times.tobuf(tarfile.PAX_FORMAT)[: 2 * BLOCK]
    data = pax + gnu + b"abc".ljust(BLOCK, b"\0") + bytes(END)
    assert contents(data) == [("n" * longest, b"abc")]


def test_global_pax_headers() -> None:
    """As `git archive` writes them: of all that follow, and of nothing where nothing follows."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", pax_headers={"comment": "a commit"}) as archive:
        info = tarfile.TarInfo("a.jpg")
        archive.addfile(info)
    assert contents(buffer.getvalue()) == [("a.jpg", b"")]
    alone = buffer.getvalue()[: 2 * BLOCK] + bytes(END)
    assert contents(alone) == []
    assert [name for name, _ in contents(alone + tar(*SAMPLES))] == [name for name, _ in SAMPLES]


def header(name: bytes, size: bytes, kind: bytes = b"0", magic: bytes = b"ustar\x0000") -> bytes:
    """One by hand, with a right checksum."""
    block = bytearray(BLOCK)
    block[: len(name)], block[124 : 124 + len(size)], block[156:157] = name, size, kind
    block[257 : 257 + len(magic)] = magic
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % BLOCK)


@pytest.mark.parametrize(
    "size",
    [
        b"00000000003\0",
        b"          3 ",
        b"3",
        b"000000000003",
        b"\x80" + bytes(10) + b"\x03",  # GNU's binary numbers
    ],
)
def test_sizes_as_programs_write_them(size: bytes) -> None:
    data = header(b"a.jpg", size) + padded(b"abc") + bytes(END)
    assert contents(data) == [("a.jpg", b"abc")]


@pytest.mark.parametrize("size", [b"-1", b"9", b"abc", b"\xff" * 12])
def test_sizes_that_are_none(size: bytes) -> None:
    first = tar(SAMPLES[0])[: 2 * BLOCK]
    line = refusal(first + header(b"b.jpg", size) + bytes(END))
    assert "at byte 1024: the header there gives no size; the last good member is 'a.cls'" in line


def test_a_size_of_eight_gigabytes_is_read() -> None:
    big = header(b"big.jpg", b"\x80" + (9 << 30).to_bytes(11, "big"))
    assert f"reaches to byte {BLOCK + (9 << 30)} of {3 * BLOCK}" in refusal(big + bytes(END))


@pytest.mark.parametrize("magic", [b"", b"ustar  \0", b"ustar\0" + b"00"])
def test_kinds_of_files(magic: bytes) -> None:
    kinds = (b"0", b"\0", b"7")
    data = b"".join(header(b"a", b"3", kind, magic) + padded(b"abc") for kind in kinds)
    assert contents(data + bytes(END)) == [("a", b"abc")] * 3


def test_checksums_of_signed_bytes() -> None:
    """Of very old programs: they differ where a name is not ASCII."""
    block = bytearray(header("é.jpg".encode(), b"3"))
    block[148:156] = b" " * 8
    signed = sum(byte - 256 if byte > 127 else byte for byte in block)
    block[148:156] = b"%06o\0 " % signed
    assert contents(bytes(block) + padded(b"abc") + bytes(END)) == [("é.jpg", b"abc")]
    block[0] ^= 1
    assert "checksum is wrong" in refusal(bytes(block) + padded(b"abc") + bytes(END))


def test_what_is_no_file_is_skipped_with_a_reason() -> None:
    skipped: list[tuple[str, str]] = []
    sparse = tarfile.TarInfo("sparse.jpg")
    sparse.pax_headers = {"GNU.sparse.size": "9999", "GNU.sparse.map": "0,512"}
    named = tarfile.TarInfo("GNUSparseFile.0/x.jpg")
    named.pax_headers = {
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "named.jpg",
        "GNU.sparse.realsize": "9999",
    }
    data = tar(
        *SAMPLES[:2],
        (special("folder.jpg", tarfile.DIRTYPE), b""),
        (special("device.jpg", tarfile.CHRTYPE), b""),
        (special("pipe.jpg", tarfile.FIFOTYPE), b""),
        (special("other.jpg", b"Q"), b"q" * 600),
        (sparse, b"x" * 512),
        (named, b"1\n0\n512\n".ljust(512, b"\0") + b"x" * 512),
        *SAMPLES[2:],
        kind="pax",
    )
    assert [member.name for member in read(data, skipped)] == [name for name, _ in SAMPLES]
    assert contents(data) == SAMPLES
    assert skipped == [
        ("device.jpg", "it is a device, not a plain file"),
        ("pipe.jpg", "it is a named pipe, not a plain file"),
        ("other.jpg", "it is a special file, not a plain file"),
        ("sparse.jpg", "it is a sparse file, not a plain file"),
        ("named.jpg", "it is a sparse file, not a plain file"),
    ]


def test_links_are_the_files_that_they_stand_for() -> None:
    """Hard ones, whose target is a name in the archive, symbolic ones, from their folder on; before
    and behind the file, and of links."""
    skipped: list[tuple[str, str]] = []
    data = tar(
        (special("early.jpg", tarfile.SYMTYPE, "x/a.jpg"), b""),
        ("./x/a.jpg", b"a" * 700),
        (special("hard.jpg", tarfile.LNKTYPE, "x/a.jpg"), b""),
        (special("x/beside.jpg", tarfile.SYMTYPE, "a.jpg"), b""),
        (special("y/up.jpg", tarfile.SYMTYPE, "../x/a.jpg"), b""),
        (special("two.jpg", tarfile.SYMTYPE, "y/up.jpg"), b""),
        (special("loop.jpg", tarfile.SYMTYPE, "pool.jpg"), b""),
        (special("pool.jpg", tarfile.SYMTYPE, "loop.jpg"), b""),
        (special("out.jpg", tarfile.SYMTYPE, "/etc/passwd"), b""),
        (special("up.jpg", tarfile.SYMTYPE, "../a.jpg"), b""),
        ("twice.jpg", b"1"),
        ("twice.jpg", b"2"),
        (special("which.jpg", tarfile.LNKTYPE, "twice.jpg"), b""),
        (special("l" * 150 + ".jpg", tarfile.SYMTYPE, "t" * 150 + ".jpg"), b""),
        ("t" * 150 + ".jpg", b"long"),
        kind="gnu",
    )
    found = read(data, skipped)
    picture = next(member for member in found if member.name == "./x/a.jpg")
    for name in ("early.jpg", "hard.jpg", "x/beside.jpg", "y/up.jpg", "two.jpg"):
        assert Member(name, picture.offset, 700) in found
    assert ("l" * 150 + ".jpg", b"long") in contents(data)
    assert [name for name, _ in skipped] == [
        "loop.jpg",
        "pool.jpg",
        "out.jpg",
        "up.jpg",
        "which.jpg",
    ]
    assert skipped[2][1] == "it is a link to '/etc/passwd', which is no file of this tar"
    assert len(found) == 10


def with_long_name(kind: str) -> bytes:
    """A tar with a prefix, a pax header or a GNU long name."""
    name = "d" * 90 + "/" + "f" * 90 if kind == "ustar" else "n" * 130
    return tar(*SAMPLES[:2], (f"{name}.jpg", b"x" * 100), ("z", b"1"), kind=kind)


@pytest.mark.parametrize("kind", FORMATS)
def test_cut_anywhere_it_is_refused_unless_only_zeros_are_lost(kind: str) -> None:
    data = with_long_name(kind)
    whole, last = contents(data), -(-len(data.rstrip(b"\0")) // BLOCK) * BLOCK
    for cut in (*range(1, len(data), BLOCK - 1), *range(BLOCK, len(data), BLOCK)):
        if cut >= last + END:
            assert contents(data[:cut]) == whole
            continue
        line = refusal(data[:cut])
        assert refusal(data, cut) == line  # the bytes behind a tar in another are not its own
        assert "cut short" in line or "one block of zeros is there, where two" in line, line
        assert cut < 1536 or "the last good member is" in line, line


@pytest.mark.parametrize("kind", FORMATS)
def test_a_flipped_bit_of_a_header_is_refused_there_or_does_no_harm(kind: str) -> None:
    data = with_long_name(kind)
    whole, refused = read(data), 0
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:  # pax and GNU headers too
        blocks = [k for m in archive for k in range(m.offset, m.offset_data, BLOCK)]
    headers = [at for at in blocks if data[at + 257 : at + 262] == b"ustar"]
    assert len(headers) == (4 if kind == "ustar" else 5)
    bits = [8 * at + bit for k, at in enumerate(headers) for bit in range(k, 8 * BLOCK, 9)]
    for bit in bits:  # of nearly each byte one, in each header another
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            found = read(bytes(flipped))
        except GratisError as error:
            found, message = whole, str(error)
            refused += (
                f"at byte {bit // 8 // BLOCK * BLOCK}: no member's header is there" in message
            )
        assert found == whole, bit
    assert refused > 0.98 * len(bits)  # a zero of the sum may become a blank


def outcome(data: bytes) -> object:
    skipped: list[tuple[str, str]] = []
    try:
        return read(data, skipped), skipped
    except GratisError as error:
        return str(error), skipped


@pytest.mark.parametrize("kind", FORMATS)
def test_usual_headers_are_read_as_all_others_are(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is wrong with them: a byte is another one, and in half of them the sum is right."""
    chance, whole = random.Random(0), tar(*SAMPLES, kind=kind)
    altered = [whole]
    for _ in range(1000):
        data, header = bytearray(whole), BLOCK * chance.randrange(len(whole) // BLOCK)
        data[header + chance.randrange(BLOCK)] = chance.choice(
            b"\0 01789-_o/x\x80\xff" + bytes(range(256))
        )
        if chance.random() < 0.5:
            block = data[header : header + 148] + b" " * 8 + data[header + 156 : header + BLOCK]
            data[header + 148 : header + 156] = b"%06o\0 " % sum(block)
        altered.append(bytes(data))
    usual = [outcome(data) for data in altered]
    monkeypatch.setattr(tar_module, "usual", lambda block: None)
    for data, found in zip(altered, usual, strict=True):
        assert outcome(data) == found


def test_a_usual_header_is_read_once() -> None:
    class Counted(Archive):
        reads = 0

        def read(self, start: int, size: int) -> bytes:
            self.reads += 1
            return super().read(start, size)

    archive = Counted(tar(*[(f"n01440764_{k}.JPEG", b"x") for k in range(100)]))
    assert len(list(members(archive, "x.tar", lambda *what: None, 0, archive.size))) == 100
    assert archive.reads <= 104


@pytest.mark.parametrize("kind", FORMATS)
def test_joined_tars_are_read_to_the_end(kind: str) -> None:
    """`cat a.tar b.tar c.tar`, filled up to records or ended by two blocks."""
    first, second = tar(*SAMPLES[:2], kind=kind), tar(*SAMPLES[2:4])
    third = tar(SAMPLES[4], kind=kind)
    assert contents(first + second + third) == SAMPLES
    unfilled = [
        part[: -(-len(part.rstrip(b"\0")) // BLOCK) * BLOCK + END] for part in (first, second)
    ]
    assert contents(b"".join(unfilled) + third) == SAMPLES


BEGIN = tar(*SAMPLES[:2])[:2560]  # without the end
ONE = "one block of zeros is there, where two should end it"
NONE = "it is cut short: two blocks of zeros should end it"
MORE = "more bytes follow the blocks of zeros that end it"


@pytest.mark.parametrize(
    ("behind", "at", "message"),
    [
        (bytes(BLOCK), 0, ONE),
        (bytes(BLOCK) + tar(*SAMPLES[2:]), 0, ONE),
        (b"", 0, NONE),
        (bytes(100), 0, NONE),
        (b"other bytes".ljust(BLOCK, b"."), 0, "no member's header is there"),
        (bytes(4194305), 0, "its last 4194305 bytes are zeros: it was not written to its end"),
        (bytes(END) + b"x", END, MORE),
        (bytes(END + 5) + b"other bytes" * 100, END + 5, MORE),
        (bytes(9 * BLOCK + 99) + b"X", 9 * BLOCK + 99, MORE),
        (bytes((1 << 20) + 7) + b"x", (1 << 20) + 7, MORE),
        (bytes(END) + tar(*SAMPLES[2:])[:100], END, MORE),
        (bytes(END + 1) + tar(*SAMPLES[2:]), END + 1, MORE),
        (bytes(4096) + tar(*SAMPLES[2:]), 4096, MORE),  # a hole, which may have held members
        (bytes(END) + tar(*SAMPLES[2:])[:2560], END + 2560, NONE),  # of the second tar
    ],
)
def test_what_is_no_true_end_is_refused(behind: bytes, at: int, message: str) -> None:
    line = refusal(BEGIN + behind)
    assert f"x.tar is damaged as a tar at byte {len(BEGIN) + at}: {message}" in line
    assert f"the last good member is {'b.jpg' if at == END + 2560 else 'a.jpg'!r}" in line


def test_no_tar_at_all() -> None:
    assert refusal(b"") == "x.tar is empty; get the archive again"
    for data in (b"\x1f\x8b\x08".ljust(5000, b"z"), b"<html>".ljust(5000)):
        line = (
            "byte 0: no member's header is there: its checksum is wrong (unpack it first if it is"
        )
        assert line in refusal(data)


@pytest.mark.parametrize(
    "records",
    [b"30 path=a.jpg\n", b"path=a.jpg\n", b"14 path=a.jpgx", b"x path=a\n", b"9 pathab\n"],
)
def test_a_damaged_pax_header_is_refused(records: bytes) -> None:
    pax = header(b"pax", b"%o" % len(records), b"x") + padded(records)
    data = BEGIN + pax + header(b"b.jpg", b"0") + bytes(END)
    assert f"at byte {len(BEGIN)}: the pax header there is damaged; the last good" in refusal(data)


@pytest.mark.parametrize("kind", [b"x", b"L"])
def test_a_name_of_any_length_is_not_read_into_memory(kind: bytes) -> None:
    data = BEGIN + header(b"long", b"%o" % (1 << 30), kind) + bytes(END)
    assert f"at byte {len(BEGIN)}: a name of 1073741824 bytes" in refusal(data)


def test_a_name_without_a_member_is_refused() -> None:
    data = BEGIN + header(b"long", b"3", b"L") + padded(b"abc")
    assert "a header that belongs to the next member is the last one" in refusal(data + bytes(END))
    assert NONE in refusal(data)


@pytest.mark.starts
@pytest.mark.skipif(shutil.which("tar") is None, reason="needs GNU tar")
@pytest.mark.parametrize("kind", ["v7", "oldgnu", "gnu", "ustar", "posix"])
@pytest.mark.parametrize("blocks", [1, 2, 20, 2048])
def test_what_gnu_tar_writes(tmp_path: Path, kind: str, blocks: int) -> None:
    """All that it knows: each format and blocking factor, links, holes."""
    names = ["a.jpg", "sub/b.jpg"]
    if kind != "v7":
        names += ["s" * 60 + "/" + "t" * 70 + "/c.jpg"]
    if kind not in ("v7", "ustar"):
        names += ["u" * 200 + ".jpg"]
    for number, name in enumerate(names):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(bytes([65 + number]) * (number * 600))
    (tmp_path / "in" / "hard.jpg").hardlink_to(tmp_path / "in" / "sub/b.jpg")
    (tmp_path / "in" / "sub" / "soft.jpg").symlink_to("b.jpg")
    with (tmp_path / "in" / "holes.jpg").open("wb") as file:
        for place in range(30):
            file.seek(place << 16)
            file.write(b"x" * 4096)
    sparse = ["--sparse"] if kind in ("oldgnu", "gnu", "posix") else []
    command = ["tar", f"--format={kind}", f"-b{blocks}", *sparse, "-cf", tmp_path / "x.tar"]
    subprocess.run([*command, "-C", tmp_path / "in", "."], check=True, timeout=60)
    data = (tmp_path / "x.tar").read_bytes()
    found = {name.removeprefix("./"): content for name, content in contents(data)}
    wanted = {name: (tmp_path / "in" / name).read_bytes() for name in names}
    wanted |= dict.fromkeys(("hard.jpg", "sub/soft.jpg"), wanted["sub/b.jpg"])
    skipped: list[tuple[str, str]] = []
    read(data, skipped)
    if sparse:
        assert skipped == [("./holes.jpg", "it is a sparse file, not a plain file")]
    else:
        wanted["holes.jpg"] = (tmp_path / "in" / "holes.jpg").read_bytes()
    assert found == wanted
