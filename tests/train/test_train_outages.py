"""Training on a dataset at a server that goes away. Real processes and connections."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from safetensors.torch import load_file
from serving import Proxy, faulty, proxy
from small import ROOT, command, of_kind

from gratis.train import checkpoint

EPOCHS = "4"
LAST = f"checkpoints/step-{10 * int(EPOCHS):08d}/network.safetensors"


class Store(NamedTuple):
    way: Proxy
    cache: Path

    def go_away(self) -> None:
        """With all shards that are cached here: those of the next epoch have to be fetched."""
        self.way.away.set()
        for path in self.cache.glob("gratis/*/*.tar"):
            path.unlink()


@pytest.fixture
def store(sample_shards: Path, tmp_path: Path) -> Iterator[Store]:
    with faulty(sample_shards) as server, proxy(server.server_address[1]) as way:
        yield Store(way, tmp_path / "cache")


def start(store: Store, runs: Path, *more: str) -> subprocess.Popen[str]:
    shards = Path("SHARDS")
    arguments = ["--run", "away", "--save-every", "9999", "--epochs", EPOCHS, *more]
    given = command(runs, shards, *arguments)
    given[given.index("SHARDS")] = store.way.url
    environment = os.environ | {"XDG_CACHE_HOME": str(store.cache)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(given, cwd=ROOT, text=True, env=environment, **pipes)


def until(
    holds: Callable[[], object], process: subprocess.Popen[str], seconds: float = 120
) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def finish(process: subprocess.Popen[str], code: int) -> str:
    _, err = process.communicate(timeout=240)
    assert process.returncode == code, err
    return err


def warned(run: Path) -> bool:
    texts = [one["message"] for rank in (0, 1) for one in of_kind(run, "warning", rank)]
    return any("cannot be read" in text for text in texts)


@pytest.fixture(scope="module")
def undisturbed(sample_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    given = command(runs, sample_shards, "--run", "whole", "--epochs", EPOCHS, "--gpus", "2")
    subprocess.run(given, cwd=ROOT, check=True, capture_output=True, timeout=240)
    return runs / "whole"


def assert_same_weights(one: Path, other: Path) -> None:
    weights = load_file(other / LAST)
    for name, tensor in load_file(one / LAST).items():
        assert (weights[name] == tensor).all(), name


@pytest.mark.slow
def test_a_run_waits_for_its_store_and_says_so(
    store: Store, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "runs" / "away"
    process = start(store, run.parent, "--gpus", "2")
    until(lambda: of_kind(run, "step"), process)
    store.go_away()
    until(lambda: warned(run), process)
    store.way.away.clear()
    assert "cannot be read" in finish(process, 0)
    assert [one["outcome"] for one in of_kind(run, "end")] == ["finished"]
    assert_same_weights(run, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize("by", ["outage", "signal"])
def test_a_run_whose_store_stays_away_is_saved_and_goes_on_later(
    store: Store, undisturbed: Path, tmp_path: Path, by: str
) -> None:
    """By a signal, as of a machine that is taken away, at once."""
    run = tmp_path / "runs" / "away"
    process = start(
        store, run.parent, "--gpus", "2", "--outage-s", "2" if by == "outage" else "600"
    )
    until(lambda: of_kind(run, "step"), process)
    store.go_away()
    if by == "signal":
        until(lambda: warned(run), process)
        process.send_signal(signal.SIGTERM)
    err = finish(process, 75)
    newest = checkpoint.latest(run / "checkpoints")
    assert newest
    step = checkpoint.step_of(newest)
    assert err.endswith(f"preempted: saved at step {step}; give the same command to go on\n")
    assert [one["outcome"] for one in of_kind(run, "end")] == ["preempted"]
    store.way.away.clear()
    finish(start(store, run.parent, "--gpus", "2"), 0)
    assert_same_weights(run, undisturbed)
    assert [(r["missing"], r["duplicates"]) for r in of_kind(run, "receipt")] == [(0, 0)] * 4


@pytest.mark.slow
def test_a_run_that_begins_while_its_store_is_away_waits(store: Store, tmp_path: Path) -> None:
    """It was there before: the address is right."""
    run = tmp_path / "runs" / "away"
    process = start(store, run.parent)
    until(lambda: of_kind(run, "step"), process)
    process.send_signal(signal.SIGTERM)
    finish(process, 75)
    store.way.away.set()
    err = finish(start(store, run.parent, "--outage-s", "1"), 75)
    assert "manifest.json cannot be read for" in err
    assert "Traceback" not in err
    process = start(store, run.parent)
    assert "tried again for up to 600 s" in (process.stderr.readline() if process.stderr else "")
    store.way.away.clear()
    finish(process, 0)
