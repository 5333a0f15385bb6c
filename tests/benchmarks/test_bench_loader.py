"""The benchmark measures and reports; what it finds is not tested, for machines differ."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from benchmarks.loader.bench import main
from benchmarks.loader.peers.common import encoded
from benchmarks.loader.peers.datasets import IMAGES, QUALITY, write_datasets
from benchmarks.loader.tables import whole_rounds
from gratis.dataset import read_manifest
from gratis.errors import guard
from gratis.loader import Loader, LoaderConfig

ROOT = Path(__file__).resolve().parents[2]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gratis", "bench", "loader", *arguments]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=900, cwd=ROOT, env=environment
    )


@pytest.mark.slow
def test_peers_and_stages_are_measured_in_one_run(sample_shards: Path) -> None:
    names = ("dali", "ours-raw")
    numbers = "--rounds 1 --batches 3 --works crop bfloat16 --only".split()
    done = bench(str(sample_shards), *numbers, *names)
    assert done.returncode == 0, done.stderr
    for name in ("ours", *names):
        row = re.search(rf"│ {name} .*", done.stdout)
        assert row, done.stdout
        rate = float(row[0].split("│")[2].split()[0].replace(",", ""))
        assert rate > 5
    assert len(re.findall(r"│ ours .*│ 1\.00 \[1\.00\.\.1\.00\] │", done.stdout)) == 2
    for stage in ("read", "decode, finish and hand-over", "whole", "beside it, DALI's decode"):
        assert f"│ {stage} " in done.stdout


def test_the_images_are_the_same_in_every_form(sample_shards: Path, tmp_path: Path) -> None:
    """Decoded by Pillow; standard and fitted Huffman tables differ in length alone; quality 90 is
    near."""
    write_datasets(sample_shards, tmp_path, {"usual", "fitted", "q90", "raw"})
    low = list(islice(encoded(tmp_path / "q90"), 0, IMAGES, 500))
    usual, fitted, raw = (
        list(islice(encoded(tmp_path / form), 0, IMAGES, 500))
        for form in ("usual", "fitted", "raw")
    )
    originals = [data for _, data in islice(encoded(sample_shards), 1000)][::500]
    for row, ((label, a), (same, b), (_, c)) in enumerate(zip(usual, fitted, raw, strict=True)):
        assert label == same
        assert len(b) < len(a)
        assert len(low[row][1]) < 0.9 * len(b)
        assert np.abs(pixels(low[row][1]).astype(int) - pixels(a)).mean() < 4
        np.testing.assert_array_equal(pixels(a), pixels(b))
        np.testing.assert_array_equal(pixels(c), pixels(originals[row % 2]))
    assert read_manifest(tmp_path / "q90").quality == QUALITY
    for form in ("usual", "fitted"):
        assert len(list((tmp_path / form).glob("*.idx"))) == 5
        with Loader(tmp_path / form, "train", LoaderConfig(batch_size=512, crop=112)) as loader:
            assert (
                loader.coverage(np.concatenate([batch.ids for batch in loader]))["seen"] == IMAGES
            )
    assert len(list((tmp_path / "folder").glob("*/*.jpg"))) == IMAGES


def pixels(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_a_run_that_was_not_finished_counts_its_whole_rounds(tmp_path: Path) -> None:
    """Here two: the third has no measurement of dali yet."""
    costs = {"ours": [0.1, 0.2, 0.3], "dali": [0.4, 0.5]}
    lines = [
        json.dumps({"round": number, "work": "crop", "name": name, "cost": cost})
        for name, its in costs.items()
        for number, cost in enumerate(its, 1)
    ]
    (tmp_path / "records").write_text("\n".join(lines))
    records, count = whole_rounds(tmp_path / "records")
    assert count == 2
    assert [line["cost"] for line in records["crop", "ours"]] == [0.1, 0.2]
    assert [line["cost"] for line in records["crop", "dali"]] == [0.4, 0.5]


def test_mistakes_are_one_line(
    raw_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Asked in this process: another would take seconds to say the same."""
    for arguments, message in (
        ([str(tmp_path)], "is no dataset"),
        ([str(raw_dataset)], "holds raw samples; the peers read JPEG"),
        (
            [str(raw_dataset), "--only", "nobody"],
            "there is no peer 'nobody'; there are ours, ours-usual, dali",
        ),
    ):
        code = guard(partial(main, arguments))
        out, err = capsys.readouterr()
        assert (code, out) == (2, "")
        assert message in err
        assert len(err.strip().splitlines()) == 1
