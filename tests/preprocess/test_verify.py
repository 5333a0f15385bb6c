"""Damage that verify must find and name; and that inspect says what is there."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from gratis import dataset
from gratis.atomic import atomic_write
from gratis.errors import GratisError
from gratis.preprocess.inspect import InspectConfig, inspect_dataset
from gratis.preprocess.output.shard_writer import ShardWriter
from gratis.preprocess.verify import VerifyConfig, verify_dataset


def flip_a_bit(root: Path) -> str:
    path = root / "train-00002.tar"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    return path.name


def cut_an_archive(root: Path) -> str:
    path = root / "train-00001.tar"
    path.write_bytes(path.read_bytes()[:-1000])
    return path.name


def lose_an_archive(root: Path) -> str:
    (root / "val-00000.tar").unlink()
    return "val-00000.tar"


def swap_shards(root: Path) -> str:
    one, other = root / "train-00003.tar", root / "train-00004.tar"
    one.rename(root / "x")
    other.rename(one)
    (root / "x").rename(other)
    return one.name


def stale_idx(root: Path) -> str:
    path = root / "train-00000.idx"
    header, first, second, *rest = path.read_text().splitlines(keepends=True)
    path.write_text(header + second + first + "".join(rest))
    return path.name


def garbled_idx(root: Path) -> str:
    path = root / "train-00000.idx"
    path.write_bytes(path.read_bytes().replace(b"jpg", b"\xff\xfe\xfd", 1))
    return path.name


def stale_index(root: Path) -> str:
    """Another index, its hash in the manifest put right: only the archives can tell."""
    index = dataset.read_index(root, "train")
    changed = dataset.write_index(root, "train", index._replace(label=np.roll(index.label, 1)))
    manifest = json.loads((root / dataset.MANIFEST).read_text())
    manifest["splits"]["train"]["index_sha256"] = changed
    (root / dataset.MANIFEST).write_text(json.dumps(manifest))
    return "train-00000.tar"


def other_statistics(root: Path) -> str:
    stats = dataset.read_stats(root)
    dataset.write_stats(root, stats._replace(mean=stats.mean + 1))
    return dataset.STATS


def unreadable_picture(root: Path) -> str:
    """A shard that is what its manifest says, with a picture in it that is none."""
    manifest = dataset.read_manifest(root)
    split = manifest.splits["val"]
    path = root / split.shards[0].name
    with tarfile.open(path) as tar:
        blobs = [file.read() for file in map(tar.extractfile, tar.getmembers()) if file]
        keys = [name.rpartition(".")[0] for name in tar.getnames()[::2]]
    blobs[0] = b"\xff\xd8\xff no picture"
    with path.open("wb") as out:
        writer = ShardWriter(out, "jpg")
        for key, data, label in zip(keys, blobs[::2], blobs[1::2], strict=True):
            writer.add(key, data, int(label))
        writer.close()
    path.with_suffix(".idx").write_text(f"v1.2 {len(keys)}\n" + "".join(writer.lines))
    read = dataset.read_index(root, "val")  # of a mapped file
    index = read._replace(offset=read.offset.copy(), size=read.size.copy())
    index.offset[: len(keys)], index.size[: len(keys)] = writer.offset, writer.size
    shard = dataclasses.replace(
        split.shards[0], bytes=writer.bytes, sha256=writer.digest.hexdigest()
    )
    split = dataclasses.replace(
        split,
        shards=(shard, *split.shards[1:]),
        index_sha256=dataset.write_index(root, "val", index),
    )
    changed = dataclasses.replace(manifest, splits=manifest.splits | {"val": split})
    atomic_write(root / dataset.MANIFEST, changed.to_json())
    name = f"{keys[0]}.jpg"
    return f"{path.name}: sample 0, {name!r} at byte 512, is no image that the loader decodes"


def folder_for(name: str) -> Callable[[Path], str]:
    """A folder in a file's place: what no user, not even root, may read."""

    def damage(root: Path) -> str:
        (root / name).unlink()
        (root / name).mkdir()
        return f"{name} cannot be read (Is a directory)"

    return damage


DAMAGE = [
    flip_a_bit,
    cut_an_archive,
    lose_an_archive,
    swap_shards,
    stale_idx,
    garbled_idx,
    stale_index,
    other_statistics,
    unreadable_picture,
    folder_for("train-00000.idx"),
    folder_for("train.index.npz"),
    folder_for("stats.npz"),
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_verify_names_the_damage(
    sample_shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], str],
) -> None:
    root = shutil.copytree(sample_shards, tmp_path / "copy")
    named = damage(root)
    with pytest.raises(GratisError, match="finding"):
        verify_dataset(VerifyConfig(shards=str(root), sample=2000))
    assert named in capsys.readouterr().out


def test_a_sound_dataset_passes(sample_shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verify_dataset(VerifyConfig(shards=str(sample_shards)))
    assert "1,200 samples" in capsys.readouterr().out


def test_inspect_shows_counts_and_statistics(
    sample_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inspect_dataset(InspectConfig(shards=str(sample_shards)))
    shown = capsys.readouterr().out
    assert "train: 1,000 images" in shown
    assert "val: 200 images" in shown
    assert "100 to 100" in shown
    assert f"{np.sqrt(dataset.read_stats(sample_shards).eigenvalues[0]):.2f}" in shown


def test_inspect_draws(sample_shards: Path, sample_source: Path, tmp_path: Path) -> None:
    inspect_dataset(
        InspectConfig(shards=str(sample_shards), png=tmp_path / "png", src=str(sample_source))
    )
    drawn = {}
    for path in (tmp_path / "png").iterdir():
        with Image.open(path) as picture:
            drawn[path.name] = np.asarray(picture).astype(int)
    assert set(drawn) == {"mean.png", "components.png", "classes.png", "montage.png"}
    stats = dataset.read_stats(sample_shards)
    assert drawn["mean.png"].shape == (128, 256, 3)
    assert np.abs(drawn["mean.png"][:, :128] - stats.mean).max() <= 0.5
    strip = drawn["components.png"][48, 16:656]
    moved = strip[400] - strip[240]
    assert abs(moved @ stats.eigenvectors[:, 0]) / np.linalg.norm(moved) > 0.99
    outlines = np.abs(drawn["montage.png"] - (220, 30, 30)).sum(axis=2) == 0
    assert outlines.sum() > 12 * 4 * 50  # twelve of them, four sides each


def test_a_montage_of_another_source_is_refused(sample_shards: Path, tmp_path: Path) -> None:
    (tmp_path / "src/train/a").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(tmp_path / "src/train/a/1.png")
    with pytest.raises(GratisError, match="not this dataset's source"):
        inspect_dataset(
            InspectConfig(
                shards=str(sample_shards), png=tmp_path / "png", src=str(tmp_path / "src")
            )
        )


def test_writer_writes_what_tarfile_writes() -> None:
    """The archive is written by hand for speed; tarfile, given the same, writes the same bytes."""
    ours, theirs = io.BytesIO(), io.BytesIO()
    buffered = io.BufferedWriter(ours)  # type: ignore[type-var]
    writer = ShardWriter(buffered, "jpg")
    samples = [(f"k{k}", bytes([k]) * (k * 400), k) for k in range(6)]
    for key, data, label in samples:
        writer.add(key, data, label)
    writer.close()
    buffered.flush()
    with tarfile.open(fileobj=theirs, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key, data, label in samples:
            for name, content in ((f"{key}.jpg", data), (f"{key}.cls", str(label).encode())):
                info = tarfile.TarInfo(name)
                info.size, info.mode, info.uname, info.gname = (
                    len(content),
                    0o644,
                    "gratis",
                    "gratis",
                )
                tar.addfile(info, io.BytesIO(content))
    assert ours.getvalue() == theirs.getvalue()


def test_a_wrong_size_in_the_manifest_is_one_finding(
    sample_shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(sample_shards, tmp_path / "copy")
    manifest = dataset.read_manifest(root)
    atomic_write(root / dataset.MANIFEST, dataclasses.replace(manifest, image_size=96).to_json())
    with pytest.raises(GratisError, match=": 1 finding;"):
        verify_dataset(VerifyConfig(shards=str(root)))
    assert (
        "manifest.json says images of 96 px, the statistics are of 128 px"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize("command", [verify_dataset, inspect_dataset])
def test_urls_are_one_line(command: Callable[[Any], None]) -> None:
    kind = VerifyConfig if command is verify_dataset else InspectConfig
    config = kind(shards="s3://b/x")
    with pytest.raises(GratisError, match="local folders, not s3://b/x"):
        command(config)
