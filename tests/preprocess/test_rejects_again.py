"""A source that is damaged, or changes, while it is read: what it costs ends with its cause."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from handmade import encode, picture

from gratis.errors import GratisError
from gratis.preprocess.merge import MergeConfig, merge_tasks
from gratis.preprocess.shards import ShardsConfig, make_shards
from gratis.preprocess.sources.open import open_source
from gratis.preprocess.sources.reader import stamps_of
from gratis.preprocess.stages.plan import draft_manifest, make_task, slices
from gratis.preprocess.stages.shard import ShardTask


def folders(root: Path) -> Path:
    """40 images in two class folders."""
    for number in range(40):
        path = root / "train" / f"c{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(picture(number), "jpeg"))
    return root


def config(src: Path, out: Path, **more: int) -> ShardsConfig:
    return ShardsConfig(
        src=str(src), out=str(out), size=32, samples_per_shard=10, workers=1, **more
    )


def contents(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.iterdir()}


def damage(path: Path) -> bytes:
    """As a download that was not finished leaves it: its size is the same. Returns what was
    there."""
    data = path.read_bytes()
    path.write_bytes(bytes(len(data)))
    return data


@pytest.mark.starts
def test_the_same_command_tries_rejects_again(tmp_path: Path) -> None:
    src, out = folders(tmp_path / "src"), tmp_path / "out"
    make_shards(config(src, tmp_path / "whole"))
    broken = src / "train" / "c1" / "7.jpg"
    data = damage(broken)
    with pytest.raises(GratisError, match="1 files cannot be used"):
        make_shards(config(src, out))
    broken.write_bytes(data)
    make_shards(config(src, out))
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.starts
def test_rejects_that_may_be_are_tried_again_where_their_file_was_touched(tmp_path: Path) -> None:
    src, out = folders(tmp_path / "src"), tmp_path / "out"
    make_shards(config(src, tmp_path / "whole"))
    broken = src / "train" / "c1" / "7.jpg"
    data = damage(broken)

    def tasks() -> dict[str, int]:
        for task in range(2):
            make_shards(config(src, out, max_rejects=5, task_id=task, num_tasks=2))
        return {path.name: path.stat().st_ino for path in out.glob("*.tar")}

    before = tasks()
    assert tasks() == before  # nothing was made again
    broken.write_bytes(data)
    os.utime(broken, (1e9, 1e9))  # as rsync leaves it
    assert len(set(tasks().items()) - set(before.items())) == 1
    merge_tasks(MergeConfig(out=str(out)))
    assert contents(out) == contents(tmp_path / "whole")


def task_of(src: Path, out: Path) -> ShardTask:
    source = open_source(str(src))
    draft = draft_manifest(source, size=32, codec="jpeg", quality=95, samples_per_shard=100)
    stamps = stamps_of(source.splits["train"].containers)
    (out / ".work").mkdir(parents=True)
    return make_task(next(slices(source, draft)), source, draft, str(out), stamps=stamps)


@pytest.mark.parametrize("how", ["cut", "written anew"])
def test_an_archive_that_changes_while_it_is_read_is_no_reject(
    jpeg_dataset: Path, tmp_path: Path, how: str
) -> None:
    """Its rest was rejected, image by image, and the advice was to go without it."""
    src = tmp_path / "src"
    src.mkdir()
    archive = src / "train-00000.tar"
    archive.write_bytes((jpeg_dataset / archive.name).read_bytes())
    task = task_of(src, tmp_path / "out")
    if how == "cut":
        os.truncate(archive, archive.stat().st_size // 2)
    else:
        os.utime(archive, (1e9, 1e9))
    with pytest.raises(
        GratisError, match=r"train-00000\.tar\S* changed while it was read: .*again"
    ):
        task.make(lambda _: None, lambda *_: None)
    assert not list((tmp_path / "out").glob(".work/*.receipt.npz"))


def test_a_file_that_is_cut_while_it_is_read_is_no_reject(tmp_path: Path) -> None:
    src = folders(tmp_path / "src")
    task = task_of(src, tmp_path / "out")
    os.truncate(src / "train" / "c1" / "7.jpg", 100)
    with pytest.raises(GratisError, match=r"7\.jpg changed while it was read: it has 100 bytes"):
        task.make(lambda _: None, lambda *_: None)
