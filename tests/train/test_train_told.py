"""What every command line says, in one line, where something is missing, and where nobody reads it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.parametrize("command", ["train paper", "train figure1", "train ablate", "preprocess verify",
                                     "preprocess inspect", "preprocess merge"])  # fmt: skip
def test_what_is_missing_is_one_line(command: str) -> None:
    done = subprocess.run([sys.executable, "-m", *command.split()], cwd=ROOT, capture_output=True, text=True,
                          timeout=120, check=False)  # fmt: skip
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert ("--shards" in line) if command.startswith("train") else ("of the dataset" in line)


@pytest.mark.parametrize(
    "command", ["train summary", "train tables --runs {shards}", "train --help", "preprocess verify {shards} --sample 0",
                "preprocess inspect {shards}"]
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
