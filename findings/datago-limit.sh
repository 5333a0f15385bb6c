#!/usr/bin/env bash
# datago 2026.10.1, Pillow 13.0.0, Python 3.11, 2026-12-01.
#
# Guess: "limit": n in datago's configuration gives at most n samples, and n where there are more.
# Seen: it gives n + 1 where there are that many, and n + 2 for a limit of 50, whatever the sizes of the buffers. A limit
#   that equals the number of files gives each once.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q pillow==13.0.0 datago==2026.10.1
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import importlib.metadata
import json
import sys
from pathlib import Path

import datago
from PIL import Image

print("datago", importlib.metadata.version("datago"))
Path("images").mkdir()
for shade in range(200):
    Image.new("RGB", (20, 10), (shade, 0, 0)).save(f"images/{shade}.png")
source = {"root_path": "images", "rank": 0, "world_size": 1, "random_sampling": False}


def samples(limit, buffers):
    config = {"source_type": "file", "source_config": source, "limit": limit}
    config |= {"prefetch_buffer_size": buffers, "samples_buffer_size": buffers}
    client = datago.DatagoClient(json.dumps(config))
    names = []
    while (sample := client.get_sample()) is not None:
        names.append(sample.id)
    assert len(set(names)) == len(names)
    return len(names)


seen = {limit: [samples(limit, buffers) for buffers in (1, 2, 32)] for limit in (1, 2, 5, 10, 50, 200)}
for limit, counts in seen.items():
    print(f"limit {limit} of 200: {counts} samples with buffers of 1, 2, 32")
if seen.pop(200) != [200] * 3 or any(count <= limit for limit in seen for count in seen[limit]):
    sys.exit("changed: datago's limit is kept")
print("as seen: a limit of n gives more than n samples")
EOF
