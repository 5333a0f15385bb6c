"""What every command line says, in one line, where something is missing, and where nobody reads
it."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from ports import free_port
from small import command, of_kind

from gratis.dataset import read_manifest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.parametrize(
    ("command", "wanted"),
    [
        *((command, "--shards") for command in ("paper", "figure1", "ablate")),
        *((command, "missing File to write") for command in ("export", "features")),
        *((command, "of the dataset") for command in ("verify", "inspect", "merge")),
    ],
)
@pytest.mark.starts
def test_what_is_missing_is_one_line(command: str, wanted: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gratis", *command.split()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert wanted in line


@pytest.mark.parametrize(
    "command",
    [
        "summary",
        "tables --runs {shards}",
        "train --help",
        "verify {shards} --sample 0",
        "inspect {shards}",
    ],
)
def test_output_that_nobody_reads_ends_quietly(command: str, sample_shards: Path) -> None:
    arguments = command.format(shards=sample_shards).split()
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "gratis", *arguments],
            cwd=ROOT,
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
            check=False,
        )
    finally:
        os.close(writer)
    assert (done.returncode in (1, 141), done.stderr) == (True, "")


def test_a_wrong_init_from_is_told_before_there_is_a_run(
    sample_shards: Path, tmp_path: Path
) -> None:
    side = str(read_manifest(sample_shards).image_size)
    done = subprocess.run(
        [
            sys.executable,
            *"-m gratis train --shards".split(),
            str(sample_shards),
            "--runs",
            str(tmp_path),
            *"--port 0 --gpus 1 --recipe sample --image-size".split(),
            side,
            "--init-from",
            str(tmp_path / "nothing"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: --init-from {tmp_path / 'nothing'} holds no checkpoint")
    assert done.stderr.count("\n") == 1
    assert "run:" not in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("gone", ["reader", "terminal"])
def test_training_goes_on_where_nobody_reads_it(
    sample_shards: Path, tmp_path: Path, gone: str
) -> None:
    """EPIPE and EIO: all that is said is lost, the run is not."""
    ours, theirs = pty.openpty() if gone == "terminal" else os.pipe()
    os.close(ours)
    done = subprocess.run(
        command(tmp_path, sample_shards, "--run", "unheard", "--gpus", "1"),
        cwd=ROOT,
        stdout=theirs,
        stderr=theirs,
        stdin=subprocess.DEVNULL,
        timeout=240,
        check=False,
    )
    os.close(theirs)
    run = tmp_path / "unheard"
    assert [record["outcome"] for record in of_kind(run, "end")] == ["finished"]
    assert of_kind(run, "checkpoint")[-1]["step"] == 20
    assert done.returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info < (3, 11), reason="before, the current folder comes first")
def test_modules_of_the_user_s_own_are_in_nobody_s_way(sample_shards: Path, tmp_path: Path) -> None:
    """His names may be the standard library's too: the ranks and the server import none of them."""
    for name in ("preprocess", "loader", "train", "server", "random", "types", "logging"):
        (tmp_path / f"{name}.py").write_text("open('taken', 'a').write(__name__)\n")
    own = ("--run", "own", "--gpus", "1", "--epochs", "1", "--port", str(free_port()))
    words = command(tmp_path / "runs", sample_shards, *own)[1:]
    done = subprocess.run(
        [sys.executable, "-P", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=240,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "taken").exists()
    assert of_kind(tmp_path / "runs" / "own", "end")[0]["outcome"] == "finished"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
@pytest.mark.starts
def test_a_signal_while_the_sample_is_drawn_is_one_word(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    """A terminal's ctrl-C reaches all of the group; the parent alone is sent SIGTERM."""
    process = subprocess.Popen(
        [sys.executable, "-m", "gratis", "train", "--port", "0"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    # one worker then has seconds to draw
    os.sched_setaffinity(process.pid, {min(os.sched_getaffinity(0))})
    # two fifths to begin, the rest drawing
    while not any(seconds > 1.5 for seconds in of_workers(process.pid)):
        assert process.poll() is None
        time.sleep(0.05)
    (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
    _, words = process.communicate(timeout=60)
    assert process.returncode == code
    # the next stage may have begun, where drawing takes no time
    assert [line for line in words.split("\n") if not line.startswith("warning:")] == [
        "interrupted",
        "",
    ]


def of_workers(pid: int) -> Iterator[float]:
    """CPU seconds of each."""
    for child in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.Error):
            if "spawn_main" in "".join(child.cmdline()):
                yield sum(child.cpu_times()[:2])
