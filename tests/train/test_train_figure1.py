"""Figure 1: the small network, its training that goes on where it ended, and the drawing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from handmade import picture, write_dataset
from numpy.typing import NDArray
from PIL import Image

from gratis.errors import GratisError
from gratis.train.paper.figure1 import (
    Figure1,
    fastest,
    figure1,
    most_epochs,
    read_curves,
    train_one,
    verdict,
    write,
)
from gratis.train.paper.four_layers import (
    FourLayers,
    FourLayersCheckpoint,
    FourLayersTraining,
    TrainingCurve,
    whole_split,
)

TERMS = '{"rate": 1}'
COUNT = 150  # more than a batch


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of 32 pixels, of seven classes."""
    root = tmp_path_factory.mktemp("figure1") / "shards32"
    return write_dataset(root, [drawn(number) for number in range(COUNT)], codec="raw")


def drawn(number: int) -> NDArray[np.uint8]:
    return picture(number, 32)


def test_the_first_images_are_held_without_their_mean(small: Path) -> None:
    images, labels = whole_split(str(small), 131)
    assert labels.tolist() == [number % 7 for number in range(131)]
    mean = np.mean([drawn(number) for number in range(COUNT)], axis=0, dtype=np.float64)
    for number in (0, 57, 130):
        found = images[number].numpy().transpose(1, 2, 0)
        np.testing.assert_allclose(found, drawn(number) - mean, atol=1e-3)
    assert images.shape == (131, 3, 32, 32)


def test_four_layers_are_those_of_the_small_cuda_convnet_net() -> None:
    network = FourLayers("relu", 10, 0)
    deviations = [layer.weight.std().item() for layer in (*network.convs, network.dense)]  # type: ignore[operator]
    assert deviations == pytest.approx([0.0001, 0.01, 0.01, 0.01], rel=0.05)
    assert not any(value.any() for name, value in network.named_parameters() if "bias" in name)
    # 2,432 + 25,632 + 51,264 + 10,250
    assert sum(one.numel() for one in network.parameters()) == 89_578
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    same = FourLayers("tanh", 10, 0)
    assert all(
        torch.equal(a, b) for a, b in zip(network.parameters(), same.parameters(), strict=True)
    )


def test_epochs_to_a_target_are_read_off_between_two_epochs() -> None:
    def reached(*errors: float) -> float | None:
        return TrainingCurve(activation="relu", rate=0.001, errors=list(errors)).epochs_to(0.25)

    assert reached(0.8, 0.5, 0.3, 0.2) == pytest.approx(3.5)
    assert reached(0.25) == 1
    assert reached(0.8, 0.26) is None
    assert reached() is None


def test_the_best_rate_of_each_decides_the_ratio() -> None:
    curves = [
        TrainingCurve(activation="relu", rate=0.001, errors=[0.8, 0.2]),
        TrainingCurve(activation="relu", rate=0.002, errors=[0.5, 0.4, 0.3]),
        TrainingCurve(activation="tanh", rate=0.001, errors=[0.8, 0.7, 0.6]),
    ]
    best = fastest(curves, "relu", 0.25)
    assert best is not None
    assert best.rate == 0.001
    assert "tanh did not reach 25% training error in 3 epochs (60.0%); no ratio" in verdict(
        curves, 0.25
    )
    curves.append(
        TrainingCurve(activation="tanh", rate=0.002, errors=[0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.25])
    )
    assert "ratio 3.7" in verdict(curves, 0.25)  # 7 epochs against 1 + 0.55 / 0.6


def test_a_rate_that_is_behind_is_given_up() -> None:
    options = Figure1(shards="", epochs=60)
    curves = [
        TrainingCurve(activation="relu", rate=0.1, errors=[0.75, 0.5, 0.2]),  # 2 + 25 / 30
        TrainingCurve(activation="relu", rate=0.2, errors=[0.9, 0.8, 0.7]),
        TrainingCurve(activation="tanh", rate=0.1, errors=[0.9] * 60),
    ]
    assert most_epochs(options, [], "relu") == 60
    assert most_epochs(options, curves, "relu") == 3
    assert most_epochs(options, curves, "tanh") == 60
    assert most_epochs(replace(options, target=0.1), curves, "relu") == 60
    assert most_epochs(replace(options, epochs=2), curves, "relu") == 2


@pytest.fixture
def brightness() -> tuple[torch.Tensor, torch.Tensor]:
    """32 images of two classes, dark and bright."""
    labels = torch.arange(32) % 2
    images = torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 20
    return images + 160 * (labels[:, None, None, None] - 0.5), labels


def test_a_network_learns_brightness_and_repeats_itself(
    brightness: tuple[torch.Tensor, torch.Tensor],
) -> None:
    def errors() -> list[float]:
        curve = FourLayersTraining("relu", *brightness, rate=0.01, classes=2, seed=1).epochs()
        return [error for error, _ in zip(curve, range(6), strict=False)]

    first = errors()
    assert min(first) <= 0.25 < first[0]
    assert first == errors()


def test_a_training_that_is_cut_goes_on_as_if_it_had_not_been(
    brightness: tuple[torch.Tensor, torch.Tensor],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options, path = (
        Figure1(shards="", out=tmp_path, epochs=4, target=0.001),
        tmp_path / "relu.safetensors",
    )

    images, labels = (
        brightness[0],
        torch.randint(0, 2, (32,), generator=torch.Generator().manual_seed(1)),
    )

    def call(ends: float, path: Path = path) -> tuple[TrainingCurve, bool, list[torch.Tensor]]:
        training = FourLayersTraining("relu", images, labels, rate=0.01, classes=2, seed=1)
        return *train_one(options, training, FourLayersCheckpoint.read(path, TERMS), ends), list(
            training.network.parameters()
        )

    calls = [call(0) for _ in range(4)]  # of an epoch each
    assert [len(curve.errors) for curve, _, _ in calls] == [1, 2, 3, 4]
    assert [whole for _, whole, _ in calls] == [False, False, False, True]
    assert capsys.readouterr().out.count("stopped after epoch") == 3
    curve, whole, weights = call(float("inf"), tmp_path / "other.safetensors")
    assert (curve, whole) == calls[3][:2]
    assert all(torch.equal(a, b) for a, b in zip(weights, calls[3][2], strict=True))
    assert FourLayersCheckpoint.read(path, '{"rate": 2}').errors == []
    assert (
        FourLayersCheckpoint.read(path, "{}").errors == curve.errors
    )  # of a version that wrote more
    path.write_bytes(path.read_bytes()[:1000])
    assert FourLayersCheckpoint.read(path, TERMS).errors == []


def test_figure1_draws_and_does_not_train_again(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = Figure1(shards=str(small), out=tmp_path, epochs=2, rates=(0.001,), images=16)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # as torch begins
    lines = figure1(options)
    assert not torch.backends.cudnn.allow_tf32
    assert "relu did not reach 25% training error in 2 epochs" in lines[0]
    with Image.open(tmp_path / "figure1.png") as picture:
        assert min(picture.size) > 300
    file = json.loads((tmp_path / "figure1.json").read_text())
    assert [len(curve["errors"]) for curve in file["courses"]] == [2, 2]
    assert [(one["activation"], one["rate"]) for one in file["courses"]] == [
        ("relu", 0.001),
        ("tanh", 0.001),
    ]
    assert (file["target"], file["epochs"], file["ratio"]) == (0.25, 2, None)
    assert file["epochs_to_target"] == {"relu": None, "tanh": None}
    shares = [16 * error for curve in file["courses"] for error in curve["errors"]]
    assert shares == pytest.approx(np.rint(shares))  # of the first 16
    assert lines[1:] == [str(tmp_path / "figure1.png"), str(tmp_path / "figure1.json")]
    assert all(0.25 < error <= 1 for curve in file["courses"] for error in curve["errors"])
    capsys.readouterr()
    assert figure1(options) == lines
    assert "not reached" not in capsys.readouterr().out
    figure1(replace(options, target=0.2))  # no epoch's error depends on it
    assert "not reached" not in capsys.readouterr().out
    # a third epoch goes on after the second: what is known where there is no time for it says so
    assert (
        "relu did not reach 25% training error in 2 epochs"
        in figure1(replace(options, epochs=3, minutes=1e-9))[0]
    )
    figure1(replace(options, epochs=3))
    longer = json.loads((tmp_path / "figure1.json").read_text())["courses"]
    assert [len(curve["errors"]) for curve in longer] == [3, 3]
    figure1(replace(options, epochs=3, out=tmp_path / "anew"))
    assert json.loads((tmp_path / "anew" / "figure1.json").read_text())["courses"] == longer


def test_a_training_that_diverged_is_over(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = Figure1(shards=str(small), out=tmp_path, epochs=2, rates=(1e30,), images=130)
    for times in (1, 0):
        figure1(options)
        assert capsys.readouterr().out.count("relu at rate 1e+30: not reached (no number)") == times
    assert [path.name for path in tmp_path.glob("*.safetensors")] == ["tanh-1e+30.safetensors"]


def test_figure1_is_the_same_from_an_address(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = []
    for name, shards in (("near", str(small)), ("far", f"file://{small}")):
        figure1(Figure1(shards=shards, out=tmp_path / name, epochs=1, rates=(0.001,), images=16))
        files.append((tmp_path / name / "figure1.json").read_text())
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rates": ()}, "--rates has no value; give learning rates, such as --rates 0.004 0.032"),
        ({"rates": (0.1, float("nan"))}, "--rates nan must be a number above 0"),
        ({"minutes": -1.0}, "--minutes -1 must be above 0; leave it out for as long as it takes"),
    ],
)
def test_wrong_figures_stop_with_an_error(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(GratisError, match=message):
        Figure1(shards="x", **wrong)  # type: ignore[arg-type]


def test_figure1_wants_small_images(jpeg_dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(
        GratisError, match=r"64-pixel images, figure 1 wants 32: gratis shards .* --size 32"
    ):
        figure1(Figure1(shards=str(jpeg_dataset), out=tmp_path))


def test_the_ratio_is_of_the_epochs_and_of_the_same_terms_alone(tmp_path: Path) -> None:
    """What an earlier call wrote is read again where its terms agree; a version that wrote more
    terms counts."""
    options = Figure1(shards="", out=tmp_path, epochs=9)
    curves = [
        TrainingCurve(activation="relu", rate=0.1, errors=[0.75, 0.25]),  # 2 epochs
        TrainingCurve(activation="relu", rate=0.2, errors=[0.75, 0.5, 0.25]),
        TrainingCurve(activation="tanh", rate=0.1, errors=[0.75, 0.5, 0.4, 0.3, 0.25]),  # 5
        TrainingCurve(activation="tanh", rate=0.2, errors=[], diverged=True),
    ]
    write(options, {"seed": 1, "images": 7}, curves)
    file = json.loads((tmp_path / "figure1.json").read_text())
    assert file["epochs_to_target"] == {"relu": 2, "tanh": 5}
    assert file["ratio"] == 2.5
    assert (file["terms"], file["epochs"], file["target"]) == ({"seed": 1, "images": 7}, 9, 0.25)
    path = tmp_path / "figure1.json"
    assert read_curves(path, {"seed": 1, "images": 7}) == curves
    assert read_curves(path, {"seed": 1}) == curves
    assert read_curves(path, {"seed": 2, "images": 7}) == []
    assert read_curves(path, {"seed": 1, "classes": 7}) == []
    assert read_curves(tmp_path / "none", {}) == []
    words = verdict(curves, 0.25)
    assert words == (
        "relu 2.0 epochs to 25% training error (rate 0.1); tanh 5.0 epochs to 25% training error "
        "(rate 0.1); ratio 2.5 (paper, CIFAR-10: 6)"
    )
    assert verdict(curves[:2], 0.25).endswith("(rate 0.1); tanh was not trained; no ratio")
    assert verdict(curves, 0.1).startswith("relu did not reach 10% training error in 2 epochs")
