"""Whole runs against a training step that is not the product's: `numpy_alexnet`, in float64."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy_alexnet
import pytest
import torch
from handmade import CLASSES, as_validation, centres, picture, write_dataset
from one_rank import planned, run_alone
from safetensors.torch import load_file
from small import ROOT, command, of_kind
from test_train_robust import finish, wait_for

from gratis.errors import PREEMPTED
from gratis.loader import Loader, LoaderConfig
from gratis.train.metrics import share_of_loss
from gratis.train.network.alexnet import AlexNet
from gratis.train.network.dropout import DropoutKey
from gratis.train.recipes import RELEASED

SEED, SAMPLES, BATCH, EPOCHS, STEPS = 3, 69, 32, 2, 3  # the last batch has 5 samples
CROP, SCALE = 56, 1 / 64
OVERHANG = 3  # 13 windows of 11 every 4 pixels end at 59
RECIPE = replace(
    RELEASED, image_size=64, crop=CROP, width=0.0625, init="he", input_scale=SCALE, batch=BATCH
)
OPTIONS = (
    *f"--recipe released --image-size 64 --crop {CROP} --width 0.0625 --init he --batch {BATCH} "
    f"--input-scale {SCALE} --epochs {EPOCHS} --drops 0.5 --conv1-slow 0.5 --conv1-frozen None "
    f"--noise-until 0.5 --seed {SEED} --save-every 0 --run one".split(),
)


def rates_of(step: int, names: list[str]) -> dict[str, float]:
    """Weights learn at 0.01 and from the second epoch at 0.001, conv1's then at 0.00001; biases at
    0.02 throughout."""
    late = step >= STEPS
    weights = {"conv1.weight": 1e-5} if late else {}
    return {
        name: weights.get(name, 1e-3 if late else 1e-2) if name.endswith("weight") else 2e-2
        for name in names
    }


def initial() -> numpy_alexnet.Parameters:
    network = AlexNet(RECIPE, CLASSES, seed=SEED)
    return {
        name: value.detach().double().numpy().copy() for name, value in network.named_parameters()
    }


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("reference") / "shards"
    return write_dataset(root, [picture(i) for i in range(SAMPLES)])


@pytest.fixture(scope="module")
def validated(shards: Path) -> Path:
    """The same images, of which training is also the validation split."""
    return as_validation(Path(shutil.copytree(shards, shards.with_name("validated"))))


@pytest.fixture(scope="module")
def reference(shards: Path) -> tuple[numpy_alexnet.Parameters, list[float]]:
    """Weights after both epochs, and the loss of each step."""
    parameters = initial()
    velocities = {name: np.zeros_like(value) for name, value in parameters.items()}
    losses = []
    config = LoaderConfig.alexnet(batch_size=BATCH, seed=SEED, crop=CROP, noise_until=1)
    with Loader(shards, "train", config) as loader:
        for epoch in range(EPOCHS):
            for number, (images, labels, ids) in enumerate(loader):
                real = ids.numpy() >= 0
                step = epoch * STEPS + number
                network = numpy_alexnet.Network(parameters, SCALE, OVERHANG)
                masks = {
                    f"fc{layer}": numpy_alexnet.dropout_mask(SEED, step, layer, BATCH, 256)[real]
                    for layer in (6, 7)
                }
                loss, gradients = network.loss_and_gradients(
                    images.double().numpy()[real], labels.numpy()[real], masks
                )
                rates = rates_of(step, list(parameters))
                numpy_alexnet.update(parameters, velocities, gradients, rates)
                losses.append(loss)
    assert real.sum() == SAMPLES - 2 * BATCH == 5
    return parameters, losses


def assert_equal(run: Path, reference: numpy_alexnet.Parameters) -> None:
    """What each layer has learnt, to a part in a thousand: float32 beside float64."""
    trained = load_file(run / f"checkpoints/step-{EPOCHS * STEPS:08d}/network.safetensors")
    assert trained.keys() == reference.keys()
    for name, begin in initial().items():
        learnt = reference[name] - begin
        difference = np.linalg.norm(trained[name].double().numpy() - reference[name])
        assert difference < 1e-3 * np.linalg.norm(learnt), name


def test_gradients_of_a_batch() -> None:
    """In float64 nearly to the bit, so that the whole runs below need not be."""
    network = AlexNet(RECIPE, CLASSES, seed=SEED).double()
    rng = np.random.default_rng(0)
    images, labels = rng.normal(0, 60, (8, 3, CROP, CROP)), rng.integers(0, CLASSES, 8)
    key = DropoutKey(seed=SEED, step=5, rows=range(8))
    loss = share_of_loss(network(torch.from_numpy(images), key), torch.from_numpy(labels), 8)
    loss.backward()  # type: ignore[no-untyped-call]
    masks = {f"fc{i}": numpy_alexnet.dropout_mask(SEED, 5, i, 8, 256) for i in (6, 7)}
    expected = numpy_alexnet.Network(initial(), SCALE, OVERHANG)
    value, gradients = expected.loss_and_gradients(images, labels, masks)
    assert loss.item() == pytest.approx(value, rel=1e-13)
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        np.testing.assert_allclose(
            parameter.grad.numpy(), gradients[name], rtol=0, atol=1e-12, err_msg=name
        )


def assert_losses(run: Path, losses: list[float]) -> None:
    """A report of an interval of k steps is their mean."""
    first = 0
    for report in of_kind(run, "step"):
        last = report["step"]
        assert report["loss"] == pytest.approx(np.mean(losses[first:last]), rel=1e-4)
        first = last
    assert first == EPOCHS * STEPS


def test_a_run_of_one_rank_is_the_references(
    tmp_path: Path, shards: Path, reference: tuple[numpy_alexnet.Parameters, list[float]]
) -> None:
    weights, losses = reference
    assert run_alone(planned(tmp_path, shards, *OPTIONS)) == 0
    assert_equal(tmp_path / "one", weights)
    assert_losses(tmp_path / "one", losses)


def test_a_run_that_is_stopped_after_each_step_is_the_references(
    tmp_path: Path, shards: Path, reference: tuple[numpy_alexnet.Parameters, list[float]]
) -> None:
    """In each place of an epoch: behind its first batch, before its last, at its end."""
    (weights, losses), launch = reference, planned(tmp_path, shards, *OPTIONS)
    for step in range(1, EPOCHS * STEPS):
        assert run_alone(launch, stop_at=0) == PREEMPTED
        saved = of_kind(tmp_path / "one", "checkpoint")[-1]
        assert (saved["epoch"], saved["step"]) == (step // STEPS, step)
    assert run_alone(launch) == 0
    assert_equal(tmp_path / "one", weights)
    assert_losses(tmp_path / "one", losses)
    receipts = of_kind(tmp_path / "one", "receipt")
    assert [(one["seen"], one["missing"], one["duplicates"]) for one in receipts] == [
        (SAMPLES, 0, 0)
    ] * EPOCHS


@pytest.mark.starts
@pytest.mark.parametrize("gpus", ["1", "2", "2 --tower-ranks 1"], ids=["one", "towers", "data"])
def test_a_run_is_the_references(
    tmp_path: Path,
    validated: Path,
    reference: tuple[numpy_alexnet.Parameters, list[float]],
    gpus: str,
) -> None:
    """Its last batch padded, its rates dropped in the middle, its noise off in the second epoch; by
    one process, by a process for each tower, by two that have both and half of each batch. What
    these have of an odd number of validation images is measured together."""
    done = subprocess.run(
        command(tmp_path, validated, *OPTIONS, "--gpus", *gpus.split()),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    weights, losses = reference
    assert_equal(tmp_path / "one", weights)
    assert_losses(tmp_path / "one", losses)
    network = numpy_alexnet.Network(weights, SCALE, OVERHANG)
    images = centres([picture(i) for i in range(SAMPLES)], CROP)
    expected = numpy_alexnet.evaluation(network, images, np.arange(SAMPLES) % CLASSES)
    _, last, ten = of_kind(tmp_path / "one", "eval")
    assert [last[name] for name in ("top1", "top5", "nll")] == pytest.approx(expected, rel=1e-4)
    assert [(one["views"], one["images"]) for one in (last, ten)] == [(1, SAMPLES), (10, SAMPLES)]


@pytest.mark.starts
def test_a_run_that_was_stopped_and_goes_on_elsewhere_is_the_references(
    tmp_path: Path, shards: Path, reference: tuple[numpy_alexnet.Parameters, list[float]]
) -> None:
    """From one process to two, inside an epoch."""
    slowed = os.environ | {"PYTHONPATH": str(ROOT / "tests/server/slowed"), "GRATIS_SLOW_STEP": "1"}
    process = subprocess.Popen(
        command(tmp_path, shards, *OPTIONS, "--gpus", "1"),
        cwd=ROOT,
        text=True,
        stdout=-1,
        stderr=-1,
        env=slowed,
    )
    wait_for(tmp_path / "one", process, 1)
    process.send_signal(signal.SIGTERM)
    finish(process, 75)
    stopped_at = of_kind(tmp_path / "one", "checkpoint")[-1]["step"]
    assert 0 < stopped_at < EPOCHS * STEPS
    again = subprocess.Popen(
        command(tmp_path, shards, *OPTIONS, "--gpus", "2"),
        cwd=ROOT,
        text=True,
        stdout=-1,
        stderr=-1,
    )
    finish(again, 0)
    assert_equal(tmp_path / "one", reference[0])
