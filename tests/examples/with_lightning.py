"""Lightning trains a ResNet on our shards: the loader stands where a DataLoader would, its place in the checkpoints."""

import lightning
import torch
from resnet import resnet18
from torch.nn.functional import cross_entropy

from loader import Loader, LoaderConfig


class Classifier(lightning.LightningModule):
    def __init__(self, classes, width=64):
        super().__init__()
        self.model = resnet18(classes, width)

    def training_step(self, batch, _):
        return cross_entropy(self.model(batch.images / 58), batch.labels)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def train(shards, trainer, config, module, checkpoint=None):
    with Loader(shards, "train", config, rank=trainer.global_rank, world_size=trainer.world_size) as loader:
        trainer.fit(module, loader, ckpt_path=checkpoint)


if __name__ == "__main__":
    train("shards", lightning.Trainer(max_epochs=90), LoaderConfig(batch_size=256, remainder="drop"), Classifier(1000))
