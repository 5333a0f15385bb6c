#!/usr/bin/env bash
# litdata 0.2.76, torch 2.13.0, Python 3.11, 2026-12-01.
#
# Guess: a StreamingDataLoader that loads the state of one with another batch size goes on behind the last sample that was
#   taken, or refuses: the state holds the number of samples.
# Seen: it goes on at the last multiple of its own batch size: after 20 samples in batches of 5, a loader with batches of 3
#   begins at sample 18, and two samples come twice in the epoch; up to one less than a batch, in general. No warning.
#   Another number of workers (2 to 3, to 0, from 0) resumes exactly.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q numpy==2.4.6 torch==2.13.0 litdata==0.2.76
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import importlib.metadata
import sys

from litdata import StreamingDataLoader, StreamingDataset
from litdata.streaming import Cache

for package in ("litdata", "torch"):
    print(package, importlib.metadata.version(package))
cache = Cache("data", chunk_size=8)
for sample in range(50):
    cache[sample] = sample
cache.done()
cache.merge()


def loader(size):
    return StreamingDataLoader(StreamingDataset("data"), batch_size=size, num_workers=0)


twice = {}
for size in (2, 3, 4, 5, 9, 10):
    first = loader(5)
    batches = iter(first)
    taken = [int(sample) for _ in range(4) for sample in next(batches)]
    second = loader(size)
    second.load_state_dict(first.state_dict())
    rest = [int(sample) for batch in second for sample in batch]
    assert sorted(set(taken + rest)) == list(range(50)), "none is lost"
    twice[size] = sorted(set(taken) & set(rest))
    print(f"20 samples in batches of 5, then batches of {size}: begins at {rest[0]}, twice {twice[size]}")
if twice != {2: [], 3: [18, 19], 4: [], 5: [], 9: [18, 19], 10: []}:
    sys.exit("changed: another batch size resumes otherwise")
print("as seen: samples come twice where the new batch size does not divide what was taken")
EOF
