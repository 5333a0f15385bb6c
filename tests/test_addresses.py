"""Files here and at URLs: what is listed, read and refused, against fsspec's memory file system and
services made of it that fail in one way each."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.config import conf
from fsspec.implementations.memory import MemoryFileSystem

from gratis import addresses
from gratis.addresses import Bytes, FileEntry
from gratis.errors import GratisError, Outage
from gratis.network import DEFAULT_LIMITS, NetworkLimits

DATA = bytes(range(100))


class Odd(MemoryFileSystem):  # type: ignore[misc]
    """A service whose errors are its own. What it does is in a path's first folder."""

    protocol = "odd"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("odd://", "memory://")))

    def _fail(self, path: str) -> None:
        if "/refuses/" in path or path.endswith("/refuses"):
            raise ValueError("AccessDenied,\n  really")

    def info(self, path: str, **more: Any) -> Any:
        self._fail(path)
        if "/away/" in path:  # as fsspec says it of a web server that cannot be reached
            raise FileNotFoundError(path) from ConnectionRefusedError("refused")
        if "/busy/" in path:
            raise FileNotFoundError(path) from Busy("busy")
        return super().info(path, **more)

    def ls(self, path: str, detail: bool = True, **more: Any) -> Any:
        self._fail(path)
        rows = super().ls(path, detail=detail, **more)
        return [{**row, "size": None} for row in rows] if "/sizeless" in path else rows

    def open(self, path: str, mode: str = "rb", **more: Any) -> Any:
        self._fail(path)
        file = super().open(path, mode, **more)
        return Pipe(file.read()) if "/pipes/" in path else file

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> Any:
        self._fail(path)
        data = super().cat_file(path, start=start, end=end)
        return data[:-1] if "/short/" in path and end is not None else data


class Busy(Exception):
    """A server's answer."""

    status = 503


class Pipe(io.BytesIO):
    def seekable(self) -> bool:
        return False


fsspec.register_implementation("odd", Odd, clobber=True)


@pytest.fixture(autouse=True)
def limits() -> Iterator[None]:
    """A server is waited for so briefly that a test sees the end."""
    addresses.use_limits(NetworkLimits(outage_s=0.0))
    yield
    addresses.use_limits(DEFAULT_LIMITS)


@pytest.fixture(params=["here", "memory", "odd"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """With a file "a b.bin", an empty one, and a folder that holds another."""
    files = {"a b.bin": DATA, "empty": b"", "deep/c": b"123"}
    if request.param == "here":
        for name, data in files.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(data)
        return str(tmp_path)
    root = f"/files{tmp_path}"
    for name, data in files.items():
        fsspec.filesystem("memory").pipe_file(f"{root}/{name}", data)
    return f"{request.param}:/{root}"


def test_what_is_in_a_folder(folder: str) -> None:
    assert addresses.entries(folder) == [
        FileEntry("a b.bin", 100, False),
        FileEntry("deep", 0, True),
        FileEntry("empty", 0, False),
    ]
    file, deep = addresses.join(folder, "a b.bin"), addresses.join(folder, "deep")
    assert [addresses.is_file(one) for one in (file, deep, folder, f"{folder}/no")] == [
        *(True, False, False, False)
    ]
    assert [addresses.is_folder(one) for one in (file, deep, folder, f"{folder}/no")] == [
        *(False, True, True, False)
    ]


def test_what_is_in_a_file(folder: str) -> None:
    path = f"{folder}/a b.bin"
    assert addresses.read(path) == DATA
    with addresses.open_file(path) as file:
        assert file.read(10) == DATA[:10]
        assert file.seek(-10, os.SEEK_END) == 90
        assert file.read() == DATA[90:]
    with Bytes(path) as archive:
        assert archive.size == 100
        for start, size in ((90, 10), (0, 1), (5, 0), (95, 10), (100, 3), (3, 50)):
            assert archive.read(start, size) == DATA[start : start + size]
    assert archive.file.closed is folder.startswith("/")  # a file in memory never is
    with Bytes(f"{folder}/empty") as archive:
        assert (archive.size, archive.read(0, 5)) == (0, b"")
    for missing in (addresses.open_file, addresses.read, Bytes):
        with pytest.raises(FileNotFoundError):
            missing(f"{folder}/no")  # type: ignore[operator]


def test_a_range_is_whole_or_an_error(folder: str) -> None:
    if not addresses.is_url(folder):
        return
    path = f"{folder}/a b.bin"
    assert addresses.read_range(path, 0, None) == DATA
    assert addresses.read_range(path, 7, None) == DATA[7:]
    assert addresses.read_range(path, 7, 20) == DATA[7:20]
    assert addresses.read_range(path, 90, 100) == DATA[90:]
    with pytest.raises(GratisError) as caught:
        addresses.read_range(path, 90, 101)
    assert str(caught.value) == (
        f"cannot read {path}: 10 bytes came, 11 were asked for; it has changed, list it again"
    )
    with pytest.raises(FileNotFoundError):
        addresses.read_range(f"{folder}/no", 0, 1)


def at(kind: str, tmp_path: Path) -> str:
    root = f"/{kind}{tmp_path}"
    fsspec.filesystem("memory").pipe_file(f"{root}/a", DATA)
    return f"odd:/{root}"


def test_less_than_the_file_has_is_asked_for_again(tmp_path: Path) -> None:
    path = f"{at('short', tmp_path)}/a"
    with pytest.raises(Outage, match=rf"^cannot read {path} for 0 s: 9 bytes came, 10 were asked"):
        addresses.read_range(path, 3, 13)
    assert addresses.read_range(path, 3, None) == DATA[3:]


def test_a_service_s_own_errors_are_messages(tmp_path: Path) -> None:
    folder = at("refuses", tmp_path)
    said = "ValueError: AccessDenied, really"
    for asked, place in (
        (lambda: addresses.entries(folder), folder),
        (lambda: addresses.open_file(f"{folder}/a"), f"{folder}/a"),
        (lambda: addresses.read(f"{folder}/a"), f"{folder}/a"),
    ):
        with pytest.raises(GratisError) as caught:
            asked()
        assert str(caught.value) == f"cannot read {place}: {said}"
    with pytest.raises(OSError, match=f"^cannot read {folder}/a: {said}$"):
        addresses.read_range(f"{folder}/a", 0, 1)
    assert addresses.is_file(f"{folder}/a") is False
    assert addresses.is_folder(folder) is False


def test_a_server_that_cannot_be_reached_is_told_from_a_file_that_is_not_there(
    tmp_path: Path,
) -> None:
    with pytest.raises(GratisError) as caught:
        addresses.entries(f"{at('away', tmp_path)}")
    assert str(caught.value) == f"cannot open odd://away{tmp_path}: refused"
    assert addresses.entries(at("busy", tmp_path)) == [FileEntry("a", 100, False)]


def test_what_a_server_lists_may_have_no_sizes(tmp_path: Path) -> None:
    assert addresses.entries(at("sizeless", tmp_path)) == [FileEntry("a", 0, False)]
    assert addresses.entries(f"odd://nowhere{tmp_path}") == []


def test_whole_files_alone_are_no_archive(tmp_path: Path) -> None:
    path = f"{at('pipes', tmp_path)}/a"
    with pytest.raises(GratisError) as caught:
        addresses.open_file(path)
    assert str(caught.value) == (
        f"{path}: its server answers no range requests; use one that does, or copy the files"
    )


def test_what_is_no_file_here(tmp_path: Path) -> None:
    """Links are followed; what is neither is there, and has no size."""
    (tmp_path / "file").write_bytes(b"123")
    (tmp_path / "folder").mkdir()
    for name, target in (("a", "file"), ("b", "folder"), ("c", "nothing"), ("d", "d")):
        (tmp_path / name).symlink_to(target)
    os.mkfifo(tmp_path / "pipe")
    assert addresses.entries(str(tmp_path)) == [
        *(FileEntry("a", 3, False), FileEntry("b", 0, True), FileEntry("c", -1, False)),
        *(FileEntry("d", -1, False), FileEntry("file", 3, False), FileEntry("folder", 0, True)),
        FileEntry("pipe", -1, False),
    ]
    with pytest.raises(GratisError) as caught:
        addresses.open_file(str(tmp_path / "pipe"))
    assert str(caught.value) == (
        f"{tmp_path}/pipe is a pipe, no file; remove it, or put the file in its place"
    )
    with pytest.raises(FileNotFoundError):
        addresses.entries(str(tmp_path / "no"))


@pytest.mark.parametrize(
    ("folder", "name", "joined"),
    [
        ("a", "b c", "a/b c"),
        ("a/", "b", "a/b"),
        ("s3://a", "b c", "s3://a/b c"),
        ("s3://a/", "b%20c", "s3://a/b%20c"),
        ("http://a/", "b c", "http://a/b%20c"),
        ("https://a", "b%20c", "https://a/b%2520c"),
        ("httpx://a", "b c", "httpx://a/b c"),
    ],
)
def test_names_in_addresses(folder: str, name: str, joined: str) -> None:
    """Quoted for web servers alone, and the same when they are read off again."""
    assert addresses.join(folder, name) == joined
    assert addresses.name_of(joined) == name
    assert addresses.is_url(joined) is ("://" in folder)


def test_an_error_of_any_library_on_one_line() -> None:
    assert addresses.describe(KeyError("a\n b")) == r"KeyError: 'a\n b'"
    assert addresses.describe(OSError("a\n  b\tc")) == "OSError: a b c"
    assert addresses.describe(OSError("x" * 400)) == f"OSError: {'x' * 300}"


@pytest.mark.parametrize("ask", [addresses.entries, addresses.read, addresses.is_folder])
def test_an_address_of_no_known_kind_is_a_message(ask: Callable[[str], object]) -> None:
    with pytest.raises(GratisError, match=r"^cannot open nosuch://a/b: Protocol not known: nosuch"):
        ask("nosuch://a/b")


def test_a_server_that_another_process_reached_is_waited_for() -> None:
    servers = addresses._Process.servers
    addresses.use_limits(NetworkLimits(outage_s=1.0), answered=("s3://a/b/c", "/local", "s3://a/d"))
    assert [*servers] == ["s3://a"]
    assert servers["s3://a"].answered
    assert servers["s3://a"].limits.outage_s == 1.0
    one = servers["s3://a"]
    addresses.use_limits(NetworkLimits(outage_s=1.0), answered=("gs://b/x", "s3://a/z"))
    assert [*servers] == ["s3://a", "gs://b"]
    assert servers["s3://a"] is one
    addresses.use_limits(NetworkLimits(outage_s=2.0))
    assert not servers


def test_silence_ends_a_request_of_any_service(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what the user has configured for fsspec stays."""
    aiohttp = pytest.importorskip("aiohttp")
    monkeypatch.setitem(conf, "s3", {"config_kwargs": {"user": 1, "retries": 5}})
    monkeypatch.setitem(conf, "http", {"client_kwargs": {"headers": 2}})
    times = {"connect_timeout": 7.0, "read_timeout": 7.0, "retries": {"max_attempts": 0}}
    assert addresses._options("s3", 7.0) == {"config_kwargs": {"user": 1, **times}}
    assert addresses._options("s3a", 7.0) == {"config_kwargs": times}
    limit = aiohttp.ClientTimeout(total=None, sock_connect=7.0, sock_read=7.0)
    assert addresses._options("http", 7.0) == {"client_kwargs": {"headers": 2, "timeout": limit}}
    assert addresses._options("https", 7.0) == {"client_kwargs": {"timeout": limit}}
    for name in ("gs", "gcs"):
        assert addresses._options(name, 7.0) == {"requests_timeout": limit}
    assert addresses._options("memory", 7.0) == {}
