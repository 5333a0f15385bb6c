"""Locks of runs: who has one, who is told so, and what is left when the holder goes. In one
process: of a file that is opened twice the second lock is refused as another process's would be."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gratis import locks
from gratis.errors import GratisError
from gratis.locks import RESERVED, hold, holder, in_use, is_others, lock, reserve

HERE = f"on {socket.gethostname()}"


@pytest.fixture(autouse=True)
def reserved_by_nobody() -> Iterator[None]:
    before = list(RESERVED)
    yield
    for file in RESERVED[len(before) :]:
        file.close()
    del RESERVED[len(before) :]


def test_a_run_is_reserved_once(tmp_path: Path) -> None:
    run, before = tmp_path / "runs/r", len(RESERVED)
    assert in_use(run) is None
    assert reserve(run) is True
    assert reserve(run) is False
    assert len(RESERVED) == before + 1
    assert (run / "starter").read_text() == f"process {os.getpid()} {HERE}\n"
    assert in_use(run) == f"process {os.getpid()} {HERE}"
    RESERVED[-1].close()
    assert in_use(run) is None
    assert reserve(run) is True


def test_a_rank_s_lock_names_who_has_it(tmp_path: Path) -> None:
    run = tmp_path / "runs/r"
    file = lock(run, 77)
    assert (run / "lock").read_text() == f"process 77 {HERE}\n"
    assert in_use(run) == f"process 77 {HERE}"
    assert reserve(run)  # of another file
    with pytest.raises(GratisError) as caught:
        lock(run)
    told = f"run {run} is in use by process 77 {HERE}; choose another --run, or end it"
    assert str(caught.value) == told
    file.close()
    with lock(run):  # the text of the last one goes
        assert (run / "lock").read_text() == f"process {os.getpid()} {HERE}\n"
    RESERVED[-1].close()
    (run / "starter").unlink()
    assert in_use(run) is None


def test_looking_leaves_the_lock_free(tmp_path: Path) -> None:
    lock(tmp_path).close()
    reserve(tmp_path)
    assert in_use(tmp_path) == f"process {os.getpid()} {HERE}"
    RESERVED[-1].close()
    before = len(os.listdir("/proc/self/fd"))
    assert in_use(tmp_path) is None
    assert len(os.listdir("/proc/self/fd")) == before
    lock(tmp_path).close()


def refusing(error: OSError) -> Any:
    def refuses(*_: Any, **__: Any) -> None:
        raise error

    return refuses


@pytest.mark.parametrize(
    ("number", "who"), [(errno.EACCES, "another user"), (errno.ENOENT, None), (errno.ENOTDIR, None)]
)
def test_a_file_that_cannot_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, who: str | None
) -> None:
    reserve(tmp_path)
    monkeypatch.setattr(os, "open", refusing(OSError(number, os.strerror(number))))
    assert in_use(tmp_path) == who


@pytest.mark.parametrize(
    ("number", "mine", "used"),
    [
        (errno.EAGAIN, "none", True),
        (errno.EACCES, "none", True),
        (errno.ENOLCK, "error", False),
        (errno.ENOTSUP, "error", False),
    ],
)
def test_a_lock_that_is_not_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, mine: str, used: bool
) -> None:
    """Two errors say that it is taken, the others that there are no locks."""
    path, text = tmp_path / "lock", os.strerror(number)
    path.write_text("process 5 on x\n")
    monkeypatch.setattr(fcntl, "flock", refusing(OSError(number, text)))
    before = len(os.listdir("/proc/self/fd"))
    assert in_use(tmp_path) == ("process 5 on x" if used else None)
    if mine == "none":
        assert hold(path) is None
    else:
        for what in (None, tmp_path):
            with pytest.raises(GratisError) as caught:
                hold(path, what=what)
            told = f"cannot be locked ({text}); choose a folder on another disk"
            assert str(caught.value) == f"{what or path} {told}"
    assert path.read_text() == "process 5 on x\n"
    assert len(os.listdir("/proc/self/fd")) == before


def test_shared_locks_keep_out_only_who_wants_it_alone(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    one, other = hold(path, shared=True), hold(path, shared=True)
    assert one is not None
    assert other is not None
    assert hold(path) is None
    one.close()
    assert hold(path) is None
    other.close()
    alone = hold(path)
    assert alone is not None
    assert hold(path, shared=True) is None
    alone.close()


def test_a_place_for_no_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "run/starter").mkdir(parents=True)
    with pytest.raises(GratisError) as caught:
        reserve(tmp_path / "file")
    told = f"--runs {tmp_path} cannot hold a run (File exists); choose another"
    assert str(caught.value) == told
    with pytest.raises(GratisError) as caught:
        reserve(tmp_path / "run")
    told = f"run {tmp_path / 'run'} cannot be written (Is a directory); choose another"
    assert str(caught.value) == told


def test_who_holds_a_file_that_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text(" \n")
    assert holder(tmp_path / "lock") == "a living process"


def test_a_full_disk_names_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(os, "write", refusing(full))
    with lock(tmp_path):
        assert in_use(tmp_path) == "a living process"


def test_whose_a_run_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the folder and of such of its three files as are there, whether they may be written."""
    run, asked, kept = tmp_path / "r", list[Path](), set[Path]()

    def access(path: Path, mode: int) -> bool:
        assert mode == os.W_OK
        asked.append(path)
        return path not in kept

    monkeypatch.setattr(os, "access", access)
    assert is_others(run) is False
    assert not asked
    (run / "other").mkdir(parents=True)
    assert is_others(run) is False
    assert asked == [run]
    names = [locks.STARTER, locks.LOCK, "rank-0.jsonl"]
    assert names[:2] == ["starter", "lock"]
    for name in names:
        (run / name).write_text("")
    asked.clear()
    assert is_others(run) is False
    assert asked == [run, *(run / name for name in names)]
    for path in (run, *(run / name for name in names)):
        kept = {path}
        assert is_others(run) is True
    monkeypatch.setattr(os, "access", refusing(PermissionError()))
    assert is_others(run) is True
    (tmp_path / "dangling").symlink_to("nowhere")
    assert is_others(tmp_path / "dangling") is True
