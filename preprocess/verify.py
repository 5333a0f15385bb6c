"""The verify command: is what lies in a folder still the dataset that was published?

    python -m preprocess verify shards --sample 1000

Every archive is hashed; every index entry, ours and DALI's, is held against the archive's own headers and labels; some
images are decoded. Each finding is a line that names the file; a copy with findings should be made again.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from numpy.typing import NDArray
from tqdm import tqdm

from preprocess import dataset, image
from preprocess.dataset import EXTENSIONS, Index, Manifest, Shard
from preprocess.errors import UserError
from preprocess.plan import shuffled

SHOWN = 20  # findings printed before the rest is only counted


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Checks a dataset's archives, indices and statistics against its manifest, and decodes some images."""

    shards: tyro.conf.Positional[Path]
    """Folder of the dataset."""
    sample: int = 1000
    """Images to decode, spread over all of them. 0: none."""

    def __post_init__(self) -> None:
        if self.sample < 0:
            raise UserError(f"--sample {self.sample}: 0 or more")


def verify(config: VerifyConfig) -> None:
    """Prints what is wrong; UserError if anything is."""
    manifest = dataset.read_manifest(config.shards)
    findings = 0
    for finding in _findings(config, manifest):
        findings += 1
        if findings <= SHOWN:
            print(finding)
    if findings:
        raise UserError(f"{config.shards}: {findings} findings; copy it again, or make the shards again")
    samples = sum(split.samples for split in manifest.splits.values())
    print(f"{config.shards}: {samples:,} samples are as they were published")


def _findings(config: VerifyConfig, manifest: Manifest) -> Iterator[str]:
    root = config.shards
    yield from _file(root / dataset.STATS, manifest.stats_sha256)
    total = sum(split.samples for split in manifest.splits.values())
    for name, split in manifest.splits.items():
        path = root / dataset.index_name(name)
        wrong = list(_file(path, split.index_sha256))
        yield from wrong
        if wrong:
            continue
        index = dataset.read_index(root, name)
        sound = []
        for number, shard in enumerate(tqdm(split.shards, name, unit="shard", delay=2.0, leave=False)):
            found = list(_shard(root, number, shard, index, EXTENSIONS[manifest.codec]))
            yield from found
            if not found:
                sound.append(number)
        wanted = -(-config.sample * split.samples // total)
        rows = np.flatnonzero(np.isin(index.shard, sound))
        rows = rows[shuffled(len(rows), manifest.seed, "verify")[:wanted]]
        yield from _decode(root, manifest, name, index, rows)


def _file(path: Path, sha256: str) -> Iterator[str]:
    if not path.is_file():
        yield f"{path.name} is missing"
    elif dataset.sha256_file(path) != sha256:
        yield f"{path.name} is not the file that was published: its sha256 differs"


def _shard(root: Path, number: int, shard: Shard, index: Index, extension: str) -> Iterator[str]:
    """One archive: size and hash; then, member by member, both indices."""
    path = root / shard.name
    if path.is_file() and path.stat().st_size != shard.bytes:
        yield f"{shard.name} has {path.stat().st_size:,} bytes, not {shard.bytes:,}: it was cut or replaced"
        return
    wrong = list(_file(path, shard.sha256))
    yield from wrong
    if wrong:
        return
    rows = index.shard == number
    expected = zip(index.offset[rows], index.size[rows], index.label[rows], strict=True)
    lines = []
    with tarfile.open(path) as tar, path.open("rb") as file:
        members = tar.getmembers()
        pairs = zip(members[::2], members[1::2], strict=True)
        for (picture, label), (offset, size, number_) in zip(pairs, expected, strict=False):
            value = os.pread(file.fileno(), label.size, label.offset_data)
            if (picture.offset_data, picture.size, value) != (offset, size, b"%d" % number_):
                yield f"{shard.name}: {picture.name} does not lie where the index says, or has another label"
            lines.append(
                f"{extension} {picture.offset_data} {picture.size} {picture.name} "
                f"cls {label.offset_data} {label.size} {label.name}\n"
            )
    if not len(members) // 2 == rows.sum() == shard.samples:
        yield f"{shard.name} holds {len(members) // 2} samples, the index {rows.sum()}, the manifest {shard.samples}"
    idx = path.with_suffix(".idx")
    if not idx.is_file() or idx.read_text() != f"v1.2 {len(lines)}\n" + "".join(lines):
        yield f"{idx.name} is missing or does not fit {shard.name}: plain DALI readers would feed wrong labels from it"


def _decode(root: Path, manifest: Manifest, name: str, index: Index, rows: NDArray[np.int64]) -> Iterator[str]:
    shape = (manifest.image_size, manifest.image_size, 3)
    for row in tqdm(rows, f"decoding {name}", unit="img", delay=2.0, leave=False):
        shard = manifest.splits[name].shards[index.shard[row]].name
        with (root / shard).open("rb") as file:
            data = os.pread(file.fileno(), int(index.size[row]), int(index.offset[row]))
        try:
            good = image.decode(data).shape == shape
        except Exception:  # whatever a damaged picture makes the decoder raise
            good = False
        if not good:
            yield f"{shard}: sample {row} of {name} does not decode to {shape[0]} x {shape[1]} RGB"
