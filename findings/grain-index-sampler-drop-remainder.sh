#!/usr/bin/env bash
# grain 0.2.18, Python 3.11, 2026-12-01.
#
# Guess: ShardOptions(drop_remainder=False) gives the records that are left over to the first shards, as its text says:
#   103 records over 4 shards are 26 + 26 + 26 + 25, every record once.
# Seen: IndexSampler gives each shard 25 whatever drop_remainder says, and three records are in no shard. A warning
#   about dropped examples is logged for drop_remainder=True (one for each shard) and none for False.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q grain==0.2.18
"$work/venv/bin/python" - <<'EOF'
import importlib.metadata
import sys

import grain

print("grain", importlib.metadata.version("grain"))
records = list(range(103))


def shards(drop_remainder, shuffle):
    for shard in range(4):
        options = grain.sharding.ShardOptions(shard, 4, drop_remainder=drop_remainder)
        sampler = grain.samplers.IndexSampler(
            num_records=103, shard_options=options, shuffle=shuffle, num_epochs=1, seed=0
        )
        yield list(grain.DataLoader(data_source=records, sampler=sampler, worker_count=0))


lost = {}
for drop_remainder in (True, False):
    for shuffle in (False, True):
        taken = list(shards(drop_remainder, shuffle))
        missing = sorted(set(records).difference(*taken))
        lost[drop_remainder, shuffle] = len(missing)
        sizes = [len(shard) for shard in taken]
        print(f"drop_remainder={drop_remainder}, shuffle={shuffle}: {sizes}, missing {missing}")
if set(lost.values()) != {3}:
    sys.exit("changed: IndexSampler heeds drop_remainder")
print("as seen: three records are lost with drop_remainder=False too")
EOF
