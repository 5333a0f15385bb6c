"""Servers of a folder for the tests of remote datasets: one that misbehaves on request, nginx, and
moto's S3."""

from __future__ import annotations

import shutil
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from ports import free_port


class FaultyServer(ThreadingHTTPServer):
    """Serves a folder with ranges. requests counts those of each file, sent the bytes of all
    answers.

    latency_s before each answer; every `break_every`-th answer of a shard ends half-way; `corrupt`
    names a file whose middle byte is wrong, for so many requests of it (-1: always)."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.lock = folder, threading.Lock()
        self.requests: Counter[str] = Counter()
        self.sent, self.latency_s, self.break_every, self.corrupt, self.corrupt_times = (
            0,
            0.0,
            0,
            "",
            -1,
        )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are killed are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    server: FaultyServer

    def do_GET(self) -> None:
        name = self.path.lstrip("/")
        path = self.server.folder / name
        if not path.is_file():
            self.send_error(404)
            return
        data, status = path.read_bytes(), 200
        with self.server.lock:
            self.server.requests[name] += 1
            number = sum(n for file, n in self.server.requests.items() if file.endswith(".tar"))
            if name == self.server.corrupt and self.server.corrupt_times:
                self.server.corrupt_times -= 1
                data = (
                    data[: len(data) // 2]
                    + bytes([data[len(data) // 2] ^ 1])
                    + data[len(data) // 2 + 1 :]
                )
        time.sleep(self.server.latency_s)
        if (wanted := self.headers.get("Range", "")).startswith("bytes="):
            first, last = wanted.removeprefix("bytes=").split("-")
            data, status = data[int(first) : int(last) + 1 if last else None], 206
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        broken = (
            self.server.break_every
            and name.endswith(".tar")
            and number % self.server.break_every == 0
        )
        data = data[: len(data) // 2] if broken else data
        self.wfile.write(data)
        with self.server.lock:
            self.server.sent += len(data)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def faulty(folder: Path) -> Iterator[FaultyServer]:
    server = FaultyServer(folder)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


class Proxy(socketserver.ThreadingTCPServer):
    """A way to a server that can be cut. away: while set, connections are closed before a byte.
    silences: so many answers of more than `after` bytes end there, and their connections stay open
    without a word until the proxy ends."""

    daemon_threads = allow_reuse_address = True
    after = 20_000

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), Way)
        self.to, self.lock = port, threading.Lock()
        self.away, self.over = threading.Event(), threading.Event()
        self.silences = self.connections = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def falls_silent(self) -> bool:
        with self.lock:
            self.silences -= 1
            return self.silences >= 0

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that are cut are part of the tests."""


class Way(socketserver.BaseRequestHandler):
    server: Proxy

    def handle(self) -> None:
        with self.server.lock:
            self.server.connections += 1
        if self.server.away.is_set():
            return
        with socket.create_connection(("127.0.0.1", self.server.to)) as there:
            asks = threading.Thread(target=self.carry_requests, args=(there,), daemon=True)
            asks.start()
            came = 0
            while block := there.recv(1 << 12):
                if self.server.away.is_set():
                    break
                came += len(block)
                if came > self.server.after and self.server.falls_silent():
                    self.server.over.wait(120)
                    return
                self.request.sendall(block)

    def carry_requests(self, there: socket.socket) -> None:
        with suppress(OSError):
            while block := self.request.recv(1 << 16):
                if self.server.away.is_set():
                    break
                there.sendall(block)
            there.shutdown(socket.SHUT_RDWR)


@contextmanager
def proxy(port: int) -> Iterator[Proxy]:
    server = Proxy(port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def nginx(folder: Path, scratch: Path) -> Iterator[str]:
    """nginx as Debian has it, on a free port."""
    port = free_port()
    scratch.mkdir()
    (scratch / "nginx.conf").write_text(
        f"daemon off; pid {scratch}/pid; {'user root;' if folder.owner() == 'root' else ''}\n"
        "events {}\n"
        f"http {{ access_log off; client_body_temp_path {scratch}/b; proxy_temp_path {scratch}/p;\n"
        f"fastcgi_temp_path {scratch}/f; uwsgi_temp_path {scratch}/u; scgi_temp_path {scratch}/s;\n"
        f"server {{ listen 127.0.0.1:{port}; root {folder}; limit_rate 4m; }} }}\n"
    )
    command = [nginx_binary(), "-e", f"{scratch}/error.log", "-c", f"{scratch}/nginx.conf"]
    with served(command, lambda: urlopen(f"http://127.0.0.1:{port}/manifest.json").close()):
        yield f"http://127.0.0.1:{port}"


def nginx_binary() -> str:
    return shutil.which("nginx") or shutil.which("/usr/sbin/nginx") or ""


@contextmanager
def served(command: list[str], ready: Callable[[], object]) -> Iterator[None]:
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(200):
            try:
                ready()
                break
            except OSError:
                time.sleep(0.05)
        yield
    finally:
        server.terminate()
        server.wait(10)


@contextmanager
def s3_of(folder: Path) -> Iterator[int]:
    """moto's server with the folder at s3://bucket/sets; its port. AWS_ENDPOINT_URL is the
    test's to set."""
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed")
    pytest.importorskip("moto", reason="moto is not installed")
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    main = "from moto.server import main; main()"
    command = [sys.executable, "-c", main, "-H", "127.0.0.1", "-p", str(port)]
    files = s3fs.S3FileSystem(endpoint_url=endpoint, key="a", secret="b")

    def ready() -> None:
        with suppress(FileExistsError):
            files.mkdir("bucket")

    with served(command, ready):
        for path in folder.iterdir():
            files.put_file(str(path), f"bucket/sets/{path.name}")
        yield port


@contextmanager
def gs_of(folder: Path) -> Iterator[int]:
    """An emulator of Google's with the folder at gs://bucket/sets; its port. STORAGE_EMULATOR_HOST
    is the test's to set."""
    pytest.importorskip("gcp_storage_emulator", reason="gcp-storage-emulator is not installed")
    pytest.importorskip("gcsfs", reason="gcsfs is not installed")
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    arguments = "-m gcp_storage_emulator start --host 127.0.0.1 --in-memory --default-bucket bucket"
    command = [sys.executable, *arguments.split(), "--port", str(port)]
    with served(command, lambda: urlopen(f"{endpoint}/storage/v1/b").close()):
        for path in folder.iterdir():
            place = f"upload/storage/v1/b/bucket/o?uploadType=media&name=sets/{path.name}"
            kind = {"Content-Type": "application/octet-stream"}
            urlopen(Request(f"{endpoint}/{place}", path.read_bytes(), kind)).close()
        yield port
