"""Damage that verify must find and name; and that inspect says what is there."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import picture, write_dataset
from PIL import Image

from gratis import dataset
from gratis.atomic import atomic_write
from gratis.errors import GratisError
from gratis.preprocess.inspect import InspectConfig, inspect_dataset
from gratis.preprocess.output.shard_writer import ShardWriter
from gratis.preprocess.verify import VerifyConfig, verify_dataset

Findings = list[str]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five shards of three images; DALI's indices by what tarfile reads."""
    root = tmp_path_factory.mktemp("verify") / "sound"
    write_dataset(root, [picture(number, 16) for number in range(15)], per_shard=3)
    for path in root.glob("*.tar"):
        write_idx(path)
    return root


def write_idx(path: Path) -> None:
    with tarfile.open(path) as tar:
        parts = [f"{m.name[-3:]} {m.offset_data} {m.size} {m.name}" for m in tar.getmembers()]
    lines = [" ".join(pair) for pair in zip(parts[::2], parts[1::2], strict=True)]
    path.with_suffix(".idx").write_text("\n".join([f"v1.2 {len(lines)}", *lines, ""]))


def change(root: Path, **fields: Any) -> None:
    """Of the manifest's only split."""
    manifest = json.loads((root / dataset.MANIFEST).read_text())
    manifest["splits"]["train"] |= fields
    (root / dataset.MANIFEST).write_text(json.dumps(manifest))


def shards_of(root: Path) -> list[dict[str, Any]]:
    return json.loads((root / dataset.MANIFEST).read_text())["splits"]["train"]["shards"]


def not_published(name: str) -> str:
    return f"{name} is not the file that was published: its sha256 differs"


def does_not_fit(number: int) -> str:
    wrong = "plain DALI readers would feed wrong labels from it"
    return f"train-{number:05}.idx is missing or does not fit train-{number:05}.tar: {wrong}"


def change_a_byte(root: Path) -> Findings:
    path = root / "train-00002.tar"
    data = bytearray(path.read_bytes())
    data[-1] ^= 4  # of the zeros at the end, of no sample
    path.write_bytes(data)
    return [not_published(path.name)]


def cut_an_archive(root: Path) -> Findings:
    path = root / "train-00001.tar"
    path.write_bytes(path.read_bytes()[:-1000])
    sizes = f"{path.stat().st_size:,} bytes, not {path.stat().st_size + 1000:,}"
    return [f"{path.name} has {sizes}: it was cut or replaced"]


def lose_an_archive(root: Path) -> Findings:
    (root / "train-00004.tar").unlink()
    return ["train-00004.tar is missing"]


def swap_shards(root: Path) -> Findings:
    one, other = root / "train-00003.tar", root / "train-00004.tar"
    first, second = one.read_bytes(), other.read_bytes()
    assert len(first) == len(second)  # tars have blocks of 10,240 bytes
    one.write_bytes(second)
    other.write_bytes(first)
    return [not_published(one.name), not_published(other.name)]


def swap_lines_of_an_idx(root: Path) -> Findings:
    path = root / "train-00000.idx"
    header, first, second, *rest = path.read_text().splitlines(keepends=True)
    path.write_text(header + second + first + "".join(rest))
    return [does_not_fit(0)]


def garble_an_idx(root: Path) -> Findings:
    path = root / "train-00000.idx"
    path.write_bytes(path.read_bytes().replace(b"jpg", b"\xff\xfe\xfd", 1))
    return [does_not_fit(0)]


def lose_an_idx(root: Path) -> Findings:
    (root / "train-00003.idx").unlink()
    return [does_not_fit(3)]


def lose_the_index(root: Path) -> Findings:
    (root / "train.index.npz").unlink()
    return ["train.index.npz is missing"]


def stale_index(root: Path) -> Findings:
    """Another index, its hash in the manifest put right: only the archives can tell."""
    index = dataset.read_index(root, "train")
    label = index.label.copy()  # of a mapped file
    label[7] += 1
    change(root, index_sha256=dataset.write_index(root, "train", index._replace(label=label)))
    return ["train-00002.tar: s_7.jpg has another size or label than the index says"]


def index_of_other_places(root: Path) -> Findings:
    index = dataset.read_index(root, "train")
    offset = index.offset.copy()
    offset[4] += 512
    change(root, index_sha256=dataset.write_index(root, "train", index._replace(offset=offset)))
    true = offset[4] - 512
    return [
        f"train-00001.tar has no image where the index says, 1 times; first at byte {offset[4]}",
        does_not_fit(1),  # it is of the images that are in the index
        "train: 1 images of its tars are neither in its index nor rejected; the first is "
        f"'s_4.jpg' at byte {true} of train-00001.tar",
    ]


def wrong_count(root: Path) -> Findings:
    shards = shards_of(root)
    shards[1]["samples"] = 4
    change(root, shards=shards)
    return ["train-00001.tar: the index has 3 samples, the manifest 4"]


def other_statistics(root: Path) -> Findings:
    stats = dataset.read_stats(root)
    dataset.write_stats(root, stats._replace(mean=stats.mean + 1))
    return [not_published(dataset.STATS)]


def other_image_size(root: Path) -> Findings:
    manifest = dataset.read_manifest(root)
    atomic_write(root / dataset.MANIFEST, dataclasses.replace(manifest, image_size=96).to_json())
    return ["manifest.json says images of 96 px, the statistics are of 16 px"]


def unreadable_picture(root: Path) -> Findings:
    """A shard that is what its manifest says, with a picture in it that is none."""
    path = root / "train-00001.tar"
    index = dataset.read_index(root, "train")
    data = bytearray(path.read_bytes())
    offset = int(index.offset[4])
    data[offset + 3 : offset + 20] = bytes(17)
    path.write_bytes(data)
    shards = shards_of(root)
    shards[1]["sha256"] = hashlib.sha256(data).hexdigest()
    change(root, shards=shards)
    which = f"sample 4, 's_4.jpg' at byte {offset}, is no image that the loader decodes"
    return [f"{path.name}: {which}"]


def folder_for(name: str) -> Callable[[Path], Findings]:
    """A folder in a file's place: what no user, not even root, may read."""

    def damage(root: Path) -> Findings:
        (root / name).unlink()
        (root / name).mkdir()
        return [f"{name} cannot be read (Is a directory); mend its permissions, or its disk"]

    return damage


DAMAGE = [
    change_a_byte,
    cut_an_archive,
    lose_an_archive,
    swap_shards,
    swap_lines_of_an_idx,
    garble_an_idx,
    lose_an_idx,
    lose_the_index,
    stale_index,
    index_of_other_places,
    wrong_count,
    other_statistics,
    other_image_size,
    unreadable_picture,
    folder_for("train-00000.idx"),
    folder_for("train.index.npz"),
    folder_for("stats.npz"),
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_verify_names_the_damage(
    sound: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], Findings],
) -> None:
    """And nothing else."""
    root = shutil.copytree(sound, tmp_path / "copy")
    findings = damage(root)
    count = "1 finding" if len(findings) == 1 else f"{len(findings)} findings"
    with pytest.raises(GratisError, match=rf"^{root}: {count}; copy it again"):
        verify_dataset(VerifyConfig(shards=str(root)))
    assert capsys.readouterr().out.splitlines() == findings


def test_a_sound_one_passes(sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verify_dataset(VerifyConfig(shards=str(sound)))
    assert capsys.readouterr().out == f"{sound}: 15 samples are as they were published\n"


def test_what_was_rejected_is_no_loss(
    sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The fourth image is in a tar, and not in the index: a loss, unless it is among the rejects of
    its split."""
    root = shutil.copytree(sound, tmp_path / "copy")
    index = dataset.read_index(root, "train")
    columns = {
        name: None if column is None else np.delete(column, 3)
        for name, column in index._asdict().items()
    }
    shards = shards_of(root)
    shards[1]["samples"] = 2
    sha256 = dataset.write_index(root, "train", index._replace(**columns))
    change(root, index_sha256=sha256, shards=shards)
    idx = root / "train-00001.idx"
    _, _, *rest = idx.read_text().splitlines()
    idx.write_text("\n".join(["v1.2 2", *rest, ""]))
    reject = {"split": "train", "file": "s_3.jpg", "kind": "undecodable", "reason": "no JPEG"}
    lost = "train: 1 images of its tars are neither in its index nor rejected; the first is "
    for split in (None, "val", "train"):
        line = json.dumps(reject | {"split": split}) + "\n" if split else ""
        (root / "rejects.jsonl").write_text(line)
        if split == "train":
            verify_dataset(VerifyConfig(shards=str(root)))
            break
        with pytest.raises(GratisError, match=": 1 finding;"):
            verify_dataset(VerifyConfig(shards=str(root)))
        where = f"'s_3.jpg' at byte {index.offset[3]} of train-00001.tar\n"
        assert capsys.readouterr().out == lost + where


def test_images_are_decoded_on_request(sound: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[int] = []

    class Check:
        summary = "all of them"

        def difference(self, data: bytes, pixels: np.ndarray) -> str | None:
            with Image.open(io.BytesIO(data)) as decoded:
                assert np.array_equal(np.asarray(decoded), pixels)
            seen.append(len(data))
            return "differs" if len(seen) == 2 else None

    with pytest.raises(GratisError, match=": 1 finding;"):
        verify_dataset(VerifyConfig(shards=str(sound), sample=15), Check)
    index = dataset.read_index(sound, "train")
    assert sorted(seen) == sorted(index.size.tolist())
    row = index.size.tolist().index(seen[1])
    shard, at = f"train-0000{row // 3}.tar", index.offset[row]
    said = f"{shard}: sample {row}, 's_{row}.jpg' at byte {at}, differs\nall of them\n"
    assert capsys.readouterr().out == said
    seen.clear()
    verify_dataset(VerifyConfig(shards=str(sound), sample=0), Check)
    assert not seen
    seen.append(0)
    with pytest.raises(GratisError, match=": 1 finding;"):
        verify_dataset(VerifyConfig(shards=str(sound), sample=1), Check)
    assert len(seen) == 2


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


@pytest.mark.parametrize("command", [verify_dataset, inspect_dataset])
def test_urls_are_one_line(command: Callable[[Any], None]) -> None:
    kind = VerifyConfig if command is verify_dataset else InspectConfig
    config = kind(shards="s3://b/x")
    with pytest.raises(GratisError, match="local folders, not s3://b/x"):
        command(config)
