"""Summaries of long event files, kept in the user's cache folder: a server that starts goes on from
there instead of reading a history of days again.

One file for each event file of a rank, its own sha256 and a line of JSON, made anew whenever enough
was read that reading it again would cost several times more. It counts only for the very bytes it
was made from. Where it cannot be written or read, or is damaged, the history is read."""

from __future__ import annotations

import hashlib
import json
import os
import time
from contextlib import suppress
from pathlib import Path

from gratis.atomic import temporary_name
from gratis.server.event_files import RankFile

WORTH = 256 << 10  # bytes of events: some 370 records, which take three times as long to read
# of a file that is not read to its end: what was read since the last one, in bytes and of all
BEHIND_WORTH, BEHIND_SHARE = 1 << 20, 1 / 4
MARK = 4096  # bytes at either end of what was read, by which it is known again
KEPT_S = 30 * 86400.0  # since it was written


def user_cache() -> Path | None:
    """`gratis/status` in the user's cache folder; None without one."""
    with suppress(RuntimeError):  # no home
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return cache / "gratis" / "status"
    return None


class Summaries:
    """folder: None keeps none. Never raises OSError."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._saved: dict[Path, int] = {}  # bytes that the newest summary of a file covers
        self._cleaned = False

    def restore(self, file: RankFile) -> None:
        """Brings a file of which nothing was read to where its summary ends."""
        if self._folder is None or file.behind < WORTH:
            return
        # damaged, of another version or of other bytes: the file is read from its start
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            summary = json.loads(_checked(self._path(file.path).read_bytes()))
            if summary["mark"] == _mark(file.path, summary["offset"]):
                file.restore(summary)
                self._saved[file.path] = file.tail.offset

    def save(self, file: RankFile) -> bool:
        """Writes the file's summary if it is worth it; whether it was."""
        offset = file.tail.offset
        worth = max(BEHIND_WORTH, BEHIND_SHARE * offset) if file.behind else WORTH
        if self._folder is None or offset - self._saved.get(file.path, 0) < worth:
            return False
        self._saved[file.path] = offset
        with suppress(OSError, ValueError):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._clean(self._folder)
            summary = file.summary() | {"mark": _mark(file.path, offset)}
            _write(self._path(file.path), _with_sum(json.dumps(summary).encode()))
        return True

    def _path(self, path: Path) -> Path:
        assert self._folder is not None
        return self._folder / f"{hashlib.sha256(bytes(path.resolve())).hexdigest()[:32]}.json"

    def _clean(self, folder: Path) -> None:
        """Of runs that nobody has looked at for a month."""
        if self._cleaned:
            return
        self._cleaned = True
        for path in folder.glob("*.json*"):  # what a kill has left, too
            with suppress(OSError):  # another server was quicker
                if path.stat().st_mtime < time.time() - KEPT_S:
                    path.unlink()


def _write(path: Path, data: bytes) -> None:
    """As a whole. Nothing is flushed to the disk: what a power cut damages does not count."""
    temporary = path.with_name(temporary_name(path.name))
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def _with_sum(text: bytes) -> bytes:
    return hashlib.sha256(text).hexdigest().encode() + b"\n" + text


def _checked(data: bytes) -> bytes:
    """The text behind its sum. ValueError for any other: what is JSON still may be damaged in its
    values."""
    text = data.partition(b"\n")[2]
    if data != _with_sum(text):
        raise ValueError("the sum differs")
    return text


def _mark(path: Path, offset: int) -> str:
    with path.open("rb") as file:
        head = file.read(MARK)
        file.seek(max(offset - MARK, 0))
        return hashlib.sha256(head + file.read(min(MARK, offset))).hexdigest()
