"""The engine beside libjpeg-turbo, in one thread of one process, variants in turns:
`python -m benchmarks.loader.engine_bench SHARDS [--rounds 9] [--isa avx2]`.

Each of the dataset's training images is encoded anew, without and with restart markers at rows of
MCUs, so that both forms hold the same pixels. Printed: microseconds of thread CPU time for an image
(median, least and most of the rounds), and the ratio to the last column's variant within rounds."""

from __future__ import annotations

import argparse
import io
import json
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from gratis import image
from gratis.dataset import read_index, read_manifest
from gratis.errors import GratisError
from gratis.loader.engine.library import FILE, ISAS, load

SOURCE = Path(__file__).with_name("engine_bench.c")
MOST = 500  # images


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--isa", choices=ISAS, help="default: the best of this machine")
    options = parser.parse_args()
    library = load()
    if library is None or not (compiler := shutil.which("cc")):
        print("error: needs the engine, a C compiler and libjpeg's header", file=sys.stderr)
        return 2
    isa = library.best_isa if options.isa is None else ISAS.index(options.isa)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("plain", "restarts")]
        write_sets(options.shards, *files)
        program = Path(folder) / "engine_bench"
        build = [compiler, "-O3", "-march=native", f"-I{FILE.parent}", SOURCE, "-o", program]
        subprocess.run([*map(str, build), "-ljpeg", "-ldl", "-lm"], check=True)
        command = [program, FILE, str(options.rounds), *files, str(isa)]
        done = subprocess.run([*map(str, command)], check=True, stdout=subprocess.PIPE, text=True)
    show([json.loads(line) for line in done.stdout.splitlines()], ISAS[isa])
    return 0


def write_sets(root: Path, plain: Path, restarts: Path) -> None:
    """The same pictures in both forms; GratisError for a dataset of other than JPEGs."""
    manifest = read_manifest(root)
    if manifest.codec != "jpeg":
        raise GratisError(f"{root} holds no JPEGs")
    index, shards = read_index(root, "train"), manifest.splits["train"].shards
    with plain.open("wb") as without, restarts.open("wb") as with_markers:
        for row in range(min(MOST, len(index.label))):
            with (root / shards[index.shard[row]].name).open("rb") as shard:
                shard.seek(int(index.offset[row]))
                picture = Image.fromarray(image.decode(shard.read(int(index.size[row]))))
            for file, rows in ((without, 0), (with_markers, 1)):
                data = encoded(picture, rows)
                file.write(struct.pack("<q", len(data)) + data)


def encoded(picture: Image.Image, rows: int) -> bytes:
    """As `gratis shards` does, with a restart marker after so many rows of MCUs."""
    form = {"quality": 95, "subsampling": "4:2:0", "optimize": True}
    file = io.BytesIO()
    picture.save(file, "JPEG", restart_marker_rows=rows, **form)
    return file.getvalue()


def show(variants: list[dict[str, object]], isa: str) -> None:
    times = {str(v["name"]): np.array(v["us"]) for v in variants}
    bases = {"crop": "libjpeg-turbo crop", "crop + pass": "libjpeg-turbo crop, C pass to float32"}
    rounds = len(times[bases["crop"]])
    print(f"{isa}, n = {rounds}; us of CPU time for an image, and ratios within rounds")
    for name, values in times.items():
        cells = [f"{median(values):7.1f} ({values.min():.1f}-{values.max():.1f})"]
        for title, base in bases.items():
            ratios = values / times[base]
            cells.append(f"{median(ratios):.3f} ({ratios.min():.3f}-{ratios.max():.3f}) of {title}")
        print(f"{name:42s} " + "   ".join(cells))


if __name__ == "__main__":
    sys.exit(main())
