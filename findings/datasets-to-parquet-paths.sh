#!/usr/bin/env bash
# Hugging Face datasets 5.2.0, Pillow 13.0.0, pyarrow 26.0.1, Python 3.11, 2026-12-01.
#
# Guess: Dataset.to_parquet of an image column makes a file that can be given away, as save_to_disk and push_to_hub do:
#   the images' bytes are in it.
# Seen: with a data set of image files (load_dataset("imagefolder"), or paths cast to Image) the column's bytes are all
#   null, and its paths are the absolute paths of the machine that wrote it. No warning. It reads well there until the
#   files move; then FileNotFoundError on the first image. save_to_disk of the same data set embeds the bytes.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q datasets==5.2.0 pillow==13.0.0 pyarrow==26.0.1
cd "$work"
HF_HOME="$work/hub" HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1 "$work/venv/bin/python" - <<'EOF'
import os
import shutil
import sys
from pathlib import Path

import datasets
import PIL
import pyarrow
import pyarrow.parquet
from PIL import Image

print(f"datasets {datasets.__version__}, Pillow {PIL.__version__}, pyarrow {pyarrow.__version__}")
datasets.disable_progress_bars()
Path("images").mkdir()
for shade in range(3):
    Image.new("RGB", (32, 24), (80 * shade, 0, 0)).save(f"images/{shade}.jpg")

data = datasets.load_dataset("imagefolder", data_dir="images", split="train")
data.to_parquet("out.parquet")
data.save_to_disk("disk")
rows = pyarrow.parquet.read_table("out.parquet").column("image").to_pylist()
for row in rows:
    where = "absolute" if os.path.isabs(row["path"]) else "relative"
    print(f"parquet: bytes {row['bytes']!r:.8}, path {where}, .../{Path(row['path']).name}")

shutil.rmtree("images")
print("save_to_disk, images gone:", datasets.load_from_disk("disk")[0]["image"].size)
try:
    back = datasets.load_dataset("parquet", data_files="out.parquet", split="train")[0]["image"].size
except FileNotFoundError:
    back = "FileNotFoundError"
print("parquet, images gone:", back)
if back != "FileNotFoundError" or any(row["bytes"] is not None for row in rows):
    sys.exit("changed: to_parquet embeds the images' bytes")
print("as seen: to_parquet keeps paths, not bytes")
EOF
