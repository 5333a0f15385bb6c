#!/usr/bin/env bash
# TensorFlow 2.21.0 (its CPU package), Python 3.11, 2026-12-01.
#
# Guess: tf.io.decode_and_crop_jpeg gives the pixels of decode_jpeg, cropped; its text calls them equivalent.
# Seen: where chroma has half the resolution, as in most JPEGs, the outermost rows and columns of the crop are other pixels,
#   here by up to 21 levels of 255, and with dct_method="INTEGER_ACCURATE" too: chroma is smoothed as if the picture ended
#   at the crop. Inside they are equal, and everywhere where chroma has full resolution.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q tensorflow-cpu==2.21.0
cd "$work"
TF_CPP_MIN_LOG_LEVEL=3 "$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import numpy as np
import tensorflow as tf

print("tensorflow", tf.__version__)
small = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.float32)
large = tf.image.resize(small, (128, 128), method="bicubic")
picture = tf.cast(tf.clip_by_value(large, 0, 255), tf.uint8)
seen = []
for subsampled in (True, False):
    data = tf.io.encode_jpeg(picture, quality=90, chroma_downsampling=subsampled)
    for method in ("INTEGER_FAST", "INTEGER_ACCURATE"):
        whole = tf.io.decode_jpeg(data, dct_method=method).numpy().astype(int)
        crop = tf.io.decode_and_crop_jpeg(data, [16, 16, 64, 64], dct_method=method).numpy()
        difference = np.abs(crop - whole[16:80, 16:80]).max(axis=2)
        inside, all_of_it = int(difference[1:-1, 1:-1].max()), int(difference.max())
        chroma = "half" if subsampled else "full"
        print(f"chroma {chroma}, {method}: inside {inside}, with the outermost rows and columns {all_of_it}")
        seen.append((inside, all_of_it > 8))
if seen != [(0, True), (0, True), (0, False), (0, False)]:
    sys.exit("changed: decode_and_crop_jpeg crops otherwise")
print("as seen: the outermost rows and columns of a crop are other pixels")
EOF
