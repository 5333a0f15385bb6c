"""Datasets on a server, through the cache: real HTTP and S3 servers, slow, breaking, lying, and a
disk that is full."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest
from batches import assert_same, epoch
from clock import own_clock
from handmade import picture, write_dataset
from ports import free_port
from serving import FaultyServer, Handler, faulty, nginx, nginx_binary, served

from gratis.dataset import read_manifest
from gratis.errors import GratisError
from gratis.loader import Batch, Loader, LoaderConfig
from gratis.loader.reading.remote import Remote, fetch_dataset, file_lock
from gratis.loader.reading.shard_cache import ShardCache, ShardUse, cached_files, uses_of

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # fsspec keeps its connections


def make(
    root: Path | str, cache: Path, *, rank: int = 0, world_size: int = 1, **options: Any
) -> Loader:
    config = {"batch_size": 12, "crop": 48, "threads": 1, "cache": str(cache)} | options
    return Loader(root, "train", LoaderConfig(**config), rank=rank, world_size=world_size)


def cached(cache: Path) -> list[Path]:
    return sorted(cache.glob("*/*.tar"))


@pytest.mark.parametrize("options", [{}, {"order": "window", "window": 2}, {"augment": False}])
def test_batches_are_those_of_the_local_dataset(
    server: FaultyServer, jpeg_dataset: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    local, remote = (
        make(jpeg_dataset, tmp_path, **options),
        make(server.url, tmp_path / "cache", **options),
    )
    for _ in range(2):
        assert_same(epoch(remote), epoch(local))
    assert {n for name, n in server.requests.items() if name.endswith(".tar")} == {1}
    assert len(cached(tmp_path / "cache")) == 11
    assert remote.state_dict() == local.state_dict()
    remote.close()


def test_slow_and_breaking_connections_only_take_longer(
    server: FaultyServer, jpeg_dataset: Path, tmp_path: Path
) -> None:
    server.latency_s, server.break_every = 0.02, 3
    with make(server.url, tmp_path / "cache") as loader:
        assert_same(epoch(loader), epoch(make(jpeg_dataset, tmp_path)))
    assert sum(n for name, n in server.requests.items() if name.endswith(".tar")) > 11  # of shards


def test_shards_are_fetched_ahead(server: FaultyServer, tmp_path: Path) -> None:
    with make(server.url, tmp_path / "cache", augment=False) as loader:
        batches = iter(loader)  # held: an epoch that nobody holds ends
        next(batches)  # of the first shard
        for _ in range(100):
            if len(cached(tmp_path / "cache")) == 11:
                return
            time.sleep(0.05)
    pytest.fail("only what the first batches need was fetched")


def test_the_cache_is_bounded_and_the_oldest_go_first(
    server: FaultyServer, jpeg_dataset: Path, tmp_path: Path
) -> None:
    sizes = [shard.bytes for shard in read_manifest(jpeg_dataset).splits["train"].shards]
    limit = 5 * max(sizes)
    most = 0
    with make(server.url, tmp_path / "cache", augment=False, cache_gb=limit / 1e9) as loader:
        expected = epoch(make(jpeg_dataset, tmp_path, augment=False))
        batches = []
        for batch in loader:
            batches.append(Batch(*(tensor.clone() for tensor in batch)))
            # else one that goes and the next would both be counted
            with file_lock(tmp_path / "cache" / "evict.lock"):
                held = [
                    file.bytes
                    for file in cached_files(tmp_path / "cache")
                    if file.path.suffix == ".tar"
                ]
            most = max(most, sum(held))
        assert_same(batches, expected)
        left = [path.name for path in cached(tmp_path / "cache")]
        assert_same(epoch(loader), expected)
    assert most <= limit
    assert "train-00010.tar" in left
    assert "train-00000.tar" not in left


def test_what_else_lies_in_the_cache_folder_is_not_touched(
    server: FaultyServer, tmp_path: Path
) -> None:
    others = [
        tmp_path / "backups" / "thesis.tar",
        tmp_path / "downloads" / "movie.part",
        tmp_path / "own.tar",
    ]
    for other in others:
        other.parent.mkdir(exist_ok=True)
        other.write_bytes(bytes(300_000))
        os.utime(other, (1e9, 1e9))
    sizes = [shard.bytes for shard in read_manifest(server.folder).splits["train"].shards]
    with make(server.url, tmp_path, augment=False, cache_gb=5e-9 * max(sizes)) as loader:
        assert len(epoch(loader)) == len(loader)
    assert all(other.stat().st_size == 300_000 for other in others)


def test_what_was_damaged_in_the_cache_is_fetched_again(
    server: FaultyServer, jpeg_dataset: Path, tmp_path: Path
) -> None:
    with make(server.url, tmp_path) as loader:
        epoch(loader)
    shard = cached(tmp_path)[2]
    os.truncate(shard, 500)
    (shard.parent / "manifest.json").write_text("{")
    with make(server.url, tmp_path) as loader:
        assert_same(epoch(loader), epoch(make(jpeg_dataset, tmp_path)))


def test_a_page_that_comes_for_a_shard_is_an_error(
    server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a login, say, with 200: it was put into the shard again and again, until that was long
    enough."""
    asked, answer = [], Handler.do_GET

    def page(handler: Handler) -> None:
        if not handler.path.endswith(".tar"):
            answer(handler)
            return
        asked.append(handler.path)
        handler.send_response(200)
        handler.send_header("Content-Length", "18")
        handler.end_headers()
        handler.wfile.write(b"<html>log in</html>"[:18])

    monkeypatch.setattr(Handler, "do_GET", page)
    with (
        make(server.url, tmp_path) as loader,
        pytest.raises(GratisError, match=r"18 bytes came where [0-9,]+ were"),
    ):
        epoch(loader)
    assert len(asked) < 20  # of the reader and three fetchers: each once, and once for its length


def test_an_epoch_that_ends_in_padding_alone_is_followed_by_another(tmp_path: Path) -> None:
    """The second of two ranks has no sample in the last step, where the fifth shard is read and
    only then fits."""
    root = write_dataset(tmp_path / "data", [picture(i) for i in range(42)])
    shards = read_manifest(root).splits["train"].shards
    options = {
        "batch_size": 10,
        "augment": False,
        "cache_gb": 1.1e-9 * max(shard.bytes for shard in shards),
    }

    def two_epochs() -> None:
        counts.extend(len(epoch(loader)) for _ in range(2))

    counts: list[int] = []
    with faulty(root) as server:
        loader = make(server.url, tmp_path / "cache", rank=1, world_size=2, **options)
        # a hang is a failure, not the end of the tests
        thread = threading.Thread(target=two_epochs, daemon=True)
        thread.start()
        thread.join(20)
        hung = thread.is_alive()
        loader.close()
        thread.join(20)
    assert not hung
    assert counts == [5, 5]


@pytest.mark.parametrize(
    "name",
    [
        "../train-00000.tar",
        "{tmp}/train-00000.tar",
        "manifest.json",
        "train-0.tar/../../../train-00000.tar",
        "train-0.tar.sh",
        "train-0.tar\n",
        7,
    ],
)
def test_a_manifest_names_no_files_but_shards(
    jpeg_dataset: Path, tmp_path: Path, name: str | int
) -> None:
    """A shard of a hostile server would be written where its name says, and with its contents."""
    root = Path(shutil.copytree(jpeg_dataset, tmp_path / "data"))
    manifest = json.loads((root / "manifest.json").read_text())
    named = name.format(tmp=tmp_path) if isinstance(name, str) else name
    manifest["splits"]["train"]["shards"][0]["name"] = named
    (root / "manifest.json").write_text(json.dumps(manifest))
    with (
        faulty(root) as server,
        pytest.raises(GratisError, match=r"manifest\.json is damaged") as caught,
    ):
        epoch(make(server.url, tmp_path / "cache"))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("train-*"))


def test_an_order_that_needs_more_space_than_there_is_says_so(
    server: FaultyServer, tmp_path: Path
) -> None:
    with pytest.raises(
        GratisError,
        match=r"reads 0\.000\d+ GB of shards side by side and cache_gb is 0\.0001; raise it",
    ):
        epoch(make(server.url, tmp_path, cache_gb=0.0001))


@pytest.mark.parametrize("times", [1, -1])
def test_a_corrupt_shard_is_fetched_again_and_never_used(
    server: FaultyServer, tmp_path: Path, times: int
) -> None:
    server.corrupt, server.corrupt_times = "train-00004.tar", times
    with make(server.url, tmp_path / "cache") as loader:
        if times == 1:
            assert len(epoch(loader)) == 9
        else:
            with pytest.raises(
                GratisError, match=r"train-00004\.tar is not what the manifest says"
            ) as caught:
                epoch(loader)
            assert "\n" not in str(caught.value)
            assert "train-00004.tar" not in [path.name for path in cached(tmp_path / "cache")]


def test_what_is_missing_or_not_reachable_is_one_line(
    server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gratis.network.FIRST_S", 0.5)
    for address, message in (
        (
            f"{server.url}/nowhere",
            r"nowhere/manifest\.json cannot be read: it is not there, so this is no dataset; give "
            r"the address of a folder that `gratis shards` made, or copy it there$",
        ),
        (f"http://127.0.0.1:{free_port()}", "cannot be read, after [0-9]+ attempts"),
        ("nosuch://bucket/x", "nosuch://bucket/x cannot be read: Protocol not known"),
        # connects when it is made
        (f"ftp://127.0.0.1:{free_port()}/x", "/x cannot be read: .*Connection refused"),
    ):
        with pytest.raises(GratisError, match=message) as caught:
            make(address, tmp_path)
        assert "\n" not in str(caught.value)


def test_a_server_that_says_nothing_is_one_line_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x"
        Remote(url)  # imports what may take half a second on a busy machine
        monkeypatch.setattr("gratis.errors.ANSWER_S", 0.5)
        message = f"{url}/manifest.json cannot be read: no answer within 0.5 seconds"
        with own_clock() as clock, pytest.raises(GratisError, match=message):
            make(url, tmp_path)
        assert clock.seconds < 15


def test_an_epoch_that_is_broken_off_ends_its_downloads(
    server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of shards that the server keeps back until it is over."""
    answer, waited = Handler.do_GET, list[bool]()
    asked, over = threading.Event(), threading.Event()

    def held(handler: Handler) -> None:
        if "train-00005" <= handler.path.lstrip("/") < "train.":
            asked.set()
            waited.append(over.wait(60))
        answer(handler)

    monkeypatch.setattr(Handler, "do_GET", held)
    loader = make(server.url, tmp_path / "cache", augment=False)
    for _ in loader:
        break
    assert asked.wait(60)
    loader.close()
    assert not waited
    over.set()
    opened = [os.path.realpath(path) for path in (Path("/proc/self/fd")).iterdir()]
    assert not [path for path in opened if ".tar" in path and str(tmp_path) in path]


CHILD = """
    import sys, torch
    from gratis import Loader, LoaderConfig
    config = LoaderConfig(batch_size=12, crop=48, threads=1, cache=sys.argv[2])
    print(float(sum(batch.images.double().sum() for batch in Loader(sys.argv[1], "train", config))))
"""


def child(url: str, cache: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(CHILD), url, str(cache)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )


@pytest.mark.slow
@pytest.mark.starts
def test_processes_share_the_cache_and_fetch_each_shard_once(
    server: FaultyServer, tmp_path: Path
) -> None:
    server.latency_s = 0.05
    processes = [child(server.url, tmp_path / "cache") for _ in range(3)]
    answers = [process.communicate(timeout=240) for process in processes]
    assert {out for out, _ in answers} == {answers[0][0]}, answers
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert {n for name, n in server.requests.items() if name.endswith(".tar")} == {1}


@pytest.mark.starts
def test_a_killed_download_goes_on_where_it_was(
    server: FaultyServer, jpeg_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "train-00000.tar"
    whole = (jpeg_dataset / name).read_bytes()
    server.latency_s = 0.5
    process = child(server.url, tmp_path / "cache")
    while not list((tmp_path / "cache").glob("*/*.part")):
        time.sleep(0.01)
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGKILL)
    process.wait()
    (folder,) = [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    (folder / name).unlink(missing_ok=True)
    # as far as it may have come
    (folder / name).with_suffix(f".{len(whole)}.part").write_bytes(whole[:20_000])
    server.latency_s, server.sent = 0.0, 0
    with make(server.url, tmp_path / "cache") as loader:
        assert len(epoch(loader)) == 9
    assert (folder / name).read_bytes() == whole
    total = sum((jpeg_dataset / path.name).stat().st_size for path in cached(tmp_path / "cache"))
    small = (jpeg_dataset / "manifest.json").stat().st_size
    assert server.sent <= total - 20_000 + small


@pytest.mark.starts
def test_a_full_disk_is_made_room_on_and_then_said(
    server: FaultyServer, jpeg_dataset: Path, tmp_path: Path
) -> None:
    mounted = tmp_path / "small"
    mounted.mkdir()
    sizes = [shard.bytes for shard in read_manifest(jpeg_dataset).splits["train"].shards]
    size = 4 * max(sizes) + 300_000  # beside the statistics
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(mounted)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs rights that this machine does not give")
    try:
        with make(server.url, mounted, augment=False) as loader:
            assert_same(epoch(loader), epoch(make(jpeg_dataset, tmp_path, augment=False)))
        for path in cached(mounted):
            path.unlink()
        (mounted / "other").write_bytes(
            bytes(size - sum(p.stat().st_size for p in mounted.rglob("*")) - 40_000)
        )
        with (
            make(server.url, mounted, augment=False) as loader,
            pytest.raises(GratisError, match=r"cannot hold train-.*No space left"),
        ):
            epoch(loader)
    finally:
        subprocess.run(["umount", "-l", str(mounted)], check=True)


def test_on_a_full_disk_what_is_read_now_takes_the_place_of_what_comes_later(
    server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fetcher of the third shard found the disk full, another then had room for the ninth,
    which fills it again."""
    remote = Remote(server.url)
    folder = fetch_dataset(remote, tmp_path, "train")
    shards = read_manifest(server.folder).splits["train"].shards
    cache = ShardCache(remote, folder, shards, 10**9)
    later, download = folder / shards[8].name, remote.download
    refused = threading.Event()

    def full(name: str, file: Any, **terms: Any) -> bool:
        if name == shards[2].name and (not refused.is_set() or later.exists()):
            refused.set()
            raise OSError(errno.ENOSPC, "No space left on device")
        return download(name, file, **terms)

    monkeypatch.setattr(remote, "download", full)
    cache.begin([ShardUse(shard, shard, shard) for shard in range(9)], 0)
    for _ in range(600):
        if refused.is_set() and later.exists():
            break
        time.sleep(0.1)
    else:
        pytest.fail("not all shards were fetched ahead")
    with pytest.raises(GratisError, match=r"cannot hold train-00002"):
        cache.open(2, ahead=True)
    os.close(cache.open(2))
    assert not later.exists()


@pytest.mark.slow
@pytest.mark.starts
def test_nginx(jpeg_dataset: Path, tmp_path: Path) -> None:
    if not nginx_binary():
        pytest.skip("nginx is not installed (apt install nginx-light)")
    with nginx(jpeg_dataset, tmp_path / "nginx") as url, make(url, tmp_path / "cache") as loader:
        assert_same(epoch(loader), epoch(make(jpeg_dataset, tmp_path)))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.starts
def test_s3(jpeg_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("moto", reason="moto is not installed")
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed")
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "a"),
        ("AWS_SECRET_ACCESS_KEY", "b"),
        ("AWS_ENDPOINT_URL", endpoint),
    ):
        monkeypatch.setenv(name, value)
    command = [
        sys.executable,
        "-c",
        "from moto.server import main; main()",
        "-H",
        "127.0.0.1",
        "-p",
        str(port),
    ]
    files = s3fs.S3FileSystem(endpoint_url=endpoint, key="a", secret="b")

    def ready() -> None:
        with suppress(FileExistsError):
            files.mkdir("bucket")

    with served(command, ready):
        for path in jpeg_dataset.iterdir():
            files.put_file(str(path), f"bucket/sets/{path.name}")
        with make("s3://bucket/sets", tmp_path / "cache", order="window", window=2) as loader:
            assert_same(
                epoch(loader), epoch(make(jpeg_dataset, tmp_path, order="window", window=2))
            )
        with pytest.raises(GratisError, match=r"s3://bucket/nothing/manifest\.json cannot be read"):
            make("s3://bucket/nothing", tmp_path / "cache")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.starts
def test_gs(jpeg_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gcp_storage_emulator", reason="gcp-storage-emulator is not installed")
    pytest.importorskip("gcsfs", reason="gcsfs is not installed")
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", endpoint)
    command = [
        sys.executable,
        *"-m gcp_storage_emulator start --host 127.0.0.1 --port".split(),
        str(port),
        "--in-memory",
        "--default-bucket",
        "bucket",
    ]

    with served(command, lambda: urlopen(f"{endpoint}/storage/v1/b").close()):
        for path in jpeg_dataset.iterdir():
            there = (
                f"{endpoint}/upload/storage/v1/b/bucket/o?uploadType=media&name=sets/{path.name}"
            )
            urlopen(
                Request(there, path.read_bytes(), {"Content-Type": "application/octet-stream"})
            ).close()
        with make("gs://bucket/sets", tmp_path / "cache") as loader:
            assert_same(epoch(loader), epoch(make(jpeg_dataset, tmp_path)))
        with pytest.raises(GratisError, match=r"gs://bucket/nothing/manifest\.json cannot be read"):
            make("gs://bucket/nothing", tmp_path / "cache")


@pytest.mark.slow
def test_training_reads_shards_from_an_address(sample_shards: Path, tmp_path: Path) -> None:
    """As from the folder: the same result, all shards through the cache; no such dataset is one
    line."""

    def train(shards: str) -> subprocess.CompletedProcess[str]:
        small = (*"--recipe sample --width 0.0625 --epochs 1 --batch 100 --gpus 1".split(),)
        command = [
            sys.executable,
            *"-m gratis train --runs".split(),
            str(tmp_path / "runs"),
            "--shards",
            shards,
            *small,
        ]
        environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
        return subprocess.run(
            [*command, "--port", "0"],
            capture_output=True,
            text=True,
            timeout=300,
            cwd=ROOT,
            env=environment,
        )

    def scores(done: subprocess.CompletedProcess[str]) -> str:
        assert done.returncode == 0, done.stderr
        return done.stdout[done.stdout.index("result ") :].partition(" images_per_s")[0]

    with faulty(sample_shards) as server:
        assert scores(train(server.url)) == scores(train(str(sample_shards)))
        missing = train(f"{server.url}/nowhere")
    tars = {path.name for path in sample_shards.glob("*.tar")}
    assert {name: n for name, n in server.requests.items() if name in tars} == dict.fromkeys(
        tars, 1
    )
    assert {path.name for path in cached(tmp_path / "cache" / "gratis")} == tars
    assert missing.returncode == 2
    assert re.fullmatch(r"\S*.*nowhere/manifest\.json cannot be read.*\n", missing.stderr), (
        missing.stderr
    )


def test_uses_are_the_first_and_last_step_of_each_shard() -> None:
    shards = np.array([2, 2, 0, 2, 0, 0, 1], np.int32)
    assert uses_of(shards, 2, 0) == [ShardUse(2, 0, 1), ShardUse(0, 1, 2), ShardUse(1, 3, 3)]
    assert uses_of(shards, 2, 2) == [ShardUse(0, 2, 2), ShardUse(1, 3, 3)]
