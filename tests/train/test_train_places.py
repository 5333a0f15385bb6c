"""Runs on a disk that is full from the start, on one that is read-only, and of another user."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from small import ROOT, of_kind

from gratis.dataset import read_manifest
from gratis.events import EventWriter
from gratis.locks import LOCK, STARTER, hold, in_use

NOBODY = 65534
# root like any other user: it may not go past what files' modes say
PLAIN = "setpriv --bounding-set=-dac_override,-dac_read_search,-fowner --".split()
SHORT = "--recipe sample --width 0.0625 --batch 500 --epochs 1 --port 0".split()


def train(
    runs: Path, shards: Path, *more: str, plain: bool = False
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *"-m gratis train".split(), *SHORT, "--runs", str(runs)]
    return subprocess.run(
        [*(PLAIN if plain else []), *command, "--shards", str(shards), *more],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def write_run(folder: Path) -> None:
    """An unfinished one."""
    events = EventWriter(folder / "rank-0.jsonl", attempt=1, rank=0)
    events.write("start", {})
    events.close()
    for name in (STARTER, LOCK):
        (folder / name).write_text("process 7 on there\n")


@contextmanager
def mounted(place: Path, size: str) -> Iterator[Path]:
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs rights that this machine does not give")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.slow
def test_a_disk_that_is_full_from_the_start_costs_the_checkpoint_and_says_so(
    sample_shards: Path, tmp_path: Path
) -> None:
    """Who holds the run could not be written down either, which hid the message at the end."""
    with mounted(tmp_path / "full", "1m") as disk:
        (disk / "runs").mkdir()
        try:
            with (disk / "filler").open("wb", buffering=0) as filler:
                while filler.write(bytes(4096)):
                    pass
        except OSError:
            pass
        done = train(disk / "runs", sample_shards)
        assert done.returncode == 1, done.stderr
        assert "Traceback" not in done.stderr
        assert done.stderr.splitlines()[-1].startswith("error: training is done, but no checkpoint")


@pytest.mark.starts
def test_on_a_read_only_disk_one_may_look_and_not_train(
    sample_shards: Path, tmp_path: Path
) -> None:
    with mounted(tmp_path / "disk", "4m") as disk:
        run = disk / "runs" / "other"
        write_run(run)
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        done = train(disk / "runs", sample_shards)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1, done.stderr
        assert "(Read-only file system)" in done.stderr
        assert in_use(run) is None


@pytest.mark.slow
def test_of_a_folder_of_runs_that_is_read_only_all_can_be_seen(
    sample_shards: Path, tmp_path: Path
) -> None:
    """Figures want a place; where they cannot have theirs, the message names the option."""
    if os.getuid() == 0 and not shutil.which(PLAIN[0]):
        pytest.skip("root takes no notice of modes, but for setpriv")
    runs = tmp_path / "runs"
    assert train(runs, sample_shards, "--run", "a").returncode == 0
    folders = [runs, *(path for path in runs.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)

    def look(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "gratis", *arguments, "--runs", str(runs), "--run", "a"]
        plain = PLAIN if os.getuid() == 0 else []
        return subprocess.run([*plain, *command], cwd=ROOT, capture_output=True, text=True)

    top = look("top")
    assert (top.returncode, top.stderr) == (0, "")
    assert "finished" in top.stdout
    refused = look("figures", "--only", "rates")
    assert refused.returncode == 2
    assert refused.stderr == (
        f"error: {runs}/a/figures/rates.png cannot be written (Permission denied); "
        "choose another --out\n"
    )
    drawn = look("figures", "--only", "rates", "--out", str(tmp_path))
    assert (drawn.returncode, drawn.stdout) == (0, f"{tmp_path}/rates.png\n"), drawn.stderr
    for folder in folders:
        folder.chmod(0o755)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [0o755, 0o700])
def test_two_users_share_a_folder_of_runs(sample_shards: Path, tmp_path: Path, mode: int) -> None:
    """One's unfinished run, of the same recipe and dataset, is not gone on with by the other."""
    if os.getuid() or not shutil.which(PLAIN[0]):
        pytest.skip("files of another user take root's rights, and setpriv")
    stem = f"sample-{read_manifest(sample_shards).hash[:8]}"
    theirs = tmp_path / f"{stem}-1"
    write_run(theirs)
    for path in (*theirs.iterdir(), theirs):
        path.chmod(mode if path.is_dir() else mode & 0o644)
        os.chown(path, NOBODY, NOBODY)
    done = train(tmp_path, sample_shards, plain=True)
    assert done.returncode == 0, done.stderr
    assert f"run {theirs} is another user's: another begins" in done.stdout
    assert of_kind(tmp_path / f"{stem}-2", "end")[-1]["outcome"] == "finished"
    named = train(tmp_path, sample_shards, "--run", theirs.name, plain=True)
    assert named.returncode == 2
    assert named.stderr.count("\n") == 1, named.stderr
    assert str(theirs) in named.stderr


def test_looking_at_a_run_takes_no_right_to_write(tmp_path: Path) -> None:
    held = hold(tmp_path / LOCK)
    assert held
    (tmp_path / LOCK).chmod(0o400)
    assert in_use(tmp_path) == "a living process"
    held.close()
    assert in_use(tmp_path) is None
