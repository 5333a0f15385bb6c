"""The same images for all: a dataset's pictures as peers usually have them, in our codec's
settings, with fewer bytes, raw, and as files in class folders. Small datasets are gone over again
until there are enough images."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.loader.peers.common import Files, encoded
from gratis.atomic import sha256_file
from gratis.dataset import (
    MANIFEST,
    Index,
    Shard,
    Split,
    read_manifest,
    read_stats,
    write_index,
    write_stats,
)

IMAGES, PER_SHARD = 5120, 1024  # whole batches
QUALITY = 90  # of the form that is named for it

Sample = tuple[int, dict[str, bytes]]  # label, bytes in each form


def lay_out(shards: Path, scratch: Path, forms: set[Files]) -> None:
    """Datasets named for their forms, and the image folder `folder`, in scratch: 290 KB an image of
    256 px at most."""
    samples = list(_samples(shards))
    parts = [range(first, min(first + PER_SHARD, IMAGES)) for first in range(0, IMAGES, PER_SHARD)]
    for form in sorted(forms):
        root = scratch / form
        root.mkdir()
        _write(root, form, [[samples[k % len(samples)] for k in part] for part in parts], shards)
    for number in range(IMAGES):
        label, data = samples[number % len(samples)]
        folder = scratch / "folder" / f"{label:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:06d}.jpg").write_bytes(data["usual"])


def _samples(shards: Path) -> Iterator[Sample]:
    """All are made of the same pixels; the first two, with the same quality, decode to the same."""
    quality = read_manifest(shards).quality or 95
    for label, data in islice(encoded(shards), IMAGES):
        image = Image.open(io.BytesIO(data)).convert("RGB")
        raw = b"P6\n%d %d\n255\n" % image.size + image.tobytes()
        usual, fitted = (_jpeg(image, quality, fitted=fitted) for fitted in (False, True))
        yield (
            label,
            {
                "usual": usual,
                "fitted": fitted,
                "q90": _jpeg(image, QUALITY, fitted=True),
                "raw": raw,
            },
        )


def _jpeg(image: Image.Image, quality: int, *, fitted: bool) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, subsampling="4:2:0", optimize=fitted)
    return file.getvalue()


def _write(root: Path, form: Files, parts: list[list[Sample]], shards: Path) -> None:
    manifest, raw, written = read_manifest(shards), form == "raw", []
    extension, quality = (
        ("ppm", None) if raw else ("jpg", QUALITY if form == "q90" else manifest.quality)
    )
    rows: list[tuple[int, int, int, int]] = []
    for number, part in enumerate(parts):
        path, lines = root / f"train-{number:05d}.tar", []
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for label, data in part:
                key, fields = f"{len(rows):06d}", []
                for name, content in ((extension, data[form]), ("cls", b"%d" % label)):
                    member = tarfile.TarInfo(f"{key}.{name}")
                    member.size = len(content)
                    fields.append(
                        f"{name} {tar.offset + tarfile.BLOCKSIZE} {len(content)} {member.name}"
                    )
                    if name == extension:
                        rows.append((number, tar.offset + tarfile.BLOCKSIZE, len(content), label))
                    tar.addfile(member, io.BytesIO(content))
                lines.append(" ".join(fields))
        path.with_suffix(".idx").write_text(f"v1.2 {len(lines)}\n" + "\n".join(lines) + "\n")
        written.append(
            Shard(
                name=path.name,
                samples=len(part),
                bytes=path.stat().st_size,
                sha256=sha256_file(path),
            )
        )
    shard, offset, size, label = np.array(rows).T
    index = Index(
        *(
            c.astype(t)
            for c, t in zip((shard, offset, size, label), ("i4", "i8", "i4", "i4"), strict=True)
        )
    )
    split = Split(
        shards=tuple(written),
        index_sha256=write_index(root, "train", index),
        conversions={},
        rejects={},
    )
    made = replace(
        manifest,
        splits={"train": split},
        codec="raw" if raw else "jpeg",
        quality=quality,
        stats_sha256=write_stats(root, read_stats(shards)),
        samples_per_shard=PER_SHARD,
    )
    (root / MANIFEST).write_bytes(made.to_json())
