"""The verify command: is what lies in a folder still the dataset that was published?

    gratis verify shards --sample 1000

Every archive is hashed; every index entry, ours and DALI's, is held against the archive's own
headers and labels; some images are decoded. Each finding is a line that names the file; a copy with
findings should be made again."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from numpy.typing import NDArray
from tqdm import tqdm

from gratis import addresses, dataset, image
from gratis.atomic import sha256_file
from gratis.dataset import Index, Manifest, Shard, Split
from gratis.errors import GratisError
from gratis.preprocess.sources.archives import Member
from gratis.preprocess.sources.webdataset import Group, grouped, idx_bytes, idx_line, label_of
from gratis.preprocess.stages.plan import shuffled

SHOWN = 20  # findings printed before the rest is only counted


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Checks a dataset's archives, indices and statistics against its manifest, and decodes some
    images."""

    shards: tyro.conf.Positional[str]
    """Folder of the dataset."""
    sample: int = 1000
    """Images to decode, spread over all of them. 0: none."""

    def __post_init__(self) -> None:
        if self.sample < 0:
            raise GratisError(f"--sample {self.sample}: 0 or more")


def verify(config: VerifyConfig) -> None:
    """Prints what is wrong; GratisError if anything is."""
    root = local_folder(config.shards, "verify")
    manifest = dataset.read_manifest(root)
    findings = 0
    for finding in _findings(root, config.sample, manifest):
        findings += 1
        if findings <= SHOWN:
            print(finding)
    if findings:
        counted = "1 finding" if findings == 1 else f"{findings:,} findings"
        raise GratisError(f"{config.shards}: {counted}; copy it again, or make the shards again")
    samples = sum(split.samples for split in manifest.splits.values())
    print(f"{config.shards}: {samples:,} samples are as they were published")


def local_folder(place: str, command: str) -> Path:
    """GratisError for a URL, which this command does not read."""
    if addresses.is_url(str(place)):
        raise GratisError(
            f"{command} reads local folders, not {place}; copy the dataset first, or give its mount"
        )
    return Path(place)


def _findings(root: Path, sample: int, manifest: Manifest) -> Iterator[str]:
    wrong = list(_file(root / dataset.STATS, manifest.stats_sha256))
    yield from wrong
    side = manifest.image_size if wrong else len(dataset.read_stats(root).mean)
    if side != manifest.image_size:
        yield (
            f"{dataset.MANIFEST} says images of {manifest.image_size} px, the statistics are of "
            f"{side} px"
        )
    total = sum(split.samples for split in manifest.splits.values())
    for name, split in manifest.splits.items():
        path = root / dataset.index_name(name)
        wrong = list(_file(path, split.index_sha256))
        yield from wrong
        if wrong:
            continue
        index = dataset.read_index(root, name)
        sound = []
        for number, shard in enumerate(
            tqdm(split.shards, name, unit="shard", delay=2.0, leave=False)
        ):
            found = list(_readable(shard.name, _shard(root, number, shard, index)))
            yield from found
            if not found:
                sound.append(number)
        wanted = -(-sample * split.samples // total)
        rows = np.flatnonzero(np.isin(index.shard, sound))
        rows = rows[shuffled(len(rows), manifest.seed, "verify")[:wanted]]
        yield from _readable(name, _decode(root, split, index, rows, side))


def _readable(name: str, findings: Iterator[str]) -> Iterator[str]:
    """The findings; and one more that ends them where a file, `name` unless the system names it,
    cannot be read."""
    try:
        yield from findings
    except OSError as error:
        path = Path(error.filename or name)
        yield (
            f"{path.name} cannot be read ({error.strerror or error}); mend its permissions, or "
            f"its disk"
        )


def _file(path: Path, sha256: str) -> Iterator[str]:
    return _readable(path.name, _published(path, sha256))


def _published(path: Path, sha256: str) -> Iterator[str]:
    if not path.exists():
        yield f"{path.name} is missing"
    elif sha256_file(path) != sha256:
        yield f"{path.name} is not the file that was published: its sha256 differs"


def _shard(root: Path, number: int, shard: Shard, index: Index) -> Iterator[str]:
    """One archive: size and hash; then, member by member, both indices."""
    path = root / shard.name
    if path.is_file() and path.stat().st_size != shard.bytes:
        yield (
            f"{shard.name} has {path.stat().st_size:,} bytes, not {shard.bytes:,}: it was cut "
            f"or replaced"
        )
        return
    wrong = list(_file(path, shard.sha256))
    yield from wrong
    if wrong:
        return
    rows = index.shard == number
    expected = dict(zip(index.offset[rows].tolist(), np.flatnonzero(rows).tolist(), strict=True))
    lines = []
    with tarfile.open(path) as tar, addresses.Bytes(str(path)) as archive:
        for group in grouped(
            str(path), (Member(m.name, m.offset_data, m.size) for m in tar if m.isreg())
        ):
            if group.picture is None or group.picture.offset not in expected:
                continue  # tars of others may hold what was left out of the index
            row = expected.pop(group.picture.offset)
            if [group.picture.size, _label(archive, shard, group)] != [
                int(index.size[row]),
                int(index.label[row]),
            ]:
                yield (
                    f"{shard.name}: {group.picture.name} has another size or label than the "
                    f"index says"
                )
            lines.append(idx_line(group))
    if expected:
        yield (
            f"{shard.name} has no image where the index says, {len(expected):,} times; first at "
            f"byte {min(expected)}"
        )
    if not len(lines) == rows.sum() == shard.samples:
        yield (
            f"{shard.name} holds {len(lines)} samples, the index {rows.sum()}, the manifest "
            f"{shard.samples}"
        )
    idx = path.with_suffix(".idx")
    if not idx.exists() or idx.read_bytes() != idx_bytes(lines):
        yield (
            f"{idx.name} is missing or does not fit {shard.name}: plain DALI readers would feed "
            f"wrong labels from it"
        )


def _label(archive: addresses.Bytes, shard: Shard, group: Group) -> int | None:
    try:
        return label_of(archive, shard.name, group)
    except GratisError:
        return None


def _decode(
    root: Path, split: Split, index: Index, rows: NDArray[np.int64], side: int
) -> Iterator[str]:
    for row in tqdm(rows, "decoding", unit="img", delay=2.0, leave=False):
        shard = split.shards[index.shard[row]].name
        with addresses.Bytes(str(root / shard)) as archive:
            data = archive.read(int(index.offset[row]), int(index.size[row]))
        try:
            good = image.decode(data).shape == (side, side, 3)
        except Exception:  # whatever a damaged picture makes the decoder raise
            good = False
        if not good:
            yield f"{shard}: sample {row} does not decode to {side} x {side} RGB"
