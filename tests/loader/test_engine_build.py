"""The engine's library is built by pip and by setup.py, fits every Python, and is optional."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from gratis.loader.engine.library import load_from

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = "gratis/loader/engine/libgratis_engine.native.so"
WHEEL = "import setuptools.build_meta as b; print(b.build_wheel('dist'))"

pytestmark = [pytest.mark.starts, pytest.mark.slow]


def build(tree: Path, compiler: str | None) -> Path:
    """The wheel of a copy of the checkout, without what was compiled here."""
    ignored = shutil.ignore_patterns("__pycache__", "*.so")
    shutil.copytree(ROOT / "gratis", tree / "gratis", ignore=ignored)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    env = os.environ | ({"CC": compiler} if compiler else {})
    done = subprocess.run(
        [sys.executable, "-c", WHEEL],
        cwd=tree,
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return tree / "dist" / done.stdout.splitlines()[-1]


def test_a_wheel_has_a_library_for_any_python(tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("needs a C compiler")
    wheel = build(tmp_path, None)
    assert wheel.name.split("-")[2:4] == ["py3", "none"]
    assert wheel.name.endswith(("_x86_64.whl", "_arm64.whl", "_aarch64.whl"))
    if platform.libc_ver()[0] == "glibc":  # nothing of a younger C library is called
        assert "-manylinux_2_17_" in wheel.name
    zipfile.ZipFile(wheel).extract(LIBRARY, tmp_path / "unpacked")
    assert load_from(tmp_path / "unpacked" / LIBRARY) is not None


def test_without_a_compiler_there_is_a_wheel_for_any_machine(tmp_path: Path) -> None:
    wheel = build(tmp_path, "/bin/false")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert LIBRARY not in zipfile.ZipFile(wheel).namelist()
