"""Keras 3 on PyTorch trains a ResNet-50 on shards: `fit` takes the loader in torch's DataLoader."""

import os

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import torch

from gratis.torch import DataLoader, LoaderConfig, ShardDataset


def loaders(shards, batch_size, crop=224):
    """Training and validation, [b,crop,crop,3] as Keras expects images."""
    training = LoaderConfig.imagenet(crop=crop, layout="nhwc")
    evaluation = LoaderConfig.evaluation(crop=crop, layout="nhwc")
    splits = (ShardDataset(shards, "train", training), ShardDataset(shards, "val", evaluation))
    ours = (DataLoader(split, batch_size) for split in splits)
    return tuple(torch.utils.data.DataLoader(each, batch_size=None) for each in ours)


def train(model, shards, batch_size, epochs, crop=224):
    training, validation = loaders(shards, batch_size, crop)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1, 0.9), loss, metrics=["accuracy"])
    return model.fit(training, validation_data=validation, epochs=epochs, shuffle=False)


if __name__ == "__main__":
    network = keras.applications.ResNet50(weights=None, classifier_activation=None)
    train(network, "shards", 256, epochs=90)
