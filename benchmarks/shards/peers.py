"""Other tools at the same work, for `gratis bench shards`: runs alone, under an interpreter that
has them.

    PYTHON benchmarks/shards/peers.py TOOL FOLDER OUT WORKERS

Every picture of FOLDER/train/<class>/ becomes a 256x256 JPEG (quality 95, 4:2:0) of its central
square in tars under OUT. The tools: pillow (Lanczos from the box, as most scripts do it), opencv
(INTER_AREA), libvips (thumbnail), and img2dataset (center_crop). None of them computes statistics,
decodes what it wrote, or publishes atomically. Imports nothing of this project. Exits with 3 where
the tool is not installed."""

from __future__ import annotations

import importlib.util
import io
import os
import sys
import tarfile
from collections.abc import Callable
from multiprocessing import Pool
from pathlib import Path

SIZE, QUALITY = 256, 95
MODULES = {"pillow": "PIL", "opencv": "cv2", "libvips": "pyvips", "img2dataset": "img2dataset"}


def by_pillow(data: bytes) -> bytes:
    from PIL import Image

    picture = Image.open(io.BytesIO(data)).convert("RGB")
    width, height = picture.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    small = picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS, box=box)
    file = io.BytesIO()
    small.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def by_opencv(data: bytes) -> bytes:
    import cv2
    import numpy as np

    cv2.setNumThreads(1)
    # flags as an int: orientation is ignored, as it is here
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    assert picture is not None
    height, width = picture.shape[:2]
    side = min(width, height)
    top, left = (height - side) // 2, (width - side) // 2
    method = cv2.INTER_AREA if side > SIZE else cv2.INTER_CUBIC
    square = picture[top : top + side, left : left + side]
    small = cv2.resize(square, (SIZE, SIZE), interpolation=method)
    encoded: bytes = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()
    return encoded


def by_libvips(data: bytes) -> bytes:
    import pyvips

    options = {"height": SIZE, "crop": "centre", "size": "both", "no_rotate": True}
    picture = pyvips.Image.thumbnail_buffer(data, SIZE, **options)
    if picture.interpretation != "srgb":
        picture = picture.colourspace("srgb")
    encoded: bytes = picture.jpegsave_buffer(Q=QUALITY, subsample_mode="on", strip=True)
    return encoded


TOOLS: dict[str, Callable[[bytes], bytes]]
TOOLS = {"pillow": by_pillow, "opencv": by_opencv, "libvips": by_libvips}


def part(job: tuple[str, list[Path], Path]) -> None:
    tool, paths, out = job
    with tarfile.open(out, "w", format=tarfile.USTAR_FORMAT) as tar:
        for path in paths:
            for extension, data in (("jpg", TOOLS[tool](path.read_bytes())), ("cls", b"0")):
                info = tarfile.TarInfo(f"{path.stem}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def by_img2dataset(paths: list[Path], out: Path, workers: int) -> None:
    from img2dataset import download

    urls = out.parent / f"{out.name}.txt"
    urls.write_text("".join(f"file://{path.absolute()}\n" for path in paths))
    download(
        url_list=str(urls),
        output_folder=str(out),
        image_size=SIZE,
        resize_mode="center_crop",
        encode_quality=QUALITY,
        processes_count=workers,
        thread_count=8,
        output_format="webdataset",
        number_sample_per_shard=250,
        compute_hash=None,
        extract_exif=False,
        enable_wandb=False,
        disallowed_header_directives=[],
        downscale_interpolation="area",
        upscale_interpolation="lanczos",
    )


def main(tool: str, folder: str, out: str, workers: int) -> int:
    if importlib.util.find_spec(MODULES[tool]) is None:
        return 3
    os.environ["VIPS_CONCURRENCY"] = "1"
    paths, root = sorted(Path(folder).glob("train/*/*")), Path(out)
    root.mkdir(parents=True)
    if tool == "img2dataset":
        by_img2dataset(paths, root, workers)
        return 0
    parts = workers * 4  # smaller than a worker's share, so that none ends early
    with Pool(workers) as pool:
        jobs = [(tool, paths[k::parts], root / f"{k:05d}.tar") for k in range(parts)]
        pool.map(part, jobs, chunksize=1)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])))
