#!/usr/bin/env bash
# grain 0.2.18, Python 3.11, 2026-12-01.
#
# Guess: grain.experimental.WindowShuffleMapDataset permutes inside each window, the shorter last one too: every record
#   once in an epoch. Its text says one index to one index, none repeated in a window.
# Seen: where the window does not divide the length, the last window is permuted as if it were full. Indices that then
#   lie past the end wrap to the first records: some of the last records are missing, some of the first come twice, the
#   count is right. No warning. Which ones is fixed by the seed. WindowShuffleIterDataset gives every record once.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q grain==0.2.18
"$work/venv/bin/python" - 2>"$work/log" <<'EOF'
import importlib.metadata
import sys

import grain

print("grain", importlib.metadata.version("grain"))
records = list(range(25))
source = grain.MapDataset.source(records)
wrong = []
for window in (5, 7, 10, 25):
    order = list(grain.experimental.WindowShuffleMapDataset(source, window_size=window, seed=0))
    missing = sorted(set(records) - set(order))
    twice = sorted({record for record in order if order.count(record) > 1})
    print(f"window {window}: {len(order)} of 25 records, missing {missing}, twice {twice}")
    wrong.append(bool(missing or twice))
parts = grain.experimental.WindowShuffleIterDataset(source.to_iter_dataset(), window_size=10, seed=0)
exact = sorted(parts) == records
print("WindowShuffleIterDataset, window 10: every record once:", exact)
if wrong != [False, True, True, False] or not exact:
    sys.exit("changed: the shorter last window is shuffled otherwise")
print("as seen: the shorter last window loses records and repeats the first ones")
EOF
