"""Store: where a dataset is written, a local folder or an fsspec URL. A name appears whole or not
at all.

Locally by fsync and rename. At a URL by one upload, which object stores make visible as a whole; an
interrupted run leaves whole objects only, and the manifest goes up last."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from gratis import addresses
from gratis.atomic import sync_folder
from gratis.errors import GratisError

WORK = (
    ".work"  # beside the dataset until it is published: receipts, the plan, what is being written
)
TOKEN = secrets.token_hex(4)


class Store(Protocol):
    """`name` is relative to the dataset's folder: "train-00000.tar", ".work/plan.json"."""

    def staging(self) -> contextlib.AbstractContextManager[Path]:
        """A local folder to make files in."""

    def publish(self, made: Path, name: str) -> None:
        """Moves a finished local file to its name."""

    def create(self, made: Path, name: str) -> None:
        """The same, unless another was first with that name: then nothing changes."""

    def read(self, name: str) -> bytes:
        """Raises OSError."""

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Name and size of every file there is in the dataset's folder, or in one under it."""

    def remove(self, name: str) -> None:
        """Removes a file, or WORK with all that is in it; what is not there is no error."""


class LocalStore:
    def __init__(self, out: str) -> None:
        self.root = Path(out)

    @contextlib.contextmanager
    def staging(self) -> Iterator[Path]:
        yield self.root / WORK

    def publish(self, made: Path, name: str) -> None:
        with made.open("rb") as file:
            os.fsync(file.fileno())
        made.replace(self.root / name)
        sync_folder((self.root / name).parent)

    def create(self, made: Path, name: str) -> None:
        with made.open("rb") as file:
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(made, self.root / name)
        made.unlink()
        sync_folder((self.root / name).parent)

    def read(self, name: str) -> bytes:
        return (self.root / name).read_bytes()

    def sizes(self, folder: str = "") -> dict[str, int]:
        place = self.root / folder
        if not os.path.isdir(place):  # Path.is_dir raises where it may not look
            return {}
        try:
            return {
                entry.name: entry.size
                for entry in addresses.entries(str(place))
                if not entry.is_folder
            }
        except FileNotFoundError:  # it went meanwhile: another process has published
            return {}
        except PermissionError as error:
            raise GratisError(
                f"cannot list {place}: {error.strerror}; mend that, or choose another OUT"
            ) from None

    def remove(self, name: str) -> None:
        if name == WORK:
            shutil.rmtree(self.root / WORK, ignore_errors=True)
        else:
            (self.root / name).unlink(missing_ok=True)


class RemoteStore:
    """The same at a URL. No lock keeps two runs apart there: the plan, which is created once, keeps
    out other settings, and with the same ones both write the same bytes; whoever ends later finds
    the dataset published. On servers that know no conditional writes, two runs that start in the
    same second may both take their plan for the first."""

    def __init__(self, out: str) -> None:
        self._out = out
        self._fs, self._root = addresses.filesystem(out)

    @contextlib.contextmanager
    def staging(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="shards-") as folder:
            yield Path(folder)

    def publish(self, made: Path, name: str) -> None:
        with _as_os_errors(name):
            self._fs.put_file(str(made), f"{self._root}/{name}")
        made.unlink()

    def create(self, made: Path, name: str) -> None:
        path = f"{self._root}/{name}"
        with contextlib.suppress(FileExistsError), _as_os_errors(name):
            try:
                self._fs.pipe_file(path, made.read_bytes(), mode="create")
            # each service's own: it is there, or conditional writes are not known
            except Exception:
                if not self._fs.exists(path):
                    self._fs.pipe_file(path, made.read_bytes())
        made.unlink()

    def read(self, name: str) -> bytes:
        self._fs.invalidate_cache()  # its listing is of before other processes wrote
        with _as_os_errors(name):
            data: bytes = self._fs.cat_file(f"{self._root}/{name}")
            return data

    def sizes(self, folder: str = "") -> dict[str, int]:
        self._fs.invalidate_cache()
        place = f"{self._root}/{folder}".rstrip("/")
        try:
            rows = self._fs.ls(place, detail=True)
        except FileNotFoundError:
            return {}
        except Exception as error:  # each service's own
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            raise GratisError(
                f"cannot list {self._out}: {reason}; mend that, or choose another OUT"
            ) from None
        return {
            row["name"].rpartition("/")[2]: int(row["size"])
            for row in rows
            if row["type"] == "file"
        }

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError), _as_os_errors(name):
            self._fs.rm(f"{self._root}/{name}", recursive=True)


def open_store(out: str) -> Store:
    return RemoteStore(out) if addresses.is_url(out) else LocalStore(out)


def temporary(name: str) -> str:
    """A name of this process's own: an orphan of kill -9, or another host, may be at the same
    file."""
    return f"{Path(name).name}.{os.getpid()}-{TOKEN}.tmp"


def publish_bytes(store: Store, name: str, data: bytes) -> None:
    with store.staging() as folder:
        made = folder / temporary(name)
        made.write_bytes(data)
        store.publish(made, name)


def create_bytes(store: Store, name: str, data: bytes) -> None:
    with store.staging() as folder:
        made = folder / temporary(name)
        made.write_bytes(data)
        store.create(made, name)


@contextlib.contextmanager
def _as_os_errors(name: str) -> Iterator[None]:
    """Services' libraries have errors of their own; whoever writes files expects OSError."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(
            f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        ) from error
