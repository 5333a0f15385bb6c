"""What the loader reads beside the shards: for another dataset's, a damaged or an odd one there is
one message of one line."""

from __future__ import annotations

import gc
import json
import os
import re
import resource
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import picture, write_dataset

from gratis.dataset import (
    Index,
    Manifest,
    Stats,
    read_index,
    read_manifest,
    read_stats,
    write_index,
    write_stats,
)
from gratis.errors import GratisError
from gratis.loader import Loader, LoaderConfig
from gratis.loader.reading.shard_labels import check_labels
from gratis.loader.reading.shard_reader import ShardReader
from gratis.open_files import max_open_files

CONFIG = LoaderConfig(batch_size=8, crop=24, threads=1)


@pytest.fixture
def root(jpeg_dataset: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(jpeg_dataset, tmp_path / "d"))


def refused(root: Path, message: str) -> None:
    with pytest.raises(GratisError, match=message) as caught:
        Loader(root, "train", CONFIG)
    assert "\n" not in str(caught.value)


def publish(root: Path, **fields: Any) -> None:
    """The manifest with other fields; `index_sha256` is the training split's."""
    manifest = read_manifest(root)
    if "index_sha256" in fields:
        train = replace(manifest.splits["train"], index_sha256=fields.pop("index_sha256"))
        fields["splits"] = {"train": train}
    (root / "manifest.json").write_bytes(replace(manifest, **fields).to_json())


@pytest.mark.parametrize("codec", ["jpeg", "raw"])
@pytest.mark.parametrize("name", ["stats.npz", "train.index.npz"])
def test_an_index_or_statistics_of_another_dataset_are_not_trained_from(
    tmp_path: Path, codec: str, name: str
) -> None:
    """Of the same number and sizes of images, in another order: raw samples then lie at the same
    places."""
    pictures = [picture(i) for i in range(20)]
    root = write_dataset(tmp_path / "one", pictures, codec=codec)
    other = write_dataset(tmp_path / "other", [picture(i) for i in range(50, 70)], codec=codec)
    if name == "train.index.npz":
        index = read_index(root, "train")
        write_index(other, "train", index._replace(label=index.label[::-1].copy()))
    Loader(root, "train", CONFIG)
    shutil.copy(other / name, root / name)
    refused(
        root,
        rf"^{re.escape(str(root / name))} is not the one the manifest names .*; copy the dataset "
        rf"again, or",
    )


INDICES: dict[str, Callable[[Index], Index]] = {
    "shards from 0 to 99": lambda rows: rows._replace(
        shard=np.where(np.arange(101) == 40, 99, rows.shard)
    ),
    "shards from -1 to": lambda rows: rows._replace(shard=rows.shard - 1),
    "offsets from -5 to": lambda rows: rows._replace(
        offset=np.where(np.arange(101) == 40, -5, rows.offset)
    ),
    "sizes from 0 to": lambda rows: rows._replace(size=rows.size - rows.size.min()),
    "labels from 0 to 7": lambda rows: rows._replace(label=rows.label + (rows.label == 6)),
    "not rows of whole numbers": lambda rows: rows._replace(offset=rows.offset[:50]),
    "not rows of whole .*": lambda rows: rows._replace(offset=rows.offset.astype(np.float64)),  # type: ignore[arg-type]
    "not rows of .* numbers": lambda rows: rows._replace(size=rows.size[:, None]),
    "not rows .* numbers": lambda rows: rows._replace(label=np.array(3)),
}


@pytest.mark.parametrize("message", INDICES)
def test_an_odd_index_is_one_line_also_where_the_manifest_names_it(
    root: Path, message: str
) -> None:
    publish(
        root, index_sha256=write_index(root, "train", INDICES[message](read_index(root, "train")))
    )
    refused(root, rf"train\.index\.npz is damaged \({message}.*; make the shards again")


STATISTICS: dict[str, Callable[[Stats], Stats]] = {
    r"mean is float32 \(32, 64, 3\)": lambda stats: stats._replace(mean=stats.mean[:32]),
    r"eigenvectors is float64 \(2, 3\)": lambda stats: stats._replace(
        eigenvectors=stats.eigenvectors[:2]
    ),
    r"num_images is int64 \(3,\)": lambda stats: stats._replace(num_images=np.arange(3)),  # type: ignore[arg-type]
    "mean image of 32 px, the manifest images of 64 px": lambda stats: stats._replace(
        mean=stats.mean[:32, :32]
    ),
}


@pytest.mark.parametrize("message", STATISTICS)
def test_odd_statistics_are_one_line_also_where_the_manifest_names_them(
    root: Path, message: str
) -> None:
    publish(root, stats_sha256=write_stats(root, STATISTICS[message](read_stats(root))))
    refused(root, rf"stats\.npz (is damaged \(|has a ){message}.*; make the shards again")


def test_an_index_of_fewer_samples_is_not_the_manifest_s(root: Path) -> None:
    rows = read_index(root, "train").rows(slice(100))
    publish(root, index_sha256=write_index(root, "train", rows))
    told = f"the train index of {root} has 100 samples, not 101; verify it"
    refused(root, f"^{re.escape(told)}$")


@pytest.mark.parametrize("of_whole", ["index", "statistics", "both"])
def test_an_index_or_statistics_of_whole_images_are_not_of_square_ones(
    root: Path, of_whole: str
) -> None:
    index, sides = read_index(root, "train"), np.full(101, 64, np.int32)
    channels: dict[str, Any] = {"channel_mean": np.zeros(3), "channel_std": np.ones(3)}
    if of_whole != "statistics":
        whole = index._replace(width=sides, height=sides)
        publish(root, index_sha256=write_index(root, "train", whole))
    if of_whole != "index":
        publish(root, stats_sha256=write_stats(root, read_stats(root)._replace(**channels)))
    told = f"{root}/train.index.npz and stats.npz are not of square images, as the manifest's are"
    refused(root, rf"^{re.escape(told)}; make the shards again, or verify the copy$")


def test_an_archive_of_one_array_is_no_index(root: Path) -> None:
    with (root / "train.index.npz").open("wb") as file:
        np.save(file, np.arange(3))
    with pytest.raises(GratisError, match=r"train\.index\.npz is damaged"):
        read_index(root, "train")


def of_first_shard(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda raw: raw["splits"]["train"]["shards"][0].__setitem__(name, value)


MANIFESTS: dict[str, Callable[[dict[str, Any]], None]] = {
    "image_size is '64'": lambda raw: raw.update(image_size="64"),
    "image_size is True": lambda raw: raw.update(image_size=True),
    "images of 0 px": lambda raw: raw.update(image_size=0),
    "codec 'webp'": lambda raw: raw.update(codec="webp"),
    "samples is '10'": of_first_shard("samples", "10"),
    "bytes is 1.5": of_first_shard("bytes", 1.5),
    "tools is {'a': 1}": lambda raw: raw.update(tools={"a": 1}),
    "words is None": lambda raw: raw["classes"][0].update(words=None),
    "quality is 'high": lambda raw: raw.update(quality="high " * 1000),
}


@pytest.mark.parametrize("message", MANIFESTS)
def test_a_manifest_of_odd_types_is_one_line(root: Path, message: str) -> None:
    raw = json.loads((root / "manifest.json").read_bytes())
    MANIFESTS[message](raw)
    (root / "manifest.json").write_text(json.dumps(raw))
    refused(
        root, rf"manifest\.json is damaged \(.*{re.escape(message)}.{{,80}}; make the shards again"
    )


def test_a_manifest_of_brackets_is_one_line(root: Path) -> None:
    (root / "manifest.json").write_text("[" * 100_000)
    refused(root, r"manifest\.json is damaged")


def test_a_manifest_survives_its_json(root: Path) -> None:
    manifest = replace(read_manifest(root), quality=None, tools={"dali": "1"})
    assert Manifest.from_json(manifest.to_json()) == manifest


@pytest.mark.parametrize("name", ["manifest.json", "stats.npz", "train.index.npz"])
@pytest.mark.parametrize("harm", ["folder", "link to itself", "empty", "cut"])
def test_what_is_no_file_of_a_dataset_is_one_line(
    jpeg_dataset: Path, tmp_path: Path, name: str, harm: str
) -> None:
    root = Path(shutil.copytree(jpeg_dataset, tmp_path / "d"))
    data = (root / name).read_bytes()
    (root / name).unlink()
    if harm == "folder":
        (root / name).mkdir()
    elif harm == "link to itself":
        (root / name).symlink_to(name)
    else:
        (root / name).write_bytes(data[: len(data) // 2] if harm == "cut" else b"")
    with pytest.raises(
        GratisError,
        match=rf"{name} (is damaged|is not the one|cannot be read|is not a manifest).*; ",
    ) as caught:
        Loader(root, "train", LoaderConfig(batch_size=8, crop=24))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["stats.npz", "train.index.npz"])
def test_a_flipped_byte_in_an_index_or_the_statistics_is_one_line(
    jpeg_dataset: Path, tmp_path: Path, name: str
) -> None:
    root = Path(shutil.copytree(jpeg_dataset, tmp_path / "d"))
    data = bytearray((root / name).read_bytes())
    data[len(data) // 3] ^= 0x40
    (root / name).write_bytes(data)
    with pytest.raises(GratisError, match=rf"{name} is not the one the manifest names"):
        Loader(root, "train", LoaderConfig(batch_size=8, crop=24))


@contextmanager
def files_left(number: int) -> Iterator[None]:
    """So many files can still be opened in this process."""
    gc.collect()  # what it would close meanwhile makes room
    before, lowest = resource.getrlimit(resource.RLIMIT_NOFILE), os.dup(0)
    os.close(lowest)
    handles = [os.open("/dev/null", os.O_RDONLY) for _ in range(number)]  # there may be gaps
    limit = max([lowest - 1, *handles]) + 1
    for handle in handles:
        os.close(handle)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_process_with_few_files_left_reads_all_shards(jpeg_dataset: Path) -> None:
    """And one that has none left says so."""
    index, split = read_index(jpeg_dataset, "train"), read_manifest(jpeg_dataset).splits["train"]
    assert len(split.shards) == 11
    ids = np.arange(100, -1, -1)
    whole = ShardReader(jpeg_dataset, split, index)
    expected = [part.tobytes() for part in whole.read(ids)[0]]
    whole.close()
    source = ShardReader(jpeg_dataset, split, index)
    with files_left(2):
        assert [part.tobytes() for part in source.read(ids)[0]] == expected
        source.close()
    with files_left(0), pytest.raises(GratisError) as caught:
        source.read(ids)
    assert re.search(
        r"0010.tar cannot be opened: this process has its \d+ files open; raise that",
        str(caught.value),
    )


@contextmanager
def file_limits(soft: int) -> Iterator[None]:
    """This process begins with a soft limit, which the hard one lets it raise."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_of_many_shards_each_is_opened_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In batches that ask for the next one's samples before they are read, as training does; and
    the numbers that select(2) knows are left to others."""
    root = write_dataset(tmp_path / "d", [picture(k, 16) for k in range(600)], per_shard=1)
    index, split = read_index(root, "train"), read_manifest(root).splits["train"]
    opened, real = [], os.open

    def counted(path: Any, *arguments: Any, **options: Any) -> int:
        opened.append(path)
        return real(path, *arguments, **options)

    def lowest_free() -> int:
        number = real("/dev/null", os.O_RDONLY)
        os.close(number)
        return number

    order, before = np.random.default_rng(0).permutation(600), lowest_free()
    with file_limits(1024):
        source = ShardReader(root, split, index)
        monkeypatch.setattr(os, "open", counted)
        for _ in range(2):
            for step in range(0, 600, 200):
                source.expect(order[step + 200 : step + 400])
                source.read(order[step : step + 200])
        assert len(opened) == 600
        # other tests of this process may have files open
        assert lowest_free() <= max(before, 255)
        source.close()


def test_a_limit_leaves_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader of many files takes a quarter of a small limit, and all but 4,096 of a large one,
    which is the hard one where that is needed."""
    most = {(64, 64): 16, (3, 3): 1, (1024, 1024): 256, (1024, 4096): 1024, (1024, 9096): 5000}
    most |= {(1024, 1 << 20): 10_000, (resource.RLIM_INFINITY,) * 2: 10_000}
    for limits, files in most.items():
        raised = [limits]
        monkeypatch.setattr(resource, "getrlimit", lambda _, limits=limits: limits)
        monkeypatch.setattr(resource, "setrlimit", lambda _, new, raised=raised: raised.append(new))
        assert max_open_files(10_000) == files
        assert raised[-1][1] == limits[1]  # the hard one stays
        assert limits[0] <= raised[-1][0] <= max(limits[1], 40_000)


def test_few_files_ask_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: pytest.fail("the limit was raised"))
    assert max_open_files(256) == 256


def own_memory() -> int:
    """Bytes of this process that no file backs."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


def test_the_index_is_shared_by_the_processes_of_a_machine(tmp_path: Path) -> None:
    """Its rows lie in the file, and the file alone is in memory."""
    ids = np.arange(2_000_000)
    columns = ((ids // 1000), ids * 7, (ids % 1000 + 1), (ids % 10))
    index = Index(*(column.astype(kind) for column, kind in zip(columns, "ilii", strict=True)))
    sha256 = write_index(tmp_path, "train", index)
    for known in (sha256, None):
        before = own_memory()
        found = read_index(tmp_path, "train", known)
        for name, rows in index._asdict().items():
            if rows is None:  # of square images there is neither height nor width
                assert getattr(found, name) is None
                continue
            np.testing.assert_array_equal(getattr(found, name)[::1000], rows[::1000])
        assert own_memory() - before < 40e6 / 4
        with pytest.raises(ValueError, match="read-only"):
            found.label[0] = 1


def test_a_shard_is_opened_without_a_copy_of_the_index(tmp_path: Path) -> None:
    """Of which the rows of a shard are a small part: a dataset of 14 million images would copy
    113 MB for each of its 14,000 shards."""
    ids = np.arange(1_000_000)
    columns = (ids // 100, ids * 7, ids % 100 + 1, ids % 10)
    index = Index(*(column.astype(kind) for column, kind in zip(columns, "ilii", strict=True)))
    write_index(tmp_path, "train", index)
    mapped = read_index(tmp_path, "train")
    path = tmp_path / "train-00000.tar"
    path.touch()

    def opened(shard: int) -> None:
        with path.open("rb") as file, pytest.raises(GratisError, match="holds other samples"):
            check_labels(file.fileno(), path, mapped, shard)

    opened(3)  # what is allocated once
    tracemalloc.start()
    opened(7_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6


def test_an_index_of_no_samples_is_read(tmp_path: Path) -> None:
    kinds = (np.int32, np.int64, np.int32, np.int32)
    write_index(tmp_path, "train", Index(*(np.empty(0, kind) for kind in kinds)))
    index = read_index(tmp_path, "train")
    columns = [rows for rows in index if rows is not None]
    assert [rows.dtype for rows in columns] == list(kinds)
    assert all(rows.shape == (0,) for rows in columns)


@pytest.mark.parametrize("harm", ["compressed", "objects", "a flipped byte", "cut"])
def test_an_index_that_cannot_be_mapped_is_one_line(tmp_path: Path, harm: str) -> None:
    rows = np.arange(1000)
    columns = dict.fromkeys(Index._fields, rows)
    path = tmp_path / "train.index.npz"
    save = np.savez_compressed if harm == "compressed" else np.savez
    objects = {"label": np.array([None] * 1000)} if harm == "objects" else {}
    save(path, **(columns | objects))  # type: ignore[arg-type]
    data = bytearray(path.read_bytes())
    if harm == "a flipped byte":
        data[len(data) // 2] ^= 1
    path.write_bytes(data[: len(data) - 500] if harm == "cut" else data)
    with pytest.raises(GratisError, match=r"train.index.npz is damaged \(.*\); make the shards"):
        read_index(tmp_path, "train")
