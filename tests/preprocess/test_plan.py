"""What is planned before the first shard, and which files of OUT may be written over: by hand."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import PIL
import pytest
from handmade import picture, statistics
from PIL import features

from gratis import dataset
from gratis.dataset import ImageClass, Manifest
from gratis.errors import GratisError
from gratis.image import Whole
from gratis.network import NetworkLimits
from gratis.preprocess.output.shard_writer import ShardWriter
from gratis.preprocess.output.store import WORK, LocalStore, open_store
from gratis.preprocess.sources.listing import ListingBuilder
from gratis.preprocess.sources.reader import Stamp
from gratis.preprocess.sources.rows import row_offset
from gratis.preprocess.sources.source import Source
from gratis.preprocess.stages.ownership import discard, lock_output, refuse_unplanned, stale_files
from gratis.preprocess.stages.plan import (
    ShardPlan,
    Slice,
    draft_manifest,
    make_task,
    permutation,
    pillow_name,
    refuse_other,
    slices,
    tools,
)
from gratis.preprocess.stages.shard import ShardTask

SIZE = 16
CLASSES = (ImageClass(wnid="n00000001", words="one", ilsvrc_id=None),)
SQUARE = Manifest(
    format=2,
    image_size=SIZE,
    codec="jpeg",
    quality=90,
    seed=7,
    samples_per_shard=10,
    source="f" * 64,
    tools={"numpy": "1"},
    splits={},
    stats_sha256="",
    classes=CLASSES,
)
WHOLE = dataclasses.replace(SQUARE, shape="whole", max_aspect=3.0)


def source() -> Source:
    """Seven images of two tars for training, and two of a third to validate."""
    splits = {}
    for split, tars in {"train": {"a": 4, "b": 3}, "val": {"c": 2}}.items():
        builder = ListingBuilder(("n00000001",), official=True)
        for tar, count in tars.items():
            builder.containers.append(f"{tar}.tar")
            for k in range(count):
                builder.add(f"{tar}{k}.jpg", 512 + 1024 * k, 100 + k, 0)
        splits[split] = builder.build()
    return Source(classes=CLASSES, splits=splits, skipped=())


def splitmix64(count: int, seed: int, salt: str) -> list[int]:
    """The places of range(count) by the published generator's numbers, in Python's integers."""
    mask, keys = (1 << 64) - 1, []
    state = int.from_bytes(hashlib.sha256(f"{seed} {salt}".encode()).digest()[:8], "little")
    for _ in range(count):
        state = state + 0x9E3779B97F4A7C15 & mask
        z = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
        keys.append(z ^ z >> 31)
    return sorted(range(count), key=keys.__getitem__)


def test_the_order_is_splitmix64_s() -> None:
    for count, seed, salt in ((0, 0, "train"), (1, 1, "val"), (97, 12, "train"), (97, 12, "val")):
        assert permutation(count, seed, salt).tolist() == splitmix64(count, seed, salt)


def test_a_draft_says_what_the_shards_will_be() -> None:
    given, pillow = source(), features.version("libjpeg_turbo")
    made_with = {"pillow": pillow_name(), "libjpeg-turbo": pillow, "numpy": np.__version__}
    assert tools() == made_with
    assert pillow_name().split() in (["pillow", PIL.__version__], ["pillow-simd", PIL.__version__])
    common = {"source": given.fingerprint, "tools": made_with}
    draft = draft_manifest(given, size=SIZE, codec="jpeg", samples_per_shard=10, quality=90, seed=7)
    assert draft == dataclasses.replace(SQUARE, **common)  # type: ignore[arg-type]
    assert (draft.shape, draft.max_aspect, draft.enlarge) == ("square", None, False)
    raw = draft_manifest(
        given, size=8, codec="raw", samples_per_shard=3, whole=Whole(3.0, enlarge=True)
    )
    fields = {"image_size": 8, "codec": "raw", "quality": None, "seed": 0, "samples_per_shard": 3}
    assert raw == dataclasses.replace(WHOLE, enlarge=True, **common, **fields)  # type: ignore[arg-type]


def test_every_image_is_in_one_shard_of_its_split_in_the_shuffled_order() -> None:
    given = source()
    draft = dataclasses.replace(SQUARE, samples_per_shard=3)
    found = [(part.name, part.number, part.rows.tolist()) for part in slices(given, draft)]
    train, val = splitmix64(7, 7, "train"), splitmix64(2, 7, "val")
    assert found == [
        ("train-00000", 0, train[:3]),
        ("train-00001", 1, train[3:6]),
        ("train-00002", 2, train[6:]),
        ("val-00000", 0, val),
    ]


def test_rows_of_a_table_are_shuffled_and_stay_with_their_row_groups() -> None:
    """200 row groups of 4 images in shards of 10: of 800 in any order a shard would have 10."""
    builder = ListingBuilder((), official=True)
    builder.containers.append("a.parquet")
    for k in range(800):
        builder.add(f"{k}.jpg", row_offset(k // 4, k % 4), 1, -1)
    given = Source(classes=(), splits={"train": builder.build()}, skipped=())
    parts = [part.rows for part in slices(given, SQUARE)]
    assert [len(rows) for rows in parts] == [10] * 80
    assert sorted(np.concatenate(parts).tolist()) == list(range(800))
    begun = [int(rows.min()) for rows in parts]
    assert begun != sorted(begun)
    for rows in parts:
        groups = rows // 4
        assert groups.tolist() == sorted(groups.tolist())
    # what fills eight shards is shuffled as one: 20 row groups, perhaps one more at its ends
    for k in range(0, 80, 8):
        assert 20 <= len(np.unique(np.concatenate(parts[k : k + 8]) // 4)) <= 22


def test_a_task_has_its_slice_s_images_and_their_archives_stamps() -> None:
    given, limits = source(), NetworkLimits(outage_s=5.0)
    stamps = {"a.tar": Stamp(1, 2), "b.tar": Stamp(3, 4), "c.tar": Stamp(5, 6)}
    part = Slice("train", 1, np.array([6, 4]))
    items = tuple(given.splits["train"].item(row) for row in (6, 4))
    assert [item.source for item in items] == ["b.tar:b2.jpg", "b.tar:b0.jpg"]
    fields = {"items": items, "size": SIZE, "codec": "jpeg", "out": "OUT", "number": 1}
    expected = ShardTask(split="train", quality=90, **fields)  # type: ignore[arg-type]
    assert make_task(part, given, SQUARE, "OUT") == expected
    draft = dataclasses.replace(WHOLE, quality=None)
    made = make_task(part, given, draft, "OUT", tolerant=False, limits=limits, stamps=stamps)
    more = {"tolerant": False, "limits": limits, "whole": Whole(3.0, enlarge=False), "quality": 0}
    assert made == dataclasses.replace(expected, stamps={"b.tar": stamps["b.tar"]}, **more)  # type: ignore[arg-type]


def test_an_older_plan_has_lost_nothing() -> None:
    kept = ShardPlan(draft=SQUARE, counts={"train": 20, "val": 21}, lost=3)
    assert ShardPlan.from_json(kept.to_json()) == kept
    older = ShardPlan.from_json(kept.to_json().replace(b', "lost": 3', b""))
    assert older == dataclasses.replace(kept, lost=0)
    assert [len(names) for names in kept.shard_names().values()] == [2, 3]


def test_every_setting_that_differs_is_named(tmp_path: Path) -> None:
    other = dataclasses.replace(
        WHOLE,
        image_size=32,
        max_aspect=2.0,
        enlarge=True,
        codec="raw",
        quality=None,
        seed=8,
        samples_per_shard=11,
        source="e" * 64,
        tools={"numpy": "2", "pillow": "3"},
    )
    store = LocalStore(str(tmp_path))
    with pytest.raises(GratisError) as caught:
        refuse_other(store, SQUARE, other, "remove it, or choose another")
    assert str(caught.value) == (
        f"{tmp_path} is another dataset: source ffffffff there and eeeeeeee asked for, shape "
        "square there and whole asked for, image-size 16 there and 32 asked for, max-aspect None "
        "there and 2.0 asked for, enlarge False there and True asked for, codec jpeg there and raw "
        "asked for, quality 90 there and None asked for, seed 7 there and 8 asked for, "
        "samples-per-shard 10 there and 11 asked for, numpy 1 there and 2 asked for, pillow None "
        "there and 3 asked for; remove it, or choose another OUT"
    )
    refuse_other(store, other, other, "")


def shard(path: Path, extension: str = "jpg") -> None:
    with path.open("wb") as file:
        writer = ShardWriter(file, extension)
        writer.add("k", b"x", 3)
        writer.close()


def by_another_program(root: Path) -> None:
    with tarfile.open(root / "train-00001.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        member = tarfile.TarInfo("k.jpg")
        member.size, member.uname = 1, "gratisX"
        tar.addfile(member, io.BytesIO(b"x"))


def statistics_of(*sides: int) -> Callable[[Path], object]:
    images = [picture(k, side) for k, side in enumerate(sides)]
    return lambda root: dataset.write_stats(root, statistics(images))


def a_folder(root: Path) -> None:
    (root / "train-00001.tar").unlink()
    (root / "train-00001.tar").mkdir()


def only_an_index(root: Path) -> None:
    for path in root.glob("*.tar"):
        path.unlink()


# what else is done to the folder, and which file is then somebody else's
FOREIGN: list[tuple[str, Callable[[Path], object]]] = [
    ("", lambda root: None),
    ("", lambda root: (root / "stats.npz").unlink()),
    ("", lambda root: (root / "notes").touch()),  # no file of a dataset's name
    ("train-00001.tar", by_another_program),
    ("train-00001.tar", a_folder),
    ("val-00000.tar", lambda root: shard(root / "val-00000.tar", "ppm")),
    ("train-00000.tar", lambda root: (root / "train-00000.tar").write_bytes(b"")),
    ("train-00003.tar", lambda root: shard(root / "train-00003.tar")),  # the plan has three
    ("val-00001.idx", lambda root: (root / "val-00001.idx").touch()),
    ("stats.npz", lambda root: (root / "stats.npz").write_bytes(b"")),
    ("stats.npz", statistics_of(SIZE // 2, SIZE // 2)),
    ("stats.npz", statistics_of(SIZE, SIZE + 1)),  # of whole images
    ("rejects.jsonl", only_an_index),
]
NAMED = [f"train-0000{k}" for k in range(3)] + ["val-00000"]


@pytest.mark.parametrize(("foreign", "change"), FOREIGN)
def test_what_is_left_of_a_dataset_of_ours_is_known(
    tmp_path: Path, foreign: str, change: Callable[[Path], object]
) -> None:
    """Without plan and manifest: by the names, the tars' owner and images, and the statistics."""
    plan = ShardPlan(draft=SQUARE, counts={"train": 21, "val": 10})
    for name in NAMED:
        shard(tmp_path / f"{name}.tar")
        (tmp_path / f"{name}.idx").touch()
    (tmp_path / "rejects.jsonl").touch()
    statistics_of(SIZE, SIZE)(tmp_path)
    change(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir() if path.name != "notes")
    for store in (LocalStore(str(tmp_path)), open_store("memory://left")):
        if store.address == str(tmp_path) and not foreign:
            refuse_unplanned(store, plan, names)
            refuse_unplanned(store, plan, [])
            continue
        first = foreign if store.address == str(tmp_path) else names[0]
        with pytest.raises(GratisError, match=f"^{store.address} holds {first}: no unfinished run"):
            refuse_unplanned(store, plan, names)


@pytest.mark.parametrize(("sides", "is_ours"), [((16, 17), True), ((16, 16), False)])
def test_statistics_of_whole_images_are_known(
    tmp_path: Path, sides: tuple[int, int], is_ours: bool
) -> None:
    shard(tmp_path / "train-00000.tar")
    statistics_of(*sides)(tmp_path)
    store, plan = LocalStore(str(tmp_path)), ShardPlan(draft=WHOLE, counts={"train": 1})
    if is_ours:
        refuse_unplanned(store, plan, ["stats.npz", "train-00000.tar"])
    else:
        with pytest.raises(GratisError, match=r"holds stats\.npz"):
            refuse_unplanned(store, plan, ["stats.npz", "train-00000.tar"])


def test_an_index_of_a_split_that_is_no_more_is_stale(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    (tmp_path / "in").mkdir()
    shard(tmp_path / "in" / "0.tar")
    for name in ("train-00000", "val-00000"):
        (tmp_path / f"{name}.tar").symlink_to(tmp_path / "in" / "0.tar")
        (tmp_path / f"{name}.idx").touch()
    (tmp_path / "x.tar").symlink_to(tmp_path / "in" / "0.tar")  # of nobody's dataset
    for name in ("train.index.npz", "val.index.npz", "stats.npz", "x.idx", "val-00001.tar"):
        (tmp_path / name).touch()
    kept = {"train-00000.tar", "train-00000.idx", "train.index.npz", "stats.npz"}
    assert stale_files(store, kept) == ["val-00000.idx", "val-00000.tar", "val.index.npz"]
    assert stale_files(store, {"train-00005.tar"}) == []  # no index was here


def test_a_plan_is_discarded_last(tmp_path: Path) -> None:
    """Until then it says that the rest is ours."""

    class Noting(LocalStore):
        def remove(self, name: str) -> None:
            removed.append(name)
            super().remove(name)

    removed, store = list[str](), Noting(str(tmp_path))
    (tmp_path / WORK).mkdir()
    plan = ShardPlan(draft=SQUARE, counts={"train": 1})
    for name in ("train-00000.tar", f"{WORK}/lock", f"{WORK}/a.npz", f"{WORK}/z.npz"):
        (tmp_path / name).touch()
    (tmp_path / WORK / "plan.json").write_bytes(plan.to_json())
    discard(store)
    work = [f"{WORK}/{name}" for name in ("a.npz", "z.npz")]
    assert removed[0] == "train-00000.tar"
    assert sorted(removed[1:-1]) == work
    assert removed[-1] == f"{WORK}/plan.json"
    assert [path.name for path in tmp_path.rglob("*")] == [WORK, "lock"]


def test_where_nothing_can_be_written_is_a_message(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = LocalStore(str(tmp_path / "file" / "out"))
    with (
        pytest.raises(GratisError, match=r"^cannot write to .*/file/out: .*; choose another OUT$"),
        lock_output(store, shared=False),
    ):
        pass


def test_at_a_url_what_a_killed_run_left_goes_without_a_lock() -> None:
    place = fsspec.filesystem("memory")
    for name in (f"{WORK}/a.tmp", f"{WORK}/a.npz", "train-00000.tar"):
        place.pipe_file(f"/locked/{name}", b"")
    store = open_store("memory://locked")
    with lock_output(store, shared=True), lock_output(store, shared=False):
        assert [*store.sizes(WORK)] == ["a.npz"]
        assert [*store.sizes()] == ["train-00000.tar"]
