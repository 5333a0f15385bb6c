"""The network as others run it: plain images in, logits out, and the state dict by torchvision's
names."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gratis.errors import GratisError
from gratis.train.analysis.trained_network import TrainedNetwork
from gratis.train.network.alexnet import AlexNet
from gratis.train.recipes import TORCHVISION, Layer, Recipe

NAMES: dict[str, Layer] = {
    "features.0": "conv1",
    "features.3": "conv2",
    "features.6": "conv3",
    "features.8": "conv4",
    "features.10": "conv5",
    "classifier.1": "fc6",
    "classifier.4": "fc7",
    "classifier.6": "fc8",
}
TENSORS = {
    f"{theirs}.{kind}": f"{ours}.{kind}"
    for theirs, ours in NAMES.items()
    for kind in ("weight", "bias")
}
FIXED = (
    *("towers", "exchange", "conv6", "without", "pool", "activation"),
    *("channels", "hidden", "width", "conv1_edge", "lrn", "map_norm"),
)
"""Fields of a recipe in which torchvision's layers have no choice."""


class DeploymentNetwork(nn.Module):
    """RGB images float32 [n,3,crop,crop], 0-255 -> logits float32 [n, classes]. Computes in
    float32."""

    mean: Tensor

    def __init__(self, trained: TrainedNetwork) -> None:
        super().__init__()
        recipe = dataclasses.replace(trained.recipe, compute="float32")
        self.network = AlexNet(recipe, trained.state.classes)
        self.network.load_state_dict(trained.weights)
        self.register_buffer("mean", centre_view(trained.stats.mean, recipe.crop))
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images - self.mean)
        return logits


def centre_view(image: NDArray[Any], crop: int) -> Tensor:
    """[S,S,3] -> float32 [3,crop,crop]: the centre, which evaluation's centre view is of. Of the
    mean image, what that view subtracts."""
    margin = (len(image) - crop) // 2
    own = image[margin : margin + crop, margin : margin + crop].transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(own, dtype=np.float32))


def to_torchvision(recipe: Recipe, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A whole network's tensors by torchvision's names; scale and order of the input's colours go
    into the first.

    GratisError naming the first field by which this network is not torchvision's.
    """
    for name in FIXED:
        if (own := getattr(recipe, name)) != (theirs := getattr(TORCHVISION, name)):
            raise GratisError(
                f"torchvision's AlexNet has {name} {theirs}, this run {own}: train --recipe "
                "torchvision, or take --format onnx"
            )
    state = {theirs: weights[ours].clone() for theirs, ours in TENSORS.items()}
    first = state["features.0.weight"] * recipe.input_scale
    first = first.flip(1) if recipe.channel_order == "bgr" else first
    state["features.0.weight"] = first.contiguous()
    # it halves what follows dropout at test, torchvision's does not
    if recipe.dropout == "original":
        for theirs in BEFORE if recipe.dropout_place == "before" else AFTER:
            state[f"{theirs}.weight"] *= 0.5
    return state


# the layers that read what dropout before and after the dense layers leaves
BEFORE, AFTER = ("classifier.1", "classifier.4"), ("classifier.4", "classifier.6")


def from_torchvision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The other way. GratisError for names or shapes that are not torchvision's AlexNet's."""
    if wrong := sorted(set(TENSORS) ^ set(state)):
        why = "missing" if wrong[0] in TENSORS else "not of it"
        raise GratisError(f"this is not torchvision's AlexNet: {wrong[0]} is {why}")
    return {ours: state[theirs] for theirs, ours in TENSORS.items()}
