"""The documented installation, of Pillow alone: what `make install` builds, in an environment of
its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEADERS = ("/usr/include/webp/decode.h", "/usr/include/x86_64-linux-gnu/tiff.h")
BUILD = """
import sys
sys.path.insert(0, "docker")
import install
python = install.Path(sys.argv[1])
lock = install.LOCK.read_text().splitlines()
simd, numpy = (next(l for l in lock if l.startswith(n)) for n in ("pillow-simd==", "numpy=="))
assert install.pip(python, numpy, ["install", numpy])
assert install.build_pillow(python, simd)
"""
READ = """
import sys
sys.path[:0] = [".", "tests/preprocess"]
from odd_images import odd_images
from gratis.image import Reject, to_image
for name, data in odd_images().items():
    try:
        print(name, *to_image(data, 16).conversions)
    except Reject as reject:
        print(name, reject)
"""


@pytest.mark.prove
@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a compiler")
@pytest.mark.skipif(
    not all(map(os.path.exists, HEADERS)), reason="needs libwebp-dev and libtiff-dev of Debian"
)
def test_webp_and_compressed_tiff_are_read(tmp_path: Path) -> None:
    python = str(tmp_path / "venv" / "bin" / "python")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    subprocess.run([sys.executable, "-c", BUILD, python], cwd=ROOT, check=True)
    done = subprocess.run([python, "-c", READ], cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert len(lines) > 80
    assert [line for line in lines if "multi-frame" in line] == [
        "png animated multi-frame: 2 frames",
        "gif animated multi-frame: 2 frames",
        "tiff pages multi-frame: 2 frames",
        "webp animated multi-frame: 2 frames",
    ]
    assert not [line for line in lines if "unsupported" in line or "undecodable" in line]
