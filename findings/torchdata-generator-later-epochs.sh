#!/usr/bin/env bash
# torchdata 0.11.0, torch 2.13.0, Python 3.11, 2026-12-01.
#
# Guess: StatefulDataLoader(shuffle=True, generator=a generator with a seed), the way that PyTorch's notes on
#   reproducibility show, resumes to the run that was stopped: the rest of this epoch, and the epochs after it.
# Seen: without workers the rest of the epoch is right and every later epoch has another order than the run that was
#   not stopped; a state taken between two epochs is wrong from its first batch. Without the generator argument the same
#   program resumes exactly, although the global seed is another one then, and so it does with two workers or with
#   torchdata's own RandomSampler and the same generator.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q numpy==2.4.6 torch==2.13.0 torchdata==0.11.0
"$work/venv/bin/python" -W ignore - <<'EOF'
import importlib.metadata
import sys

import torch
from torchdata.stateful_dataloader import StatefulDataLoader
from torchdata.stateful_dataloader.sampler import RandomSampler

for package in ("torchdata", "torch"):
    print(package, importlib.metadata.version(package))


def seeded():
    return torch.Generator().manual_seed(0)


LOADERS = {
    "generator": lambda: StatefulDataLoader(
        range(10), batch_size=2, shuffle=True, generator=seeded()
    ),
    "no generator": lambda: StatefulDataLoader(range(10), batch_size=2, shuffle=True),
    "generator, 2 workers": lambda: StatefulDataLoader(
        range(10), batch_size=2, shuffle=True, generator=seeded(), num_workers=2
    ),
    "torchdata's sampler": lambda: StatefulDataLoader(
        range(10), batch_size=2, sampler=RandomSampler(range(10), generator=seeded())
    ),
}


def epoch(loader):
    return torch.cat([torch.empty(0, dtype=torch.int64), *loader]).tolist()


def equal_after_resume(make, taken):
    """Whether the rest of epoch 1, and epoch 2, are those of the run that was not stopped."""
    torch.manual_seed(1)
    loader = make()
    whole = [epoch(loader) for _ in range(3)]
    torch.manual_seed(1)
    loader = make()
    epoch(loader)
    if taken:
        batches = iter(loader)
        for _ in range(taken):
            next(batches)
    state = loader.state_dict()
    torch.manual_seed(2)  # a new process
    loader = make()
    loader.load_state_dict(state)
    return epoch(loader) == whole[1][2 * taken :], epoch(loader) == whole[2]


seen = {}
for name, make in LOADERS.items():
    seen[name] = [equal_after_resume(make, taken) for taken in (0, 3)]
    print(f"{name:21} stopped between epochs: (rest equal, next epoch equal) = {seen[name][0]}, "
          f"after 3 batches: {seen[name][1]}")
exact = [(True, True), (True, True)]
if seen != {**dict.fromkeys(LOADERS, exact), "generator": [(False, False), (True, False)]}:
    sys.exit("changed: a loader with a generator resumes otherwise")
print("as seen: with a generator and no workers, later epochs are not those of the run that was stopped")
EOF
