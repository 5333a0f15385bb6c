"""What the shard stage costs, step by step and beside other tools, and what its codec gives.

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
from functools import partial
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
from gratis.command_line import check_ranges, parse
from gratis.errors import GratisError
from gratis.preprocess.codecs import decode_jpeg, encode_jpeg
from gratis.preprocess.output.shard_writer import ShardWriter
from gratis.preprocess.stages.plan import pillow_name
from gratis.preprocess.statistics import Accumulator

TIMES = 3  # the longer of the two runs
TABLE_IMAGES = 100  # as --judged says
Options = tuple[int, str, bool, bool]
GRID: tuple[Options, ...] = (  # quality, subsampling, tables fitted to the image, progressive
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
class ShardBenchConfig:
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
        check_ranges(self, dict.fromkeys(("rounds", "workers", "judged"), (1, 10_000)))


class RunCost(NamedTuple):
    wall_s: float
    cpu_s: float


class ToolResult(NamedTuple):
    """A tool's runs over the photographs once and TIMES times, and its dB once it was judged."""

    short: list[RunCost]
    long: list[RunCost]
    quality: list[float]


def main(arguments: list[str]) -> None:
    bench(parse(ShardBenchConfig, arguments, "gratis bench shards"))


def bench(config: ShardBenchConfig) -> None:
    paths = sorted(config.src.glob("train/*/*"))
    if not paths:
        raise GratisError(
            f"{config.src} has no photographs in train/<class>/; give a folder that has"
        )
    judged = _spread(paths, config.judged)
    print(f"{len(paths)} photographs, {pillow_name()}, {os.cpu_count()} cores")
    files = [path.read_bytes() for path in _spread(judged, TABLE_IMAGES)]
    _show_steps(files)
    _show_codecs(files)
    _show_tools(config, paths, judged)


def _spread(paths: list[Path], count: int) -> list[Path]:
    return paths[:: max(1, len(paths) // count)][:count]


def _show_steps(files: list[bytes]) -> None:
    """CPU ms per image in one process, the best of three passes: what is above it is other
    programs' noise."""
    made = [image.to_picture(data, SIZE, padded=True)[0] for data in files]
    encoded = [encode_jpeg(picture, 95) for picture in made]
    decoded = [decode_jpeg(data, SIZE, SIZE) for data in encoded]
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
        "decode and resize": lambda: [image.to_picture(data, SIZE, padded=True) for data in files],
        "encode": lambda: [encode_jpeg(picture, 95) for picture in made],
        "decode again": lambda: [decode_jpeg(data, SIZE, SIZE) for data in encoded],
        "statistics": add_up,
        "hash, tar, fsync": pack,
    }
    count = len(files)
    costs = {k: min(_cpu_s(step) for _ in range(3)) / count * 1000 for k, step in steps.items()}
    print(f"CPU ms per image, {count} images, best of 3:")
    for name, cost in (costs | {"all": sum(costs.values())}).items():
        print(f"  {name:18s} {cost:6.3f}")


def _show_codecs(files: list[bytes]) -> None:
    ImageFile.MAXBLOCK = 1 << 20  # see gratis.preprocess.codecs.encode_jpeg
    pixels = [image.to_image(data).pixels for data in files]
    references = [conventions(data)[0] for data in files]
    count = len(files)
    print(f"codec, {count} images: bytes, CPU ms to encode and decode (best of 3), dB")
    for options in GRID:
        encode = partial(_encode_all, pixels, options)
        encoded = encode()
        decode = partial(_decode_all, encoded)
        to, back = (min(_cpu_s(step) for _ in range(3)) / count * 1e3 for step in (encode, decode))
        pairs = zip(decode(), references, strict=True)
        db = np.mean([psnr(decoded, reference) for decoded, reference in pairs])
        level, subsampling, fitted, progressive = options
        tables = f"{'fitted' if fitted else 'standard'}{' progressive' if progressive else ''}"
        size = np.mean([len(data) for data in encoded])
        name = f"q{level} {subsampling} {tables}"
        print(f"  {name:32s} {size:8,.0f} {to:6.2f} {back:6.3f} {db:6.2f}")


def _encode_all(pixels: list[NDArray[np.uint8]], options: Options) -> list[bytes]:
    quality, subsampling, fitted, progressive = options
    encoded = []
    for array in pixels:
        file = io.BytesIO()
        more = {"subsampling": subsampling, "optimize": fitted, "progressive": progressive}
        Pillow.fromarray(array).save(file, "JPEG", quality=quality, **more)
        encoded.append(file.getvalue())
    return encoded


def _decode_all(encoded: list[bytes]) -> list[NDArray[np.uint8]]:
    return [image.decode(data) for data in encoded]


def _show_tools(config: ShardBenchConfig, paths: list[Path], judged: list[Path]) -> None:
    names = ["this", *(MODULES if config.peers else ())]
    results: dict[str, ToolResult] = {name: ToolResult([], [], []) for name in names}
    best = f"{ceiling(judged):.2f} dB"
    print(f"PSNR over {len(judged)} photographs; the reference itself through quality 95: {best}")
    with tempfile.TemporaryDirectory() as scratch:
        once = _replicate(paths, Path(scratch) / "once", 1)
        often = _replicate(paths, Path(scratch) / "often", TIMES)
        for turn in range(config.rounds):
            for name in names if turn % 2 == 0 else names[::-1]:
                out, result = Path(scratch) / f"{name}-{turn}", results[name]
                for folder, costs in ((once, result.short), (often, result.long)):
                    cost = _run(config, name, folder, out.with_name(f"{out.name}-{folder.name}"))
                    if cost is None:
                        break
                    costs.append(cost)
                else:
                    if not result.quality:
                        result.quality.append(quality(out.with_name(f"{out.name}-once"), judged))
    _print_tools(config, len(paths), results)


def _print_tools(config: ShardBenchConfig, count: int, results: dict[str, ToolResult]) -> None:
    runs = f"{config.workers} processes, {config.rounds} alternating rounds, medians"
    print(f"{count} and {TIMES * count} images, {runs}:")
    head = f"{'img/s':>7s} {'CPU s per 1,000':>16s} {'after start-up':>15s} {'dB':>6s}"
    print(f"  {'tool':12s} {head}")
    for name, (short, long, scores) in results.items():
        if not scores:
            print(f"  {name:12s} is not installed there")
            continue
        rate = median(TIMES * count / cost.wall_s for cost in long)
        cpu = median(cost.cpu_s for cost in short) / count * 1000
        more = [b.cpu_s - a.cpu_s for a, b in zip(short, long, strict=True)]
        steady = median(more) / (TIMES - 1) / count * 1000
        print(f"  {name:12s} {rate:7.0f} {cpu:16.2f} {steady:15.2f} {scores[0]:6.2f}")


def _run(config: ShardBenchConfig, name: str, folder: Path, out: Path) -> RunCost | None:
    """One tool over a folder; CPU of its whole process tree. None where it is not installed."""
    workers = str(config.workers)
    if name == "this":
        command = [sys.executable, *"-m gratis shards --samples-per-shard 250 --src".split()]
        command += [str(folder), "--out", str(out), "--workers", workers]
    else:
        assert config.peers
        peer = str(Path(__file__).with_name("peers.py"))
        # -I: the folder of that script is not searched for modules
        command = [str(config.peers), "-I", peer, name, str(folder), str(out), workers]
    root = Path(__file__).resolve().parents[2]
    begun = time.monotonic()
    child = subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert child.stderr
    message = child.stderr.read().decode(errors="replace")
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.monotonic() - begun
    child.stderr.close()
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode == 3 and name != "this":
        return None
    if child.returncode:
        raise GratisError(f"{name} failed: {' '.join(message.split())[-300:]}")
    return RunCost(wall, usage.ru_utime + usage.ru_stime)


def _replicate(paths: list[Path], root: Path, times: int) -> Path:
    for turn in range(times):
        for path in paths:
            name = f"{path.stem}{f'-{turn}' if turn else ''}{path.suffix}"
            link = root / "train" / path.parent.name / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.absolute())
    return root


def _cpu_s(step: Callable[[], object]) -> float:
    begun = time.process_time()
    step()
    return time.process_time() - begun
