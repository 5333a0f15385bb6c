"""Joins, checks and installs what `benchmarks.carry.pack` packed:

python3 install.py --to /tmp/gratis

Standard library and pip alone, without network. Packages that are installed here already stay as
they are; the others go into TO/site, which only PYTHONPATH makes known. TO/project is the project,
TO/shards the datasets."""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import io
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

SUMS = "SHA256SUMS"
ENGINE = "gratis/loader/engine/libgratis_engine.native.so"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    here = Path(__file__).resolve().parent
    parser.add_argument("--parts", type=Path, default=here, help=f"folder of {SUMS} and the parts")
    parser.add_argument("--to", type=Path, default=Path("/tmp/gratis"), help="folder that is made")
    options = parser.parse_args()
    began, to = time.monotonic(), options.to.resolve()
    if to.exists():
        parser.exit(2, f"error: --to {to} is there already; remove it or name another\n")
    parts, problem = checked(options.parts)
    if problem:
        parser.exit(2, f"error: {problem}\n")
    with Joined(parts) as joined, tarfile.open(fileobj=joined, mode="r|gz") as tar:
        tar.extractall(to, filter="data")
    with tarfile.open(to / "project.tar") as tar:
        tar.extractall(to / "project", filter="data")
    if problem := install(to):
        parser.exit(1, f"error: {problem}\n")
    print(f"installed in {time.monotonic() - began:.1f} s; then:")
    shards = "".join(f" --train-shards {one}" for one in sorted(to.glob("shards/tiny100*"))[:1])
    print(f"export PYTHONPATH={to / 'site'}; cd {to / 'project'}")
    print(f"{Path(sys.executable).name} -m gratis report --minutes 8{shards}")
    return 0


def checked(folder: Path) -> tuple[list[Path], str]:
    """The parts in their order, and what is wrong with them: the first that is missing or not as it
    was packed."""
    parts = []
    for line in (folder / SUMS).read_text().splitlines():
        wanted, _, name = line.partition("  ")
        part = folder / name
        if not part.exists():
            return [], f"{part} is missing; bring it, then give the same command again"
        with part.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != wanted:
                return [], f"{part} is damaged; bring it again, then give the same command again"
        parts.append(part)
    return parts, ""


class Joined(io.RawIOBase):
    """The parts read as one file."""

    def __init__(self, parts: list[Path]) -> None:
        self._parts = iter(parts)
        self._file = next(self._parts).open("rb")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        while not (count := self._file.readinto(view)):
            self._file.close()
            part = next(self._parts, None)
            if part is None:
                return 0
            self._file = part.open("rb")
        return count

    def close(self) -> None:
        self._file.close()
        super().close()


def install(to: Path) -> str:
    """What went wrong; empty if nothing did."""
    site, wheels = to / "site", sorted((to / "wheels").glob("*.whl"))
    missing = [wheel for wheel in wheels if not installed(wheel)]
    command = "-m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target".split()
    environment = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_CONFIG_FILE": os.devnull}
    done = subprocess.run([sys.executable, *command, site, *missing], env=environment)
    if done.returncode:
        return "pip failed (its output is above)"
    # an empty file of three wheels; with it these would hide the nvidia packages that torch uses
    hides = site / "nvidia" / "__init__.py"
    if hides.exists() and not hides.stat().st_size:
        hides.unlink()
    shutil.copy(site / ENGINE, to / "project" / ENGINE)
    shutil.rmtree(to / "wheels")
    return ""


def installed(wheel: Path) -> bool:
    """Whether this Python has it, in whatever version; the project itself is always brought."""
    name, version = wheel.name.split("-")[:2]
    try:
        there = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    if name == "gratis":
        return False
    if there != version:
        print(f"kept as installed: {name} {there} (packed: {version})")
    return True


if __name__ == "__main__":
    sys.exit(main())
