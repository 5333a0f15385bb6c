"""What travels to a machine without network arrives whole or is told, and leaves what is installed
there."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from benchmarks.carry import pack
from benchmarks.carry.install import ENGINE, Joined, checked
from benchmarks.carry.pack import INSTALLER, SUMS, locked, split

ROOT = Path(__file__).resolve().parent.parent.parent


def write_wheel(folder: Path, name: str, files: dict[str, str]) -> None:
    """A wheel of version 1.0, by the format's specification (PEP 427)."""
    folder.mkdir(parents=True, exist_ok=True)
    about = f"{name}-1.0.dist-info"
    files = files | {
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in (*files, f"{about}/RECORD"))
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        for path, text in (files | {f"{about}/RECORD": record}).items():
            wheel.writestr(path, text)


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A carry of many parts: the project, a package that is installed here in another version, one
    that is not, a dataset."""
    folder, out = tmp_path / "folder", tmp_path / "carry"
    write_wheel(folder / "wheels", "numpy", {"numpy/__init__.py": "raise ImportError"})
    write_wheel(folder / "wheels", "not_there", {"nvidia/__init__.py": "", "nvidia/a.py": "b = 7"})
    write_wheel(folder / "wheels", "gratis", {ENGINE: "compiled"})
    with tarfile.open(folder / "project.tar", "w") as tar:
        tar.add(
            ROOT / "gratis" / "loader" / "engine" / "library.py",
            arcname="gratis/loader/engine/library.py",
        )
    (folder / "shards" / "tiny100").mkdir(parents=True)
    noise = np.random.default_rng(0).bytes(100_000)
    (folder / "shards" / "tiny100" / "a.tar").write_bytes(noise)
    out.mkdir()
    monkeypatch.setattr(pack, "PART", 30_000)
    parts = split(folder, out)
    (out / SUMS).write_text("".join(f"{sha}  {name}\n" for name, sha in parts))
    shutil.copy(Path(pack.__file__).with_name(INSTALLER), out)
    return out


def test_parts_are_bounded_and_join_to_what_was_packed(packed: Path) -> None:
    parts, problem = checked(packed)
    assert problem == ""
    assert len(parts) > 3
    assert max(part.stat().st_size for part in parts) == 30_000
    with Joined(parts) as joined, tarfile.open(fileobj=joined, mode="r|gz") as tar:
        found = {member.name: tar.extractfile(member) for member in tar if member.isfile()}
        assert "./shards/tiny100/a.tar" in found
    whole = b"".join(part.read_bytes() for part in parts)
    for part, line in zip(parts, (packed / SUMS).read_text().splitlines(), strict=True):
        assert line == f"{hashlib.sha256(part.read_bytes()).hexdigest()}  {part.name}"
    with Joined(parts) as joined:
        assert joined.read() == whole


def test_a_part_that_is_missing_or_damaged_is_named(packed: Path) -> None:
    part = packed / "part-01"
    data = part.read_bytes()
    part.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert checked(packed)[1].startswith(f"{part} is damaged")
    part.unlink()
    assert checked(packed)[1].startswith(f"{part} is missing")


@pytest.mark.starts
def test_what_is_installed_stays_and_the_rest_goes_into_a_folder(packed: Path) -> None:
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True).returncode:
        pytest.skip("needs pip")
    to = packed.parent / "to"
    command = [sys.executable, str(packed / INSTALLER), "--to", str(to)]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=120)
    assert done.returncode == 0, done.stderr
    assert f"kept as installed: numpy {np.__version__} (packed: 1.0)" in done.stdout
    assert f"export PYTHONPATH={to}/site; cd {to}/project" in done.stdout
    assert f"--train-shards {to}/shards/tiny100" in done.stdout
    assert not (to / "site" / "numpy").exists()
    assert (to / "project" / ENGINE).read_text() == "compiled"
    assert len((to / "shards" / "tiny100" / "a.tar").read_bytes()) == 100_000
    assert (to / "site" / "nvidia" / "a.py").exists()
    assert not (to / "site" / "nvidia" / "__init__.py").exists()
    again = subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=120)
    assert again.returncode == 2
    assert again.stderr.startswith(f"error: --to {to} is there already")


def test_what_is_packed_is_locked_and_without_torch() -> None:
    lines = set((ROOT / "requirements.lock").read_text().split())
    names = {one.partition("==")[0]: one for one in locked({"torch"})}
    dali = {"nvidia-dali-cuda130", "nvidia-nvimgcodec-cu13", "nvidia-nvjpeg", "optree", "pytest"}
    assert dali <= set(names)
    assert {names[name] for name in dali} <= lines
    assert "torch" not in names
    assert not any(name.startswith(("nvidia-cu", "triton")) for name in names)
    assert names["pillow"].startswith("pillow==")
    assert "numpy" not in dict.fromkeys(one.partition("==")[0] for one in locked({"numpy"}))


@pytest.mark.prove
def test_the_rehearsal_in_an_empty_python_3_12(tmp_path: Path) -> None:
    """With the network of whoever packs: 365 MB. DALI and the project are imported, and no more
    than a minute goes by."""
    python = shutil.which("python3.12")
    if python is None:
        pytest.skip("needs python3.12")
    venv, carry, to = tmp_path / "venv", tmp_path / "carry", tmp_path / "to"
    subprocess.run([python, "-m", "venv", str(venv)], check=True)
    packing = [sys.executable, "-m", "benchmarks.carry.pack", "--out", str(carry)]
    subprocess.run(packing, cwd=ROOT, check=True)
    assert max(part.stat().st_size for part in carry.glob("part-*")) <= 55_000_000
    own = str(venv / "bin" / "python")
    subprocess.run([own, str(carry / INSTALLER), "--to", str(to)], check=True, cwd="/", timeout=60)
    code = "import nvidia.dali, gratis, fastapi, numba; print(nvidia.dali.__version__)"
    environment = {"PYTHONPATH": str(to / "site")}
    done = subprocess.run([own, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout == "2.4.0\n", done.stderr
