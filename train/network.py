"""AlexNet of 2012 (specification, section 3): one module for both towers in this process, or for one of two.

A process holds all towers or, on a mesh with a tower axis, one: chunk r along dim 0 of every parameter. Layers that
read both towers `gather` their input, which is the identity in one process; tower-local layers use groups there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from preprocess.errors import UserError
from train.dropout import keep_mask
from train.norm import cross_map_norm, within_map_norm
from train.parallel import ALONE, Axis, gather, gather_rows
from train.recipes import LAYERS, ONES, Layer, Recipe, ceil_windows

POOL, POOL_STRIDE = 3, 2
CONV1, CONV1_STRIDE = 11, 4


@dataclass(frozen=True, kw_only=True)
class Draw:
    """What a training step's dropout masks are a function of. rows are positions in the global batch."""

    seed: int
    step: int
    rows: range


def conv1_padding(recipe: Recipe) -> tuple[int, int, int, int]:
    """Left, right, top, bottom zeros."""
    if recipe.conv1_edge == "symmetric":
        return 2, 2, 2, 2
    overhang = (ceil_windows(recipe.crop, CONV1, CONV1_STRIDE) - 1) * CONV1_STRIDE + CONV1 - recipe.crop
    return 0, overhang, 0, overhang


def pool5_size(recipe: Recipe) -> int:
    """Pixels per side of the last feature map."""
    left, right, _, _ = conv1_padding(recipe)
    size = (recipe.crop + left + right - CONV1) // CONV1_STRIDE + 1
    for _ in range(3):
        size = ceil_windows(size, POOL, POOL_STRIDE)
    return size


def weight_shapes(recipe: Recipe, classes: int) -> dict[Layer, tuple[int, ...]]:
    """The whole network's weights, outputs first; each layer's bias is its first size."""
    c1, c2, c3, c4, c5 = (recipe.units(size) for size in recipe.channels)
    hidden, groups = recipe.units(recipe.hidden), recipe.towers
    return {
        "conv1": (c1, 3, CONV1, CONV1),
        "conv2": (c2, c1 // groups, 5, 5),
        "conv3": (c3, c2, 3, 3),
        "conv4": (c4, c3 // groups, 3, 3),
        "conv5": (c5, c4 // groups, 3, 3),
        "fc6": (hidden, c5 * pool5_size(recipe) ** 2),
        "fc7": (hidden, hidden),
        "fc8": (classes, hidden),
    }


class AlexNet(nn.Module):
    """Whole-network parameters are `<layer>.weight` and `<layer>.bias`; here, this rank's chunks of them."""

    def __init__(self, recipe: Recipe, classes: int, *, tower: Axis = ALONE, seed: int = 0) -> None:
        super().__init__()
        if tower.size > 1 and recipe.lrn_across_towers:
            raise UserError("this recipe's channel normalisation crosses the towers: both need one process, GPUS=1")
        assert recipe.towers % tower.size == 0, (recipe.towers, tower.size)
        self.recipe, self.classes, self.tower = recipe, classes, tower
        self.groups = recipe.towers // tower.size  # towers in this process
        for number, (layer, shape) in enumerate(weight_shapes(recipe, classes).items()):
            weight, bias = _initial(recipe, layer, shape, seed * len(LAYERS) + number)
            self.add_module(layer, _Weights(tower.own(weight), tower.own(bias)))

    def forward(self, images: Tensor, draw: Draw | None = None) -> Tensor:
        """[N,3,S,S], mean-subtracted, 0-255 scale -> logits [N, classes], complete on every rank of the tower axis.

        With `draw`: training, dropout masks are drawn. Without: the network as it is tested.
        """
        recipe = self.recipe
        x = F.pad(images, conv1_padding(recipe)) if any(conv1_padding(recipe)) else images
        conv1 = self._of("conv1")  # the input's scale is folded into the weights: 35,000 products, not 150,000 an image
        x = F.conv2d(x, conv1.weight * recipe.input_scale, conv1.bias, stride=CONV1_STRIDE)
        x = F.relu(_pool(self._norm1(x)))
        x = F.relu(self._conv("conv2", x, padding=2))
        x = _pool(self._norm2(x))
        x = F.relu(self._conv("conv3", gather(x, 1, self.tower), padding=1, groups=1))
        x = F.relu(self._conv("conv4", x, padding=1))
        x = F.relu(_pool(self._conv("conv5", x, padding=1)))
        return self._classify(x.flatten(1), draw)

    def _classify(self, x: Tensor, draw: Draw | None) -> Tensor:
        """Masks act on a tower's own units, before they are exchanged."""
        before = self.recipe.dropout_place == "before"
        x = self._drop(x, 5, draw) if before else x
        x = F.relu(self._dense("fc6", x))
        x = self._drop(x, 6, draw)
        x = F.relu(self._dense("fc7", x))
        x = x if before else self._drop(x, 7, draw)
        return self._gather_classes(self._dense("fc8", x))

    def _gather_classes(self, own: Tensor) -> Tensor:
        """Where the tower axis does not divide the classes, the last rank's chunk is short: pad, gather, cut."""
        per = -(-self.classes // self.tower.size)
        return gather(F.pad(own, (0, per - own.shape[1])), 1, self.tower)[:, : self.classes]

    def _norm1(self, x: Tensor) -> Tensor:
        if self.recipe.lrn_order == "after":
            x = F.relu(x)
        return self._lrn(x)

    def _norm2(self, x: Tensor) -> Tensor:
        x = self._lrn(x)
        return within_map_norm(x) if self.recipe.map_norm else x

    def _lrn(self, x: Tensor) -> Tensor:
        if not self.recipe.lrn:
            return x
        groups = 1 if self.recipe.lrn_across_towers else self.groups
        return cross_map_norm(x, alpha=self.recipe.lrn_alpha, k=self.recipe.lrn_k, groups=groups)

    def _conv(self, layer: Layer, x: Tensor, *, padding: int, groups: int | None = None) -> Tensor:
        own = self._of(layer)
        return F.conv2d(x, own.weight, own.bias, padding=padding, groups=groups or self.groups)

    def _dense(self, layer: Layer, x: Tensor) -> Tensor:
        own = self._of(layer)
        return F.linear(gather(x, 1, self.tower), own.weight, own.bias)

    def _drop(self, x: Tensor, layer: int, draw: Draw | None) -> Tensor:
        form = self.recipe.dropout
        if form == "off":
            return x
        if draw is None:
            return x * 0.5 if form == "original" else x
        units = self.tower.share(x.shape[1] * self.tower.size)
        mask = keep_mask(seed=draw.seed, step=draw.step, layer=layer, rows=draw.rows, units=units, device=x.device)
        return x * mask if form == "original" else x * (mask.to(x.dtype) * 2)

    def _of(self, layer: Layer) -> _Weights:
        return cast(_Weights, getattr(self, layer))

    def whole(self, own: Tensor, name: str) -> Tensor:
        """The whole network's tensor of which `own`, like the parameter `name`, is this rank's chunk. Collective."""
        layer = cast(Layer, name.split(".", maxsplit=1)[0])
        return gather_rows(own, weight_shapes(self.recipe, self.classes)[layer][0], self.tower)


class _Weights(nn.Module):
    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())


def _pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, POOL, POOL_STRIDE, ceil_mode=True)


def _initial(recipe: Recipe, layer: Layer, shape: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor]:
    """The layer's whole weight and bias, a function of the seed alone: a rank cuts its chunk out of them."""
    generator = torch.Generator().manual_seed(seed)
    fan_in = math.prod(shape[1:])
    weight, bias = torch.empty(shape), torch.zeros(shape[0])
    if recipe.init == "uniform":
        bound = fan_in**-0.5
        return weight.uniform_(-bound, bound, generator=generator), bias.uniform_(-bound, bound, generator=generator)
    if recipe.init == "he":
        std = math.sqrt(2 / fan_in) * (0.3 if layer == "fc8" else 1)
        return weight.normal_(0, std, generator=generator), bias
    if layer in ONES:
        bias.fill_(recipe.bias_init)
    return weight.normal_(0, recipe.init_std[LAYERS.index(layer)], generator=generator), bias
