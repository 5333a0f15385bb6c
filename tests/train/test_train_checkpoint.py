"""Checkpoints on disk: which one is the latest, whatever was killed, edited or left over."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gratis.errors import GratisError
from gratis.events import EventWriter
from gratis.train import checkpoint
from gratis.train.checkpoint import FILES, SUMS, Arrays, State, latest, read_state, undamaged, write
from gratis.train.network.alexnet import AlexNet
from gratis.train.optimiser import Optimiser
from gratis.train.recipes import SAMPLE
from gratis.train.training_state import Saver


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


def test_latest_is_flipped_last(tmp_path: Path, arrays: Arrays) -> None:
    """It still names the one before when the new one cannot take its place."""
    write(tmp_path, arrays, of_step(1))
    (tmp_path / "step-00000002").write_text("no folder: none can be put there")
    with pytest.raises(NotADirectoryError):
        write(tmp_path, arrays, of_step(2))
    assert (tmp_path / "latest").read_text() == "step-00000001"
    assert not list(tmp_path.glob("*.tmp"))
    (tmp_path / "step-00000003.tmp").write_text("no folder: it stays")
    with pytest.raises(FileExistsError):  # what went wrong first
        write(tmp_path, arrays, of_step(3))
    assert latest(tmp_path) == tmp_path / "step-00000001"


def test_all_of_it_is_on_the_disk_before_latest_names_it(
    tmp_path: Path, arrays: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    fsync = os.fsync

    def noted(file: int) -> None:
        fsync(file)
        synced.append(os.fstat(file).st_ino)

    monkeypatch.setattr(os, "fsync", noted)
    write(tmp_path, arrays, of_step(1))
    flipped = synced.index((tmp_path / "latest").stat().st_ino)
    written = [tmp_path, *((tmp_path / "step-00000001" / name) for name in {*FILES, SUMS})]
    assert {path.stat().st_ino for path in written} <= set(synced[:flipped])


def test_a_missing_latest_falls_back_to_the_newest(tmp_path: Path, arrays: Arrays) -> None:
    assert latest(tmp_path) is None
    for step in (1, 2):
        write(tmp_path, arrays, of_step(step))
    shutil.rmtree(tmp_path / "step-00000002")
    assert latest(tmp_path) == tmp_path / "step-00000001"
    (tmp_path / "latest").unlink()
    assert latest(tmp_path) == tmp_path / "step-00000001"


def test_a_hand_may_point_at_an_older_one_and_go_on_from_there(
    tmp_path: Path, arrays: Arrays
) -> None:
    for step in (10, 30):
        write(tmp_path, arrays, of_step(step))
    (tmp_path / "latest").write_text("step-00000010\n")
    assert latest(tmp_path) == tmp_path / "step-00000010"
    write(tmp_path, arrays, of_step(20))
    assert latest(tmp_path) == tmp_path / "step-00000020"
    assert steps(tmp_path) == [10, 20]  # not the 30 of the course that was left


def test_two_are_kept_and_what_cannot_go_does_no_harm(tmp_path: Path, arrays: Arrays) -> None:
    for step in (1, 2, 3):
        write(tmp_path, arrays, of_step(step))
    assert steps(tmp_path) == [2, 3]
    (tmp_path / "step-00000000").write_text("no folder: removing it as one fails")
    write(tmp_path, arrays, of_step(4))
    assert latest(tmp_path) == tmp_path / "step-00000004"


def test_a_folder_that_a_killed_write_left_is_replaced(tmp_path: Path, arrays: Arrays) -> None:
    """It was renamed, and `latest` not yet flipped: training comes by that step again."""
    for step in (1, 2):
        write(tmp_path, arrays, of_step(step))
    (tmp_path / "latest").write_text("step-00000001")
    (tmp_path / "step-00000002" / "left").write_text("by the killed one")
    write(tmp_path, arrays, replace(of_step(2), seed=5))
    assert latest(tmp_path) == tmp_path / "step-00000002"
    assert read_state(tmp_path / "step-00000002").seed == 5
    assert not (tmp_path / "step-00000002" / "left").exists()


def test_the_newest_whole_one_is_taken_of_several(
    tmp_path: Path, arrays: Arrays, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "KEEP", 4)
    for step in (1, 2, 3, 4):
        write(tmp_path, arrays, of_step(step))
    for step in (4, 3):
        flip_a_bit(tmp_path / f"step-{step:08d}" / "network.safetensors", 0.9)
    found, messages = undamaged(tmp_path)
    assert found == tmp_path / "step-00000002"
    assert len(messages) == 2


def test_a_checkpoint_of_something_else_is_refused_by_name(tmp_path: Path) -> None:
    """By the whole hash, not by the digits that the message shows."""
    state = replace(of_step(1), dataset="0123456789", architecture={"crop": 224, "towers": 2})
    fitting: dict[str, Any] = {"architecture": {"crop": 224}, "classes": 5, "dataset": "0123456789"}
    checkpoint.check_fits(tmp_path, state, **fitting)
    for wrong, words in (
        ({"dataset": "0123456780"}, "was trained on dataset 01234567, not on 01234567"),
        ({"classes": 6}, "has 5 classes, the dataset 6"),
        ({"architecture": {"crop": 224, "towers": 1}}, "has towers 2, the recipe 1"),
    ):
        with pytest.raises(GratisError, match=f"{words}; choose another --run"):
            checkpoint.check_fits(tmp_path, state, **fitting | wrong)


def test_a_damaged_state_names_the_way_out(tmp_path: Path, arrays: Arrays) -> None:
    write(tmp_path, arrays, of_step(1))
    (tmp_path / "step-00000001" / "state.json").write_text("{")
    with pytest.raises(GratisError, match="point its `latest` at an older one"):
        read_state(tmp_path / "step-00000001")


def flip_a_bit(path: Path, where: float) -> None:
    """At this share of the file's length."""
    content = bytearray(path.read_bytes())
    content[int(where * (len(content) - 1))] ^= 1 << 3
    path.write_bytes(content)


@pytest.mark.parametrize("where", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("name", [*sorted(FILES), SUMS])
def test_a_flipped_bit_is_noticed_and_the_one_before_taken(
    tmp_path: Path, arrays: Arrays, name: str, where: float
) -> None:
    for step in (1, 2):
        write(tmp_path, arrays, of_step(step))
    newest = tmp_path / "step-00000002"
    assert undamaged(tmp_path) == (newest, [])
    flip_a_bit(newest / name, where)
    found, (line,) = undamaged(tmp_path)
    assert found == tmp_path / "step-00000001"
    assert f"{newest} is damaged" in line
    assert "going on from step-00000001" in line
    assert (tmp_path / "damaged-00000002" / name).exists()
    write(tmp_path, arrays, of_step(2))  # when training comes by that step again
    assert undamaged(tmp_path) == (newest, [])


def test_a_lost_file_is_damage_and_without_an_older_one_nothing_is_touched(
    tmp_path: Path, arrays: Arrays
) -> None:
    assert undamaged(tmp_path) == (None, [])
    write(tmp_path, arrays, of_step(1))
    (tmp_path / "step-00000001" / "optimiser.safetensors").unlink()
    for _ in range(2):
        with pytest.raises(GratisError, match="no older one is whole; choose another --run"):
            undamaged(tmp_path)


def test_sums_that_were_cut_short_are_damage_in_words(tmp_path: Path, arrays: Arrays) -> None:
    write(tmp_path, arrays, of_step(1))
    sums = tmp_path / "step-00000001" / SUMS
    os.truncate(sums, 40)
    with pytest.raises(GratisError, match=rf"is damaged \({SUMS} does not name its files\)"):
        undamaged(tmp_path)


@pytest.mark.starts
def test_sha256sum_reads_the_sums(tmp_path: Path, arrays: Arrays) -> None:
    write(tmp_path, arrays, of_step(1))
    command = ["sha256sum", "--check", "--strict", SUMS]
    checked = subprocess.run(
        command, cwd=tmp_path / "step-00000001", capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.count(": OK") == len(FILES)


def test_a_deleted_run_does_not_come_back_as_its_checkpoint(tmp_path: Path, arrays: Arrays) -> None:
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "run" / "checkpoints", arrays, of_step(1))
    assert not (tmp_path / "run").exists()


def test_its_files_have_the_mode_that_the_umask_gives(tmp_path: Path, arrays: Arrays) -> None:
    before = os.umask(0o027)
    try:
        write(tmp_path / "new", arrays, of_step(1))
    finally:
        os.umask(before)
    found = latest(tmp_path / "new")
    assert found
    assert {
        path.name: oct(path.stat().st_mode & 0o777) for path in found.iterdir()
    } == dict.fromkeys([*FILES, SUMS], "0o640")
    checkpoint.share(tmp_path / "where nothing is")  # as where there are no modes


@pytest.mark.parametrize("fault", [errno.EACCES, errno.EIO])
def test_what_cannot_be_read_is_not_called_damaged(
    tmp_path: Path, arrays: Arrays, monkeypatch: pytest.MonkeyPatch, fault: int
) -> None:
    for step in (1, 2):
        write(tmp_path, arrays, of_step(step))
    wanted, look = str(tmp_path / "step-00000002" / "network.safetensors"), os.open

    def failing(path: str | Path, flags: int, mode: int = 0o777, **rest: int | None) -> int:
        if str(path) == wanted:
            raise OSError(fault, os.strerror(fault), str(path))
        return look(path, flags, mode, **rest)

    with monkeypatch.context() as patched:  # to root, every file can be read
        patched.setattr(os, "open", failing)
        with pytest.raises(GratisError, match=rf"{wanted} cannot be read \({os.strerror(fault)}\)"):
            undamaged(tmp_path)
    assert undamaged(tmp_path) == (tmp_path / "step-00000002", [])


def test_neither_state_nor_weights_that_cannot_be_read_are_called_damaged(
    tmp_path: Path, arrays: Arrays
) -> None:
    write(tmp_path, arrays, of_step(1))
    found = tmp_path / "step-00000001"
    (found / "state.json").unlink()
    (found / "state.json").symlink_to("state.json")  # in a circle; to root, every file can be read
    with pytest.raises(
        GratisError, match=r"state.json cannot be read \(.*\): not known to be damaged"
    ):
        read_state(found)
    message = str(checkpoint.unreadable(OSError(errno.EIO, os.strerror(errno.EIO))))
    assert message.startswith("a checkpoint cannot be read (Input/output error): ")
    (found / "network.safetensors").unlink()
    (
        found / "network.safetensors"
    ).mkdir()  # an error without a file's name, as all of safetensors' are
    network = AlexNet(replace(SAMPLE, width=1 / 16), 5)
    with pytest.raises(
        GratisError, match=rf"^{found} cannot be read \(.*os error.*\): .*point its `latest` at"
    ):
        checkpoint.load(found, network, Optimiser(network, SAMPLE))


@pytest.mark.parametrize("odd", ["bytes", "folder", "pipe", "long"])
def test_a_latest_that_is_no_text_falls_back_to_the_newest(tmp_path: Path, odd: str) -> None:
    """Of a file of any length the first 64 KiB are read."""
    for step in (1, 2):
        checkpoint.of_step(tmp_path, step).mkdir()
        (checkpoint.of_step(tmp_path, step) / "state.json").write_text("")
    path = tmp_path / "latest"
    {
        "bytes": lambda: path.write_bytes(b"\xff\xfe"),
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "long": lambda: path.write_bytes(b" " * 65536 + b"step-00000001"),
    }[odd]()
    assert latest(tmp_path) == tmp_path / "step-00000002"


def test_a_latest_that_goes_in_a_circle_is_told(tmp_path: Path) -> None:
    (tmp_path / "latest").symlink_to("latest")
    with pytest.raises(GratisError, match="latest cannot be read"):
        latest(tmp_path)


def test_training_goes_on_where_latest_cannot_be_read_while_saving(
    tmp_path: Path, arrays: Arrays, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "latest").symlink_to("latest")
    saver = Saver(tmp_path, EventWriter(tmp_path / "rank-0.jsonl", attempt=1, rank=0))
    saver.begin(arrays, of_step(1))
    saver.settle()
    assert saver.lost
    assert "latest cannot be read" in saver.lost
    assert capsys.readouterr().err == f"warning: {saver.lost}\n"
    (folder / "latest").unlink()
    saver.begin(arrays, of_step(2))
    saver.close()
    assert saver.lost is None
    assert steps(folder) == [2]


@pytest.mark.parametrize(
    "wrong", [{"format": 99}, {"architecture": []}, {"step": "x"}, {"errors": 1}]
)
def test_a_state_of_another_version_is_one_line(
    tmp_path: Path, arrays: Arrays, wrong: dict[str, object]
) -> None:
    write(tmp_path, arrays, of_step(1))
    path = tmp_path / "step-00000001" / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | wrong))
    with pytest.raises(GratisError, match=rf"no checkpoint of this version \({next(iter(wrong))}"):
        read_state(path.parent)
