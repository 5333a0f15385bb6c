"""What several tests of the paper's parts begin with, made once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from once import once
from small import gratis


@pytest.fixture(scope="session")
def shards32(sample_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    def make(out: Path) -> None:
        done = gratis("shards", "--src", str(sample_source), "--out", str(out), "--size", "32")
        assert done.returncode == 0, done.stderr

    return once(tmp_path_factory, "shards32", make)


@pytest.fixture(scope="session")
def ablated(sample_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of runs after an ablation of one switch and one seed."""

    def make(runs: Path) -> None:
        done = gratis(
            "ablate",
            "--shards",
            str(sample_shards),
            "--runs",
            str(runs),
            *(
                "--fields overlap --seeds 0 --gpus 1 --recipe sample --width 0.0625 --epochs 1 "
                "--batch 100"
            ).split(),
        )
        assert done.returncode == 0, done.stderr
        assert Path(done.stdout.splitlines()[-1]).name == "ablation.md"

    # a copy for each worker: tests draw into the runs
    own = tmp_path_factory.mktemp("runs")
    return shutil.copytree(once(tmp_path_factory, "ablated", make), own, dirs_exist_ok=True)
