"""JAX trains a linear classifier on shards: `device_put` of a batch as NumPy sees it, which on the
CPU copies nothing, so that the array is the batch itself."""

import jax
import jax.numpy as jnp

from gratis.torch import DataLoader, LoaderConfig, ShardDataset


def batches(shards, batch_size, crop=224):
    """(images [b,crop,crop,3], labels [b]) of one epoch after the other, as JAX's arrays."""
    config = LoaderConfig.imagenet(crop=crop, layout="nhwc")
    loader = DataLoader(ShardDataset(shards, "train", config), batch_size, drop_last=True)
    while True:
        for images, labels in loader:
            yield jax.device_put((images.numpy(), labels.numpy()))


def loss(weights, images, labels):
    logits = images.reshape(len(images), -1) @ weights
    return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(labels)), labels])


@jax.jit
def step(weights, images, labels):
    value, gradient = jax.value_and_grad(loss)(weights, images, labels)
    return weights - 1e-4 * gradient, value


def train(shards, classes, steps, batch_size=256, crop=224):
    """The loss of each step."""
    weights, losses = jnp.zeros((crop * crop * 3, classes)), []
    for _, (images, labels) in zip(range(steps), batches(shards, batch_size, crop), strict=False):
        weights, value = step(weights, images, labels)
        losses.append(float(value))
    return losses


if __name__ == "__main__":
    print(train("shards", classes=1000, steps=5000)[::100])
