"""Pretraining: a network begins with the convolutions of another run, and its dense layers, the
head, anew.

gratis train --shards LARGE --recipe released --run pretrained            # one set of classes
gratis train --shards S --recipe released --init-from runs/pretrained --conv-rate 0.1

is the shape of the authors' recipe for their networks pretrained on the Fall 2011 release: conv1 to
conv5 go on at a tenth of the new layers' rate (specification, section 5). A sixth convolution
(--conv6) is new, as it was there."""

from __future__ import annotations

import json
from pathlib import Path

from gratis.errors import GratisError
from gratis.train import checkpoint
from gratis.train.network.alexnet import AlexNet, weight_shapes
from gratis.train.recipes import KEPT, Layer, Recipe

BODY = (
    "channel_order",
    "input_scale",
    "activation",
    "conv1_edge",
    "pool",
    "lrn",
    "lrn_order",
    "lrn_alpha",
    "lrn_k",
    "lrn_across_towers",
    "map_norm",
    "towers",
)
"""Of the architecture, what convolutions mean beside their shapes."""


def take_convolutions(source: Path, network: AlexNet) -> str:
    """Fills this rank's chunks of conv1 to conv5 from a run's folder, or a checkpoint's; returns a
    message on what was taken.

    GratisError as of `fitting`. Not collective: each rank reads.
    """
    path = fitting(source, network.recipe, network.classes)
    kept: list[Layer] = [layer for layer in network.plan if layer in KEPT]
    checkpoint.load_layers(path, network, kept)
    new = [layer for layer in network.plan if layer not in kept]
    dataset = checkpoint.read_state(path).dataset
    return (
        f"{', '.join(kept)} begin as in {path}, trained on dataset {dataset[:8]}; "
        f"{', '.join(new)} are new"
    )


def fitting(source: Path, recipe: Recipe, classes: int) -> Path:
    """The checkpoint to take. GratisError where there is no whole one, or one of other
    convolutions."""
    path = (
        source if (source / "state.json").is_file() else checkpoint.latest(source / "checkpoints")
    )
    if path is None:
        raise GratisError(
            f"--init-from {source} holds no checkpoint; give the folder of a run that has one"
        )
    if why := checkpoint.damage(path):
        raise GratisError(
            f"--init-from {path} is damaged ({why}); give another run, or an older checkpoint of it"
        )
    state = checkpoint.read_state(path)
    own = json.loads(json.dumps(recipe.architecture))
    for name in BODY:
        if state.architecture.get(name) != own[name]:
            there = state.architecture.get(name)
            raise GratisError(
                f"--init-from {path} has {name} {there}, this recipe {own[name]}; give them "
                f"the same"
            )
    shapes = checkpoint.shapes(path)
    for layer, shape in weight_shapes(recipe, classes).items():
        if layer in KEPT and shapes.get(f"{layer}.weight") != shape:
            there = shapes.get(f"{layer}.weight")
            raise GratisError(
                f"--init-from {path} has {layer} {there}, this recipe {shape}; give them the "
                f"same sizes"
            )
    return path
