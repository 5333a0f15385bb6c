"""Nothing waits for what never comes: a silent server, a thread that a fork did not copy,
itself."""

from __future__ import annotations

import gc
import itertools
import logging
import os
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from handmade import picture, write_dataset
from serving import FaultyServer, Handler, faulty

from gratis.dataset import read_manifest
from gratis.errors import GratisError
from gratis.loader import Loader, LoaderConfig, read_pieces
from gratis.loader.reading.remote import LoaderThread, Remote, fetch_dataset, file_lock
from gratis.loader.reading.shard_cache import ShardCache, ShardUse
from gratis.preprocess.verify import VerifyConfig, verify_dataset

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # fsspec keeps its connections


def make(root: Path | str, **options: Any) -> Loader:
    return Loader(
        root, "train", LoaderConfig(**({"batch_size": 12, "crop": 48, "threads": 1} | options))
    )


def within(seconds: float, work: Any) -> None:
    """In a thread, so that a hang is a failure and not the end of the tests."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive()


def test_closing_does_not_wait_for_a_server_that_says_nothing(
    server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent, reached, answer = threading.Event(), threading.Event(), Handler.do_GET

    def asked(handler: Handler) -> None:
        if handler.path.endswith(".tar"):
            reached.set()
            silent.wait(120)
        answer(handler)

    monkeypatch.setattr(Handler, "do_GET", asked)
    loader = make(server.url, cache=str(tmp_path / "cache"))
    batches = iter(loader)
    with ThreadPoolExecutor(1) as thread:
        first = thread.submit(next, batches)
        try:
            assert reached.wait(60)
            within(10, loader.close)
        finally:
            silent.set()
        with pytest.raises(RuntimeError, match="closed"):
            first.result(60)
    with pytest.raises(RuntimeError, match="closed"):
        next(batches)


def test_whoever_waits_when_another_thread_closes_is_told_that(
    server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them: the second was asked whether its process was forked."""
    silent, reached, answer = threading.Event(), threading.Event(), Handler.do_GET

    def asked(handler: Handler) -> None:
        if handler.path.endswith(".tar"):
            reached.set()
            silent.wait(120)
        answer(handler)

    monkeypatch.setattr(Handler, "do_GET", asked)
    loader = make(server.url, cache=str(tmp_path / "cache"))
    batches = iter(loader)
    with ThreadPoolExecutor(3) as threads:
        waiting = [threads.submit(next, batches)]
        assert reached.wait(60)  # the epoch has begun
        waiting += [threads.submit(next, batches) for _ in range(2)]
        try:
            within(10, loader.close)
        finally:
            silent.set()
        for one in waiting:
            with pytest.raises(RuntimeError, match="closed"):
                one.result(60)


@pytest.mark.parametrize(
    "name", ["train-00001.tar", "manifest.json", "stats.npz", "train.index.npz"]
)
def test_a_pipe_in_a_file_s_place_is_one_line(
    jpeg_dataset: Path, tmp_path: Path, name: str
) -> None:
    root = Path(shutil.copytree(jpeg_dataset, tmp_path / "d"))
    (root / name).unlink()
    os.mkfifo(root / name)

    def reads() -> None:
        for read, words in (
            (lambda: list(make(root)), name),
            (lambda: list(read_pieces(root, [(name, 0, 1)])), name),
            (lambda: verify_dataset(VerifyConfig(shards=str(root))), "finding|manifest"),
        ):
            with pytest.raises(GratisError, match=words) as caught:
                read()
            messages.append(str(caught.value))

    messages: list[str] = []
    within(30, reads)
    assert len(messages) == 3
    assert not any("\n" in line or "None" in line for line in messages)


def test_an_epoch_that_a_signal_closes_while_it_waits_does_not_seem_whole(
    server: FaultyServer, tmp_path: Path
) -> None:
    loader = make(server.url, cache=str(tmp_path))
    server.latency_s = 5
    before = signal.signal(signal.SIGALRM, lambda *_: loader.close())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5, 0.5)  # again, where none waited yet
        with pytest.raises(RuntimeError, match="closed while it waited"):
            list(loader)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        server.latency_s = 0


def test_closing_does_not_wait_for_who_counts_the_cache(
    server: FaultyServer, tmp_path: Path
) -> None:
    """Another process, stopped while it held the lock."""
    loader = make(server.url, cache=str(tmp_path))
    batches = iter(loader)
    with ThreadPoolExecutor(1) as thread, file_lock(tmp_path / "evict.lock"):
        first = thread.submit(next, batches)
        for _ in range(600):
            if any(tmp_path.glob("*/*-*.lock")):
                break
            time.sleep(0.1)
        else:
            pytest.fail("no shard is asked for")
        within(10, loader.close)
        with pytest.raises(RuntimeError, match="closed"):
            first.result(60)
    with pytest.raises(RuntimeError, match="closed"):
        next(batches)


def test_an_iterator_that_is_collected_in_a_thread_of_the_loader_ends_it(
    server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a thread that fetches shards drops the last reference, it must not wait for itself."""
    ring: list[Any] = []
    dropped, collected, fetched = threading.Event(), threading.Event(), itertools.count()
    download = Remote.download

    def collects(remote: Remote, *args: Any, **terms: Any) -> bool:
        # the sixth shard that is fetched ahead: the first batch comes without it
        if threading.current_thread().name == "loader-fetch" and next(fetched) == 5:
            dropped.wait(60)
            ring.clear()
            gc.collect()
            collected.set()
        return download(remote, *args, **terms)

    monkeypatch.setattr(Remote, "download", collects)
    loader = make(server.url, cache=str(tmp_path), order="window", window=1)
    ring.append(iter(loader))
    next(ring[0])
    ring.append(ring)
    dropped.set()
    assert collected.wait(10)
    for thread in threads_of_loaders():
        thread.join(10)
    assert not threads_of_loaders()
    within(10, loader.close)
    assert sum(1 for _ in loader) == len(loader)


def threads_of_loaders() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if isinstance(thread, LoaderThread)]


def test_an_iterator_that_is_collected_in_such_a_thread_at_its_end_leaves_no_file(
    jpeg_dataset: Path,
) -> None:
    """The thread that makes the batches has made them all, and closes nothing any more."""

    def shards_open() -> int:
        places = (
            os.readlink(f"/proc/self/fd/{file}")
            for file in os.listdir("/proc/self/fd")
            if _there(file)
        )
        return sum(
            place.startswith(str(jpeg_dataset)) and place.endswith(".tar") for place in places
        )

    loader = make(jpeg_dataset)
    batches = [iter(loader)]
    for _ in range(len(loader) - 1):
        next(batches[0])
    for thread in threads_of_loaders():
        thread.join(60)
    assert shards_open() > 0
    helper = LoaderThread(target=batches.clear, daemon=True)
    helper.start()
    helper.join(60)
    assert shards_open() == 0


def _there(file: str) -> bool:
    return os.path.islink(f"/proc/self/fd/{file}")


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.starts
def test_a_fork_inside_an_epoch_is_an_error_in_the_child(jpeg_dataset: Path) -> None:
    """`take` would wait for a thread that no fork copies."""
    loader = make(jpeg_dataset)
    batches = iter(loader)
    next(batches)
    if (child := os.fork()) == 0:
        try:
            for _ in batches:
                pass
        except RuntimeError as error:
            os._exit(0 if "forked inside an epoch" in str(error) else 1)
        os._exit(2)
    for _ in range(200):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        time.sleep(0.05)
    else:
        os.kill(child, 9)
        os.waitpid(child, 0)
        pytest.fail("the child waits")
    assert os.waitstatus_to_exitcode(status) == 0
    assert sum(1 for _ in batches) == len(loader) - 1


def test_a_shard_that_went_before_it_was_opened_is_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process made room for its own."""
    root = write_dataset(tmp_path / "data", [picture(i) for i in range(20)])
    with faulty(root) as server:
        remote = Remote(server.url)
        folder = fetch_dataset(remote, tmp_path / "cache", "train")
        cache = ShardCache(remote, folder, read_manifest(root).splits["train"].shards, 10**9)
        gone, touch = [], os.utime

        def goes(path: Path, *times: Any) -> None:
            if path.suffix == ".tar" and not gone:  # used now: what the cache notes as it opens it
                path.unlink()
                gone.append(path)
            touch(path, *times)

        monkeypatch.setattr(os, "utime", goes)
        file = cache.open(0)
        assert os.pread(file, 1 << 30, 0) == (root / "train-00000.tar").read_bytes()
        os.close(file)
        assert server.requests["train-00000.tar"] == 2


def test_a_shard_that_the_reader_is_past_is_not_fetched_ahead(tmp_path: Path) -> None:
    """The fetcher waits for the shard's lock while the reader fetches, reads and passes it: fetched
    again it would take the room of one that is still of use."""
    root = write_dataset(tmp_path / "data", [picture(i) for i in range(20)])
    with faulty(root) as server:
        remote = Remote(server.url)
        folder = fetch_dataset(remote, tmp_path / "cache", "train")
        shards = read_manifest(root).splits["train"].shards
        cache = ShardCache(remote, folder, shards, 10**9)
        with file_lock(folder / "train-00000.lock"):  # as the reader that is fetching it
            cache.begin([ShardUse(0, 0, 0), ShardUse(1, 1, 1)], first_step=0)
            while not (folder / "train-00001.tar").exists():  # by another fetcher
                time.sleep(0.01)
            cache.at(1)
        deadline = time.monotonic() + 10
        while any(t.name == "loader-fetch" for t in threading.enumerate()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        cache.close()
        assert server.requests["train-00000.tar"] == 0
        assert not (folder / "train-00000.tar").exists()


@pytest.mark.parametrize(
    ("url", "set_before", "after"),
    [
        ("https://x/y", logging.NOTSET, logging.NOTSET),
        ("gs://x/y", logging.NOTSET, logging.CRITICAL),
        ("gcs://x/y", logging.NOTSET, logging.CRITICAL),
        ("gs://x/y", logging.WARNING, logging.WARNING),
    ],
)
def test_only_addresses_of_gs_quieten_its_library_and_not_against_the_user(
    url: str, set_before: int, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = logging.getLogger("gcsfs")
    # else credentials are looked for
    monkeypatch.setattr("fsspec.core.url_to_fs", lambda url, **_: (None, url))
    monkeypatch.setattr(log, "level", set_before)
    Remote(url)
    assert log.level == after
