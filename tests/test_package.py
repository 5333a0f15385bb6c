"""gratis as a package: source distribution and wheel build, install into a fresh environment, work
from any folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ["preprocess", "loader", "train", "server"]
SOURCE = [*PACKAGES, "docker", "pyproject.toml", "README.md", "LICENSE"]
BUILD = "import setuptools.build_meta as b; print(b.build_sdist('dist'))"
COMMANDS = [
    "sample",
    "shards",
    "merge",
    "verify",
    "inspect",
    "preprocess",
    "bench",
    "train",
    "status",
    "top",
    "doctor",
]


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=300
    )


def checked(*command: str | Path, cwd: Path) -> str:
    done = run(*command, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@dataclass(frozen=True)
class Installed:
    folder: Path  # anywhere but the checkout
    sdist: Path
    wheel: Path

    @property
    def bin(self) -> Path:
        return self.folder / "venv" / "bin"

    def gratis(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return run(self.bin / "gratis", *arguments, cwd=self.folder)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel that comes of the source distribution, in an environment that sees this one's
    packages behind it."""
    folder = tmp_path_factory.mktemp("package")
    checked(sys.executable, "-m", "venv", "venv", cwd=folder)
    python = folder / "venv" / "bin" / "python"
    needs = run(
        python, *"-m pip install -q --disable-pip-version-check setuptools>=77".split(), cwd=folder
    )
    if needs.returncode:
        pytest.skip(
            "building needs setuptools from a package index: "
            + needs.stderr.strip().splitlines()[-1]
        )
    tree = folder / "tree"  # a copy: building leaves traces
    tree.mkdir()
    for name in SOURCE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tree)
    sdist = tree / "dist" / checked(python, "-c", BUILD, cwd=tree).splitlines()[-1]
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    checked(
        *pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, sdist, cwd=folder
    )
    wheel = next(folder.glob("*.whl"))
    checked(*pip, "install", "-q", "--no-deps", "--no-index", wheel, cwd=folder)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "venv")}))
    (site / "behind.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return Installed(folder, sdist, wheel)


@pytest.mark.slow
def test_wheel_holds_the_packages_and_the_page(installed: Installed) -> None:
    held = set(zipfile.ZipFile(installed.wheel).namelist())
    wanted = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    wanted |= {str(path.relative_to(ROOT)) for path in (ROOT / "server" / "static").iterdir()}
    assert wanted <= held
    rooms = {"train/paper/__init__.py", "train/report/__init__.py"}
    assert rooms | {"gratis/cli.py", "gratis/doctor.py", "loader/limit.c"} <= held
    assert not any(name.startswith(("tests/", "docker/")) for name in held)
    with tarfile.open(installed.sdist) as source:
        names = {name.partition("/")[2] for name in source.getnames()}
    assert wanted | {"LICENSE", "README.md", "pyproject.toml"} <= names


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_what_it_does(installed: Installed, command: str) -> None:
    done = installed.gratis(command, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: ")
    assert command in installed.gratis("--help").stdout


@pytest.mark.slow
def test_wrong_command_is_one_line(installed: Installed) -> None:
    done = installed.gratis("trian")
    assert done.returncode == 2
    assert done.stderr.startswith("error: gratis trian is none of ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_sample_shards_and_loader_from_another_folder(installed: Installed) -> None:
    """Worker processes, which import the command's module again, included; a user's train.py is in
    nobody's way."""
    (installed.folder / "loader.py").write_text("raise SystemExit('the wrong loader')\n")
    checked(installed.bin / "gratis", "sample", "--out", "source", cwd=installed.folder)
    arguments = ["--src", "source", "--out", "shards", "--size", "64", "--workers", "2"]
    checked(installed.bin / "gratis", "shards", *arguments, cwd=installed.folder)
    (installed.folder / "loader.py").unlink()
    code = (
        "import gratis; config = gratis.LoaderConfig(batch_size=10, crop=56); "
        "l = gratis.Loader('shards', 'train', config); "
        "print(gratis.__file__, next(iter(l)).images.shape); l.close()"
    )
    said = checked(installed.bin / "python", "-c", code, cwd=installed.folder)
    assert said.startswith(str(installed.folder / "venv"))
    assert "[10, 3, 56, 56]" in said


@pytest.mark.slow
def test_user_error_is_one_line_and_two(installed: Installed) -> None:
    done = installed.gratis("shards", "--src", "nowhere", "--out", "out")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
