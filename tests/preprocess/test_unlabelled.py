"""Datasets without labels: made of tars, of folders and of labelled sources; what the loader gives,
and what training says."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from gratis import Loader, LoaderConfig, dataset
from gratis.errors import GratisError
from gratis.loader.inspect.preview import draw_preview
from gratis.preprocess.index import IndexConfig, index_tars
from gratis.preprocess.inspect import InspectConfig, inspect_dataset
from gratis.preprocess.shards import ShardsConfig, make_shards
from gratis.preprocess.sources.open import open_source
from gratis.preprocess.sources.source import SourceOptions
from gratis.preprocess.verify import VerifyConfig, verify_dataset
from gratis.train.launcher.checks import check_dataset, manifest_of
from gratis.train.options import Options
from gratis.train.recipes import RECIPES

UNLABELLED = SourceOptions(unlabelled=True)


def picture(number: int, size: int = 48) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3), np.uint8)
    file = io.BytesIO()
    Pillow.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def tar(path: Path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def files(root: Path, *paths: str) -> Path:
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(picture(number))
    return root


def check(out: Path, capsys: pytest.CaptureFixture[str], train: int) -> None:
    """The loader gives label -1, verify and inspect take the dataset as it is, training says why
    not."""
    manifest = dataset.read_manifest(out)
    assert manifest.classes == ()
    with Loader(out, "train", LoaderConfig(batch_size=2, crop=40), device="cpu") as loader:
        labels = torch.cat([labels[ids >= 0] for _, labels, ids in loader])
        assert loader.classes == ()
        draw_preview(loader, out.parent / "preview.png")
    assert labels.tolist() == [-1] * train
    verify_dataset(VerifyConfig(shards=str(out)))
    inspect_dataset(InspectConfig(shards=str(out), png=out.parent / "png"))
    assert "no image has a label" in capsys.readouterr().out
    recipe = dataclasses.replace(RECIPES["sample"], image_size=48, crop=40)
    with pytest.raises(GratisError, match="was made with --unlabelled: it has no classes to learn"):
        check_dataset(out, manifest_of(out), Options(fields=recipe))


@pytest.mark.starts
def test_shards_of_tars_without_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    src, out = tmp_path / "src", tmp_path / "out"
    tar(src / "train-0.tar", [("a.jpg", picture(0)), ("a.cls", b"7"), ("b.jpg", picture(1))])
    tar(src / "val-0.tar", [("c.jpg", picture(2)), ("c.txt", b"a caption")])
    config = ShardsConfig(src=str(src), out=str(out), size=48, workers=1, unlabelled=True)
    make_shards(config)
    assert capsys.readouterr().out.endswith(
        "out: 2 train and 1 val images without labels, 48 px, in 2 shards\n"
    )
    with tarfile.open(out / "val-00000.tar") as archive:
        assert archive.getnames() == ["c.jpg", "c.cls"]
        assert (member := archive.extractfile("c.cls"))
        assert member.read() == b"-1"
    check(out, capsys, 2)
    with pytest.raises(GratisError, match=r"is '-1', no class number .* labels: --unlabelled"):
        open_source(str(out))
    assert open_source(str(out), UNLABELLED).splits["val"].label.tolist() == [-1]


@pytest.mark.starts
def test_an_index_of_tars_without_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = json.dumps({"caption": "a cat"}).encode()
    tar(tmp_path / "t" / "00000.tar", [("0.jpg", picture(0)), ("0.json", facts)])
    tar(tmp_path / "t" / "00001.tar", [("1.jpg", picture(1)), ("1.cls", b"3")])
    index_tars(IndexConfig(tars=str(tmp_path / "t"), unlabelled=True, workers=1))
    check(tmp_path / "t", capsys, 2)


@pytest.mark.starts
def test_shards_of_a_folder_of_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    src = files(tmp_path / "src", "1.jpg", "trip/1.jpg", "trip/deep/er/1.jpg", "trip/.cache/2.jpg")
    out = tmp_path / "out"
    make_shards(ShardsConfig(src=str(src), out=str(out), size=48, workers=1, unlabelled=True))
    said = capsys.readouterr()
    assert f"train: 3 images in 1 folder, {src}\n" in said.out
    assert f"passed over hidden files: 1, the first in {src}: trip/.cache\n" in said.err
    check(out, capsys, 3)


def test_folders_by_split_and_keys_of_their_own(tmp_path: Path) -> None:
    src = files(tmp_path, "my-train/a/1.jpg", "my-train/b/1.jpg", "my-val/x.jpg", "notes/y.jpg")
    source = open_source(str(src), UNLABELLED)
    train = source.splits["train"]
    assert [train.item(row).name for row in range(2)] == ["a/1.jpg", "b/1.jpg"]
    assert len({train.item(row).key for row in range(2)}) == 2
    assert source.splits["val"].item(0).source == f"{src}/my-val/x.jpg"
    assert source.notes == (f"not read, as no split's folders: notes/ in {src}",)


def test_a_link_back_is_no_endless_tree(tmp_path: Path) -> None:
    src = files(tmp_path, "a/1.jpg")
    (src / "a" / "loop").symlink_to(src)
    source = open_source(str(src), UNLABELLED)
    assert len(source.splits["train"]) == 1
    assert len(source.skipped) == 1
    assert "it leads back to a folder that it lies in" in source.skipped[0]


def test_official_archives(sample_source: Path) -> None:
    source, labelled = open_source(str(sample_source), UNLABELLED), open_source(str(sample_source))
    assert set(source.splits["train"].label.tolist()) == {-1}
    assert not source.classes
    for split in ("train", "val"):
        one, other = source.splits[split], labelled.splits[split]
        assert [one.item(row).key for row in (0, 99)] == [other.item(row).key for row in (0, 99)]
