#!/usr/bin/env bash
# torch 2.13.0 (CPU), Python 3.11, 2026-12-01.
#
# Guess: destroy_process_group ends Gloo's threads once nothing holds the group, and so it does after collectives alone:
#   whether a DistributedDataParallel was made meanwhile makes no difference, once it is deleted and collected.
# Seen: where one was made, its deletion (a weak reference is dead) and destroy_process_group end none of its threads (three);
#   they run on beside the interpreter's end. Without one all end. No backward pass is needed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q numpy==2.4.6 torch==2.13.0
cd "$work"
cat >program.py <<'EOF'
import gc
import os
import sys
import weakref

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel


def threads():
    return len(os.listdir("/proc/self/task"))


torch.set_num_threads(1)
store = dist.HashStore()
before = threads()
dist.init_process_group("gloo", store=store, rank=0, world_size=1)
dist.all_reduce(torch.zeros(2))
if sys.argv[1] == "with":
    model = DistributedDataParallel(torch.nn.Linear(2, 2))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
within = threads() - before
dist.destroy_process_group()
gc.collect()
print(within, threads() - before)
EOF
"$work/venv/bin/python" -c "import torch; print('torch', torch.__version__)"
for made in without with; do
  seen=$(OMP_NUM_THREADS=1 "$work/venv/bin/python" -W ignore program.py "$made" 2>/dev/null)
  echo "$made a DistributedDataParallel: $seen threads before and after destroy_process_group"
  declare "$made=$seen"
done
test "${without##* }" = 0
test "${with##* }" -gt 0
