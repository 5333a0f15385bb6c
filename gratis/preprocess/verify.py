"""The verify command: is a folder still the dataset that was published?

    gratis verify shards --sample 1000

Every archive is hashed and read to its end; every index entry, ours and DALI's, is compared with
the archive's own headers and labels; of every image it is asked what the loader asks before it
decodes, and some are decoded, by each of the loader's decoders, which must agree. An image that is
in a tar must be in the index, or among the rejects. Each finding is a message that names the file;
a copy with findings should be made again."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import tyro
from numpy.typing import NDArray
from tqdm import tqdm

from gratis import addresses, dataset, image
from gratis.atomic import sha256_file
from gratis.command_line import check_ranges
from gratis.dataset import Manifest, Shard
from gratis.errors import GratisError
from gratis.preprocess.sources.listing import ListingBuilder
from gratis.preprocess.sources.tar import Member, idx_bytes, idx_line, members
from gratis.preprocess.sources.webdataset import TarSample, group_samples, label_of
from gratis.preprocess.stages.plan import permutation

MAX_FINDINGS = 20  # findings printed before the rest is only counted
WAY_OUT = (
    "copy it again, or make it again: by gratis shards into another folder, or, where gratis index "
    f"took tars as they are, remove {dataset.MANIFEST} and run that again"
)


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Checks a dataset's archives, indices and statistics against its manifest, and decodes some
    images."""

    shards: tyro.conf.Positional[str]
    """Folder of the dataset."""
    sample: int = 1000
    """Images to decode, spread over all of them, by the engine and by DALI. 0: none."""

    def __post_init__(self) -> None:
        check_ranges(self, {"sample": (0, 1 << 31)})


class DecoderCheck(Protocol):
    """The loader's decoders, held against each other."""

    def difference(self, data: bytes, pixels: NDArray[np.uint8]) -> str | None:
        """What is wrong with one image; pixels uint8 [height,width,3]: by `gratis.image`."""

    @property
    def summary(self) -> str:
        """Of all images so far, in one line."""


def verify_dataset(
    config: VerifyConfig, decoders: Callable[[], DecoderCheck | None] = lambda: None
) -> None:
    """Prints what is wrong; GratisError if anything is. decoders: None where the loader's are not
    installed."""
    root = local_folder(config.shards, "verify")
    manifest = dataset.read_manifest(root)
    check = decoders() if config.sample and manifest.codec == "jpeg" else None
    findings = 0
    for finding in _findings(root, config.sample, manifest, check):
        findings += 1
        if findings <= MAX_FINDINGS:
            print(finding)
    if check:
        print(check.summary)
    if findings:
        counted = "1 finding" if findings == 1 else f"{findings:,} findings"
        raise GratisError(f"{config.shards}: {counted}; {WAY_OUT}")
    samples = sum(split.samples for split in manifest.splits.values())
    print(f"{config.shards}: {samples:,} samples are as they were published")


def local_folder(address: str, command: str) -> Path:
    """GratisError for a URL, which this command does not read."""
    if addresses.is_url(str(address)):
        way_out = "copy the dataset first, or give its mount"
        raise GratisError(f"{command} reads local folders, not {address}; {way_out}")
    return Path(address)


def _findings(
    root: Path, sample: int, manifest: Manifest, check: DecoderCheck | None
) -> Iterator[str]:
    wrong = list(_file(root / dataset.STATS, manifest.stats_sha256))
    yield from wrong
    if not wrong:
        stats = dataset.read_stats(root)
        yield from _unlike(manifest, stats)
        if side := len(stats.mean):
            # the images', which are looked at below, are what the statistics are of
            manifest = dataclasses.replace(manifest, image_size=side)
    total = sum(split.samples for split in manifest.splits.values())
    for name, split in manifest.splits.items():
        wrong = list(_file(root / dataset.index_name(name), split.index_sha256))
        yield from wrong
        if not wrong:
            count = -(-sample * split.samples // total)
            yield from _SplitCheck(root, manifest, name, check).findings(count)


def _unlike(manifest: Manifest, stats: dataset.Stats) -> Iterator[str]:
    """Where manifest and statistics are of images of another shape or size."""
    shape = "square" if stats.channel_mean is None else "whole"
    if manifest.shape != shape:
        images = f"{manifest.shape} images, the statistics are of {shape} ones"
        yield f"{dataset.MANIFEST} says {images}"
    elif shape == "square" and (side := len(stats.mean)) != manifest.image_size:
        size = f"{manifest.image_size} px, the statistics are of {side} px"
        yield f"{dataset.MANIFEST} says images of {size}"


class _SplitCheck:
    """One split against its archives. left_out: of each image that is in an archive and not in the
    index the name, and where it is."""

    def __init__(
        self, root: Path, manifest: Manifest, name: str, check: DecoderCheck | None
    ) -> None:
        self.root, self.manifest, self.name, self.check = root, manifest, name, check
        self.split, self.index = manifest.splits[name], dataset.read_index(root, name)
        self.heights, self.widths = self.index.sizes(manifest)
        self.left_out: list[tuple[str, str]] = []

    def findings(self, sample: int) -> Iterator[str]:
        """Of all shards, and of so many images that are decoded."""
        if (self.index.width is not None) != (self.manifest.shape == "whole"):
            there = "sizes of images" if self.index.width is not None else "no sizes of images"
            of = f"{dataset.MANIFEST} says {self.manifest.shape} ones"
            yield f"{dataset.index_name(self.name)} has {there}, and {of}"
        intact: list[int] = []
        shards = tqdm(
            self.split.shards, self.name, unit="shard", delay=2.0, leave=False, disable=None
        )
        for number, shard in enumerate(shards):
            rows = np.flatnonzero(self.index.shard == number)
            wrong = list(_unless_unreadable(shard.name, self._shard(shard, rows)))
            yield from wrong
            if not wrong:
                intact.append(number)
        yield from self._lost()
        rows = np.flatnonzero(np.isin(self.index.shard, intact))
        rows = rows[permutation(len(rows), self.manifest.seed, "verify")[:sample]]
        yield from _unless_unreadable(self.name, self._decode(rows))

    def _shard(self, shard: Shard, rows: NDArray[np.int64]) -> Iterator[str]:
        """Of one archive: its size and hash; then, sample by sample, both indices."""
        path = self.root / shard.name
        if path.is_file() and (size := path.stat().st_size) != shard.bytes:
            yield f"{shard.name} has {size:,} bytes, not {shard.bytes:,}: it was cut or replaced"
            return
        wrong = list(_file(path, shard.sha256))
        yield from wrong
        if wrong:
            return
        if len(rows) != shard.samples:
            yield f"{shard.name}: the index has {len(rows)} samples, the manifest {shard.samples}"
        with addresses.Bytes(str(path)) as archive:
            yield from self._samples(archive, path, rows)

    def _samples(
        self, archive: addresses.Bytes, path: Path, rows: NDArray[np.int64]
    ) -> Iterator[str]:
        expected: dict[int, list[int]] = {}  # by offset: several where links are to one image
        for row in rows.tolist():
            expected.setdefault(int(self.index.offset[row]), []).append(row)
        lines = []
        files = members(archive, path.name, lambda name, reason: None, 0, archive.size)
        for group in group_samples(path.name, files):
            if (picture := group.picture) is None:
                continue
            if not expected.get(picture.offset):
                self._leave_out(path.name, picture)
                continue
            row = expected[picture.offset].pop(0)
            size, label = int(self.index.size[row]), int(self.index.label[row])
            unlabelled = label < 0  # on request, whatever the tar says
            if picture.size != size or not (
                unlabelled or _label(archive, path.name, group) == label
            ):
                other = "has another size or label than the index says"
                yield f"{path.name}: {picture.name} {other}"
            elif not self._is_decodable(archive, picture, row):
                which = f"sample {row}, {picture.name!r} at byte {picture.offset},"
                pixels = f" of {self.widths[row]} x {self.heights[row]} pixels"
                of = pixels if self.manifest.shape == "whole" else ""
                yield f"{path.name}: {which} is no image{of} that the loader decodes"
            lines.append(idx_line(group.parts))
        if missing := [offset for offset, left in expected.items() if left]:
            first = f"{len(missing):,} times; first at byte {min(missing)}"
            yield f"{path.name} has no image where the index says, {first}"
        idx = path.with_suffix(".idx")
        if not idx.exists() or idx.read_bytes() != idx_bytes(lines):
            wrong_labels = "plain DALI readers would feed wrong labels from it"
            yield f"{idx.name} is missing or does not fit {path.name}: {wrong_labels}"

    def _leave_out(self, tar: str, picture: Member) -> None:
        """Notes an image that is not in the index, unless no listing would take it."""
        listing = ListingBuilder((), official=True)
        listing.containers.append(tar)
        listing.add(*picture, -1)
        if len(listing):
            where = f"{picture.name!r} at byte {picture.offset} of {tar}"
            self.left_out.append((listing.build().item(0).name, where))

    def _is_decodable(self, archive: addresses.Bytes, picture: Member, row: int) -> bool:
        data = np.frombuffer(bytearray(archive.read(picture.offset, picture.size)), np.uint8)
        size = int(self.heights[row]), int(self.widths[row])
        return dataset.is_decodable(data, self.manifest.codec, *size)

    def _lost(self) -> Iterator[str]:
        """Of the images that are not in the index those that no reject is."""
        rejects = _rejects(self.root, self.name)
        lost = []
        for name, where in self.left_out:
            if rejects[name] > 0:
                rejects[name] -= 1
            else:
                lost.append(where)
        if lost:
            count = f"{len(lost):,} images of its tars are neither in its index nor rejected"
            yield f"{self.name}: {count}; the first is {lost[0]}"

    def _decode(self, rows: NDArray[np.int64]) -> Iterator[str]:
        for row in tqdm(rows, "decoding", unit="img", delay=2.0, leave=False, disable=None):
            shard = self.split.shards[self.index.shard[row]].name
            offset = int(self.index.offset[row])
            with addresses.Bytes(str(self.root / shard)) as archive:
                name = archive.read(offset - 512, 100)  # of the header before it
                data = archive.read(offset, int(self.index.size[row]))
            try:
                pixels = image.decode(data)
                good = pixels.shape == (self.heights[row], self.widths[row], 3)
            except Exception:  # whatever a damaged picture makes the decoder raise
                good = False
            if not good:
                size = f"{self.widths[row]} x {self.heights[row]}"
                yield f"{shard}: sample {row} does not decode to {size} RGB"
            elif self.check and (problem := self.check.difference(data, pixels)):
                key = name.split(b"\0")[0].decode(errors="replace")
                yield f"{shard}: sample {row}, {key!r} at byte {offset}, {problem}"


def _rejects(root: Path, split: str) -> Counter[str]:
    """How many files of each name were rejected."""
    names: Counter[str] = Counter()
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):  # none, or others' lines
        for line in (root / dataset.REJECTS).read_text().splitlines():
            row = json.loads(line)
            names[row["file"]] += row["split"] == split
    return names


def _unless_unreadable(name: str, findings: Iterator[str]) -> Iterator[str]:
    """The findings; where a file cannot be read, one more, and no others. name: of the file unless
    the system names it. Likewise for a tar that is damaged."""
    try:
        yield from findings
    except GratisError as error:
        yield str(error)
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


def _label(archive: addresses.Bytes, path: str, group: TarSample) -> int | None:
    try:
        return label_of(archive, path, group)
    except GratisError:
        return None
