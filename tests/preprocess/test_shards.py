"""From archives to a dataset and back: readable by others, the same bytes however it was made,
nothing bad in it."""

from __future__ import annotations

import fcntl
import gc
import hashlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from gratis import dataset
from gratis.atomic import sha256_file
from gratis.errors import GratisError
from gratis.events import EventTail
from gratis.preprocess.execution.workers import Worker
from gratis.preprocess.output.store import WORK
from gratis.preprocess.shards import ShardsConfig, make_shards
from gratis.preprocess.sources.open import open_source
from gratis.preprocess.stages.estimate import (
    Estimate,
    describe,
    estimate,
    estimate_apart,
    refuse_full_disk,
)
from gratis.preprocess.stages.plan import permutation
from gratis.preprocess.stages.shard import ShardTask

ROOT = Path(__file__).resolve().parent.parent.parent


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "gratis", *map(str, arguments)]


def preprocess(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )


def shards(src: Path, out: Path, *more: object) -> subprocess.CompletedProcess[str]:
    return preprocess(
        "shards", "--src", src, "--out", out, "--size", 64, "--samples-per-shard", 150, *more
    )


def digests(root: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in root.iterdir()}


@pytest.fixture(scope="module")
def small(sample_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("small") / "shards"
    done = shards(sample_source, out, "--workers", 1)
    assert done.returncode == 0, done.stderr
    return out


def samples(root: Path, split: str) -> Iterator[tuple[str, bytes, int]]:
    """Key, image bytes and label by tarfile, in order."""
    for path in sorted(root.glob(f"{split}-*.tar")):
        with tarfile.open(path) as archive:
            members = archive.getmembers()
            for picture, label in zip(members[::2], members[1::2], strict=True):
                files = archive.extractfile(picture), archive.extractfile(label)
                assert files[0]
                assert files[1]
                assert picture.name.rpartition(".")[0] == label.name.rpartition(".")[0]
                yield picture.name.rpartition(".")[0], files[0].read(), int(files[1].read())


@pytest.mark.parametrize("split", ["train", "val"])
def test_every_source_file_is_there_once(sample_source: Path, small: Path, split: str) -> None:
    listing = open_source(str(sample_source)).splits[split]
    expected = {item.key: item.label for item in map(listing.item, range(len(listing)))}
    written = [(key, label) for key, _, label in samples(small, split)]
    assert len(written) == len(expected)
    assert dict(written) == expected
    assert [key for key, _ in written] != sorted(expected)


@pytest.mark.parametrize("split", ["train", "val"])
def test_index_points_at_the_samples(small: Path, split: str) -> None:
    manifest, index = dataset.read_manifest(small), dataset.read_index(small, split)
    entry = manifest.splits[split]
    blobs = [(small / shard.name).read_bytes() for shard in entry.shards]
    for row, (_, data, label) in enumerate(samples(small, split)):
        offset, size = int(index.offset[row]), int(index.size[row])
        assert blobs[index.shard[row]][offset : offset + size] == data
        assert index.label[row] == label
    assert row + 1 == len(index.label) == entry.samples
    assert [shard.sha256 for shard in entry.shards] == [
        hashlib.sha256(blob).hexdigest() for blob in blobs
    ]
    assert entry.index_sha256 == sha256_file(small / dataset.index_name(split))
    assert manifest.stats_sha256 == sha256_file(small / dataset.STATS)


def test_nothing_but_the_dataset_remains(small: Path) -> None:
    kinds = {name.rpartition(".")[2] for name in digests(small)}
    assert kinds == {"tar", "idx", "npz", "json", "jsonl"}
    text = (small / dataset.MANIFEST).read_text()
    assert str(small) not in text
    assert os.uname().nodename not in text or len(os.uname().nodename) < 4


def test_webdataset_reads_them(small: Path) -> None:
    import webdataset  # here: it takes a second

    urls = [str(path) for path in sorted(small.glob("train-*.tar"))]
    with warnings.catch_warnings():
        # it leaves its files to the garbage collector
        warnings.simplefilter("ignore", ResourceWarning)
        reader = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)
        decoded = list(reader.decode("rgb8").to_tuple("jpg", "cls"))
        gc.collect()
    expected = list(samples(small, "train"))
    assert [label for _, label in decoded] == [label for _, _, label in expected]
    assert decoded[7][0].shape == (64, 64, 3)


def test_dali_reads_them_and_decodes_to_the_same_pixels(small: Path) -> None:
    """The check behind gratis.preprocess.stages.shard's verification: Pillow and DALI agree to the
    last bit on every sample."""
    fn = pytest.importorskip("nvidia.dali.fn")
    from nvidia.dali.pipeline import Pipeline

    paths = sorted(small.glob("val-*.tar"))
    pipeline = Pipeline(batch_size=20, num_threads=1, device_id=None)
    with pipeline:
        picture, label = fn.readers.webdataset(
            paths=[str(path) for path in paths],
            index_paths=[str(path.with_suffix(".idx")) for path in paths],
            ext=["jpg", "cls"],
        )
        pipeline.set_outputs(fn.decoders.image(picture), label)
    pipeline.build()
    expected = list(samples(small, "val"))
    for start in range(0, len(expected), 20):
        pictures, labels = pipeline.run()
        for k, (_, data, number) in enumerate(expected[start : start + 20]):
            assert bytes(np.asarray(labels[k])) == b"%d" % number
            assert (np.asarray(pictures[k]) == np.asarray(Pillow.open(io.BytesIO(data)))).all()


def test_idx_is_what_dali_s_own_tool_writes(small: Path, tmp_path: Path) -> None:
    tool = pytest.importorskip("wds2idx")
    with tool.IndexCreator(
        str(small / "train-00001.tar"), str(tmp_path / "idx"), verbose=False
    ) as creator:
        creator.create_index()
    assert (small / "train-00001.idx").read_text() == (tmp_path / "idx").read_text()


def test_statistics_equal_float64_over_the_decoded_samples(small: Path) -> None:
    pixels = np.stack(
        [np.asarray(Pillow.open(io.BytesIO(data))) for _, data, _ in samples(small, "train")]
    )
    stats = dataset.read_stats(small)
    flat = pixels.reshape(-1, 3).astype(np.float64)
    values, vectors = np.linalg.eigh(np.cov(flat.T, bias=True))
    np.testing.assert_allclose(stats.mean, pixels.mean(axis=0, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(stats.eigenvalues, values[::-1], rtol=1e-6)
    assert (np.abs((stats.eigenvectors * vectors[:, ::-1]).sum(axis=0)) > 1 - 1e-6).all()
    assert stats.num_images == 1000


def test_two_workers_write_the_same_bytes(sample_source: Path, small: Path, tmp_path: Path) -> None:
    assert shards(sample_source, tmp_path / "o", "--workers", 2).returncode == 0
    assert digests(tmp_path / "o") == digests(small)


def test_raw_codec(sample_source: Path, tmp_path: Path) -> None:
    out = tmp_path / "raw"
    assert shards(sample_source, out, "--codec", "raw").returncode == 0
    for key, data, _ in list(samples(out, "val"))[:5]:
        assert data.startswith(b"P6\n64 64\n255\n"), key
        assert len(data) == 13 + 64 * 64 * 3
    assert dataset.read_manifest(out).quality is None


def test_order_is_golden() -> None:
    """Not NumPy's to change: the order decides the bytes of every dataset."""
    assert permutation(10, 0, "train").tolist() == GOLDEN
    assert sorted(permutation(1000, 3, "val").tolist()) == list(range(1000))
    assert permutation(1000, 3, "val").tolist() != permutation(1000, 4, "val").tolist()


GOLDEN = [4, 8, 1, 6, 2, 7, 3, 9, 0, 5]


def start(src: Path, out: Path) -> subprocess.Popen[str]:
    arguments = (
        "shards",
        "--src",
        src,
        "--out",
        out,
        "--size",
        64,
        "--samples-per-shard",
        150,
        "--workers",
        2,
    )
    return subprocess.Popen(
        command(*arguments), cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def wait_for_work(out: Path) -> None:
    deadline = time.monotonic() + 60
    while not any(out.glob(".work/*.receipt.npz")) and time.monotonic() < deadline:
        time.sleep(0.01)


@pytest.mark.parametrize("kills", [3, pytest.param(30, marks=pytest.mark.prove)])
def test_killed_runs_end_in_the_same_bytes(
    sample_source: Path, small: Path, tmp_path: Path, kills: int
) -> None:
    """kill -9 at random moments: some before the first shard, some behind the last, most
    between."""
    out, rng = tmp_path / "o", random.Random(kills)
    for _ in range(kills):
        process = start(sample_source, out)
        time.sleep(rng.uniform(0.25, 2.5))
        process.kill()
        process.communicate(timeout=120)
        if (out / dataset.MANIFEST).exists() and not (out / WORK).exists():
            assert digests(out) == digests(small)
            shutil.rmtree(out)
    assert shards(sample_source, out).returncode == 0
    assert digests(out) == digests(small)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_in_one_line_and_the_work_is_kept(
    sample_source: Path, small: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "o"
    process = start(sample_source, out)
    wait_for_work(out)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert errors.strip().endswith("interrupted")
    receipts = {path.name: path.stat().st_mtime_ns for path in out.glob(".work/*.receipt.npz")}
    tars = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert receipts
    assert shards(sample_source, out).returncode == 0
    kept = [name.replace(".receipt.npz", ".tar") for name in receipts]
    assert all((out / name).stat().st_mtime_ns == tars[name] for name in kept)  # not made again
    assert digests(out) == digests(small)


def test_a_killed_worker_costs_nothing(sample_source: Path, small: Path, tmp_path: Path) -> None:
    psutil = pytest.importorskip("psutil")
    out = tmp_path / "o"
    process = start(sample_source, out)
    wait_for_work(out)
    children = [
        child
        for child in psutil.Process(process.pid).children()
        if "spawn_main" in " ".join(child.cmdline())
    ]
    assert children
    children[0].kill()
    assert process.communicate(timeout=120)[0]
    assert process.returncode == 0
    assert digests(out) == digests(small)


def folder_source(root: Path, count: int = 12) -> Path:
    for label in ("a", "b"):
        (root / "train" / label).mkdir(parents=True)
        for k in range(count):
            level = 20 * k + (label == "b")
            Pillow.new("RGB", (80 + k, 70), (level, 100, 50)).save(
                root / "train" / label / f"{k}.jpg"
            )
    return root


@pytest.mark.starts
def test_rejects_fail_the_run_unless_permitted(tmp_path: Path) -> None:
    src, out = folder_source(tmp_path / "src"), tmp_path / "o"
    (src / "train/a/3.jpg").write_bytes(b"")
    (src / "train/b/5.jpg").write_bytes((src / "train/b/5.jpg").read_bytes()[:400])
    failed = shards(src, out, "--max-rejects", 1)
    assert failed.returncode == 2
    assert "train/a/3.jpg (empty)" in failed.stderr
    assert "--max-rejects 2" in failed.stderr
    assert not (out / dataset.MANIFEST).exists()
    made = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert shards(src, out, "--max-rejects", 2).returncode == 0
    assert made == {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    manifest = dataset.read_manifest(out)
    assert manifest.splits["train"].samples == 22
    assert manifest.splits["train"].rejects == {"empty": 1, "truncated": 1}
    lines = [json.loads(line) for line in (out / dataset.REJECTS).read_text().splitlines()]
    assert {(line["key"], line["kind"]) for line in lines} == {
        ("a_3", "empty"),
        ("b_5", "truncated"),
    }
    assert shards(src, out, "--max-rejects", 2).returncode == 0


def test_a_second_run_does_nothing_and_another_is_refused(sample_source: Path, small: Path) -> None:
    before = digests(small)
    again = shards(sample_source, small)
    assert again.returncode == 0
    assert "already there" in again.stdout
    for arguments in (
        ("--seed", 1),
        ("--quality", 90),
        ("--codec", "raw"),
        ("--samples-per-shard", 149),
    ):
        other = shards(sample_source, small, *arguments)
        assert other.returncode == 2
        assert "another dataset" in other.stderr
        assert other.stderr.count("\n") == 1
    assert digests(small) == before


@pytest.mark.starts
def test_another_source_is_refused_with_both_fingerprints(tmp_path: Path) -> None:
    src, out = folder_source(tmp_path / "src"), tmp_path / "o"
    assert shards(src, out).returncode == 0
    first = open_source(str(src)).fingerprint
    (src / "train/a/0.jpg").rename(src / "train/a/zero.jpg")
    refused = shards(src, out)
    assert refused.returncode == 2
    assert first[:8] in refused.stderr
    assert open_source(str(src)).fingerprint[:8] in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ((), "no source: give --src FOLDER"),
        (("--src", "/nowhere/at/all"), "/nowhere/at/all"),
        (("--src", "{src}", "--out", "/proc/nothing"), "cannot write to /proc/nothing"),
        (("--src", "{src}", "--quality", 101), "--quality 101"),
        (("--src", "{src}", "--workers", 0), "--workers 0"),
        (("--src", "{src}", "--size", 1), "--size 1"),
        (("--src", "{src}", "--out", ""), "--out is empty"),
        (
            ("--src", "{src}", "--out", "http://127.0.0.1:1/shards"),
            "cannot open http://127.0.0.1:1/shards",
        ),
    ],
)
@pytest.mark.starts
def test_user_errors_are_one_line(tmp_path: Path, arguments: tuple[Any, ...], wanted: str) -> None:
    src = folder_source(tmp_path / "src", 1)
    done = preprocess("shards", *(str(a).format(src=src) for a in arguments))
    assert done.returncode == 2
    assert wanted in done.stderr
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_a_full_disk_is_one_line_and_nothing_is_lost(
    sample_source: Path, small: Path, tmp_path: Path
) -> None:
    """RLIMIT_FSIZE stands for the full disk: nothing has to be mounted, and writes fail in the same
    place."""
    out = tmp_path / "o"
    arguments = command(
        "shards", "--src", sample_source, "--out", out, "--size", 64, "--samples-per-shard", 150
    )
    limited = subprocess.run(
        ["bash", "-c", 'ulimit -f 500; exec "$@"', "bash", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert limited.returncode == 2
    assert "File too large" in limited.stderr
    assert "Traceback" not in limited.stderr
    assert not (out / dataset.MANIFEST).exists()
    assert shards(sample_source, out).returncode == 0
    assert digests(out) == digests(small)


def test_removed_output_is_one_line(sample_source: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    process = start(sample_source, out)
    wait_for_work(out)
    shutil.rmtree(out, ignore_errors=True)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "Traceback" not in errors
    assert str(out) in errors


def test_too_small_a_disk_is_refused_before_the_start(tmp_path: Path) -> None:
    with pytest.raises(GratisError, match="GB free"):
        refuse_full_disk(tmp_path / "not" / "yet", 1 << 60)
    refuse_full_disk(tmp_path, 1)


def test_dry_run_estimates_and_writes_nothing(
    sample_source: Path, small: Path, tmp_path: Path
) -> None:
    done = shards(sample_source, tmp_path / "o", "--dry-run", "--workers", 2)
    assert done.returncode == 0
    assert "1,200 images" in done.stdout
    assert not (tmp_path / "o").exists()
    train = ShardTask(
        out=str(small),
        split="train",
        number=0,
        size=64,
        codec="jpeg",
        quality=95,
        items=tuple(
            open_source(str(sample_source)).splits["train"].item(row) for row in range(0, 1000, 20)
        ),
    )
    actual = sum(path.stat().st_size for path in small.glob("*.tar"))
    assert estimate(1200, train).bytes == pytest.approx(actual, rel=0.15)
    size = re.search(r"about ([\d.]+) MB, ", done.stdout)
    assert size
    assert float(size[1]) > 1


def test_sizes_are_given_in_a_unit_that_fits(tmp_path: Path) -> None:
    with pytest.raises(
        GratisError, match=r"needs about 1000000\.0 GB and its disk has [\d.]+ [GM]B free"
    ):
        refuse_full_disk(tmp_path, 10**15)
    assert describe(Estimate(100, 3_100_000, 1.0), 1).startswith(
        "100 images: about 3.1 MB, 0 h 0 min"
    )
    one = describe(Estimate(1, 4_200, 0.01), 1)
    assert one.startswith("1 image: about 4.2 kB, 0 h 0 min on 1 worker (")
    assert one.endswith("measured here on 1)")


@pytest.mark.starts
def test_one_process_at_a_time(tmp_path: Path) -> None:
    src, out = folder_source(tmp_path / "src", 2), tmp_path / "o"
    (out / WORK).mkdir(parents=True)
    with (out / WORK / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        second = shards(src, out)
    assert second.returncode == 2
    assert "another process" in second.stderr
    assert shards(src, out).returncode == 0


@pytest.mark.parametrize("discard", [False, True])
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.starts
def test_what_another_run_publishes_meanwhile_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, discard: bool
) -> None:
    """A whole run of other settings fits between this one's look for a manifest and its lock."""
    src, out = folder_source(tmp_path / "src", 2), tmp_path / "o"

    def estimate_after_another_run(
        total: int, first: ShardTask, pool: list[Worker]
    ) -> Estimate | None:
        assert shards(src, out).returncode == 0
        before.update(digests(out))
        return estimate_apart(total, first, pool)

    before: dict[str, str] = {}
    monkeypatch.setattr("gratis.preprocess.shards.estimate_apart", estimate_after_another_run)
    with pytest.raises(GratisError, match="another dataset"):
        make_shards(ShardsConfig(src=str(src), out=str(out), size=32, workers=1, discard=discard))
    assert before
    assert digests(out) == before


@pytest.mark.starts
def test_events(tmp_path: Path) -> None:
    src = folder_source(tmp_path / "src")
    assert shards(src, tmp_path / "o", "--run-dir", tmp_path / "run").returncode == 0
    records = EventTail(tmp_path / "run" / "shards.jsonl").read()
    assert [records[0]["kind"], records[-1]["kind"]] == ["start", "end"]
    assert records[-1]["outcome"] == "finished"
    progress = [record for record in records if record["kind"] == "progress"]
    assert sum(record["images"] for record in progress) == 24
    assert progress[-1]["done"] == progress[-1]["total"] == 24
    sizes = sum(path.stat().st_size for path in src.glob("train/*/*"))
    assert sum(record["bytes_in"] for record in progress) == sizes


def test_an_earlier_copy_moves(small: Path, sample_source: Path, tmp_path: Path) -> None:
    """A dataset holds no path: a moved one is as whole as before."""
    moved = shutil.copytree(small, tmp_path / "moved")
    assert "already there" in shards(sample_source, moved).stdout
