"""What the ablation runner can switch off, each as the authors did it, and what that cost their
network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from gratis.train.network.layers import plan
from gratis.train.recipes import RELEASED, Recipe


@dataclass(frozen=True, kw_only=True)
class Switch:
    """One part switched off, and by how many points of error the authors' network then was
    worse.

    rates: what the recipe's rate is multiplied by, to find the best; one: it stays the whole
    network's. why: what is known of these settings that makes a difference from the paper's likely;
    empty: nothing."""

    words: str
    off: Callable[[Recipe], Recipe]
    paper: tuple[float | None, float | None] = (None, None)  # top-1, top-5
    measured_on: str = "not printed"
    rates: tuple[float, ...] = (1.0,)
    why: Callable[[Recipe], str] = lambda _: ""


def without(**fields: Any) -> Callable[[Recipe], Recipe]:
    return lambda recipe: replace(recipe, **fields)


def one_column(recipe: Recipe) -> Recipe:
    """#145-half: half the channels but in the last convolution, one tower."""
    *first, last = recipe.channels
    a, b, c, d = (channels // 2 for channels in first)
    return replace(recipe, towers=1, channels=(a, b, c, d, last))


def a_middle_layer_less(layer: str) -> Switch:
    claim: Any = {"paper": (2.0, None), "measured_on": 'not stated; "about 2 %"'}
    return Switch(words=f"without {layer}", off=without(without=layer), why=small_maps, **claim)


def inert_normalisation(recipe: Recipe) -> str:
    """Squares of inputs that were scaled down vanish beside k."""
    if recipe.lrn_alpha * recipe.input_scale**2 > RELEASED.lrn_alpha / 100:
        return ""
    return (
        f"at an input scale of {recipe.input_scale:.3g} and alpha {recipe.lrn_alpha:g} squares "
        f"vanish beside k: the layers multiply by about {recipe.lrn_k**-0.75:.2f} and do no more"
    )


def small_maps(recipe: Recipe) -> str:
    side, full = (plan(one, 10)["conv2"].pooled for one in (recipe, RELEASED))
    few = f"it works on {side}x{side} pixels here, on {full}x{full} in the paper"
    return few if side < full else ""


def of_conv3(recipe: Recipe) -> str:
    twin = "without conv4 it is the same network, weight for weight, and not another row"
    notes = [small_maps(recipe), twin if same_as_without_conv3(recipe) else ""]
    return "; ".join(note for note in notes if note)


def same_as_without_conv3(recipe: Recipe) -> bool:
    """Whether the network without conv4 is the one without conv3: the layer that is left begins
    with the same weights, and no bias is of one of them alone."""
    (third, fourth), (std3, std4) = recipe.channels[2:4], recipe.init_std[2:4]
    alike = recipe.init != "gaussian" or (recipe.bias_init == 0 and std3 == std4)
    return third == fourth and alike


def few_iterations(recipe: Recipe) -> str:
    few = "dropout about doubles the iterations that training takes (the paper)"
    return f"{few}; here are {recipe.epochs} epochs" if recipe.epochs < RELEASED.epochs else ""


SWITCHES = {
    "lrn": Switch(
        words="no normalisation layers",
        off=without(lrn=False, map_norm=False),
        paper=(1.4, 1.2),
        measured_on="2012 val",
        why=inert_normalisation,
    ),
    "overlap": Switch(
        words="pooling 2x2 every 2",
        off=without(pool="separate"),
        paper=(0.4, 0.3),
        measured_on="2012 val",
    ),
    "towers": Switch(
        words="one column of half the channels",
        off=one_column,
        paper=(1.7, 1.2),
        measured_on="2010 test",
    ),
    "color_noise": Switch(
        words="no colour noise",
        off=without(noise="off"),
        paper=(1.0, None),
        measured_on='not stated; "over 1 %"',
    ),
    "conv3": replace(a_middle_layer_less("conv3"), why=of_conv3),
    "conv4": a_middle_layer_less("conv4"),
    "conv5": a_middle_layer_less("conv5"),
    "dropout": Switch(
        words="no dropout",
        off=without(dropout="off"),
        measured_on='"substantial overfitting"',
        why=few_iterations,
    ),
    "crops": Switch(
        words="central crop, no mirror",
        off=without(crop_positions="centre", flip=0.0),
        measured_on='"substantial overfitting"',
    ),
    "exchange": Switch(
        words="towers that meet in the softmax alone",
        off=without(exchange=()),
        paper=(1.2, 1.1),
        measured_on="2012 val, unpublished #150 (its towers are wider)",
    ),
    "fc7": Switch(words="without fc7", off=without(without="fc7")),
    "tanh": Switch(
        words="tanh at its best rate",
        off=without(activation="tanh"),
        measured_on="no error of it printed (figure 1: its speed)",
        rates=(1.0, 0.5, 2.0, 0.25),
    ),
}
"""In the order of worth: what the paper has a number for first. Source: specification, sections 0.1
and 5: what the released logs show was switched, and on which data; a middle layer's 2 % is the
paper's sentence on any of them."""
