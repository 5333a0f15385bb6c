#!/usr/bin/env bash
# Ray 2.60.0, webdataset 1.0.2, Pillow 13.0.0, Python 3.11, 2026-12-01.
#
# Guess: ray.data.read_webdataset reads an archive as the webdataset library does, which takes extensions in small letters:
#   a.PNG is the field png, decoded, as is the JPG in capitals that many cameras write.
# Seen: Ray keeps the letters: the column is PNG, and in it are the file's bytes, not decoded, without a word. An archive
#   with both spellings cannot be read at all: a ValueError about casting the column png to a tensor.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q "ray[data]==2.60.0" webdataset==1.0.2 pillow==13.0.0
cd "$work"
RAY_USAGE_STATS_ENABLED=0 "$work/venv/bin/python" -W ignore - <<'EOF'
import io
import logging
import sys
import tarfile
from pathlib import Path

import ray
import webdataset
from PIL import Image

print(f"ray {ray.__version__}, webdataset {webdataset.__version__}")
png = io.BytesIO()
Image.new("RGB", (8, 8), (250, 0, 0)).save(png, "PNG")


def archive(path, names):
    with tarfile.open(path, "w") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(png.getvalue())
            tar.addfile(member, io.BytesIO(png.getvalue()))
    return str(Path(path).resolve())


def kinds(sample):
    return {name: type(sample[name]).__name__ for name in sample if not name.startswith("__")}


def library(path):
    return [kinds(sample) for sample in webdataset.WebDataset(path, shardshuffle=False).decode("rgb8")]


def by_ray(path):
    try:
        return [kinds(row) for row in ray.data.read_webdataset(path).take_all()]
    except ValueError:
        return "ValueError"


ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
ray.data.DataContext.get_current().enable_progress_bars = False
capitals, both = archive("capitals.tar", ["a.PNG"]), archive("both.tar", ["a.png", "b.PNG"])
seen = [(library(path), by_ray(path)) for path in (capitals, both)]
for name, (first, second) in zip(("a.PNG", "a.png and b.PNG"), seen):
    print(f"{name}: webdataset {first}, Ray {second}")
decoded = {"png": "ndarray"}
if seen != [([decoded], [{"PNG": "bytes"}]), ([decoded] * 2, "ValueError")]:
    sys.exit("changed: an extension in capitals is read otherwise")
print("as seen: Ray does not decode a picture whose extension is in capitals")
EOF
