"""The same samples for every loader, in the form that each reads."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.loader.peers.common import torchvision
from benchmarks.resume.pictures import DAMAGED, SAMPLES, damaged, decoded_id, picture

TARS, CLASSES = 8, 10


def write_data(folder: Path, *, with_damage: bool) -> None:
    """Files, eight tars with DALI's index, one tar, what `gratis shards` makes of the files, and,
    where those libraries are installed, MDS shards and litdata's chunks. with_damage: one sample is
    no JPEG any more in each of them."""
    samples = {number: picture(number) for number in range(SAMPLES)}
    _write_files(folder / "source" / "train", samples)
    _write_shards(folder)
    if with_damage:
        _damage_shards(folder / "shards", samples[DAMAGED])
        samples[DAMAGED] = damaged(samples[DAMAGED])
    _write_files(folder / "files", samples)
    _write_tars(folder, samples)
    if find_spec("streaming"):
        _write_mds(folder / "mds", samples)
    if find_spec("litdata"):
        _write_chunks(folder / "chunks", samples)


def _write_files(folder: Path, samples: dict[int, bytes]) -> None:
    for number, data in samples.items():
        path = folder / f"class{number % CLASSES}" / f"{number:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _write_shards(folder: Path) -> None:
    """By this checkout's command; a sample's pixels are those of its file, for the side is."""
    command = [sys.executable, "-m", "gratis", "shards", "--src", folder / "source"]
    options = ["--out", folder / "shards", "--size", "64", "--workers", "1"]
    subprocess.run([*map(str, command + options)], check=True, capture_output=True)


def _damage_shards(root: Path, intact: bytes) -> None:
    """The bytes of the sample that `intact` shows, where they lie."""
    dataset: Any = import_module("gratis.dataset")
    index, shards = dataset.read_index(root, "train"), dataset.read_manifest(root).splits["train"]
    for row in range(len(index.label)):
        path = root / shards.shards[index.shard[row]].name
        with path.open("r+b") as file:
            file.seek(int(index.offset[row]))
            data = file.read(int(index.size[row]))
            if decoded_id(data) == decoded_id(intact):
                file.seek(int(index.offset[row]))
                file.write(damaged(data))


def _write_tars(folder: Path, samples: dict[int, bytes]) -> None:
    writers: Any = import_module("gratis.preprocess.output.shard_writer")
    (folder / "tars").mkdir()
    for tar in range(TARS):
        path = folder / "tars" / f"train-{tar:02d}.tar"
        with path.open("wb") as file:
            writer = writers.ShardWriter(file, "jpg")
            for number in range(tar, SAMPLES, TARS):
                writer.add(f"{number:03d}", samples[number], number % CLASSES)
            writer.close()
        path.with_suffix(".idx").write_bytes(writer.index())
    with tarfile.open(folder / "one.tar", "w", format=tarfile.USTAR_FORMAT) as one:
        for number, data in samples.items():
            member = tarfile.TarInfo(f"{number:03d}.jpg")
            member.size = len(data)
            one.addfile(member, io.BytesIO(data))


def _write_mds(folder: Path, samples: dict[int, bytes]) -> None:
    torchvision()
    library: Any = import_module("streaming")
    with library.MDSWriter(
        out=str(folder), columns={"image": "bytes"}, size_limit=1 << 16
    ) as writer:
        for data in samples.values():
            writer.write({"image": data})


def _write_chunks(folder: Path, samples: dict[int, bytes]) -> None:
    cache: Any = import_module("litdata.streaming").Cache(str(folder), chunk_size=40)
    for number, data in samples.items():
        cache[number] = {"image": data}
    cache.done()
    cache.merge()


if __name__ == "__main__":
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    write_data(Path(sys.argv[1]), with_damage=len(sys.argv) > 2)
