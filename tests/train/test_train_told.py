"""What every command line says, in one line, where something is missing, and where nobody reads it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from preprocess.dataset import read_manifest
from preprocess.errors import UserError
from train.launch import Launch
from train.paper.saved import Saved
from train.recipes import RELEASED

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


def test_a_run_that_read_an_address_wants_the_folder(tmp_path: Path) -> None:
    from train.paper.trained import dataset_of

    address = "https://data.example/shards"
    launch = Launch(runs=str(tmp_path), run="a", shards=address, recipe_name="released", recipe=RELEASED, seed=0,
                    attempt=1, tower_ranks=1, share_device=False)  # fmt: skip
    with pytest.raises(UserError) as told:
        dataset_of(Saved(runs=tmp_path), launch)
    assert f"{address}, " in str(told.value)
    assert "--shards FOLDER" in str(told.value)
    assert dataset_of(Saved(runs=tmp_path, shards=tmp_path), launch) == tmp_path


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
