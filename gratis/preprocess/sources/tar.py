"""Tar archives read where they lie: each member's name, and where its bytes are. Nothing is
extracted.

This is the only reader of tar headers here: ustar, pax, GNU and older ones. A header has a right
checksum, a member ends inside the archive, and the archive ends with two blocks of zeros, and
nothing but zeros behind them. Anything else is an error that names the byte and the last good
member; tarfile ends there in silence, and all that follows is lost. Another tar may follow the end
of the first, as `cat a.tar b.tar` makes them.

Any archive may be hostile. Links are followed inside the archive alone; devices and sparse members
are skipped with a message each; a member that claims to reach past its archive's end is refused.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

from gratis.errors import GratisError
from gratis.preprocess.sources.tar_headers import BLOCK, checksum_fits, number, pax_records, usual

CHUNK = 1 << 20  # bytes that are searched at a time for an end's zeros
RECORD = 20 * BLOCK  # what most programs fill up with zeros behind the two blocks that end a tar
LONGEST_EXTENSION = 1 << 20  # bytes of a pax header or a GNU long name; some hold ACLs
# bytes of zeros at the end: tapes are written in records of up to 2 MiB, and files that a download
# has made but not filled end in many more
MOST_PADDING = 4 << 20
MOST_LINKS = 40  # of them Linux follows, one behind the other

COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")  # endings, in small

PLAIN = (b"0", b"\0", b"7")  # types of members that are files
EXTENSIONS = (b"x", b"X", b"g", b"L", b"K")  # and of headers that say more of the next member
LINKS = HARD, SYMBOLIC = (b"1", b"2")
FOLDER, SPARSE = b"5", b"S"
WITHOUT_DATA = (*LINKS, b"3", b"4", FOLDER, b"6", b"V")  # whatever their size says
IGNORED = (FOLDER, b"V")  # they hold nothing: V is the label of a volume
GNU_RECORDS = {b"L": b"path", b"K": b"linkpath"}  # what is pax's record of a long name
GNU_MAGIC = b"ustar  \0"  # GNU has other things than a prefix behind it
KINDS = {b"3": "a device", b"4": "a device", b"6": "a named pipe", SPARSE: "a sparse file"}

Skip = Callable[[str, str], None]  # is called with the name of what is no sample, and the reason


class Archive(Protocol):
    """A file's bytes at random: `gratis.addresses.Bytes`, or another that has its two names."""

    @property
    def size(self) -> int: ...

    def read(self, start: int, size: int, /) -> bytes: ...


class Member(NamedTuple):
    """A regular file in a tar: its name, and where its bytes lie in the archive file."""

    name: str
    offset: int
    size: int


class Link(NamedTuple):
    """A link in a tar. target: the name, in the archive, of what it stands for."""

    name: str
    target: str


def extension_of(name: str) -> str:
    """All that follows the first dot of a member's name."""
    return name[name.rfind("/") + 1 :].partition(".")[2]


def idx_line(parts: Iterable[Member]) -> str:
    """A sample's line in DALI's index of its archive: extension, offset, size and name of each
    member, separated by blanks."""
    names = [(re.sub(r"\s", "_", member.name), member) for member in parts]
    fields = [f"{extension_of(name)} {part.offset} {part.size} {name}" for name, part in names]
    return " ".join(fields) + "\n"


def idx_bytes(lines: list[str]) -> bytes:
    """DALI's index of an archive. A name in an unknown encoding keeps its bytes."""
    return (f"v1.2 {len(lines)}\n" + "".join(lines)).encode("utf-8", "surrogateescape")


def members(archive: Archive, path: str, skip: Skip, start: int, end: int) -> Iterator[Member]:
    """The files of the tar in bytes [start, end) of the archive, in order. A link to one of them,
    hard or symbolic, earlier or later, is a member of its own name with the other's bytes;
    skip(name, reason) is called for all else. GratisError, which names `path`, where the tar is
    damaged."""
    by_name: dict[str, Member | Link | None] | None = None
    for entry in _Tar(archive, path, start, end).entries(skip):
        if isinstance(entry, Member):
            yield entry
            continue
        if by_name is None:  # few tars hold links: for those all headers are read once more
            by_name = _by_name(_Tar(archive, path, start, end).entries(lambda name, reason: None))
        target = _follow(entry, by_name)
        if target is None:
            reason = f"it is a link to {entry.target[:200]!r}, which is no file of this tar"
            skip(entry.name, reason)
        else:
            yield Member(entry.name, target.offset, target.size)


def _by_name(entries: Iterable[Member | Link]) -> dict[str, Member | Link | None]:
    """None for a name that occurs twice: which of the two a link means depends on the time."""
    found: dict[str, Member | Link | None] = {}
    for entry in entries:
        name = posixpath.normpath(entry.name)
        found[name] = None if name in found else entry
    return found


def _follow(link: Link, by_name: dict[str, Member | Link | None]) -> Member | None:
    entry: Member | Link | None = link
    for _ in range(MOST_LINKS):
        if not isinstance(entry, Link):
            return entry
        entry = by_name.get(entry.target)
    return entry if isinstance(entry, Member) else None


class _Tar:
    """The headers of one tar, in order. _at: the byte of the archive where the next one is."""

    def __init__(self, archive: Archive, path: str, start: int, end: int) -> None:
        if archive.size == 0:
            raise GratisError(f"{path} is empty; get the archive again")
        self._archive, self._path, self._start, self._end = archive, path, start, end
        self._at = start
        self._last: str | None = None  # the last good member
        self._records: dict[bytes, bytes] = {}  # pax's and GNU's, of the next member
        self._defaults: dict[bytes, bytes] = {}  # pax's, of all that follow

    def entries(self, skip: Skip) -> Iterator[Member | Link]:
        """Files and links; skip(name, reason) is called for all else but folders."""
        while True:
            if not self._records and not self._defaults:
                yield from self._usual_members()
            if not (header := self._header()):
                return
            kind = header[156:157]
            if kind in EXTENSIONS:
                self._extend(kind, self._size(header))
                continue
            name, offset = self._name(header), self._at + BLOCK
            if kind == SPARSE:
                offset = self._behind_sparse_map(header)
            size = 0 if kind in WITHOUT_DATA else self._size(header)
            self._at = self._behind(name, offset, size)
            sparse = self._has_sparse_records()
            if kind in PLAIN and not sparse and not (kind == b"\0" and name.endswith("/")):
                yield Member(name, offset, size)
            elif kind in LINKS:
                yield Link(name, self._target(header, kind, name))
            elif kind not in IGNORED and not name.endswith("/"):
                what = KINDS[SPARSE] if sparse else KINDS.get(kind, "a special file")
                skip(name, f"it is {what}, not a plain file")
            self._last, self._records = name, {}

    def _usual_members(self) -> Iterator[Member]:
        """Plain files from _at on, as long as their headers are usual."""
        read, at, end = self._archive.read, self._at, self._end
        while found := usual(read(at, BLOCK) if at + BLOCK <= end else b""):
            name, size = found
            offset = at + BLOCK
            if offset + size > end:
                break
            at = offset + (size + BLOCK - 1) // BLOCK * BLOCK
            self._at, self._last = at, name
            yield Member(name, offset, size)

    def _header(self) -> bytes:
        """The header at _at; none where the archive ends."""
        while True:
            header = self._block(self._at)
            if not header:
                raise self._damage("it is cut short: two blocks of zeros should end it")
            if header[0] or any(header):
                if not checksum_fits(header):
                    raise self._damage(self._no_header())
                return header
            if not self._find_next_tar():
                return b""

    def _no_header(self) -> str:
        hint = " (unpack it first if it is compressed)" if self._last is None else ""
        return f"no member's header is there: its checksum is wrong{hint}"

    def _block(self, at: int) -> bytes:
        """The block there; none if the archive ends before it does."""
        block = self._archive.read(at, BLOCK) if at + BLOCK <= self._end else b""
        return block if len(block) == BLOCK else b""

    def _find_next_tar(self) -> bool:
        """At a block of zeros: whether another tar begins behind the zeros, where _at is then."""
        if self._records:
            raise self._damage("a header that belongs to the next member is the last one")
        found = self._first_nonzero()
        zeros = (self._end if found is None else found) - self._at
        if zeros < 2 * BLOCK:
            raise self._damage("one block of zeros is there, where two should end it")
        if found is None and zeros > MOST_PADDING:
            raise self._damage(f"its last {zeros} bytes are zeros: it was not written to its end")
        if found is None:
            return False
        # what `cat` has joined ends as programs end a tar; a hole in a file is of another length
        filled = zeros < 2 * BLOCK + RECORD and (found - self._start) % RECORD == 0
        header = self._block(found)
        if not (header and checksum_fits(header) and (filled or zeros == 2 * BLOCK)):
            self._at = found
            raise self._damage("more bytes follow the blocks of zeros that end it")
        self._at = self._start = found
        self._defaults = {}
        return True

    def _first_nonzero(self) -> int | None:
        """The first byte from _at on that is not zero; None if no more than padding is looked
        through for it."""
        last = min(self._end, self._at + MOST_PADDING)
        for at in range(self._at, last, CHUNK):
            chunk = self._archive.read(at, min(CHUNK, last - at))
            if rest := chunk.lstrip(b"\0"):
                return at + len(chunk) - len(rest)
        return None

    def _extend(self, kind: bytes, size: int) -> None:
        """Notes what a header in front of a member says of it: a pax header's records, a GNU long
        name as the same record."""
        offset = self._at + BLOCK
        if size > LONGEST_EXTENSION:
            raise self._damage(f"a name of {size} bytes is there; the limit is {LONGEST_EXTENSION}")
        behind = self._behind("of a long name", offset, size)
        data = self._archive.read(offset, size)
        try:
            if kind == b"g":
                self._defaults = self._defaults | pax_records(data)
            elif kind in GNU_RECORDS:
                self._records = self._records | {GNU_RECORDS[kind]: data.partition(b"\0")[0]}
            else:
                self._records = self._records | pax_records(data)
        except ValueError:
            raise self._damage("the pax header there is damaged") from None
        self._at = behind

    def _record(self, key: bytes) -> bytes:
        return self._records.get(key) or self._defaults.get(key) or b""

    def _name(self, header: bytes) -> str:
        name = b""
        if self._records or self._defaults:
            name = self._record(b"GNU.sparse.name") or self._record(b"path")
        if not name:
            name = header[:100].partition(b"\0")[0]
            if header[345] and header[257:265] != GNU_MAGIC:
                name = header[345:500].partition(b"\0")[0] + b"/" + name
        return name.decode("utf-8", "surrogateescape")

    def _target(self, header: bytes, kind: bytes, name: str) -> str:
        """The name in the archive of what a link stands for: a symbolic one's is from its own
        folder on."""
        raw = self._record(b"linkpath") or header[157:257].partition(b"\0")[0]
        target = raw.decode("utf-8", "surrogateescape")
        if kind == SYMBOLIC:
            target = posixpath.join(posixpath.dirname(name), target)
        return posixpath.normpath(target)

    def _size(self, header: bytes) -> int:
        """Bytes of what follows the header."""
        try:
            size = number(header[124:136])
            if (self._records or self._defaults) and header[156:157] not in EXTENSIONS:
                size = int(self._record(b"size") or size)
        except ValueError:
            size = -1
        if size < 0:
            raise self._damage("the header there gives no size")
        return size

    def _behind(self, name: str, offset: int, size: int) -> int:
        """Where the next header is, behind a member's bytes."""
        if offset + size > self._end:
            reach = f"reaches to byte {offset + size} of {self._end}"
            raise self._damage(f"it is cut short: member {name[:200]!r} {reach}")
        return offset + -(-size // BLOCK) * BLOCK

    def _has_sparse_records(self) -> bool:
        return bool(self._records) and any(key[:11] == b"GNU.sparse." for key in self._records)

    def _behind_sparse_map(self, header: bytes) -> int:
        """Where the bytes of a sparse file of GNU's older kind begin: a map of its holes may go on
        in blocks of its own."""
        offset, more = self._at + BLOCK, header[482]
        while more:
            block = self._block(offset)
            if not block:
                raise self._damage("it is cut short in the map of a sparse file")
            offset, more = offset + BLOCK, block[504]
        return offset

    def _damage(self, what: str) -> GratisError:
        last = "no member is before it"
        if self._last is not None:
            last = f"the last good member is {self._last[:200]!r}"
        way_out = "get it again, or pack again what `tar -xif` unpacks of it"
        return GratisError(
            f"{self._path} is damaged as a tar at byte {self._at}: {what}; {last}; {way_out}"
        )
