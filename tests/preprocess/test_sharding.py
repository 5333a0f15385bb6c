"""The shards command from its options to the published files, its tasks run in this process."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest
from handmade import encode, picture
from PIL import Image

from gratis import dataset
from gratis.errors import GratisError
from gratis.network import NetworkLimits
from gratis.preprocess.execution.workers import TaskProgress
from gratis.preprocess.merge import MergeConfig, merge_tasks
from gratis.preprocess.output.store import WORK
from gratis.preprocess.shards import ShardsConfig, make_shards
from gratis.preprocess.stages.shard import ShardTask

COUNT, CLASSES = 11, 3  # of training; two more validate
SIZE = 16


class Here:
    """Runs tasks in this process. ends: after so many it fails, as if it were killed."""

    def __init__(self, ends: int = 1000) -> None:
        self.ends, self.workers = ends, 0
        self.tasks: list[ShardTask] = []

    @property
    def names(self) -> list[str]:
        return [task.name for task in self.tasks]

    def __call__(self, tasks: Iterable[ShardTask], workers: int) -> Iterator[TaskProgress]:
        self.workers = workers
        for task in tasks:
            if len(self.tasks) == self.ends:
                raise KeyboardInterrupt
            made: list[TaskProgress] = []
            self.tasks.append(task)
            task.make(lambda at: None, lambda *new, to=made: to.append(TaskProgress(*new)))
            yield from made


def image(split: str, number: int) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    return picture(number + 100 * (split == "val"), 20, 24)


@pytest.fixture
def src(tmp_path: Path) -> Path:
    """Class folders; image k is of class k % 3, and lossless."""
    root = tmp_path / "src"
    for split, count in (("train", COUNT), ("val", 2)):
        for k in range(count):
            path = root / split / f"c{k % CLASSES}" / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image(split, k)).save(path)
    return root


def config(src: Path, out: Path | str, **more: object) -> ShardsConfig:
    fields = {"size": SIZE, "samples_per_shard": 4, "codec": "raw", "workers": 1}
    return ShardsConfig(src=str(src), out=str(out), **fields | more)  # type: ignore[arg-type]


def contents(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.iterdir()}


def stored(root: Path, split: str) -> dict[str, tuple[int, bytes]]:
    """Label and image of each key of a split, by tarfile."""
    found: dict[str, tuple[int, bytes]] = {}
    for shard in dataset.read_manifest(root).splits[split].shards:
        with tarfile.open(root / shard.name) as tar:
            files = [(one.name, tar.extractfile(one).read()) for one in tar.getmembers()]  # type: ignore[union-attr]
        for (name, data), (label_name, label) in zip(files[::2], files[1::2], strict=True):
            key = name.removesuffix(".ppm")
            assert label_name == f"{key}.cls"
            assert key not in found
            found[key] = int(label), data
    return found


FILES = [
    *("manifest.json", "rejects.jsonl", "stats.npz", "train-00000.idx", "train-00000.tar"),
    *("train-00001.idx", "train-00001.tar", "train-00002.idx", "train-00002.tar"),
    *("train.index.npz", "val-00000.idx", "val-00000.tar", "val.index.npz"),
]


def test_each_image_is_there_once_under_its_label(
    src: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The central square of 20 of each picture of 24 x 20 pixels, at its own size."""
    out, run = tmp_path / "out", Here()
    manifest = make_shards(config(src, out, size=20, workers=7, seed=5), run)
    assert manifest == dataset.read_manifest(out)
    assert sorted(contents(out)) == FILES
    for split, count in (("train", COUNT), ("val", 2)):
        found = stored(out, split)
        assert sorted(found) == sorted(f"c{k % CLASSES}_{k}" for k in range(count))
        for k in range(count):
            label, data = found[f"c{k % CLASSES}_{k}"]
            assert label == k % CLASSES
            assert data == encode(image(split, k)[:, 2:22], "raw")
    assert run.workers == 4  # not more than shards
    assert [len(task.items) for task in run.tasks] == [4, 4, 3, 2]
    assert [task.tolerant for task in run.tasks] == [False] * 4
    told = [manifest.seed, manifest.quality, manifest.codec, manifest.samples_per_shard]
    assert told == [5, None, "raw", 4]
    assert capsys.readouterr().out.endswith(
        f"{out}: 11 train and 2 val images of 3 classes, 20 px, in 4 shards\n"
    )
    assert make_shards(config(src, out, size=20, seed=5), Here(0)) == manifest
    assert f"{out} is already there: 11 train" in capsys.readouterr().out
    with pytest.raises(GratisError, match=r"another dataset: image-size 20 there and 16 asked"):
        make_shards(config(src, out, seed=5, discard=True), Here(0))


def test_options_reach_the_shards(src: Path, tmp_path: Path) -> None:
    run = Here()
    more = {"shape": "whole", "max_aspect": 2.5, "enlarge": True, "codec": "jpeg", "quality": 71}
    times = {"outage_s": 7.0, "read_timeout_s": 3.0}
    limits = {"limit_classes": 2, "limit_per_class": 1}
    made = make_shards(config(src, tmp_path / "o", **more, **times, **limits, max_rejects=2), run)
    assert made is not None
    assert (made.shape, made.max_aspect, made.enlarge) == ("whole", 2.5, True)
    assert (made.codec, made.quality, made.image_size) == ("jpeg", 71, SIZE)
    assert {name: split.samples for name, split in made.splits.items()} == {"train": 2, "val": 2}
    for task in run.tasks:
        assert task.limits == NetworkLimits(outage_s=7.0, read_timeout_s=3.0)
        assert (task.tolerant, task.quality) == (True, 71)
    bare = make_shards(config(src, tmp_path / "u", unlabelled=True), Here())
    assert bare is not None
    assert bare.classes == ()
    assert set(dataset.read_index(tmp_path / "u", "train").label.tolist()) == {-1}


@pytest.mark.parametrize("finished", [0, 1, 3])
def test_a_killed_run_goes_on_where_it_was(src: Path, tmp_path: Path, finished: int) -> None:
    make_shards(config(src, tmp_path / "whole"), Here())
    out, first, second = tmp_path / "out", Here(finished), Here()
    with pytest.raises(KeyboardInterrupt):
        make_shards(config(src, out), first)
    assert not (out / "manifest.json").exists()
    make_shards(config(src, out), second)
    assert first.names + second.names == ["train-00000", "train-00001", "train-00002", "val-00000"]
    assert contents(out) == contents(tmp_path / "whole")


def test_tasks_share_the_shards_and_merge_publishes_them(
    src: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_shards(config(src, tmp_path / "whole"), Here())
    out, made = tmp_path / "out", list[list[str]]()
    for task in (1, 2, 0, 1):
        run = Here()
        assert make_shards(config(src, out, task_id=task, num_tasks=3), run) is None
        assert capsys.readouterr().out.endswith(
            f"{out}: task {task} of 3 is done; after the last, merge publishes\n"
        )
        made.append(run.names)
    assert made == [["train-00001"], ["train-00002"], ["train-00000", "val-00000"], []]
    assert not (out / "manifest.json").exists()
    merge_tasks(MergeConfig(out=str(out)))
    assert contents(out) == contents(tmp_path / "whole")
    with pytest.raises(GratisError, match="seed 0 there and 9 asked for"):
        make_shards(config(src, out, task_id=0, num_tasks=3, seed=9), Here(0))


def test_a_task_alone_publishes(src: Path, tmp_path: Path) -> None:
    manifest = make_shards(config(src, tmp_path / "o", task_id=0, num_tasks=1), Here())
    assert manifest == dataset.read_manifest(tmp_path / "o")


def test_work_of_other_settings_is_discarded_on_request(src: Path, tmp_path: Path) -> None:
    make_shards(config(src, tmp_path / "whole"), Here())
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        make_shards(config(src, out, seed=5), Here(2))
    before = contents_below(out)
    with pytest.raises(GratisError, match="seed 5 there and 0 asked for; add --discard"):
        make_shards(config(src, out), Here(0))
    assert contents_below(out) == before
    mine = out / "train-00009.tar"  # no plan's
    mine.write_bytes(b"mine")
    run = Here()
    make_shards(config(src, out, discard=True), run)
    assert len(run.tasks) == 4
    assert mine.read_bytes() == b"mine"
    mine.unlink()
    assert contents(out) == contents(tmp_path / "whole")


def contents_below(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    "name", ["train-00000.tar", "val-123456.idx", "stats.npz", "train.index.npz", "rejects.jsonl"]
)
def test_files_of_others_are_not_written_over(src: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("somebody else's")
    for more in ({}, {"discard": True}, {"task_id": 1, "num_tasks": 2}):
        with pytest.raises(GratisError, match=f"o holds {name}: |out holds {name}: "):
            make_shards(config(src, out, **more), Here(0))
        assert contents_below(out) == {name: b"somebody else's"}
    assert [path.name for path in out.iterdir()] == [name]


def test_after_a_discard_no_file_of_others_is_written_over(src: Path, tmp_path: Path) -> None:
    """Which the new plan's smaller shards would come to."""
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        make_shards(config(src, out), Here(1))
    mine = out / "train-00007.tar"
    mine.write_bytes(b"mine")
    with pytest.raises(GratisError, match=r"holds train-00007\.tar"):
        make_shards(config(src, out, discard=True, samples_per_shard=1), Here(0))
    assert mine.read_bytes() == b"mine"


def test_a_dataset_without_its_manifest_is_made_again(src: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make_shards(config(src, out), Here())
    whole = contents(out)
    (out / "manifest.json").unlink()
    with pytest.raises(GratisError, match=r"holds stats\.npz: no unfinished run"):
        make_shards(config(src, out, size=8), Here(0))
    run = Here()
    make_shards(config(src, out), run)
    assert len(run.tasks) == 4
    assert contents(out) == whole


def test_rejects_end_it_or_are_left_out_and_tried_again(src: Path, tmp_path: Path) -> None:
    make_shards(config(src, tmp_path / "whole"), Here())
    bad, out = src / "train" / "c1" / "7.png", tmp_path / "out"
    good = bad.read_bytes()
    bad.write_bytes(bytes(len(good)))
    run = Here()
    with pytest.raises(
        GratisError, match=r"1 files cannot be used \(1 undecodable\): train/c1/7\.p"
    ):
        make_shards(config(src, out), run)
    (hit,) = [task.name for task in run.tasks if any(item.name == "7.png" for item in task.items)]
    assert len(run.tasks) == 4
    # with too many, whatever it was is tried again; if there may be so many, once it was touched
    again = Here()
    with pytest.raises(GratisError, match="1 files cannot be used"):
        make_shards(config(src, out), again)
    assert again.names == [hit]
    part = {"max_rejects": 1, "task_id": 0, "num_tasks": 2}
    run = Here()
    make_shards(config(src, out, **part), run)
    make_shards(config(src, out, **part | {"task_id": 1}), run)
    assert run.names == []
    made = next(out.glob(f"{WORK}/{hit}.receipt*")).stat().st_mtime
    os.utime(bad, (made + 100, made + 100))
    make_shards(config(src, out, **part), run)
    make_shards(config(src, out, **part | {"task_id": 1}), run)
    assert run.names == [hit]
    bad.write_bytes(good)
    os.utime(bad, (made + 200, made + 200))
    make_shards(config(src, out), again)
    assert contents(out) == contents(tmp_path / "whole")


def test_rejects_of_an_archive_are_tried_again_where_it_was_touched(tmp_path: Path) -> None:
    src, out = tmp_path / "src", tmp_path / "out"
    src.mkdir()
    for number, data in enumerate((encode(picture(0, 16), "raw"), b"no image")):
        with tarfile.open(src / f"{number}.tar", "w") as tar:
            for name, content in ((f"{number}.ppm", data), (f"{number}.cls", b"0")):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    part = {"max_rejects": 1, "task_id": 0, "num_tasks": 2, "samples_per_shard": 2}
    first, second, third = Here(), Here(), Here()
    make_shards(config(src, out, **part), first)
    make_shards(config(src, out, **part), second)
    made = next(out.glob(f"{WORK}/*.receipt*")).stat().st_mtime
    os.utime(src / "1.tar", (made + 100, made + 100))
    make_shards(config(src, out, **part), third)
    assert [run.names for run in (first, second, third)] == [["train-00000"], [], ["train-00000"]]


def test_some_rejects_may_be(src: Path, tmp_path: Path) -> None:
    (src / "train" / "c1" / "7.png").write_bytes(b"no image")
    (src / "train" / "c0" / "0.heic").write_bytes(b"no image that is read here")
    with pytest.raises(GratisError, match=r"^1 file is skipped \(.*'0\.heic'.* --max-rejects 1"):
        make_shards(config(src, tmp_path / "o"), Here(0))
    with pytest.raises(GratisError, match="--max-rejects 2, with 1 that the listing skipped"):
        make_shards(config(src, tmp_path / "o", max_rejects=1), Here())
    manifest = make_shards(config(src, tmp_path / "o", max_rejects=2), Here())
    assert manifest is not None
    assert manifest.splits["train"].samples == COUNT - 1
    assert sum(Counter(manifest.splits["train"].rejects).values()) == 1
    assert "c1_7" not in stored(tmp_path / "o", "train")


@pytest.mark.parametrize("inside", ["", "train", "shards/x"])
def test_out_may_not_lie_in_src(src: Path, inside: str) -> None:
    before = contents_below(src)
    for out in (src / inside, f"{src.parent}/x/../src/{inside}"):
        with pytest.raises(GratisError, match=r"lies in SRC .*; choose an OUT outside of it"):
            make_shards(config(src, out), Here(0))
    assert contents_below(src) == before
    with pytest.raises(GratisError, match="lies in SRC"):
        make_shards(config(Path("memory://src"), f"memory://src/{inside}"), Here(0))


def test_src_may_lie_in_out(src: Path, tmp_path: Path) -> None:
    """Whose names are none of a dataset."""
    make_shards(config(src, tmp_path), Here())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*FILES, "src"])


def test_at_a_url_the_bytes_are_the_same(src: Path, tmp_path: Path) -> None:
    make_shards(config(src, tmp_path / "whole"), Here())
    place = f"/sharding{tmp_path}"
    make_shards(config(src, f"memory:/{place}"), Here())
    files = fsspec.filesystem("memory")
    found = {path.rpartition("/")[2]: files.cat_file(path) for path in files.find(place)}
    assert found == contents(tmp_path / "whole")
    assert make_shards(config(src, f"memory:/{place}"), Here(0)) is not None


def test_another_run_may_publish_meanwhile(src: Path, tmp_path: Path) -> None:
    """Before this one has the folder's lock, or, at a URL, while it makes its shards."""
    whole = make_shards(config(src, tmp_path / "whole"), Here())
    files, place = fsspec.filesystem("memory"), f"/meanwhile{tmp_path}"

    class Late(Here):
        def __call__(self, tasks: Iterable[ShardTask], workers: int) -> Iterator[TaskProgress]:
            yield from super().__call__(tasks, workers)
            files.rm(f"{place}/{WORK}", recursive=True)
            for path in (tmp_path / "whole").iterdir():
                files.pipe_file(f"{place}/{path.name}", path.read_bytes())

    assert make_shards(config(src, f"memory:/{place}"), Late()) == whole

    class Gone(Here):
        def __call__(self, tasks: Iterable[ShardTask], workers: int) -> Iterator[TaskProgress]:
            yield from super().__call__(tasks, workers)
            files.rm(f"{place}2/{WORK}", recursive=True)

    with pytest.raises(GratisError, match="what is finished stays: mend that"):
        make_shards(config(src, f"memory:/{place}2"), Gone())


def test_progress_is_an_event_file(src: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        make_shards(config(src, tmp_path / "o", run_dir=tmp_path / "run"), Here(2))
    make_shards(config(src, tmp_path / "o", run_dir=tmp_path / "run"), Here())
    path = tmp_path / "run" / "shards.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    kinds = ["start", "progress", "end"] * 2
    assert [record["kind"] for record in records] == kinds
    assert [record["attempt"] for record in records] == [1] * 3 + [2] * 3
    start, progress, end, start2, progress2, end2 = records
    assert (start["total"], start["done"], start2["total"], start2["done"]) == (13, 0, 13, 8)
    assert (start["pid"], start["host"]) == (os.getpid(), os.uname().nodename)
    assert [progress[name] for name in ("images", "done", "total", "rejects")] == [8, 8, 13, 0]
    assert [progress2[name] for name in ("images", "done", "total", "rejects")] == [5, 13, 13, 0]
    sizes = [path.stat().st_size for path in src.rglob("*.png")]
    assert progress["bytes_in"] + progress2["bytes_in"] == sum(sizes)
    assert (end["outcome"], end["error"]) == ("interrupted", "")
    assert (end2["outcome"], end2["error"]) == ("finished", None)


# of a raw shard, by hand: 16 x 16 RGB and a header of 13 bytes; three blocks and a half around them
COST = int((16 * 16 * 3 + 13 + 3 * 512 + 256) * (COUNT + 2) * 1.05)


def test_a_dry_run_says_the_cost_and_writes_nothing(
    src: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert make_shards(config(src, tmp_path / "o", dry_run=True, workers=2), Here(0)) is None
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith(f"13 images: about {COST / 1e3:.1f} kB, 0 h 0 min on 2 workers (")
    assert not (tmp_path / "o").exists()


def test_a_disk_that_is_too_small_is_refused_first(
    src: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = [COST - 1]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free[0]))
    with pytest.raises(
        GratisError, match=rf"^{tmp_path}/o needs about {COST / 1e3:.1f} kB and its"
    ):
        make_shards(config(src, tmp_path / "o"), Here(0))
    free[0] = COST
    assert make_shards(config(src, tmp_path / "o"), Here()) is not None


def test_published_sums_are_checked_first(src: Path, tmp_path: Path) -> None:
    with pytest.raises(GratisError, match="so that there is no md5 to check; leave --check-md5"):
        make_shards(config(src, tmp_path / "o", check_md5=True), Here(0))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"src": ""}, "no source: give --src FOLDER; for a drawn one: gratis sample --out"),
        ({"out": ""}, "--out is empty: name the folder or URL of the dataset"),
        ({"size": 7}, "--size 7: between 8 and 4,096"),
        ({"size": 4097}, "--size 4097: between"),
        ({"quality": 0}, "--quality 0: between 1 and 100"),
        ({"quality": 101}, "--quality 101: between"),
        ({"samples_per_shard": 0}, "--samples-per-shard 0: between 1 and 100,000"),
        ({"seed": -1}, "--seed -1: between 0 and"),
        ({"max_aspect": 0.5, "shape": "whole"}, "--max-aspect 0.5: between 1 and 15"),
        ({"max_aspect": 3.0}, "--max-aspect is for images that keep their shape; add --shape"),
        ({"enlarge": True}, "--enlarge is for images that keep their shape; add --shape whole"),
        ({"task_id": 0}, "--task-id and --num-tasks go together; give both or neither"),
        ({"num_tasks": 2}, "--task-id and --num-tasks go together"),
        ({"task_id": 2, "num_tasks": 2}, "--task-id 2: from 0 to 1, one below --num-tasks"),
        ({"task_id": -1, "num_tasks": 2}, "--task-id -1: from 0 to 1"),
        ({"task_id": 0, "num_tasks": 2, "discard": True}, "--discard with --task-id would remove"),
        ({"outage_s": -1.0}, "outage_s is -1.0"),
        ({"read_timeout_s": 0.0}, "read_timeout_s is 0.0"),
    ],
)
def test_options_that_cannot_be(fields: dict[str, object], message: str) -> None:
    sound = config(Path("src"), "out")
    with pytest.raises(GratisError) as caught:
        dataclasses.replace(sound, **fields)  # type: ignore[arg-type]
    assert str(caught.value).startswith(message)
    assert dataclasses.replace(sound, task_id=0, num_tasks=1, discard=True).is_part is False
    assert dataclasses.replace(sound, task_id=0, num_tasks=2).is_part is True


def test_a_source_that_moves_makes_the_same(src: Path, tmp_path: Path) -> None:
    make_shards(config(src, tmp_path / "one"), Here())
    moved = Path(shutil.move(src, tmp_path / "elsewhere"))
    make_shards(config(moved, tmp_path / "two"), Here())
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_statistics_are_of_the_training_images(src: Path, tmp_path: Path) -> None:
    make_shards(config(src, tmp_path / "o", size=20), Here())
    decoded = [
        np.asarray(Image.open(io.BytesIO(data)), np.float64)
        for _, data in stored(tmp_path / "o", "train").values()
    ]
    stats = dataset.read_stats(tmp_path / "o")
    np.testing.assert_allclose(stats.mean, np.mean(decoded, axis=0), atol=1e-4)
    assert stats.num_images == COUNT
