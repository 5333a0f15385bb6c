"""The named configurations: what each says, and that changes win."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gratis import ColorJitter, CutMix, GaussianBlur, MixUp, RandomErasing
from gratis.errors import GratisError
from gratis.loader import Loader, LoaderConfig

CROP = 48


def test_plain_has_no_noise_and_no_division() -> None:
    plain = LoaderConfig()
    assert (plain.noise, plain.normalize, plain.area, plain.flip) == ("off", "imagenet", None, 0.5)
    assert (plain.remainder, plain.layout, plain.dtype) == ("short", "nchw", torch.float32)


def test_named_sets() -> None:
    assert LoaderConfig.imagenet() == LoaderConfig(area=(0.08, 1.0))
    assert LoaderConfig.evaluation() == LoaderConfig(augment=False)
    alexnet = LoaderConfig(normalize="mean-image", noise="sqrt", remainder="pad")
    assert LoaderConfig.alexnet() == alexnet


@pytest.mark.parametrize("name", ["imagenet", "alexnet", "evaluation"])
def test_changes_win_and_are_checked(name: str) -> None:
    named = getattr(LoaderConfig, name)
    changes = {"remainder": "drop", "batch_size": 7, "crop": 3, "normalize": None, "noise": "off"}
    for field, value in changes.items():
        assert getattr(named(**changes), field) == value
    with pytest.raises(GratisError, match="batch_size is 0"):
        named(batch_size=0)
    with pytest.raises(TypeError, match="colour"):
        named(colour=3)


def test_a_mean_and_a_deviation_in_lists_are_the_same_value() -> None:
    config = LoaderConfig(normalize=([0, 0.5, 1], [1, 0.5, np.float64(0.25)]))  # type: ignore[arg-type]
    same = LoaderConfig(normalize=((0.0, 0.5, 1.0), (1.0, 0.5, 0.25)))
    assert config == same
    assert hash(config) == hash(same)
    assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize(("name", "pair"), [("area", (0.1, 1.0)), ("ratio", (0.5, 2.0))])
def test_a_range_in_a_list_is_the_same_value(name: str, pair: tuple[float, float]) -> None:
    """As YAML and JSON have it; a configuration is no value if it can be changed or not hashed."""
    listed = LoaderConfig.imagenet(**{name: list(pair)})
    assert listed == LoaderConfig.imagenet(**{name: pair})
    assert hash(listed) == hash(LoaderConfig.imagenet(**{name: pair}))


def test_training_and_evaluation_see_the_same_scale(jpeg_dataset: Path) -> None:
    """The deviations of the plain and the ImageNet configuration are those of their evaluation, to
    a tenth: crops differ."""
    deviations = []
    for config in (LoaderConfig(), LoaderConfig.imagenet(), LoaderConfig.evaluation()):
        with Loader(jpeg_dataset, "train", replace(config, batch_size=101, crop=CROP)) as loader:
            deviations.append(float(next(iter(loader)).images.std()))
    assert max(deviations) < 1.1 * min(deviations)


def test_imagenet_is_the_normalisation_of_torchvision(raw_dataset: Path) -> None:
    """Of the grey levels themselves: x / 255 minus mean, by standard deviation."""
    evaluation = LoaderConfig.evaluation(batch_size=101, crop=CROP)
    grey = replace(evaluation, normalize=None, dtype=torch.uint8)
    with Loader(raw_dataset, "train", evaluation) as a, Loader(raw_dataset, "train", grey) as b:
        images, levels = next(iter(a)).images, next(iter(b)).images
    mean = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64).view(3, 1, 1)
    wanted = (levels.double() / 255 - mean) / std
    torch.testing.assert_close(images.double(), wanted, rtol=0, atol=2e-6)


@pytest.mark.parametrize("number", [np.float16(0.25), np.float32(0.25), 0.25])
def test_a_share_is_mirrored_whatever_the_number_s_type(jpeg_dataset: Path, number: Any) -> None:
    loader = Loader(jpeg_dataset, "train", LoaderConfig(crop=32, flip=number))
    flips = [loader.epoch_plan(e).draws(np.arange(101))[0].flip for e in range(20)]
    assert np.mean(flips) == pytest.approx(0.25, abs=0.05)  # 5 standard deviations


def test_so_many_batches_in_advance_are_a_slip() -> None:
    """They would fill the memory with empty places before the first batch."""
    with pytest.raises(GratisError, match=r"prefetch is 1000000000; it may be at most 1,048,576"):
        LoaderConfig(prefetch=10**9)


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize("decoded", ["none", "host"])
def test_nobody_or_everybody_is_mirrored(raw_dataset: Path, flip: float, decoded: str) -> None:
    """A crop of the whole image has no other freedom."""
    fields = {"batch_size": 101, "crop": 64, "normalize": None, "dtype": torch.uint8}
    training = LoaderConfig(flip=flip, decoded=decoded, **fields)  # type: ignore[arg-type]
    still = LoaderConfig.evaluation(**fields)
    with Loader(raw_dataset, "train", training) as a, Loader(raw_dataset, "train", still) as b:
        seen, stored = next(iter(a)), next(iter(b)).images
    wanted = stored[seen.ids]
    assert torch.equal(seen.images, wanted.flip(3) if flip else wanted)


def test_from_plain_values_as_a_json_file_holds_them() -> None:
    text = """{"crop": 160, "area": [0.08, 1], "dtype": "bfloat16", "normalize": "imagenet",
        "operations": [{"type": "ColorJitter", "brightness": [0.5, 1.5]}, {"type": "GaussianBlur",
        "kernel_size": 3}], "mix": [{"type": "MixUp", "alpha": 0.2}, {"type": "CutMix"}],
        "erasing": {"type": "RandomErasing", "p": 0.1}, "schedule": [[0, {"area": [0.3, 1]}],
        [5, {"crop": 192, "mix": []}]]}"""
    expected = LoaderConfig(
        crop=160,
        area=(0.08, 1),
        dtype=torch.bfloat16,
        operations=(ColorJitter((0.5, 1.5)), GaussianBlur(3)),
        mix=(MixUp(0.2), CutMix()),
        erasing=RandomErasing(0.1),
        schedule=((0, {"area": (0.3, 1)}), (5, {"crop": 192, "mix": ()})),  # type: ignore[arg-type]
    )
    assert LoaderConfig.from_dict(json.loads(text)) == expected
    assert LoaderConfig.from_dict({}) == LoaderConfig()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"crp": 3}, "LoaderConfig has no 'crp'; it has batch_size"),
        ({"crop": 0}, "crop is 0; it must be at least 1"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"dtype": ["float32"]}, "dtype is"),
        ({"mix": [{"type": "Mixup"}]}, "type is 'Mixup'; it may be ColorJitter"),
        ({"mix": [{"type": ["MixUp"]}]}, r"type is \('MixUp',\)|type is \['MixUp'\]"),
        ({"mix": [{"alpha": 0.2}]}, "must be a tuple of MixUp"),
        ({"mix": [{"type": "MixUp", "beta": 1}]}, "MixUp has no 'beta'; it has alpha, p"),
        ({"operations": [{"type": "GaussianBlur"}]}, "GaussianBlur: .*kernel_size"),
        ([["crop", 3]], "must be fields and values"),
        (None, "must be fields and values"),
    ],
)
def test_plain_values_that_mean_nothing(values: Any, message: str) -> None:
    with pytest.raises(GratisError, match=message):
        LoaderConfig.from_dict(values)
