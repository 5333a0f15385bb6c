"""What the network's layers are, as a pure function of the recipe: shapes, windows, who reads whom.
No torch.

The network, the summary, the computed traffic and the time model all read this one plan.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gratis.errors import GratisError
from gratis.train.recipes import CONVS, Layer, Recipe

CONV1, CONV1_STRIDE = 11, 4
Padding = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """One layer of the whole network, all towers together. For dense layers kernel, side and pooled
    are 1."""

    inputs: int  # features it reads, over all towers (fc6: channels times pixels)
    outputs: int
    # parts that read only their own share of the inputs: the towers, or 1 where each reads
    # everything
    groups: int
    kernel: int = 1
    stride: int = 1
    padding: Padding = (0, 0, 0, 0)  # left, right, top, bottom
    side: int = 1  # pixels per side of its output
    pooled: int = 1  # and of what the next layer gets
    read_side: int = 1  # and of its input

    @property
    def weight(self) -> tuple[int, ...]:
        """The weight's shape, outputs first."""
        window = (self.kernel, self.kernel) if self.side > 1 or self.kernel > 1 else ()
        return (self.outputs, self.inputs // self.groups, *window)

    @property
    def parameters(self) -> int:
        return math.prod(self.weight) + self.outputs

    @property
    def macs(self) -> int:
        """Multiplications per image, forward."""
        return math.prod(self.weight) * self.side**2


def ceil_windows(size: int, kernel: int, stride: int) -> int:
    """How many windows cover `size` pixels when the last may hang over the edge (the original's
    rule; trap 21)."""
    return 1 + math.ceil((size - kernel) / stride)


def pooling(recipe: Recipe) -> tuple[int, int]:
    """Window and stride."""
    return (3, 2) if recipe.pool == "overlapping" else (2, 2)


def conv1_padding(recipe: Recipe) -> Padding:
    """Left, right, top, bottom zeros."""
    if recipe.conv1_edge == "symmetric":
        return 2, 2, 2, 2
    windows = ceil_windows(recipe.crop, CONV1, CONV1_STRIDE)
    overhang = (windows - 1) * CONV1_STRIDE + CONV1 - recipe.crop
    return 0, overhang, 0, overhang


def exchanging(recipe: Recipe) -> set[Layer]:
    """Layers that read both towers. The successor of a removed layer takes its exchange over; fc8
    always has one."""
    layers: set[Layer] = {*recipe.exchange, "fc8"}
    successor: dict[str, Layer] = {"conv3": "conv4", "conv4": "conv5"}
    if recipe.without in layers:
        layers.add(successor.get(recipe.without, "fc8"))
    return layers


def plan(recipe: Recipe, classes: int) -> dict[Layer, LayerSpec]:
    """The layers in order. GratisError for a crop that one of them has nothing left of."""
    whole = exchanging(recipe) | {"conv1"}  # that read all of their input
    sizes = zip(CONVS, map(recipe.units, recipe.channels), strict=True)
    channels = {layer: outputs for layer, outputs in sizes if layer != recipe.without}
    if recipe.conv6:
        channels["conv6"] = [*channels.values()][-1]
    hidden = recipe.units(recipe.hidden)
    dense: dict[Layer, int] = {"fc6": hidden, "fc7": hidden, "fc8": classes}
    layers: dict[Layer, LayerSpec] = {}
    inputs, side = 3, recipe.crop
    for layer, outputs in channels.items():
        groups = 1 if layer in whole else recipe.towers
        spec = _conv(recipe, layer, inputs=inputs, outputs=outputs, side=side, groups=groups)
        layers[layer], inputs, side = spec, outputs, spec.pooled
    inputs *= side**2
    dense = {layer: outputs for layer, outputs in dense.items() if layer != recipe.without}
    for layer, outputs in dense.items():
        groups = 1 if layer in whole else recipe.towers
        layers[layer], inputs = LayerSpec(inputs=inputs, outputs=outputs, groups=groups), outputs
    return layers


def _conv(
    recipe: Recipe, layer: Layer, *, inputs: int, outputs: int, side: int, groups: int
) -> LayerSpec:
    kernel, stride, padding = _window(recipe, layer)
    out = (side + padding[0] + padding[1] - kernel) // stride + 1
    size, step = pooling(recipe)
    pools = layer in ("conv1", "conv2", "conv4" if recipe.without == "conv5" else "conv5")
    pooled = ceil_windows(out, size, step) if pools else out
    if out < 1 or pooled < 1:
        why = f"leaves nothing for {layer} to see"
        raise GratisError(f"--crop {recipe.crop} {why}; take a larger one")
    return LayerSpec(
        inputs=inputs,
        outputs=outputs,
        groups=groups,
        kernel=kernel,
        stride=stride,
        padding=padding,
        side=out,
        pooled=pooled,
        read_side=side,
    )


def _window(recipe: Recipe, layer: Layer) -> tuple[int, int, Padding]:
    """Kernel, stride, padding. Without overlap conv2 and conv5 lose the zeros that kept their
    sizes, as in #147."""
    separate = recipe.pool == "separate"
    if layer == "conv1":
        return CONV1, CONV1_STRIDE, conv1_padding(recipe)
    if layer == "conv2":
        return 5, 1, (1,) * 4 if separate else (2,) * 4
    return 3, 1, (0,) * 4 if separate and layer == "conv5" else (1,) * 4
