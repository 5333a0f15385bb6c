#!/usr/bin/env bash
# Ray 2.60.0, Pillow 13.0.0, Python 3.11, 2026-12-01.
#
# Guess: ray.data.read_images without a mode gives a picture's colours: a PNG with a palette as RGB, as datasets for
#   training are read. (Ray's text: the mode is inferred.)
# Seen: it gives the numbers of the palette's entries as an array of height x width, which looks like greyscale: same
#   dtype and shape, other pixels. With size it is resized as such. With mode="RGB" the colours come. No warning.
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

import numpy as np
import PIL
import ray
from PIL import Image

print(f"ray {ray.__version__}, Pillow {PIL.__version__}")
Path("images").mkdir()
colours = np.array([[[250, 0, 0], [0, 250, 0], [0, 0, 250]]], dtype=np.uint8)
picture = Image.fromarray(colours).convert("P", palette=Image.Palette.ADAPTIVE)
assert np.array_equal(np.asarray(picture.convert("RGB")), colours)
picture.save("images/palette.png")

ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
ray.data.DataContext.get_current().enable_progress_bars = False
folder = str(Path("images").resolve())
(plain,) = ray.data.read_images(folder).take_all()
(rgb,) = ray.data.read_images(folder, mode="RGB").take_all()
print("no mode:", plain["image"].shape, plain["image"].tolist())
print("RGB:    ", rgb["image"].shape, rgb["image"].tolist())
if plain["image"].shape != (1, 3) or not np.array_equal(rgb["image"], colours):
    sys.exit("changed: read_images gives a palette's colours")
print("as seen: the palette's entry numbers are given as pixels")
EOF
