"""Which JPEG decoders give the same pixels: the table of docs/loaders.md.

    python -m benchmarks.jpeg.agreement FOLDER                 # makes environments there: 6 GB
    python -m benchmarks.jpeg.agreement FOLDER --only Pillow datago --all

Each decoder reads every kind of `kinds`, in a process of its own, as some crash. A cell is the
largest difference from Pillow, in levels of 0 to 255, or what happens instead."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # in a decoder's environment there is no gratis

from benchmarks.jpeg.decoders import CROPS, DECODERS, ENVIRONMENTS, Crop, version  # noqa: E402

REFERENCE = "Pillow"
Columns = dict[str, list[str]]
COLUMNS: Columns = {  # kinds that decoders treat alike
    "shards of gratis": ["as gratis writes them"],
    "4:4:4": ["4:4:4", "one pixel", "a scan for each component, 4:4:4"],
    "subsampled, any marker of YCbCr": [
        *("4:2:0", "4:2:2", "4:4:0", "4:1:1", "odd size, 47 x 31"),
        *("restart markers", "progressive"),
        *("no JFIF, no Adobe", "ids 0, 1, 2, no JFIF", "Adobe marker 1 (YCbCr)"),
    ],
    "grey": ["grey", "grey, sampling 2 x 2"],
    "RGB": ["RGB by Adobe marker 0", "RGB by ids R, G, B"],
    "EXIF: on its side": ["EXIF: on its side"],
    "subsampled, a scan for each component": ["a scan for each component"],
    "Y coarser than Cb, Cr": ["Y at half the resolution of Cb, Cr"],
    "RGB, subsampled": ["RGB by Adobe marker 0, subsampled", "RGB by ids R, G, B, subsampled"],
    "JFIF and marked as RGB": [
        "YCbCr by JFIF, RGB by Adobe marker 0",
        "YCbCr by JFIF, RGB by ids R, G, B",
    ],
    "CMYK, YCCK of Adobe": ["CMYK, Adobe marker 0", "YCCK, Adobe marker 2"],
    "CMYK, no Adobe marker": ["CMYK, no Adobe marker"],
    "arithmetic coding": ["arithmetic coding"],
    "12 bits": ["12 bits"],
}
TIMEOUT_S = 60.0  # for all kinds that are left
SIDE, CORNERS = 227, (0, 7, 13, 16, 29)  # crops of the first kind, whose pictures have 256
OTHER = 12.0  # mean levels between two pictures that are not the same one


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", default=list(DECODERS), metavar="DECODER")
    parser.add_argument("--all", action="store_true", help="a column for each kind")
    parser.add_argument("--decode", help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder: Path = options.folder.absolute()
    if options.decode:
        decode_all(options.decode, folder)
        return 0
    names = write_kinds(folder / "kinds")
    for name in options.only:
        python = environment(folder, DECODERS[name].environment)
        run(name, folder, names, python)
    columns = {name: [name] for name in names} if options.all else COLUMNS
    print(table(folder, names, options.only, columns))
    return 0


def write_kinds(folder: Path) -> list[str]:
    """One file for each kind, numbered; their names in order."""
    from benchmarks.jpeg.kinds import kinds

    folder.mkdir(parents=True, exist_ok=True)
    written = kinds()
    for number, data in enumerate(written.values()):
        (folder / f"{number}.jpg").write_bytes(data)
    return list(written)


def environment(folder: Path, name: str) -> str:
    """The Python of an environment, which is made where it is not there."""
    if not ENVIRONMENTS[name]:
        return sys.executable
    venv = folder / f"venv-{name}"
    python = str(venv / "bin" / "python")
    if not (venv / "complete").exists():
        print(f"making {venv}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *ENVIRONMENTS[name]], check=True)
        (venv / "complete").touch()
    return python


def run(name: str, folder: Path, names: list[str], python: str) -> None:
    """Decodes every kind; one that ends the process, or does not end, is noted, and the next are
    decoded by another."""
    out = folder / name
    out.mkdir(exist_ok=True)
    for file in out.iterdir():
        file.unlink()
    command = [python, __file__, str(folder), "--decode", name]
    env = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    if name == "SPDL":
        env["LD_LIBRARY_PATH"] = ":".join(map(str, ffmpeg(folder)))
    for _ in names:
        try:
            done = subprocess.run(
                command, env=env, capture_output=True, text=True, timeout=TIMEOUT_S
            )
            message = "" if done.returncode == 0 else f"crash ({done.returncode})"
        except subprocess.TimeoutExpired:
            message = "hangs"
        if not (out / "version").exists():
            print(f"{name}: cannot be loaded: {done.stderr[-300:]}", file=sys.stderr)
            return
        if not message:
            return
        left = [k for k in range(len(names)) if not list(out.glob(f"{k}.*"))]
        if left:
            (out / f"{left[0]}.txt").write_text(message)


def ffmpeg(folder: Path) -> list[Path]:
    """Folders with FFmpeg's libraries under the names that SPDL looks for: PyAV's wheel has them
    under others."""
    there = next(iter(folder.glob("venv-many/lib/python*/site-packages/av.libs")), folder)
    links = folder / "ffmpeg"
    links.mkdir(exist_ok=True)
    for library in [*there.glob("libav*.so.*"), *there.glob("libsw*.so.*")]:
        stem, _, numbers = library.name.partition(".so.")
        link = links / f"{stem.partition('-')[0]}.so.{numbers.partition('.')[0]}"
        if not link.exists():
            link.symlink_to(library)
    return [links, there]


def decode_all(name: str, folder: Path) -> None:
    """In the decoder's environment: what is not decoded yet."""
    decoder = DECODERS[name]
    decode, inside = decoder.make()
    out = folder / name
    (out / "version").write_text(version(decoder, inside))
    for path in sorted((folder / "kinds").iterdir(), key=lambda path: int(path.stem)):
        if list(out.glob(f"{path.stem}.*")):
            continue
        try:
            pixels = np.asarray(decode(path.read_bytes()))
        except Exception as error:
            (out / f"{path.stem}.txt").write_text(f"refuses: {error}"[:500])
            continue
        np.save(out / f"{path.stem}.npy", pixels)
    if name in CROPS:
        data = (folder / "kinds" / "0.jpg").read_bytes()
        (out / "crops").write_text(str(crops_apart(data, np.asarray(decode(data)), CROPS[name]())))


def crops_apart(data: bytes, whole: NDArray[np.uint8], crop: Crop) -> int:
    """The largest difference, in levels, of a crop that is cut out while decoding from one that is
    cut out afterwards."""
    most = 0
    for y in CORNERS:
        for x in CORNERS:
            after = whole[y : y + SIDE, x : x + SIDE].astype(int)
            most = max(most, int(np.abs(crop(data, y, x, SIDE) - after).max()))
    return most


def table(folder: Path, names: list[str], decoders: list[str], columns: Columns) -> str:
    """Markdown: a row for each decoder; in a column the largest difference among its kinds, or what
    happens to the first of them that is no number."""
    lines = ["| decoder | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name in decoders:
        if (folder / name / "version").exists():
            title = f"{name} {(folder / name / 'version').read_text()}"
            found = [
                worst([cell(folder, name, names.index(kind)) for kind in kinds])
                for kinds in columns.values()
            ]
            lines.append(f"| {title} | " + " | ".join(found) + " |")
    for name in decoders:
        if (crops := folder / name / "crops").exists():
            lines.append(f"- {name}: crops while decoding differ by up to {crops.read_text()}")
    return "\n".join(lines)


def worst(cells: list[str]) -> str:
    words = [text for text in cells if not text.isdecimal()]
    return words[0] if words else str(max(map(int, cells)))


def cell(folder: Path, name: str, number: int) -> str:
    """One kind by one decoder."""
    file = folder / name / f"{number}.npy"
    if not file.exists():
        note = folder / name / f"{number}.txt"
        return note.read_text().partition(":")[0] if note.exists() else "-"
    reference = folder / REFERENCE / f"{number}.npy"
    if not reference.exists():
        return "reads"
    return difference(np.load(file), np.load(reference))


def difference(pixels: NDArray[np.generic], reference: NDArray[np.uint8]) -> str:
    """In levels; or that it is another picture, the same one turned, or of other channels."""
    if pixels.shape == reference.shape:
        apart = np.abs(pixels.astype(int) - reference)
        return str(apart.max()) if apart.mean() <= OTHER else "other"
    if pixels.shape[:2] == reference.shape[:2]:
        channels = pixels.shape[2] if pixels.ndim == 3 else 1
        return f"{channels} channel" + ("s" if channels > 1 else "")
    return "turned"


if __name__ == "__main__":
    sys.exit(main())
