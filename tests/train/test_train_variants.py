"""Variants of the network, each one field; plan against network; summary against the
specification."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gratis.errors import GratisError
from gratis.train.analysis.summary import backward_macs, exchanges
from gratis.train.analysis.trained_network import RecordingAlexNet
from gratis.train.network.alexnet import AlexNet
from gratis.train.network.dropout import DropoutKey
from gratis.train.network.layers import plan
from gratis.train.optimiser import Optimiser
from gratis.train.paper.trainings import digest
from gratis.train.rank import training_config
from gratis.train.recipes import RECIPES, RELEASED, TORCHVISION, Recipe
from gratis.train.schedule import rates

ROOT = Path(__file__).resolve().parent.parent.parent
SMALL = replace(RELEASED, image_size=73, crop=64, width=1 / 16, init="he", input_scale=1 / 64)
VARIANTS: dict[str, dict[str, Any]] = {
    "half": {"towers": 1, "channels": (48, 128, 192, 192, 256)},
    "no communication": {"exchange": ()},
    "exchange at conv4": {"exchange": ("conv4", "fc6", "fc7")},
    "no norms": {"lrn": False, "map_norm": False},
    "separate pools": {"pool": "separate"},
    "six convolutions": {"conv6": True},
    "without conv3": {"without": "conv3"},
    "without conv4": {"without": "conv4"},
    "without conv5": {"without": "conv5"},
    "without fc7": {"without": "fc7"},
    "tanh": {"activation": "tanh"},
    "ten thousand classes": {"classes": 10_184},
    "bgr": {"channel_order": "bgr"},
}


def parameters(recipe: Recipe) -> int:
    return sum(own.parameters for own in plan(recipe, recipe.classes or 1000).values())


def test_parameter_counts() -> None:
    assert parameters(RELEASED) == 60_965_224
    assert parameters(replace(RELEASED, **VARIANTS["half"])) == 59_798_312
    assert parameters(replace(RELEASED, conv6=True)) == 61_555_304
    assert parameters(replace(RELEASED, conv6=True, classes=10_184)) == 99_182_152
    assert parameters(replace(RELEASED, without="conv4")) == 60_965_224 - 663_936
    # 4096 * 4096 + 4096; fc8 reads fc6's 4096 in place of fc7's
    assert parameters(replace(RELEASED, without="fc7")) == 60_965_224 - 16_781_312
    # conv4's 384 channels at 6x6 in place of conv5's 256
    conv5 = 442_624 - 128 * 6 * 6 * 4096
    assert parameters(replace(RELEASED, without="conv5")) == 60_965_224 - conv5
    both = 384 * 256 * 9 + 384  # conv4 in conv3's place reads both towers
    assert parameters(replace(RELEASED, without="conv3")) == 60_965_224 - 885_120 - 663_936 + both
    assert (
        parameters(replace(RELEASED, exchange=("conv4", "fc6", "fc7")))
        == 60_965_224 - 884_736 // 2 + 663_552
    )


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_is_what_its_plan_says(name: str) -> None:
    """Shapes seen by hooks on torch's own operators, and every parameter learns."""
    recipe = replace(SMALL, **({"crop": 73} if name == "separate pools" else {}), **VARIANTS[name])
    classes = recipe.classes or 10
    network, layers = AlexNet(recipe, classes), plan(recipe, classes)
    assert [n for n, _ in network.named_children()] == list(layers)
    assert sum(p.numel() for p in network.parameters()) == sum(
        own.parameters for own in layers.values()
    )
    seen: dict[str, torch.Size] = {}
    for kind in ("_conv", "_dense"):
        original = getattr(network, kind)

        def watched(layer: str, x: torch.Tensor, original: Any = original) -> torch.Tensor:
            out = original(layer, x)
            seen[layer] = out.shape
            return out

        setattr(network, kind, watched)
    generator = torch.Generator().manual_seed(0)
    images = torch.empty(4, 3, recipe.crop, recipe.crop).normal_(0, 60, generator=generator)
    logits = network(images, DropoutKey(seed=0, step=0, rows=range(4)))
    for layer, own in layers.items():
        spatial = (own.side, own.side) if layer.startswith("conv") else ()
        assert tuple(seen[layer]) == (4, own.outputs, *spatial), layer
    logits.square().sum().backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all() and p.grad.any()
        for p in network.parameters()
    )


def test_the_successor_of_a_removed_layer_takes_its_exchange_over() -> None:
    """Who reads both towers: fc6 to fc8, and conv3 or what comes in its place."""
    variants: dict[str, dict[str, Any]] = {
        name: {"without": name} for name in ("conv3", "conv4", "fc7")
    }
    for removed, readers in (
        ("none", {"conv3", "fc7"}),
        ("conv3", {"conv4", "fc7"}),
        ("conv4", {"conv3", "fc7"}),
        ("fc7", {"conv3"}),
    ):
        layers = plan(replace(RELEASED, **variants.get(removed, {})), 10)
        reading = {name for name, spec in layers.items() if spec.groups == 1}
        assert reading == readers | {"conv1", "fc6", "fc8"}, removed


def test_where_towers_meet_at_conv4_its_successor_is_conv5() -> None:
    met = replace(RELEASED, exchange=("conv4",), without="conv4")
    reading = [name for name, spec in plan(met, 10).items() if spec.groups == 1]
    assert reading == ["conv1", "conv5", "fc8"]


def test_recipes_are_those_of_the_specification() -> None:
    """Its sections 3, 4 and 10, and the readme of each; by what differs from `released`."""
    printed: dict[str, Any] = {
        "image_size": 256,
        "crop": 224,
        "crop_area": None,
        "crop_positions": "all",
        "flip": 0.5,
        "crop_chunk": 1,
        "batch": 128,
        "mean": "central",
        "noise": "sqrt",
        "noise_until": 67 / 90,
        "input_scale": 1.0,
        "channel_order": "rgb",
        "classes": None,
        "towers": 2,
        "exchange": ("conv3", "conv6", "fc6", "fc7"),
        "conv6": False,
        "without": "none",
        "pool": "overlapping",
        "activation": "relu",
        "channels": (96, 256, 384, 384, 256),
        "hidden": 4096,
        "width": 1.0,
        "conv1_edge": "overhang",
        "lrn": True,
        "lrn_order": "before",
        "lrn_alpha": 1e-4,
        "lrn_k": 2.0,
        "lrn_across_towers": False,
        "map_norm": True,
        "init": "gaussian",
        "init_std": (0.01, 0.01, 0.03, 0.03, 0.03, 0.01, 0.01, 0.01),
        "bias_init": 1.0,
        "dropout": "original",
        "dropout_place": "after",
        "compute": "float32",
        "rate": 0.01,
        "rate_batch": 128,
        "scale_rate": "off",
        "momentum": 0.9,
        "weight_decay": 0.0005,
        "bias_rate": 2.0,
        "bias_decay": False,
        "init_from": None,
        "conv_rate": 1.0,
        "velocity": "inside",
        "epochs": 90,
        "schedule": "steps",
        "patience": 3,
        "drops": (25 / 90, 51 / 90, 79 / 90),
        "bias_follows": False,
        "conv1_slow": 67 / 90,
        "conv1_frozen": 72 / 90,
        "warmup_steps": 0,
    }
    no_late_events = {"conv1_slow": None, "conv1_frozen": None}
    plain_biases = {"bias_rate": 1.0, "bias_decay": True, "bias_follows": True}
    paper = {"crop_positions": "printed", "noise": "printed", "schedule": "plateau"}
    paper |= {"init_std": (0.01,) * 8, "lrn_order": "after", "lrn_alpha": 5e-4}
    owt: dict[str, Any] = {"towers": 1, "channels": (64, 192, 384, 256, 256), "lrn": False}
    owt |= no_late_events | {"map_norm": False, "bias_follows": True, "noise_until": 1.0}
    torchvision = owt | plain_biases | {"conv1_edge": "symmetric", "init": "uniform"}
    torchvision |= {"dropout": "inverted", "dropout_place": "before", "velocity": "outside"}
    torchvision |= {"noise": "off", "input_scale": 1 / 58, "weight_decay": 1e-4, "batch": 256}
    torchvision |= {"rate_batch": 256, "crop_area": (0.08, 1.0), "drops": (1 / 3, 2 / 3)}
    caffe = {"crop": 227, "batch": 256, "rate_batch": 256, "mean": "offset", "noise": "off"}
    caffe |= {"channel_order": "bgr", "lrn_order": "after", "lrn_k": 1.0, "bias_init": 0.1}
    caffe |= {"lrn_across_towers": True, "map_norm": False, "dropout": "inverted"}
    caffe |= {"init_std": (0.01, 0.01, 0.01, 0.01, 0.01, 0.005, 0.005, 0.01)}
    caffe |= {"drops": tuple(mark / 90 for mark in (20, 40, 60, 80)), "bias_follows": True}
    assert asdict(RELEASED) == printed
    for name, differs in (
        ("paper", paper | no_late_events | plain_biases | {"map_norm": False, "noise_until": 1.0}),
        ("owt", owt | {"schedule": "dexp250"}),
        ("torchvision", torchvision),
        ("caffe", caffe | no_late_events),
    ):
        assert asdict(RECIPES[name]) == printed | differs, name


def test_the_recipe_of_the_page_s_runs_is_still_the_same() -> None:
    """By its settings' digits in the names of the runs that docs/paper.md was made from: else what
    is trained there would be trained again."""
    settings = json.loads((ROOT / "docs" / "paper.json").read_text())["settings"]
    assert digest(RECIPES["tiny64"]) == settings.split("-")[2]


@pytest.mark.parametrize("place", ["after", "before"])
def test_without_fc7_half_of_fc6_s_units_reach_fc8(place: Any) -> None:
    """Its mask is drawn once, wherever dropout stands: not twice on the same units."""
    recipe = replace(SMALL, without="fc7", dropout="inverted", dropout_place=place)
    network, read = AlexNet(recipe, 10), list[torch.Tensor]()
    original = network._dense

    def watched(layer: Any, x: torch.Tensor) -> torch.Tensor:
        read.append(x)
        return original(layer, x)

    network._dense = watched  # type: ignore[method-assign]
    images = torch.randn(64, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 60
    with torch.no_grad():
        network(images)
        network(images, DropoutKey(seed=0, step=0, rows=range(64)))
    tested, trained = read[1], read[3]
    if place == "after":  # else fc6's own input was halved too
        kept = trained[tested > 0] > 0
        torch.testing.assert_close(trained[trained > 0], 2 * tested[trained > 0])
        assert kept.float().mean().item() == pytest.approx(0.5, abs=0.02)
    else:
        assert (trained > 0).float().mean() < 0.6 * (tested > 0).float().mean()


def test_torch_s_initial_values_are_within_torch_s_bound() -> None:
    network = AlexNet(replace(TORCHVISION, width=1 / 8), 10)
    parameters = dict(network.named_parameters())
    for name, fan_in in (("fc6", parameters["fc6.weight"].shape[1]), ("conv1", 3 * 11 * 11)):
        weight, bias = parameters[f"{name}.weight"], parameters[f"{name}.bias"]
        assert max(weight.abs().max().item(), bias.abs().max().item()) <= fan_in**-0.5
        assert weight.std().item() == pytest.approx((3 * fan_in) ** -0.5, rel=0.02)


def test_pools_without_overlap_keep_the_released_sizes() -> None:  # trap 21
    layers = plan(replace(RELEASED, pool="separate"), 1000)
    sides = [(own.side, own.pooled) for name, own in layers.items() if name.startswith("conv")]
    assert sides == [(55, 28), (26, 13), (13, 13), (13, 13), (11, 6)]


def test_no_communication_means_none_before_the_softmax() -> None:
    """A change of the second tower's own filters changes nothing that the first computes, but in
    the logits."""
    recipe = replace(SMALL, exchange=(), dropout="off")
    network = AlexNet(recipe, 6).double()
    images = (
        torch.randn(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        * 60
    )
    first: list[torch.Tensor] = []
    original = network._dense

    def watched(layer: Any, x: torch.Tensor) -> torch.Tensor:
        if layer == "fc8":
            first.append(x[:, : x.shape[1] // 2])
        return original(layer, x)

    network._dense = watched  # type: ignore[method-assign]
    before = network(images)
    with torch.no_grad():
        for name, tensor in network.named_parameters():
            if not name.startswith("fc8"):
                tensor[len(tensor) // 2 :] *= 1.5
    after = network(images)
    assert torch.equal(*first)
    assert not torch.equal(before, after)


def test_summary_equals_the_specification() -> None:
    layers = plan(RELEASED, 1000)
    assert sum(own.macs for own in layers.values()) == 724_406_816
    assert backward_macs(layers) == 1_343_398_432
    rows = {row.what: row for row in exchanges(RELEASED, 1000)}
    assert [rows[what].original for what in ("conv3", "fc6", "fc7", "fc8")] == [
        43_264,
        9_216,
        4_096,
        2_048,
    ]
    assert sum(row.original for row in rows.values()) == 58_624
    assert 2 * 4 * 58_624 * 128 == 60_030_976
    assert exchanges(RECIPES["owt"], 1000) == []


@pytest.mark.starts
def test_summary_prints_it() -> None:
    command = [sys.executable, "-m", "gratis", "summary"]
    shown = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    ).stdout
    for number in (
        "60,965,224",
        "724,406,816",
        "4.136 GFLOP",
        "468,992",
        "60.03 MB",
        "105,415,200",
        "4096x9216",
    ):
        assert number in shown


def behaviour(recipe: Recipe) -> dict[str, Any]:
    """What a recipe decides: its initial weights, outputs in both forms, rates, weights after two
    steps, its data."""
    network, rows = AlexNet(recipe, 7), range(2)
    initial = [p.detach().clone() for p in network.parameters()]
    images = (
        torch.randn(2, 3, recipe.crop, recipe.crop, generator=torch.Generator().manual_seed(0)) * 70
    )
    tested, trained = network(images), network(images, DropoutKey(seed=0, step=0, rows=rows))
    trained.logsumexp(1).sum().backward()
    path = [rates(recipe, epoch, 1, [0.9] * epoch) for epoch in (0, 30, 60, 85)]
    optimiser = Optimiser(network, recipe)
    for rate in path[:2]:
        optimiser.step(rate)
    return {
        "initial": initial,
        "tested": [tested],
        "trained": [trained],
        "rates": path,
        "updated": list(network.parameters()),
        "data": training_config(recipe),
    }


def same(one: Any, other: Any) -> bool:
    if isinstance(one, list) and isinstance(one[0], torch.Tensor):
        return all(
            a.shape == b.shape and torch.equal(a, b) for a, b in zip(one, other, strict=True)
        )
    return bool(one == other)


def test_every_disagreement_is_one_field() -> None:
    """Section 10: each row's other side, that field alone, changes what it is about."""
    released = replace(RELEASED, image_size=73, crop=64, width=1 / 16)
    rows: list[tuple[str, dict[str, Any]]] = [
        ("tested", {"conv1_edge": "symmetric"}),
        ("data", {"crop_positions": "printed"}),
        ("data", {"crop_positions": "centre"}),
        ("data", {"flip": 0.0}),
        ("data", {"crop_area": (0.08, 1.0)}),
        ("data", {"crop_chunk": 32}),
        ("data", {"mean": "offset"}),
        ("data", {"noise": "printed"}),
        ("data", {"noise": "off"}),
        ("tested", {"lrn_alpha": 5e-4}),
        ("tested", {"lrn_k": 1.0}),
        ("tested", {"lrn_order": "after"}),
        ("tested", {"map_norm": False}),
        ("tested", {"lrn_across_towers": True}),
        ("tested", {"lrn": False}),
        ("initial", {"init_std": (0.01,) * 8}),
        ("initial", {"init": "uniform"}),
        ("initial", {"bias_init": 0.1}),
        ("rates", {"bias_rate": 1.0}),
        ("updated", {"bias_decay": True}),
        ("rates", {"schedule": "plateau"}),
        ("rates", {"schedule": "dexp250"}),
        ("updated", {"velocity": "outside"}),
        ("tested", {"dropout": "inverted"}),
        ("trained", {"dropout_place": "before"}),
        ("tested", {"channel_order": "bgr"}),
        ("data", {"crop": 73}),
    ]
    reference = behaviour(released)
    assert all(same(reference[what], again) for what, again in behaviour(released).items())
    for what, row in rows:
        assert not same(reference[what], behaviour(replace(released, **row))[what]), row


def test_bgr_reads_the_channels_backwards() -> None:
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 60
    rgb, bgr = AlexNet(SMALL, 5), AlexNet(replace(SMALL, channel_order="bgr"), 5)
    torch.testing.assert_close(rgb(images), bgr(images.flip(1)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"exchange": ("fc8",)}, "exchange fc8"),
        ({"classes": 0}, "classes 0"),
        ({"patience": 0}, "patience 0"),
        ({"rate_batch": 0}, "rate-batch 0"),
        ({"flip": 1.5}, "flip 1.5"),
    ],
)
def test_fields_that_cannot_be(fields: dict[str, Any], word: str) -> None:
    with pytest.raises(GratisError, match=word):
        replace(RELEASED, **fields)


def test_a_crop_that_the_windows_use_up_is_refused() -> None:
    with pytest.raises(GratisError, match="--crop 40"):
        plan(replace(RELEASED, crop=40, pool="separate"), 10)


def test_responses_of_a_layer_that_is_not_there_are_refused() -> None:
    network = RecordingAlexNet(replace(SMALL, without="fc7"), 10)
    with pytest.raises(GratisError, match=r"--layer fc7: this network has conv1, .*, fc6, fc8"):
        network.responses("fc7", torch.zeros(1, 3, 64, 64))
