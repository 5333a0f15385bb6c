"""The server as its clients meet it: a real process on a loopback port."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import pty
import re
import resource
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from urllib.parse import quote, urlsplit

import psutil
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from served import (
    ROOT,
    RunWriter,
    ask,
    dead_pid,
    get,
    get_json,
    read_events,
    serving,
    wait_for,
    writing,
)

pytestmark = pytest.mark.starts

TOKEN = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A server over one finished and one running run, the latter the newest."""
    root = tmp_path_factory.mktemp("runs")
    old = RunWriter(root / "old one", pid=dead_pid())
    old.start()
    old.step(10)
    old.end("finished")
    os.utime(old.path / "rank-0.jsonl", (1e9, 1e9))
    new = RunWriter(root / "new", world=2)
    new.start()
    for step in (10, 20, 30):
        new.step(step)
    new.writers[0].write(
        "warning", {"message": "cannot read /home/somebody/secret/file.tar, or ~/x/y"}
    )
    new.writers[0].write(
        "eval",
        {"views": 1, "images": 200, "top1": 0.75, "top5": 0.9, "nll": 1.0, "wall_s": 2.0},
        epoch=0,
        step=30,
    )
    (root / "no run").mkdir()
    (root / "file").write_text("x")
    (root.parent / "outside").mkdir(exist_ok=True)
    with serving(root) as url:
        yield url, root


def test_status_of_the_newest_run(site: tuple[str, Path]) -> None:
    status = get_json(f"{site[0]}/status")
    assert (status["name"], status["state"], status["step"], status["epoch"]) == (
        "new",
        "running",
        30,
        0,
    )
    assert status["images_per_s"] == {"loader": 500.0, "delivered": 200.0, "trainer": 200.0}
    assert status["headroom"] == 2.5
    assert status["data_wait_fraction"] == pytest.approx(0.01)
    assert status["verdict"]["kind"] == "compute-bound"
    assert [rank["rank"] for rank in status["ranks"]] == [0, 1]
    assert status["ranks"][1]["stages"]["decode"] == pytest.approx(2.5 / 4)
    assert status["evaluations"][0]["top1_error"] == 0.25
    assert (status["decoded"], status["decoded_bytes"]) == ("host", 1000 * 128 * 128 * 3)
    assert status["remaining_s"] == 170.0  # 5 x 40 - 30 steps of one second
    assert (status["epoch_step"], status["total_steps"]) == (30, 200)
    assert status["rss_bytes"] == 2 << 30
    assert status["folder"] == f"{site[1].name}/new"
    assert status["best"] == status["evaluations"][0]


def test_status_by_name(site: tuple[str, Path]) -> None:
    status = get_json(f"{site[0]}/status/{quote('old one')}")
    assert (status["name"], status["state"], status["step"]) == ("old one", "finished", 10)
    assert get_json(f"{site[0]}/status?run={quote('old one')}") | {
        "age_s": 0,
        "ranks": [],
    } == status | {"age_s": 0, "ranks": []}
    assert get(f"{site[0]}/status?run=nothing")[0] == 404


def test_intervals_are_those_of_the_event_stream(site: tuple[str, Path]) -> None:
    events = read_events(f"{site[0]}/events?run=new", 4)[1:]
    intervals = get_json(f"{site[0]}/status/new/intervals")["intervals"]
    assert intervals == [json.loads(event["data"]) for event in events]
    assert [(one["step"], one["cpu_cores"], one["startup"]) for one in intervals] == [
        (10, 4.0, True),
        (20, 4.0, False),
        (30, 4.0, False),
    ]
    assert get(f"{site[0]}/status/nothing/intervals")[0] == 404


def test_runs(site: tuple[str, Path]) -> None:
    runs = get_json(f"{site[0]}/runs")["runs"]
    assert [(run["name"], run["state"], run["step"]) for run in runs] == [
        ("new", "running", 30),
        ("old one", "finished", 10),
    ]


NAMES = [
    "nothing",
    "no run",
    "file",
    "..",
    ".",
    "../outside",
    "..%2foutside",
    "%2e%2e%2foutside",
    "new/",
    "new/../new",
    "new%00",
    "%2fetc%2fpasswd",
    "new\\",
    "%ff",
    "NEW",
    "a" * 5000,
    "rank-0.jsonl",
]


@pytest.mark.parametrize("name", NAMES)
def test_other_names_are_not_found(site: tuple[str, Path], name: str) -> None:
    parts = urlsplit(site[0])
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    raw = name.replace(" ", "%20").replace("\\", "%5c")
    for path in (f"/status/{raw}", f"/events?run={raw}"):
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status in (404, 307), path
        assert b"outside" not in body
    connection.close()


def test_no_folders_or_configuration_in_any_answer(site: tuple[str, Path]) -> None:
    url, root = site
    for path in (
        "/status",
        "/status/new",
        "/runs",
        "/metrics",
        "/openapi.json",
        "/readyz",
        "/status/x",
    ):
        _, body, _ = get(url + path)
        for secret in (
            str(root),
            "somebody",
            "secret",
            "/home",
            str(ROOT),
            os.environ.get("HOME", "/root") + "/",
        ):
            assert secret not in body.decode(), (path, secret)
    assert "file.tar" in get(url + "/status")[1].decode()


def test_probes(site: tuple[str, Path], tmp_path: Path) -> None:
    for path in ("/livez", "/healthz", "/readyz"):
        assert get(site[0] + path)[0] == 200
    with serving(tmp_path / "runs", "--stall-seconds", "3600") as url:
        assert get(f"{url}/livez")[0] == 200
        assert (get(f"{url}/readyz")[0], get(f"{url}/status")[:2]) == (
            503,
            (404, b'{"detail":"no run yet: the first one appears here by itself"}'),
        )
        assert get_json(f"{url}/runs") == {"runs": []}
        run = RunWriter(tmp_path / "runs" / "a")

        def becomes(ready: int, state: str) -> bool:
            def is_so() -> bool:
                code, body, _ = get(f"{url}/status")
                answered, health, _ = get(f"{url}/readyz")
                said = {"status": "ok" if ready == 200 else "unready", "reason": state}
                return (
                    (answered, code) == (ready, 200)
                    and json.loads(health) == said
                    and json.loads(body)["state"] == state
                )

            return wait_for(is_so)

        run.start()
        assert becomes(503, "starting")
        run.step(10)
        assert becomes(200, "running")
        long_ago = time.time() - 7200
        os.utime(run.path / "rank-0.jsonl", (long_ago, long_ago))
        assert becomes(503, "stalled")


def test_the_server_outlives_the_trainer_and_a_deleted_run(tmp_path: Path) -> None:
    with serving(tmp_path) as url:

        def state() -> str | None:
            code, body, _ = get(f"{url}/status/a")
            return json.loads(body)["state"] if code == 200 else None

        with writing(tmp_path / "a") as process:
            assert wait_for(lambda: state() == "running")
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert wait_for(lambda: state() == "crashed")
            status = get_json(f"{url}/status/a")
            assert status["ranks"][0]["state"] == "gone"
            assert status["images_per_s"]["trainer"] == 100.0
        shutil.rmtree(tmp_path / "a")
        assert wait_for(lambda: get(f"{url}/status/a")[0] == 404)
        assert get(f"{url}/metrics")[0] == 200


def test_events_replay_and_resume(site: tuple[str, Path]) -> None:
    url = f"{site[0]}/events?run=new"
    events = read_events(url, 4)
    assert [event.get("event") for event in events] == [
        "status",
        "interval",
        "interval",
        "interval",
    ]
    assert [event.get("id") for event in events] == [None, "new/1.10", "new/1.20", "new/1.30"]
    assert json.loads(events[0]["data"])["name"] == "new"
    assert [json.loads(event["data"])["step"] for event in events[1:]] == [10, 20, 30]
    resumed = read_events(url, 2, Last_Event_ID="new/1.20")
    assert [event.get("id") for event in resumed] == [None, "new/1.30"]
    for other in ("old/1.20", "nonsense", "new/x.y", "new/1." + "9" * 99):
        assert read_events(url, 2, Last_Event_ID=other)[1]["id"] == "new/1.10"


def test_listeners_that_leave_in_the_middle_leave_no_trace(tmp_path: Path) -> None:
    """`serving` asserts that the server's output is empty."""
    run = RunWriter(tmp_path / "a")
    run.start()
    for step in range(10, 4000, 10):
        run.step(step)
    with serving(tmp_path) as url:
        for _ in range(40):
            with urllib.request.urlopen(f"{url}/events", timeout=60) as stream:
                stream.readline()


def test_events_come_live_and_follow_the_newest_run(tmp_path: Path) -> None:
    first = RunWriter(tmp_path / "a")
    first.start()
    first.step(10)
    with serving(tmp_path) as url, urllib.request.urlopen(f"{url}/events", timeout=60) as stream:

        def until(text: bytes) -> None:
            deadline = time.monotonic() + 10
            while text not in stream.readline():
                assert time.monotonic() < deadline

        until(b"id: a/1.10")
        first.step(20)
        until(b"id: a/1.20")
        second = RunWriter(tmp_path / "b")
        second.start()
        second.step(10)
        until(b"id: b/1.10")


def test_event_clients_are_bounded_and_their_places_freed(tmp_path: Path) -> None:
    run = RunWriter(tmp_path / "a")
    run.start()
    with serving(tmp_path) as url:
        clients = [urllib.request.urlopen(f"{url}/events", timeout=60) for _ in range(64)]
        try:
            status, _, headers = get(f"{url}/events")
            assert (status, headers["retry-after"]) == (503, "10")
            assert get(f"{url}/status")[0] == 200
        finally:
            for client in clients:
                client.close()

        def free() -> bool:
            try:
                return bool(read_events(f"{url}/events", 1))
            except urllib.error.HTTPError as error:
                error.close()
                return False

        assert wait_for(free)


def test_metrics_parse_in_both_formats(site: tuple[str, Path]) -> None:
    for accept, parse, content_type in (
        ("text/plain", parse_text, "text/plain"),
        (
            "application/openmetrics-text; version=1.0.0",
            parse_openmetrics,
            "application/openmetrics-text",
        ),
    ):
        status, body, headers = get(f"{site[0]}/metrics", Accept=accept)
        assert status == 200
        assert headers["content-type"].startswith(content_type)
        samples = {
            (one.name, *sorted(one.labels.items())): one.value
            for family in parse(body.decode())
            for one in family.samples
        }
        assert all(name.startswith("gratis_") for name, *_ in samples)
        by_run, by_rank = ("run", "new"), ("rank", "1")
        assert samples["gratis_trained_images_total", by_rank, by_run] == 3000
        assert (
            samples["gratis_loader_stage_seconds_total", by_rank, by_run, ("stage", "decode")]
            == 7.5
        )
        assert samples["gratis_loader_native_images_total", by_rank, by_run] == 2970
        assert samples["gratis_loader_fallback_images_total", by_rank, by_run] == 30
        assert samples["gratis_loader_images_per_second", by_run] == 500
        assert samples["gratis_planned_epochs", by_run] == 5
        assert samples["gratis_planned_steps", by_run] == 200
        assert samples["gratis_remaining_seconds", by_run] == 170
        assert samples["gratis_run_state", by_run, ("state", "running")] == 1
        assert samples["gratis_run_state", by_run, ("state", "crashed")] == 0
        assert any(name == "gratis_build_info" for name, *_ in samples)


def test_promtool_finds_nothing_wrong(site: tuple[str, Path]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs promtool, of Debian's package prometheus")
    _, body, _ = get(f"{site[0]}/metrics")
    done = subprocess.run(
        [promtool, "check", "metrics"], input=body, capture_output=True, check=False, timeout=30
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


NUMERIC = {"number", "integer"}
UNITS = re.compile(
    r"seconds|bytes|watts|nats|in \[0, 1\]|a ratio|learning rate|^the rank|"
    r"\b(images|steps|epochs|epoch, from 0|rank, from 0|ranks|batches|views|classes|lines|times)\b"
)


def test_openapi_tells_every_fields_unit(site: tuple[str, Path]) -> None:
    schema = get_json(f"{site[0]}/openapi.json")
    assert {
        "/status",
        "/status/{run}",
        "/status/{run}/intervals",
        "/status/{run}/picture",
        "/runs",
        "/events",
        "/metrics",
        "/livez",
        "/readyz",
        "/healthz",
    } == set(schema["paths"])
    ours = {
        name: one
        for name, one in schema["components"]["schemas"].items()
        if "Validation" not in name
    }
    for name, model in ours.items():
        for field, value in model["properties"].items():
            assert value.get("description"), (name, field)
            if NUMERIC & {one.get("type") for one in value.get("anyOf", [value])}:
                assert UNITS.search(value["description"]), (name, field, value["description"])
    for path, operations in schema["paths"].items():
        assert operations["get"]["description"], path
        for parameter in operations["get"].get("parameters", []):
            assert parameter.get("description"), (path, parameter["name"])
    assert "RunStatus" in ours


def test_page_and_headers(site: tuple[str, Path]) -> None:
    status, body, headers = get(f"{site[0]}/")
    page = body.decode()
    assert status == 200
    assert "'unsafe" not in headers["content-security-policy"]
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["access-control-allow-origin"] is None
    assert headers["server"] is None
    assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=|https?://", page)
    for link in re.findall(r'(?:src|href)="([^"]+)"', page):
        assert get(f"{site[0]}/{link}")[0] == 200
    for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static/", "/docs", "/redoc"):
        assert get(site[0] + path)[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_nothing_but_reading_is_allowed(site: tuple[str, Path], method: str) -> None:
    status, _, headers = ask(urllib.request.Request(f"{site[0]}/status", method=method))
    assert (status, headers["allow"]) == (405, "GET, HEAD")


def test_head_is_get_without_the_body(site: tuple[str, Path]) -> None:
    parts = urlsplit(site[0])
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    for path in (
        "/status",
        "/runs",
        "/metrics",
        "/livez",
        "/",
        "/static/page.js",
        "/status/x",
        "/events",
        "/events",
    ):
        connection.request("HEAD", path)
        answer = connection.getresponse()
        response = answer.status, answer.headers["content-type"], answer.read()
        assert response == ((404 if path == "/status/x" else 200), response[1], b""), path
        if path != "/events":
            assert response[1] == get(site[0] + path)[2]["content-type"]
    connection.close()
    for _ in range(70):  # an event stream that nobody reads takes no place
        assert ask(urllib.request.Request(f"{site[0]}/events", method="HEAD"))[0] == 200
    assert read_events(f"{site[0]}/events", 1)


HOSTS = [
    ("localhost", 200),
    ("localhost:8000", 200),
    ("127.0.0.1", 200),
    ("[::1]:80", 200),
    ("Box.Example:1", 200),
    ("evil.example", 421),
    ("127.0.0.1.evil.example", 421),
    ("", 421),
    ("a@evil.example", 421),
]


def test_host_header(tmp_path: Path) -> None:
    with serving(tmp_path, "--allow-host", "box.example", "--allow-host", "other") as url:
        for host, status in HOSTS:
            assert get(f"{url}/runs", Host=host)[0] == status, host


def test_token(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    for arguments, env in ((["--token-file", str(file)], {}), ([], {"GRATIS_TOKEN": TOKEN})):
        with serving(tmp_path / "runs", *arguments, "--host", "0.0.0.0", env=env) as bound:
            url = bound.replace("0.0.0.0", "127.0.0.1")
            for path in ("/runs", "/metrics", "/openapi.json", "/status", "/events", "/status/x"):
                assert get(url + path)[0] == 401, path
            for path in ("/", "/livez", "/healthz", "/static/page.js"):
                assert get(url + path)[0] == 200, path
            assert get(f"{url}/readyz")[0] == 503
            for given in (
                "",
                "Bearer",
                "Bearer wrong",
                f"Basic {TOKEN}",
                f"Bearer {TOKEN}x",
                "Bearer \xff",
            ):
                assert get(f"{url}/runs", Authorization=given)[0] == 401, given
            assert get(f"{url}/runs", Cookie="gratis_token=wrong")[0] == 401
            assert get(f"{url}/runs", Authorization=f"Bearer {TOKEN}")[0] == 200
            assert get(f"{url}/runs", Cookie=f"a=b; gratis_token={TOKEN}")[0] == 200


def fails(*arguments: str, env: dict[str, str] | None = None) -> str:
    """The one line on stderr of a server that must not start."""
    clean = {key: value for key, value in os.environ.items() if key != "GRATIS_TOKEN"} | (env or {})
    command = [sys.executable, "-m", "gratis", *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=clean, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    runs = f"--runs={tmp_path}"
    (tmp_path / "file").write_text("short")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port} of 127.0.0.1 is in use" in fails("status", runs, "--port", str(port))
    assert "GRATIS_TOKEN" in fails("status", runs, "--host", "0.0.0.0", "--port", "0")
    assert "16 to 256" in fails(
        "status", runs, "--token-file", str(tmp_path / "file"), "--port", "0"
    )
    assert "cannot be read" in fails(
        "status", runs, "--token-file", str(tmp_path / "none"), "--port", "0"
    )
    assert "no folder" in fails("status", f"--runs={tmp_path / 'file'}")
    assert "99999" in fails("status", runs, "--port", "99999")
    assert "cannot listen" in fails(
        "status", runs, "--host", "203.0.113.7", env={"GRATIS_TOKEN": TOKEN}
    )
    assert "short" not in fails(
        "status", runs, "--token-file", str(tmp_path / "file"), "--port", "0"
    ).replace("too short", "")


def test_oversized_and_broken_requests(site: tuple[str, Path]) -> None:
    parts = urlsplit(site[0])
    for request in (
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x00\xff\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n",
    ):
        with socket.create_connection((parts.hostname, parts.port), timeout=60) as connection:
            connection.sendall(request)
            assert connection.recv(100).split()[1].startswith(b"4")
    assert get(f"{site[0]}/livez")[0] == 200


def test_starts_and_stops_at_once(tmp_path: Path) -> None:
    """An open stream does not use up the three seconds that it may take to end: a server that waits
    for it takes them in every try, and one good try of four is enough, as other processes are at
    work too. A start is measured in CPU time."""

    def stopping(*, stream: bool) -> float:
        with serving(tmp_path) as url:
            assert get(f"{url}/livez")[0] == 200
            opened = (
                urllib.request.urlopen(f"{url}/events", timeout=60) if stream else nullcontext()
            )
            begin = time.perf_counter()
        seconds = time.perf_counter() - begin
        with opened:
            return seconds

    before = cpu_of_children()
    without, with_stream = [stopping(stream=False)], [stopping(stream=True)]
    while len(without) < 4 and max(min(with_stream), min(without)) >= 3:
        without.append(stopping(stream=False))
        with_stream.append(stopping(stream=True))
    # each the best of its kind: a busy moment makes neither of them shorter
    assert min(with_stream) < 3, with_stream
    assert min(without) < 3, without
    used = (cpu_of_children() - before) / (len(without) + len(with_stream))
    print(f"{used:.2f} CPU s a start")
    assert used < 5  # 0.7 on an idle machine


def cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_top_in_a_pipe(site: tuple[str, Path]) -> None:
    command = [sys.executable, "-m", "gratis", "top", "--runs", str(site[1])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert "Compute-bound: the loader keeps up" in done.stdout
    assert "500 images/s" in done.stdout
    assert "no run x in" in fails("top", f"--runs={site[1]}", "--run", "x")


def test_top_escapes_control_characters(tmp_path: Path) -> None:
    run = RunWriter(tmp_path / "runs" / "odd")
    run.start()
    run.writers[0].write("warning", {"message": "\x1b[2Jgone\x07 \x9b31m"})
    command = [sys.executable, "-m", "gratis", "top", "--runs", str(tmp_path / "runs")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert "\\x1b[2Jgone\\x07 \\x9b31m" in done.stdout
    assert not {"\x1b", "\x07", "\x9b"} & set(done.stdout)


@pytest.mark.parametrize("leave", [b"q", b"\x03", signal.SIGTERM])
def test_top_on_a_terminal(tmp_path: Path, leave: bytes | signal.Signals) -> None:
    """On a real one of 100 columns: it fills the screen, says how to leave it, follows the run, and
    gives the screen back as it was."""
    run = RunWriter(tmp_path / "a", world=2)
    run.start()
    run.step(10)
    run.step(20)
    mine, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    before = termios.tcgetattr(mine)
    process = subprocess.Popen(
        [
            "setsid",
            "--ctty",
            "--wait",
            sys.executable,
            *"-m gratis top --runs".split(),
            str(tmp_path),
        ],
        cwd=ROOT,
        stdin=its,
        stdout=its,
        stderr=its,
        env=os.environ | {"TERM": "xterm-256color"},
    )
    os.close(its)
    output = b""

    def shows(text: bytes) -> bool:
        nonlocal output
        while select.select([mine], [], [], 0)[0]:
            try:
                output += os.read(mine, 1 << 16)
            except OSError:  # the other end is closed
                break
        return text in output

    try:
        assert wait_for(lambda: shows(b"Compute-bound") and shows(b"500 images/s")), output
        assert b"\x1b[?1049h" in output
        assert shows(b"q or Ctrl-C: leave")
        assert shows(b"step 20 of 200")
        assert shows(b"40 of 4,000")  # decoder fallback
        assert shows(b"10%")
        assert shows(b"3 minutes to go")  # 5 x 40 - 20 steps of one second
        output = b""
        run.step(30, ranks={rank: {"wait_s": 9.0, "read_s": 60.0} for rank in (0, 1)})
        assert wait_for(lambda: shows(b"Input-bound") and shows(b"read 9")), output
        lines = re.sub(rb"\x1b\[H", b"\n", output)  # home: the next picture of the screen
        lines = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", lines)
        assert max(len(line) for line in lines.decode().splitlines()) <= 100
        if isinstance(leave, bytes):
            os.write(mine, leave)
        else:
            started = psutil.Process(process.pid)  # setsid, or what it became
            next(iter(started.children()), started).send_signal(leave)
        assert process.wait(timeout=60) == 0
        assert shows(b"\x1b[?1049l")
        assert b"Traceback" not in output
        assert termios.tcgetattr(mine) == before
    finally:
        process.kill()
        process.wait()
        os.close(mine)


def test_picture(tmp_path: Path) -> None:
    run = RunWriter(tmp_path / "a")
    run.start()
    path = tmp_path / "a" / "latest.jpg"
    with serving(tmp_path) as url:
        assert get(f"{url}/status/a/picture")[0] == 404
        assert get_json(f"{url}/status")["picture_t"] is None
        jpeg = b"\xff\xd8\xff" + b"x" * 1000
        path.write_bytes(jpeg)
        assert wait_for(lambda: get_json(f"{url}/status")["picture_t"] is not None)
        assert wait_for(lambda: get(f"{url}/status/a/picture")[0] == 200)
        status, body, headers = get(f"{url}/status/a/picture")
        assert (status, body, headers["content-type"]) == (200, jpeg, "image/jpeg")
        assert get_json(f"{url}/status")["picture_t"] == pytest.approx(path.stat().st_mtime)
        for other in (b"<html>", b"", b"\xff\xd8\xff" + b"x" * (1 << 20)):
            path.write_bytes(other)
            assert get(f"{url}/status/a/picture")[0] == 404
        path.unlink()
        (tmp_path / "secret").write_bytes(jpeg)
        path.symlink_to(tmp_path / "secret")
        assert get(f"{url}/status/a/picture")[0] == 404
        path.unlink()
        os.mkfifo(path)
        assert get(f"{url}/status/a/picture")[0] == 404
        path.unlink()
        path.mkdir()
        assert get(f"{url}/status/a/picture")[0] == 404
        assert get(f"{url}/status/%2e%2e/picture")[0] == 404


def test_the_last_records_arrive_although_the_server_ends(tmp_path: Path) -> None:
    run = RunWriter(tmp_path / "a")
    run.start()
    run.step(10)
    with serving(tmp_path) as url:
        stream = urllib.request.urlopen(f"{url}/events", timeout=60)
        while b"id: a/1.10" not in stream.readline():
            pass
        run.step(20)
        run.end("finished")
    with stream:
        rest = stream.read()
    assert b'"state":"finished"' in rest
    assert b"id: a/1.20" in rest
