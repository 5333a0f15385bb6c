"""Pretraining: a network begins with the convolutions of another run, and its dense layers, the
head, anew.

gratis train --shards LARGE --recipe released --run pretrained            # one set of classes
gratis train --shards S --recipe released --init-from runs/pretrained --conv-rate 0.1

is the shape of the authors' recipe for their networks pretrained on the Fall 2011 release: conv1 to
conv5 go on at a tenth of the new layers' rate (specification, section 5). A sixth convolution
(--conv6) is new, as it was there."""

from __future__ import annotations

from pathlib import Path

from gratis.errors import GratisError
from gratis.train import checkpoint
from gratis.train.network.alexnet import AlexNet, weight_shapes
from gratis.train.recipes import CONVS, Layer, Recipe

# of the architecture, what convolutions mean beside their shapes
BODY = (
    "channel_order input_scale activation conv1_edge pool lrn lrn_order lrn_alpha lrn_k "
    "lrn_across_towers map_norm towers"
).split()


def take_convolutions(source: Path, network: AlexNet) -> str:
    """Fills this rank's chunks of conv1 to conv5 from a run's folder, or a checkpoint's; returns a
    message on what was taken.

    GratisError as of `fitting`. Not collective: each rank reads.
    """
    path = fitting(source, network.recipe, network.classes)
    kept: list[Layer] = [layer for layer in network.plan if layer in CONVS]
    checkpoint.load_layers(path, network, kept)
    new = [layer for layer in network.plan if layer not in kept]
    dataset = checkpoint.read_state(path).dataset
    source_text = f"{path}, trained on dataset {dataset[:8]}"
    return f"{', '.join(kept)} begin as in {source_text}; {', '.join(new)} are new"


def fitting(source: Path, recipe: Recipe, classes: int) -> Path:
    """The checkpoint to take. GratisError where there is no whole one, or one of other
    convolutions."""
    own = (source / "state.json").is_file()
    path = source if own else checkpoint.latest(source / "checkpoints")
    if path is None:
        way_out = "give the folder of a run that has one"
        raise GratisError(f"--init-from {source} holds no checkpoint; {way_out}")
    option = f"--init-from {path}"
    if why := checkpoint.damage(path):
        way_out = "give another run, or an older checkpoint of it"
        raise GratisError(f"{option} is damaged ({why}); {way_out}")
    stored = checkpoint.read_state(path).architecture
    for name in BODY:
        if (there := stored.get(name)) != (here := recipe.architecture[name]):
            raise GratisError(
                f"{option} has {name} {there}, this recipe {here}; give them the same"
            )
    shapes = checkpoint.shapes(path)
    for layer, shape in weight_shapes(recipe, classes).items():
        if layer in CONVS and (stored_shape := shapes.get(f"{layer}.weight")) != shape:
            differs = f"{layer} {stored_shape}, this recipe {shape}"
            raise GratisError(f"{option} has {differs}; give them the same sizes")
    return path
