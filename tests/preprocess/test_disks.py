"""Disks that lack something: hard links, symbolic links, locks."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from handmade import picture, write_dataset

from gratis.errors import GratisError
from gratis.preprocess.index import IndexConfig, index_tars
from gratis.preprocess.output.store import WORK, LocalStore


def refusing(number: int) -> Callable[..., None]:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
def test_without_hard_links_the_first_still_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """sshfs says ENOSYS or EPERM, network and container folders ENOTSUP."""
    monkeypatch.setattr(os, "link", refusing(number))
    (tmp_path / WORK).mkdir()
    store, begin = LocalStore(str(tmp_path)), threading.Barrier(8)

    def create(one: int) -> None:
        begin.wait()
        LocalStore(str(tmp_path)).create("plan", b"%d" % one * 100_000)

    threads = [threading.Thread(target=create, args=(one,)) for one in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first = store.read("plan")
    assert len(set(first)) == 1
    assert len(first) == 100_000
    store.create("plan", b"another")
    assert store.read("plan") == first
    assert not [name for name in store.sizes(WORK) if name.endswith(".tmp")]


def test_what_such_a_disk_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", refusing(errno.EPERM))
    monkeypatch.setattr(fcntl, "flock", refusing(errno.ENOLCK))
    (tmp_path / WORK).mkdir()
    with pytest.raises(GratisError, match=r"neither hard links nor locks \(No locks available\)"):
        LocalStore(str(tmp_path)).create("plan", b"1")


@pytest.mark.starts
def test_an_index_on_a_disk_without_symbolic_links_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write_dataset(tmp_path / "data", [picture(i) for i in range(10)])
    for path in root.iterdir():
        if path.suffix != ".tar":
            path.unlink()
    monkeypatch.setattr(os, "symlink", refusing(errno.EPERM))
    config = IndexConfig(tars=str(root), out=str(tmp_path / "out"), workers=1)
    with pytest.raises(GratisError, match="has no symbolic links"):
        index_tars(config)
