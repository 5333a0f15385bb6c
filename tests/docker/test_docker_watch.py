"""A real Prometheus scrapes the real server: every query of the dashboard and of the alerts returns
data."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from ports import free_port

from gratis.events import EventWriter, LoaderCounters, ShardProgress
from gratis.records import EndRecord, EvalRecord, GpuCounters, StepRecord

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
STALL_S = 4

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="needs prometheus, a package of Debian"
)


class Run:
    """Two ranks' events as a trainer with GPUs writes them, and a shard stage's, without either."""

    def __init__(self, folder: Path) -> None:
        self.steps = 0
        self.writers = [
            EventWriter(folder / f"rank-{rank}.jsonl", attempt=1, rank=rank) for rank in (0, 1)
        ]
        for writer in self.writers:
            writer.write(
                "start",
                {
                    "run": folder.name,
                    "world": 2,
                    "host": "elsewhere",
                    "mesh": {"data": 1, "tower": 2},
                    "epochs": 5,
                    "steps_per_epoch": 1000,
                },
            )
            writer.write(
                "eval",
                EvalRecord(views=1, images=200, top1=0.9, top5=0.95, nll=0.4, wall_s=1.0),
                epoch=0,
                step=0,
            )
        shards = EventWriter(folder / "shards.jsonl", attempt=1, rank=0)
        progress = ShardProgress(
            images=50, bytes_in=5, bytes_out=5, wall_s=1.0, done=50, total=100, rejects=1
        )
        shards.write("progress", progress)

    def step(self, wait_s: float = 0.5, loss: float | None = 2.0) -> None:
        """One second of training, of which `wait_s` were lost."""
        self.steps += 10
        for writer in self.writers:
            loader = LoaderCounters(
                images=100,
                batches=10,
                bytes_read=2_000_000,
                read_s=0.1,
                decode_s=0.3,
                finish_s=0.1,
                transfer_s=0.1,
                wait_s=wait_s,
                blocked_s=0.2,
                queue_depth=1,
                queue_capacity=2,
            )
            gpu = GpuCounters(
                busy=0.9,
                nvjpg_busy=0.2,
                memory_bytes=1 << 30,
                memory_total_bytes=8 << 30,
                power_w=300.0,
            )
            step = StepRecord(
                steps=10,
                images=100,
                wall_s=1.0,
                wait_s=wait_s,
                exchange_s=0.1,
                cpu_s=1.5,
                rss_bytes=1 << 30,
                loader=loader,
                loss=loss,
                top1=0.5,
                lr=0.01,
                gpu=gpu,
            )
            writer.write("step", step, epoch=0, step=self.steps)

    def end(self, outcome: str) -> None:
        for writer in self.writers:
            writer.write("end", EndRecord(outcome=outcome, error=None))  # type: ignore[typeddict-item]


@contextmanager
def running(*command: str | Path, cwd: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (cwd / "said.log").open("wb") as log:
        process = subprocess.Popen(
            [str(part) for part in command], cwd=ROOT, stdout=log, stderr=log
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(20)


@contextmanager
def watched(folder: Path) -> Iterator[str]:
    """Serves folder/runs and lets Prometheus scrape it by our configuration, faster; the base URL
    of its API."""
    server, prometheus = free_port(), free_port()
    config = yaml.safe_load((DOCKER / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{server}"]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    shutil.copy(DOCKER / "alerts.yml", folder)
    serve = [
        sys.executable,
        *"-m gratis status --runs".split(),
        folder / "runs",
        "--port",
        str(server),
    ]
    scrape = [
        "prometheus",
        f"--config.file={folder}/prometheus.yml",
        f"--storage.tsdb.path={folder}/tsdb",
        f"--web.listen-address=127.0.0.1:{prometheus}",
    ]
    with running(*serve, "--stall-seconds", str(STALL_S), cwd=folder), running(*scrape, cwd=folder):
        yield f"http://127.0.0.1:{prometheus}/api/v1"


def query(api: str, expression: str) -> list[Any]:
    """What the expression returns now; nothing while Prometheus starts."""
    try:
        with urllib.request.urlopen(
            f"{api}/query?" + urllib.parse.urlencode({"query": expression}), timeout=10
        ) as answer:
            return list(json.load(answer)["data"]["result"])
    except OSError:
        return []


def queries() -> dict[str, str]:
    """The dashboard's, as Grafana sends them when all runs are chosen."""
    dashboard = json.loads((DOCKER / "grafana" / "gratis.json").read_text())
    found = {}
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            expression = target["expr"].replace("$run", ".*").replace("$__rate_interval", "1m")
            found[f"{panel['title']} {target['refId']}"] = expression
    return found


def alerts() -> dict[str, str]:
    rules = yaml.safe_load((DOCKER / "alerts.yml").read_text())["groups"][0]["rules"]
    return {rule["alert"]: rule["expr"] for rule in rules}


def until(holds: Any, seconds: float = 40.0) -> bool:
    deadline = time.monotonic() + seconds
    while not (held := bool(holds())) and time.monotonic() < deadline:
        time.sleep(0.5)
    return held


def firing(api: str) -> set[str]:
    return {result["metric"]["alertname"] for result in query(api, 'ALERTS{alertstate="firing"}')}


@pytest.mark.slow
@pytest.mark.starts
def test_every_query_returns_data_and_alerts_fire(tmp_path: Path) -> None:
    """One run through its states: held back by its input, silent, diverged; last the server
    goes."""
    run = Run(tmp_path / "runs" / "watched-1")
    with watched(tmp_path) as api:
        missing = queries()

        def step_and_ask() -> bool:
            run.step()
            for name, expression in list(missing.items()):
                if query(api, expression):
                    del missing[name]
            return not missing and bool(query(api, alerts()["InputBound"]))

        until(step_and_ask)
        assert missing == {}
        waited = query(api, alerts()["InputBound"])
        assert [result["metric"]["run"] for result in waited] == ["watched-1"]
        assert float(waited[0]["value"][1]) == pytest.approx(0.5)  # as written: half of each second
        # not firing: five minutes are not over
        assert query(api, 'ALERTS{alertname="InputBound",alertstate="pending"}')
        assert not {"Stalled", "Diverged", "Crashed"} & firing(api)
        assert until(lambda: firing(api) == {"Stalled"})  # nothing is written any more
        run.end("diverged")
        assert until(lambda: firing(api) == {"Diverged"})


@pytest.mark.slow
def test_a_real_run_fills_the_dashboard(tmp_path: Path, sample_shards: Path) -> None:
    """Two processes train one epoch; afterwards every panel but the GPUs' and the shard stage's has
    data."""
    with watched(tmp_path) as api:
        command = [
            sys.executable,
            *"-m gratis train --shards".split(),
            sample_shards,
            *"--recipe sample --epochs 1 --gpus 2 --share-device --port 0 --runs".split(),
            tmp_path / "runs",
        ]
        done = subprocess.run(
            [str(part) for part in command], cwd=ROOT, capture_output=True, text=True, timeout=240
        )
        assert done.returncode == 0, done.stdout + done.stderr
        asked = {
            name: words for name, words in queries().items() if not re.match("GPU|Shard", name)
        }
        assert until(lambda: all(query(api, words) for words in asked.values())), asked


@pytest.mark.starts
def test_input_bound_waits_five_minutes(tmp_path: Path) -> None:
    """By promtool, on made-up series: it fires after five minutes without a break, and not where
    nothing trains, or the loader could deliver more than twice what training takes."""
    series = [
        {"series": 'gratis_data_wait_ratio{run="pauses"}', "values": "0.2x20"},
        {"series": 'gratis_run_state{run="pauses",state="running"}', "values": "1x20"},
        {"series": 'gratis_loader_headroom_ratio{run="pauses"}', "values": "2.1x20"},
        {"series": 'gratis_loader_headroom_ratio{run="a"}', "values": "2x20"},
        {"series": 'gratis_data_wait_ratio{run="a"}', "values": "0.2x20"},
        {"series": 'gratis_run_state{run="a",state="running"}', "values": "1x20"},
        {"series": 'gratis_data_wait_ratio{run="over"}', "values": "0.2x20"},
        {"series": 'gratis_run_state{run="over",state="running"}', "values": "0x20"},
        {
            "series": 'gratis_data_wait_ratio{run="now-and-then"}',
            "values": "0.2 0.2 0.2 0 0.2 0.2 0.2 0 0.2",
        },
        {"series": 'gratis_run_state{run="now-and-then",state="running"}', "values": "1x20"},
    ]
    rule = yaml.safe_load((DOCKER / "alerts.yml").read_text())["groups"][0]["rules"][0]
    words = {
        key: text.replace("{{ $labels.run }}", "a").replace(
            "{{ $value | humanizePercentage }}", "20%"
        )
        for key, text in rule["annotations"].items()
    }
    fires = {"exp_labels": {"run": "a", "severity": "warning"}, "exp_annotations": words}
    expected = [
        {"eval_time": "4m", "alertname": "InputBound", "exp_alerts": []},
        {"eval_time": "6m", "alertname": "InputBound", "exp_alerts": [fires]},
    ]
    test = {"interval": "1m", "input_series": series, "alert_rule_test": expected}
    shutil.copy(DOCKER / "alerts.yml", tmp_path)
    (tmp_path / "test.yml").write_text(
        yaml.safe_dump({"rule_files": ["alerts.yml"], "tests": [test]})
    )
    done = subprocess.run(
        ["promtool", "test", "rules", tmp_path / "test.yml"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
