"""From the index to a batch's bytes, by hand: bounds of an index, a shard's headers and labels, who
stands in for bad samples, which memory is written again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import picture, rotten, write_dataset

from gratis.dataset import MOST_ASPECT, MOST_PIXELS, Index, read_index, read_manifest
from gratis.errors import GratisError
from gratis.loader import Loader, LoaderConfig, plan
from gratis.loader.epoch.stage_timer import StageTimer
from gratis.loader.plan import copies
from gratis.loader.reading.batch_reader import BUFFERS, BatchReader
from gratis.loader.reading.metadata import _check_index, check_images
from gratis.loader.reading.quarantine import Quarantine
from gratis.loader.reading.shard_labels import _agrees, _chosen, check_labels
from gratis.loader.reading.shard_reader import ShardReader

ROW = {"shard": 0, "offset": 512, "size": 9, "label": 0}


def index_of(rows: int = 3, **columns: Any) -> Index:
    """Of so many rows alike, or with the columns given."""
    kinds = dict.fromkeys(("shard", "size", "label", "width", "height"), np.int32)
    full = {name: [value] * rows for name, value in ROW.items()} | columns
    made: dict[str, Any] = {
        name: np.array(column, kinds.get(name, np.int64)) for name, column in full.items()
    }
    return Index(**made)


@pytest.mark.parametrize(
    ("name", "inside", "outside"),
    [
        ("shard", [0, 0, 1], [[-1, 0, 1], [0, 0, 2]]),
        ("label", [0, 6, 3], [[-1, 0, 0], [0, 0, 7]]),
        ("offset", [0, 5, 2**62 - 1], [[-1, 5, 6], [0, 5, 2**62]]),
        ("size", [1, 2**31 - 1, 5], [[0, 1, 1], [-5, 1, 1]]),
    ],
)
def test_bounds_of_an_index(
    few_jpeg: Path, name: str, inside: list[int], outside: list[list[int]]
) -> None:
    """The dataset has seven classes; of two shards here."""
    manifest = read_manifest(few_jpeg)
    split = replace(manifest.splits["train"], shards=manifest.splits["train"].shards[:2])
    columns: dict[str, Any] = {name: inside}
    _check_index(Path("i"), manifest, split, index_of(**columns))
    for rows in outside:
        columns = {name: rows}
        span = rf"^i is damaged \({name}s from {min(rows)} to {max(rows)}\); make the shards again"
        with pytest.raises(GratisError, match=span):
            _check_index(Path("i"), manifest, split, index_of(**columns))


def test_labels_of_a_dataset_without_classes(few_jpeg: Path) -> None:
    manifest = replace(read_manifest(few_jpeg), classes=())
    split = manifest.splits["train"]
    _check_index(Path("i"), manifest, split, index_of(label=[-1, -1, -1]))
    _check_index(Path("i"), manifest, split, index_of(0))
    for label in (0, -2):
        with pytest.raises(GratisError, match="labels from"):
            _check_index(Path("i"), manifest, split, index_of(label=[-1, -1, label]))


@pytest.mark.parametrize(
    ("width", "height", "message"),
    [
        (1, 1, None),
        (0, 4, "widths from 0"),
        (4, 0, "heights from 0"),
        (1, 65535, "aspect ratios"),
        (65536, 65535, "widths from 64 to 65536"),
        (65535, 65536, "heights from 64 to 65536"),
        (MOST_ASPECT, 1, None),
        (1, MOST_ASPECT + 1, "aspect ratios from 1 to"),
        (62500, MOST_PIXELS // 62500, None),  # all that are allowed
        (10007, 9994, "pixel numbers from 4096 to 100009958"),
    ],
)
def test_sizes_of_images(few_jpeg: Path, width: int, height: int, message: str | None) -> None:
    manifest = read_manifest(few_jpeg)
    index = index_of(2, width=[64, width], height=[64, height])
    if message is None:
        _check_index(Path("i"), manifest, manifest.splits["train"], index)
        return
    with pytest.raises(GratisError, match=message):
        _check_index(Path("i"), manifest, manifest.splits["train"], index)


def test_crops_that_fit_and_those_that_do_not(few_jpeg: Path) -> None:
    """Images of 64 px: a crop of all of them, a larger one where parts or images are resized."""
    manifest = read_manifest(few_jpeg)
    fits: list[dict[str, Any]] = [{"crop": 64}, {"crop": 65, "area": (0.1, 1.0)}]
    fits += [{"crop": 96, "resize": 96, "augment": False}, {"crop": 8, "shape": "square"}]
    for fields in fits:
        check_images(LoaderConfig(**fields), manifest, "d")
    with pytest.raises(GratisError, match=r"^crop is 65; the images of d have 64 px a side; .*=56"):
        check_images(LoaderConfig(crop=65), manifest, "d")
    mean_image = LoaderConfig(crop=65, resize=96, normalize="mean-image", augment=False)
    with pytest.raises(GratisError, match=r"^crop is 65; the images of d have 64 px"):
        check_images(mean_image, manifest, "d")
    with pytest.raises(GratisError, match=r"^shape is 'whole'; d has square images; .*shape whole"):
        check_images(LoaderConfig(crop=8, shape="whole"), manifest, "d")
    whole = replace(manifest, shape="whole")
    check_images(LoaderConfig(crop=65, shape="whole"), whole, "d")
    with pytest.raises(GratisError, match=r"shape is 'square'; d has whole images"):
        check_images(LoaderConfig(crop=8, shape="square"), whole, "d")
    with pytest.raises(GratisError, match="normalize='mean-image' is for square images"):
        check_images(LoaderConfig(crop=8, normalize="mean-image"), whole, "d")


def header(name: str, size: int) -> bytes:
    """Of a tar's member, by POSIX's table of places."""
    block = bytearray(512)
    text = name.encode(errors="surrogateescape")
    block[: len(text)] = text
    block[100:108] = b"0000644\0"
    block[124:136] = b"%011o\0" % size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def member(name: str, data: bytes) -> bytes:
    return header(name, len(data)) + data + bytes(-len(data) % 512)


def agrees(tmp_path: Path, data: bytes, offset: int, size: int, label: int) -> bool | None:
    path = tmp_path / "one.tar"
    path.write_bytes(data)
    with path.open("rb") as file:
        row = index_of(1, offset=[offset], size=[size], label=[label])
        return _agrees(file.fileno(), row, 0)


IMAGE = bytes(range(1, 252)) * 3  # 753 bytes: two blocks


@pytest.mark.parametrize("folder", ["", "some.where/", "\udcff", 94 * "x"])
@pytest.mark.parametrize("first", ["image", "label"])
def test_a_sample_s_header_and_label_are_where_the_index_says(
    tmp_path: Path, first: str, folder: str
) -> None:
    image, label = (member(f"{folder}s1.ppm", IMAGE), member(f"{folder}s1.cls", b" 12\n"))
    data = image + label if first == "image" else label + image
    at = 512 if first == "image" else 3 * 512
    assert agrees(tmp_path, data, at, 753, 12) is True
    assert agrees(tmp_path, data, at, 753, 1) is False
    assert agrees(tmp_path, data, at, 752, 12) is False
    assert agrees(tmp_path, data, at, 753, -1) is True  # of a dataset without labels
    assert agrees(tmp_path, data, at + 512, 753, 12) is None  # there is no header
    assert agrees(tmp_path, data, len(data) + 512, 753, 12) is None


@pytest.mark.parametrize(
    ("beside", "agreed"),
    [
        (member("s_2.cls", b"3"), True),  # another sample's says nothing of this one's
        (member("s_1.cls", b"three"), True),
        (member("s_1.cls", b"4"), True),
        (member("s_1.txt", b"3"), True),
        (member("s_1.cls", b"3" + b" " * 511), False),
        (member("s_1.cls", b"3" + b" " * 512), True),  # no such file holds more than a number
        (header("s_1.cls", 1)[:-1] + b"?3" + bytes(511), True),  # damaged
    ],
)
def test_what_lies_beside_a_sample(tmp_path: Path, beside: bytes, agreed: bool) -> None:
    image = member("s_1.ppm", IMAGE)
    assert agrees(tmp_path, image + beside, 512, 753, 4) is agreed
    behind = 3 * 512
    assert agrees(tmp_path, beside[: 2 * 512] + image, behind, 753, 4) is agreed
    if agreed is False:  # whatever the label, the first class's too
        assert agrees(tmp_path, image + beside, 512, 753, 0) is False
        # of two files one is right
        assert agrees(tmp_path, beside + image + member("s_1.cls", b"4"), behind, 753, 4) is True
        assert agrees(tmp_path, beside + image + member("s_1.cls", b"4"), behind, 753, 3) is True


def test_samples_that_are_looked_at(tmp_path: Path) -> None:
    """Of 100 in the second shard of three: eight over its length, and one of each of the eight
    rarest classes; of what two rows share neither."""
    rows = np.arange(180)
    label = np.where(rows % 2, 0, 1)
    label[[61, 73, 87, 88]] = [2, 3, 4, 4]
    offset = rows * 1024
    offset[[60, 140]] = offset[[59, 139]]
    shard = (rows >= 50).astype(int) + (rows >= 150)
    index = index_of(shard=shard, offset=offset, size=rows * 0 + 9, label=label)
    single = [row for row in range(50, 150) if row not in (59, 60, 139, 140)]
    spread = [single[int(95 * k / 7)] for k in range(8)]
    wanted = {*spread, 61, 73, 87, single[0], single[1]}
    assert _chosen(index, 1).tolist() == sorted(wanted)
    many = index._replace(label=np.repeat(np.arange(36), 5).astype(np.int32))
    rarest = [55, 61, 135, 141, 50, 65, 70, 75]  # four are left of each, then five
    assert _chosen(many, 1).tolist() == sorted({*spread, *rarest})
    shared = index._replace(offset=np.zeros(180, np.int64))
    assert not len(_chosen(shared, 1))
    check_labels(-1, tmp_path, shared, 1)  # nothing to look at


def test_one_sample_of_other_bytes_is_an_error_and_one_damaged_header_is_none(
    tmp_path: Path,
) -> None:
    samples = [member(f"s_{k}.ppm", IMAGE) + member(f"s_{k}.cls", b"%d" % k) for k in range(5)]
    data, path = b"".join(samples), tmp_path / "five.tar"
    offset = [k * len(samples[0]) + 512 for k in range(5)]
    index = index_of(5, offset=offset, size=[753] * 5, label=[0, 1, 2, 3, 4], shard=[0] * 5)

    def check(labels: list[int], damaged: tuple[int, ...] = ()) -> None:
        changed = bytearray(data)
        for k in damaged:
            changed[offset[k] - 512] ^= 1
        path.write_bytes(changed)
        with path.open("rb") as file:
            check_labels(file.fileno(), path, index._replace(label=np.array(labels)), 0)

    check([0, 1, 2, 3, 4])
    check([0, 1, 2, 3, 4], (0, 1, 2, 3))
    for labels, damaged in (
        ([0, 1, 2, 3, 3], ()),
        ([1, 1, 2, 3, 4], ()),
        ([1, 1, 2, 3, 4], (4,)),
        ([0, 1, 2, 3, 4], (0, 1, 2, 3, 4)),
    ):
        with pytest.raises(GratisError, match=r"five\.tar holds other samples or labels than"):
            check(labels, damaged)


@pytest.mark.parametrize(("count", "most"), [(5, 10), (1000, 10), (1001, 10), (2500, 25)])
def test_how_many_bad_samples_are_borne(count: int, most: int) -> None:
    """Ten, or one in a hundred. A sample that fails in two places is one."""
    quarantine = Quarantine(7, count, allowed=True)
    for sample in range(most):
        quarantine.add(sample, sample, f"place {sample}")
        quarantine.add(sample + 100, sample, f"place {sample}")
    assert len(quarantine.take_warnings()) == most
    assert quarantine.take_warnings() == []
    with pytest.raises(GratisError) as caught:
        quarantine.add(3, most, "place n")
    told = f"place n: cannot be decoded, as {most} other samples; verify the copy of the dataset"
    assert str(caught.value) == told
    assert quarantine.bad[3] == "place 3"
    assert quarantine.take_warnings() == [
        "place n: cannot be decoded; other samples stand in for it"
    ]


def test_who_stands_in_the_second_time_and_in_the_next_epoch() -> None:
    """Copies of a sample are draw ids of their own."""
    copy, ids = int(copies(np.array(5), 1)), np.array([2, 5, 8])
    quarantine = Quarantine(7, 50, allowed=True)
    assert quarantine.replace(4, np.array([2, copy])).tolist() == [2, 5]
    quarantine.add(5, 5, "a")
    quarantine.add(copy, 5, "a")
    quarantine.add(5, plan.stand_in(7, 4, 5, 50, 0), "b")
    second, other = plan.stand_in(7, 4, 5, 50, 1), plan.stand_in(7, 4, copy, 50, 0)
    assert quarantine.replace(4, np.append(ids, copy)).tolist() == [2, second, 8, other]
    quarantine.begin()
    assert quarantine.replace(5, ids).tolist() == [2, 5, 8]
    quarantine.add(8, 8, "c")
    assert quarantine.replace(5, ids).tolist() == [2, 5, plan.stand_in(7, 5, 8, 50, 0)]
    assert quarantine.replace(5, np.empty(0, np.int64)).dtype == np.int64
    refuses = Quarantine(7, 50, allowed=False)
    with pytest.raises(GratisError, match=r"^a: cannot be decoded; verify the copy, or make"):
        refuses.add(5, 5, "a")
    assert not refuses.bad


def reader_of(root: Path, quarantine: Quarantine | None = None) -> BatchReader:
    split, index = read_manifest(root).splits["train"], read_index(root, "train")
    bad = quarantine or Quarantine(0, len(index.label), allowed=True)
    return BatchReader(ShardReader(root, split, index), StageTimer(), bad)


def plan_of(root: Path, **fields: Any) -> Any:
    config = LoaderConfig(**{"batch_size": 4, "crop": 32, "threads": 1} | fields)
    return Loader(root, "train", config).epoch_plan(1)


def test_bytes_stay_for_three_batches_and_their_memory_is_used_again(raw_dataset: Path) -> None:
    """Of all rows alike in size, four buffers in turn, in the next epoch too."""
    reader, plan_ = reader_of(raw_dataset), plan_of(raw_dataset, remainder="drop")
    ids, kept, buffers = plan_.order(), [], []
    size = 3 * 64 * 64
    for number, batch in enumerate(reader.batches(plan_)):
        kept.append(batch)
        buffers.append(batch.buffer.ctypes.data)
        assert batch.ids.tolist() == ids[4 * number : 4 * number + 4].tolist()
        assert batch.begins.tolist() == [k * (size + 13) for k in range(4)]
        for old in kept[-(BUFFERS - 1) :]:
            for sample, part in zip(old.ids.tolist(), old.parts, strict=True):
                assert np.array_equal(part[-size:].reshape(64, 64, 3), picture(sample))
    assert len(set(buffers)) == BUFFERS
    assert buffers == [buffers[k % BUFFERS] for k in range(25)]
    again = next(iter(reader.batches(plan_)))
    assert again.buffer.ctypes.data == buffers[0]
    reader.close()
    assert reader._buffers == [None] * BUFFERS
    reader.shards.close()


class RecordingShards(ShardReader):
    """What is asked of the shards in which step."""

    def begin(self, order: Any, batch_size: int, first_step: int) -> None:
        self.calls: list[tuple[str, Any]] = [("begin", (order().tolist(), batch_size, first_step))]

    def at(self, step: int) -> None:
        self.calls.append(("at", step))

    def expect(self, ids: Any) -> None:
        self.calls.append(("expect", ids.tolist()))

    def read(self, ids: Any, buffer: Any = None) -> Any:
        self.calls.append(("read", ids.tolist()))
        return super().read(ids, buffer)


def test_shards_are_told_what_comes_next(raw_dataset: Path) -> None:
    split, index = read_manifest(raw_dataset).splits["train"], read_index(raw_dataset, "train")
    shards = RecordingShards(raw_dataset, split, index)
    timer = StageTimer()
    reader = BatchReader(shards, timer, Quarantine(0, 101, allowed=True))
    config = LoaderConfig(batch_size=40, crop=32)
    plan_ = Loader(raw_dataset, "train", config).epoch_plan(1, 1)
    order = plan_.order().tolist()
    assert [batch.wanted.tolist() for batch in reader.batches(plan_)] == [order[40:80], order[80:]]
    assert shards.calls == [
        ("begin", (order, 40, 1)),
        ("at", 1),
        ("expect", order[80:]),
        ("read", order[40:80]),
        ("at", 2),
        ("read", order[80:]),
    ]
    counters = timer.take(depth=0, capacity=1)
    assert counters["bytes_read"] == 61 * (3 * 64 * 64 + 13)
    assert counters["read_s"] > 0
    lone = LoaderConfig(batch_size=99, crop=32, remainder="pad")  # two samples are left
    none = Loader(raw_dataset, "train", lone, rank=1, world_size=3).epoch_plan(0, 1)
    assert list(reader.batches(none)) == []
    shards.close()


def test_a_stand_in_of_another_size_is_drawn_by_its_own(tmp_path: Path) -> None:
    """Whether the reader finds the damage at once or the batch is checked later."""
    sizes = [(80, 100)] * 4 + [(64, 64)] * 4
    pictures = [picture(k, *size) for k, size in enumerate(sizes)]
    root = write_dataset(tmp_path / "d", pictures, codec="raw")
    with (root / "train-00000.tar").open("r+b") as file:
        for sample in range(4):
            file.seek(int(read_index(root, "train").offset[sample]))
            file.write(bytes(400))
    plan_, wanted = plan_of(root, crop=64), np.array([6, 0, 1, 5])
    quarantine = Quarantine(0, 8, allowed=True)
    reader = reader_of(root, quarantine)
    unchecked = reader.read(plan_, wanted, check=False)
    assert unchecked.ids.tolist() == wanted.tolist()
    assert not quarantine.bad
    chosen = unchecked.select(np.array([0, 3]))
    assert (chosen.ids.tolist(), chosen.wanted.tolist()) == ([6, 5], [6, 5])
    assert [len(part) for part in chosen.parts] == [3 * 64 * 64 + 13] * 2
    assert reader.check(plan_, chosen).draws.y.tolist() == [0, 0]
    again = reader.check(plan_, unchecked)
    assert set(again.ids[1:3].tolist()) <= {4, 5, 6, 7}
    assert again.wanted.tolist() == wanted.tolist()
    assert set(quarantine.bad) <= {0, 1, 2, 3}
    for batch in (again, reader.check(plan_, again._replace(draws=unchecked.draws, extents=None))):
        assert batch.draws.y.tolist() == batch.draws.x.tolist() == [0, 0, 0, 0]
        assert batch.extents is not None
        assert batch.extents.tolist() == [[64, 64]] * 4
    for sample, place in quarantine.bad.items():
        assert f"train-00000.tar, key s_{sample}, offset" in place
    smaller, drawn = plan_of(root, crop=32), plan.draws(0, 1, wanted, 64 - 32 + 1)
    resized = plan_of(root, crop=32, augment=False, resize=40)
    read = reader.read(smaller, wanted)
    for batch in (read, reader.check(smaller, read._replace(draws=unchecked.draws))):
        assert batch.draws.y.tolist() == drawn.y.tolist()  # the place of the one that is missing
        assert batch.draws.flip.tolist() == drawn.flip.tolist()
    read = reader.read(resized, wanted)
    for batch in (read, reader.check(resized, read._replace(targets=None))):
        assert batch.targets is not None
        assert batch.targets.tolist() == [[40, 40, 4, 4]] * 4
    reader.shards.close()


def test_batches_that_are_read_unchecked_are_no_quarantine_s(tmp_path: Path) -> None:
    root = rotten(tmp_path, 3, 7, count=10, codec="raw")
    quarantine = Quarantine(0, 10, allowed=True)
    reader = reader_of(root, quarantine)
    plan_ = plan_of(root, batch_size=5)
    assert len(list(reader.batches(plan_, check=False))) == 2
    assert not quarantine.bad
    assert len(list(reader.batches(plan_))) == 2
    assert set(quarantine.bad) == {3, 7}
    reader.shards.close()
