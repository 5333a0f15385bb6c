"""Lightning trains a ResNet-50 on shards; its checkpoints hold the loader's place in the epoch."""

import lightning
import torch
from torch.nn.functional import cross_entropy
from torchvision.models import resnet50

from gratis.torch import DataLoader, ShardDataset


class Classifier(lightning.LightningModule):
    def __init__(self, network):
        super().__init__()
        self.model = network

    def training_step(self, batch, _):
        images, labels = batch
        return cross_entropy(self.model(images), labels)

    def validation_step(self, batch, _):
        images, labels = batch
        right = (self.model(images).argmax(1) == labels).float().mean()
        self.log("top1", right, batch_size=len(labels), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)


class Shards(lightning.LightningDataModule):
    """Loaders are made in its hooks: there each process knows its rank, and its device."""

    def __init__(self, train, val, batch_size):
        super().__init__()
        self.train, self.val, self.batch_size = train, val, batch_size

    def train_dataloader(self):
        device = self.trainer.strategy.root_device
        return DataLoader(self.train, self.batch_size, drop_last=True, device=device)

    def val_dataloader(self):
        return DataLoader(self.val, self.batch_size, device=self.trainer.strategy.root_device)


if __name__ == "__main__":
    splits = ShardDataset("shards", "train"), ShardDataset("shards", "val")
    data = Shards(*splits, batch_size=256)
    lightning.Trainer(max_epochs=90).fit(Classifier(resnet50()), data)
