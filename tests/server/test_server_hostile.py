"""The server under hostile, slow and killed clients and processes, and under a real Prometheus."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
from served import ROOT, RunWriter, dead_pid, get, get_json, read_events, serving, wait_for, writing

pytestmark = pytest.mark.starts

TOKEN = "correct-horse-battery-staple"
FUZZ = [
    *("--max-examples 25 --seed 1 --request-timeout 10 --no-color --exclude-path /events").split()
]


def a_run(root: Path, name: str = "a") -> RunWriter:
    run = RunWriter(root / name, world=2)
    run.start()
    run.step(10)
    run.step(20)
    return run


@pytest.mark.parametrize("known", [False, True])
def test_fuzz_by_its_own_openapi_document(tmp_path: Path, known: bool) -> None:
    """Some hundred odd requests and what came back for each, against the document; the event stream
    never ends."""
    fuzzer = Path(sys.executable).with_name("schemathesis")
    if not fuzzer.exists():
        pytest.skip("needs the package schemathesis")
    (a_run(tmp_path / "runs").path / "latest.jpg").write_bytes(b"\xff\xd8\xff")
    config = tmp_path / "schemathesis.toml"
    config.write_text('[parameters]\nrun = "a"\n' if known else "")
    with serving(tmp_path / "runs") as url:
        command = [str(fuzzer), "--config-file", str(config), "run", f"{url}/openapi.json", *FUZZ]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=90
        )
        assert done.returncode == 0, done.stdout[-3000:]
        assert " passed" in done.stdout
        assert ("repeatedly returned 404" in done.stdout) is not known  # the name was used
        assert get(f"{url}/livez")[0] == 200


def test_clients_that_send_or_read_nothing_hold_nobody_up(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    with serving(tmp_path) as url:

        def asked(steps: range) -> list[float]:
            """Seconds of two answers after each step, sorted."""
            taken = []
            for step in steps:
                run.step(step)
                begin = time.perf_counter()
                assert get(f"{url}/status")[0] == 200
                assert get(f"{url}/metrics")[0] == 200
                taken.append(time.perf_counter() - begin)
            return sorted(taken)

        parts, alone = urlsplit(url), asked(range(21, 30))
        idle = [
            socket.create_connection((parts.hostname, parts.port), timeout=10) for _ in range(60)
        ]
        for number, connection in enumerate(idle):
            connection.sendall(
                [
                    b"GET /status HTTP/1.1\r\nHost: lo",
                    b"",
                    b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n",
                ][number % 3]
            )
        beside = asked(range(30, 130, 10))
        # whoever waits for a silent client waits for seconds, which is a hundred times as long;
        # the control is the fastest answer alone, which others on the machine make no longer
        assert beside[len(beside) // 2] < 20 * alone[0], (alone, beside)
        assert get_json(f"{url}/livez")["status"] == "ok"
        for connection in idle:
            connection.close()


@pytest.mark.parametrize(
    "header",
    [
        "Cookie: gratis_token=" + "a" * 20_000,
        "Last-Event-ID: " + "9" * 20_000,
        "X: " + "y" * 100_000,
    ],
)
def test_oversized_headers_are_refused(tmp_path: Path, header: str) -> None:
    with serving(tmp_path, env={"GRATIS_TOKEN": TOKEN}) as url:
        parts = urlsplit(url)
        with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection:
            connection.sendall(
                f"GET /status HTTP/1.1\r\nHost: localhost\r\n{header}\r\n\r\n".encode()
            )
            assert connection.recv(100).split()[1] in (b"400", b"401", b"431")
        assert get(f"{url}/livez")[0] == 200


def test_the_token_is_nowhere_in_output(tmp_path: Path) -> None:
    """Of a server that is asked with it and without; `serving` asserts that the rest of its output
    is empty."""
    a_run(tmp_path)
    with serving(tmp_path, env={"GRATIS_TOKEN": TOKEN}) as url:
        for path in (
            "/status",
            "/metrics",
            "/openapi.json",
            "/runs",
            f"/status/{TOKEN}",
            f"/?token={TOKEN}",
        ):
            for headers in ({}, {"Authorization": f"Bearer {TOKEN}"}):
                _, body, answered = get(url + path, **headers)
                assert TOKEN not in body.decode()
                assert TOKEN not in str(answered)


def killed_server(root: Path, port: int = 0) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "gratis", "status", "--runs", str(root), "--port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().split()[1].rstrip("/")


def test_after_kill_9_of_server_and_trainer_each_picks_up(tmp_path: Path) -> None:
    with writing(tmp_path / "a") as trainer:
        server, url = killed_server(tmp_path)
        assert read_events(f"{url}/events", 3)[2]["id"] == "a/1.20"
        server.kill()
        server.communicate()
        server, url = killed_server(tmp_path, int(url.rpartition(":")[2]))  # the same port, at once
        assert get_json(f"{url}/status")["state"] == "running"
        assert [
            one.get("id") for one in read_events(f"{url}/events", 2, Last_Event_ID="a/1.10")
        ] == [None, "a/1.20"]
        trainer.send_signal(signal.SIGKILL)
        server.kill()
        trainer.wait()
        server.communicate()
    server, url = killed_server(tmp_path, int(url.rpartition(":")[2]))
    assert get_json(f"{url}/status")["state"] == "crashed"
    again = RunWriter(tmp_path / "a", attempt=2)
    again.start()
    again.step(20)
    assert wait_for(lambda: get_json(f"{url}/status")["state"] == "running", 5)
    missed = read_events(f"{url}/events", 2, Last_Event_ID="a/1.20")
    assert (missed[1]["id"], json.loads(missed[1]["data"])["step"]) == ("a/2.20", 20)
    server.kill()
    server.communicate()


@pytest.mark.parametrize("beside", [False, True])
def test_a_pipe_in_place_of_an_event_file_holds_nobody_up(tmp_path: Path, beside: bool) -> None:
    run = a_run(tmp_path)
    (tmp_path / "b").mkdir()
    os.mkfifo(tmp_path / "b" / "rank-0.jsonl")
    if beside:  # a shard file makes it a run nevertheless
        shutil.copy(run.path / "rank-0.jsonl", tmp_path / "b" / "shards.jsonl")
    with serving(tmp_path) as url:
        states = {row["name"]: row["state"] for row in get_json(f"{url}/runs")["runs"]}
        assert states == {"a": "running", "b": "starting"}
        assert get_json(f"{url}/status/b")["state"] == "starting"
        assert get(f"{url}/metrics")[0] == 200


def test_a_clock_in_the_future_is_a_state(tmp_path: Path) -> None:
    run = a_run(tmp_path)
    ahead = time.time() + 3600
    os.utime(run.path / "rank-0.jsonl", (ahead, ahead))
    with serving(tmp_path) as url:
        status = get_json(f"{url}/status")
        assert (status["state"], status["age_s"]) == ("running", 0.0)
        assert get(f"{url}/metrics")[0] == 200
        assert read_events(f"{url}/events", 1)[0]["event"] == "status"


def test_a_real_prometheus_scrapes_it_with_the_token(tmp_path: Path) -> None:
    prometheus = shutil.which("prometheus")
    if prometheus is None:
        pytest.skip("needs Debian's package prometheus")
    run = RunWriter(tmp_path / "runs" / "a", world=2, pid=dead_pid())
    run.start()
    run.step(10)
    run.end("finished")
    (tmp_path / "token").write_text(TOKEN)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with serving(tmp_path / "runs", "--token-file", str(tmp_path / "token")) as url:
        (tmp_path / "prometheus.yml").write_text(f"""
scrape_configs:
  - job_name: gratis
    scrape_interval: 1s
    scrape_timeout: 1s
    authorization: {{credentials_file: {tmp_path / "token"}}}
    static_configs: [{{targets: ["{url.removeprefix("http://")}"]}}]
""")
        arguments = [
            f"--config.file={tmp_path / 'prometheus.yml'}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
        ]
        process = subprocess.Popen(
            [prometheus, *arguments, f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"],
            cwd=tmp_path,
        )

        def query(expression: str) -> list[tuple[dict[str, str], float]]:
            address = f"http://127.0.0.1:{port}/api/v1/query?query={quote(expression)}"
            try:
                with urllib.request.urlopen(address, timeout=5) as answer:
                    series = json.load(answer)["data"]["result"]
            except OSError:  # not up yet
                return []
            return [(one["metric"], float(one["value"][1])) for one in series]

        try:
            assert wait_for(lambda: bool(query("gratis_trained_images_total")), 30)
            assert [value for _, value in query('up{job="gratis"}')] == [1.0]
            assert [value for _, value in query("sum(gratis_trained_images_total)")] == [2000.0]
            assert [one["state"] for one, _ in query("gratis_run_state == 1")] == ["finished"]
            assert [value for _, value in query("gratis_loader_headroom_ratio")] == [2.5]
        finally:
            process.terminate()
            process.wait(timeout=15)
