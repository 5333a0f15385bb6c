"""Parquet and arrow files as sources: whatever way they are written, each row's own bytes and label
come out, from the place where they lie; what is no image or has no label is refused by file and
row."""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from gratis.errors import GratisError
from gratis.preprocess.sources.listing import Listing, ListingBuilder
from gratis.preprocess.sources.open import open_source
from gratis.preprocess.sources.reader import ImageReader
from gratis.preprocess.sources.rows import (
    SHARDS_TOGETHER,
    group_and_row,
    keep_together,
    row_groups,
    row_offset,
)
from gratis.preprocess.sources.source import DEFAULT, SourceOptions
from gratis.preprocess.stages.plan import permutation

ROOT = Path(__file__).resolve().parent.parent.parent
pa = pytest.importorskip("pyarrow", reason="needs pyarrow")
pq = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
NAMES = ["tench", "goldfish", "great white shark"]


def jpeg(seed: int) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
    Pillow.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


IMAGES = [jpeg(seed) for seed in range(40)]
LABELS = [seed % 3 for seed in range(40)]


def metadata(names: list[str] | None = None) -> dict[bytes, bytes]:
    """As `datasets` 5.2.0 writes it."""
    features = {
        "image": {"_type": "Image"},
        "label": {"names": NAMES if names is None else names, "_type": "ClassLabel"},
    }
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


def table(
    images: list[bytes | None] = IMAGES,
    labels: list[Any] | None = LABELS,
    paths: list[str | None] | None = None,
    binary: Any = None,
    names: list[str] | None = None,
) -> Any:
    """One of images {bytes, path} and labels."""
    paths = paths or [f"n0144_{row}.JPEG" for row in range(len(images))]
    rows = [{"bytes": data, "path": path} for data, path in zip(images, paths, strict=True)]
    kind = pa.struct({"bytes": binary or pa.binary(), "path": pa.string()})
    columns = {"image": pa.array(rows, kind)}
    if labels is not None:
        columns["label"] = pa.array(labels)
    made = pa.table(columns)
    return made.replace_schema_metadata(metadata(names)) if labels else made


def write_parquet(path: Path, rows: Any, **how: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, path, **how)


def write_arrow(path: Path, rows: Any, whole: bool = False, **how: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    options = pa.ipc.IpcWriteOptions(**how)
    new = pa.ipc.new_file if whole else pa.ipc.new_stream
    with pa.OSFile(str(path), "wb") as file, new(file, rows.schema, options=options) as writer:
        writer.write_table(rows, max_chunksize=15)


def contents(listing: Listing) -> list[tuple[int, bytes]]:
    """Label and bytes of each row, read in another order than listed."""
    order = np.random.default_rng(0).permutation(len(listing)).tolist()
    with ImageReader() as reader:
        found = {row: reader.read(listing.item(row)) for row in order}
    return [(int(listing.label[row]), found[row]) for row in range(len(listing))]


def refusal(root: Path | str, options: SourceOptions = DEFAULT) -> str:
    with pytest.raises(GratisError) as caught:
        open_source(str(root), options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("how", "in_place"),
    [
        # datasets from 4.0 on
        ({"compression": "NONE", "use_dictionary": False, "row_group_size": 15}, True),
        ({"compression": "NONE", "use_dictionary": False, "data_page_size": 500}, True),
        (
            {
                "compression": "NONE",
                "use_dictionary": False,
                "data_page_version": "2.0",
                "write_page_index": True,
            },
            True,
        ),
        ({"compression": "NONE", "use_dictionary": False, "write_page_checksum": True}, True),
        # datasets before that, pandas, img2dataset
        ({"row_group_size": 7}, False),
        ({"compression": "zstd", "use_dictionary": False, "data_page_size": 500}, False),
        ({"compression": "NONE", "row_group_size": 9}, False),
        ({"compression": "gzip", "data_page_version": "2.0", "write_statistics": False}, False),
        (
            {
                "compression": "NONE",
                "use_dictionary": False,
                "column_encoding": {"image.bytes": "DELTA_LENGTH_BYTE_ARRAY"},
            },
            False,
        ),
    ],
)
@pytest.mark.parametrize("binary", ["binary", "large_binary"])
def test_parquet_of_every_layout(
    how: dict[str, Any], in_place: bool, binary: str, tmp_path: Path
) -> None:
    """Against what was written; in place means by offset and size alone, as pyarrow never told."""
    write_parquet(tmp_path / "a.parquet", table(binary=getattr(pa, binary)()), **how)
    train = open_source(str(tmp_path)).splits["train"]
    assert contents(train) == list(zip(LABELS, IMAGES, strict=True))
    assert bool((train.offset >= 0).all()) is in_place
    if in_place:
        data = (tmp_path / "a.parquet").read_bytes()
        places = zip(train.offset.tolist(), train.size.tolist(), strict=True)
        assert [data[offset : offset + size] for offset, size in places] == IMAGES


@pytest.mark.parametrize("whole", [False, True])
def test_arrow_lies_in_place(whole: bool, tmp_path: Path) -> None:
    write_arrow(tmp_path / "a.arrow", table(), whole)
    train = open_source(str(tmp_path)).splits["train"]
    assert (train.offset >= 0).all()
    assert contents(train) == list(zip(LABELS, IMAGES, strict=True))


def test_compressed_arrow_is_refused(tmp_path: Path) -> None:
    write_arrow(tmp_path / "a.arrow", table(), compression="lz4")
    assert "a.arrow is compressed inside; write it without" in refusal(tmp_path)


def test_bytes_alone(tmp_path: Path) -> None:
    """A column of bytes, a text label and no metadata, as pandas and img2dataset write them."""
    labels = [NAMES[label] for label in LABELS]
    write_parquet(tmp_path / "00000.parquet", pa.table({"jpg": IMAGES, "label": labels}))
    source = open_source(str(tmp_path))
    assert [c.wnid for c in source.classes] == sorted(NAMES)
    expected = [
        (sorted(NAMES).index(name), data) for name, data in zip(labels, IMAGES, strict=True)
    ]
    assert contents(source.splits["train"]) == expected


def test_classes_are_named_by_the_schema(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", table())
    classes = open_source(str(tmp_path)).classes
    assert [(c.wnid, c.words) for c in classes] == [
        ("000000", "tench"),
        ("000001", "goldfish"),
        ("000002", "great white shark"),
    ]
    write_parquet(tmp_path / "a.parquet", table().replace_schema_metadata({}))
    assert [c.words for c in open_source(str(tmp_path)).classes] == ["000000", "000001", "000002"]


def test_keys_are_those_of_the_paths(tmp_path: Path) -> None:
    paths = ["n0144_7.JPEG", "/abs/n0144_8.JPEG", "x/same.jpg", "y/same.jpg", None, "no ending"]
    write_parquet(tmp_path / "t.parquet", table(IMAGES[:6], LABELS[:6], paths))
    train = open_source(str(tmp_path)).splits["train"]
    keys = [train.item(row).key for row in range(6)]
    assert keys[:2] == ["n0144_7", "n0144_8"]
    assert [re.sub(r"_[0-9a-f]{16}$", "_HASH", key) for key in keys[2:4]] == ["same_HASH"] * 2
    assert keys[2] != keys[3]
    assert keys[4:] == ["t_000004", "no_ending"]
    assert train.item(2).source == f"{tmp_path}/t.parquet:2/same.jpg"


def labelled(root: Path, **splits: int) -> dict[str, Any]:
    """Splits of so many rows each, as the files of these names."""
    for name, rows in splits.items():
        write_parquet(root / f"{name}.parquet", table(IMAGES[:rows], LABELS[:rows]))
    return {k: len(v) for k, v in open_source(str(root)).splits.items()}


def test_splits_are_words_of_the_files(tmp_path: Path) -> None:
    files = {"train-00000-of-00002": 9, "train-00001-of-00002": 8, "validation-00000-of-00001": 4}
    found = labelled(tmp_path / "data", **files, **{"test-00000-of-00001": 3})
    assert found == {"train": 17, "val": 4}
    source = open_source(str(tmp_path))
    assert len(source.splits["train"]) == 17
    assert any(line.startswith("test: not read, 1 table") for line in source.notes)
    options = SourceOptions(val_from="test")
    assert len(open_source(str(tmp_path), options).splits["val"]) == 3


def test_splits_are_words_of_the_folders(tmp_path: Path) -> None:
    for name, rows in (("partial-train", 9), ("validation", 4), ("test", 3)):
        labelled(tmp_path / "default" / name, **{"0000": rows})
    splits = open_source(str(tmp_path)).splits
    assert {split: len(listing) for split, listing in splits.items()} == {"train": 9, "val": 4}
    labelled(tmp_path / "other/train", **{"0000": 9})
    assert "holds several sets, of" in refusal(tmp_path)


def test_a_name_without_a_split_beside_others_is_refused(tmp_path: Path) -> None:
    labelled(tmp_path, train=5, val=3)
    write_parquet(tmp_path / "unsupervised.parquet", table())
    assert "names no split" in refusal(tmp_path)


def test_one_file_is_a_source(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", table())
    assert len(open_source(str(tmp_path / "a.parquet")).splits["train"]) == 40
    assert f"cannot read {tmp_path}/b.parquet: No such file" in refusal(tmp_path / "b.parquet")


def test_what_save_to_disk_writes(tmp_path: Path) -> None:
    for split, rows in (("train", 9), ("validation", 4), ("test", 3)):
        name = "data-00000-of-00001.arrow"
        write_arrow(tmp_path / split / name, table(IMAGES[:rows], LABELS[:rows]))
        write_arrow(tmp_path / split / "cache-1234.arrow", table())  # of a map: no part of it
        state = {"_data_files": [{"filename": name}], "_split": None}
        (tmp_path / split / "state.json").write_text(json.dumps(state))
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "validation", "test"]}')
    source = open_source(str(tmp_path))
    assert {k: len(v) for k, v in source.splits.items()} == {"train": 9, "val": 4}
    assert len(open_source(str(tmp_path / "test")).splits["train"]) == 3
    (tmp_path / "train/state.json").unlink()
    assert "train lacks state.json" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, -1], "a.parquet, row 2: it has no label (-1), as test splits have"),
        ([0, None, 1], "a.parquet, row 1: it has no label (None)"),
        ([0, 1, 3], "a.parquet, row 2: label 3 is no class number from 0 to 2"),
        ([0.5, 1.0, 2.0], "a.parquet, row 0: label 0.5 is no class number"),
        (None, "a.parquet has images and no labels: its columns are 'image', and none is called"),
    ],
)
def test_labels_that_are_none(labels: list[Any] | None, message: str, tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", table(IMAGES[:3], labels))
    assert message in refusal(tmp_path)
    source = open_source(str(tmp_path), SourceOptions(unlabelled=True))
    assert contents(source.splits["train"]) == [(-1, data) for data in IMAGES[:3]]


def test_a_test_split_without_labels_is_never_validation(tmp_path: Path) -> None:
    labelled(tmp_path, train=5)
    write_parquet(tmp_path / "test.parquet", table(IMAGES[:3], [-1] * 3))
    assert list(open_source(str(tmp_path)).splits) == ["train"]
    line = refusal(tmp_path, SourceOptions(val_from="test"))
    assert "test.parquet, row 0: it has no label (-1)" in line


def test_classes_of_validation_are_those_of_training(tmp_path: Path) -> None:
    plain = table(IMAGES[:3], [0, 1, 1]).replace_schema_metadata({})
    write_parquet(tmp_path / "train.parquet", plain)
    write_parquet(tmp_path / "val.parquet", table(IMAGES[:2], [1, 2]).replace_schema_metadata({}))
    assert "val.parquet:1/n0144_1.JPEG of the split val has label 2" in refusal(tmp_path)
    texts = pa.table({"image": IMAGES[:2], "label": ["a", "b"]})
    write_parquet(tmp_path / "train.parquet", texts)
    write_parquet(tmp_path / "val.parquet", pa.table({"image": IMAGES[:1], "label": ["c"]}))
    assert "val.parquet, row 0: label 'c' is no class of the training split" in refusal(tmp_path)
    write_parquet(tmp_path / "train.parquet", table())
    write_parquet(tmp_path / "val.parquet", table(names=NAMES[::-1]))
    assert "val.parquet has other columns or classes than the first file" in refusal(tmp_path)


def test_several_columns_of_labels(tmp_path: Path) -> None:
    columns = {"img": IMAGES[:2], "class_id": [0, 1], "target": [1, 0]}
    write_parquet(tmp_path / "a.parquet", pa.table(columns))
    assert "several columns of labels, 'class_id', 'target'" in refusal(tmp_path)
    write_parquet(tmp_path / "a.parquet", pa.table(columns | {"label": [1, 1]}))
    assert open_source(str(tmp_path)).splits["train"].label.tolist() == [1, 1]


@pytest.mark.parametrize("write", [write_parquet, write_arrow])
def test_rows_of_a_path_and_no_bytes(write: Callable[..., None], tmp_path: Path) -> None:
    """Read from that path if it is in SRC, by any way to say it; else refused as that."""
    root = tmp_path / "set"
    (root / "pictures").mkdir(parents=True)
    for row in range(4):
        (root / f"pictures/{row}.jpg").write_bytes(IMAGES[row])
    paths = ["pictures/0.jpg", f"{root}/pictures/1.jpg", "../pictures/2.jpg", "n.jpg"]
    rows = table([None, None, None, IMAGES[9]], [0, 1, 2, 0], paths)
    ending = "parquet" if write is write_parquet else "arrow"
    write(root / f"data/a.{ending}", rows)
    expected = [(0, IMAGES[0]), (1, IMAGES[1]), (2, IMAGES[2]), (0, IMAGES[9])]
    assert contents(open_source(str(root)).splits["train"]) == expected
    for path in ("pictures/nothing.jpg", f"{tmp_path}/outside.jpg", "../../outside.jpg"):
        (tmp_path / "outside.jpg").write_bytes(IMAGES[0])
        write(root / f"data/a.{ending}", table([None, IMAGES[1]], [0, 1], [path, "b.jpg"]))
        line = refusal(root)
        assert f"a.{ending}, row 0 has no bytes of an image but the path {path!r}" in line
    write(root / f"data/a.{ending}", table([None, None], [2, 1], ["pictures/2.jpg", paths[1]]))
    assert contents(open_source(str(root)).splits["train"]) == [(2, IMAGES[2]), (1, IMAGES[1])]
    write(root / f"data/a.{ending}", table([b"", None], [2, 1], ["a.jpg", "pictures/1.jpg"]))
    assert contents(open_source(str(root)).splits["train"]) == [(2, b""), (1, IMAGES[1])]
    write(root / f"data/a.{ending}", table([None, IMAGES[1]], [0, 1], ["", "b.jpg"]))
    source = open_source(str(root))
    assert contents(source.splits["train"]) == [(1, IMAGES[1])]
    assert [line.partition(": ")[2] for line in source.skipped] == [
        "'0': it has neither bytes nor a path"
    ]


def test_damage_is_told_by_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    for how in ({}, {"compression": "NONE", "use_dictionary": False}):
        write_parquet(path, table(), **how)
        whole = path.read_bytes()
        for data in (whole[:-100], whole[: len(whole) // 2], b"", b"PAR1" + bytes(500) + b"PAR1"):
            path.write_bytes(data)
            assert f"{path} is damaged as parquet" in refusal(tmp_path)
    write_arrow(tmp_path / "b.arrow", table())
    path.unlink()
    whole = (tmp_path / "b.arrow").read_bytes()
    for data in (whole[: len(whole) // 2], b"", b"ARROW1\0\0" + bytes(50), whole[:300]):
        (tmp_path / "b.arrow").write_bytes(data)
        assert f"{tmp_path}/b.arrow is damaged as arrow" in refusal(tmp_path)


def test_damage_of_a_row_group_is_told_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(path, table(), row_group_size=10, use_dictionary=False)
    train = open_source(str(tmp_path)).splits["train"]
    data = bytearray(path.read_bytes())
    data[4:2000] = bytes(1996)
    path.write_bytes(data)
    with pytest.raises(GratisError, match=f"{path} is damaged as parquet"):
        ImageReader().read(train.item(0))


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "a.parquet", table())
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert refusal(tmp_path) == (
        f"{tmp_path}/a.parquet needs pyarrow: pip install 'gratis[parquet]', in a checkout make "
        f"install ARGS=--extra"
    )


def test_tables_about_images_are_no_source(tmp_path: Path) -> None:
    """As img2dataset's lists beside its tars and its folders."""
    write_parquet(tmp_path / "00000.parquet", pa.table({"url": ["x"], "status": ["success"]}))
    assert "a.parquet" not in refusal(tmp_path)


def test_an_offset_stands_for_a_row() -> None:
    for place in ((0, 0), (0, 1), (7, 2**31), (2**29, 2**32 - 1)):
        assert row_offset(*place) < -1
        assert group_and_row(row_offset(*place)) == place


def listing_of(groups: list[list[int]]) -> Listing:
    """One file for each list of sizes of row groups."""
    builder = ListingBuilder((), official=True)
    for number, sizes in enumerate(groups):
        builder.containers.append(f"{number}.parquet")
        for group, size in enumerate(sizes):
            for row in range(size):
                builder.add(f"{group}/{number}_{group}_{row}.jpg", row_offset(group, row), 9, 0)
    return builder.build()


def test_a_row_group_is_read_for_few_shards() -> None:
    listing = listing_of([[100] * 150, [100] * 140 + [37], [3000]])
    groups, per_shard = row_groups(listing), 1000
    assert groups is not None
    assert len(set(groups.tolist())) == 292
    shuffled = permutation(len(listing), 5, "train")
    order = keep_together(shuffled, groups, per_shard)
    assert sorted(order.tolist()) == list(range(len(listing)))
    readers: dict[int, set[int]] = {}
    for shard in range(0, len(order), per_shard):
        rows = groups[order[shard : shard + per_shard]]
        changes = np.flatnonzero(rows[1:] != rows[:-1])
        assert len(changes) + 1 == len(set(rows.tolist()))  # each at once
        assert len(changes) > 40 or len(rows) < per_shard  # and from many places of the source
        for group in set(rows.tolist()):
            readers.setdefault(group, set()).add(shard)
    assert max(map(len, readers.values())) <= SHARDS_TOGETHER + 3000 // per_shard + 1
    by_size = [len(readers[group]) for group in range(291)]
    assert max(by_size) <= SHARDS_TOGETHER + 1
    again = keep_together(permutation(len(listing), 6, "train"), groups, per_shard)
    assert not np.array_equal(order, again)


def test_files_are_shuffled_as_ever() -> None:
    builder = ListingBuilder((), official=True)
    builder.containers.append("a.tar")
    for row in range(10):
        builder.add(f"{row}.jpg", row * 512, 9, 0)
    assert row_groups(builder.build()) is None


def test_memory_is_that_of_a_row_group(tmp_path: Path) -> None:
    """pyarrow's own count, after each image: one row group's images, and not two."""
    rng = np.random.default_rng(0)
    images = [rng.bytes(100_000) for _ in range(60)]
    write_parquet(tmp_path / "a.parquet", table(images, [0] * 60), row_group_size=10)
    train = open_source(str(tmp_path)).splits["train"]
    before = pa.total_allocated_bytes()
    with ImageReader() as reader:
        for row in range(60):
            assert reader.read(train.item(row)) == images[row]
            assert pa.total_allocated_bytes() - before < 1.5 * 10 * 100_000


def digests(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def shards(src: object, out: Path, *more: object) -> None:
    command = [sys.executable, *"-m gratis shards --size 16 --samples-per-shard 9".split()]
    command += ["--src", str(src), "--out", str(out), *map(str, more)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.starts
@pytest.mark.parametrize(
    "how", [{"row_group_size": 4}, {"compression": "NONE", "use_dictionary": False}]
)
def test_the_same_bytes_by_any_number_of_workers_and_in_parts(
    how: dict[str, Any], tmp_path: Path
) -> None:
    write_parquet(tmp_path / "src/train.parquet", table(), **how)
    write_parquet(tmp_path / "src/val.parquet", table(IMAGES[:11], LABELS[:11]), **how)
    shards(tmp_path / "src", tmp_path / "one", "--workers", 1)
    shards(tmp_path / "src", tmp_path / "two", "--workers", 2)
    assert digests(tmp_path / "two") == digests(tmp_path / "one")
    for task in (2, 0):  # of three: then the run is interrupted, and given again
        shards(tmp_path / "src", tmp_path / "parts", "--task-id", task, "--num-tasks", 3)
    shards(tmp_path / "src", tmp_path / "parts")
    assert digests(tmp_path / "parts") == digests(tmp_path / "one")


@pytest.mark.parametrize("whole", [False, True], ids=["stream", "file"])
def test_an_arrow_file_that_ends_between_two_batches_is_cut_short(
    tmp_path: Path, whole: bool
) -> None:
    path = tmp_path / "train.arrow"
    write_arrow(path, table(), whole=whole)
    with pa.memory_map(str(path)) as file:
        file.seek(8 if whole else 0)
        pa.ipc.read_message(file)  # the schema
        pa.ipc.read_message(file)
        end = file.tell()
    path.write_bytes(path.read_bytes()[:end])
    assert f"{path} is cut short at byte {end}" in refusal(tmp_path)


def test_a_table_of_another_ending_beside_those_that_are_read_is_an_error(tmp_path: Path) -> None:
    for name in ("train-0.parquet", "train-1.PARQUET"):
        write_parquet(tmp_path / name, table())
    assert "train-1.PARQUET is a table by its name" in refusal(tmp_path)


def test_a_table_without_images_is_refused_with_its_columns(tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", pa.table({"image": ["aGk="], "label": [0]}))
    message = refusal(tmp_path)
    assert "train.parquet has no column of images" in message
    assert "'image' (string), 'label' (int64)" in message


def test_arrow_as_others_write_it_is_not_called_damaged_alone(tmp_path: Path) -> None:
    # labels that lie in a dictionary of their own
    labels = pa.array(["b", "a"]).dictionary_encode()
    write_arrow(tmp_path / "train.arrow", pa.table({"image": IMAGES[:2], "label": labels}))
    assert "or written in another way than `datasets` does" in refusal(tmp_path)


def test_whole_floats_are_labels_and_no_text_that_says_none_is(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    write_parquet(path, table(IMAGES[:3], [10.0, 2.0, 0.0]).replace_schema_metadata(None))
    assert open_source(str(tmp_path)).splits["train"].label.tolist() == [10, 2, 0]
    for none in ("-1", ""):
        write_parquet(path, table(IMAGES[:3], ["1", "0", none]).replace_schema_metadata(None))
        assert "row 2: it has no label" in refusal(tmp_path)
