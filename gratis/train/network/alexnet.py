"""AlexNet of 2012 (specification, section 3): one module for both towers in this process, or for
one of two.

A process holds all towers or, on a mesh with a tower axis, one: chunk r along dim 0 of every
parameter. Layers that read both towers `gather` their input, which is the identity in one process;
tower-local layers use groups there."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from gratis.errors import GratisError
from gratis.train.mesh.mesh import ALONE, Axis, gather, gather_rows
from gratis.train.network.dropout import DropoutKey, keep_mask
from gratis.train.network.layers import plan, pooling
from gratis.train.network.normalisation import cross_map_norm, within_map_norm
from gratis.train.recipes import LAYERS, ONES, Layer, Recipe
from gratis.train.settings import Wire

INNER: tuple[Layer, ...] = ("conv3", "conv4", "conv5")
SEEDS = 16  # between two runs' first layers; more than a network has layers


def weight_shapes(recipe: Recipe, classes: int) -> dict[Layer, tuple[int, ...]]:
    """The whole network's weights, outputs first; each layer's bias is its first size."""
    return {layer: own.weight for layer, own in plan(recipe, classes).items()}


class AlexNet(nn.Module):
    """Whole-network parameters are `<layer>.weight` and `<layer>.bias`; here, this rank's chunks of
    them."""

    def __init__(
        self,
        recipe: Recipe,
        classes: int,
        *,
        tower: Axis = ALONE,
        seed: int = 0,
        wire: Wire = "float32",
    ) -> None:
        super().__init__()
        if tower.size > 1 and recipe.lrn_across_towers:
            why = "this recipe's channel normalisation crosses the towers"
            raise GratisError(f"{why}: both need one process, GPUS=1")
        assert recipe.towers % tower.size == 0, (recipe.towers, tower.size)
        self.recipe, self.classes, self.tower, self.wire = recipe, classes, tower, wire
        self.plan = plan(recipe, classes)
        self.convolve: Callable[[Tensor], Tensor] = self._convolve
        self._gather: Callable[..., Tensor] = gather
        self.groups = recipe.towers // tower.size  # towers in this process
        for number, (layer, spec) in enumerate(self.plan.items()):
            weight, bias = _initial(recipe, layer, spec.weight, (seed * SEEDS + number) % 2**63)
            self.add_module(layer, _Weights(tower.own(weight), tower.own(bias)))

    def forward(self, images: Tensor, key: DropoutKey | None = None) -> Tensor:
        """[N,3,S,S], mean-subtracted, 0-255 scale -> logits [N, classes], complete on every rank of
        the tower axis.

        With `key`: training, dropout masks are drawn. Without: the network as it is tested.
        """
        # compiled for training alone: the shapes of evaluation would each be compiled anew
        convolve = self._convolve if key is None else self.convolve
        return self._classify(convolve(images), key)

    def compile_layers(self, otherwise: Callable[[str], None] | None = None) -> None:
        """Compiles the convolutions, where normalisation and pooling fuse. The dense layers are
        matrix products, and their masks depend on the step's number, for each of which the compiler
        would begin again.

        otherwise: is called with the reason, once, should the compiler give up on some of them,
        which then run as they are. Without it what the compiler raises is the step's error."""
        # two seconds of start, where nothing is compiled
        from torch._dynamo.backends.registry import lookup_backend
        from torch._functorch import config as functorch

        if self.tower.size > 1:  # the compiler breaks its graph at an exchange and goes on after it
            self._gather = torch.compiler.disable(gather)  # type: ignore[no-untyped-call]
        if otherwise is None:
            self.convolve = torch.compile(self._convolve)
            return
        if hasattr(functorch, "force_non_lazy_backward_lowering"):
            # what is wrong with backward's code is an error of forward's then, and not of backward
            # itself
            functorch.force_non_lazy_backward_lowering = True
        reasons: list[str] = []

        def compiled_or_eager(graph: GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
            """One graph: what went before it, an exchange perhaps, is not done again."""
            try:
                return lookup_backend("inductor")(graph, inputs)
            except Exception as error:  # of many kinds, which torch itself wraps whole
                if not reasons:  # what one graph lacks, the next lacks too
                    reasons.append(str(error).split("\n")[0])
                    otherwise(reasons[0])
                return graph.forward

        self.convolve = torch.compile(self._convolve, backend=compiled_or_eager)

    def _convolve(self, images: Tensor) -> Tensor:
        x = images.to(torch.bfloat16) if self.recipe.compute == "bfloat16" else images
        x = self._conv("conv1", x)
        if self.recipe.lrn_order == "before":
            x = self._active(self._pool(self._lrn(x)))
        else:
            x = self._pool(self._lrn(self._active(x)))
        x = self._pool(self._norm2(self._active(self._conv("conv2", x))))
        for layer in INNER:
            x = self._active(self._conv(layer, x)) if layer in self.plan else x
        x = self._pool(x)
        x = self._active(self._conv("conv6", x)) if "conv6" in self.plan else x
        return x.flatten(1)

    def _classify(self, x: Tensor, key: DropoutKey | None) -> Tensor:
        """Masks act on a tower's own units, before they are exchanged."""
        before = self.recipe.dropout_place == "before"
        x = self._drop(x, 5, key) if before else x
        x = self._active(self._dense("fc6", x))
        x = self._drop(x, 6, key)
        if "fc7" in self.plan:
            x = self._active(self._dense("fc7", x))
            x = x if before else self._drop(x, 7, key)
        return self._gather_classes(self._dense("fc8", x))

    def _gather_classes(self, own: Tensor) -> Tensor:
        """Where the tower axis does not divide the classes, the last rank's chunk is short: pad,
        gather, cut."""
        if self.tower.size == 1:
            return own
        per = -(-self.classes // self.tower.size)
        own = F.pad(own, (0, per - own.shape[1]))
        return gather(own, 1, self.tower, "logits", self.wire)[:, : self.classes]

    def _active(self, x: Tensor) -> Tensor:
        return F.relu(x) if self.recipe.activation == "relu" else torch.tanh(x)

    def _pool(self, x: Tensor) -> Tensor:
        return F.max_pool2d(x, *pooling(self.recipe), ceil_mode=True)

    def _norm2(self, x: Tensor) -> Tensor:
        x = self._lrn(x)
        return within_map_norm(x) if self.recipe.map_norm else x

    def _lrn(self, x: Tensor) -> Tensor:
        if not self.recipe.lrn:
            return x
        groups = 1 if self.recipe.lrn_across_towers else self.groups
        return cross_map_norm(x, alpha=self.recipe.lrn_alpha, k=self.recipe.lrn_k, groups=groups)

    def _conv(self, layer: Layer, x: Tensor) -> Tensor:
        own = self.plan[layer]
        weight, bias = self._of(layer, x.dtype)
        x = self._read(layer, x)
        padding, right, _, _ = own.padding
        if padding != right:
            x, padding = F.pad(x, own.padding), 0
        return F.conv2d(x, weight, bias, own.stride, padding, groups=self._parts(layer))

    def _dense(self, layer: Layer, x: Tensor) -> Tensor:
        weight, bias = self._of(layer, x.dtype)
        x, parts = self._read(layer, x), self._parts(layer)
        if parts == 1:
            return F.linear(x, weight, bias)
        rows: Tensor = x.unflatten(1, (parts, -1))  # type: ignore[no-untyped-call]  # exports leave the batch open, unlike view
        columns = weight.view(parts, -1, weight.shape[1])
        return torch.einsum("ngi,goi->ngo", rows, columns).flatten(1) + bias

    def _read(self, layer: Layer, x: Tensor) -> Tensor:
        """What the layer reads: both towers' features, or this rank's own."""
        if layer == "conv1" or self.plan[layer].groups > 1:
            return x
        return self._gather(x, 1, self.tower, layer, self.wire)

    def _parts(self, layer: Layer) -> int:
        return self.groups if self.plan[layer].groups > 1 else 1

    def _drop(self, x: Tensor, layer: int, key: DropoutKey | None) -> Tensor:
        form = self.recipe.dropout
        if form == "off":
            return x
        if key is None:
            return x * 0.5 if form == "original" else x
        units = self.tower.share(x.shape[1] * self.tower.size)
        mask = keep_mask(key, layer=layer, units=units, device=x.device)
        kept = x * mask
        return kept if form == "original" else kept * 2

    def _of(self, layer: Layer, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Weight and bias as the layer computes with them, of which the optimiser keeps the float32
        masters."""
        own = cast(_Weights, getattr(self, layer))
        weight: Tensor = own.weight
        if layer == "conv1":
            # scale and colour order are folded into 35,000 weights, not 150,000 pixels an image
            weight = weight.flip(1) if self.recipe.channel_order == "bgr" else weight
            weight = weight * self.recipe.input_scale
        return weight.to(dtype), own.bias.to(dtype)

    def whole(self, own: Tensor, name: str) -> Tensor:
        """The whole network's tensor of which `own`, like the parameter `name`, is this rank's
        chunk. Collective."""
        return gather_rows(own, self.outputs(name), self.tower)

    def outputs(self, name: str) -> int:
        """Of the whole layer that the parameter `name` is of: its rows over all ranks."""
        return self.plan[cast(Layer, name.split(".", maxsplit=1)[0])].outputs


class _Weights(nn.Module):
    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight.clone()), nn.Parameter(bias.clone())


def _initial(
    recipe: Recipe, layer: Layer, shape: tuple[int, ...], seed: int
) -> tuple[Tensor, Tensor]:
    """The layer's whole weight and bias, a function of the seed alone: a rank cuts its chunk out of
    them."""
    generator = torch.Generator().manual_seed(seed)
    fan_in = math.prod(shape[1:])
    weight, bias = torch.empty(shape), torch.zeros(shape[0])
    if recipe.init == "uniform":
        bound = fan_in**-0.5
        for one in (weight, bias):
            one.uniform_(-bound, bound, generator=generator)
        return weight, bias
    if recipe.init == "he":
        std = math.sqrt(2 / fan_in) * (0.3 if layer == "fc8" else 1)
    else:
        std = recipe.init_std[LAYERS.index("conv5" if layer == "conv6" else layer)]
        bias.fill_(recipe.bias_init if layer in ONES else 0.0)
    return weight.normal_(0, std, generator=generator), bias
