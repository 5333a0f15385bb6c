"""What tests share: the real data where it is at hand, and one small sample dataset for all of
them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from handmade import picture, write_dataset

# a shell that runs the tests in the background has SIGINT ignored, and so would every program that
# they start
signal.signal(signal.SIGINT, signal.default_int_handler)

# OpenMP's threads wait for each other by spinning, and beside other processes on few cores that is
# most of what they do: a run of two epochs took 18 CPU seconds and 47 of the clock, and with this
# 11 and 30. Programs inherit it
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("GRATIS_DATA", ROOT.parent / "shared" / "data"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long forms run where -m names them alone; a default `-m 'not prove'` would be lost to any
    other -m."""
    if "prove" not in (config.getoption("markexpr") or ""):
        long = [item for item in items if item.get_closest_marker("prove")]
        items[:] = [item for item in items if item not in long]
        config.hook.pytest_deselected(items=long)


def real_data(name: str) -> Path:
    if not (DATA / name).is_dir():
        pytest.skip(f"needs {name} in the folder that GRATIS_DATA names")
    return DATA / name


@pytest.fixture(scope="session")
def tiny100() -> Path:
    """100 ImageNet classes at 64 px in the layout of the official archives."""
    return real_data("tiny100")


@pytest.fixture(scope="session")
def ilsvrc500() -> Path:
    """500 full-size ILSVRC photographs in class folders, without a validation split."""
    return real_data("ilsvrc500")


@pytest.fixture(scope="session")
def sample_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample dataset's archives, whole: about 1,200 images."""
    folder = tmp_path_factory.mktemp("sample") / "source"
    run("sample", "--out", str(folder))
    return folder


@pytest.fixture(scope="session")
def sample_shards(sample_source: Path) -> Path:
    """Shards of the sample dataset at 128 px, several to a split."""
    folder = sample_source.parent / "shards"
    run(
        "shards",
        "--src",
        str(sample_source),
        "--out",
        str(folder),
        *"--size 128 --samples-per-shard 128".split(),
    )
    return folder


def run(*arguments: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "gratis", *arguments],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=600,
    )


@pytest.fixture(scope="session")
def jpeg_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(
        tmp_path_factory.mktemp("loader") / "jpeg", [picture(i) for i in range(101)]
    )


@pytest.fixture(scope="session")
def raw_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(
        tmp_path_factory.mktemp("loader") / "raw", [picture(i) for i in range(101)], codec="raw"
    )
