"""The stages of a dataset one by one in this process: a shard, a tar that is indexed, whose files
are in OUT, and the plan."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import encode, picture, write_dataset
from PIL import Image

from gratis import dataset
from gratis.atomic import temporary_name
from gratis.dataset import ImageClass, Manifest
from gratis.errors import GratisError
from gratis.image import Whole
from gratis.preprocess.index import IndexTask
from gratis.preprocess.output.receipt import finished_shards, read_receipt
from gratis.preprocess.output.store import WORK, LocalStore
from gratis.preprocess.sources.listing import Item
from gratis.preprocess.stages.ownership import (
    INDEXING,
    dataset_files,
    discard,
    foreign_files,
    lock_output,
    refuse_unindexed,
    stale_files,
)
from gratis.preprocess.stages.plan import ShardPlan, whole_of, write_plan
from gratis.preprocess.stages.shard import ShardTask

SIDES = [(32, 32), (40, 24), (32, 48)]  # height, width
BROKEN = 1  # which of the source's files is


def source(folder: Path) -> tuple[Path, tuple[Item, ...], list[bytes]]:
    """A tar of four files, of which the second is no image."""
    files = [encode(picture(k, side[0], side[1]), "jpeg") for k, side in enumerate(SIDES)]
    files.insert(BROKEN, b"no image")
    path = folder / "in.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, data in enumerate(files):
            for name, part in ((f"a{number}.jpg", data), (f"a{number}.cls", b"%d" % number)):
                member = tarfile.TarInfo(name)
                member.size = len(part)
                tar.addfile(member, io.BytesIO(part))
    with tarfile.open(path) as tar:
        pictures = [member for member in tar.getmembers() if member.name.endswith("jpg")]
    items = [
        Item(str(path), one.name, one.offset_data, one.size, 10 + k, f"key{k}")
        for k, one in enumerate(pictures)
    ]
    return path, tuple(items), files


class Reports:
    """What a worker is told while it makes a shard."""

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.made = np.zeros(4, np.int64)

    def report(self, *new: int) -> None:
        self.made += new


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    (tmp_path / "out" / WORK).mkdir(parents=True)
    return LocalStore(str(tmp_path / "out"))


def test_a_tar_is_indexed_but_for_what_is_no_image(tmp_path: Path, store: LocalStore) -> None:
    path, items, files = source(tmp_path)
    fields: dict[str, Any] = {"codec": "jpeg", "size": 0, "root": str(tmp_path)}
    task = IndexTask(
        out=store.address, split="train", items=items, tar=str(path), name="train-00000", **fields
    )
    told = Reports()
    task.make(told.begun.append, told.report)
    assert told.begun == [0, 0, 1, 1, 2, 2, 3, 3, -1]
    good = [item for k, item in enumerate(items) if k != BROKEN]
    assert told.made.tolist() == [3, sum(map(len, files)), 0, 1]
    receipt = read_receipt(store, "train-00000")
    assert receipt.offset.tolist() == [item.offset for item in good]
    assert receipt.size.tolist() == [item.size for item in good]
    assert receipt.label.tolist() == [10, 12, 13]
    assert receipt.width is not None
    assert receipt.height is not None
    assert list(zip(receipt.height.tolist(), receipt.width.tolist(), strict=True)) == SIDES
    data = path.read_bytes()
    assert (receipt.bytes, receipt.sha256) == (len(data), hashlib.sha256(data).hexdigest())
    (reject,) = receipt.rejects
    assert (reject["split"], reject["key"], reject["file"]) == ("train", "key1", "a1.jpg")
    assert receipt.sums is not None
    decoded = [
        np.asarray(Image.open(io.BytesIO(file)), np.int64) for file in files if len(file) > 8
    ]
    assert receipt.sums.images == 3
    assert receipt.sums.pixels.tolist() == sum(one.sum(axis=(0, 1)) for one in decoded).tolist()
    with tarfile.open(path) as tar:
        lines = [
            f"jpg {a.offset_data} {a.size} {a.name} cls {b.offset_data} {b.size} {b.name}\n"
            for a, b in zip(tar.getmembers()[::2], tar.getmembers()[1::2], strict=True)
            if a.name != "a1.jpg"
        ]
    assert store.read(f"{WORK}/train-00000.idx").decode() == "v1.2 3\n" + "".join(lines)


def test_of_another_kind_a_tar_s_images_end_it_or_are_left_out(
    tmp_path: Path, store: LocalStore
) -> None:
    path, items, _ = source(tmp_path)
    png = io.BytesIO()
    Image.fromarray(picture(0, 32)).save(png, "PNG")
    png_item = Item(str(tmp_path / "x.png"), "x.png", 0, len(png.getvalue()), 1, "x")
    (tmp_path / "x.png").write_bytes(png.getvalue())
    for tolerant in (False, True):
        task = IndexTask(
            out=store.address,
            split="val",
            items=(items[0], png_item),
            size=0,
            codec="jpeg",
            tolerant=tolerant,
            root=str(tmp_path),
            tar=str(path),
            name="val-00000",
        )
        if not tolerant:
            with pytest.raises(
                GratisError, match=r"'x\.png' is 32 x 32 RGB PNG, the first one JPEG"
            ):
                task.make(lambda at: None, lambda *new: None)
            continue
        task.make(lambda at: None, lambda *new: None)
        receipt = read_receipt(store, "val-00000")
        assert (receipt.label.tolist(), receipt.sums) == ([10], None)
        assert [reject["key"] for reject in receipt.rejects] == ["x"]


@pytest.mark.parametrize("whole", [None, Whole(4.0, False)])
def test_a_shard_has_all_images_but_those_that_are_none(
    tmp_path: Path, store: LocalStore, whole: Whole | None
) -> None:
    _, items, files = source(tmp_path)
    fields: dict[str, Any] = {"split": "train", "size": 24, "codec": "raw", "quality": 0}
    task = ShardTask(out=store.address, items=items, number=3, whole=whole, **fields)
    told = Reports()
    task.exclude(0, "crashed").make(told.begun.append, told.report)
    receipt = read_receipt(store, "train-00003")
    with tarfile.open(store.root / "train-00003.tar") as tar:
        names = [member.name for member in tar.getmembers()]
        blocks = sum(1 + -(-member.size // 512) for member in tar.getmembers())
        pixels = [Image.open(tar.extractfile(name)) for name in names[::2]]  # type: ignore[arg-type]
        labels = [tar.extractfile(name).read() for name in names[1::2]]  # type: ignore[union-attr]
        sizes = [one.size for one in pixels]
        total = sum(np.asarray(one, np.int64).sum(axis=(0, 1)) for one in pixels)
    assert names == ["key2.ppm", "key2.cls", "key3.ppm", "key3.cls"]
    assert labels == [b"12", b"13"]
    # the shorter side becomes 24
    assert sizes == ([(24, 40), (36, 24)] if whole else [(24, 24)] * 2)
    assert (receipt.width is None) == (whole is None)
    if receipt.width is not None:
        assert receipt.width.tolist() == [24, 36]
    assert receipt.sums is not None
    found = receipt.sums.pixels
    assert found.reshape(-1, 3).sum(axis=0).tolist() == total.tolist()
    assert [row["kind"] for row in receipt.rejects] == ["crashed", "undecodable"]
    assert told.made.tolist() == [2, sum(map(len, files)), blocks * 512, 2]
    assert finished_shards(store, ["train-00002", "train-00003"]) == {"train-00003": 2}
    (store.root / "train-00003.idx").unlink()
    assert finished_shards(store, ["train-00003"]) == {}


def test_the_files_of_a_folder(store: LocalStore) -> None:
    store.write("stats.npz", b"12345")
    store.write(f"{WORK}/x", b"1")
    assert store.sizes() == {"stats.npz": 5}
    assert store.sizes(WORK) == {"x": 1}
    assert store.sizes("nowhere") == {}
    store.create("stats.npz", b"another's")
    assert store.read("stats.npz") == b"12345"
    store.remove("stats.npz")
    store.remove("stats.npz")
    assert store.sizes() == {}
    assert re.fullmatch(r"a\.tar\.\d+-[0-9a-f]{8}\.tmp", temporary_name("a.tar"))


def plan(**fields: Any) -> ShardPlan:
    known: dict[str, Any] = {"codec": "jpeg", "quality": 90, "image_size": 64, "seed": 7}
    known["source"] = "f" * 64
    draft = Manifest(
        format=2,
        samples_per_shard=10,
        tools={"numpy": "1"},
        splits={},
        stats_sha256="",
        classes=(ImageClass(wnid="n00000001", words="one", ilsvrc_id=None),),
        **known | fields,
    )
    return ShardPlan(draft=draft, counts={"train": 21, "val": 10}, lost=2)


def test_a_plan_is_kept_and_every_setting_of_another_named(store: LocalStore) -> None:
    ours = plan()
    assert ShardPlan.from_json(ours.to_json()) == ours
    names = {"train": ["train-00000", "train-00001", "train-00002"], "val": ["val-00000"]}
    assert ours.shard_names() == names
    write_plan(store, ours)
    write_plan(store, ours)
    assert json.loads(store.read(f"{WORK}/plan.json"))["counts"] == ours.counts
    other = plan(seed=8, quality=None, source="e" * 64)
    said = f"source {'f' * 8} there and {'e' * 8} asked for, quality 90 .* None .*, seed 7 .* 8 "
    with pytest.raises(GratisError, match=said):
        write_plan(store, other)
    store.write(f"{WORK}/plan.json", b"{}")
    with pytest.raises(GratisError, match="unfinished work of another version"):
        write_plan(store, ours)
    assert whole_of(ours.draft) is None
    assert whole_of(plan(shape="whole", max_aspect=3.0, enlarge=True).draft) == Whole(3.0, True)


NAMES = {"train": ["train-00000", "train-00001"], "val": ["val-00000"]}


def test_what_others_left_stays_and_what_is_ours_goes(store: LocalStore) -> None:
    tars = {f"{name}.{end}" for names in NAMES.values() for name in names for end in ("tar", "idx")}
    files = tars | {"train.index.npz", "val.index.npz", "stats.npz", "rejects.jsonl"}
    assert dataset_files(NAMES) == files
    for name in sorted([*files, "notes", "train-1.tar"]):
        store.write(name, b"")
    assert foreign_files(store) == sorted(files)
    discard(store)
    assert store.sizes().keys() == files | {"notes", "train-1.tar"}
    store.write(f"{WORK}/plan.json", plan().to_json())  # of three shards and one
    store.write("train-00003.tar", b"")
    assert foreign_files(store) == []
    discard(store)
    assert store.sizes().keys() == {"notes", "train-1.tar", "train-00003.tar"}
    store.write(f"{WORK}/plan.json", b"of another version")
    discard(store)
    assert store.sizes().keys() == {"notes", "train-1.tar"}
    assert store.sizes(WORK) == {}


def test_links_of_an_earlier_index_make_room_and_tars_do_not(
    tmp_path: Path, store: LocalStore
) -> None:
    root, files = store.root, dataset_files(NAMES)
    refuse_unindexed(store, files)
    assert stale_files(store, files) == []
    elsewhere = tmp_path / "in.tar"
    elsewhere.write_bytes(b"")
    for name in ("train-00000", "train-00007"):
        (root / f"{name}.tar").symlink_to(elsewhere)
        store.write(f"{name}.idx", b"")
    with pytest.raises(GratisError, match=r"holds train-00000\.idx: no unfinished run"):
        refuse_unindexed(store, files)
    store.write(INDEXING, b"")
    refuse_unindexed(store, files)
    store.write("train-00009.tar", b"")  # nobody's link
    store.write("train-00009.idx", b"")
    assert stale_files(store, files) == ["train-00007.idx", "train-00007.tar"]
    (root / "train-00001.tar").write_bytes(b"")
    with pytest.raises(GratisError, match=r"holds train-00001\.tar"):
        refuse_unindexed(store, files)
    # what an index has finished holds a readable one
    whole = LocalStore(str(write_dataset(tmp_path / "whole", [picture(0, 16)])))
    (whole.root / "train-00000.tar").rename(elsewhere)
    (whole.root / "train-00000.tar").symlink_to(elsewhere)
    refuse_unindexed(whole, files)
    (whole.root / dataset.index_name("train")).write_bytes(b"")
    with pytest.raises(GratisError, match=r"holds stats\.npz|holds train"):
        refuse_unindexed(whole, files)


def test_one_command_has_a_folder_or_several_tasks_share_it(store: LocalStore) -> None:
    store.write(f"{WORK}/a.tmp", b"")
    store.write(f"{WORK}/a.npz", b"")
    with lock_output(store, shared=True), lock_output(store, shared=True):
        assert store.sizes(WORK).keys() == {"a.tmp", "a.npz", "lock"}
        with pytest.raises(GratisError, match="another process is making shards in"):
            lock_output(store, shared=False).__enter__()
    with lock_output(store, shared=False):
        assert store.sizes(WORK).keys() == {"a.npz", "lock"}
        with pytest.raises(GratisError, match="another process is making shards in"):
            lock_output(store, shared=True).__enter__()
    with (
        pytest.raises(GratisError, match="what is finished stays"),
        lock_output(store, shared=True),
    ):
        raise OSError("No space left on device")
