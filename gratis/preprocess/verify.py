"""The verify command: is a folder still the dataset that was published?

    gratis verify shards --sample 1000

Every archive is hashed; every index entry, ours and DALI's, is compared with the archive's own
headers and labels; some images are decoded. Each finding is a message that names the file; a copy
with findings should be made again."""

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
from gratis.command_line import check_ranges
from gratis.dataset import Index, Manifest, Shard, Split
from gratis.errors import GratisError
from gratis.preprocess.sources.tar import Member, idx_bytes, idx_line
from gratis.preprocess.sources.webdataset import TarSample, group_samples, label_of
from gratis.preprocess.stages.plan import permutation

MAX_FINDINGS = 20  # findings printed before the rest is only counted


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Checks a dataset's archives, indices and statistics against its manifest, and decodes some
    images."""

    shards: tyro.conf.Positional[str]
    """Folder of the dataset."""
    sample: int = 1000
    """Images to decode, spread over all of them. 0: none."""

    def __post_init__(self) -> None:
        check_ranges(self, {"sample": (0, 1 << 31)})


def verify_dataset(config: VerifyConfig) -> None:
    """Prints what is wrong; GratisError if anything is."""
    root = local_folder(config.shards, "verify")
    manifest = dataset.read_manifest(root)
    findings = 0
    for finding in _findings(root, config.sample, manifest):
        findings += 1
        if findings <= MAX_FINDINGS:
            print(finding)
    if findings:
        counted = "1 finding" if findings == 1 else f"{findings:,} findings"
        raise GratisError(f"{config.shards}: {counted}; copy it again, or make the shards again")
    samples = sum(split.samples for split in manifest.splits.values())
    print(f"{config.shards}: {samples:,} samples are as they were published")


def local_folder(address: str, command: str) -> Path:
    """GratisError for a URL, which this command does not read."""
    if addresses.is_url(str(address)):
        way_out = "copy the dataset first, or give its mount"
        raise GratisError(f"{command} reads local folders, not {address}; {way_out}")
    return Path(address)


def _findings(root: Path, sample: int, manifest: Manifest) -> Iterator[str]:
    wrong = list(_file(root / dataset.STATS, manifest.stats_sha256))
    yield from wrong
    side = manifest.image_size if wrong else len(dataset.read_stats(root).mean)
    if side != manifest.image_size:
        size = f"{manifest.image_size} px, the statistics are of {side} px"
        yield f"{dataset.MANIFEST} says images of {size}"
    total = sum(split.samples for split in manifest.splits.values())
    for name, split in manifest.splits.items():
        wrong = list(_file(root / dataset.index_name(name), split.index_sha256))
        yield from wrong
        if wrong:
            continue
        index = dataset.read_index(root, name)
        intact = []
        shards = tqdm(split.shards, name, unit="shard", delay=2.0, leave=False)
        for number, shard in enumerate(shards):
            wrong = list(_unless_unreadable(shard.name, _shard(root, number, shard, index)))
            yield from wrong
            if not wrong:
                intact.append(number)
        count = -(-sample * split.samples // total)
        rows = np.flatnonzero(np.isin(index.shard, intact))
        rows = rows[permutation(len(rows), manifest.seed, "verify")[:count]]
        yield from _unless_unreadable(name, _decode(root, split, index, rows, side))


def _unless_unreadable(name: str, findings: Iterator[str]) -> Iterator[str]:
    """The findings; where a file cannot be read, one more, and no others. name: of the file unless
    the system names it."""
    try:
        yield from findings
    except OSError as error:
        path, reason = Path(error.filename or name), error.strerror or error
        yield f"{path.name} cannot be read ({reason}); mend its permissions, or its disk"


def _file(path: Path, sha256: str) -> Iterator[str]:
    return _unless_unreadable(path.name, _same_sum(path, sha256))


def _same_sum(path: Path, sha256: str) -> Iterator[str]:
    if not path.exists():
        yield f"{path.name} is missing"
    elif sha256_file(path) != sha256:
        yield f"{path.name} is not the file that was published: its sha256 differs"


def _shard(root: Path, number: int, shard: Shard, index: Index) -> Iterator[str]:
    """Of one archive: its size and hash; then, member by member, both indices."""
    path = root / shard.name
    if path.is_file() and (size := path.stat().st_size) != shard.bytes:
        yield f"{shard.name} has {size:,} bytes, not {shard.bytes:,}: it was cut or replaced"
        return
    wrong = list(_file(path, shard.sha256))
    yield from wrong
    if wrong:
        return
    rows = index.shard == number
    expected = dict(zip(index.offset[rows].tolist(), np.flatnonzero(rows).tolist(), strict=True))
    lines = []
    with tarfile.open(path) as tar, addresses.Bytes(str(path)) as archive:
        files = (Member(m.name, m.offset_data, m.size) for m in tar if m.isreg())
        for group in group_samples(str(path), files):
            picture = group.picture
            if picture is None or picture.offset not in expected:
                continue  # an archive of others may hold what was left out of the index
            row = expected.pop(picture.offset)
            named = (int(index.size[row]), int(index.label[row]))
            unlabelled = named[1] < 0
            if (picture.size, -1 if unlabelled else _label(archive, shard, group)) != named:
                other = "has another size or label than the index says"
                yield f"{shard.name}: {picture.name} {other}"
            lines.append(idx_line(group.parts))
    if expected:
        first = f"{len(expected):,} times; first at byte {min(expected)}"
        yield f"{shard.name} has no image where the index says, {first}"
    if not len(lines) == rows.sum() == shard.samples:
        counts = f"{len(lines)} samples, the index {rows.sum()}, the manifest {shard.samples}"
        yield f"{shard.name} holds {counts}"
    idx = path.with_suffix(".idx")
    if not idx.exists() or idx.read_bytes() != idx_bytes(lines):
        wrong_labels = "plain DALI readers would feed wrong labels from it"
        yield f"{idx.name} is missing or does not fit {shard.name}: {wrong_labels}"


def _label(archive: addresses.Bytes, shard: Shard, group: TarSample) -> int | None:
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
