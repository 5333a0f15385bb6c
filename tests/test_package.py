"""gratis as a package: source distribution and wheel build; the wheel works from any folder, with
what it declares and nothing else."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from gratis import __version__
from gratis.cli import VERBS

pytestmark = pytest.mark.starts

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ["gratis", "pyproject.toml", "README.md", "LICENSE", "setup.py"]
BUILD = "import setuptools.build_meta as b; print(getattr(b, 'build_{}')('dist'))"
SMALL = "--recipe sample --width 0.0625 --batch 20 --epochs 1 --port 0".split()
EXTRAS = {"matplotlib", "onnx", "onnxscript", "onnxruntime", "ray", "s3fs", "gcsfs", "tensorboard"}
IMPORT_ALL = f"""
import importlib, pkgutil, gratis
modules = [module.name for module in pkgutil.walk_packages(gratis.__path__, "gratis.")]
for name in modules:
    try:
        if not name.endswith("__main__"):
            importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name.split(".")[0] not in {EXTRAS}:
            raise
print(len(modules))
"""
OWN_FILES = ["loader.py", "preprocess.py", "train.py", "server/__init__.py"]
SCRIPT = """
import gratis
from gratis import Loader, LoaderConfig

if __name__ == "__main__":
    with Loader("shards", "train", LoaderConfig(batch_size=10, crop=112)) as loader:
        print(gratis.__file__, next(iter(loader)).images.shape)
"""


def run(*command: str | Path, cwd: Path, path: str) -> subprocess.CompletedProcess[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=own | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=600,
    )


def checked(*command: str | Path, cwd: Path, path: str = os.environ["PATH"]) -> str:
    done = run(*command, cwd=cwd, path=path)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@dataclass(frozen=True)
class Environment:
    """A virtual environment in a folder that is anywhere but the checkout. Its commands find no
    compiler."""

    folder: Path

    @property
    def bin(self) -> Path:
        return self.folder / "venv" / "bin"

    @property
    def site(self) -> Path:
        return next((self.folder / "venv" / "lib").glob("python*/site-packages"))

    def gratis(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return run(self.bin / "gratis", *arguments, cwd=self.folder, path=str(self.bin))

    def checked(self, program: str, *arguments: str | Path, cwd: Path | None = None) -> str:
        path = str(self.bin)
        return checked(self.bin / program, *arguments, cwd=cwd or self.folder, path=path)


@dataclass(frozen=True)
class Built:
    sdist: Path
    wheel: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The wheel that comes of the source distribution."""
    tree = tmp_path_factory.mktemp("source") / "tree"  # a copy: building leaves traces
    tree.mkdir()
    for name in SOURCE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tree)
    build = [sys.executable, "-c", BUILD.format("sdist")]
    sdist = tree / "dist" / checked(*build, cwd=tree).splitlines()[-1]
    with tarfile.open(sdist) as archive:
        archive.extractall(tree.parent, filter="data")
    unpacked = tree.parent / sdist.name.removesuffix(".tar.gz")
    build = [sys.executable, "-c", BUILD.format("wheel")]
    return Built(sdist, unpacked / "dist" / checked(*build, cwd=unpacked).splitlines()[-1])


@pytest.fixture(scope="module")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """The wheel in an environment of its own, beside links to the packages that it declares, and
    those that they declare: as pip would leave it, in seconds."""
    there = Environment(tmp_path_factory.mktemp("package"))
    checked(sys.executable, "-m", "venv", "venv", cwd=there.folder)
    pip = "-m pip --disable-pip-version-check install -q --no-deps --no-index".split()
    there.checked("python", *pip, built.wheel)
    for path in declared(Requirement(f"gratis @ {built.wheel.as_uri()}"), there.site, set()):
        if not (there.site / path.name).exists():
            (there.site / path.name).symlink_to(path)
    return there


def declared(wanted: Requirement, site: Path, seen: set[str]) -> Iterator[Path]:
    """Files and folders of what a requirement brings, at the top of this Python's site-packages.
    gratis itself is looked up in `site`."""
    if wanted.name.lower() in seen:
        return
    seen.add(wanted.name.lower())
    name = wanted.name
    if name == "gratis":
        requires = next(site.glob("gratis-*.dist-info")) / "METADATA"
        lines = re.findall(r"^Requires-Dist: (.*)$", requires.read_text(), re.MULTILINE)
    else:
        try:
            found = distribution(name)
        except PackageNotFoundError:  # in our environment the one may lie in the other's place
            assert name == "pillow"
            found = distribution("pillow-simd")
        lines = found.requires or []
        tops = {file.parts[0] for file in found.files or [] if file.parts[0] != ".."}
        yield from (Path(str(found.locate_file(top))) for top in tops - {"__pycache__"})
    for requirement in map(Requirement, lines):
        extras = [{"extra": extra} for extra in ["", *wanted.extras]]
        if requirement.marker is None or any(map(requirement.marker.evaluate, extras)):
            with_cuda = requirement.name.startswith(("nvidia-", "triton", "cuda-"))
            if not (with_cuda and name == "torch"):  # of a build for CUDA
                yield from declared(requirement, site, seen)


@pytest.fixture(scope="module")
def trained(installed: Environment) -> Environment:
    """With a sample, shards and a run in its folder."""
    prepare(installed)
    installed.checked("gratis", "train", "--shards", "shards", "--gpus", "1", *SMALL)
    return installed


def prepare(there: Environment) -> None:
    sample = "--train-per-class 10 --val-per-class 2 --workers 2".split()
    there.checked("gratis", "sample", "--out", "source", *sample)
    shards = "--src source --out shards --size 128 --workers 2".split()
    there.checked("gratis", "shards", *shards)


def look(there: Environment) -> None:
    """At what `trained` left: a picture, a dataset, a run."""
    assert there.checked("gratis", "inspect", "shards").startswith("dataset ")
    picture = there.folder / "picture.png"
    there.checked(
        "python", "-c", f"from PIL import Image; Image.new('RGB', (90, 99)).save({str(picture)!r})"
    )
    assert str(picture) in there.checked("gratis", "predict", picture)
    command = [there.bin / "gratis", *"status --runs runs --port 0".split()]
    with subprocess.Popen(command, cwd=there.folder, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[-1]
            with urllib.request.urlopen(address, timeout=10) as answer:
                assert b"<html" in answer.read()
        finally:
            server.terminate()


@pytest.mark.slow
def test_wheel_holds_the_package_and_the_page(built: Built) -> None:
    assert built.wheel.name.startswith(f"gratis-{__version__}-")
    held = set(zipfile.ZipFile(built.wheel).namelist())
    wanted = {str(path.relative_to(ROOT)) for path in (ROOT / "gratis").rglob("*.py")}
    page = ROOT / "gratis" / "server" / "static"
    wanted |= {str(path.relative_to(ROOT)) for path in page.iterdir()} | {"gratis/py.typed"}
    assert wanted <= held
    assert all(name.startswith(("gratis/", "gratis-")) for name in held)
    with tarfile.open(built.sdist) as source:
        names = {name.partition("/")[2] for name in source.getnames()}
    assert wanted | {"LICENSE", "README.md", "pyproject.toml"} <= names


@pytest.mark.slow
def test_every_module_needs_only_what_the_wheel_declares(installed: Environment) -> None:
    assert int(installed.checked("python", "-c", IMPORT_ALL)) > 100
    lent = "import importlib.util as u; print(*map(u.find_spec, ('pytest', 'matplotlib', 'scipy')))"
    assert installed.checked("python", "-c", lent) == "None None None\n"


@pytest.mark.slow
@pytest.mark.parametrize("verb", [v for v, (f, _) in VERBS.items() if not f.startswith("bench")])
def test_every_verb_has_help_or_names_its_extra(installed: Environment, verb: str) -> None:
    done = installed.gratis(verb, "--help")
    if done.returncode:
        way_out = "needs matplotlib, which is not installed: pip install matplotlib"
        assert done.stderr == f"error: gratis {verb} {way_out}\n"
    else:
        assert (done.stdout.startswith("usage: "), done.stderr) == (True, "")


@pytest.mark.slow
def test_a_wrong_verb_and_a_wrong_folder_are_one_line_and_two(installed: Environment) -> None:
    for arguments, start in (
        (["trian"], "error: not understood: trian; "),
        ("shards --src nowhere --out out".split(), "error: "),
        (["bench"], "error: gratis bench needs a source checkout"),
    ):
        done = installed.gratis(*arguments)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert done.stderr.startswith(start)
    assert installed.checked("gratis", "--version") == f"gratis {__version__}\n"


@pytest.mark.slow
def test_from_a_sample_to_predictions(trained: Environment) -> None:
    look(trained)


@pytest.mark.slow
def test_in_a_folder_of_the_user_s_own_modules_ours_run(
    trained: Environment, tmp_path: Path
) -> None:
    """A script, and the command with its two ranks."""
    for name in OWN_FILES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("open('taken', 'a').write(__name__)\n")
    (tmp_path / "shards").symlink_to(trained.folder / "shards")
    (tmp_path / "script.py").write_text(SCRIPT)
    output = trained.checked("python", "script.py", cwd=tmp_path)
    assert output.startswith(str(trained.folder))
    assert "[10, 3, 112, 112]" in output
    words = ["train", "--shards", "shards", "--gpus", "2", *SMALL]
    assert "result top1=" in trained.checked("gratis", *words, cwd=tmp_path)
    assert not (tmp_path / "taken").exists()


@pytest.mark.prove
def test_in_an_empty_environment_by_pip_alone(
    built: Built, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything from the package index, in the locked versions: some minutes, GB of downloads."""
    there = Environment(tmp_path)
    began = time.monotonic()
    checked(sys.executable, "-m", "venv", "venv", cwd=tmp_path)
    pip = "-m pip --disable-pip-version-check install -q --no-cache-dir -c".split()
    there.checked("python", *pip, ROOT / "requirements.lock", built.wheel)
    there.checked("python", "-m", "pip", "check")
    seconds = time.monotonic() - began
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) / 1e9
    prepare(there)
    there.checked("gratis", "train", "--shards", "shards", "--gpus", "1", *SMALL)
    look(there)
    with capsys.disabled():
        print(
            f"installed in {seconds:.0f} s, {size:.1f} GB; {time.monotonic() - began:.0f} s in all"
        )
