"""The benchmark measures and reports; what it finds is not tested, for machines differ."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loader.bench", *arguments]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=ROOT, env=environment)


@pytest.mark.slow
def test_peers_and_stages_are_measured_in_one_run(sample_shards: Path) -> None:
    done = bench(str(sample_shards), "--rounds", "1", "--batches", "3", "--only", "ours", "dali", "webdataset")
    assert done.returncode == 0, done.stderr
    for name in ("ours", "dali", "webdataset"):
        row = re.search(rf"│ {name} .*", done.stdout)
        assert row, done.stdout
        rate = float(row[0].split("│")[2].split()[0].replace(",", ""))
        assert rate > 50
    for stage in ("read", "decode: DALI", "finish and hand-over", "whole"):
        assert f"│ {stage} " in done.stdout


def test_mistakes_are_one_line(raw_dataset: Path, tmp_path: Path) -> None:
    for arguments, message in (
        ([str(tmp_path)], "is no dataset"),
        ([str(raw_dataset)], "holds raw samples; the peers read JPEG"),
        ([str(raw_dataset), "--only", "ffcv"], "there is no peer 'ffcv'"),
    ):
        done = bench(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
