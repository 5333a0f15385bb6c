"""Runs that are killed, starved of disk, fed nonsense or robbed of a rank. Real processes, on the
sample dataset."""

from __future__ import annotations

import ctypes
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from clock import own_clock
from safetensors.torch import load_file
from small import ROOT, command, of_kind
from torch.distributed.launcher.api import LaunchConfig

from gratis.events import EventWriter
from gratis.signals import PR_SET_PDEATHSIG, end_with_parent
from gratis.train import checkpoint
from gratis.train.checkpoint import State
from gratis.train.launcher.exit_status import ECHO_S
from gratis.train.network.alexnet import AlexNet
from gratis.train.optimiser import Optimiser
from gratis.train.rank import signal_of_lost_agent
from gratis.train.recipes import SAMPLE
from gratis.train.training_state import Saver

LAST = "checkpoints/step-00000020/network.safetensors"  # of two epochs


def start(runs: Path, shards: Path, *arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(runs, shards, "--save-every", "0", *arguments),
        cwd=ROOT,
        text=True,
        stdout=-1,
        stderr=-1,
        start_new_session=True,
        **options,
    )


def finish(process: subprocess.Popen[str], code: int) -> tuple[str, str]:
    out, err = process.communicate(timeout=240)
    assert process.returncode == code, err
    return out, err


def wait_for(run: Path, process: subprocess.Popen[str], step: int) -> None:
    until = time.monotonic() + 120
    while not any(record["step"] >= step for record in of_kind(run, "step")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)


def kill_everything(run: Path, process: subprocess.Popen[str], ranks: int) -> None:
    """As a lost machine would: nobody gets to say a word."""
    pids = [of_kind(run, "start", rank)[-1]["pid"] for rank in range(ranks)]
    for pid in [process.pid, *pids]:
        os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=30)
    until = time.monotonic() + 10
    while (
        any(Path(f"/proc/{pid}/fd").exists() and _alive(pid) for pid in pids)
        and time.monotonic() < until
    ):
        time.sleep(0.02)


def _alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture(scope="module")
def whole(sample_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    out, err = finish(
        start(runs, sample_shards, "--run", "whole", "--epochs", "2", "--save-probabilities"), 0
    )
    (runs / "whole" / "printed").write_text(out + err)
    return runs / "whole"


def killed_and_resumed(
    whole: Path, shards: Path, name: str, worlds: list[str], rng: random.Random
) -> None:
    runs, run = whole.parent, whole.parent / name
    for world in worlds[:-1]:
        arguments = ("--run", name, "--epochs", "2", "--gpus", world)
        process = start(runs, shards, *arguments)
        reached = max((record["step"] for record in of_kind(run, "step")), default=0)
        wait_for(run, process, min(19, reached + rng.randint(1, 6)))
        time.sleep(rng.random() * 0.3)  # in the middle of a step, or of a checkpoint
        kill_everything(run, process, int(world))
    finish(start(runs, shards, "--run", name, "--epochs", "2", "--gpus", worlds[-1]), 0)
    assert [r["missing"] + r["duplicates"] for r in of_kind(run, "receipt")] == [0] * len(
        of_kind(run, "receipt")
    )
    one, other = load_file(whole / LAST), load_file(run / LAST)
    for key, tensor in one.items():
        # float32 on two meshes: a unit near zero may switch on one of them, so the whole is
        # compared, not each number
        assert (other[key] - tensor).norm() <= 2e-3 * tensor.norm(), key


@pytest.mark.slow
def test_killed_anywhere_it_goes_on_with_other_ranks(whole: Path, sample_shards: Path) -> None:
    """Ids, masks and rates are functions of the step: the weights are those of the run that nobody
    killed."""
    killed_and_resumed(whole, sample_shards, "killed", ["2", "1"], random.Random(0))


@pytest.mark.prove
def test_killed_anywhere_many_times(whole: Path, sample_shards: Path) -> None:
    for seed in range(10):
        worlds = ["2", "1", "2", "1"] if seed % 2 else ["1", "2", "1", "2"]
        killed_and_resumed(whole, sample_shards, f"killed-{seed}", worlds, random.Random(seed))


@pytest.mark.parametrize("deaf", [False, True])
def test_a_killed_rank_ends_all_and_is_named(
    whole: Path, sample_shards: Path, tmp_path: Path, deaf: bool
) -> None:
    """deaf: the other rank hears nothing, of its peer nor of signals, as in a collective of
    NCCL's."""
    run = whole.parent / f"robbed-{deaf}"
    arguments = ("--run", run.name, "--epochs", "50", "--gpus", "2")
    process = start(
        whole.parent, sample_shards, *arguments, env=os.environ | {"TMPDIR": str(tmp_path)}
    )
    wait_for(run, process, 2)
    pids = [of_kind(run, "start", rank)[0]["pid"] for rank in (0, 1)]
    with own_clock() as clock:
        if deaf:
            os.kill(pids[0], signal.SIGSTOP)
        os.kill(pids[1], signal.SIGKILL)
        _, err = finish(process, 1)
    assert clock.seconds < 15  # torchrun itself would give the deaf one 30
    assert err.startswith("error: rank 1 was killed by SIGKILL"), err
    assert [one["outcome"] for one in of_kind(run, "end")] == ([] if deaf else ["failed"])
    assert not psutil.pid_exists(pids[0])
    assert not [
        path for path in tmp_path.iterdir() if "torchelastic" in path.name or "gratis" in path.name
    ]


SLOW_DISK = f"""
import os, time
from gratis.events import EventWriter
fsync, write = os.fsync, EventWriter.write
os.fsync = lambda file: (time.sleep(1), fsync(file))
def slowly(self, kind, *fields, **more):
    time.sleep({ECHO_S + 1} if kind == "end" and self._common["rank"] == 0 else 0)
    write(self, kind, *fields, **more)
EventWriter.write = slowly
"""


@pytest.mark.slow
def test_ranks_wait_for_what_is_written_last_on_a_slow_disk(
    whole: Path, sample_shards: Path, tmp_path: Path
) -> None:
    """The one that has nothing to write would end first, and the agent would soon kill the one that
    has."""
    (tmp_path / "sitecustomize.py").write_text(SLOW_DISK)
    run = whole.parent / "sluggish"
    arguments = ("--run", run.name, "--epochs", "500", "--gpus", "2", "--save-every", "9999")
    process = start(
        whole.parent,
        sample_shards,
        *arguments,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"},
    )
    wait_for(run, process, 2)
    os.kill(of_kind(run, "start", 1)[0]["pid"], signal.SIGTERM)
    _, err = finish(process, 75)
    (saved,) = of_kind(run, "checkpoint")
    assert saved["wall_s"] > ECHO_S
    assert err == f"preempted: saved at step {saved['step']}; give the same command to go on\n"
    assert [end["outcome"] for end in of_kind(run, "end")] == ["preempted"]
    assert checkpoint.undamaged(run / "checkpoints") == (
        checkpoint.of_step(run / "checkpoints", saved["step"]),
        [],
    )


def test_a_full_disk_costs_checkpoints_and_is_told_at_the_end(
    whole: Path, sample_shards: Path
) -> None:
    """A limit on file size, which weights exceed and events do not. Training goes on, but is not
    over without."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    _, err = finish(
        start(whole.parent, sample_shards, "--run", "full", "--epochs", "1", preexec_fn=limit), 1
    )
    run = whole.parent / "full"
    assert "warning: no checkpoint of step" in err
    assert "error: training is done, but no checkpoint of step" in err
    assert of_kind(run, "eval")
    assert of_kind(run, "end")[-1]["outcome"] == "failed"
    assert any("no checkpoint of step" in warning["message"] for warning in of_kind(run, "warning"))
    assert not of_kind(run, "checkpoint")
    assert not list((run / "checkpoints").iterdir())


def test_a_disk_too_full_for_events_costs_events(whole: Path, sample_shards: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, 4_000))

    process = start(whole.parent, sample_shards, "--run", "deaf", "--epochs", "2", preexec_fn=limit)
    _, err = finish(process, 1)
    run = whole.parent / "deaf"
    assert "Traceback" not in err
    assert err.count("warning: events are lost") == 1
    assert "error: training is done, but no checkpoint of step 20" in err  # it came to its end
    assert of_kind(run, "start")
    assert not of_kind(run, "end")


def test_a_run_whose_folder_is_deleted_ends_soon_in_a_line(
    whole: Path, sample_shards: Path
) -> None:
    """And is not begun again, though it may be after a loss."""
    run = whole.parent / "unwanted"
    arguments = (*"--run unwanted --epochs 5000 --gpus 2 --save-every 2 --max-restarts 2".split(),)
    process = start(whole.parent, sample_shards, *arguments)
    wait_for(run, process, 3)
    with own_clock() as clock:
        while run.exists():  # the checkpoint's thread may put a file there meanwhile
            shutil.rmtree(run, ignore_errors=True)
        _, err = finish(process, 2)
    assert clock.seconds < 60  # of 5,000 epochs
    said = [
        line for line in err.splitlines() if not line.startswith("warning: no checkpoint of step")
    ]
    assert len(said) == 1, err
    assert said[0].startswith("error: ")
    assert "deleted while it trained" in said[0]
    assert not run.exists()


def test_a_damaged_checkpoint_is_told_and_the_one_before_taken(
    whole: Path, sample_shards: Path
) -> None:
    runs, run = whole.parent, whole.parent / "flipped"
    arguments = ("--run", "flipped", "--epochs", "2")
    process = start(runs, sample_shards, *arguments)
    wait_until(lambda: len(of_kind(run, "checkpoint")) >= 3)
    kill_everything(run, process, 1)
    newest = checkpoint.latest(run / "checkpoints")
    assert newest
    content = bytearray((newest / "network.safetensors").read_bytes())
    content[-1] ^= 1  # the last weight's sign or exponent: to be read, it must be noticed
    (newest / "network.safetensors").write_bytes(content)
    out, err = finish(start(runs, sample_shards, *arguments, "--gpus", "2"), 0)
    assert err.startswith(
        f"warning: {newest} is damaged (network.safetensors is not what was written): going on from"
    )
    assert err.count("\n") == 1
    resumed = next(line for line in out.splitlines() if line.startswith("resumed at step"))
    assert int(resumed.split()[3].rstrip(",")) < int(newest.name[-8:])
    assert "is damaged" in of_kind(run, "warning")[0]["message"]
    one, other = load_file(whole / LAST), load_file(run / LAST)
    for key, tensor in one.items():
        assert (other[key] - tensor).norm() <= 2e-3 * tensor.norm(), key


def test_a_signal_in_an_evaluation_stops_it_and_it_is_done_when_the_run_goes_on(
    whole: Path, sample_shards: Path
) -> None:
    """Twice: in the first epoch's validation and in the ten views at the end, each of many small
    batches."""
    runs, run = whole.parent, whole.parent / "looked"
    arguments = (*"--run looked --epochs 2 --batch 20 --gpus 2 --save-every 9999".split(),)
    for at in (50, 100):
        process = start(runs, sample_shards, *arguments)
        wait_for(run, process, at)
        process.send_signal(signal.SIGTERM)
        _, err = finish(process, 75)
        assert err == f"preempted: saved at step {at}; give the same command to go on\n"
        assert not [record for record in of_kind(run, "eval") if record["step"] == at]
        newest = checkpoint.latest(run / "checkpoints")
        assert newest
        assert (checkpoint.read_state(newest).step, len(checkpoint.read_state(newest).errors)) == (
            at,
            at // 50 - 1,
        )
    finish(start(runs, sample_shards, *arguments), 0)
    assert [(record["views"], record["step"]) for record in of_kind(run, "eval")] == [
        (1, 50),
        (1, 100),
        (10, 100),
    ]
    assert [record["missing"] for record in of_kind(run, "receipt")] == [0, 0]


def test_ranks_save_and_end_when_their_parent_is_killed(whole: Path, sample_shards: Path) -> None:
    run = whole.parent / "orphan"
    parent = start(whole.parent, sample_shards, "--run", "orphan", "--epochs", "500", "--gpus", "2")
    wait_until(lambda: bool(of_kind(run, "step")))
    parent.kill()
    wait_until(lambda: bool(of_kind(run, "end")))
    parent.communicate()
    assert of_kind(run, "end")[-1]["outcome"] == "preempted"
    assert checkpoint.latest(run / "checkpoints")


@pytest.mark.parametrize(
    ("node", "restarts", "begun", "number"),
    [
        (0, 0, 0, signal.SIGTERM),
        (1, 2, 1, signal.SIGKILL),
        (1, 2, 2, signal.SIGTERM),
        (0, 2, 0, signal.SIGTERM),
    ],
)
def test_an_orphan_is_asked_to_save_unless_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, node: int, restarts: int, begun: int, number: signal.Signals
) -> None:
    """`restarts` of which as many have begun; without node 0 nobody goes on."""
    for name, value in (("GROUP_RANK", node), ("TORCHELASTIC_MAX_RESTARTS", restarts)):
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(begun))
    kernel, asked = ctypes.CDLL(None), ctypes.c_int()
    try:
        end_with_parent(os.getppid(), signal_of_lost_agent())
        kernel.prctl(2, ctypes.byref(asked))  # PR_GET_PDEATHSIG
    finally:
        kernel.prctl(PR_SET_PDEATHSIG, 0)
    assert asked.value == number


def test_a_rank_whose_parent_was_killed_before_it_could_ask_does_not_begin(
    whole: Path, sample_shards: Path
) -> None:
    run = whole.parent / "foundling"
    parent = start(whole.parent, sample_shards, "--run", run.name, "--epochs", "500")
    agent = psutil.Process(parent.pid)
    wait_until(lambda: any("gratis.train.rank" in child.cmdline() for child in agent.children()))
    ranks = agent.children()
    parent.kill()
    parent.communicate()
    assert not psutil.wait_procs(ranks, timeout=60)[1]
    assert not of_kind(run, "start")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGHUP, 75), (signal.SIGQUIT, 130)])
def test_a_terminal_that_hangs_up_or_quits_saves(
    whole: Path, sample_shards: Path, number: signal.Signals, code: int
) -> None:
    run = whole.parent / number.name
    process = start(
        whole.parent,
        sample_shards,
        "--run",
        run.name,
        *"--epochs 500 --save-every 9999".split(),
        # the tests themselves may run under nohup
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    wait_for(run, process, 2)
    process.send_signal(number)
    _, err = finish(process, code)
    newest = checkpoint.latest(run / "checkpoints")
    assert newest
    word = "interrupted" if code == 130 else "preempted"
    assert (
        err
        == f"{word}: saved at step {checkpoint.step_of(newest)}; give the same command to go on\n"
    )


@pytest.fixture(scope="module")
def pair(whole: Path, sample_shards: Path) -> Path:
    """A run of two processes under nohup, hung up on; beside its events, the addresses that it
    listened on."""
    if not hasattr(LaunchConfig(1, 1, 1), "signals_to_handle"):
        pytest.skip("torch 2.8 acts on a hangup whatever it was started to ignore")
    run = whole.parent / "pair"
    process = start(
        whole.parent,
        sample_shards,
        *"--run pair --epochs 3 --gpus 2".split(),
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    wait_for(run, process, 1)
    pids = [process.pid, *(of_kind(run, "start", rank)[0]["pid"] for rank in (0, 1))]
    sockets = [
        one
        for pid in pids
        for one in psutil.Process(pid).net_connections("tcp")
        if one.status == "LISTEN"
    ]
    (run / "listened").write_text("\n".join(one.laddr.ip for one in sockets))
    for pid in pids:
        os.kill(pid, signal.SIGHUP)
    finish(process, 0)
    return run


def test_nohup_is_obeyed_and_only_this_machine_can_connect(pair: Path) -> None:
    assert of_kind(pair, "end")[-1]["outcome"] == "finished"
    assert set((pair / "listened").read_text().split()) == {"127.0.0.1"}


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_divergence_stops_at_once_and_names_the_last_good_checkpoint(
    whole: Path, sample_shards: Path
) -> None:
    """And is not begun again, though a run may be after a loss."""
    arguments = (*"--run wild --epochs 9 --rate 1e4 --warmup-steps 0 --scale-rate off".split(),)
    _, err = finish(start(whole.parent, sample_shards, *arguments, "--max-restarts", "2"), 1)
    assert len(of_kind(whole.parent / "wild", "start")) == 1
    end = of_kind(whole.parent / "wild", "end")[-1]
    assert end["outcome"] == "diverged"
    assert end["step"] < 40
    assert "the loss is not finite" in err
    newest = checkpoint.latest(whole.parent / "wild" / "checkpoints")
    told = (
        f"the last good checkpoint is {newest}: --run wild"
        if newest
        else "there is no good checkpoint: begin again"
    )
    assert f"{told} " in err
    assert "a lower --rate" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("epochs", ["1", "2"])
def test_a_validation_loss_that_is_not_finite_is_divergence(
    whole: Path, sample_shards: Path, epochs: str
) -> None:
    """One step an epoch: its loss was finite, what it made of the weights is seen by the evaluation
    alone."""
    name = f"blind-{epochs}"
    arguments = (
        "--run",
        name,
        "--epochs",
        epochs,
        *"--batch 1000 --rate 1e30 --warmup-steps 0".split(),
    )
    _, err = finish(start(whole.parent, sample_shards, *arguments), 1)
    run = whole.parent / name
    assert all(step["loss"] is not None for step in of_kind(run, "step"))
    assert of_kind(run, "eval")[-1]["top1"] == 0
    end = of_kind(run, "end")[-1]
    assert (end["outcome"], end["step"]) == ("diverged", 1)
    assert "the loss is not finite" in err


def test_weights_that_diverged_never_become_the_latest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = AlexNet(replace(SAMPLE, width=1 / 16), 5)
    arrays = checkpoint.collect(network, Optimiser(network, SAMPLE), torch.arange(0), writer=True)
    common = {"epoch": 7, "seed": 0, "classes": 5, "dataset": "d", "architecture": {}, "loader": {}}
    saver = Saver(tmp_path, EventWriter(tmp_path / "rank-0.jsonl", attempt=1, rank=0))
    saver.begin(arrays, State(step=1, **common))  # type: ignore[arg-type]
    saver.settle()
    arrays["network"]["fc7.bias"][3] = math.inf
    saver.begin(arrays, State(step=2, **common))  # type: ignore[arg-type]
    saver.close()
    assert checkpoint.latest(tmp_path / "checkpoints") == tmp_path / "checkpoints" / "step-00000001"
    assert capsys.readouterr() == ("", f"warning: {saver.lost}\n")
    (warned,), (saved,) = (of_kind(tmp_path, kind) for kind in ("warning", "checkpoint"))
    assert warned["message"] == saver.lost == "no checkpoint of step 2: fc7.bias is not finite"
    assert (warned["epoch"], warned["step"], saved["epoch"], saved["step"]) == (7, 2, 7, 1)
    assert saved["path"] == "checkpoints/step-00000001"


def test_probabilities_are_saved_on_request(whole: Path) -> None:
    found = load_file(whole / "probabilities.safetensors")
    assert found["probabilities"].shape == (200, 10)
    torch.testing.assert_close(found["probabilities"].sum(1), torch.ones(200), rtol=1e-5, atol=1e-5)
    right = (found["probabilities"].argmax(1) == found["labels"]).double().mean().item()
    ten = next(record for record in of_kind(whole, "eval") if record["views"] == 10)
    assert right == pytest.approx(ten["top1"], abs=1e-6)


def test_logs_without_a_terminal_have_a_line_an_epoch(whole: Path) -> None:
    printed = (whole / "printed").read_text()
    assert "\r" not in printed
    assert [line.split(":")[0] for line in printed.splitlines() if line.startswith("epoch")] == [
        "epoch 1/2",
        "epoch 2/2",
    ]


def test_exchange_seconds_are_told_by_each_rank(whole: Path, pair: Path) -> None:
    for rank in (0, 1):
        assert all(0 < step["exchange_s"] < step["wall_s"] for step in of_kind(pair, "step", rank))
    assert all(step["exchange_s"] == 0 for step in of_kind(whole, "step"))
