"""Files at an address: a local path, or a URL that fsspec understands (s3://, gs://, http:// ...).
Read only.

Credentials and endpoints are read by each service's own library (AWS_ACCESS_KEY_ID,
AWS_ENDPOINT_URL, ...). An HTTP server must answer range requests; it lists no folders, so a source
there is recognised by the names of its files."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple, TypeVar
from urllib.parse import quote, unquote

from gratis.errors import GratisError, wait_for
from gratis.network import DEFAULT_LIMITS, NetworkLimits, Server, is_lasting, is_of_server

READ_AHEAD = 4 << 20  # of a URL: archives are listed header by header, in order
T = TypeVar("T")


class _Process:
    """What this process reads with. servers: those, and buckets, that have answered it."""

    limits: NetworkLimits = DEFAULT_LIMITS
    servers: ClassVar[dict[str, Server]] = {}


def use_limits(limits: NetworkLimits, *, answered: tuple[str, ...] = ()) -> None:
    """From now on this process waits so long for servers. answered: URLs that another process has
    reached, so that their servers are waited for from the start."""
    if _Process.limits != limits:
        _Process.limits = limits
        _Process.servers.clear()
    for url in filter(is_url, answered):
        _Process.servers.setdefault(_server_of(url), Server(url, limits, answered=True))


def ask(url: str, request: Callable[[], T]) -> T:
    """What the request to the URL's server returns or raises; tried again where that may help."""
    filesystem(url)
    return _Process.servers[_server_of(url)].ask(request, f"cannot read {url}")


def _server_of(url: str) -> str:
    return "/".join(url.split("/")[:3])


class FileEntry(NamedTuple):
    """A file or folder in a folder. size: bytes; 0 for a folder, -1 for what is neither."""

    name: str
    size: int
    is_folder: bool


def describe(error: Exception) -> str:
    """An exception of any library on one line: "ClientError: An error occurred ..."."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def is_url(address: str) -> bool:
    return "://" in address


def join(folder: str, name: str) -> str:
    if not is_url(folder):
        return os.path.join(folder, name)
    return f"{folder.rstrip('/')}/{quote(name) if _is_web(folder) else name}"


def name_of(address: str) -> str:
    """The last part of an address, as it is called where it lies."""
    name = address.rpartition("/")[2]
    return unquote(name) if _is_web(address) else name


def _is_web(address: str) -> bool:
    """Whether names are quoted in such addresses: a%20b."""
    return address.startswith(("http://", "https://"))


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system for the URL, and its path there. GratisError if the package for it is
    not installed, or if the server does not answer at all."""
    limits, server = _Process.limits, _server_of(url)
    try:
        if server not in _Process.servers:
            wait_for(lambda: _try_server(url, limits), f"cannot read {url}")
            _Process.servers[server] = Server(server, limits, answered=True)
        fs, path = connect(url, limits)
    except GratisError:
        raise
    except Exception as error:  # no such protocol or package, or one that connects already here
        raise GratisError(f"cannot open {url}: {' '.join(str(error).split())}") from None
    return fs, path


def connect(url: str, limits: NetworkLimits) -> tuple[Any, str]:
    """fsspec's file system for the URL, and its path there, with the limit on silence and without
    its library's own further tries, as far as they can be turned off (gcsfs makes six)."""
    from fsspec.core import url_to_fs  # 0.1 s that local runs need not pay

    files, path = url_to_fs(url, **_options(url.partition("://")[0], limits.read_timeout_s))
    if hasattr(files, "config_kwargs"):
        files.retries = 1  # s3fs's own
    return files, path


def _options(protocol: str, timeout_s: float) -> dict[str, Any]:
    """A user's own, of fsspec's configuration, stay."""
    from fsspec.config import conf

    theirs: dict[str, Any] = conf.get(protocol, {})
    if protocol in ("s3", "s3a"):
        times = {"connect_timeout": timeout_s, "read_timeout": timeout_s}
        own = {**times, "retries": {"max_attempts": 0}}
        return {"config_kwargs": {**theirs.get("config_kwargs", {}), **own}}
    if protocol not in ("http", "https", "gs", "gcs"):
        return {}
    import aiohttp

    # in all as long as it takes: aiohttp's own limit is five minutes, whatever comes
    limits = aiohttp.ClientTimeout(total=None, sock_connect=timeout_s, sock_read=timeout_s)
    if protocol in ("gs", "gcs"):
        return {"requests_timeout": limits}  # a session's limit is not asked by gcsfs's requests
    return {"client_kwargs": {**theirs.get("client_kwargs", {}), "timeout": limits}}


def _try_server(url: str, limits: NetworkLimits) -> None:
    """Returns once the server answers anything: that a file is missing or not allowed is reported
    when it is read."""
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs each try, and raises the last
    fs, path = connect(url, limits)
    try:
        fs.info(path)
    except FileNotFoundError as error:
        # over HTTP it is raised for a server that cannot be reached, too
        cause = error.__cause__
        if cause is not None and not is_of_server(cause) and not is_lasting(cause):
            raise cause from None
    except Exception:
        return


def is_file(address: str) -> bool:
    if not is_url(address):
        return os.path.isfile(address)
    try:  # fsspec's own isfile is False for a server that is away
        return bool(_info(address)["type"] == "file")
    except GratisError:
        raise
    except Exception:  # not there, or kept from us
        return False


def is_folder(address: str) -> bool:
    if not is_url(address):
        return os.path.isdir(address)
    fs, path = filesystem(address)
    try:
        if _is_web(address):
            return bool(ask(address, lambda: fs.ls(path)))
        return bool(_info(address)["type"] == "directory")
    except (FileNotFoundError, ValueError):
        return False
    except GratisError:
        raise
    except Exception as error:
        raise _unreadable(address, error) from None


def _info(url: str) -> dict[str, Any]:
    fs, path = filesystem(url)
    row: dict[str, Any] = ask(url, lambda: fs.info(path))
    return row


def entries(folder: str) -> list[FileEntry]:
    """What the folder holds, sorted by name, links followed. [] for a URL that does not exist;
    OSError for such a local folder."""
    if not is_url(folder):
        with os.scandir(folder) as listed:
            return sorted(_entry(entry) for entry in listed)
    fs, path = filesystem(folder)
    try:
        rows = ask(folder, lambda: fs.ls(path, detail=True))
    except FileNotFoundError:
        return []
    except GratisError:
        raise
    except Exception as error:  # each service's library has errors of its own
        raise _unreadable(folder, error) from None
    named = [(name_of(row["name"].rstrip("/")), row) for row in rows]
    return sorted(
        FileEntry(name, int(row["size"] or 0), row["type"] == "directory")
        for name, row in named
        if name
    )


def _entry(entry: os.DirEntry[str]) -> FileEntry:
    try:
        if entry.is_dir():
            return FileEntry(entry.name, 0, True)
        return FileEntry(entry.name, entry.stat().st_size if entry.is_file() else -1, False)
    except OSError:  # a link to itself, or a file removed in this moment
        return FileEntry(entry.name, -1, False)


def open_file(address: str) -> BinaryIO:
    """A seekable file. GratisError where a server serves whole files only, and for a pipe."""
    if not is_url(address):
        if Path(address).is_fifo():  # opening it would wait for a writer
            raise GratisError(
                f"{address} is a pipe, no file; remove it, or put the file in its place"
            )
        return open(address, "rb")
    fs, path = filesystem(address)
    try:
        file: BinaryIO = ask(
            address, lambda: fs.open(path, "rb", block_size=READ_AHEAD, cache_type="readahead")
        )
    except (FileNotFoundError, GratisError):
        raise
    except Exception as error:
        raise _unreadable(address, error) from None
    if not file.seekable():
        raise GratisError(
            f"{address}: its server answers no range requests; use one that does, or copy the files"
        )
    return file


def read(address: str) -> bytes:
    with open_file(address) as file:
        if not is_url(address):
            return file.read()
        return ask(address, lambda: _read_whole(file))


def _read_whole(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read()


class Bytes:
    """Random access to one file's bytes: 1 us each where the file is local."""

    def __init__(self, address: str) -> None:
        self._address = address
        self.file = open_file(address)
        self._local = None if is_url(address) else self.file.fileno()
        self.size = self.file.seek(0, os.SEEK_END)

    def read(self, start: int, size: int) -> bytes:
        if self._local is not None:
            return os.pread(self._local, size, start)
        try:
            return ask(self._address, lambda: self._read(start, size))
        except GratisError:
            raise
        except Exception as error:
            raise _unreadable(self._address, error) from None

    def _read(self, start: int, size: int) -> bytes:
        self.file.seek(start)
        return self.file.read(size)

    def __enter__(self) -> Bytes:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()


def read_range(url: str, start: int, end: int | None) -> bytes:
    """Bytes [start, end) of the file at a URL, tried again where the network fails. Raises
    OSError; GratisError for a file that is shorter, Outage."""
    fs, path = filesystem(url)

    def request() -> bytes:
        data: bytes = fs.cat_file(path, start=start, end=end)
        if end is not None and len(data) != end - start:
            short = f"{len(data):,} bytes came, {end - start:,} were asked for"
            if int(fs.info(path)["size"] or 0) < end:
                raise GratisError(f"cannot read {url}: {short}; it has changed, list it again")
            raise OSError(short)
        return data

    try:
        return ask(url, request)
    except (FileNotFoundError, GratisError):
        raise
    except Exception as error:
        raise OSError(str(_unreadable(url, error))) from None


def _unreadable(address: str, error: Exception) -> GratisError:
    return GratisError(f"cannot read {address}: {describe(error)}")
