"""The batch script on a real SLURM of one node: submitted, preempted with its signal, requeued,
resumed, completed.

Two tasks stand for two nodes: two torchrun agents that meet at the first node's name.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ports import free_port

ROOT = Path(__file__).resolve().parents[2]
NEEDS = ["munged", "slurmctld", "slurmd", "sbatch"]
CONFIG = """
ClusterName=gratis
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={node_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,bf_interval=1
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime=100 State=UP
PartitionName=high Nodes=ALL PriorityTier=2 State=UP
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.getuid() != 0, reason="needs root, to start SLURM's daemons"),
    pytest.mark.skipif(
        not all(map(shutil.which, NEEDS)),
        reason="needs slurmctld, slurmd, slurm-client and munge, packages of Debian",
    ),
]


class Slurm:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}

    def ask(self, *command: str | Path) -> str:
        done = subprocess.run(
            [str(part) for part in command],
            env=self.env,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done.stdout + done.stderr

    def job(self, number: str) -> dict[str, str]:
        return dict(re.findall(r"(\w+)=(\S+)", self.ask("scontrol", "show", "job", number)))


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    """Controller, node and munge on free ports, with state of their own, ended with the test."""
    config = CONFIG.format(
        host=socket.gethostname(),
        folder=tmp_path,
        port=free_port(),
        node_port=free_port(),
        cpus=len(os.sched_getaffinity(0)),
    )
    (tmp_path / "slurm.conf").write_text(config)
    (tmp_path / "state").mkdir()
    (tmp_path / "munge.key").write_bytes(os.urandom(128))
    (tmp_path / "munge.key").chmod(0o600)
    munge = [
        "munged",
        "--foreground",
        "--force",
        *(f"--{what}-file={tmp_path}/munge.{what}" for what in ("key", "pid", "log", "seed")),
        f"--socket={tmp_path}/munge.socket",
    ]
    started: list[subprocess.Popen[bytes]] = []
    cluster = Slurm(tmp_path)
    try:
        for command in (munge, ["slurmctld", "-D"], ["slurmd", "-D"]):
            with (tmp_path / f"{command[0]}.log").open("wb") as log:
                started.append(subprocess.Popen(command, env=cluster.env, stdout=log, stderr=log))
            if command is munge:
                until((tmp_path / "munge.socket").exists)
        until(lambda: "idle" in cluster.ask("sinfo", "-h", "-o", "%t"))
        yield cluster
    finally:
        # a job would outlive the daemons
        cluster.ask("scancel", "--full", "--signal=KILL", "--user=root")
        for process in reversed(started):
            process.terminate()
            process.wait(30)


def until(holds: Callable[[], Any], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.3)


def events(run: Path) -> list[dict[str, Any]]:
    file = run / "rank-0.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def kinds(run: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in events(run) if event["kind"] == kind]


@pytest.mark.prove
def test_preempted_job_is_requeued_and_resumes(slurm: Slurm, sample_shards: Path) -> None:
    """A job of a higher partition pushes both agents out; they save, wait, and go on where they
    were, to the end."""
    runs, log = slurm.folder / "runs", slurm.folder / "job.log"
    slurm.env |= {"GRATIS": str(ROOT), "PYTHON": sys.executable}
    said = slurm.ask(
        *"sbatch --parsable --exclusive --partition=low --time=30".split(),
        f"--output={log}",
        "--ntasks-per-node=2",
        ROOT / "docker" / "slurm.sbatch",
        "--shards",
        sample_shards,
        *"--recipe sample --tower-ranks 1 --epochs 2 --runs".split(),
        runs,
    )
    number = said.strip()
    assert number.isdigit(), said
    run = runs / f"slurm-{number}"
    until(lambda: kinds(run, "step"), 90)
    higher = slurm.ask(
        *"sbatch --parsable --exclusive --partition=high --output=/dev/null".split(),
        "--wrap=sleep 2",
    ).strip()
    until(lambda: kinds(run, "end"), 90)
    assert [event["outcome"] for event in kinds(run, "end")] == ["preempted"]
    until(lambda: slurm.job(higher).get("JobState") == "COMPLETED", 60)
    until(lambda: slurm.job(number).get("JobState") in ("PENDING", "RUNNING"))
    # SLURM lets a requeued job wait two minutes
    slurm.ask("scontrol", "update", f"JobId={number}", "StartTime=now")
    until(lambda: slurm.job(number).get("JobState") == "COMPLETED", 150)
    job = slurm.job(number)
    assert (job["Restarts"], job["ExitCode"]) == ("1", "0:0")
    assert "going on where it stopped" in log.read_text()
    assert [event["outcome"] for event in kinds(run, "end")] == ["preempted", "finished"]
    assert [(event["attempt"], event["world"]) for event in kinds(run, "start")] == [(1, 2), (2, 2)]
    receipts = kinds(run, "receipt")
    assert [receipt["epoch"] for receipt in receipts] == [0, 1]
    assert all(receipt["missing"] == receipt["duplicates"] == 0 for receipt in receipts)


@pytest.mark.starts
def test_users_mistake_is_not_requeued(slurm: Slurm) -> None:
    slurm.env |= {"GRATIS": str(ROOT), "PYTHON": sys.executable}
    log = slurm.folder / "job.log"
    said = slurm.ask(
        "sbatch",
        "--parsable",
        "--time=5",
        f"--output={log}",
        ROOT / "docker" / "slurm.sbatch",
        "--shards",
        "nowhere",
        "--runs",
        slurm.folder / "runs",
    )
    until(lambda: slurm.job(said.strip()).get("JobState") == "FAILED")
    assert slurm.job(said.strip())["ExitCode"] == "2:0"
    assert slurm.job(said.strip())["Restarts"] == "0"
    assert re.search(r"^error: nowhere ", log.read_text(), re.MULTILINE)


@pytest.mark.starts
def test_tasks_that_would_train_the_same_are_refused(slurm: Slurm) -> None:
    """A step of two tasks; a batch script that asked for two, and runs once, is right."""
    slurm.env |= {"PYTHONPATH": str(ROOT)}
    train = f"{sys.executable} -m gratis train --shards nowhere --runs {slurm.folder}/runs"
    answers = []
    for command in (train, f"srun {train}"):
        log = slurm.folder / f"{len(answers)}.log"
        batch = f"sbatch --parsable --time=5 --ntasks-per-node=2 --output={log} --wrap".split()
        number = slurm.ask(*batch, command).strip()
        until(lambda job=number: slurm.job(job).get("JobState") == "FAILED")
        assert slurm.job(number)["ExitCode"] == "2:0"
        answers.append(re.findall(r"^error: (.*)", log.read_text(), re.MULTILINE))
    assert [line.split()[0] for line in answers[0]] == ["nowhere"]
    assert 1 <= len(answers[1]) <= 2
    assert all("srun started gratis train 2 times" in line for line in answers[1])
