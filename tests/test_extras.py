"""A package that is not there is one message before any work is done: nothing is read, trained or
written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gratis.errors import GratisError
from gratis.extras import importable, require

ROOT = Path(__file__).resolve().parent.parent
FIGURES = "needs matplotlib: pip install 'gratis[figures]', in a checkout make install"
EXTRA = "in a checkout make install ARGS=--extra"


def without(packages: str, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command, in an empty folder, where these packages cannot be imported."""
    blocked = folder / "blocked"
    blocked.mkdir()
    (folder / "empty").mkdir()
    for package in packages.split():
        (blocked / f"{package}.py").write_text("raise ImportError('blocked')")
    return subprocess.run(
        [sys.executable, "-m", "gratis", *arguments],
        cwd=folder / "empty",
        env=os.environ | {"PYTHONPATH": f"{blocked}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.starts
@pytest.mark.parametrize(
    ("packages", "command", "message"),
    [
        ("matplotlib", "figures", f"gratis figures {FIGURES}"),
        ("matplotlib", "figure1 --shards s", f"gratis figure1 {FIGURES}"),
        ("matplotlib", "paper --shards s", f"gratis paper {FIGURES}"),
        ("matplotlib", "explain s --sample 0", f"gratis explain {FIGURES}"),
        (
            "onnx onnxscript",
            "export a.onnx",
            f"--format onnx needs onnx and onnxscript: pip install 'gratis[onnx]', {EXTRA}",
        ),
        (
            "tensorboard",
            "train --tensorboard",
            f"--tensorboard needs tensorboard: pip install 'gratis[tensorboard]', {EXTRA}",
        ),
    ],
)
def test_a_missing_package_is_one_message(
    packages: str, command: str, message: str, tmp_path: Path
) -> None:
    done = without(packages, tmp_path, *command.split())
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {message}\n")
    assert not list((tmp_path / "empty").iterdir())


def test_a_package_that_is_there_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("onnx", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, pytest)
    require("onnx", "this")
    assert not importable("no_such_package")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(GratisError, match=r"this needs onnxscript: pip install 'gratis\[onnx\]'"):
        require("onnx", "this")


@pytest.mark.parametrize(
    ("extra", "lacking", "install"),
    [
        ("figures", "matplotlib", "make install"),
        ("parquet", "pyarrow", "make install ARGS=--extra"),
        ("tensorboard", "tensorboard", "make install ARGS=--extra"),
        ("onnx", "onnx and onnxscript", "make install ARGS=--extra"),
    ],
)
def test_each_extra_says_how_it_is_installed(
    extra: str, lacking: str, install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in lacking.split(" and "):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(GratisError) as caught:
        require(extra, "this")
    assert str(caught.value) == (
        f"this needs {lacking}: pip install 'gratis[{extra}]', in a checkout {install}"
    )
