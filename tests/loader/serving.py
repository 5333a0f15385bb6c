"""Servers of a folder for the tests of remote datasets: one that misbehaves on request, nginx, and
moto's S3."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import urlopen

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
