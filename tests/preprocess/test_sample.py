"""The drawn dataset: the same bytes for any number of workers, official in form, of classes that
colour does not separate."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import resource
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from gratis.errors import GratisError
from gratis.preprocess.sample import SampleConfig, make_sample
from gratis.preprocess.shapes import CLASSES, draw
from gratis.preprocess.sources.open import open_source
from gratis.preprocess.sources.reader import ImageReader

ROOT = Path(__file__).resolve().parent.parent.parent


def digests(root: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in root.iterdir()}


@pytest.mark.starts
def test_workers_do_not_matter_and_the_seed_does(tmp_path: Path) -> None:
    for name, seed, workers in (("a", 1, 1), ("b", 1, 2), ("c", 2, 2)):
        make_sample(
            SampleConfig(
                out=tmp_path / name, seed=seed, train_per_class=4, val_per_class=2, workers=workers
            )
        )
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert digests(tmp_path / "a") != digests(tmp_path / "c")


def test_counts_sizes_and_greyscale(sample_source: Path) -> None:
    source = open_source(str(sample_source))
    assert not source.skipped
    assert np.bincount(source.splits["train"].label).tolist() == [100] * 10
    assert np.bincount(source.splits["val"].label).tolist() == [20] * 10
    reader, train = ImageReader(), source.splits["train"]
    pictures = [Pillow.open(io.BytesIO(reader.read(train.item(row)))) for row in range(0, 1000, 5)]
    assert len({picture.size for picture in pictures}) > 150
    assert {picture.mode for picture in pictures} == {"RGB", "L"}


@pytest.mark.starts
def test_ctrl_c_works_again_where_no_process_could_start(tmp_path: Path) -> None:
    # imports all it needs
    make_sample(SampleConfig(out=tmp_path / "a", train_per_class=1, val_per_class=1, workers=1))
    before, (soft, hard) = (
        signal.getsignal(signal.SIGINT),
        resource.getrlimit(resource.RLIMIT_NOFILE),
    )
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(GratisError, match="Too many open files"):
            make_sample(
                SampleConfig(out=tmp_path / "b", train_per_class=1, val_per_class=1, workers=1)
            )
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        after = signal.signal(signal.SIGINT, before)
    assert after == before


@pytest.mark.slow
def test_mean_colour_says_nothing() -> None:
    """A linear classifier on mean, squared and crossed colour of 100 + 40 pictures a class stays
    near chance."""
    rng = np.random.default_rng(5)
    labels = np.tile(np.arange(10), 140)
    means = np.array([draw(int(label), rng).mean(axis=(0, 1)) / 255 - 0.5 for label in labels])
    features = np.concatenate(
        [np.ones((len(means), 1)), means, means**2, means * means[:, [1, 2, 0]]], axis=1
    )
    weights, *_ = np.linalg.lstsq(features[:1000], np.eye(10)[labels[:1000]], rcond=None)
    accuracy = ((features[1000:] @ weights).argmax(axis=1) == labels[1000:]).mean()
    assert accuracy < 0.2


def test_classes_differ_in_shape() -> None:
    """The same random numbers, another label: the figure changes, and covers a fair part of the
    picture."""
    for label in range(len(CLASSES)):
        one = draw(label, np.random.default_rng(3)).astype(int)
        other = draw((label + 1) % 10, np.random.default_rng(3)).astype(int)
        assert one.shape == other.shape
        assert (np.abs(one - other).max(axis=2) > 30).mean() > 0.02


def test_again_draws_nothing_and_other_settings_are_refused(sample_source: Path) -> None:
    def written() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in sample_source.iterdir()}

    before, since = digests(sample_source), written()
    done = subprocess.run(
        [sys.executable, "-m", "gratis", "sample", "--out", str(sample_source)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    assert written() == since
    assert "already there" in done.stdout
    with pytest.raises(GratisError, match="other settings"):
        make_sample(SampleConfig(out=sample_source, seed=9))
    assert digests(sample_source) == before


def test_devkit_is_dated_nowhere(sample_source: Path) -> None:
    with tarfile.open(sample_source / "ILSVRC2012_devkit_t12.tar.gz") as kit:
        assert all(member.mtime == 0 for member in kit)
        meta = kit.extractfile("ILSVRC2012_devkit_t12/data/meta.mat")
        assert meta
        assert meta.read(116).strip() == b"MATLAB 5.0 MAT-file"


def levels(config: SampleConfig, labels: list[int]) -> list[bytes]:
    """Pictures whose grey level says the label, and whose width which of all they are."""
    files = []
    for number, label in enumerate(labels):
        file = io.BytesIO()
        Pillow.new("L", (10 + number, 8), 20 * label).save(file, "PNG")
        files.append(file.getvalue())
    return files


def test_every_picture_is_listed_under_the_class_it_was_drawn_as(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the reader of the official archives."""
    out = tmp_path / "s"
    config = SampleConfig(out=out, train_per_class=3, val_per_class=2, seed=5)
    make_sample(config, levels)
    assert capsys.readouterr().out == f"{out}: 50 images of 10 classes drawn\n"
    source = open_source(str(out))
    assert [entry.wnid for entry in source.classes] == [f"n{k:08d}" for k in range(1, 11)]
    assert [entry.words for entry in source.classes] == [words for words, _ in CLASSES]
    ids = [entry.ilsvrc_id for entry in source.classes]
    assert sorted(map(str, ids)) == sorted(map(str, range(1, 11)))
    assert ids != sorted(ids, key=str)
    widths, orders = [], {}
    for split, count in (("train", 30), ("val", 20)):
        listing = source.splits[split]
        assert len(listing) == count
        orders[split] = listing.label.tolist()
        with ImageReader() as reader:
            for row in range(count):
                item = listing.item(row)
                picture = Pillow.open(io.BytesIO(reader.read(item)))
                assert picture.getpixel((0, 0)) == 20 * item.label
                widths.append(picture.width)
    assert sorted(widths) == [*range(10, 60)]
    assert orders["train"] == [k // 3 for k in range(30)]
    assert sorted(orders["val"]) == [k // 2 for k in range(20)] != orders["val"]
    first = source.splits["train"].item(0).name, source.splits["val"].item(0).name
    assert first == ("n00000001_0.JPEG", "ILSVRC2012_val_00000001.JPEG")


def test_archives_that_are_there_stay_or_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "s"
    config = SampleConfig(out=out, train_per_class=1, val_per_class=1)
    make_sample(config, levels)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    capsys.readouterr()
    assert len(before) == 4
    make_sample(dataclasses.replace(config, workers=3), lambda *_: [])
    assert capsys.readouterr().out == f"{out} is already there\n"
    for fields in ({"seed": 1}, {"train_per_class": 2}, {"val_per_class": 2}):
        with pytest.raises(GratisError) as caught:
            make_sample(dataclasses.replace(config, **fields), lambda *_: [])  # type: ignore[arg-type]
        assert str(caught.value) == (
            f"{out} holds a sample of other settings; choose another --out or remove it"
        )
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    for name in before:  # half a sample is none, and is drawn again
        (out / name).unlink()
        make_sample(config, levels)
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (tmp_path / "file").touch()
    with pytest.raises(GratisError, match=r"^cannot write to .*/file/s: .*; choose another --out$"):
        make_sample(dataclasses.replace(config, out=tmp_path / "file" / "s"), levels)


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_a_seed_is_of_63_bits(seed: int) -> None:
    with pytest.raises(GratisError, match=rf"^--seed {seed}: between 0 and 2\*\*63 - 1$"):
        SampleConfig(seed=seed)
    SampleConfig(seed=2**63 - 1)
