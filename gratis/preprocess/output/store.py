"""Store: where a dataset is written, a local folder or an fsspec URL. A name appears whole or not
at all.

Locally by fsync and rename. At a URL by one upload, which object stores make visible as a whole; an
interrupted run leaves whole objects only, and the manifest goes up last."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import TypeVar

from gratis import addresses
from gratis.atomic import fsync, move_synced, temporary_name
from gratis.errors import GratisError

T = TypeVar("T")
# what systems say of a disk without hard links
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES, errno.EINVAL)
WORK = ".work"  # in the dataset's folder until publication: plan, receipts, unfinished files


class LocalStore:
    """`address` is the dataset's folder. `name` is relative to it: "train-00000.tar",
    ".work/plan.json"."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.root = Path(address)

    @contextlib.contextmanager
    def staging(self) -> Iterator[Path]:
        """A local folder to make files in."""
        yield self.root / WORK

    def publish(self, file: Path, name: str) -> None:
        """Moves a finished local file to its name."""
        move_synced(file, self.root / name)

    def write(self, name: str, data: bytes) -> None:
        """Writes or replaces a file."""
        self.publish(self._draft(name, data), name)

    def create(self, name: str, data: bytes) -> None:
        """Writes a file, unless another process was first with that name: then nothing changes."""
        draft, path = self._draft(name, data), self.root / name
        fsync(draft)
        try:
            os.link(draft, path)
        except FileExistsError:
            pass
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            self._create_locked(draft, path)
        draft.unlink(missing_ok=True)
        fsync(path.parent)

    def _create_locked(self, draft: Path, path: Path) -> None:
        """The same on a disk without hard links: whoever has the lock renames, if it is the first.
        GratisError where there are no locks either."""
        with (self.root / WORK / "create.lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
            except OSError as error:
                lacks = f"has neither hard links nor locks ({error.strerror})"
                way_out = "choose an OUT on another, and copy the shards there afterwards"
                raise GratisError(f"the disk of {self.root} {lacks}; {way_out}") from None
            if not path.exists():
                move_synced(draft, path)

    def read(self, name: str) -> bytes:
        """Raises OSError."""
        return (self.root / name).read_bytes()

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Name and size of every file in the dataset's folder, or in one under it."""
        place = self.root / folder
        if not os.path.isdir(place):  # Path.is_dir raises where it may not look
            return {}
        try:
            entries = addresses.entries(str(place))
        except FileNotFoundError:  # removed in this moment: another process has published
            return {}
        except PermissionError as error:
            raise _unlisted(str(place), error.strerror) from None
        return {entry.name: entry.size for entry in entries if not entry.is_folder}

    def remove(self, name: str) -> None:
        """Removes a file, or WORK with all that is in it; no error if there is none."""
        if name == WORK:
            shutil.rmtree(self.root / WORK, ignore_errors=True)
        else:
            (self.root / name).unlink(missing_ok=True)

    def _draft(self, name: str, data: bytes) -> Path:
        draft = self.root / WORK / temporary_name(PurePath(name).name)
        draft.write_bytes(data)
        return draft


class RemoteStore:
    """The same at a URL. No lock keeps two runs apart there: the plan, which is created once, keeps
    out other settings, and with the same ones both write the same bytes; the one that ends later
    finds the dataset published. On servers without conditional writes, two runs that start in the
    same second may both take their plan for the first."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._fs, self._root = addresses.filesystem(address)

    @contextlib.contextmanager
    def staging(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="shards-") as folder:
            yield Path(folder)

    def publish(self, file: Path, name: str) -> None:
        with _as_os_errors(name):
            self._ask(lambda: self._fs.put_file(str(file), f"{self._root}/{name}"))
        file.unlink()

    def write(self, name: str, data: bytes) -> None:
        with _as_os_errors(name):
            self._ask(lambda: self._fs.pipe_file(f"{self._root}/{name}", data))

    def create(self, name: str, data: bytes) -> None:
        path = f"{self._root}/{name}"
        with contextlib.suppress(FileExistsError), _as_os_errors(name):
            try:
                self._ask(lambda: self._fs.pipe_file(path, data, mode="create"))
            except GratisError:
                raise
            except Exception:  # each service's own: it exists, or there are no conditional writes
                if not self._ask(lambda: self._fs.exists(path)):
                    self._ask(lambda: self._fs.pipe_file(path, data))

    def read(self, name: str) -> bytes:
        self._fs.invalidate_cache()  # its listing is of before other processes wrote
        with _as_os_errors(name):
            data: bytes = self._ask(lambda: self._fs.cat_file(f"{self._root}/{name}"))
            return data

    def sizes(self, folder: str = "") -> dict[str, int]:
        self._fs.invalidate_cache()
        try:
            place = f"{self._root}/{folder}".rstrip("/")
            rows = self._ask(lambda: self._fs.ls(place, detail=True))
        except FileNotFoundError:
            return {}
        except GratisError:
            raise
        except Exception as error:  # each service's own
            raise _unlisted(self.address, addresses.describe(error)) from None
        files = [row for row in rows if row["type"] == "file"]
        return {row["name"].rpartition("/")[2]: int(row["size"]) for row in files}

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError), _as_os_errors(name):
            self._ask(lambda: self._fs.rm(f"{self._root}/{name}", recursive=True))

    def _ask(self, request: Callable[[], T]) -> T:
        return addresses.ask(self.address, request)


Store = LocalStore | RemoteStore


def open_store(address: str) -> Store:
    return RemoteStore(address) if addresses.is_url(address) else LocalStore(address)


def _unlisted(place: str, reason: str | None) -> GratisError:
    return GratisError(f"cannot list {place}: {reason}; mend that, or choose another OUT")


@contextlib.contextmanager
def _as_os_errors(name: str) -> Iterator[None]:
    """Services' libraries have errors of their own; callers that write files expect OSError."""
    try:
        yield
    except (OSError, GratisError):
        raise
    except Exception as error:
        raise OSError(f"{name}: {addresses.describe(error)}") from error
