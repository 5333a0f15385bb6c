"""Datasets on a server (s3://, gs://, https:// and whatever else fsspec reads): what is fetched,
and how it is checked.

Manifest, indices and statistics come into the cache once, into a folder named for the manifest's
hash. Shards follow while epochs run (`gratis.loader.reading.shard_cache`)."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from typing import BinaryIO

from gratis.addresses import connect
from gratis.atomic import atomic_write, open_nonblocking
from gratis.dataset import MANIFEST, STATS, index_name, read_manifest, require_split
from gratis.errors import GratisError, wait_for
from gratis.network import DEFAULT_LIMITS, POLL, FetchCancelled, NetworkLimits, Server, first_line

FOLDER = re.compile("[0-9a-f]{16}")  # of a dataset in the cache: its manifest's hash, shortened
BLOCK = 8 << 20  # bytes of one request: what a broken connection costs at most


class LoaderThread(threading.Thread):
    """One of a loader's own. Garbage, iterators too, may be collected in any thread, and one of
    these that waited for the others might hold what they wait for."""


def is_remote(root: Path | str) -> bool:
    return "://" in str(root)


class Remote:
    """One dataset's files on a server. Every request is tried again after an error that may pass.
    For any thread."""

    def __init__(self, url: str, limits: NetworkLimits = DEFAULT_LIMITS) -> None:
        self.url = url.rstrip("/")
        self.server = Server(self.url, limits, thread=LoaderThread)
        # it logs several times what it raises in the end; a level of the user's stays
        log = logging.getLogger("gcsfs")
        if self.url.startswith(("gs://", "gcs://")) and not log.level:
            log.setLevel(logging.CRITICAL)
        try:
            self._files, self._path = wait_for(
                lambda: connect(self.url, limits), f"{url} cannot be read"
            )
        except GratisError:
            raise
        except Exception as error:  # no such protocol or package, or one that connects already here
            raise GratisError(f"{url} cannot be read: {first_line(error)}") from None

    def read(
        self,
        name: str,
        start: int = 0,
        size: int | None = None,
        *,
        stop: threading.Event | None = None,
    ) -> bytes:
        """A file, or `size` bytes of it. GratisError if it is not there, or shorter; Outage where
        the server is away for too long; FetchCancelled on request."""
        end = None if size is None else start + size

        def request() -> bytes:
            data: bytes = self._files.cat_file(f"{self._path}/{name}", start=start or None, end=end)
            if size is not None and len(data) < size:
                self._refuse_short(name, len(data), start, size)
            return data

        what = f"{self.url}/{name} cannot be read"
        try:
            return self.server.ask(request, what, stop)
        except (GratisError, FetchCancelled):
            raise
        except FileNotFoundError:  # whose text is the address once more
            raise GratisError(f"{what}: {self._missing(name)}") from None
        except Exception as error:
            raise GratisError(f"{what}: {first_line(error)}") from None

    def _missing(self, name: str) -> str:
        if name == MANIFEST:
            way_out = "give the address of a folder that `gratis shards` made, or copy it there"
            return f"it is not there, so this is no dataset; {way_out}"
        return "it is not there; copy the dataset there again"

    def _refuse_short(self, name: str, came: int, start: int, size: int) -> None:
        """GratisError if the file is not so long (or the answer is a page of a server without
        ranges), else OSError: the connection broke."""
        short = f"{came:,} bytes came where {size:,} were asked for"
        if int(self._files.info(f"{self._path}/{name}")["size"] or 0) < start + size:
            advice = "copy the dataset there again"
            raise GratisError(f"{self.url}/{name} cannot be read: {short}; {advice}")
        raise OSError(short)

    def download(
        self, name: str, file: BinaryIO, *, size: int, sha256: str, stop: threading.Event
    ) -> bool:
        """Appends to a file what it lacks of `size` bytes; whether the whole then has that
        sha256."""
        digest, have = hashlib.sha256(), 0
        file.seek(0)
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            have += len(chunk)
        while have < size:
            if stop.is_set():
                raise FetchCancelled
            block = self.read(name, have, min(BLOCK, size - have), stop=stop)
            if len(block) == size and have:  # a server that knows no ranges sends the whole
                block = block[have:]
            file.write(block)
            digest.update(block)
            have += len(block)
        file.flush()
        return have == size and digest.hexdigest() == sha256


def mismatch(remote: Remote, name: str) -> GratisError:
    advice = "copy the dataset there again"
    return GratisError(f"{remote.url}/{name} is not what the manifest says; {advice}")


def dataset_folder(
    root: Path | str,
    split: str = "train",
    cache: str | None = None,
    limits: NetworkLimits = DEFAULT_LIMITS,
) -> Path:
    """The folder on this machine that holds a dataset's manifest, statistics and index of a split:
    root itself, or of an address its place in the cache, fetched if need be. GratisError, also
    where the split is not there; Outage."""
    if not is_remote(root):
        return Path(root)
    return fetch_dataset(Remote(str(root), limits), cache_folder(cache), split)


def read_pieces(root: Path | str, pieces: Iterable[tuple[str, int, int]]) -> Iterator[bytes]:
    """Pieces of a dataset's files, each (file, first byte, how many): of an address, a request for
    each. GratisError if one cannot be read."""
    remote = Remote(str(root)) if is_remote(root) else None
    for name, start, size in pieces:
        if remote:
            data = remote.read(name, start, size)
            # of a server that knows no ranges
            data = data if len(data) == size else data[start : start + size]
        else:
            try:
                with open(Path(root, name), "rb", opener=open_nonblocking) as file:
                    file.seek(start)
                    data = file.read(size)
            except OSError as error:
                message = f"{Path(root, name)} cannot be read: {error.strerror or error}"
                raise GratisError(f"{message}; verify the dataset") from None
        if len(data) < size:
            where = f"{str(root).rstrip('/')}/{name}"
            raise GratisError(f"{where} ends inside a sample; verify the dataset")
        yield data


def cache_folder(chosen: str | None) -> Path:
    """What was chosen, else `gratis` in the user's cache folder."""
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gratis"


def fetch_dataset(remote: Remote, cache: Path, split: str) -> Path:
    """The folder in the cache that holds the dataset's manifest, statistics and this split's
    index."""
    text = _read_manifest(remote, cache)
    folder = cache / hashlib.sha256(text).hexdigest()[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with file_lock(folder / "lock"):
            if not (folder / MANIFEST).exists() or (folder / MANIFEST).read_bytes() != text:
                atomic_write(folder / MANIFEST, text)
            manifest = read_manifest(folder)
            _fetch_small(remote, folder, STATS, manifest.stats_sha256)
            index_sha256 = require_split(remote.url, manifest, split).index_sha256
            _fetch_small(remote, folder, index_name(split), index_sha256)
    except OSError as error:
        raise GratisError(f"the cache {cache} cannot be written: {first_line(error)}") from None
    return folder


def _read_manifest(remote: Remote, cache: Path) -> bytes:
    """Of an address that has answered this machine before one waits as for any other file; another
    may be wrong."""
    known = cache / f"{hashlib.sha256(remote.url.encode()).hexdigest()[:16]}.known"
    remote.server.answered = known.exists()
    if remote.server.answered:
        return remote.read(MANIFEST)
    what = f"{remote.url}/{MANIFEST} cannot be read"
    text = wait_for(lambda: remote.read(MANIFEST), what, lambda: remote.server.answered)
    with suppress(OSError):  # who cannot write there says so below
        cache.mkdir(parents=True, exist_ok=True)
        known.touch()
    return text


@contextmanager
def file_lock(path: Path, stop: threading.Event | None = None) -> Iterator[None]:
    """Holds a lock among the threads and processes of this machine; the system ends it with its
    holder. FetchCancelled on request, while it waits."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        while True:
            try:
                flock(handle, LOCK_EX | (LOCK_NB if stop else 0))
                break
            except BlockingIOError:
                if stop and stop.wait(POLL):
                    raise FetchCancelled from None
        yield
    finally:
        os.close(handle)


def _fetch_small(remote: Remote, folder: Path, name: str, sha256: str) -> None:
    path = folder / name
    if path.exists() and hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
        return
    data = remote.read(name)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise mismatch(remote, name)
    atomic_write(path, data)
