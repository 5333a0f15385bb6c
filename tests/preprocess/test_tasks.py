"""The tasks of a batch scheduler, their merge, and what is limited, checked or discarded on
request."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gratis import dataset
from gratis.errors import GratisError
from gratis.preprocess.commands import as_array_task
from gratis.preprocess.merge import MergeConfig, merge_tasks
from gratis.preprocess.output.store import LocalStore
from gratis.preprocess.shards import ShardsConfig, make_shards
from gratis.preprocess.sources.imagenet import ARCHIVE_MD5, DEVKIT, TRAIN, VAL, check_md5
from gratis.preprocess.sources.open import open_source
from gratis.preprocess.stages.ownership import discard, foreign_files

ROOT = Path(__file__).resolve().parent.parent.parent


def config(src: Path, out: Path, **more: object) -> ShardsConfig:
    return ShardsConfig(
        src=str(src),
        out=str(out),
        size=32,
        samples_per_shard=40,
        limit_per_class=20,
        workers=1,
        **more,
    )  # type: ignore[arg-type]


def digests(root: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in root.iterdir()}


@pytest.fixture(scope="module")
def whole(sample_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "shards"
    make_shards(config(sample_source, out))
    return out


def test_tasks_and_merge_write_the_same_bytes(
    sample_source: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "o"
    for task in (2, 0):
        assert make_shards(config(sample_source, out, task_id=task, num_tasks=3)) is None
    assert not (out / dataset.MANIFEST).exists()
    with pytest.raises(
        GratisError, match=r"lacks 3 of 10 shards: train-00001, train-00004, val-00002"
    ):
        merge_tasks(MergeConfig(out=str(out)))
    make_shards(config(sample_source, out, task_id=1, num_tasks=3))
    merge_tasks(MergeConfig(out=str(out)))
    assert digests(out) == digests(whole)
    merge_tasks(MergeConfig(out=str(out)))  # again: nothing to do


def test_slurm_s_array_is_understood(sample_source: Path, whole: Path, tmp_path: Path) -> None:
    """Two tasks at the same time, numbered from 1, as `sbatch --array=1-2` starts them."""
    out = tmp_path / "o"
    array = {"SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "1"}
    command = [
        sys.executable,
        *"-m gratis shards --src".split(),
        str(sample_source),
        "--out",
        str(out),
        *"--size 32 --samples-per-shard 40 --limit-per-class 20 --workers 1".split(),
    ]
    both = [
        subprocess.Popen(
            command, cwd=ROOT, env=os.environ | array | {"SLURM_ARRAY_TASK_ID": number}
        )
        for number in ("1", "2")
    ]
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    done = subprocess.run(
        [sys.executable, "-m", "gratis", "merge", str(out)], cwd=ROOT, timeout=60, check=False
    )
    assert done.returncode == 0
    assert digests(out) == digests(whole)


@pytest.mark.parametrize(
    ("numbers", "number", "task"),
    [
        (range(1, 5), 1, 0),
        (range(1, 5), 4, 3),
        (range(0, 7, 2), 2, 1),
        (range(0, 7, 2), 6, 3),
        (range(5, 6), 5, 0),
    ],
)
def test_tasks_of_an_array_are_numbered_from_0(
    numbers: range, number: int, task: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_array(monkeypatch, numbers, number, numbers.step)
    result = as_array_task(ShardsConfig(src="s"))
    assert (result.task_id, result.num_tasks) == (task, len(numbers))


@pytest.mark.parametrize("number", [1, 3, 7])
def test_an_array_with_gaps_is_an_error(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    in_array(monkeypatch, [1, 3, 7], number, 1)
    with pytest.raises(
        GratisError,
        match=r"gaps \(SLURM_ARRAY_TASK_COUNT=3 numbers from 1 to 7 .*take --array=0-2, or",
    ):
        as_array_task(ShardsConfig(src="s"))
    given = ShardsConfig(src="s", task_id=1, num_tasks=9)
    assert as_array_task(given) == given


def in_array(
    monkeypatch: pytest.MonkeyPatch, numbers: Sequence[int], number: int, step: int
) -> None:
    """The variables that sbatch documents for the tasks of `--array`."""
    of = {
        "ID": number,
        "COUNT": len(numbers),
        "MIN": min(numbers),
        "MAX": max(numbers),
        "STEP": step,
    }
    for name, value in of.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))


def test_one_task_of_one_publishes(sample_source: Path, whole: Path, tmp_path: Path) -> None:
    """How a program that starts the shard stage keeps a batch scheduler's array out of it."""
    make_shards(config(sample_source, tmp_path / "o", task_id=0, num_tasks=1))
    assert digests(tmp_path / "o") == digests(whole)


def test_tasks_of_other_settings_are_refused(sample_source: Path, tmp_path: Path) -> None:
    make_shards(config(sample_source, tmp_path / "o", task_id=0, num_tasks=9))
    with pytest.raises(GratisError, match="seed 0 there and 1 asked for"):
        make_shards(config(sample_source, tmp_path / "o", task_id=1, num_tasks=9, seed=1))
    with pytest.raises(GratisError, match="no work"):
        merge_tasks(MergeConfig(out=str(tmp_path / "none")))
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_ray_with_a_node_killed_writes_the_same_bytes(sample_source: Path, tmp_path: Path) -> None:
    """A real cluster of two nodes on this machine; one dies while shards are being made."""
    pytest.importorskip("ray", reason="needs ray")
    make_shards(
        ShardsConfig(
            src=str(sample_source), out=str(tmp_path / "local"), size=64, samples_per_shard=100
        )
    )
    done = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).with_name("ray_cluster.py")),
            str(sample_source),
            str(tmp_path / "ray"),
        ],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    killed = re.search(r"killed with (\d+) receipts", done.stdout)
    assert killed
    assert 4 <= int(killed[1]) < 12  # of 12: there was work left to do
    assert digests(tmp_path / "ray") == digests(tmp_path / "local")


@pytest.mark.parametrize(
    "more",
    [
        {"task_id": 1},
        {"num_tasks": 1},
        {"task_id": 3, "num_tasks": 3},
        {"task_id": 0, "num_tasks": 2, "discard": True},
    ],
)
def test_refuses_half_a_task(more: dict[str, int]) -> None:
    with pytest.raises(GratisError, match="task"):
        config(Path("src"), Path("out"), **more)


def test_unfinished_work_is_discarded_on_request(
    sample_source: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "o"
    make_shards(config(sample_source, out, task_id=0, num_tasks=2, seed=5))
    mine = (out / "mine.txt", out / "train-90000.tar")  # the plan knows neither
    for path in mine:
        path.write_text("kept")
    with pytest.raises(GratisError, match="--discard"):
        make_shards(config(sample_source, out))
    make_shards(config(sample_source, out, discard=True))
    for path in mine:
        assert path.read_text() == "kept"
        path.unlink()
    assert digests(out) == digests(whole)


def test_after_a_discard_too_no_file_of_others_is_written_over(
    sample_source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "o"
    make_shards(config(sample_source, out, task_id=0, num_tasks=2))
    mine = out / "train-00030.tar"  # which smaller shards would come to
    mine.write_text("kept")
    with pytest.raises(GratisError, match=r"holds train-00030\.tar"):
        make_shards(
            dataclasses.replace(config(sample_source, out, discard=True), samples_per_shard=1)
        )
    assert mine.read_text() == "kept"


def test_a_discard_that_was_killed_is_known_for_ours(
    sample_source: Path, whole: Path, tmp_path: Path
) -> None:
    class Killed(LocalStore):
        left = 0

        def remove(self, name: str) -> None:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            super().remove(name)

    out, kills = tmp_path / "o", 0
    make_shards(config(sample_source, out, task_id=0, num_tasks=2, seed=5))
    for store in [Killed(str(out)) for _ in range(100)]:
        store.left = 2
        try:
            discard(store)
        except KeyboardInterrupt:
            kills += 1
            assert foreign_files(store) == []
        else:
            break
    assert kills > 3
    assert [path.name for path in out.rglob("*") if path.is_file()] == ["lock"]
    make_shards(config(sample_source, out))
    assert digests(out) == digests(whole)


@pytest.mark.parametrize(
    "name", ["train-00000.tar", "val-123456.idx", "stats.npz", "train.index.npz", "rejects.jsonl"]
)
def test_files_of_others_stay_as_they_are(sample_source: Path, tmp_path: Path, name: str) -> None:
    """WebDataset tars are named like ours, and a folder of them is no dataset of ours."""
    out = tmp_path / "o"
    out.mkdir()
    (out / name).write_text("somebody else's")
    (out / "notes").write_text("too")
    before = digests(out)
    for more in ({}, {"discard": True}, {"dry_run": True}, {"task_id": 1, "num_tasks": 2}):
        with pytest.raises(
            GratisError, match=f"o holds {name}: .*; choose another OUT, or move them away"
        ):
            make_shards(config(sample_source, out, **more))
        assert digests(out) == before  # which would not read a work folder
    discard(LocalStore(str(out)))
    assert digests(out) == before


@pytest.mark.parametrize("discards", [False, True])
def test_a_dataset_without_its_manifest_is_made_again(
    sample_source: Path, whole: Path, tmp_path: Path, discards: bool
) -> None:
    """Of the same names, size and codec, and signed. One tar that is not, or one too many, and
    nothing is touched."""
    out = Path(shutil.copytree(whole, tmp_path / "o"))
    (out / dataset.MANIFEST).unlink()
    again = config(sample_source, out, discard=discards)
    for name, data in (
        ("train-00001.tar", (out / "val-00000.tar").read_bytes().replace(b"gratis", b"\0" * 6)),
        ("train-90000.tar", (out / "train-00001.tar").read_bytes()),
    ):
        before = digests(out)
        kept = (out / name).read_bytes() if (out / name).exists() else None
        (out / name).write_bytes(data)
        with pytest.raises(GratisError, match=r"o holds .*; choose another OUT, or move them away"):
            make_shards(again)
        (out / name).unlink() if kept is None else (out / name).write_bytes(kept)
        assert digests(out) == before
    before = digests(out)
    for other, name in (({"size": 16}, "stats.npz"), ({"codec": "raw"}, "train-00000.tar")):
        with pytest.raises(
            GratisError, match=rf"o holds {name}: .*; choose another OUT, or move them away"
        ):
            make_shards(dataclasses.replace(again, **other))
        assert digests(out) == before
    make_shards(again)
    assert digests(out) == digests(whole)


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EACCES])
def test_a_disk_without_locks_is_one_line(
    sample_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    def refused(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr("fcntl.flock", refused)
    messages = {
        errno.ENOLCK: r"o cannot be locked \(No locks available\)",
        errno.EACCES: "another process is making",
    }
    with pytest.raises(GratisError, match=messages[error]):
        make_shards(config(sample_source, tmp_path / "o"))


def test_files_of_others_at_a_url_stay_as_they_are(sample_source: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    place = fsspec.filesystem("memory")
    place.pipe_file("/bucket/train-00003.tar", b"somebody else's")
    for discarding in (False, True):
        wanted = dataclasses.replace(
            config(sample_source, Path("o"), discard=discarding), out="memory://bucket"
        )
        with pytest.raises(GratisError, match=r"memory://bucket holds train-00003\.tar: "):
            make_shards(wanted)
    assert place.find("/bucket") == ["/bucket/train-00003.tar"]
    assert place.cat_file("/bucket/train-00003.tar") == b"somebody else's"


def test_a_published_dataset_is_never_discarded(sample_source: Path, whole: Path) -> None:
    before = digests(whole)
    with pytest.raises(GratisError, match="another dataset"):
        make_shards(config(sample_source, whole, discard=True, seed=5))
    assert digests(whole) == before


def test_limits_take_the_first(sample_source: Path) -> None:
    source = open_source(str(sample_source))
    few = source.limited(3, 7)
    assert [c.wnid for c in few.classes] == [c.wnid for c in source.classes[:3]]
    for split, listing in few.splits.items():
        assert np.bincount(listing.label).tolist() == [7, 7, 7]
        everything = [source.splits[split].item(row) for row in range(len(source.splits[split]))]
        expected = [
            item for label in range(3) for item in [i for i in everything if i.label == label][:7]
        ]
        taken = [listing.item(row) for row in range(len(listing))]
        assert sorted(taken) == sorted(expected)
    assert few.fingerprint != source.fingerprint


def test_md5_is_held_against_the_published_ones(sample_source: Path) -> None:
    right = {
        name: hashlib.md5((sample_source / name).read_bytes()).hexdigest()
        for name in (TRAIN, VAL, DEVKIT)
    }
    check_md5(str(sample_source), right)
    with pytest.raises(
        GratisError, match=rf"{VAL} has md5 {right[VAL]}, the published one is {'0' * 32}"
    ):
        check_md5(str(sample_source), right | {VAL: "0" * 32})
    assert ARCHIVE_MD5[TRAIN] == "1d675b47d978889d74fa0da5fadfb00e"
    with pytest.raises(GratisError, match=ARCHIVE_MD5[TRAIN]):
        make_shards(config(sample_source, Path("unused"), check_md5=True))


def archive(path: Path, files: list[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def pictures(shards: Path, split: str) -> dict[str, tuple[bytes, bytes]]:
    images = {}
    for path in sorted(shards.glob(f"{split}-*.tar")):
        with tarfile.open(path) as tar:
            blobs = {
                member.name: file.read() for member in tar if (file := tar.extractfile(member))
            }
        for name, data in blobs.items():
            if name.endswith(".jpg"):
                images[name[:-4]] = (data, blobs[name[:-4] + ".cls"])
    return images


def test_a_dataset_is_sharded_again(whole: Path, tmp_path: Path) -> None:
    """Another size, another cut: the same keys, labels and classes, read from the first one's
    tars."""
    again = ShardsConfig(
        src=str(whole), out=str(tmp_path / "o"), size=16, samples_per_shard=90, workers=1
    )
    manifest = make_shards(again)
    assert manifest
    assert manifest.classes == dataset.read_manifest(whole).classes
    assert len(manifest.splits["train"].shards) == 3
    for split in ("train", "val"):
        old, new = pictures(whole, split), pictures(tmp_path / "o", split)
        assert {key: label for key, (_, label) in old.items()} == {
            key: label for key, (_, label) in new.items()
        }


def test_tars_of_others_are_read(whole: Path, tmp_path: Path) -> None:
    """Labels first, as webdataset's writer puts them; and img2dataset's: a label in JSON, captions,
    no .cls."""
    samples = list(pictures(whole, "train").items())[:12]
    src = tmp_path / "src"
    src.mkdir()
    first = [
        (f"{key}.{kind}", data)
        for key, (jpg, cls) in samples[:6]
        for kind, data in (("cls", cls), ("jpg", jpg))
    ]
    second = []
    for key, (jpg, cls) in samples[6:]:
        facts = json.dumps({"key": key, "label": int(cls), "status": "success"}).encode()
        second += [(f"{key}.jpg", jpg), (f"{key}.json", facts), (f"{key}.txt", b"a caption")]
    archive(src / "00000.tar", first)
    archive(src / "00001.tar", second)
    archive(
        src / "val-0.tar", [("v.jpg", samples[0][1][0]), ("v.cls", b"3"), ("w.txt", b"no image")]
    )
    source = open_source(str(src))
    labels = {
        source.splits["train"].item(row).key: int(source.splits["train"].label[row])
        for row in range(12)
    }
    assert labels == {key: int(cls) for key, (_, cls) in samples}
    assert source.splits["val"].label.tolist() == [3]
    assert not source.skipped
    assert source.notes == (
        f"passed over samples without an image: 1, the first in {src / 'val-0.tar'}: w.txt",
    )
    wnids = [c.wnid for c in source.classes]
    assert wnids == sorted(wnids)


@pytest.mark.parametrize("text", [b"3", b"03", b"3\n", b" 0003 "])
def test_a_label_is_digits(tmp_path: Path, text: bytes) -> None:
    archive(tmp_path / "x.tar", [("a.jpg", b"x"), ("a.cls", text)])
    assert open_source(str(tmp_path)).splits["train"].label.tolist() == [3]


@pytest.mark.starts
def test_one_image_is_named_in_the_singular(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "src" / "train" / "a"
    folder.mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(folder / "1.png")
    make_shards(
        ShardsConfig(src=str(tmp_path / "src"), out=str(tmp_path / "o"), size=16, workers=1)
    )
    assert capsys.readouterr().out.endswith("o: 1 train image of 1 class, 16 px, in 1 shard\n")


def test_a_sample_s_image_is_the_one_named_plainly(tmp_path: Path) -> None:
    """As a mask lies beside it, before or behind; the only one may be named as it likes."""
    samples = [("depth.png", "cls", "jpg"), ("jpg", "cls", "seg.png"), ("cls", "left.JPG")]
    files = [(f"{k}.{kind}", b"1") for k, kinds in enumerate(samples) for kind in kinds]
    archive(tmp_path / "x.tar", files)
    train = open_source(str(tmp_path)).splits["train"]
    assert [train.item(row).name for row in range(3)] == ["0.jpg", "1.jpg", "2.left.JPG"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([("a.jpg", b"x")], "no label"),
        ([("a.jpg", b"x"), ("a.cls", b"cat")], "'cat'"),
        ([("a.jpg", b"x"), ("a.cls", b"9" * 5000)], "'99999"),
        ([("a.jpg", b"x"), ("a.cls", b"-1")], "'-1'"),
        ([("a.jpg", b"x"), ("a.cls", b"100000")], "'100000'"),
        ([("a.jpg", b"x"), ("a.json", b'{"label": true}')], "'True'"),
        ([("a.jpg", b"x"), ("a.json", b"[" * 60_000)], "no label"),
        (
            [
                ("a.jpg", b"x"),
                ("a.cls", b"1"),
                ("b.jpg", b"x"),
                ("b.cls", b"1"),
                ("a.jpg", b"y"),
                ("a.cls", b"2"),
            ],
            "share the key 'a_",
        ),
        (
            [("a.jpg", b"x"), ("a.png", b"y"), ("a.cls", b"1")],
            "sample 'a' has 2 images, a.jpg and a.png; leave one",
        ),
        (
            [("a.1.png", b"y"), ("a.0.png", b"x"), ("a.cls", b"1")],
            "2 images, a.0.png and a.1.png; leave one, or give",
        ),
    ],
)
def test_refuses_tars_without_labels_or_with_a_key_twice(
    tmp_path: Path, files: list[tuple[str, bytes]], message: str
) -> None:
    archive(tmp_path / "x.tar", files)
    with pytest.raises(GratisError, match=message):
        open_source(str(tmp_path))
