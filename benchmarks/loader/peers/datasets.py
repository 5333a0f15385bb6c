"""The same images for all: a dataset's pictures as peers usually have them, in our codec's
settings, with fewer bytes, raw, and as files in class folders. Small datasets are gone over again
until there are enough images."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.loader.peers.common import Files, encoded
from gratis.dataset import (
    EXTENSIONS,
    MANIFEST,
    Index,
    Manifest,
    Shard,
    Split,
    read_manifest,
    read_stats,
    write_index,
    write_stats,
)
from gratis.preprocess.codecs import encode_jpeg, encode_ppm
from gratis.preprocess.output.shard_writer import ShardWriter

IMAGES, PER_SHARD = 5120, 1024  # whole batches
QUALITY = 90  # of the form that is named for it

WITHOUT_MARKERS = ("usual", "older")
FIELDS_1 = (
    *("image_size", "codec", "quality", "seed", "samples_per_shard"),
    *("source", "tools", "classes", "splits", "stats_sha256"),
)

Sample = tuple[int, dict[str, bytes]]  # label, bytes in each form


def write_datasets(shards: Path, scratch: Path, forms: set[Files]) -> None:
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
    """All are made of the same pixels; the first three, of the same quality, decode to the same."""
    quality = read_manifest(shards).quality or 95
    for label, data in islice(encoded(shards), IMAGES):
        image = Image.open(io.BytesIO(data)).convert("RGB")
        usual, older = (_plain_jpeg(image, quality, optimize=fit) for fit in (False, True))
        fitted, q90 = encode_jpeg(image, quality), encode_jpeg(image, QUALITY)
        raw = encode_ppm(image)
        yield label, {"usual": usual, "older": older, "fitted": fitted, "q90": q90, "raw": raw}


def _plain_jpeg(image: Image.Image, quality: int, *, optimize: bool) -> bytes:
    """Without restart markers."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, subsampling="4:2:0", optimize=optimize)
    return file.getvalue()


def _write(root: Path, form: Files, parts: list[list[Sample]], shards: Path) -> None:
    manifest, codec, written = read_manifest(shards), "raw" if form == "raw" else "jpeg", []
    rows: list[Index] = []
    for number, part in enumerate(parts):
        path = root / f"train-{number:05d}.tar"
        with path.open("wb") as file:
            writer = ShardWriter(file, EXTENSIONS[codec])
            for position, (label, data) in enumerate(part, number * PER_SHARD):
                writer.add(f"{position:06d}", data[form], label)
            writer.close()
        path.with_suffix(".idx").write_bytes(writer.index())
        size, sha256 = writer.bytes, writer.digest.hexdigest()
        written.append(Shard(name=path.name, samples=len(part), bytes=size, sha256=sha256))
        shard = np.full(len(part), number, np.int32)
        rows.append(Index(shard, *writer.columns()))
    columns = [column for column in zip(*rows, strict=True) if column[0] is not None]
    index = Index(*map(np.concatenate, columns))  # those that square images lack are the last
    sha256 = write_index(root, "train", index)
    split = Split(shards=tuple(written), index_sha256=sha256, conversions={}, rejects={})
    made = replace(
        manifest,
        splits={"train": split},
        codec=codec,
        quality={"raw": None, "q90": QUALITY}.get(form, manifest.quality),
        stats_sha256=write_stats(root, read_stats(shards)),
        samples_per_shard=PER_SHARD,
    )
    (root / MANIFEST).write_bytes(_format_1(made) if form in WITHOUT_MARKERS else made.to_json())


def _format_1(manifest: Manifest) -> bytes:
    """The manifest as the first version wrote it, which every version reads."""
    fields = asdict(manifest)
    return json.dumps({name: fields[name] for name in FIELDS_1} | {"format": 1}).encode()
