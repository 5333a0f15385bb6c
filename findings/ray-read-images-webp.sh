#!/usr/bin/env bash
# Ray 2.60.0, Pillow 13.0.0, Python 3.11, 2026-12-01.
#
# Guess: ray.data.read_images of a folder reads what Pillow, which it decodes with, reads, or says what it leaves out.
# Seen: it goes by a list of file extensions that is from before WebP, AVIF and JPEG 2000, and leaves such files out
#   without a word: a folder with six pictures gives three rows. Only a folder with none of the listed ones is an error.
#   With file_extensions=None all six are read.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q "ray[data]==2.60.0" pillow==13.0.0
cd "$work"
RAY_USAGE_STATS_ENABLED=0 "$work/venv/bin/python" -W ignore - <<'EOF'
import logging
import sys
from pathlib import Path

import PIL
import ray
from PIL import Image

print(f"ray {ray.__version__}, Pillow {PIL.__version__}")
Path("images").mkdir()
for extension in ("png", "jpg", "gif", "webp", "avif", "jp2"):
    Image.new("RGB", (8, 8), (250, 0, 0)).save(f"images/{extension}.{extension}")

ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
ray.data.DataContext.get_current().enable_progress_bars = False
folder = str(Path("images").resolve())


def names(**options):
    rows = ray.data.read_images(folder, include_paths=True, mode="RGB", **options).take_all()
    return sorted(Path(row["path"]).name for row in rows)


default, every = names(), names(file_extensions=None)
print("default:             ", default)
print("file_extensions=None:", every)
if default != ["gif.gif", "jpg.jpg", "png.png"] or len(every) != 6:
    sys.exit("changed: read_images chooses files otherwise")
print("as seen: WebP, AVIF and JPEG 2000 are left out without a word")
EOF
