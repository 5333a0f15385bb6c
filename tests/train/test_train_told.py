"""What every command line says, in one line, where something is missing, and where nobody reads it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from preprocess.dataset import read_manifest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.parametrize("command", ["train paper", "train figure1", "train ablate", "train export",
    "train features", "preprocess verify",
                                     "preprocess inspect", "preprocess merge"])  # fmt: skip
def test_what_is_missing_is_one_line(command: str) -> None:
    done = subprocess.run([sys.executable, "-m", *command.split()], cwd=ROOT, capture_output=True, text=True,
                          timeout=120, check=False)  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    wanted = "of the dataset" if command.startswith("preprocess") else "--shards"
    assert wanted in line or command in ("train export", "train features")


@pytest.mark.parametrize(
    "command", ["train summary", "train tables --runs {shards}", "train --help",
                "preprocess verify {shards} --sample 0", "preprocess inspect {shards}"]
)  # fmt: skip
def test_output_that_nobody_reads_ends_quietly(command: str, sample_shards: Path) -> None:
    arguments = command.format(shards=sample_shards).split()
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE,
                              text=True, timeout=120, check=False)  # fmt: skip
    finally:
        os.close(writer)
    assert (done.returncode in (1, 141), done.stderr) == (True, "")


def test_a_wrong_init_from_is_told_before_there_is_a_run(sample_shards: Path, tmp_path: Path) -> None:
    side = str(read_manifest(sample_shards).image_size)
    done = subprocess.run([sys.executable, "-m", "train", "--shards", str(sample_shards), "--runs", str(tmp_path),
                           "--port", "0", "--gpus", "1", "--recipe", "sample", "--image-size", side, "--init-from",
                           str(tmp_path / "nothing")],
                          cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: --init-from {tmp_path / 'nothing'} holds no checkpoint")
    assert done.stderr.count("\n") == 1
    assert "run:" not in done.stdout
    assert list(tmp_path.iterdir()) == []
