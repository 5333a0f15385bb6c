"""A dataset's files at a URL, as services without conditional writes have them too, and in a folder
that cannot be listed."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from gratis.errors import GratisError
from gratis.preprocess.output.store import WORK, LocalStore, RemoteStore, open_store


class Unconditional(MemoryFileSystem):  # type: ignore[misc]
    """A service that writes over what is there, with errors of its own, which it has for all that
    is under `forbidden`."""

    protocol = "unconditional"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("unconditional://", "memory://")))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **more: Any) -> None:
        if "forbidden" in path:
            raise ValueError("AccessDenied,\nreally")
        if mode != "overwrite":
            raise NotImplementedError("no conditional writes")
        super().pipe_file(path, value, **more)

    def ls(self, path: str, detail: bool = True, **more: Any) -> Any:
        if "forbidden" in path:
            raise ValueError("AccessDenied,\nreally")
        return super().ls(path, detail=detail, **more)

    def cat_file(self, path: str, *between: int | None, **more: Any) -> Any:
        if "forbidden" in path:
            raise ValueError("AccessDenied,\nreally")
        return super().cat_file(path, *between, **more)


fsspec.register_implementation("unconditional", Unconditional, clobber=True)


@pytest.mark.parametrize("service", ["memory", "unconditional"])
def test_files_at_a_url(service: str, tmp_path: Path) -> None:
    store = open_store(f"{service}:/{tmp_path}/x")
    assert isinstance(store, RemoteStore)
    assert store.sizes() == {}
    with store.staging() as folder:
        file = folder / "a.tar"
        file.write_bytes(b"12345")
        store.publish(file, "a.tar")
        assert [*folder.iterdir()] == []
    assert not folder.exists()
    store.write(f"{WORK}/p", b"1")
    store.write("b", b"1")
    store.write("b", b"22")
    store.create("c", b"first")
    store.create("c", b"2nd")
    assert [store.read(name) for name in ("a.tar", "b", "c", f"{WORK}/p")] == [
        *(b"12345", b"22", b"first", b"1")
    ]
    assert store.sizes() == {"a.tar": 5, "b": 2, "c": 5}
    assert store.sizes(WORK) == {"p": 1}
    store.remove("b")
    store.remove("b")
    store.remove(WORK)
    assert store.sizes() == {"a.tar": 5, "c": 5}
    assert store.sizes(WORK) == {}


def test_a_service_s_own_errors_are_those_of_files(tmp_path: Path) -> None:
    store = open_store("unconditional://forbidden")
    (tmp_path / "a").touch()
    for refused in (
        lambda: store.write("a", b""),
        lambda: store.create("a", b""),
        lambda: store.read("a"),
    ):
        with pytest.raises(OSError, match=r"^a: ValueError: AccessDenied, really$"):
            refused()
    with pytest.raises(GratisError) as caught:
        store.sizes()
    assert str(caught.value) == (
        "cannot list unconditional://forbidden: ValueError: AccessDenied, really; mend that, or "
        "choose another OUT"
    )


def test_a_folder_that_cannot_be_listed_is_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    store = LocalStore(str(tmp_path))
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"123")
    assert store.sizes() == {"file": 3}
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(GratisError, match=rf"^cannot list {tmp_path}/?: Permission denied; mend"):
        store.sizes()


def test_what_is_removed_may_be_a_folder(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    (tmp_path / WORK).mkdir()
    store.write("a", b"1")
    (tmp_path / WORK / "x").touch()
    with store.staging() as folder:
        assert folder == tmp_path / WORK
    store.remove(WORK)
    store.remove("a")
    assert [*tmp_path.iterdir()] == []


def test_where_links_fail_for_another_reason_nothing_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / WORK).mkdir()
    monkeypatch.setattr(os, "link", full)
    with pytest.raises(OSError, match="No space left"):
        LocalStore(str(tmp_path)).create("plan", b"1")
    assert not (tmp_path / "plan").exists()
