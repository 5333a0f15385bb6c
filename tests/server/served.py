"""Runs written by the real writer, in this process or another, and a real server that reads
them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from email.message import Message
from pathlib import Path
from typing import Any

from gratis.events import EventWriter, LoaderCounters
from gratis.records import EndRecord, GpuCounters, StartRecord, StepRecord

ROOT = Path(__file__).resolve().parents[2]
SLOW_S = 60.0  # what anything may take on a machine that others use
WRITER = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import served
run = served.RunWriter(Path(sys.argv[2]), world=int(sys.argv[3]))
run.start()
for step in (10, 20):
    run.step(step)
print("written", flush=True)
signal.pause()
"""


class RunWriter:
    """A trainer's events without a trainer. By default a rank trains 100 images/s, and its loader
    could do 250."""

    def __init__(
        self, path: Path, *, world: int = 1, attempt: int = 1, pid: int | None = None
    ) -> None:
        self.path, self.world, self.pid = path, world, pid or os.getpid()
        self.writers = [
            EventWriter(path / f"rank-{rank}.jsonl", attempt=attempt, rank=rank)
            for rank in range(world)
        ]

    def start(self, command: str = "gratis train --shards /home/somebody/shards") -> None:
        for rank, writer in enumerate(self.writers):
            record = StartRecord(
                run=self.path.name,
                recipe="sample",
                config={"shards": "/home/somebody/shards", "recipe": {"image_size": 128}},
                mesh={"data": 1, "tower": self.world},
                world=self.world,
                device=f"cuda:{rank}",
                device_name="a GPU",
                decoded="host",
                pid=self.pid,
                host=socket.gethostname(),
                pid_namespace=os.stat("/proc/self/ns/pid").st_ino,
                versions={},
                dataset="3fa9c1d2",
                classes=10,
                train_images=1000,
                val_images=200,
                epochs=5,
                steps_per_epoch=40,
                batch_size=100,
                command=command,
            )
            writer.write("start", record)

    def step(
        self,
        step: int,
        *,
        ranks: Mapping[int, Mapping[str, float]] | None = None,
        loss: float = 2.0,
        gpu: GpuCounters | None = None,
    ) -> None:
        """Ten steps of ten seconds up to `step`; `ranks` overrides single fields of a rank's
        counters."""
        for rank, writer in enumerate(self.writers):
            changed = dict((ranks or {}).get(rank, {}))
            wait_s = changed.pop("wait_s", 0.1)
            loader = LoaderCounters(
                images=1000,
                batches=10,
                bytes_read=20_000_000,
                read_s=0.5,
                decode_s=2.5,
                finish_s=0.8,
                transfer_s=0.2,
                wait_s=wait_s,
                blocked_s=6.0,
                queue_depth=4,
                queue_capacity=4,
                native=990,
                fallback=10,
            )
            record = StepRecord(
                steps=10,
                images=1000,
                wall_s=10.0,
                wait_s=wait_s,
                cpu_s=20.0,
                rss_bytes=1 << 30,
                loader=loader | changed,  # type: ignore[typeddict-item]
                loss=loss,
                top1=0.25,
                lr=0.01,
                exchange_s=0.0,
                gpu=gpu,
            )
            writer.write("step", record, epoch=(step - 1) // 40, step=step)

    def end(self, outcome: str, error: str | None = None, *, rank: int | None = None) -> None:
        for number, writer in enumerate(self.writers):
            if rank in (None, number):
                writer.write("end", EndRecord(outcome=outcome, error=error))  # type: ignore[typeddict-item]


def dead_pid() -> int:
    """The pid of a process that was and is no more."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@contextmanager
def writing(path: Path, *, world: int = 1) -> Iterator[subprocess.Popen[str]]:
    """A process that has begun a run, taken twenty steps, and goes on living."""
    code = [sys.executable, "-c", WRITER, str(Path(__file__).parent), str(path), str(world)]
    process = subprocess.Popen(
        code,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def serving(root: Path, *arguments: str, env: Mapping[str, str] | None = None) -> Iterator[str]:
    """The base URL of `gratis status` on a free loopback port, which must end well."""
    clean = {key: value for key, value in os.environ.items() if key != "GRATIS_TOKEN"}
    process = subprocess.Popen(
        [sys.executable, "-m", "gratis", "status", "--runs", str(root), "--port", "0", *arguments],
        cwd=ROOT,
        env=clean | dict(env or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("serving http://"), process.communicate()
        yield line.split()[1].rstrip("/")
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            out, err = process.communicate(timeout=SLOW_S)
        finally:
            process.kill()
        assert (process.returncode, out, err) == (0, "", "")


def get(url: str, **headers: str) -> tuple[int, bytes, Message]:
    """Status, body and headers; underscores in the names of the headers to send become dashes."""
    return ask(
        urllib.request.Request(
            url, headers={key.replace("_", "-"): value for key, value in headers.items()}
        )
    )


def ask(request: urllib.request.Request) -> tuple[int, bytes, Message]:
    try:
        with urllib.request.urlopen(request, timeout=SLOW_S) as answer:
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), error.headers


def get_json(url: str, **headers: str) -> Any:
    status, body, _ = get(url, **headers)
    assert status == 200, body
    return json.loads(body)


def read_events(url: str, count: int, **headers: str) -> list[dict[str, str]]:
    """The first `count` server-sent events."""
    request = urllib.request.Request(
        url, headers={key.replace("_", "-"): value for key, value in headers.items()}
    )
    events: list[dict[str, str]] = []
    event: dict[str, str] = {}
    with urllib.request.urlopen(request, timeout=SLOW_S) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        while len(events) < count:
            line = answer.readline().decode().rstrip("\n")
            field, _, value = line.partition(": ")
            if line and field:
                event[field] = value
            elif event:
                events.append(event)
                event = {}
    return events


def wait_for(holds: Callable[[], bool], seconds: float = SLOW_S) -> bool:
    """Whether it comes to hold in time."""
    deadline = time.monotonic() + seconds
    while not (held := holds()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return held
