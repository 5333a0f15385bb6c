"""A server that goes away, falls silent, or says no: what is waited for, how long, and what is not.
Real connections, cut on the way."""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import pytest
from batches import assert_same, epoch
from handmade import picture, write_dataset
from serving import FaultyServer, Handler, Proxy, faulty, gs_of, proxy, s3_of

from gratis import addresses
from gratis.dataset import read_manifest
from gratis.errors import GratisError, Outage
from gratis.loader import Loader, LoaderConfig
from gratis.network import Server, retry_after

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # fsspec keeps its connections


def make(root: Path | str, cache: Path, **options: Any) -> Loader:
    config = {"batch_size": 12, "crop": 48, "threads": 1, "cache": str(cache)} | options
    return Loader(root, "train", LoaderConfig(**config))


class Messages(logging.Handler):
    """What the logger gratis.network says while it is in the block; `came` is set by the first."""

    def __init__(self) -> None:
        super().__init__()
        self.came, self.texts = threading.Event(), list[str]()

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())
        self.came.set()

    def __enter__(self) -> Messages:
        logging.getLogger("gratis.network").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("gratis.network").removeHandler(self)


class Store(NamedTuple):
    address: str
    way: Proxy


@pytest.fixture(
    params=[
        "http",
        pytest.param("s3", marks=[pytest.mark.starts, pytest.mark.slow]),
        pytest.param("gs", marks=[pytest.mark.starts, pytest.mark.slow]),
    ]
)
def store(
    request: pytest.FixtureRequest, jpeg_dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Store]:
    """The dataset at a server of each kind, behind a way that can be cut."""
    with ExitStack() as stack:
        if request.param == "http":
            port = stack.enter_context(faulty(jpeg_dataset)).server_address[1]
        else:
            serve = {"s3": s3_of, "gs": gs_of}[request.param]
            port = stack.enter_context(serve(jpeg_dataset))
        way = stack.enter_context(proxy(port))
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
        monkeypatch.setenv("AWS_ENDPOINT_URL", way.url)
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", way.url)
        # fsspec keeps a client for the address that was in the environment before
        if request.param != "http":
            fsspec.get_filesystem_class(request.param).clear_instance_cache()
        address = way.url if request.param == "http" else f"{request.param}://bucket/sets"
        yield Store(address, way)


@pytest.mark.filterwarnings("ignore")
def test_an_outage_is_waited_out_and_told(
    store: Store, jpeg_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the shards, and of a second loader's manifest: the store comes back once it was told that
    it is away."""
    monkeypatch.setattr("gratis.network.SAY_AFTER", 0.2)
    for round in range(2):
        store.way.away.clear()
        loader = None if round else make(store.address, tmp_path / "cache", read_timeout_s=1)
        store.way.away.set()
        with Messages() as messages:
            back = threading.Timer(0, lambda: (messages.came.wait(120), store.way.away.clear()))
            back.start()
            loader = loader or make(store.address, tmp_path / "cache", read_timeout_s=1)
            with loader:
                assert_same(epoch(loader), epoch(make(jpeg_dataset, tmp_path)))
            back.join()
        first, own = messages.texts[0], "it is waited for"  # gcsfs makes further tries itself
        assert "cannot be read" in first
        assert ("tried again for up to 600 s" in first) or (
            store.address[:2] == "gs" and own in first
        )
        assert "answers again" in messages.texts[-1]


@pytest.mark.filterwarnings("ignore")
def test_a_connection_that_falls_silent_is_made_again(
    store: Store, jpeg_dataset: Path, tmp_path: Path
) -> None:
    """Inside a shard, of which three are fetched at a time beside the one that is waited for."""
    loader = make(store.address, tmp_path / "cache", read_timeout_s=0.5)
    store.way.silences = 5
    with loader:
        assert_same(epoch(loader), epoch(make(jpeg_dataset, tmp_path)))
    assert store.way.silences <= 0


def test_an_outage_that_lasts_ends_the_epoch_where_it_stands(
    server: FaultyServer, jpeg_dataset: Path, tmp_path: Path
) -> None:
    """And whoever takes it up again gets the batches that are left."""
    whole = epoch(make(jpeg_dataset, tmp_path, augment=False))
    with proxy(server.server_address[1]) as way:
        # a shard at a time, each of nearly a batch
        sizes = [shard.bytes for shard in read_manifest(jpeg_dataset).splits["train"].shards]
        options = {"augment": False, "outage_s": 0.5, "cache_gb": 3e-9 * max(sizes)}
        loader = make(way.url, tmp_path / "cache", **options)
        batches, taken = iter(loader), []
        taken.append(next(batches))
        way.away.set()
        with pytest.raises(Outage, match=r"cannot be read for \d+ s: .*; the same command goes on"):
            taken.extend(batches)
        way.away.clear()
        assert len(taken) < len(whole)
        again = make(way.url, tmp_path / "cache", **options)
        again.load_state_dict(loader.state_dict())
        assert_same([*taken, *epoch(again)], whole)
        again.close()


@pytest.mark.parametrize("status", [403, 404, 410, 416, 501])
def test_what_cannot_get_better_is_an_error_at_once(
    server: FaultyServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    answer, asked = Handler.do_GET, list[str]()

    def refuse(handler: Handler) -> None:
        if not handler.path.endswith(".tar"):
            answer(handler)
            return
        asked.append(handler.path)
        handler.send_error(status)

    monkeypatch.setattr(Handler, "do_GET", refuse)
    with (
        make(server.url, tmp_path) as loader,
        pytest.raises(GratisError, match=r"train-000\d\d\.tar cannot be read: ") as caught,
    ):
        epoch(loader)
    assert not isinstance(caught.value, Outage)
    assert max(asked.count(path) for path in asked) <= 2  # by a fetcher, and by the reader


def test_a_shard_of_another_length_is_an_error_at_once(jpeg_dataset: Path, tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data", [picture(i) for i in range(40)])
    shard = next(iter(sorted(root.glob("train-*.tar"))))
    with faulty(root) as server, make(server.url, tmp_path / "cache") as loader:
        data = shard.read_bytes()
        shard.write_bytes(data[: len(data) // 2])
        with pytest.raises(GratisError, match=rf"{shard.name} .* came where .* were asked for"):
            epoch(loader)
        assert server.requests[shard.name] <= 4


def test_a_server_that_asks_to_be_left_alone_is(
    server: FaultyServer, jpeg_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """503 with Retry-After: one second, where the first pauses of its own are 0.1, 0.2 and 0.4."""
    answer, times = Handler.do_GET, defaultdict[str, list[float]](list)

    def busy(handler: Handler) -> None:
        times[handler.path].append(time.monotonic())
        if not handler.path.endswith(".tar") or len(times[handler.path]) > 1:
            answer(handler)
            return
        handler.send_response(503)
        handler.send_header("Retry-After", "1")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    monkeypatch.setattr(Handler, "do_GET", busy)
    with make(server.url, tmp_path / "cache") as loader:
        assert_same(epoch(loader), epoch(make(jpeg_dataset, tmp_path)))
    gaps = [two - one for one, two, *_ in (t for t in times.values() if len(t) > 1)]
    assert len(gaps) == 11
    assert min(gaps) >= 0.95


def busy(handler: Handler) -> None:
    handler.send_response(503)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def garbage(handler: Handler) -> None:
    """What aiohttp reports as status 400."""
    handler.wfile.write(b"\x16\x03\x01 no HTTP\r\n\r\n")
    handler.close_connection = True


@pytest.mark.parametrize("answer", [busy, garbage])
def test_a_server_that_answers_is_waited_for_though_it_never_gave_anything(
    server: FaultyServer,
    jpeg_dataset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: Any,
) -> None:
    """On a machine that starts meanwhile: longer than an address that refuses, or is silent, is
    tried."""
    for limit in ("network.FIRST_S", "errors.ANSWER_S", "network.SAY_AFTER"):
        monkeypatch.setattr(f"gratis.{limit}", 0.3)
    with monkeypatch.context() as away, Messages() as messages:
        away.setattr(Handler, "do_GET", answer)
        away.setattr(Handler, "do_HEAD", answer, raising=False)
        with pytest.raises(Outage, match=r"manifest\.json cannot be read for \d+ s: (503|400)"):
            make(server.url, tmp_path / "cache", outage_s=1)
        back = threading.Timer(2, away.undo)
        back.start()
        with make(server.url, tmp_path / "cache") as loader:
            assert_same(epoch(loader), epoch(make(jpeg_dataset, tmp_path)))
    assert "tried again for up to 600 s" in " ".join(messages.texts)


def test_garbage_in_the_middle_is_waited_out(
    server: FaultyServer, jpeg_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for each shard, by the loader and by what the other commands read with."""
    answer, seen = Handler.do_GET, set[str]()

    def now_and_then(handler: Handler) -> None:
        if handler.path in seen or not handler.path.endswith((".tar", "manifest.json")):
            answer(handler)
            return
        seen.add(handler.path)
        garbage(handler)

    with make(server.url, tmp_path / "cache") as loader:
        monkeypatch.setattr(Handler, "do_GET", now_and_then)
        assert_same(epoch(loader), epoch(make(jpeg_dataset, tmp_path)))
    assert len(seen) == 11
    assert addresses.read(f"{server.url}/manifest.json") == read_of(server)
    assert len(seen) == 12


@pytest.mark.parametrize("options", [{"outage_s": -1}, {"outage_s": 1e9}, {"read_timeout_s": 0}])
def test_limits_are_bounded(options: dict[str, float]) -> None:
    with pytest.raises(GratisError, match="it must be"):
        LoaderConfig(**options)


def test_a_file_is_not_missing_because_its_server_hangs_up(
    server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsspec then says that there is none: FileNotFoundError, or False."""
    url = f"{server.url}/manifest.json"
    addresses.filesystem(url)
    answer, looks = Handler.do_GET, {addresses.is_file: True, addresses.read: read_of(server)}
    for look, expected in looks.items():
        cut = iter(range(2))
        monkeypatch.setattr(
            Handler,
            "do_GET",
            lambda handler, cut=cut: answer(handler) if next(cut, None) is None else None,
        )
        assert look(url) == expected
        assert next(cut, None) is None
    assert not addresses.is_file(f"{server.url}/nothing.json")


def read_of(server: FaultyServer) -> bytes:
    return (server.folder / "manifest.json").read_bytes()


def test_an_outage_is_over_once_the_server_says_no(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one that was short, an hour before another, a file was missing in between."""
    real, later = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: real() + later[0])
    asked = Server("http://a", answered=True)

    def request() -> int:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    answers: list[Exception | int] = [OSError("reset"), FileNotFoundError("b")]
    with pytest.raises(FileNotFoundError):
        asked.ask(request, "b")
    later[0] = 3600.0
    answers += [OSError("reset"), 7]
    assert asked.ask(request, "c") == 7


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("7", 7.0),
        ("-7", 0.0),
        ("soon", 0.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("Mon, 01 Jan 99999999999999999999 00:00:00 GMT", 0.0),
    ],
)
def test_a_time_that_a_server_asks_for_is_read_or_left(said: str, seconds: float) -> None:
    error = OSError()
    error.headers = {"Retry-After": said}  # type: ignore[attr-defined]
    assert retry_after(error) == seconds
