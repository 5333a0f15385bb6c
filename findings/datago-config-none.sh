#!/usr/bin/env bash
# datago 2026.10.1, Pillow 13.0.0, Python 3.11, 2026-12-01.
#
# Guess: a configuration that lacks a field, or names a folder that does not exist, raises when DatagoClient is made.
# Seen: the client is made. Without source_config, limit or samples_buffer_size there is one line in the log on standard
#   error, with a missing folder none, and get_sample gives None, which is also what it gives at the end of the data: a
#   training loop sees an epoch without samples. Without prefetch_buffer_size it works, with a default.
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
for shade in range(6):
    Image.new("RGB", (20, 10), (40 * shade, 0, 0)).save(f"images/{shade}.png")
source = {"root_path": "images", "rank": 0, "world_size": 1, "random_sampling": False}
config = {"source_type": "file", "source_config": source, "limit": 6}
config |= {"prefetch_buffer_size": 2, "samples_buffer_size": 2}


def samples(config):
    client = datago.DatagoClient(json.dumps(config))
    return sum(client.get_sample() is not None for _ in range(8))


seen = {"whole": samples(config)}
for name in ("prefetch_buffer_size", "source_config", "limit", "samples_buffer_size"):
    seen[f"no {name}"] = samples({key: value for key, value in config.items() if key != name})
seen["no such folder"] = samples(config | {"source_config": source | {"root_path": "nowhere"}})
for name, count in seen.items():
    print(f"{name:23} {count} samples, no exception")
if list(seen.values()) != [6, 6, 0, 0, 0, 0]:
    sys.exit("changed: datago takes an incomplete configuration otherwise")
print("as seen: an incomplete configuration is an empty data set")
EOF
