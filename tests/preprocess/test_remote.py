"""Sources and datasets at URLs, against servers that speak over a socket: moto's S3 and a plain
HTTP server."""

from __future__ import annotations

import http.server
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from clock import own_clock
from PIL import Image
from serving import Proxy, proxy

from gratis import addresses
from gratis.errors import GratisError, wait_for
from gratis.network import DEFAULT_LIMITS, NetworkLimits
from gratis.preprocess.output.store import open_store
from gratis.preprocess.sources.open import open_source
from gratis.preprocess.sources.tar import members as tar_members

ROOT = Path(__file__).resolve().parent.parent.parent
KEYS = {
    "AWS_ACCESS_KEY_ID": "nobody",
    "AWS_SECRET_ACCESS_KEY": "nothing",
    "AWS_DEFAULT_REGION": "us-east-1",
}


STAMPS = """
for file in fs.ls('again/shards', detail=True):
    if file['type'] == 'file':
        print(f"{file['name']} {file['LastModified']}")
"""


COMMAND = [sys.executable, *"-m gratis shards --src".split()]
SMALL = "--size 32 --samples-per-shard 150 --limit-per-class 30 --workers 2".split()


def shards(
    src: object, out: object, *more: object, env: dict[str, str] | None = None
) -> tuple[int, str]:
    done = subprocess.run(
        [*COMMAND, str(src), "--out", str(out), *SMALL, *map(str, more)],
        cwd=ROOT,
        env=os.environ | (env or {}),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def contents(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in root.iterdir()}


@pytest.fixture(scope="module")
def local(sample_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("local") / "shards"
    code, text = shards(sample_source, out)
    assert code == 0, text
    return out


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    pytest.importorskip("moto", reason="needs moto's server")
    pytest.importorskip("s3fs", reason="needs s3fs")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        env=os.environ | KEYS,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield KEYS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    finally:
        server.kill()
        server.wait()


def in_s3(env: dict[str, str], code: str) -> str:
    """Runs code with `fs`, an s3fs file system, in a process of its own: its event loop warns at
    exit."""
    whole = f"import s3fs\nfs = s3fs.S3FileSystem()\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", whole],
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_s3_source_and_dataset_equal_the_local_ones(
    sample_source: Path, local: Path, s3: dict[str, str], tmp_path: Path
) -> None:
    in_s3(s3, f"fs.mkdir('bucket')\nfs.put('{sample_source}', 'bucket/source', recursive=True)")
    code, text = shards("s3://bucket/source", "s3://bucket/shards", env=s3)
    assert code == 0, text
    in_s3(s3, f"fs.get('bucket/shards', '{tmp_path}/copy', recursive=True)")
    assert contents(tmp_path / "copy") == contents(local)
    code, text = shards("s3://bucket/source", "s3://bucket/shards", env=s3)
    assert code == 0
    assert "already there" in text
    code, text = shards("s3://bucket/source", "s3://bucket/shards", "--seed", 1, env=s3)
    assert code == 2
    assert "another dataset" in text


@pytest.mark.slow
def test_s3_rerun_makes_only_what_is_missing(
    sample_source: Path, local: Path, s3: dict[str, str]
) -> None:
    in_s3(s3, "fs.mkdir('again')")
    code, text = shards(
        sample_source, "s3://again/shards", "--task-id", 0, "--num-tasks", 2, env=s3
    )
    assert code == 0, text
    before = in_s3(s3, STAMPS)
    assert "manifest" not in before
    time.sleep(1.1)  # its times are whole seconds
    code, text = shards(sample_source, "s3://again/shards", env=s3)
    assert code == 0, text
    after = in_s3(s3, STAMPS)
    assert ".work" not in in_s3(s3, "print(fs.find('again/shards'))")
    assert before.count(".tar ") == 2
    assert after.count(".tar ") == 4
    assert set(before.splitlines()) <= set(after.splitlines())


def start(src: Path, out: str, env: dict[str, str], *more: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            sys.executable,
            *"-m gratis shards --src".split(),
            str(src),
            "--out",
            out,
            *"--size 32 --workers 1 --samples-per-shard 40 --limit-per-class 12".split(),
            *map(str, more),
        ],
        cwd=ROOT,
        env=os.environ | env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [(0, 0), (0, 1)])
def test_two_runs_at_one_url(
    sample_source: Path, s3: dict[str, str], tmp_path: Path, seeds: tuple[int, int]
) -> None:
    """No lock there: the same settings give the same dataset, and of other ones one run alone goes
    on."""
    bucket = f"two-{seeds[1]}"
    in_s3(s3, f"fs.mkdir('{bucket}')")
    both = [start(sample_source, f"s3://{bucket}/shards", s3, "--seed", seed) for seed in seeds]
    texts = [process.communicate(timeout=600)[0] for process in both]
    codes = [process.returncode for process in both]
    if seeds[0] == seeds[1]:
        assert codes == [0, 0], texts
    else:
        assert sorted(codes) == [0, 2], texts
        assert "another dataset" in texts[codes.index(2)]
    winner = seeds[codes.index(0)]
    alone = start(sample_source, str(tmp_path / "alone"), s3, "--seed", winner)
    assert alone.wait(timeout=600) == 0
    alone.communicate()
    in_s3(s3, f"fs.get('{bucket}/shards', '{tmp_path}/copy', recursive=True)")
    assert contents(tmp_path / "copy") == contents(tmp_path / "alone")


class RangeHandler(http.server.SimpleHTTPRequestHandler):
    """Python's own server, taught byte ranges."""

    ranges = True

    def do_GET(self) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        path = Path(self.translate_path(self.path))
        if not (wanted and self.ranges and path.is_file()):
            super().do_GET()
            return
        data = path.read_bytes()
        first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        shutil.copyfileobj(io.BytesIO(data[first : last + 1]), self.wfile)

    def end_headers(self) -> None:
        self.send_header("Accept-Ranges", "bytes" if self.ranges else "none")
        super().end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


class WholeHandler(RangeHandler):
    ranges = False


@pytest.fixture
def web(request: pytest.FixtureRequest, sample_source: Path, local: Path) -> Iterator[str]:
    """A server of the folder that holds the sample's archives, or the shards; parameter: (handler,
    folder)."""
    kind, folder = request.param
    root = {"source": sample_source, "shards": local}[folder]
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *a: kind(*a, directory=str(root))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize("web", [(RangeHandler, "source")], indirect=True)
def test_archives_over_http(web: str, local: Path, tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    code, text = shards(web, tmp_path / "o")
    assert code == 0, text
    assert contents(tmp_path / "o") == contents(local)


@pytest.mark.slow
@pytest.mark.parametrize("web", [(RangeHandler, "shards")], indirect=True)
def test_a_dataset_over_http_is_a_source(web: str, tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    code, text = shards(web, tmp_path / "o")
    assert code == 0, text
    assert "300 train and 200 val images of 10 classes" in text


@pytest.mark.slow
@pytest.mark.parametrize("web", [(RangeHandler, "source")], indirect=True)
@pytest.mark.parametrize("stays", [False, True])
def test_a_source_that_goes_away_is_waited_for(
    web: str, local: Path, tmp_path: Path, stays: bool
) -> None:
    """With a warning, on stderr and in the events; if it stays away the same command goes on
    later."""
    pytest.importorskip("aiohttp")
    with proxy(int(web.rpartition(":")[2])) as way:
        command = [*COMMAND, way.url, "--out", str(tmp_path / "o"), *SMALL]
        events = tmp_path / "run" / "shards.jsonl"
        more = ["--run-dir", str(events.parent), "--outage-s", "2" if stays else "600"]
        process = subprocess.Popen([*command, *more], cwd=ROOT, text=True, stderr=-1, stdout=-1)
        while not (events.exists() and '"progress"' in events.read_text()):
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        way.away.set()
        while not stays and "cannot read" not in events.read_text():
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        if not stays:
            way.away.clear()
        _, err = process.communicate(timeout=300)
        assert process.returncode == (75 if stays else 0), err
        assert ("the same command goes on" if stays else "it is tried again for up to") in err
        assert "Traceback" not in err
        way.away.clear()
        if stays:
            subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    assert contents(tmp_path / "o") == contents(local)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.starts
def test_a_store_that_goes_away_while_it_is_written_is_waited_for(
    s3: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_s3(s3, "fs.mkdir('gone')")
    with proxy(int(s3["AWS_ENDPOINT_URL"].rpartition(":")[2])) as way:
        for name, value in (s3 | {"AWS_ENDPOINT_URL": way.url}).items():
            monkeypatch.setenv(name, value)
        addresses.use_limits(NetworkLimits(outage_s=60, read_timeout_s=1))
        store = open_store("s3://gone/shards")
        (tmp_path / "file").write_bytes(b"file")
        calls: list[Callable[[], object]] = [
            lambda: store.write("a", b"1"),
            lambda: store.create("b", b"2"),
            lambda: store.publish(tmp_path / "file", "c"),
            lambda: store.read("a"),
            store.sizes,
            lambda: store.remove("a"),
        ]
        for call in calls:
            before = way.connections
            way.away.set()
            back = threading.Thread(target=comes_back, args=(way, before + 3))
            back.start()
            call()
            back.join()
        assert store.sizes() == {"b": 1, "c": 4}
        addresses.use_limits(DEFAULT_LIMITS)


def comes_back(way: Proxy, connections: int) -> None:
    """Once it was asked so often."""
    deadline = time.monotonic() + 60
    while way.connections < connections and time.monotonic() < deadline:
        time.sleep(0.01)
    way.away.clear()


def tar_of(*keys: str) -> bytes:
    buffer, file = io.BytesIO(), io.BytesIO()
    Image.new("RGB", (40, 40), (90, 120, 150)).save(file, "JPEG")
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for key in keys:
            for ending, data in (("cls", b"0"), ("jpg", file.getvalue())):
                info = tarfile.TarInfo(f"{key}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def flipped(data: bytes, name: bytes) -> bytes:
    changed = bytearray(data)
    changed[data.index(name)] ^= 1
    return bytes(changed)


FLIPPED = flipped(tar_of("a", "b", "c"), b"b.cls")
JOINED = tar_of("a", "b") + tar_of("c")
LONG = "n" * 150
DAMAGED = {
    "a header": FLIPPED,
    "joined": JOINED,
    "links and pax": tar_of("a", LONG),
    "a lone block": tar_of("a")[:2560] + bytes(512) + tar_of("b"),
    "bytes": tar_of("a") + b"bytes",
    "no end": tar_of("a")[:2048],
    "zeros": tar_of("a") + bytes(5 << 20),
    "cut": tar_of("a")[:1600],
}


def members_of(address: str, data: bytes) -> str:
    """What the tar's members are, or the message."""
    with addresses.Bytes(address) as archive:
        try:
            found = list(tar_members(archive, "x.tar", lambda *why: None, 0, archive.size))
        except GratisError as error:
            return str(error)
    return repr([(m.name, data[m.offset : m.offset + m.size]) for m in found])


def test_tars_over_http_end_where_local_ones_do(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *a: RangeHandler(*a, directory=str(tmp_path))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name, data in DAMAGED.items():
        (tmp_path / "x.tar").write_bytes(data)
        local = members_of(str(tmp_path / "x.tar"), data)
        assert ("damaged" in local) == (name not in ("joined", "links and pax"))
        url = f"http://127.0.0.1:{server.server_address[1]}/x.tar"
        assert members_of(url, data) == local, name
    server.shutdown()
    server.server_close()


@pytest.mark.starts
def test_tars_in_s3_end_where_they_do(s3: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "flipped.tar").write_bytes(FLIPPED)
    (tmp_path / "joined.tar").write_bytes(JOINED)
    puts = [f"fs.put('{tmp_path}/{k}.tar', 'ends/{k}/train-0.tar')" for k in ("flipped", "joined")]
    in_s3(s3, "fs.mkdir('ends')\n" + "\n".join(puts))
    code, text = shards("s3://ends/flipped", tmp_path / "o", env=s3)
    assert code == 2
    place = tar_of("a", "b", "c").index(b"b.cls")
    assert f"s3://ends/flipped/train-0.tar is damaged as a tar at byte {place}: " in text
    assert "the last good member is 'a.jpg'" in text
    code, text = shards("s3://ends/joined", tmp_path / "o", env=s3)
    assert code == 0, text
    assert "3 train images" in text


LISTED = """
import json, sys
from gratis.errors import GratisError
from gratis.preprocess.sources.open import open_source
from gratis.preprocess.sources.reader import ImageReader
reader = ImageReader()
for address in sys.argv[1:]:
    try:
        source = open_source(address)
    except GratisError as error:
        told = [str(error)]
    else:
        told = [*source.notes, *source.skipped]
        for split, listing in source.splits.items():
            for item in map(listing.item, range(len(listing))):
                told.append(f"{split} {item.key!r} {item.label} {item.offset} {item.source}")
                told.append(reader.read(item).decode())
    print(json.dumps([line.replace(address, "SRC") for line in told]))
"""


def odd_sources(root: Path) -> list[str]:
    """Folders and tars with whatever is told, left out, named oddly or refused; their names."""
    files = (
        "folders/train set/c d/a\u202fb.jpg",
        f"folders/train set/c d/{'x' * 90}.jpg",
        "folders/train set/c d/._a.jpg",
        "folders/train set/c d/a#1?.jpg",
        "folders/train set/c d/a 1.heic",
        "folders/validation/c d/1.pgm",
        "folders/TEST/c d/1.jpg",
        "folders/notes/x.txt",
    )
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    tars = {
        "tars/a-train 0.tar": "a.jpg a.CLS ._a.jpg".split(),
        "tars/a-train 1.tar": "a.jpg a.cls c.cls".split(),
        "tars/a-train-2.tar": [],
        "tars/a-val.tar": "b.jpg b.cls".split(),
        "tars/a-test.tar": ["c.jpg"],
        "apart/0.tar": "a.cls b.cls a.jpg b.jpg".split(),
        "beside/train.tar": "a.jpg a.cls".split(),
        "beside/other.tar": "a.jpg a.cls".split(),
    }
    for name, members in tars.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(root / name, "w") as archive:
            for member in members:
                info = tarfile.TarInfo(member)
                info.size = 1
                archive.addfile(info, io.BytesIO(b"0"))
    return sorted(path.name for path in root.iterdir())


def listed(addresses: list[str], env: dict[str, str]) -> list[list[str]]:
    """What is told of sources: in a process of its own, as event loops warn at exit."""
    command = [sys.executable, "-c", LISTED, *addresses]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_odd_sources_at_servers_are_told_of_as_the_local_ones(
    s3: dict[str, str], tmp_path: Path
) -> None:
    pytest.importorskip("aiohttp")
    names = odd_sources(tmp_path / "odd")
    here = listed([f"{tmp_path}/odd/{name}" for name in names], {})
    assert sum(map(len, here)) > 15
    in_s3(s3, f"fs.mkdir('odd')\nfs.put('{tmp_path}/odd/', 'odd/', recursive=True)")
    assert listed([f"s3://odd/{name}" for name in names], s3) == here
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *a: RangeHandler(*a, directory=f"{tmp_path}/odd")
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    web = listed([f"http://127.0.0.1:{server.server_address[1]}/{name}" for name in names], {})
    server.shutdown()
    server.server_close()
    assert [unquote("\n".join(told)) for told in web] == ["\n".join(told) for told in here]


@pytest.mark.parametrize("web", [(WholeHandler, "source")], indirect=True)
def test_a_server_without_ranges_is_refused_in_a_line(web: str, tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    code, text = shards(web, tmp_path / "o")
    assert code == 2, text
    assert text.count("\n") == 1
    assert "127.0.0.1" in text


@pytest.mark.starts
def test_urls_that_lead_nowhere_are_one_line(tmp_path: Path) -> None:
    for url in ("nosuch://a/b", "http://127.0.0.1:9/x", "ftp://127.0.0.1:9/x"):
        code, text = shards(url, tmp_path / "o")
        assert code == 2
        assert text.count("\n") == 1, text
        assert url in text
        assert "onnect" in text or "Protocol not known" in text


def test_a_server_that_says_nothing_is_one_line_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gratis.errors.ANSWER_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x"
        message = f"cannot read {url}.* no answer within 0.5 seconds; look at"
        with own_clock() as clock, pytest.raises(GratisError, match=message):
            open_source(url)
        assert clock.seconds < 15


def test_a_server_that_answers_late_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gratis.errors.ANSWER_S", 30.0)
    assert wait_for(lambda: time.sleep(0.3) or "late", "x") == "late"
    with pytest.raises(TimeoutError, match="its own"):
        wait_for(lambda: (_ for _ in ()).throw(TimeoutError("its own")), "x")
