"""Whole runs: `gratis train` as a user starts it, on the sample dataset, with real processes."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file
from small import ROOT, command, of_kind

from gratis.cli import run as gratis_command
from gratis.errors import PREEMPTED, GratisError, guard
from gratis.history import records
from gratis.locks import RESERVED, lock, reserve
from gratis.signals import handlers_restored
from gratis.train.launcher.launch import changes, choose_run
from gratis.train.options import parse
from gratis.train.recipes import RECIPES, SAMPLE
from gratis.train.settings import Launch


def train(runs: Path, shards: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(runs, shards, *arguments),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


Answered = Callable[[list[str]], "subprocess.CompletedProcess[str]"]


@pytest.fixture
def answered(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Answered]:
    """What a command answers, asked in this process: another would take seconds to say the same."""

    def ask(command: list[str]) -> subprocess.CompletedProcess[str]:
        code = guard(lambda: gratis_command(command[3:]))
        return subprocess.CompletedProcess(command, code, *capsys.readouterr())

    for name, value in {"GLOO_SOCKET_IFNAME": "lo"}.items():
        monkeypatch.setenv(name, value)  # main sets them for its children
    with handlers_restored():
        yield ask


def one_line(process: subprocess.CompletedProcess[str], *words: str) -> None:
    assert process.returncode == 2, process.stderr
    assert process.stderr.startswith("error: ")
    assert process.stderr.count("\n") == 1
    for word in words:
        assert word in process.stderr


@pytest.fixture(scope="module")
def whole(sample_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of two epochs in one process, and what it printed."""
    runs = tmp_path_factory.mktemp("runs")
    process = train(runs, sample_shards, "--run", "whole")
    assert process.returncode == 0, process.stderr
    return runs / "whole", process.stdout


def test_a_run_ends_with_a_result_line(whole: tuple[Path, str]) -> None:
    _, printed = whole
    last = printed.strip().splitlines()[-1]
    assert last.startswith("result ")
    found = dict(pair.split("=") for pair in last.removeprefix("result ").split())
    assert list(found) == [
        "top1",
        "top5",
        "top1_10view",
        "top5_10view",
        "images_per_s",
        "loader_images_per_s",
        "headroom",
        "wait_fraction",
        "startup_s",
    ]
    assert 0 <= float(found["top1"]) <= float(found["top5"]) <= 1
    assert float(found["images_per_s"]) > 0
    assert 0 <= float(found["wait_fraction"]) <= 1


def test_events_count_every_image_once(whole: tuple[Path, str]) -> None:
    run, _ = whole
    assert [start["world"] for start in of_kind(run, "start")] == [1]
    (start,) = of_kind(run, "start")
    assert start["command"].startswith("gratis train --runs ")
    assert start["command"].endswith("--run whole")
    assert "command" not in start["config"]  # version 0.2 refuses what it does not know there
    assert sum(step["images"] for step in of_kind(run, "step")) == 2 * 1000
    assert sum(step["steps"] for step in of_kind(run, "step")) == 2 * 10
    for receipt in of_kind(run, "receipt"):
        assert (receipt["seen"], receipt["missing"], receipt["duplicates"], receipt["dropped"]) == (
            1000,
            0,
            0,
            0,
        )
    assert len(of_kind(run, "receipt")) == 2
    assert [(e["views"], e["images"]) for e in of_kind(run, "eval")] == [
        (1, 200),
        (1, 200),
        (10, 200),
    ]
    assert of_kind(run, "end")[-1]["outcome"] == "finished"
    assert of_kind(run, "checkpoint")[-1]["path"] == "checkpoints/step-00000020"


def test_two_processes_follow_the_same_curve(whole: tuple[Path, str], sample_shards: Path) -> None:
    """Dropout on, real loader: the losses of two towers over gloo are those of one process."""
    run, _ = whole
    process = train(run.parent, sample_shards, "--run", "two", "--gpus", "2")
    assert process.returncode == 0, process.stderr
    assert "no GPU: 2 CPU processes over gloo, one tower each" in process.stdout
    two = run.parent / "two"
    assert sum(step["images"] for rank in (0, 1) for step in of_kind(two, "step", rank)) == 2 * 1000
    for name in ("seen", "missing", "duplicates"):
        assert [r[name] for r in of_kind(two, "receipt")] == [
            r[name] for r in of_kind(run, "receipt")
        ]
    for one, other in zip(of_kind(run, "eval"), of_kind(two, "eval"), strict=True):
        assert other["nll"] == pytest.approx(one["nll"], rel=1e-3)
    one, other = (
        load_file(r / "checkpoints" / "step-00000020" / "network.safetensors") for r in (run, two)
    )
    for name, tensor in one.items():
        assert (other[name] - tensor).norm() <= 2e-3 * tensor.norm(), name


def wait_for(run: Path, kind: str, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 120
    while not (run / "rank-0.jsonl").exists() or not of_kind(run, kind):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_saves_and_the_run_goes_on_where_it_stopped(
    whole: tuple[Path, str], sample_shards: Path, number: signal.Signals, code: int
) -> None:
    """Stopped in the middle and resumed, on two processes then one, it equals the uninterrupted
    run."""
    uninterrupted, _ = whole
    runs = uninterrupted.parent
    name = f"stopped-{code}"
    gpus = ("--gpus", "2") if number == signal.SIGTERM else ()
    process = subprocess.Popen(
        command(runs, sample_shards, "--run", name, *gpus),
        cwd=ROOT,
        text=True,
        stdout=-1,
        stderr=-1,
    )
    wait_for(runs / name, "step", process)
    process.send_signal(number)
    _, words = process.communicate(timeout=60)
    assert process.returncode == code, words
    outcome = {75: "preempted", 130: "interrupted"}[code]
    assert of_kind(runs / name, "end")[-1]["outcome"] == outcome
    stopped_at = of_kind(runs / name, "checkpoint")[-1]["step"]
    assert words == f"{outcome}: saved at step {stopped_at}; give the same command to go on\n"
    assert 0 < stopped_at < 20
    again = train(runs, sample_shards, "--run", name)
    assert again.returncode == 0, again.stderr
    assert "going on where it stopped" in again.stdout
    assert f"resumed at step {stopped_at}" in again.stdout
    assert [r["missing"] + r["duplicates"] for r in of_kind(runs / name, "receipt")] == [0, 0]
    one, other = (
        load_file(runs / r / "checkpoints/step-00000020/network.safetensors")
        for r in ("whole", name)
    )
    tolerance = 2e-3 if gpus else 0  # on one mesh: bitwise
    for key, tensor in one.items():
        assert (other[key] - tensor).norm() <= tolerance * tensor.norm(), key


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "outcome", "code"),
    [(signal.SIGTERM, "preempted", 75), (signal.SIGINT, "interrupted", 130)],
)
def test_who_signals_again_and_again_is_told_what_was_saved(
    whole: tuple[Path, str], sample_shards: Path, number: signal.Signals, outcome: str, code: int
) -> None:
    """Others than the first do not cut short what it asked for."""
    runs, name = whole[0].parent, f"again-{code}"
    more = ("--run", name, "--epochs", "50", "--save-every", "9999")
    process = subprocess.Popen(
        command(runs, sample_shards, *more), cwd=ROOT, text=True, stdout=-1, stderr=-1
    )
    wait_for(runs / name, "step", process)
    for _ in range(4):
        process.send_signal(number)
        time.sleep(0.1)
    _, words = process.communicate(timeout=60)
    saved = [record["step"] for record in of_kind(runs / name, "checkpoint")]
    assert words == f"{outcome}: saved at step {saved[-1]}; give the same command to go on\n"
    assert [record["outcome"] for record in of_kind(runs / name, "end")] == [outcome]
    assert process.returncode == code


def test_a_batch_larger_than_the_dataset_is_one_step_of_all(
    whole: tuple[Path, str], sample_shards: Path
) -> None:
    """Filled up with rows that count nowhere: the weights are those of a batch as large as the
    dataset."""
    runs = whole[0].parent
    for batch in ("1000", "1500"):
        process = train(
            runs, sample_shards, "--run", f"all-{batch}", "--batch", batch, "--epochs", "1"
        )
        assert process.returncode == 0, process.stderr
        assert ("--batch 1500 is more than the 1000 training images" in process.stdout) is (
            batch == "1500"
        )
        assert [(r["seen"], r["missing"]) for r in of_kind(runs / f"all-{batch}", "receipt")] == [
            (1000, 0)
        ]
        assert [step["images"] for step in of_kind(runs / f"all-{batch}", "step")] == [1000]
    one, other = (
        load_file(runs / f"all-{n}/checkpoints/step-00000001/network.safetensors")
        for n in (1000, 1500)
    )
    for name, tensor in one.items():
        assert (other[name] - tensor).norm() <= 1e-4 * tensor.norm(), name


def test_a_finished_or_used_name_is_refused(whole: tuple[Path, str], sample_shards: Path) -> None:
    run, _ = whole
    one_line(train(run.parent, sample_shards, "--run", "whole"), "finished")
    with lock(run.parent / "busy"):
        one_line(
            train(run.parent, sample_shards, "--run", "busy"),
            "busy",
            f"in use by process {os.getpid()} on ",
        )


def test_a_checkpoint_of_another_network_or_batch_is_refused(
    whole: tuple[Path, str], sample_shards: Path
) -> None:
    run, _ = whole
    for option, value, words in (
        ("--width", "0.125", ("width",)),
        ("--batch", "50", ("batch_size 100", "50; give what it was, or choose another --run")),
    ):
        other = run.parent / f"other{option}"
        other.mkdir()
        os.symlink(run / "checkpoints", other / "checkpoints")
        one_line(train(run.parent, sample_shards, "--run", other.name, option, value), *words)
        assert records(other) == []  # the run is what it was, and goes on by its own settings


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--gpus", "3"), ("3", "2 or 4")),
        (("--gpus", "2", "--batch", "33"), ("33", "2 processes")),
        (("--recipe", "released"), ("128-pixel", "256", "--size 256", "sample or tiny")),
        (("--recipe", "nothing"), ("nothing", "released")),
        (("--crop", "200"), ("200", "128")),
        (("--shards", "/nonexistent"), ("/nonexistent", "manifest.json")),
        (("--run", "a/b"), ("a/b",)),
        (("--run", "a b"), ("'a b'", "plain name")),
        (("--run", "a" * 300), ("aaa", "128")),
        (("--classes", "5"), ("--classes 5", "10")),
        (("--exchange", "fc8"), ("fc8",)),
        (("--pool", "separate", "--crop", "40"), ("--crop 40",)),
        (("--save-every", "nan"), ("--save-every nan",)),
        (("--seed", "-1"), ("--seed -1",)),
        (("--width", "1e9"), ("parameters do not fit", "--width")),
        (("--classes", "10000000000"), ("parameters do not fit", "--classes")),
        (("--runs", "/proc/nope"), ("--runs /proc/nope",)),
        (("--init-std", *"0000000", "nan"), ("--init-std nan",)),
        (("--bias-init", "inf"), ("--bias-init inf",)),
        (("--port", "99999"), ("--port 99999", "65535")),
        (("--runs", str(ROOT / "README.md")), ("README.md", "not a folder")),
    ],
)
def test_user_errors_are_one_line(
    tmp_path: Path,
    sample_shards: Path,
    arguments: tuple[str, ...],
    words: tuple[str, ...],
    answered: Answered,
) -> None:
    one_line(answered(command(tmp_path, sample_shards, *arguments)), *words)


def test_runs_are_numbered_and_unfinished_ones_taken_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrote(name: str, *kinds: dict[str, object]) -> None:
        (tmp_path / name).mkdir(exist_ok=True)
        with (tmp_path / name / "rank-0.jsonl").open("a") as file:
            file.writelines(json.dumps({"t": 0, "attempt": 1} | kind) + "\n" for kind in kinds)

    assert choose_run(tmp_path, "s-0") == ("s-0-1", False)
    wrote("s-0-1", {"kind": "start"})
    assert choose_run(tmp_path, "s-0") == ("s-0-1", True)
    wrote("s-0-1", {"kind": "end", "outcome": "preempted"})
    assert choose_run(tmp_path, "s-0") == ("s-0-1", True)
    with lock(tmp_path / "s-0-1"):
        assert choose_run(tmp_path, "s-0") == ("s-0-2", False)
    told = capsys.readouterr().out
    assert told.startswith(f"run {tmp_path}/s-0-1 is in use by process {os.getpid()} on ")
    assert reserve(tmp_path / "s-0-1")  # by a command that has no ranks yet
    assert not reserve(tmp_path / "s-0-1")
    assert choose_run(tmp_path, "s-0") == ("s-0-2", False)
    RESERVED.pop().close()
    assert choose_run(tmp_path, "s-0") == ("s-0-1", True)
    wrote("s-0-1", {"kind": "end", "outcome": "finished"})
    wrote("s-0-10", {"kind": "end", "outcome": "diverged"})
    (tmp_path / "s-0-²").mkdir()  # a digit to Python, but no number
    assert choose_run(tmp_path, "s-0") == ("s-0-11", False)


def test_a_rank_that_finds_its_run_locked_is_told_by_whom_and_not_of_its_own_command(
    tmp_path: Path,
) -> None:
    """An orphan of a command that was killed may still be saving where the next command's ranks
    begin."""
    assert reserve(tmp_path / "r")
    with (
        RESERVED.pop(),
        lock(tmp_path / "r", 7),
        pytest.raises(GratisError, match="r is in use by process 7 on "),
    ):
        lock(tmp_path / "r")


def test_other_settings_begin_another_run_unless_it_is_named(tmp_path: Path) -> None:
    recipe = dataclasses.replace(SAMPLE, epochs=9)
    config = {"recipe": json.loads(json.dumps(dataclasses.asdict(recipe))), "seed": 7}
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "rank-0.jsonl").write_text(
        json.dumps({"kind": "start", "t": 0, "config": config}) + "\n"
    )
    assert changes(tmp_path / "r", recipe, 7) == {}
    assert changes(tmp_path / "r", dataclasses.replace(recipe, rate=0.05), 0) == {
        "rate": "rate was 0.01, is 0.05",
        "seed": "seed was 7, is 0",
    }
    assert changes(tmp_path / "none", recipe, 7) == {}


@pytest.mark.starts
def test_the_status_server_starts_after_the_dataset_was_checked(tmp_path: Path) -> None:
    arguments = ["--runs", str(tmp_path / "runs"), "--shards", str(tmp_path / "nope")]
    command = [sys.executable, "-m", "gratis", "train", *arguments]
    process = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    one_line(process, "nope")
    assert "status:" not in process.stdout


def test_a_signal_before_training_is_answered_as_in_it(
    tmp_path: Path, sample_shards: Path, answered: Answered, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "gratis.train.launcher.command.parse", lambda _: os.kill(os.getpid(), signal.SIGTERM)
    )
    assert answered(command(tmp_path, sample_shards)).returncode == PREEMPTED


def test_a_launch_survives_its_journey_as_json() -> None:
    launch = Launch(
        runs="runs",
        run="r",
        shards="s",
        recipe_name="paper",
        recipe=RECIPES["paper"],
        seed=3,
        attempt=2,
        tower_ranks=2,
        share_device=False,
    )
    assert Launch.from_json(launch.to_json()) == launch
    assert dataclasses.asdict(launch)["recipe"]["drops"] == RECIPES["released"].drops


OLD_CONFIG = Path(__file__).with_name("old_config.json")


def test_a_run_of_the_first_edition_goes_on(tmp_path: Path) -> None:
    """`config` of a `start` record is a Launch: the same keys and values as before settings were a
    class of their own."""
    text = OLD_CONFIG.read_text()
    config = json.loads(text)
    launch = Launch.from_json(text)
    since = {"command": "", "outage_s": 600.0, "read_timeout_s": 30.0}  # which are in no config
    recipe = config["recipe"] | {"flip": 0.5}  # which its version always took
    assert json.loads(launch.to_json()) == config | since | {"recipe": recipe}
    (tmp_path / launch.run).mkdir()
    start = json.dumps({"kind": "start", "t": 0, "attempt": 1, "config": config})
    (tmp_path / launch.run / "rank-0.jsonl").write_text(start + "\n")
    assert changes(tmp_path / launch.run, launch.recipe, launch.seed) == {}
    fields = ("seed", "tower_ranks", "wire", "decoded_gb", "save_every", "save_probabilities")
    assert [getattr(launch, name) for name in fields] == [7, 1, "bfloat16", 1.5, 0.5, True]


@pytest.mark.parametrize("taken", [False, True])
def test_a_wrong_run_is_refused_before_anything_is_drawn(
    tmp_path: Path, answered: Answered, monkeypatch: pytest.MonkeyPatch, taken: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    name, words = ("mine", "in use by") if taken else ("a b", "plain name")
    with lock(tmp_path / "runs" / "mine"):
        arguments = [sys.executable, "-m", "gratis", "train", "--port", "0", "--run", name]
        one_line(answered(arguments), name, words)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


@pytest.mark.parametrize(
    ("arguments", "recipe", "epochs"),
    [
        ([], "sample", RECIPES["sample"].epochs),
        (["--shards", "x"], "released", 90),
        (["--shards=x", "--recipe", "sample", "--recipe=tiny", "--epochs", "7"], "tiny", 7),
    ],
)
def test_the_recipe_s_name_decides_the_defaults(
    arguments: list[str], recipe: str, epochs: int
) -> None:
    options = parse(arguments)
    assert (options.recipe, options.fields) == (
        recipe,
        dataclasses.replace(RECIPES[recipe], epochs=epochs),
    )


def test_a_command_that_is_none_is_told_which_there_are(answered: Answered) -> None:
    one_line(
        answered([sys.executable, "-m", "gratis", "figurs"]),
        "not understood: figurs",
        "figures, predict",
    )


@pytest.mark.starts
def test_help_lists_what_a_user_may_set() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "gratis", "train", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    for flag in (
        *"--shards --gpus --recipe --epochs --run --runs --port --seed --lrn-order".split(),
    ):
        assert re.search(rf"{flag}\b", shown), flag


def test_events_that_are_a_folder_are_one_line(
    tmp_path: Path, sample_shards: Path, answered: Answered
) -> None:
    (tmp_path / "odd" / "rank-0.jsonl").mkdir(parents=True)
    one_line(
        answered(command(tmp_path, sample_shards, "--run", "odd")),
        "odd/rank-0.jsonl cannot be read",
    )


STANDS = """
import sys, time
class Finder:
    def find_spec(self, name, *_):
        if name == "gratis.train.recipes":
            print("here", flush=True)
            time.sleep(60)
sys.meta_path.insert(0, Finder())
"""


@pytest.mark.starts
def test_ctrl_c_while_it_imports_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(STANDS)
    process = subprocess.Popen(
        [sys.executable, "-m", "gratis", "train", "--help"],
        cwd=ROOT,
        stdout=-1,
        stderr=-1,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert process.stdout
    assert process.stdout.readline() == b"here\n"
    process.send_signal(signal.SIGINT)
    _, words = process.communicate(timeout=60)
    assert (words, process.returncode) == (b"interrupted\n", 130)
