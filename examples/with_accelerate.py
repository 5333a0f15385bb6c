"""accelerate trains a ResNet-50 on shards, and goes on inside an epoch after an interruption.

    accelerate launch examples/with_accelerate.py

The loader is not among what `prepare` gets (which would leave it as it is): its batches are this
process's own already, and on its device. With one process `prepare` and `skip_first_batches` take
it in torch.utils.data.DataLoader(loader, batch_size=None); with several that would share them out
once more."""

from pathlib import Path

import torch
from accelerate import Accelerator
from torch.nn.functional import cross_entropy
from torchvision.models import resnet50

from gratis.torch import DataLoader, ShardDataset


def train(network, dataset, batch_size, *, epochs, folder, save_every=1000):
    """folder: of the checkpoint; what is there is resumed."""
    accelerator = Accelerator()
    loader = DataLoader(dataset, batch_size, drop_last=True, device=accelerator.device)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    model, optimizer = accelerator.prepare(network, optimizer)
    accelerator.register_for_checkpointing(loader)
    if Path(folder).exists():
        accelerator.load_state(folder)
    for epoch in range(loader.loader.epoch, epochs):
        loader.set_epoch(epoch)
        for images, labels in loader:
            loss = cross_entropy(model(images), labels)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            if loader.state_dict()["step"] % save_every == 0:
                accelerator.save_state(folder)


if __name__ == "__main__":
    train(resnet50(), ShardDataset("shards", "train"), 256, epochs=90, folder="checkpoint")
