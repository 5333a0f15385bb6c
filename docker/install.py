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
from collections.abc import Iterator
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
    parser.add_argument(
        "--venv",
        type=Path,
        help="virtual environment to make or complete; default: the running Python",
    )
    parser.add_argument(
        "--extra", action="store_true", help=f"also what optional features need: {EXTRA_LOCK.name}"
    )
    options = parser.parse_args()
    venv: Path | None = options.venv
    if sys.version_info < (3, 11):
        needs = (
            "the versions in requirements.lock need 3.11 or later: make install PYTHON=python3.11"
        )
        return fail(f"Python {platform.python_version()} is too old; {needs}")
    python = Path(sys.executable) if venv is None else make_venv(venv)
    if python is None:
        return fail(
            "this Python cannot make virtual environments; install Debian's package python3-venv"
        )
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
    if not install_locked(python, beside, leave_out=[pillow, *beside]):
        return "a package could not be installed (pip's output is above); mend that and try again"
    if not install_pillow(python, pillow):
        return "neither pillow-simd nor Pillow could be installed (pip's output is above)"
    if extra and not install_extra(python):
        return (
            "an optional package could not be installed (pip's output is above); everything else "
            "is there"
        )
    if (ROOT / "pyproject.toml").exists() and not install_ours(python):
        return "gratis itself could not be installed (pip's output is above)"
    return None


def fail(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 2


def make_venv(venv: Path) -> Path | None:
    """The environment's Python; None if this Python lacks venv or ensurepip, as Debian's does until
    told otherwise."""
    python = venv / "bin" / "python"
    if not (venv / "bin" / "pip").exists():
        if importlib.util.find_spec("ensurepip") is None:
            return None
        print(f"making {venv} with Python {platform.python_version()}: {SIZE}", flush=True)
        if subprocess.run([sys.executable, "-m", "venv", "--clear", venv]).returncode:
            return None
    return python.absolute()


def install_locked(python: Path, beside: list[str], leave_out: list[str]) -> bool:
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as wanted:
        wanted.writelines(
            line + "\n" for line in LOCK.read_text().splitlines() if line not in leave_out
        )
        wanted.flush()
        everything = pip(python, "dependencies", ["install", "-r", wanted.name])
    return everything and pip(python, "what draws figures", ["install", "--no-deps", *beside])


def install_extra(python: Path) -> bool:
    """Without dependencies, which are all in the lock: some ask for Pillow by name."""
    extra = ["install", "--no-deps", "-r", str(EXTRA_LOCK)]
    if not pip(python, "optional packages", extra):
        return False
    cuda = "import torch; raise SystemExit(torch.version.cuda is None)"
    if subprocess.run([str(python), "-c", cuda], capture_output=True).returncode:
        print(f"note: {TORCHVISION} is left out: it does not load beside a torch for CPUs")
        return True
    return pip(python, TORCHVISION, ["install", "--no-deps", TORCHVISION])


def install_ours(python: Path) -> bool:
    """This checkout as it is, so that edits take effect: the package `gratis` and the command of
    that name."""
    editable = ["install", "--no-deps", "--no-build-isolation", "--editable", str(ROOT)]
    return pip(python, "gratis", editable)


def install_pillow(python: Path, simd: str) -> bool:
    """pillow-simd with AVX2 where the CPU has it, else Pillow of the same version, saying so
    once."""
    present = installed(python, simd)
    if present and not addable(python):
        return True
    if build_pillow(python, simd):
        return True
    if present:  # as it was
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
    compiler = "cc -mavx2" if "avx2" in cpu_flags() else "cc"
    with tempfile.TemporaryDirectory() as folder:
        # no cache: pip keys a wheel it built by name alone and would bring back one compiled with
        # other flags
        build = ["wheel", "--no-cache-dir", "--no-deps", "--no-binary", "pillow-simd"]
        build += ["-w", folder, simd]
        what = f"{simd}, compiled by {compiler}"
        if not pip(python, what, build, env={"CC": compiler}, show_failure=False):
            return False
        # both packages lay the same files, so the other one has to leave first
        remove = [str(python), "-m", "pip", "uninstall", "-qy", "pillow"]
        subprocess.run(remove, capture_output=True)
        wheels = [str(wheel) for wheel in Path(folder).glob("*.whl")]
        options = ["--no-index", "--no-deps", "--force-reinstall"]
        if not pip(python, simd, ["install", *options, *wheels]):
            return False
    if "avx2" in compiler and VEX_256_0F38 not in extension(python).read_bytes():
        print(
            "note: pillow-simd was compiled without AVX2; resizing takes about twice the time",
            file=sys.stderr,
        )
    return True


def addable(python: Path) -> bool:
    """Whether a new build would read a format that this one does not."""
    code = f"from PIL import features; print(*(n for n in {[*OPTIONAL]} if not features.check(n)))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True)
    return any(has_header(OPTIONAL[name]) for name in done.stdout.split())


def has_header(name: str) -> bool:
    try:
        return not subprocess.run(
            ["cc", "-E", "-"], input=f"#include <{name}>\n", text=True, capture_output=True
        ).returncode
    except OSError:
        return False


def installed(python: Path, requirement: str) -> bool:
    name, version = requirement.split("==")
    code = (
        f"from importlib.metadata import version as v; raise SystemExit(v({name!r}) != {version!r})"
    )
    return subprocess.run([str(python), "-c", code], capture_output=True).returncode == 0


def extension(python: Path) -> Path:
    """Where Pillow's compiled core is."""
    code = "import importlib.util as u; print(u.find_spec('PIL._imaging').origin)"
    return Path(
        subprocess.run(
            [str(python), "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
    )


def cpu_flags() -> set[str]:
    try:
        return set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return set()


def pip(
    python: Path,
    what: str,
    arguments: list[str],
    env: dict[str, str] | None = None,
    *,
    show_failure: bool = True,
) -> bool:
    """Runs a pip command, showing one moving line; on failure the end of its output."""
    command = [
        str(python),
        "-m",
        "pip",
        *arguments,
        "--disable-pip-version-check",
        "--progress-bar",
        "off",
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **(env or {})},
    )
    assert process.stdout is not None
    lines = list(shown(process.stdout, what))
    if process.wait() and show_failure:
        print("".join(lines[-15:]), file=sys.stderr)
    return process.returncode == 0


def shown(lines: Iterator[str], what: str) -> Iterator[str]:
    """Passes pip's lines on and shows the newest: rewritten in place on a terminal, else the
    milestones alone."""
    terminal = sys.stdout.isatty()
    print(f"installing {what}", flush=True)
    for line in lines:
        if terminal:
            print(f"\r\033[K  {line.strip()[:100]}", end="", flush=True)
        elif line.startswith(("Installing collected", "Successfully")):
            print(f"  {line.strip()[:100]}", flush=True)
        yield line
    if terminal:
        print("\r\033[K", end="", flush=True)


if __name__ == "__main__":
    sys.exit(main())
