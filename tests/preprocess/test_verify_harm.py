"""What verify says of a small dataset that is sound, and of each harm to it: to the word."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from handmade import picture, write_dataset
from PIL import Image

from gratis import dataset
from gratis.errors import GratisError
from gratis.preprocess.verify import VerifyConfig, verify_dataset

SIZE, COUNT, PER_SHARD = 32, 5, 3


def write_idx(tar: Path) -> None:
    """In DALI's format 1.2, by the standard library."""
    with tarfile.open(tar) as archive:
        files = [(m.name, m.offset_data, m.size) for m in archive.getmembers()]
    parts = [f"{Path(name).suffix[1:]} {at} {size} {name}" for name, at, size in files]
    samples = [" ".join(parts[k : k + 2]) for k in range(0, len(parts), 2)]
    tar.with_suffix(".idx").write_text("\n".join([f"v1.2 {len(samples)}", *samples, ""]))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    images = [picture(number, SIZE) for number in range(COUNT)]
    made = write_dataset(tmp_path / "shards", images, per_shard=PER_SHARD)
    for tar in made.glob("*.tar"):
        write_idx(tar)
    return made


def replace_manifest(root: Path, **fields: object) -> None:
    manifest = dataclasses.replace(dataset.read_manifest(root), **fields)  # type: ignore[arg-type]
    (root / dataset.MANIFEST).write_bytes(manifest.to_json())


def replace_index(root: Path, **columns: object) -> None:
    """With its sum in the manifest."""
    index = dataset.read_index(root, "train")._replace(**columns)  # type: ignore[arg-type]
    sha256 = dataset.write_index(root, "train", index)
    split = dataset.read_manifest(root).splits["train"]
    replace_manifest(root, splits={"train": dataclasses.replace(split, index_sha256=sha256)})


def rewrite_tar(root: Path, change: Callable[[bytearray], None]) -> None:
    """The second one, with its sum in the manifest."""
    tar = root / "train-00001.tar"
    data = bytearray(tar.read_bytes())
    change(data)
    tar.write_bytes(data)
    split = dataset.read_manifest(root).splits["train"]
    shard = dataclasses.replace(split.shards[1], sha256=hashlib.sha256(data).hexdigest())
    split = dataclasses.replace(split, shards=(split.shards[0], shard))
    replace_manifest(root, splits={"train": split})


def cut(root: Path) -> str:
    tar = root / "train-00001.tar"
    size = tar.stat().st_size
    tar.write_bytes(tar.read_bytes()[:-512])
    return f"{tar.name} has {size - 512:,} bytes, not {size:,}: it was cut or replaced"


def flip_a_bit(root: Path) -> str:
    tar = root / "train-00000.tar"
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(data)
    return f"{tar.name} is not the file that was published: its sha256 differs"


def lose_a_tar(root: Path) -> str:
    (root / "train-00001.tar").unlink()
    return "train-00001.tar is missing"


def other_stats(root: Path) -> str:
    (root / "stats.npz").write_bytes(b"")
    return "stats.npz is not the file that was published: its sha256 differs"


def no_index(root: Path) -> str:
    (root / "train.index.npz").unlink()
    return "train.index.npz is missing"


def no_idx(root: Path) -> str:
    (root / "train-00001.idx").unlink()
    return (
        "train-00001.idx is missing or does not fit train-00001.tar: plain DALI readers would feed "
        "wrong labels from it"
    )


def swapped_idx(root: Path) -> str:
    path = root / "train-00001.idx"
    head, first, second = path.read_text().splitlines()
    path.write_text("\n".join([head, second, first, ""]))
    return no_idx(root)


def swapped_labels(root: Path) -> str:
    label = dataset.read_index(root, "train").label.copy()
    label[3] += 1
    replace_index(root, label=label)
    return "train-00001.tar: s_3.jpg has another size or label than the index says"


def other_size(root: Path) -> str:
    size = dataset.read_index(root, "train").size.copy()
    size[4] -= 1
    replace_index(root, size=size)
    return "train-00001.tar: s_4.jpg has another size or label than the index says"


def rotten(root: Path) -> str:
    index = dataset.read_index(root, "train")
    at = int(index.offset[4])

    def zeros(data: bytearray) -> None:
        data[at : at + 300] = bytes(300)

    rewrite_tar(root, zeros)
    return f"train-00001.tar: sample 4, 's_4.jpg' at byte {at}, is no image that the loader decodes"


def left_out(root: Path) -> str:
    """The fourth of the index, but not of its tar."""
    index = dataset.read_index(root, "train")
    columns = {
        name: None if column is None else np.delete(column, 3)
        for name, column in index._asdict().items()
    }
    replace_index(root, **columns)
    split = dataset.read_manifest(root).splits["train"]
    shards = (split.shards[0], dataclasses.replace(split.shards[1], samples=1))
    replace_manifest(root, splits={"train": dataclasses.replace(split, shards=shards)})
    idx = root / "train-00001.idx"
    _, _, last = idx.read_text().splitlines()
    idx.write_text(f"v1.2 1\n{last}\n")
    return (
        "train: 1 images of its tars are neither in its index nor rejected; the first is "
        f"'s_3.jpg' at byte {index.offset[3]} of train-00001.tar"
    )


def other_shape(root: Path) -> str:
    replace_manifest(root, image_size=64)
    return "manifest.json says images of 64 px, the statistics are of 32 px"


HARMS = [
    cut,
    flip_a_bit,
    lose_a_tar,
    other_stats,
    no_index,
    no_idx,
    swapped_idx,
    swapped_labels,
    other_size,
    rotten,
    left_out,
    other_shape,
]


@pytest.mark.parametrize("harm", HARMS)
def test_a_harm_is_one_finding(
    root: Path, capsys: pytest.CaptureFixture[str], harm: Callable[[Path], str]
) -> None:
    finding = harm(root)
    with pytest.raises(GratisError, match=f"^{re.escape(str(root))}: 1 finding; copy it again, or"):
        verify_dataset(VerifyConfig(shards=str(root)))
    assert capsys.readouterr().out == finding + "\n"


def test_a_sound_dataset_is_and_rejects_are_no_loss(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    verify_dataset(VerifyConfig(shards=str(root)))
    assert capsys.readouterr().out == f"{root}: 5 samples are as they were published\n"
    left_out(root)
    reject = {"split": "train", "file": "s_3.jpg", "kind": "undecodable", "reason": "no JPEG"}
    (root / "rejects.jsonl").write_text(json.dumps(reject) + "\n")
    verify_dataset(VerifyConfig(shards=str(root)))
    (root / "rejects.jsonl").write_text(json.dumps(reject | {"split": "val"}) + "\n")
    with pytest.raises(GratisError, match=": 1 finding;"):
        verify_dataset(VerifyConfig(shards=str(root)))


def test_images_are_decoded_on_request(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[int] = []

    class Check:
        summary = "all of them"

        def difference(self, data: bytes, pixels: np.ndarray) -> str | None:
            with Image.open(io.BytesIO(data)) as decoded:
                assert np.array_equal(np.asarray(decoded), pixels)
            seen.append(len(data))
            return "differs" if len(seen) == 2 else None

    with pytest.raises(GratisError, match=": 1 finding;"):
        verify_dataset(VerifyConfig(shards=str(root), sample=5), Check)
    index = dataset.read_index(root, "train")
    assert sorted(seen) == sorted(index.size.tolist())
    row = index.size.tolist().index(seen[1])
    shard, at = f"train-0000{row // PER_SHARD}.tar", index.offset[row]
    said = f"{shard}: sample {row}, 's_{row}.jpg' at byte {at}, differs\nall of them\n"
    assert capsys.readouterr().out == said
    seen.clear()
    verify_dataset(VerifyConfig(shards=str(root), sample=0), Check)
    assert not seen
    seen.append(0)
    with pytest.raises(GratisError):
        verify_dataset(VerifyConfig(shards=str(root), sample=1), Check)
    assert len(seen) == 2
