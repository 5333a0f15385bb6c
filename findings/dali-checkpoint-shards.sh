#!/usr/bin/env bash
# DALI 2.4.0 (nvidia-dali-cuda130), torch 2.13.0, Python 3.11, 2026-12-01.
#
# Guess: a checkpoint of DALIGenericIterator that is loaded where the reader has another number of shards (a node is lost,
#   or there is one more) is refused, for it belongs to one shard of so many; or the rest of the epoch is shared out anew.
# Seen: it is taken without an error or a warning, and the epoch is wrong: from 2 shards to 1, or from 1 to 2, part of the
#   samples never come and others come twice. With the same number of shards every sample comes once.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q numpy==2.4.6 torch==2.13.0 nvidia-dali-cuda130==2.4.0
cd "$work"
"$work/venv/bin/python" -W error - <<'EOF'
import importlib.metadata
import sys
from pathlib import Path

from nvidia.dali import fn, pipeline_def
from nvidia.dali.plugin.pytorch import DALIGenericIterator, LastBatchPolicy

for package in ("nvidia-dali-cuda130", "torch"):
    print(package, importlib.metadata.version(package))
SAMPLES, BATCH = 200, 8
Path("files").mkdir()
PATHS = [f"files/{sample:03d}" for sample in range(SAMPLES)]
for path in PATHS:
    Path(path).write_bytes(b"x")


@pipeline_def(batch_size=BATCH, num_threads=1, device_id=None, seed=1, enable_checkpointing=True)
def graph(shard, shards):
    _, label = fn.readers.file(
        files=PATHS, labels=list(range(SAMPLES)), shard_id=shard, num_shards=shards, name="reader",
        random_shuffle=True, initial_fill=32,
    )
    return label


def iterator(shard, shards, checkpoint=None):
    return DALIGenericIterator(
        [graph(shard, shards, checkpoint=checkpoint)], ["label"], reader_name="reader",
        last_batch_policy=LastBatchPolicy.PARTIAL,
    )


def labels(batch):
    return batch[0]["label"].ravel().tolist()


def epoch(before, after):
    """Five batches on each of `before` shards, the rest of the epoch on `after`, from shard 0's checkpoint where
    their numbers differ."""
    seen, checkpoints = [], []
    for shard in range(before):
        first = iterator(shard, before)
        for _ in range(5):
            seen += labels(next(first))
        checkpoints.append(first.checkpoints()[0])
    for shard in range(after):
        for batch in iterator(shard, after, checkpoints[shard if before == after else 0]):
            seen += labels(batch)
    return SAMPLES - len(set(seen)), len(seen) - len(set(seen))


found = {}
for before, after in ((1, 1), (2, 2), (2, 1), (1, 2)):
    found[before, after] = epoch(before, after)
    print(f"{before} to {after} shards: {found[before, after][0]} samples missing, {found[before, after][1]} twice")
if any(found[same, same] != (0, 0) for same in (1, 2)) or not all(found[2, 1] + found[1, 2]):
    sys.exit("changed: another number of shards is refused, or resumes otherwise")
print("as seen: a checkpoint of another number of shards is taken, and the epoch loses samples")
EOF
