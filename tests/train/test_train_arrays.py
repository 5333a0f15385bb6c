"""What a checkpoint holds: arrays by name that go into any network of their shape, and messages
where they do not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gratis.errors import GratisError
from gratis.train import checkpoint
from gratis.train.checkpoint import (
    State,
    collect,
    load,
    load_layers,
    of_step,
    shapes,
    step_of,
    write,
)
from gratis.train.mesh.mesh import Axis
from gratis.train.network.alexnet import AlexNet
from gratis.train.optimiser import Optimiser
from gratis.train.recipes import SAMPLE

RECIPE = replace(SAMPLE, width=1 / 16)
CLASSES, STEP = 5, 7
NAMES = {
    f"{layer}.{part}"
    for layer in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
    for part in ("weight", "bias")
}


def made(seed: int, tower: Axis | None = None) -> tuple[AlexNet, Optimiser]:
    """A network and velocities that are functions of the seed."""
    network = AlexNet(RECIPE, CLASSES, seed=seed, **({"tower": tower} if tower else {}))
    optimiser = Optimiser(network, RECIPE)
    for number, step in enumerate(optimiser.steps.values()):
        step.fill_(seed + number / 64)
    return network, optimiser


def state() -> State:
    return State(
        step=STEP, epoch=1, seed=3, classes=CLASSES, dataset="d", architecture={}, loader={}
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    network, optimiser = made(1)
    arrays = collect(network, optimiser, torch.tensor([4, 2]), writer=True)
    write(tmp_path / "c", arrays, state())
    return tmp_path / "c" / "step-00000007"


def test_what_is_collected_is_training_s_no_more(saved: Path) -> None:
    """Training goes on while it is written: copies, on the CPU, laid out as they are stored."""
    network, optimiser = made(1)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    arrays = collect(network, optimiser, torch.tensor([4, 2]), writer=True)
    assert arrays.keys() == {"network", "optimiser", "progress"}
    assert arrays["network"].keys() == arrays["optimiser"].keys() == NAMES
    for kind, own in (
        ("network", dict(network.named_parameters())),
        ("optimiser", optimiser.steps),
    ):
        for name, tensor in arrays[kind].items():
            assert torch.equal(tensor, own[name])
            assert tensor.data_ptr() != own[name].data_ptr()
            assert tensor.is_contiguous()
            assert tensor.device.type == "cpu"
    assert collect(network, optimiser, torch.tensor([4, 2]), writer=False) == {}


def test_a_checkpoint_goes_into_another_network(saved: Path) -> None:
    network, optimiser = made(2)
    seen = load(saved, network, optimiser)
    assert seen.tolist() == [4, 2]
    first, velocities = made(1)
    expected: dict[str, Tensor] = dict(first.named_parameters())
    for name, tensor in network.named_parameters():
        assert torch.equal(tensor, expected[name])
        assert torch.equal(optimiser.steps[name], velocities.steps[name])


@pytest.mark.parametrize("index", [0, 1])
def test_a_tower_takes_its_rows(saved: Path, index: int) -> None:
    """Of five classes three and two."""
    network, optimiser = made(2, Axis(size=2, index=index))
    load(saved, network, optimiser)
    whole = load_file(saved / "network.safetensors")
    for name, tensor in network.named_parameters():
        half = -(-len(whole[name]) // 2)
        assert torch.equal(tensor, whole[name][half * index : half * index + half])
        velocity = made(1)[1].steps[name]
        assert torch.equal(optimiser.steps[name], velocity[half * index : half * index + half])


def test_some_layers_alone_are_taken(saved: Path) -> None:
    network, _ = made(2)
    load_layers(saved, network, ["conv1", "fc7"])
    first, second = (dict(made(seed)[0].named_parameters()) for seed in (1, 2))
    for name, tensor in network.named_parameters():
        taken = name.split(".")[0] in ("conv1", "fc7")
        assert torch.equal(tensor, (first if taken else second)[name])


def test_shapes_are_the_whole_network_s(saved: Path) -> None:
    found = shapes(saved)
    assert found.keys() == NAMES
    assert found["fc8.bias"] == (CLASSES,)
    assert found == {name: tuple(own.shape) for name, own in made(1)[0].named_parameters()}


def test_folders_are_named_by_their_steps(saved: Path) -> None:
    assert of_step(saved.parent, STEP) == saved
    assert step_of(saved) == STEP
    assert of_step(Path("c"), 123_456_789).name == "step-123456789"
    text = (saved / "state.json").read_text()
    assert json.loads(text)["step"] == STEP
    assert text.startswith('{\n "step": 7,\n "epoch": 1,\n')


@pytest.mark.parametrize(
    "name", ["network.safetensors", "optimiser.safetensors", "progress.safetensors"]
)
def test_arrays_that_are_not_there_are_damage(saved: Path, name: str) -> None:
    for harm in (lambda path: path.unlink(), lambda path: save_file({"x": torch.ones(1)}, path)):
        harm(saved / name)
        with pytest.raises(GratisError) as caught:
            load(saved, *made(2))
        said = str(caught.value)
        assert said.startswith(f"{saved} is damaged (")
        assert said.endswith("; point its `latest` at an older one")


def test_what_a_killed_write_left_goes(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    left = folder / "step-00000003.tmp"
    left.mkdir(parents=True)
    (left / "network.safetensors").write_text("")
    (folder / "no folder.tmp").write_text("")  # which is left where it is
    network, optimiser = made(1)
    arrays = collect(network, optimiser, torch.tensor([]), writer=True)
    size = write(folder, arrays, state())
    assert not left.exists()
    assert (folder / "no folder.tmp").exists()
    files = list((folder / "step-00000007").iterdir())
    assert size == sum(path.stat().st_size for path in files)
    assert {path.name for path in files} == checkpoint.FILES | {checkpoint.SUMS}


def test_a_damaged_one_takes_the_place_of_an_older_one(saved: Path, tmp_path: Path) -> None:
    """Of the same step, set aside before."""
    network, optimiser = made(1)
    arrays = collect(network, optimiser, torch.tensor([]), writer=True)
    folder = saved.parent
    write(folder, arrays, replace(state(), step=8))
    aside = folder / "damaged-00000008"
    aside.mkdir()
    (aside / "old").write_text("")
    newest = folder / "step-00000008"
    (newest / "state.json").unlink()
    found, (message,) = checkpoint.undamaged(folder)
    assert found == saved
    why = f"[Errno 2] No such file or directory: '{newest}/state.json'"
    assert message == f"{newest} is damaged ({why}): going on from step-00000007"
    assert aside.exists()
    assert not (aside / "old").exists()
    assert not newest.exists()
