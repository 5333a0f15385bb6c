#!/usr/bin/env bash
# Lightning 2.6.6, torch 2.13.0, Python 3.11, 2026-12-01.
#
# Guess: trainer.save_checkpoint after a fit that max_steps stopped inside an epoch, and the file that ModelCheckpoint
#   wrote at the same step, resume alike: the same step, the same epoch.
# Seen: the step is the same, the epoch is not. By hand the epoch counts as done: 4 of 10 batches were taken, and the run
#   that resumes is in epoch 1. From ModelCheckpoint it is in epoch 0. (Batches begin at the first in both: a plain
#   DataLoader has no state.) Learning rates and samplers that go by the epoch part here.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q numpy==2.4.6 torch==2.13.0 lightning==2.6.6
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import importlib.metadata
import logging
import sys

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
for package in ("lightning", "torch"):
    print(package, importlib.metadata.version(package))


class Model(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.epochs = []

    def training_step(self, batch, index):
        self.epochs.append(self.trainer.current_epoch)
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(steps, callbacks=(), checkpoint=None):
    trainer = lightning.Trainer(
        max_steps=steps, max_epochs=-1, accelerator="cpu", logger=False, callbacks=list(callbacks),
        enable_checkpointing=bool(callbacks), enable_progress_bar=False, enable_model_summary=False,
    )
    model = Model()
    batches = torch.utils.data.DataLoader(torch.ones(10, 1), batch_size=1)
    trainer.fit(model, batches, ckpt_path=checkpoint)
    return trainer, model.epochs


callback = ModelCheckpoint(dirpath=".", filename="callback", every_n_train_steps=4)
trainer, epochs = fit(4, [callback])
trainer.save_checkpoint("hand.ckpt")
print("before: epoch of each step", epochs)
seen = {}
for name in ("callback", "hand"):
    step = torch.load(f"{name}.ckpt", weights_only=True)["global_step"]
    seen[name] = step, fit(6, checkpoint=f"{name}.ckpt")[1]
    print(f"{name}: saved at step {step}, epoch of each step after resuming {seen[name][1]}")
if seen != {"callback": (4, [0, 0]), "hand": (4, [1, 1])}:
    sys.exit("changed: the two checkpoints resume otherwise")
print("as seen: the checkpoint saved by hand counts the epoch as done")
EOF
