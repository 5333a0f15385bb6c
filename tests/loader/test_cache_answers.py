"""The cache of datasets on a server, without a server: what is asked for, what is taken as good,
what makes room, and for whom."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import picture, write_dataset

from gratis import network
from gratis.dataset import Shard, read_manifest
from gratis.errors import GratisError
from gratis.loader.reading import remote as remote_module
from gratis.loader.reading import shard_cache
from gratis.loader.reading.remote import (
    Remote,
    cache_folder,
    dataset_folder,
    fetch_dataset,
    file_lock,
    is_remote,
    read_pieces,
)
from gratis.loader.reading.shard_cache import (
    CachedFile,
    ShardCache,
    ShardUse,
    cached_files,
    uses_of,
)
from gratis.network import FetchCancelled, NetworkLimits

TEXT = bytes(range(48, 78))  # 30 bytes


class Files:
    """fsspec's interface over files in memory. `answers`: what comes instead, in turn."""

    def __init__(self, **files: bytes) -> None:
        self.files, self.asked = files, list[tuple[str, int | None, int | None]]()
        self.answers: list[bytes | Exception] = []
        self.whole = False  # it knows no ranges

    def cat_file(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        name = path.rpartition("/")[2]
        self.asked.append((name, start, end))
        if self.answers:
            answer = self.answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer
        if name not in self.files:
            raise FileNotFoundError(path)
        return self.files[name] if self.whole else self.files[name][start:end]

    def info(self, path: str) -> dict[str, Any]:
        return {"size": len(self.files[path.rpartition("/")[2]])}


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Remote:
    """Of a folder, by fsspec; tried again at once."""
    monkeypatch.setattr(network, "FIRST_PAUSE", 0.0)
    monkeypatch.setattr(network, "MOST_PAUSE", 0.0)
    return Remote(f"file://{tmp_path}/there/")


def in_memory(remote: Remote, **files: bytes) -> Files:
    remote._files = made = Files(**files)
    return made


def test_what_is_an_address() -> None:
    assert [is_remote(root) for root in ("s3://b/p", "a/b", Path("a"), "https://x")] == [
        *(True, False, False, True)
    ]


def test_a_server_is_asked_within_the_user_s_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """In threads that may not wait for each other; the address is without a slash at its end."""
    limits, given = NetworkLimits(outage_s=7.0, read_timeout_s=3.0), list[Any]()

    def connected(url: str, limits: NetworkLimits) -> tuple[Files, str]:
        given.append((url, limits))
        return Files(a=TEXT), "p"

    monkeypatch.setattr(remote_module, "connect", connected)
    remote = Remote("x://y/zX//", limits)
    assert given == [("x://y/zX", limits)]
    assert (remote.url, remote.server.name, remote.server.limits) == (
        "x://y/zX",
        "x://y/zX",
        limits,
    )
    monkeypatch.setattr(
        remote._files, "cat_file", lambda *_, **__: type(threading.current_thread()).__name__
    )
    assert remote.read("a") == "LoaderThread"  # type: ignore[comparison-overlap]
    for error in (ValueError("Protocol not known: x\nmore"), ImportError("Protocol not known: x")):
        monkeypatch.setattr(remote_module, "connect", raising(error))
        with pytest.raises(GratisError) as caught:
            Remote("x://y")
        assert str(caught.value) == "x://y cannot be read: Protocol not known: x"


def test_a_file_or_a_part_of_it_is_asked_for(remote: Remote, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there/a.tar").write_bytes(TEXT)
    assert remote.read("a.tar") == TEXT
    assert remote.read("a.tar", 3) == TEXT[3:]
    assert remote.read("a.tar", 3, 4) == TEXT[3:7]
    assert remote.read("a.tar", 0, 30) == TEXT
    files = in_memory(remote, **{"a.tar": TEXT})
    remote.read("a.tar")
    remote.read("a.tar", 0, 4)
    remote.read("a.tar", 3, 4)
    assert files.asked == [("a.tar", None, None), ("a.tar", None, 4), ("a.tar", 3, 7)]


def test_a_short_answer_is_asked_for_again_and_a_short_file_is_an_error(remote: Remote) -> None:
    files = in_memory(remote, a=TEXT)
    files.answers = [TEXT[3:6], b"", ConnectionResetError()]
    assert remote.read("a", 3, 4) == TEXT[3:7]
    assert len(files.asked) == 4
    files.answers = [b""]
    assert remote.read("a", 20, 10) == TEXT[20:]  # to its end
    files.asked = files.asked[2:]
    with pytest.raises(GratisError) as caught:
        remote.read("a", 20, 11)
    told = f"{remote.url}/a cannot be read: 10 bytes came where 11 were asked for; copy the dataset"
    assert str(caught.value) == f"{told} there again"
    assert len(files.asked) == 5


def test_what_is_not_there(remote: Remote) -> None:
    in_memory(remote)
    assert not remote.url.endswith("/")
    with pytest.raises(GratisError) as caught:
        remote.read("manifest.json")
    assert str(caught.value).startswith(
        f"{remote.url}/manifest.json cannot be read: it is not there, so this is no dataset; give"
    )
    with pytest.raises(GratisError) as caught:
        remote.read("b.tar")
    told = "b.tar cannot be read: it is not there; copy the dataset there again"
    assert str(caught.value) == f"{remote.url}/{told}"


def test_an_error_that_lasts_is_one_line(remote: Remote) -> None:
    files = in_memory(remote, a=TEXT)
    files.answers = [PermissionError(13, "Not yours\nat all")]
    with pytest.raises(GratisError) as caught:
        remote.read("a")
    assert str(caught.value) == f"{remote.url}/a cannot be read: [Errno 13] Not yours"


@pytest.mark.parametrize("how", ["read", "download"])
def test_who_waits_for_a_silent_server_can_be_stopped(
    remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(network, "POLL", 0.01)
    files, stop, silent = in_memory(remote, a=TEXT), threading.Event(), threading.Event()

    def cat_file(*_: Any, **__: Any) -> bytes:
        stop.set()
        silent.wait(30)
        return TEXT

    monkeypatch.setattr(files, "cat_file", cat_file)
    asked: dict[str, Callable[[], object]] = {
        "read": lambda: remote.read("a", stop=stop),
        "download": lambda: downloaded(remote, tmp_path / "part", TEXT, stop=stop),
    }
    try:
        with pytest.raises(FetchCancelled):
            asked[how]()
    finally:
        silent.set()


def downloaded(remote: Remote, path: Path, data: bytes, **terms: Any) -> bool:
    whole: dict[str, Any] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    whole |= {"stop": threading.Event()} | terms
    with path.open("ab+") as file:
        return remote.download("a", file, **whole)


@pytest.mark.parametrize(
    ("have", "asked"),
    [
        (0, [(None, 8), (8, 16), (16, 24), (24, 30)]),
        (5, [(5, 13), (13, 21), (21, 29), (29, 30)]),
        (22, [(22, 30)]),
        (30, []),
    ],
)
def test_a_download_goes_on_behind_what_is_there(
    remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, have: int, asked: Any
) -> None:
    monkeypatch.setattr(remote_module, "BLOCK", 8)
    files, path = in_memory(remote, a=TEXT), tmp_path / "part"
    path.write_bytes(TEXT[:have])
    assert downloaded(remote, path, TEXT)
    assert path.read_bytes() == TEXT
    assert [one[1:] for one in files.asked] == asked


def test_only_the_manifest_s_bytes_are_good(remote: Remote, tmp_path: Path) -> None:
    path = tmp_path / "part"
    in_memory(remote, a=TEXT)
    path.write_bytes(b"?")  # a part that rotted
    assert not downloaded(remote, path, TEXT)
    path.write_bytes(TEXT + b"?")
    assert not downloaded(remote, path, TEXT)
    path.write_bytes(TEXT + b"?")
    assert not downloaded(remote, path, TEXT, sha256=hashlib.sha256(TEXT + b"?").hexdigest())
    path.write_bytes(TEXT[:29])
    assert not downloaded(remote, path, TEXT, sha256=hashlib.sha256(TEXT[:29]).hexdigest())


def test_a_part_of_megabytes_goes_on(remote: Remote, tmp_path: Path) -> None:
    """Which is read in pieces itself."""
    data, path = TEXT * 75_000, tmp_path / "part"
    files = in_memory(remote, a=data)
    path.write_bytes(data[:-4])
    assert downloaded(remote, path, data)
    assert files.asked == [("a", len(data) - 4, len(data))]
    assert path.read_bytes() == data


def test_a_server_that_knows_no_ranges_and_one_that_is_left(remote: Remote, tmp_path: Path) -> None:
    files, path = in_memory(remote, a=TEXT), tmp_path / "part"
    files.whole = True
    path.write_bytes(TEXT[:12])
    assert downloaded(remote, path, TEXT)
    assert path.read_bytes() == TEXT
    stop = threading.Event()
    stop.set()
    path.write_bytes(TEXT[:12])
    with pytest.raises(FetchCancelled):
        downloaded(remote, path, TEXT, stop=stop)
    assert downloaded(remote, tmp_path / "whole", TEXT) is True


def test_pieces_of_files_here_and_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(TEXT)
    pieces = [("a", 4, 6), ("a", 0, 1), ("a", 29, 1)]
    wanted = [TEXT[4:10], TEXT[:1], TEXT[29:]]
    assert list(read_pieces(tmp_path, pieces)) == wanted
    assert list(read_pieces(f"file://{tmp_path}", pieces)) == wanted
    with pytest.raises(GratisError) as caught:
        list(read_pieces(tmp_path, [("a", 28, 3)]))
    assert str(caught.value) == f"{tmp_path}/a ends inside a sample; verify the dataset"
    with pytest.raises(GratisError, match=r"/b cannot be read: No such file .*; verify the"):
        list(read_pieces(tmp_path, [("b", 0, 3)]))
    files = Files(a=TEXT)
    files.whole = True
    monkeypatch.setattr(remote_module, "connect", lambda url, limits: (files, "p"))
    assert list(read_pieces("x://y", pieces)) == wanted
    with pytest.raises(GratisError, match="x://y/a ends inside a sample; verify the dataset"):
        list(read_pieces("x://y/", [("a", 28, 3)]))


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder("here/it/is") == Path("here/it/is")
    assert cache_folder(None) == Path("/x/gratis")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder(None) == Path.home() / ".cache/gratis"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder("") == Path.home() / ".cache/gratis"
    assert dataset_folder(tmp_path) == tmp_path


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """30 samples in three shards."""
    return write_dataset(tmp_path / "there", [picture(i, 16) for i in range(30)])


NAMES = ["manifest.json", "stats.npz", "train.index.npz"]


def test_what_the_loader_reads_beside_the_shards_is_held_against_the_server(
    there: Path, remote: Remote, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    folder = fetch_dataset(remote, cache, "train")
    manifest = (there / "manifest.json").read_bytes()
    assert folder == cache / hashlib.sha256(manifest).hexdigest()[:16]
    assert sorted(path.name for path in folder.iterdir()) == ["lock", *NAMES]
    (known,) = cache.glob("*.known")
    assert known.stem == hashlib.sha256(remote.url.encode()).hexdigest()[:16]
    files = in_memory(remote, **{name: (there / name).read_bytes() for name in NAMES})
    assert fetch_dataset(remote, cache, "train") == folder
    assert files.asked == [("manifest.json", None, None)]
    for name in NAMES:  # whatever became of one here, it is as published again
        (folder / name).write_bytes(b"other")
        files.asked.clear()
        fetch_dataset(remote, cache, "train")
        assert (folder / name).read_bytes() == (there / name).read_bytes()
        assert {one[0] for one in files.asked} == {"manifest.json", name}
    for name in NAMES[1:]:
        (folder / name).unlink()
        files.files[name] += b"?"
        with pytest.raises(GratisError) as caught:
            fetch_dataset(remote, cache, "train")
        told = f"{remote.url}/{name} is not what the manifest says; copy the dataset there again"
        assert str(caught.value) == told
        assert not (folder / name).exists()
        files.files[name] = files.files[name][:-1]
    with pytest.raises(GratisError, match=f"{remote.url} has no split 'val'; it has train"):
        fetch_dataset(remote, cache, "val")
    assert dataset_folder(remote.url, "train", str(cache)) == folder
    assert dataset_folder(remote.url, cache=str(cache)) == folder


def test_a_cache_that_cannot_be_written(there: Path, remote: Remote, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GratisError) as caught:
        fetch_dataset(remote, tmp_path / "file", "train")
    assert str(caught.value).startswith(f"the cache {tmp_path}/file cannot be written: [Errno")


def test_an_address_that_has_answered_is_waited_for_as_any_other_file(
    there: Path, remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote.server.answered = True
    in_memory(remote, **{name: (there / name).read_bytes() for name in NAMES})
    seen, cat = list[bool](), remote._files.cat_file

    def cat_file(*asked: Any, **terms: Any) -> bytes:
        seen.append(remote.server.answered)
        data: bytes = cat(*asked, **terms)
        return data

    monkeypatch.setattr(remote._files, "cat_file", cat_file)
    for _ in range(2):
        fetch_dataset(remote, tmp_path / "cache", "train")
    assert seen == [False, True, True, True]


def test_a_lock_is_one_holder_s(tmp_path: Path) -> None:
    path, stop = tmp_path / "lock", threading.Event()
    stop.set()
    with file_lock(path):
        with pytest.raises(FetchCancelled), file_lock(path, stop):
            pytest.fail("it was held twice")
        with file_lock(tmp_path / "other", stop):  # nobody's: no wait that could be ended
            pass
    with pytest.raises(KeyError), file_lock(path, threading.Event()):
        raise KeyError
    with file_lock(path, stop):
        pass


def cache_of(remote: Remote, there: Path, cache: Path, limit: int = 10**9) -> ShardCache:
    folder = cache / "0123456789abcdef"
    folder.mkdir(parents=True, exist_ok=True)
    return ShardCache(remote, folder, read_manifest(there).splits["train"].shards, limit)


def content(cache: ShardCache, number: int) -> bytes:
    file = cache.open(number)
    try:
        return os.pread(file, 1 << 20, 0)
    finally:
        os.close(file)


def test_a_shard_is_taken_from_the_cache_only_as_published(
    there: Path, remote: Remote, tmp_path: Path
) -> None:
    """What is whole is not fetched again; of another length, it is; a part goes on, and a part that
    rotted begins anew, once."""
    data = {path.name: path.read_bytes() for path in there.glob("*.tar")}
    files = in_memory(remote, **data)
    cache = cache_of(remote, there, tmp_path / "cache")
    first, size = "train-00000.tar", len(data["train-00000.tar"])
    path = tmp_path / "cache/0123456789abcdef" / first
    part = path.with_name(f"train-00000.{size}.part")
    assert content(cache, 0) == data[first]
    assert files.asked == [(first, None, size)]
    assert not part.exists()
    os.utime(path, (1, 1))
    assert content(cache, 0) == data[first]
    assert len(files.asked) == 1
    assert path.stat().st_mtime > 1
    path.write_bytes(data[first] + b"?")
    assert content(cache, 0) == data[first]
    assert len(files.asked) == 2
    path.unlink()
    part.write_bytes(data[first][:100])
    assert content(cache, 0) == data[first]
    assert files.asked[2:] == [(first, 100, size)]
    path.unlink()
    part.write_bytes(b"?" * 100)
    assert content(cache, 0) == data[first]
    assert files.asked[3:] == [(first, 100, size), (first, None, size)]
    path.unlink()
    files.files[first] = data[first][::-1]
    with pytest.raises(GratisError, match=r"train-00000\.tar is not what the manifest says"):
        cache.open(0)
    assert files.asked[5:] == [(first, None, size)] * 2
    assert not path.exists()
    assert not part.exists()
    assert content(cache, 2) == data["train-00002.tar"]


def of_size(number: int, size: int) -> Shard:
    return Shard(name=f"train-{number:05d}.tar", samples=1, bytes=size, sha256="")


USES = [ShardUse(0, 0, 2), ShardUse(3, 1, 1), ShardUse(1, 2, 4), ShardUse(2, 5, 6)]
SIZES = [100, 50, 70, 40]  # bytes of each shard


@pytest.fixture
def planned(remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ShardCache:
    """A cache of shards that nobody fetches, inside an epoch."""
    monkeypatch.setattr(shard_cache, "FETCHERS", 0)
    folder = tmp_path / "cache/0123456789abcdef"
    folder.mkdir(parents=True)
    shards = tuple(of_size(number, size) for number, size in enumerate(SIZES))
    cache = ShardCache(remote, folder, shards, 150)
    cache.begin(USES, 0)
    return cache


def test_space_is_checked_against_the_fullest_step(planned: ShardCache) -> None:
    """In step 2 the first and the second shard: 150 bytes."""
    planned.begin([], 0)
    with pytest.raises(GratisError) as caught:
        planned.begin([*USES, ShardUse(3, 4, 5), ShardUse(0, 4, 4)], 0)
    wanted = "this order reads 1.9e-07 GB of shards side by side and cache_gb is 1.5e-07; raise it"
    assert str(caught.value).startswith(wanted)
    planned._limit = 149
    with pytest.raises(GratisError, match=r"reads 1\.5e-07 GB"):
        planned.begin(USES, 0)


def test_what_is_still_of_use_in_a_step(planned: ShardCache) -> None:
    assert [planned.at(step) for step in range(8)] == [
        *({0, 1, 2, 3}, {0, 1, 2, 3}, {0, 1, 2}, {1, 2}, {1, 2}, {2}, {2}, set())
    ]


def test_shards_are_fetched_ahead_as_far_as_there_is_space(planned: ShardCache) -> None:
    """Whatever the space, those of the step itself: the reader waits for them."""

    def fits() -> list[bool]:
        return [planned._fits(number) for number in range(4)]

    assert fits() == [True, True, False, False]  # 100, 140, 190, 260
    planned.at(2)
    assert fits() == [True, True, True, False]  # 100, -, 150, 220
    planned.at(3)
    assert fits() == [True] * 4
    planned.at(0)
    assert [planned._take(), planned._take()] == USES[:2]
    taken: list[ShardUse | None] = []
    waiting = threading.Thread(target=lambda: taken.append(planned._take()), daemon=True)
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()  # for step 2, or for space
    planned.at(2)
    waiting.join(5)
    assert taken == [USES[2]]
    planned.at(3)
    assert planned._take() == USES[3]
    assert planned._take() is None
    planned.begin(USES, 0)
    planned.stop()
    assert planned._take() is None
    planned.close()
    planned.begin(USES, 4)
    assert planned._take() == USES[0]  # closed, and begun again


def put(cache: ShardCache, name: str, size: int, used: float, folder: str = "") -> Path:
    path = cache._folder.parent / (folder or cache._folder.name) / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(bytes(size))
    os.utime(path, (used, used))
    return path


def test_what_counts_as_held(planned: ShardCache, tmp_path: Path) -> None:
    """Shards, and parts by what they will take; of this dataset and of others; nothing else."""
    shard = put(planned, "train-00000.tar", 7, 30)
    part = put(planned, "train-00001.1234.part", 5, 20, "fedcba9876543210")
    for name in ("train.index.npz", "train-00000.lock", "a.tar.gz", "a.x.part", "1.part.bak"):
        put(planned, name, 9, 1)
    put(planned, "mine.tar", 9, 1, "photographs")
    put(planned, "mine.tar", 9, 1, "0123456789abcdef0")
    put(planned, "mine.tar", 9, 1, "0123456789ABCDEF")
    assert cached_files(tmp_path / "cache") == [
        CachedFile(20, 1234, part),
        CachedFile(30, 7, shard),
    ]


def evicted(cache: ShardCache, part: Path, room: int, files: list[Path], **how: Any) -> list[str]:
    cache._evict(part, lambda held: held + room > 150, **how)
    return [path.name for path in files if not path.exists()]


def test_what_was_used_longest_ago_goes_and_what_the_epoch_wants_does_not(
    planned: ShardCache,
) -> None:
    planned._next = 3  # of the first three uses all are wanted: 0, 3 and 1
    files = [
        put(planned, "train-00000.tar", 20, 1),
        put(planned, "old.tar", 30, 2, "fedcba9876543210"),
        put(planned, "newer.50.part", 1, 3, "fedcba9876543210"),
        put(planned, "train-00003.tar", 10, 0),
        put(planned, "train-00002.tar", 40, 4),
    ]
    part = put(planned, "train-00001.tar.part", 60, 9).with_name("train-00001.60.part")
    assert evicted(planned, part, 0, files) == []  # 150 are held
    assert evicted(planned, part, 1, files) == ["old.tar"]
    assert evicted(planned, part, 30, files) == ["old.tar"]
    assert evicted(planned, part, 31, files, once=True) == ["old.tar", "newer.50.part"]
    assert evicted(planned, part, 140, files) == [*("old.tar", "newer.50.part", "train-00002.tar")]
    for spare, gone in ((True, []), (False, ["train-00003.tar"])):  # wanted last of those here
        before = [path.name for path in files if not path.exists()]
        found = evicted(planned, part, 131, files, once=True, spare=spare)
        assert [name for name in found if name not in before] == gone
    assert (planned._folder / "train-00000.tar").exists()
    planned.at(3)  # behind its last step it is wanted no more
    assert "train-00000.tar" in evicted(planned, part, 140, files)


def test_a_part_that_somebody_is_at_work_on_stays(planned: ShardCache) -> None:
    part = put(planned, "x.50.part", 1, 3)
    mine = put(planned, "y.50.part", 1, 2)
    other = planned._folder / "z.9.part"

    def too_much(held: int) -> bool:
        return True

    with file_lock(part.with_name("x.lock")):
        assert planned._evict(mine, too_much) is False
        assert part.exists()
        assert planned._evict(other, too_much) is True
    assert part.exists()
    assert not mine.exists()
    assert planned._evict(other, too_much) is True
    assert not part.exists()


def test_room_is_made_and_kept_for_a_download(planned: ShardCache) -> None:
    old = put(planned, "old.tar", 60, 1, "fedcba9876543210")
    part = planned._folder / "train-00000.100.part"
    planned._make_room(part, 90)
    assert old.exists()
    assert part.exists()
    planned._make_room(part, 91)
    assert not old.exists()
    assert (planned._folder.parent / "evict.lock").exists()


def test_a_full_disk_drops_one_file_at_a_time(
    there: Path, remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And says so when there is none left."""
    cache = cache_of(remote, there, tmp_path / "cache")
    files = [put(cache, f"{name}.tar", 10, k, "fedcba9876543210") for k, name in enumerate("abc")]
    real, left = remote.download, [2, 100]

    def full(*arguments: Any, **terms: Any) -> bool:
        if left[0]:
            left[0] -= 1
            raise OSError(28, "No space left on device")
        return real(*arguments, **terms)

    monkeypatch.setattr(remote, "download", full)
    assert content(cache, 0) == (there / "train-00000.tar").read_bytes()
    assert [path.exists() for path in files] == [False, False, True]
    left[0] = 100
    with pytest.raises(GratisError) as caught:
        cache.open(1, ahead=True)
    told = f"the cache {tmp_path}/cache cannot hold train-00001.tar: [Errno 28] No space left"
    assert str(caught.value).startswith(told)
    assert left[0] == 100 - 3  # c and the first shard went before it gave up
    left[0] = 1
    monkeypatch.setattr(remote, "download", raising(OSError(5, "Input/output error")))
    with pytest.raises(GratisError, match=r"cannot hold train-00001\.tar: .*Input/output error"):
        cache.open(1)


def raising(error: Exception) -> Callable[..., bool]:
    def raises(*_: Any, **__: Any) -> bool:
        raise error

    return raises


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not [one for one in threading.enumerate() if one.name == "loader-fetch"]


def test_an_epoch_s_shards_are_fetched_ahead_in_its_order(
    there: Path, remote: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By threads that an interpreter's end does not wait for; what is here is not fetched again."""
    data = {path.name: path.read_bytes() for path in there.glob("*.tar")}
    names = [f"train-{number:05d}.tar" for number in (2, 0, 1)]
    files, cache = in_memory(remote, **data), cache_of(remote, there, tmp_path / "cache")
    uses = [ShardUse(2, 0, 0), ShardUse(0, 0, 1), ShardUse(1, 1, 2)]
    monkeypatch.setattr(shard_cache, "FETCHERS", 1)
    cache.begin(uses, 0)
    (thread,) = cache._fetchers
    assert (thread.name, thread.daemon) == ("loader-fetch", True)
    thread.join(10)
    assert [one[0] for one in files.asked] == names
    for name in names:
        assert (cache._folder / name).read_bytes() == data[name]
        assert (cache._folder / name).with_suffix(".lock").exists()
    monkeypatch.setattr(shard_cache, "FETCHERS", 3)
    (cache._folder / names[1]).unlink()
    cache.begin(uses[1:], 1)
    assert len(cache._fetchers) == 2
    for thread in cache._fetchers:
        thread.join(10)
    assert [one[0] for one in files.asked[3:]] == [names[1]]
    files.answers = [FileNotFoundError()]
    (cache._folder / names[0]).unlink()
    cache.begin(uses[:1], 0)  # who fetches ahead leaves an error to who reads
    cache._fetchers[0].join(10)
    assert not (cache._folder / names[0]).exists()
    cache.close()
    assert not cache._fetchers


@pytest.mark.parametrize(("batch_size", "first_step"), [(1, 0), (3, 0), (3, 2), (4, 7), (9, 3)])
def test_the_steps_between_which_a_shard_is_read(batch_size: int, first_step: int) -> None:
    shards = np.random.default_rng(batch_size).integers(0, 9, 26).astype(np.int32)
    read: dict[int, list[int]] = {}
    for place, shard in enumerate(shards.tolist()):
        if place // batch_size >= first_step:
            read.setdefault(shard, []).append(place // batch_size)
    found = uses_of(shards, batch_size, first_step)
    assert {use.shard: [use.first, use.last] for use in found} == {
        shard: [min(steps), max(steps)] for shard, steps in read.items()
    }
    assert [use.first for use in found] == sorted(use.first for use in found)
    assert len(found) == len(read)
    assert uses_of(np.empty(0, np.int32), batch_size, 0) == []
