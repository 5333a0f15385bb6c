"""Lightning trains a ResNet-50 on shards; its checkpoints hold the loader's place in the epoch."""

import lightning
import torch
from torch.nn.functional import cross_entropy
from torchvision.models import resnet50

from gratis import Loader, LoaderConfig


class Classifier(lightning.LightningModule):
    def __init__(self, network):
        super().__init__()
        self.model = network

    def training_step(self, batch, _):
        return cross_entropy(self.model(batch.images), batch.labels)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)


def train(shards, trainer, config, module, checkpoint=None):
    rank, world = trainer.global_rank, trainer.world_size
    with Loader(shards, "train", config, rank=rank, world_size=world) as loader:
        trainer.fit(module, loader, ckpt_path=checkpoint)


if __name__ == "__main__":
    config = LoaderConfig.imagenet(batch_size=256, remainder="drop")
    train("shards", lightning.Trainer(max_epochs=90), config, Classifier(resnet50()))
