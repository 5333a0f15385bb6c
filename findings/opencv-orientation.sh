#!/usr/bin/env bash
# OpenCV 5.0.0.93 (opencv-python-headless), Pillow 13.0.0, Python 3.11, 2026-12-01.
#
# Guess: cv2.imdecode turns a picture by its orientation, unless it gets IMREAD_UNCHANGED or IMREAD_IGNORE_ORIENTATION, and
#   the format of the file makes no difference.
# Seen: so it is for JPEG, PNG and WebP. A TIFF is turned with all three; no flag gives it as it is stored. An AVIF, whose
#   rotation is a property of the container that a reader has to apply, is turned with none. Pillow wrote all five from
#   one picture of 6 x 4 pixels on its side, and with ImageOps.exif_transpose makes each of them 4 x 6.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q numpy==2.4.6 pillow==13.0.0 opencv-python-headless==5.0.0.93
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import importlib.metadata
import io
import sys

import cv2
import numpy as np
from PIL import Image, ImageOps

for package in ("opencv-python-headless", "pillow"):
    print(package, importlib.metadata.version(package))
exif = Image.Exif()
exif[0x0112] = 6  # on its side
FLAGS = {
    "IMREAD_COLOR": cv2.IMREAD_COLOR,
    "IMREAD_UNCHANGED": cv2.IMREAD_UNCHANGED,
    "IMREAD_IGNORE_ORIENTATION": cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION,
}
seen = {}
for form in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF"):
    file = io.BytesIO()
    orientation = {"tiffinfo": {0x0112: 6}} if form == "TIFF" else {"exif": exif}
    Image.new("RGB", (6, 4), (250, 0, 0)).save(file, form, **orientation)
    assert ImageOps.exif_transpose(Image.open(file)).size == (4, 6), form
    data = np.frombuffer(file.getvalue(), np.uint8)
    seen[form] = [cv2.imdecode(data, flag).shape[:2] == (6, 4) for flag in FLAGS.values()]
    turned = [name for name, is_turned in zip(FLAGS, seen[form]) if is_turned]
    print(f"{form}: turned with {', '.join(turned) or 'none'}")
usual = dict.fromkeys(("JPEG", "PNG", "WEBP"), [True, False, False])
if seen != usual | {"TIFF": [True, True, True], "AVIF": [False, False, False]}:
    sys.exit("changed: OpenCV turns otherwise")
print("as seen: TIFF is always turned, AVIF never")
EOF
