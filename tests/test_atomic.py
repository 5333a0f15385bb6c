"""A file appears whole or not at all, whatever its writer does."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

import pytest

from gratis.atomic import (
    atomic_output,
    atomic_path,
    atomic_write,
    exclusive,
    open_nonblocking,
    sha256_file,
    temporary_name,
)
from gratis.errors import GratisError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_old_content_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    atomic_write(path, b"old")
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
        assert temporary.parent == tmp_path  # a rename is atomic in one file system alone
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["a.json"]


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    atomic_write(path, b"old")
    with suppress(KeyError), atomic_path(path) as temporary:
        temporary.write_bytes(b"half")
        raise KeyError
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.json"]


def test_a_library_sees_the_suffix_it_chooses_a_format_by(tmp_path: Path) -> None:
    with atomic_output(tmp_path / "new" / "a.png", "", suffix=".png") as temporary:
        assert temporary.suffix == ".png"
        temporary.write_bytes(b"picture")
    assert names(tmp_path / "new") == ["a.png"]


def test_what_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(GratisError, match=r"b cannot be written \(.*\); choose another --out"),
        atomic_output(tmp_path / "file" / "b", "choose another --out"),
    ):
        pass
    (tmp_path / "folder").mkdir()
    with (
        pytest.raises(GratisError, match="folder cannot be written"),
        atomic_output(tmp_path / "folder", "") as temporary,
    ):
        temporary.write_bytes(b"x")
    assert names(tmp_path) == ["file", "folder"]


def test_a_folder_is_one_process_s_at_a_time(tmp_path: Path) -> None:
    folder = tmp_path / "report"
    with exclusive(folder, "run a"):
        assert os.listdir(folder) == ["lock"]
        with (
            pytest.raises(GratisError, match="run b: another report is being made there"),
            exclusive(folder, "run b"),
        ):
            pass
    with exclusive(folder, "run b"):
        pass


def test_a_sum_is_of_the_whole_file_and_a_pipe_is_empty(tmp_path: Path) -> None:
    """Of several of the pieces in which it is read; nobody writes to the pipe."""
    data = bytes(range(256)) * 8192 + b"x"
    (tmp_path / "a").write_bytes(data)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(data).hexdigest()
    os.mkfifo(tmp_path / "pipe")
    assert sha256_file(tmp_path / "pipe") == hashlib.sha256(b"").hexdigest()
    file = open_nonblocking(tmp_path / "a", os.O_RDWR)
    assert os.write(file, b"y") == 1  # the flags asked for are kept
    os.close(file)


def test_names_of_writers_differ() -> None:
    names = {temporary_name("a.tar") for _ in range(9)}
    assert len(names) == 9
    assert {name[: len(f"a.tar.{os.getpid()}-")] for name in names} == {f"a.tar.{os.getpid()}-"}
    assert {name[-4:] for name in names} == {".tmp"}
    assert temporary_name("a", ".png").endswith(".png")
