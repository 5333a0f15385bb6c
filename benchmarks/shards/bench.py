"""The bench command: what the shard stage costs, step by step, beside other tools, and what its
codec gives.

    gratis bench shards --src FOLDER --peers PYTHON

FOLDER holds photographs in train/<class>/. The peers run under another interpreter (pip install
pillow numpy opencv-python-headless 'pyvips[binary]' img2dataset), as plain Pillow and pillow-simd
cannot share one. A tool runs over the photographs once and three times; half the difference is what
they cost after start-up. PSNR: benchmarks.shards.psnr."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageFile

from benchmarks.shards.peers import MODULES
from benchmarks.shards.psnr import SIZE, ceiling, conventions, psnr, quality
from gratis import image
from gratis.command_line import parse
from gratis.errors import GratisError
from gratis.preprocess.codecs import encode_jpeg
from gratis.preprocess.output.shard_writer import ShardWriter
from gratis.preprocess.stages.plan import pillow_name
from gratis.preprocess.statistics import Accumulator

TIMES = 3  # the longer of the two runs
TABLED = 100  # as --judged says
GRID = (  # quality, subsampling, tables fitted to the image, progressive
    (95, "4:4:4", True, False),
    (95, "4:2:0", False, False),
    (95, "4:2:0", True, False),
    (95, "4:2:0", True, True),
    (90, "4:4:4", True, False),
    (90, "4:2:0", False, False),
    (90, "4:2:0", True, False),
    (85, "4:2:0", True, False),
)


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """Measures the shard stage on photographs: by step, by codec, and beside other tools."""

    src: Path
    """Folder with train/<class>/<photograph>."""
    peers: Path | None = None
    """Python that has pillow, opencv, pyvips, img2dataset, or some of them. Default: this stage
    alone."""
    rounds: int = 3
    """Alternating rounds over all tools; medians are shown."""
    workers: int = 2
    judged: int = 500
    """Photographs for PSNR, spread over all. The tables of steps and codecs take 100 of them."""

    def __post_init__(self) -> None:
        for name in ("rounds", "workers", "judged"):
            if getattr(self, name) < 1:
                raise GratisError(f"--{name} {getattr(self, name)}: at least 1")


class Cost(NamedTuple):
    wall_s: float
    cpu_s: float


class Result(NamedTuple):
    """A tool's runs over the photographs once and TIMES times, and its dB once it was judged."""

    short: list[Cost]
    long: list[Cost]
    quality: list[float]


def main(arguments: list[str]) -> None:
    bench(parse(BenchConfig, arguments, "gratis bench shards"))


def bench(config: BenchConfig) -> None:
    paths = sorted(config.src.glob("train/*/*"))
    if not paths:
        raise GratisError(
            f"{config.src} has no photographs in train/<class>/; give a folder that has"
        )
    judged = _spread(paths, config.judged)
    print(f"{len(paths)} photographs, {pillow_name()}, {os.cpu_count()} cores")
    tabled = [path.read_bytes() for path in _spread(judged, TABLED)]
    _show_steps(tabled)
    _show_codecs(tabled)
    _show_tools(config, paths, judged)


def _spread(paths: list[Path], count: int) -> list[Path]:
    return paths[:: max(1, len(paths) // count)][:count]


def _show_steps(files: list[bytes]) -> None:
    """CPU ms per image in one process, the best of three passes: what is above it is other
    programs' noise."""
    made = [image.to_picture(data, SIZE)[0] for data in files]
    encoded = [encode_jpeg(picture, 95) for picture in made]
    decoded = [image.decode(data) for data in encoded]
    accumulator = Accumulator(SIZE)

    def add_up() -> None:
        for pixels in decoded:
            accumulator.add(pixels)

    def pack() -> None:
        with tempfile.TemporaryFile() as file:
            writer = ShardWriter(file, "jpg")
            for k, data in enumerate(encoded):
                writer.add(f"key_{k:08d}", data, k)
            writer.close()
            file.flush()
            os.fsync(file.fileno())

    steps: dict[str, Callable[[], object]] = {
        "decode and resize": lambda: [image.to_picture(data, SIZE) for data in files],
        "encode": lambda: [encode_jpeg(picture, 95) for picture in made],
        "decode again": lambda: [image.decode(data) for data in encoded],
        "statistics": add_up,
        "hash, tar, fsync": pack,
    }
    costs = {
        name: min(_cpu_s(step) for _ in range(3)) / len(files) * 1000
        for name, step in steps.items()
    }
    print(f"CPU ms per image, {len(files)} images, best of 3:")
    for name, cost in (costs | {"all": sum(costs.values())}).items():
        print(f"  {name:18s} {cost:6.3f}")


def _show_codecs(files: list[bytes]) -> None:
    ImageFile.MAXBLOCK = 1 << 20  # see encode_jpeg
    pixels = [image.to_image(data).pixels for data in files]
    references = [conventions(data)[0] for data in files]
    print(f"codec, {len(files)} images: bytes, CPU ms to encode and decode (best of 3), dB")
    for level, subsampling, fitted, progressive in GRID:

        def encode(picture: NDArray[np.uint8], options: tuple[int, str, bool, bool]) -> bytes:
            file = io.BytesIO()
            Pillow.fromarray(picture).save(
                file,
                "JPEG",
                quality=options[0],
                subsampling=options[1],
                optimize=options[2],
                progressive=options[3],
            )
            return file.getvalue()

        options = (level, subsampling, fitted, progressive)
        encoded = [encode(picture, options) for picture in pixels]
        to = min(_cpu_s(lambda o=options: [encode(p, o) for p in pixels]) for _ in range(3))  # type: ignore[misc]
        back = min(_cpu_s(lambda e=encoded: [image.decode(data) for data in e]) for _ in range(3))  # type: ignore[misc]
        quality_db = np.mean(
            [psnr(image.decode(data), ref) for data, ref in zip(encoded, references, strict=True)]
        )
        name = (
            f"q{level} {subsampling} "
            f"{'fitted' if fitted else 'standard'}{' progressive' if progressive else ''}"
        )
        size, count = np.mean([len(data) for data in encoded]), len(files)
        print(
            f"  {name:32s} {size:8,.0f} {to / count * 1e3:6.2f} {back / count * 1e3:6.3f} "
            f"{quality_db:6.2f}"
        )


def _show_tools(config: BenchConfig, paths: list[Path], judged: list[Path]) -> None:
    names = ["this", *(MODULES if config.peers else ())]
    results: dict[str, Result] = {name: Result([], [], []) for name in names}
    print(
        f"PSNR over {len(judged)} photographs; the reference itself through quality 95: "
        f"{ceiling(judged):.2f} dB"
    )
    with tempfile.TemporaryDirectory() as scratch:
        once, often = (
            _replicate(paths, Path(scratch) / "once", 1),
            _replicate(paths, Path(scratch) / "often", TIMES),
        )
        for turn in range(config.rounds):
            for name in names if turn % 2 == 0 else names[::-1]:
                out = Path(scratch) / f"{name}-{turn}"
                result = results[name]
                for folder, costs in ((once, result.short), (often, result.long)):
                    cost = _run(config, name, folder, out.with_name(f"{out.name}-{folder.name}"))
                    if cost is None:
                        break
                    costs.append(cost)
                else:
                    if not result.quality:
                        result.quality.append(quality(out.with_name(f"{out.name}-once"), judged))
    _print_tools(config, len(paths), results)


def _print_tools(config: BenchConfig, count: int, results: dict[str, Result]) -> None:
    print(
        f"{count} and {TIMES * count} images, {config.workers} processes, {config.rounds} "
        f"alternating rounds, medians:"
    )
    print(
        f"  {'tool':12s} {'img/s':>7s} {'CPU s per 1,000':>16s} {'after start-up':>15s} {'dB':>6s}"
    )
    for name, (short, long, scores) in results.items():
        if not scores:
            print(f"  {name:12s} is not installed there")
            continue
        rate = median(TIMES * count / cost.wall_s for cost in long)
        cpu = median(cost.cpu_s for cost in short) / count * 1000
        steady = [
            (b.cpu_s - a.cpu_s) / (TIMES - 1) / count * 1000
            for a, b in zip(short, long, strict=True)
        ]
        print(f"  {name:12s} {rate:7.0f} {cpu:16.2f} {median(steady):15.2f} {scores[0]:6.2f}")


def _run(config: BenchConfig, name: str, folder: Path, out: Path) -> Cost | None:
    """One tool over a folder; CPU of its whole process tree. None where it is not installed."""
    if name == "this":
        command = [
            sys.executable,
            *"-m gratis shards --src".split(),
            str(folder),
            "--out",
            str(out),
            "--workers",
            str(config.workers),
            "--samples-per-shard",
            "250",
        ]
    else:
        assert config.peers
        peer = Path(__file__).with_name("peers.py")
        # -I: beside the script lies a module named inspect
        command = [
            str(config.peers),
            "-I",
            str(peer),
            name,
            str(folder),
            str(out),
            str(config.workers),
        ]
    root = Path(__file__).resolve().parents[2]
    begun = time.monotonic()
    child = subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert child.stderr
    complaint = child.stderr.read().decode(errors="replace")
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.monotonic() - begun
    child.stderr.close()
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode == 3 and name != "this":
        return None
    if child.returncode:
        raise GratisError(f"{name} failed: {' '.join(complaint.split())[-300:]}")
    return Cost(wall, usage.ru_utime + usage.ru_stime)


def _replicate(paths: list[Path], root: Path, times: int) -> Path:
    for turn in range(times):
        for path in paths:
            link = (
                root
                / "train"
                / path.parent.name
                / f"{path.stem}{f'-{turn}' if turn else ''}{path.suffix}"
            )
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.absolute())
    return root


def _cpu_s(step: Callable[[], object]) -> float:
    begun = time.process_time()
    step()
    return time.process_time() - begun
