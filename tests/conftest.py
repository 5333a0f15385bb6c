"""What tests share: the real data where it is at hand, and one small sample dataset for all of
them."""

from __future__ import annotations

import gc
import multiprocessing.util
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from handmade import FEW, picture, write_dataset
from once import once

# a shell that runs the tests in the background has SIGINT ignored, and so would every program that
# they start
signal.signal(signal.SIGINT, signal.default_int_handler)

# OpenMP's threads wait for each other by spinning, and beside other processes on few cores that is
# most of what they do: a run of two epochs took 18 CPU seconds and 47 of the clock, and with this
# 11 and 30. Programs inherit it
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("GRATIS_DATA", ROOT.parent / "shared" / "data"))


# fixtures that start a process: a test that uses one is marked `starts`
STARTING = {"sample_source", "sample_shards", "shards32", "ablated"}
MAY_START = ("starts", "slow", "prove", "gpu")
PROCESSES = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.exec", "os.system"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks `starts` by fixtures. Long forms run where -m names them alone; a default
    `-m 'not prove'` would be lost to any other -m."""
    for item in items:
        if STARTING & set(getattr(item, "fixturenames", ())):
            item.add_marker("starts")
    if "prove" not in (config.getoption("markexpr") or ""):
        long = [item for item in items if item.get_closest_marker("prove")]
        items[:] = [item for item in items if item not in long]
        config.hook.pytest_deselected(items=long)


gc.disable()  # until all modules are imported, of which nothing is garbage


def pytest_collection_finish() -> None:
    leave_out_of_collections()
    gc.enable()


def leave_out_of_collections() -> None:
    """Modules and tests stay to the end: a test that asks for a garbage collection, as many of
    the loader's do, need not look through them. It took 0.3 s each time, and takes 0.02."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)  # without pytest-xdist all else works
def pytest_xdist_auto_num_workers() -> int:
    """One more than cores: many tests wait for the programs that they start."""
    return min(8, len(os.sched_getaffinity(0)) + 1)


class PureTests:
    """While `pure` is set, as in all that `make quick` runs, a process that this one starts is
    noted in `started`, and refused."""

    def __init__(self) -> None:
        self.pure, self.started = False, list[str]()
        sys.addaudithook(self._audit)
        multiprocessing.util.spawnv_passfds = self._audited(multiprocessing.util.spawnv_passfds)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.pure and event in PROCESSES:
            self.started.append(f"{event} {arguments}"[:200])
            raise RuntimeError(f"{event} in a test without the mark `starts`")

    def _audited(self, spawn: Callable[..., int]) -> Callable[..., int]:
        """multiprocessing's start of a process, which raises no event."""

        def audited(path: bytes, *arguments: Any) -> int:
            self._audit("subprocess.Popen", (path, *arguments))
            return spawn(path, *arguments)

        return audited


PURE = PureTests()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(
    item: pytest.Item, nextitem: pytest.Item | None
) -> Generator[None, object, object]:
    PURE.pure = not any(item.get_closest_marker(mark) for mark in MAY_START)
    PURE.started = []
    try:
        return (yield)
    finally:
        PURE.pure = False
        if nextitem is None or nextitem.path != item.path:
            leave_out_of_collections()  # what the module's tests imported first


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown() -> None:
    """What ends then may be a module's, of other tests."""
    PURE.pure = False


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    yield
    assert not PURE.started, f"starts a process without the mark `starts`: {PURE.started}"


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
    return once(tmp_path_factory, "source", lambda folder: run("sample", "--out", str(folder)))


@pytest.fixture(scope="session")
def sample_shards(sample_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of the sample dataset at 128 px, several to a split."""
    source = ("shards", "--src", str(sample_source), *"--size 128 --samples-per-shard 128".split())
    return once(tmp_path_factory, "shards", lambda out: run(*source, "--out", str(out)))


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
def few_jpeg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fewer, for what is compared sample by sample in many cases."""
    return write_dataset(
        tmp_path_factory.mktemp("loader") / "jpeg", [picture(i) for i in range(FEW)]
    )


@pytest.fixture(scope="session")
def few_raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(
        tmp_path_factory.mktemp("loader") / "raw", [picture(i) for i in range(FEW)], codec="raw"
    )


@pytest.fixture(scope="session")
def raw_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(
        tmp_path_factory.mktemp("loader") / "raw", [picture(i) for i in range(101)], codec="raw"
    )
