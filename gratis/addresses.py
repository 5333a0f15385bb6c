"""Files where they lie: a local path, or a URL that fsspec understands (s3://, gs://, http:// ...).
Read only.

Credentials and endpoints are the libraries' own business (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL,
...). Of HTTP servers range requests are asked; they list no folders, so that a source there is
known by the names of its files."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from gratis.errors import GratisError, answered

TRIES = 4
ANSWERED: set[str] = set()  # servers and buckets that have said a word to this process
READ_AHEAD = 4 << 20  # of a URL: archives are listed header by header, in order


class Entry(NamedTuple):
    """What a folder holds: `size` in bytes, 0 for a folder."""

    name: str
    size: int
    is_folder: bool


def is_url(place: str) -> bool:
    return "://" in place


def join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}" if is_url(folder) else os.path.join(folder, name)


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system for the URL, and its path there. GratisError if the package for it is
    not installed, or if the server says nothing at all."""
    from fsspec.core import url_to_fs  # 0.1 s that local runs need not pay

    server = "/".join(url.split("/")[:3])
    try:
        if server not in ANSWERED:
            answered(lambda: _first_words(url), f"cannot read {url}")
            ANSWERED.add(server)
        fs, path = url_to_fs(url)
    except GratisError:
        raise
    except Exception as error:  # no such protocol or package, or one that connects already here
        raise GratisError(f"cannot open {url}: {' '.join(str(error).split())}") from None
    return fs, path


def _first_words(url: str) -> None:
    """Asks for anything. An answer of any kind will do: what is not there or not allowed is told
    where it is missed."""
    from fsspec.core import url_to_fs

    # it tells several times what it raises in the end
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    fs, path = url_to_fs(url)
    try:
        fs.info(path)
    except (
        FileNotFoundError
    ) as error:  # which over HTTP is also said of a server that cannot be reached
        if isinstance(error.__cause__, OSError) and not isinstance(
            error.__cause__, FileNotFoundError
        ):
            raise error.__cause__ from None
    except Exception:
        return


def is_file(place: str) -> bool:
    return _ask(place, "isfile") if is_url(place) else os.path.isfile(place)


def is_folder(place: str) -> bool:
    return _ask(place, "isdir") if is_url(place) else os.path.isdir(place)


def entries(folder: str) -> list[Entry]:
    """What lies in the folder, sorted by name; links are followed, and what is neither file nor
    folder has size -1."""
    if not is_url(folder):
        with os.scandir(folder) as found:
            listed = [_entry(e) for e in found]
        return sorted(entry._replace(size=0) if entry.is_folder else entry for entry in listed)
    fs, path = filesystem(folder)
    try:
        rows = fs.ls(path, detail=True)
    except FileNotFoundError:
        return []
    except Exception as error:  # each service's library has errors of its own
        raise GratisError(_refusal(folder, error)) from None
    found_there = [(row["name"].rstrip("/").rpartition("/")[2], row) for row in rows]
    return sorted(
        Entry(n, int(row["size"] or 0), row["type"] == "directory") for n, row in found_there if n
    )


def _entry(found: os.DirEntry[str]) -> Entry:
    try:
        return Entry(found.name, found.stat().st_size if found.is_file() else -1, found.is_dir())
    except OSError:  # a link to itself, or what has gone in this moment
        return Entry(found.name, -1, False)


def open_file(place: str) -> BinaryIO:
    """A seekable file. GratisError where a server serves whole files only, and for a pipe."""
    if not is_url(place):
        if Path(place).is_fifo():  # whose writer would be waited for
            raise GratisError(
                f"{place} is a pipe, no file; remove it, or put the file in its place"
            )
        return open(place, "rb")
    fs, path = filesystem(place)
    try:
        file: BinaryIO = fs.open(path, "rb", block_size=READ_AHEAD, cache_type="readahead")
    except FileNotFoundError:
        raise
    except Exception as error:
        raise GratisError(_refusal(place, error)) from None
    if not file.seekable():
        raise GratisError(
            f"{place}: its server answers no range requests; use one that does, or copy the files"
        )
    return file


def read(place: str) -> bytes:
    with open_file(place) as file:
        return file.read()


class Bytes:
    """Random access to one file's bytes: 1 us each where the file is local."""

    def __init__(self, place: str) -> None:
        self._place = place
        self.file = open_file(place)
        self._local = None if is_url(place) else self.file.fileno()
        self.size = self.file.seek(0, os.SEEK_END)

    def read(self, start: int, size: int) -> bytes:
        if self._local is not None:
            return os.pread(self._local, size, start)
        try:
            self.file.seek(start)
            return self.file.read(size)
        except Exception as error:
            raise GratisError(_refusal(self._place, error)) from None

    def __enter__(self) -> Bytes:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()


def read_range(url: str, start: int, end: int | None) -> bytes:
    """Bytes [start, end) of what a URL names, tried again where the network fails. Raises
    OSError."""
    fs, path = filesystem(url)
    for attempt in range(TRIES):
        try:
            data: bytes = fs.cat_file(path, start=start, end=end)
        except FileNotFoundError:
            raise
        except Exception as error:
            reason = error
        else:
            if end is None or len(data) == end - start:
                return data
            reason = OSError(f"{len(data)} bytes came, {end - start} were asked for")
        time.sleep(0.2 * 4**attempt)
    raise OSError(_refusal(url, reason))


def _ask(url: str, question: str) -> bool:
    fs, path = filesystem(url)
    try:
        return bool(getattr(fs, question)(path))
    except Exception as error:
        raise GratisError(_refusal(url, error)) from None


def _refusal(place: str, error: Exception) -> str:
    return f"cannot read {place}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
