"""Pretraining: another run's convolutions, which learn at a rate of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small import gratis

from gratis.errors import GratisError
from gratis.train import checkpoint
from gratis.train.network.alexnet import AlexNet
from gratis.train.optimiser import Optimiser
from gratis.train.pretrained import take_convolutions
from gratis.train.recipes import CONVS, RECIPES, SAMPLE, Recipe
from gratis.train.schedule import rates

SMALL = replace(SAMPLE, width=0.0625)
QUICK = ("--recipe", "sample", "--width", "0.0625", "--epochs", "1", "--batch", "100")


def saved(folder: Path, recipe: Recipe, classes: int) -> AlexNet:
    network = AlexNet(recipe, classes, seed=3)
    arrays = checkpoint.collect(
        network, Optimiser(network, recipe), torch.zeros(0, dtype=torch.int64), writer=True
    )
    state = checkpoint.State(
        step=7,
        epoch=1,
        seed=3,
        classes=classes,
        dataset="d" * 64,
        architecture=recipe.architecture,
        loader={},
    )
    (folder / "checkpoints").mkdir(parents=True)
    checkpoint.write(folder / "checkpoints", arrays, state)
    return network


def test_convolutions_are_taken_and_the_head_is_new(tmp_path: Path) -> None:
    source = saved(tmp_path / "pretrained", SMALL, 7)
    recipe = replace(SMALL, conv6=True, dropout="original")
    network, fresh = AlexNet(recipe, 10, seed=5), AlexNet(recipe, 10, seed=5)
    message = take_convolutions(tmp_path / "pretrained", network)
    assert message.endswith("trained on dataset dddddddd; conv6, fc6, fc7, fc8 are new")
    before, unused = dict(source.named_parameters()), dict(fresh.named_parameters())
    for name, own in network.named_parameters():
        kept = name.split(".")[0] in CONVS
        assert torch.equal(own, before[name] if kept else unused[name]), name
        if name.endswith("weight"):  # biases begin alike
            assert torch.equal(own, unused[name]) is not kept, name


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"width": 0.125}, r"conv1 \(6, 3, 11, 11\), this recipe \(12, 3, 11, 11\)"),
        ({"input_scale": 1.0}, "has input_scale 0.015625, this recipe 1.0"),
        ({"exchange": ("fc6", "fc7")}, "conv3"),
    ],
)
def test_other_convolutions_are_refused(
    tmp_path: Path, changed: dict[str, object], message: str
) -> None:
    saved(tmp_path / "pretrained", SMALL, 7)
    with pytest.raises(GratisError, match=message):
        take_convolutions(tmp_path / "pretrained", AlexNet(replace(SMALL, **changed), 10))  # type: ignore[arg-type]
    with pytest.raises(GratisError, match="holds no checkpoint"):
        take_convolutions(tmp_path, AlexNet(SMALL, 10))


@pytest.mark.parametrize("name", ["released", "tiny", "paper"])
def test_convolutions_learn_at_exactly_a_tenth(name: str) -> None:
    recipe = replace(RECIPES[name], conv_rate=0.1)
    for step in (0, 30, 60_000):
        own, whole = rates(recipe, step, 1000), rates(RECIPES[name], step, 1000)
        assert (own["weights"], own["biases"]) == (whole["weights"], whole["biases"])
        for kind in ("weights", "biases"):
            tenth = 0.1 * whole[kind]  # type: ignore[literal-required]
            assert own[f"conv_{kind}"] == own[f"conv1_{kind}"] == tenth  # type: ignore[literal-required]


def test_a_step_moves_convolutions_by_a_tenth() -> None:
    moved = {}
    for share in (1.0, 0.1):
        recipe = replace(SMALL, conv_rate=share, warmup_steps=0)
        network = AlexNet(recipe, 10).double()
        before = {name: own.detach().clone() for name, own in network.named_parameters()}
        for own in network.parameters():
            own.grad = torch.full_like(own, 0.5)
        Optimiser(network, recipe).step(rates(recipe, 0, 100))
        moved[share] = {
            name: own.detach() - before[name] for name, own in network.named_parameters()
        }
    for name, whole in moved[1.0].items():
        expected = whole / 10 if name.split(".")[0] in CONVS else whole
        torch.testing.assert_close(moved[0.1][name], expected, rtol=1e-9, atol=1e-15)
        assert whole.abs().min() > 0


@pytest.mark.slow
def test_a_run_begins_with_another_ones_convolutions(
    ablated: Path, sample_shards: Path, tmp_path: Path
) -> None:
    source = next(path for path in ablated.iterdir() if "-whole-" in path.name)
    command = [
        "train",
        "--shards",
        str(sample_shards),
        "--runs",
        str(tmp_path),
        *"--port 0 --gpus 2".split(),
        *QUICK,
    ]
    done = gratis(
        *command, "--seed", "9", "--init-from", str(source), "--conv-rate", "0", "--run", "tuned"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("conv1, conv2, conv3, conv4, conv5 begin as in") == 1
    before, after = (
        checkpoint.latest(folder / "checkpoints") for folder in (source, tmp_path / "tuned")
    )
    assert before is not None
    assert after is not None
    from safetensors.torch import load_file

    old, new = load_file(before / "network.safetensors"), load_file(after / "network.safetensors")
    assert {name for name in old if torch.equal(old[name], new[name])} == {
        f"{layer}.{which}" for layer in CONVS for which in ("weight", "bias")
    }
    wrong = gratis(*command, "--init-from", str(tmp_path / "nothing"))
    assert wrong.returncode == 2
    assert wrong.stderr.count("\n") == 1
    assert "nothing holds no checkpoint" in wrong.stderr
