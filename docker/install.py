"""Installs the locked dependencies: `python3 docker/install.py [--venv .venv] [--extra]`. Standard
library alone.

Does what is missing and nothing else, so it can be called again at any time: after a failed
download it goes on, and after `apt install libjpeg-dev` it puts pillow-simd where it had to put
Pillow, after `apt install libwebp-dev libtiff-dev` one that reads those. The Dockerfile runs the
same file."""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
EXTRA_LOCK = ROOT / "requirements-extra.lock"
STAMP = "installed"  # in the environment: newer than the lock means complete
SIZE = "up to 3.1 GB of downloads (most of it CUDA's libraries) and 5.9 GB of disk"
HEADERS = "python3-dev libjpeg-dev zlib1g-dev libwebp-dev libtiff-dev"
OPTIONAL = {"webp": "webp/decode.h", "libtiff": "tiff.h"}  # of Pillow's features: a header of it
# their metadata asks for Pillow by name, which pip would lay over pillow-simd
BESIDE_PILLOW = ("matplotlib==",)
TORCHVISION = "torchvision==0.28.0"  # for the locked torch; the index has its CUDA build alone
# the prefix of AVX2 instructions such as vpmovzxbw: absent from an SSE-only build
VEX_256_0F38 = b"\xc4\xe2\x7d"


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; {self.prog} --help says more\n")


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = "virtual environment to make or complete; default: the running Python"
    parser.add_argument("--venv", type=Path, help=what)
    what = f"also what optional features need: {EXTRA_LOCK.name}"
    parser.add_argument("--extra", action="store_true", help=what)
    options = parser.parse_args()
    venv: Path | None = options.venv
    if sys.version_info < (3, 11):
        needs = f"the versions in {LOCK.name} need 3.11 or later: make install PYTHON=python3.11"
        return fail(f"Python {platform.python_version()} is too old; {needs}")
    python = Path(sys.executable) if venv is None else make_venv(venv)
    if python is None:
        way_out = "install Debian's package python3-venv"
        return fail(f"this Python cannot make virtual environments; {way_out}")
    # a /tmp in memory may be too small for what pip unpacks
    with tempfile.TemporaryDirectory(prefix="install-", dir=venv) as scratch:
        os.environ["TMPDIR"] = tempfile.tempdir = str(Path(scratch).absolute())
        problem = install(python, extra=options.extra)
    if problem:
        return fail(problem)
    if venv is not None:
        (venv / STAMP).write_text(LOCK.read_text())
    return 0


def install(python: Path, *, extra: bool) -> str | None:
    """What failed, or None."""
    lines = LOCK.read_text().splitlines()
    pillow = next(line for line in lines if line.startswith("pillow-simd=="))
    beside = [line for line in lines if line.startswith(BESIDE_PILLOW)]
    others = [line for line in lines if line not in (pillow, *beside)]
    if not install_locked(python, others, beside):
        return "a package could not be installed (pip's output is above); mend that and try again"
    if not install_pillow(python, pillow):
        return "neither pillow-simd nor Pillow could be installed (pip's output is above)"
    if extra and not install_extra(python):
        rest = "everything else is there"
        return f"an optional package could not be installed (pip's output is above); {rest}"
    # this checkout as it is, so that edits take effect
    editable = ["install", "--no-deps", "--no-build-isolation", "--editable", str(ROOT)]
    if (ROOT / "pyproject.toml").exists() and not pip(python, "gratis", editable):
        return "gratis itself could not be installed (pip's output is above)"
    return None


def fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def make_venv(venv: Path) -> Path | None:
    """The environment's Python; None if this Python lacks venv or ensurepip, as Debian's does by
    default."""
    python = venv / "bin" / "python"
    if not (venv / "bin" / "pip").exists():
        if importlib.util.find_spec("ensurepip") is None:
            return None
        print(f"making {venv} with Python {platform.python_version()}: {SIZE}", flush=True)
        if subprocess.run([sys.executable, "-m", "venv", "--clear", venv]).returncode:
            return None
    return python.absolute()


def install_locked(python: Path, others: list[str], beside: list[str]) -> bool:
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as wanted:
        wanted.write("\n".join(others))
        wanted.flush()
        done = pip(python, "dependencies", ["install", "-r", wanted.name])
    return done and pip(python, "what draws figures", ["install", "--no-deps", *beside])


def install_extra(python: Path) -> bool:
    """Without dependencies, which are all in the lock: some ask for Pillow by name."""
    extra = ["install", "--no-deps", "-r", str(EXTRA_LOCK)]
    if not pip(python, "optional packages", extra):
        return False
    if output_of(python, "import torch; print(torch.version.cuda)") in ("", "None"):
        print(f"note: {TORCHVISION} is left out: it does not load beside a torch for CPUs")
        return True
    return pip(python, TORCHVISION, ["install", "--no-deps", TORCHVISION])


def install_pillow(python: Path, simd: str) -> bool:
    """pillow-simd with AVX2 where the CPU has it, else Pillow of the same version, saying so
    once."""
    if installed(python, simd):
        if addable(python):
            build_pillow(python, simd)  # where this fails, the one that is there stays
        return True
    if build_pillow(python, simd):
        return True
    plain = simd.replace("pillow-simd", "pillow").split(".post")[0]
    print(
        f"note: pillow-simd could not be compiled here; {plain} takes its place: slower shards, "
        "other bytes in them\n"
        "      (resized, half a per cent of the values differ, by up to 2 of 255 levels).\n"
        f"      For the fast one: apt install gcc {HEADERS}, then `make install`.",
        file=sys.stderr,
    )
    return installed(python, plain) or pip(python, plain, ["install", plain])


def build_pillow(python: Path, simd: str) -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    avx2 = cpuinfo.exists() and "avx2" in cpuinfo.read_text().split()
    compiler = "cc -mavx2" if avx2 else "cc"
    with tempfile.TemporaryDirectory() as folder:
        # no cache: pip keys a wheel it built by name alone and would bring back one compiled with
        # other flags
        build = ["wheel", "--no-cache-dir", "--no-deps", "--no-binary", "pillow-simd"]
        build += ["-w", folder, simd]
        what = f"{simd}, compiled by {compiler}"
        if not pip(python, what, build, compiler=compiler):
            return False
        # both packages lay the same files, so the other one has to leave first
        remove = [str(python), "-m", "pip", "uninstall", "-qy", "pillow"]
        subprocess.run(remove, capture_output=True)
        wheels = [str(wheel) for wheel in Path(folder).glob("*.whl")]
        options = ["--no-index", "--no-deps", "--force-reinstall"]
        if not pip(python, simd, ["install", *options, *wheels]):
            return False
    core = "import importlib.util as u; print(u.find_spec('PIL._imaging').origin)"
    if avx2 and VEX_256_0F38 not in Path(output_of(python, core)).read_bytes():
        message = "pillow-simd was compiled without AVX2; resizing takes about twice the time"
        print(f"note: {message}", file=sys.stderr)
    return True


def addable(python: Path) -> bool:
    """Whether a new build would read a format that this one does not."""
    code = f"from PIL import features; print(*(n for n in {[*OPTIONAL]} if not features.check(n)))"
    return any(has_header(OPTIONAL[name]) for name in output_of(python, code).split())


def has_header(name: str) -> bool:
    source = f"#include <{name}>\n".encode()
    try:
        return not subprocess.run(["cc", "-E", "-"], input=source, capture_output=True).returncode
    except OSError:
        return False


def installed(python: Path, requirement: str) -> bool:
    name, version = requirement.split("==")
    code = f"from importlib.metadata import version; print(version({name!r}))"
    return output_of(python, code) == version


def output_of(python: Path, code: str) -> str:
    """What the code prints; what it had printed where it fails."""
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True)
    return done.stdout.strip()


def pip(python: Path, what: str, arguments: list[str], *, compiler: str | None = None) -> bool:
    """Whether a pip command succeeded. It shows its own output; with a compiler for what it builds,
    none, as the caller has another way where that fails."""
    print(f"installing {what}", flush=True)
    command = [str(python), "-m", "pip", *arguments, "--disable-pip-version-check"]
    env = os.environ | ({"CC": compiler} if compiler else {})
    return subprocess.run(command, env=env, capture_output=bool(compiler)).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
