"""A run learns what can be learned, of a dataset whose size nothing divides."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import numpy_alexnet
import pytest
from handmade import CLASSES, SIZE, as_validation, centres, write_dataset
from numpy.typing import NDArray
from one_rank import planned, run_alone
from safetensors.numpy import load_file
from small import of_kind

from gratis.dataset import read_manifest
from gratis.errors import PREEMPTED

SAMPLES, EPOCHS, STEPS = 145, 16, 5  # 4 batches of 32 and one of 17
OPTIONS = (
    *f"--recipe released --image-size {SIZE} --crop 56 --width 0.0625 --init he --batch 32 --rate "
    f"0.02 --input-scale 0.015625 --epochs {EPOCHS} --drops 0.75 --conv1-slow None --conv1-frozen "
    "None --noise-until 0.75 --save-every 1000 --save-probabilities --run one".split(),
)
COLOURS = (
    *[(200, 60, 60), (60, 200, 60), (60, 60, 200), (200, 200, 60), (200, 60, 200), (60, 200, 200)],
    (128, 128, 128),
)


def coloured(number: int) -> NDArray[np.uint8]:
    """Noise around the colour of its class."""
    noise = np.random.default_rng(number).integers(-50, 51, (SIZE, SIZE, 3))
    return (np.array(COLOURS[number % CLASSES]) + noise).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of which training is also the validation split."""
    root = tmp_path_factory.mktemp("learning") / "shards"
    return as_validation(write_dataset(root, [coloured(i) for i in range(SAMPLES)]))


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("learned")
    assert run_alone(planned(runs, shards, *OPTIONS)) == 0
    return runs / "one"


def test_the_loss_falls_from_chance_to_little(run: Path) -> None:
    """From ln 7 = 1.95, with half of the units dropped; 0.54 when this was written."""
    steps = of_kind(run, "step")
    assert steps[0]["loss"] == pytest.approx(math.log(CLASSES), abs=0.15)
    assert steps[-1]["loss"] < 0.8
    assert steps[-1]["top1"] > 0.85


def test_what_was_learned_is_measured(run: Path) -> None:
    """Of the same images, and with all of the units."""
    evaluations = of_kind(run, "eval")
    assert [one["views"] for one in evaluations] == [1] * EPOCHS + [10]
    assert {one["images"] for one in evaluations} == {SAMPLES}
    epochs = [*range(1, EPOCHS + 1), EPOCHS]  # that are complete
    assert [(one["epoch"], one["step"]) for one in evaluations] == [(n, STEPS * n) for n in epochs]
    for one in evaluations[-2:]:
        assert one["top1"] > 0.95
        assert one["nll"] < 0.5
    assert evaluations[0]["top1"] < 0.5
    assert evaluations[0]["nll"] == pytest.approx(math.log(CLASSES), abs=0.3)
    hits = [one[top] * SAMPLES for one in evaluations for top in ("top1", "top5")]
    assert hits == pytest.approx(np.rint(hits), abs=1e-6)
    assert all(one["top1"] <= one["top5"] <= 1 for one in evaluations)


def test_an_evaluation_is_the_references(run: Path) -> None:
    """Of the centres that Pillow and NumPy cut out, by the network that the run has left, with half
    of each unit."""
    weights = load_file(run / f"checkpoints/step-{EPOCHS * STEPS:08d}/network.safetensors")
    parameters = {name: value.astype(np.float64) for name, value in weights.items()}
    network = numpy_alexnet.Network(parameters, 0.015625, 3)  # 13 windows of 11 end at 59
    images = centres([coloured(i) for i in range(SAMPLES)], 56)
    expected = numpy_alexnet.evaluation(network, images, np.arange(SAMPLES) % CLASSES)
    last = next(one for one in of_kind(run, "eval") if one["epoch"] == EPOCHS)
    found = [last[name] for name in ("views", "top1", "top5", "nll")]
    assert found == pytest.approx([1, *expected], rel=1e-4)


def test_the_ten_views_probabilities_are_those_that_were_scored(run: Path) -> None:
    kept = load_file(run / "probabilities.safetensors")
    assert kept["labels"].tolist() == [number % CLASSES for number in range(SAMPLES)]
    np.testing.assert_allclose(kept["probabilities"].sum(1), 1, atol=1e-5)
    last = of_kind(run, "eval")[-1]
    right = kept["probabilities"][np.arange(SAMPLES), kept["labels"]]
    assert last["nll"] == pytest.approx(-np.log(right).mean(), rel=1e-4)
    assert last["top1"] == pytest.approx((kept["probabilities"].argmax(1) == kept["labels"]).mean())


def test_its_start_says_what_is_trained_on_what(run: Path, shards: Path) -> None:
    (start,) = of_kind(run, "start")
    expected = {
        "run": "one",
        "recipe": "released",
        "mesh": {"data": 1, "tower": 1},
        "world": 1,
        "device": "cpu",
        "device_name": "CPU",
        "pid": os.getpid(),
        "dataset": read_manifest(shards).hash,
        "classes": CLASSES,
        "train_images": SAMPLES,
        "val_images": SAMPLES,
        "epochs": EPOCHS,
        "steps_per_epoch": STEPS,
        "batch_size": 32,
    }
    assert {name: start[name] for name in expected} == expected
    config = start["config"]
    assert (config["recipe"]["rate"], config["recipe"]["drops"]) == (0.02, [0.75])
    assert (config["seed"], config["save_every"], config["shards"]) == (0, 1000, str(shards))
    assert {"command", "outage_s", "read_timeout_s"}.isdisjoint(config)  # version 0.2 reads it
    assert start["command"].split()[0] == "gratis"
    assert of_kind(run, "warning") == []
    (saved,) = of_kind(run, "checkpoint")
    assert (saved["epoch"], saved["step"]) == (EPOCHS, EPOCHS * STEPS)


def test_each_epoch_has_each_image_once(run: Path) -> None:
    steps, receipts = of_kind(run, "step"), of_kind(run, "receipt")
    whole = {"seen": SAMPLES, "missing": 0, "duplicates": 0, "dropped": 0}
    assert [{name: one[name] for name in whole} for one in receipts] == [whole] * EPOCHS
    assert [(one["epoch"], one["step"]) for one in receipts] == [
        (n, STEPS * (n + 1)) for n in range(EPOCHS)
    ]
    assert sum(one["images"] for one in steps) == EPOCHS * SAMPLES
    assert sum(one["steps"] for one in steps) == steps[-1]["step"] == EPOCHS * STEPS
    assert [one["lr"] for one in steps] == pytest.approx(
        [0.02 if one["step"] <= 12 * STEPS else 0.002 for one in steps]
    )
    ended = of_kind(run, "end")
    assert [(one["outcome"], one["error"]) for one in ended] == [("finished", None)]


def test_a_resumed_run_knows_what_was_measured(shards: Path, tmp_path: Path) -> None:
    """The plateau schedule goes by it. Ended behind each step of an epoch, in its validation, and
    in the next epoch, a run validates each epoch once."""
    launch = planned(tmp_path, shards, *OPTIONS, "--epochs", "3", "--save-every", "0")
    for stop_at in [0] * (STEPS + 1) + [STEPS + 1]:
        assert run_alone(launch, stop_at=stop_at) == PREEMPTED
    assert run_alone(launch) == 0
    evaluations = of_kind(launch.folder, "eval")
    known = [(1, 1), (2, 1), (3, 1), (3, 10)]
    assert [(one["epoch"], one["views"]) for one in evaluations] == known
    state = json.loads((launch.folder / "checkpoints/step-00000015/state.json").read_text())
    assert (state["step"], state["epoch"]) == (3 * STEPS, 3)
    assert state["errors"] == [1 - one["top1"] for one in evaluations[:2]]


def test_a_run_that_diverges_says_so(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launch = planned(tmp_path, shards, *OPTIONS, "--rate", "1e30")
    assert run_alone(launch) == 1
    (ended,) = of_kind(launch.folder, "end")
    why = f"the loss is not finite at step {ended['step']}"
    assert (ended["outcome"], ended["error"]) == ("diverged", why)
    message = f"error: {why}; there is no good checkpoint: begin again with a lower --rate\n"
    assert capsys.readouterr().err.endswith(message)
    assert not (launch.folder / "checkpoints").exists()
