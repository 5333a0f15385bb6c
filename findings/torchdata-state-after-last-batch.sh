#!/usr/bin/env bash
# torchdata 0.11.0, torch 2.13.0, Python 3.11, 2026-12-01.
#
# Guess: a state of StatefulDataLoader taken after the last batch of an epoch means the same as one taken when the loop
#   has ended: the next epoch is due.
# Seen: they differ. Taken after the last batch (a checkpoint on the last step inside the loop), the loader that loads it
#   gives an empty epoch first and whole ones after it; taken after StopIteration, a whole one at once. A schedule that
#   counts epochs is one behind, with 0 and with 2 workers alike.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q numpy==2.4.6 torch==2.13.0 torchdata==0.11.0
"$work/venv/bin/python" -W ignore - <<'EOF'
import importlib.metadata
import sys

from torchdata.stateful_dataloader import StatefulDataLoader

for package in ("torchdata", "torch"):
    print(package, importlib.metadata.version(package))


def resumed(state, workers):
    loader = StatefulDataLoader(range(10), batch_size=2, num_workers=workers)
    loader.load_state_dict(state)
    return [len(list(loader)) for _ in range(3)]


seen = set()
for workers in (0, 2):
    loader = StatefulDataLoader(range(10), batch_size=2, num_workers=workers)
    batches = iter(loader)
    for _ in range(5):
        next(batches)
    inside = resumed(loader.state_dict(), workers)
    assert next(batches, None) is None
    behind = resumed(loader.state_dict(), workers)
    print(f"{workers} workers, batches of three epochs: state after the last batch {inside}, "
          f"after the loop {behind}")
    seen.add((tuple(inside), tuple(behind)))
if seen != {((0, 5, 5), (5, 5, 5))}:
    sys.exit("changed: a state after the last batch resumes otherwise")
print("as seen: a state taken after the last batch resumes to an empty epoch")
EOF
