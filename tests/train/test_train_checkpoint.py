"""Checkpoints on disk: which one is the latest, whatever was killed, edited or left over."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from preprocess.errors import UserError
from train import checkpoint
from train.checkpoint import Arrays, State, latest, read_state, write
from train.network import AlexNet
from train.optim import Optimiser
from train.recipes import SAMPLE


@pytest.fixture(scope="module")
def arrays() -> Arrays:
    network = AlexNet(replace(SAMPLE, width=1 / 16), 5)
    return checkpoint.collect(network, Optimiser(network, SAMPLE), torch.arange(3), writer=True)


def of_step(step: int) -> State:
    return State(step=step, epoch=0, seed=0, classes=5, dataset="d", architecture={}, loader={})


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name[-8:]) for path in folder.glob("step-*"))


def test_the_latest_is_never_replaced(tmp_path: Path, arrays: Arrays) -> None:
    """A kill between its removal and the new one's rename would leave nothing to resume from."""
    size = write(tmp_path, arrays, of_step(7))
    found = latest(tmp_path)
    assert found is not None
    inode = found.stat().st_ino
    assert write(tmp_path, arrays, of_step(7)) == size
    assert found.stat().st_ino == inode


def test_a_missing_latest_falls_back_to_the_newest(tmp_path: Path, arrays: Arrays) -> None:
    assert latest(tmp_path) is None
    for step in (1, 2):
        write(tmp_path, arrays, of_step(step))
    shutil.rmtree(tmp_path / "step-00000002")
    assert latest(tmp_path) == tmp_path / "step-00000001"
    (tmp_path / "latest").unlink()
    assert latest(tmp_path) == tmp_path / "step-00000001"


def test_a_hand_may_point_at_an_older_one_and_go_on_from_there(tmp_path: Path, arrays: Arrays) -> None:
    for step in (10, 30):
        write(tmp_path, arrays, of_step(step))
    (tmp_path / "latest").write_text("step-00000010\n")
    assert latest(tmp_path) == tmp_path / "step-00000010"
    write(tmp_path, arrays, of_step(20))
    assert latest(tmp_path) == tmp_path / "step-00000020"
    assert 20 in steps(tmp_path)


def test_two_are_kept_and_what_cannot_go_does_no_harm(tmp_path: Path, arrays: Arrays) -> None:
    for step in (1, 2, 3):
        write(tmp_path, arrays, of_step(step))
    assert steps(tmp_path) == [2, 3]
    (tmp_path / "step-00000000").write_text("no folder: removing it as one fails")
    write(tmp_path, arrays, of_step(4))
    assert latest(tmp_path) == tmp_path / "step-00000004"


def test_a_damaged_state_names_the_way_out(tmp_path: Path, arrays: Arrays) -> None:
    write(tmp_path, arrays, of_step(1))
    (tmp_path / "step-00000001" / "state.json").write_text("{")
    with pytest.raises(UserError, match="point its `latest` at an older one"):
        read_state(tmp_path / "step-00000001")
