"""Packs what the report needs on a machine without network that has torch: wheels, the project with
its compiled engine, datasets.

python -m benchmarks.carry.pack --out carry --shards tiny100 --have have.txt

OUT then holds `install.py`, SHA256SUMS and parts of at most 55 MB, which may travel one by one;
`python3 install.py` in a folder of all of them does the rest there. Wheels are those of
requirements.lock, for that Python on x86-64 Linux: what pyproject.toml asks for and what that asks
for, but not torch and what torch brings."""

from __future__ import annotations

import argparse
import gzip
import hashlib
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import tomllib
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
PART = 55_000_000  # bytes
INSTALLER, SUMS = "install.py", "SHA256SUMS"
# without torch nothing is measured, and of it there is one for each driver
LEFT_OUT = ("torch",)
TESTS = ("pytest",)
PLATFORMS = ("2_39", "2_34", "2_28", "2_27", "2_24", "2_17", "2_12", "2_5")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("carry"), help="a folder that is not there"
    )
    parser.add_argument("--python", default="3.12", help="of the other machine")
    what = "a dataset to take along; may be given again"
    parser.add_argument("--shards", type=Path, action="append", default=[], help=what)
    what = "file of package names, by blanks or commas, that are installed there: not packed"
    parser.add_argument("--have", type=Path, help=what)
    what = "another package to pack, as torchvision==0.26.0; may be given again"
    parser.add_argument("--extra", action="append", default=[], help=what)
    options = parser.parse_args()
    if options.out.exists():
        parser.exit(2, f"error: --out {options.out} is there already; name another\n")
    have = set(LEFT_OUT)
    if options.have:
        have |= {canonical(name) for name in re.split(r"[\s,]+", options.have.read_text()) if name}
    options.out.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=options.out) as scratch:
        folder = Path(scratch)
        collect(folder, options, have)
        parts = split(folder, options.out)
    shutil.copy(Path(__file__).with_name(INSTALLER), options.out)
    (options.out / SUMS).write_text("".join(f"{sha}  {name}\n" for name, sha in parts))
    size = sum((options.out / name).stat().st_size for name, _ in parts)
    print(f"{options.out}: {size / 1e6:.0f} MB in {len(parts)} parts")
    return 0


def collect(folder: Path, options: argparse.Namespace, have: set[str]) -> None:
    """wheels/, project.tar and shards/ in the folder."""
    wheels = folder / "wheels"
    wheels.mkdir()
    download([*locked(have), *options.extra], options.python, wheels)
    build = [sys.executable, "setup.py", "-q", "bdist_wheel", "-d", str(wheels)]
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run([*build, "-b", scratch], cwd=ROOT, check=True, capture_output=True)
    archive = ["git", "-C", str(ROOT), "archive", "-o", str(folder / "project.tar"), "HEAD"]
    subprocess.run(archive, check=True)
    for shards in options.shards:
        shutil.copytree(shards, folder / "shards" / shards.resolve().name)


def locked(have: set[str]) -> list[str]:
    """`name==version` of all that the project needs: the lock's, of what it lacks the one here."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        wanted = [Requirement(one) for one in tomllib.load(file)["project"]["dependencies"]]
    wanted += [Requirement(one) for one in TESTS]
    versions = dict(lock())
    found: dict[str, str] = {}
    while wanted:
        one = wanted.pop()
        name = canonical(one.name)
        if name in found or name in have:
            continue
        found[name] = versions.get(name) or importlib.metadata.version(name)
        wanted += needs(name, one.extras)
    return [f"{name}=={version}" for name, version in sorted(found.items())]


def lock() -> Iterator[tuple[str, str]]:
    """Of each package in requirements.lock. Pillow stands in for pillow-simd, which is compiled."""
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        name, equal, version = line.partition("==")
        if equal and not name.startswith("#"):
            yield canonical(name), version
            if canonical(name) == "pillow-simd":
                yield "pillow", version.partition(".post")[0]


def needs(name: str, extras: set[str]) -> list[Requirement]:
    """Of a package that is installed here, on Linux."""
    try:
        asked = [Requirement(one) for one in importlib.metadata.requires(name) or []]
    except importlib.metadata.PackageNotFoundError:
        return []  # Pillow, in whose place pillow-simd is
    return [
        one
        for one in asked
        if one.marker is None or any(one.marker.evaluate({"extra": x}) for x in ("", *extras))
    ]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def download(packages: list[str], python: str, wheels: Path) -> None:
    tag = "cp" + python.replace(".", "")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(wheels)]
    command += ["--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    for abi in (tag, "abi3", "none"):
        command += ["--abi", abi]
    for version in PLATFORMS:
        command += ["--platform", f"manylinux_{version}_x86_64"]
    for old in ("manylinux2014", "manylinux2010", "manylinux1"):
        command += ["--platform", f"{old}_x86_64"]
    subprocess.run([*command, "--platform", "any", *packages], check=True)


class Parts:
    """A file for tarfile, in parts: what is written goes into the next one where one is full."""

    def __init__(self, out: Path) -> None:
        self._out, self._file = out, cast("BinaryIO | None", None)
        self._left = 0
        self.sums: list[tuple[str, str]] = []

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        while view:
            if not self._left:
                self._next()
            part = view[: self._left]
            assert self._file is not None
            self._file.write(part)
            self._digest.update(part)
            self._left, view = self._left - len(part), view[len(part) :]
        return len(data)

    def flush(self) -> None:
        """Each part is, when it is full."""

    def _next(self) -> None:
        self.close()
        self._file = (self._out / f"part-{len(self.sums):02}").open("wb")
        self._digest, self._left = hashlib.sha256(), PART

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self.sums.append((Path(self._file.name).name, self._digest.hexdigest()))
            self._file = None


def split(folder: Path, out: Path) -> list[tuple[str, str]]:
    """The folder as one tar.gz in parts; (name, SHA-256) of each. A shard is a fifth of padding."""
    parts = Parts(out)
    with (
        gzip.GzipFile(fileobj=parts, mode="wb", compresslevel=1) as packed,
        tarfile.open(fileobj=packed, mode="w|") as tar,
    ):
        tar.add(folder, arcname=".")
    parts.close()
    return parts.sums


if __name__ == "__main__":
    sys.exit(main())
