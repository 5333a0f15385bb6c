"""The official ILSVRC2012 archives, read where they lie: tar members as (name, offset, size), and
the devkit.

Nothing is extracted. Tars are hostile until proved plain: links, devices, folders, sparse members
are skipped with a line each, and a member that claims to reach past its archive's end is refused.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

from tqdm import tqdm

from gratis import addresses
from gratis.errors import GratisError

TRAIN = "ILSVRC2012_img_train.tar"
VAL = "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"
META = "ILSVRC2012_devkit_t12/data/meta.mat"
TRUTH = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
PUBLISHED_MD5 = {
    TRAIN: "1d675b47d978889d74fa0da5fadfb00e",
    VAL: "29b22e2961454d5413ddabcf34fc5622",
    DEVKIT: "fa75699e90414af021442c21a62c3abf",
}
BLOCK = 512
MD5_CHUNK = 8 << 20

Skip = Callable[[str, str], None]  # told of what is no image: name, reason


class Member(NamedTuple):
    """A regular file in a tar: its name, and where its bytes lie in the archive file."""

    name: str
    offset: int
    size: int


class Synset(NamedTuple):
    """A class of the devkit: ids are 1-based and not in wnid order; images is how many the training
    archive has."""

    wnid: str
    words: str
    ilsvrc_id: int
    images: int


def members(
    archive: addresses.Bytes, path: str, skip: Skip, start: int, end: int
) -> Iterator[Member]:
    """The regular files of the tar in bytes [start, end) of the archive; skip(name, reason) is told
    of all else.

    Plain headers, which is all the official archives have, are read directly: 4 us each where
    tarfile takes 25, a minute saved per run on ILSVRC2012. The first header that is not plain hands
    over to tarfile."""
    if archive.size == 0:
        raise GratisError(f"{path} is empty; get the archive again")
    position = start
    while position + BLOCK <= end:
        header = archive.read(position, BLOCK)
        if not any(header):
            return
        plain = _plain(header)
        if plain is None:
            break
        name, size = plain
        _refuse_overrun(path, name, position + BLOCK + size, end)
        yield Member(name, position + BLOCK, size)
        position += BLOCK + -(-size // BLOCK) * BLOCK
    if position < end:
        archive.file.seek(position)
        yield from _careful_members(path, archive.file, skip, end)


def check_md5(root: str, published: dict[str, str]) -> None:
    """Holds the archives of a folder against their published md5 sums. GratisError naming the first
    that differs."""
    for name, expected in published.items():
        place = addresses.join(root, name)
        if not addresses.is_file(place):
            raise GratisError(
                f"{root} lacks {name}, so that there is no md5 to check; leave --check-md5 out"
            )
        digest = hashlib.md5(usedforsecurity=False)
        with (
            addresses.Bytes(place) as archive,
            tqdm(
                total=archive.size,
                desc=f"md5 {name}",
                unit="B",
                unit_scale=True,
                delay=2.0,
                leave=False,
            ) as bar,
        ):
            for start in range(0, archive.size, MD5_CHUNK):
                digest.update(archive.read(start, min(MD5_CHUNK, archive.size - start)))
                bar.update(MD5_CHUNK)
        if digest.hexdigest() != expected:
            raise GratisError(
                f"{place} has md5 {digest.hexdigest()}, the published one is {expected}; get it "
                f"again"
            )


def read_devkit(path: str) -> tuple[list[Synset], list[int]]:
    """The leaf classes in the devkit's order, and the validation images' ILSVRC2012_IDs in the
    order of their names."""
    from scipy.io import loadmat  # 0.2 s of import that only this needs

    try:
        with addresses.open_file(path) as archive, tarfile.open(fileobj=archive) as tar:
            found = (tar.extractfile(name) for name in (META, TRUTH))
            meta, truth = (file.read() if file else b"" for file in found)
            rows = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"].ravel()
            leaves = [row for row in rows if int(row["num_children"]) == 0]
            synsets = [
                Synset(
                    str(r["WNID"]),
                    str(r["words"]),
                    int(r["ILSVRC2012_ID"]),
                    int(r["num_train_images"]),
                )
                for r in leaves
            ]
            return synsets, [int(line) for line in truth.split()]
    except (
        tarfile.TarError,
        EOFError,
        OSError,
        KeyError,
        ValueError,
        TypeError,
        IndexError,
    ) as error:
        reason = " ".join(str(error).split())
        raise GratisError(f"{path} is no ILSVRC2012 devkit ({reason}); get it again") from None


def _plain(header: bytes) -> tuple[str, int] | None:
    """(name, size) of an ordinary file's header with a true checksum, None for anything else."""
    if header[257:262] != b"ustar" or header[156:157] not in b"0\0" or header[345:346] != b"\0":
        return None
    try:
        checksum = int(header[148:156].strip(b" \0"), 8)
        size = int(header[124:136].strip(b" \0"), 8)
        name = header[:100].partition(b"\0")[0].decode()
    except ValueError:
        return None
    if size < 0 or checksum != sum(header) - sum(header[148:156]) + 8 * ord(" "):
        return None
    return name, size


def _careful_members(path: str, file: BinaryIO, skip: Skip, end: int) -> Iterator[Member]:
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # it would keep them all
                if member.offset >= end:
                    return
                if not member.isreg() or member.issparse():
                    skip(member.name, f"it is {_describe(member)}, not a plain file")
                    continue
                _refuse_overrun(path, member.name, member.offset_data + member.size, end)
                yield Member(member.name, member.offset_data, member.size)
    except (tarfile.TarError, OSError, ValueError, OverflowError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise GratisError(f"{path} is damaged as a tar ({reason}); get the archive again") from None


def _refuse_overrun(path: str, name: str, reach: int, end: int) -> None:
    if reach > end:
        raise GratisError(
            f"{path} is cut short: member {name[:200]!r} reaches to byte {reach} of {end}; get it "
            f"again"
        )


def _describe(member: tarfile.TarInfo) -> str:
    kinds = {
        "a link": member.islnk() or member.issym(),
        "a folder": member.isdir(),
        "a device": member.isdev(),
    }
    return next((kind for kind, true in kinds.items() if true), "a special or sparse file")
