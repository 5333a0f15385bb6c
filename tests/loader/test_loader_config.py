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
        schedule=((0, {"area": (0.3, 1)}), (5, {"crop": 192, "mix": ()})),
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


OFFSET: dict[str, Any] = {"normalize": "mean-image", "mean": "offset"}
TRAINING = "set augment=True, or"
RANGES = "it must be two numbers, the least and the most"

# what is refused, the whole message, and the nearest that is not
REFUSED: list[tuple[dict[str, Any], str, dict[str, Any]]] = [
    ({"crop": 4.0}, "crop is 4.0; it must be a whole number", {"crop": np.int64(4)}),
    ({"threads": 0}, "threads is 0; it must be at least 1", {"threads": 1}),
    ({"window": 0}, "window is 0; it must be at least 1", {"window": 1}),
    ({"views": 101}, "views is 101; it may be at most 100", {"views": 100}),
    (
        {"batch_size": 1048577},
        "batch_size is 1048577; it may be at most 1,048,576",
        {"batch_size": 1048576},
    ),
    (
        {"layout": "NCHW"},
        "layout is 'NCHW'; it may be 'nchw' or 'channels_last' or 'nhwc'",
        {"layout": "nhwc"},
    ),
    ({"seed": -1}, "seed is -1; it must be at least 0 and below 2**64", {"seed": 0}),
    (
        {"seed": 2**64},
        "seed is 18446744073709551616; it must be at least 0 and below 2**64",
        {"seed": 2**64 - 1},
    ),
    ({"flip": 1.5}, "flip is 1.5; it is a probability, from 0 to 1", {"flip": 1}),
    ({"flip": -0.1}, "flip is -0.1; it is a probability, from 0 to 1", {"flip": 0}),
    ({"flip": "0.5"}, "flip is '0.5'; it must be a number", {"flip": 0.5}),
    ({"flip": True}, "flip is True; it must be a number", {"flip": 1.0}),
    ({"augment": 1}, "augment is 1; it must be True or False", {"augment": True}),
    ({"cache": 3}, "cache is 3; it must be the name of a folder", {"cache": Path("shards")}),
    ({"cache_gb": 0}, "cache_gb is 0; it must be above 0, and finite", {"cache_gb": 0.1}),
    (
        {"decoded_gb": float("inf")},
        "decoded_gb is inf; it must be above 0, and finite",
        {"decoded_gb": None},
    ),
    (
        {"outage_s": 86401},
        "outage_s is 86401; it must be from 0 to 86,400 seconds",
        {"outage_s": 86400},
    ),
    ({"noise_until": -1}, "noise_until is -1; it is an epoch, counted from 0", {"noise_until": 0}),
    (
        {"bad_samples": "quarantine", "augment": False},
        "bad_samples='quarantine' is for training: an evaluation must see every sample once",
        {"bad_samples": "quarantine"},
    ),
    (
        {"normalize": "caffe"},
        "normalize is 'caffe'; it may be 'imagenet', 'mean-image', None or (mean, std), three "
        "numbers each",
        {"normalize": "mean-image"},
    ),
    (
        {"normalize": ((0, 0, 0), (1, 1))},
        "normalize is ((0, 0, 0), (1, 1)); it may be (mean, std), two tuples of three numbers",
        {"normalize": ((0, 0, 0), (1, 1, 1))},
    ),
    (
        {"normalize": ((0, 0, 0), (1, 1, 0))},
        "normalize is ((0, 0, 0), (1, 1, 0)); it may be (mean, std) of images scaled to [0, 1], "
        "std above 0; divide grey levels by 255",
        {"normalize": ((1, 1, 1), (1, 1, 0.001))},
    ),
    (
        {"normalize": "imagenet", "mean": "offset"},
        "mean is 'offset'; it is for the mean image; set normalize='mean-image' too",
        OFFSET,
    ),
    (
        {"normalize": None, "noise": "sqrt", "dtype": torch.uint8},
        "dtype=torch.uint8 holds grey levels alone; set normalize=None and noise='off'",
        {"normalize": None, "dtype": torch.uint8},
    ),
    ({"area": 0.5}, f"area is 0.5; {RANGES}", {"area": (0.5, 0.5)}),
    ({"ratio": None}, f"ratio is None; {RANGES}", {"area": None}),
    ({"area": (0, 1)}, "area is (0, 1); it must be a range within (0, 1]", {"area": (0.001, 1)}),
    (
        {"area": (0.5, 1.5)},
        "area is (0.5, 1.5); it must be a range within (0, 1]",
        {"area": (0.5, 1.0)},
    ),
    (
        {"area": (0.5, 1), "ratio": (2, 1)},
        "ratio is (2, 1); it must be a range within (0, 100]",
        {"area": (0.5, 1), "ratio": (1, 100)},
    ),
    (
        {"area": (0.5, 1), "crop_chunk": 2},
        "crop_chunk is for plain crops; with area leave it at 1",
        {"area": (0.5, 1), "crop_chunk": 1},
    ),
    (
        {"area": (0.5, 1), "augment": False},
        f"area is for training; {TRAINING} area=None",
        {"area": None, "augment": False},
    ),
    (
        {"area": (0.5, 1)} | OFFSET,
        "mean='offset' has no meaning for a resized crop; with area choose mean='central'",
        {"area": (0.5, 1), "normalize": "mean-image"},
    ),
    (
        {"operations": (GaussianBlur(3),), "augment": False},
        f"operations are for training; {TRAINING} operations=()",
        {"operations": (GaussianBlur(3),)},
    ),
    (
        {"operations": (GaussianBlur(3),)} | OFFSET,
        "mean='offset' has no meaning here: operations move pixels from their places; choose "
        "mean='central'",
        {"operations": (GaussianBlur(3),), "normalize": "mean-image"},
    ),
    (
        {"views": 2, "augment": False},
        "views is 2; in evaluation it may be 1 or 10",
        {"views": 10, "augment": False},
    ),
    (
        {"repeats": 2, "augment": False},
        "repeats is for training: an evaluation must see every sample once",
        {"repeats": 2},
    ),
    (
        {"crop_chunk": 2, "repeats": 2},
        "crop_chunk is for single views; with views or repeats leave it at 1",
        {"crop_chunk": 2},
    ),
    (
        {"mix": "MixUp"},
        "mix is 'MixUp'; it must be a tuple of MixUp(...) and CutMix(...)",
        {"mix": MixUp(0.2)},
    ),
    (
        {"mix": (CutMix(1.0),), "augment": False},
        f"mix is for training; {TRAINING} mix=()",
        {"mix": (CutMix(1.0),)},
    ),
    (
        {"erasing": 0.25},
        "erasing is 0.25; it must be a RandomErasing(...) or None",
        {"erasing": RandomErasing(0.25)},
    ),
    (
        {"erasing": RandomErasing(0.25), "augment": False},
        f"erasing is for training; {TRAINING} erasing=None",
        {"augment": False},
    ),
    (
        {"erasing": RandomErasing(0.25, mode="rand"), "normalize": None},
        "erasing in mode 'rand' is for a standard deviation of 1; set normalize='imagenet', or "
        "mode='const'",
        {"erasing": RandomErasing(0.25, mode="const"), "normalize": None},
    ),
    (
        {"erasing": RandomErasing(0.25, mode="pixel"), "crop": 4097},
        "crop is 4097; erasing in mode 'pixel' goes up to 4096",
        {"erasing": RandomErasing(0.25, mode="pixel"), "crop": 4096},
    ),
    (
        {"schedule": ((1, {"seed": 3}),)},
        "schedule changes 'seed'; it may change crop, area, ratio, interpolation, antialias, flip, "
        "operations, mix, erasing",
        {"schedule": ((1, {"flip": 0}),)},
    ),
    (
        {"schedule": ((0, {"crop": 9}), (0, {"crop": 8}))},
        "schedule is ((0, {'crop': 9}), (0, {'crop': 8})); it must be as "
        '((0, {"crop": 160}), (6, {"crop": 192})), epochs ascending',
        {"schedule": ((0, {"crop": 9}), (1, {"crop": 8}))},
    ),
    (
        {"schedule": ((1, {"area": (0.5, 1)}),)},
        "schedule turns area on or off; give every epoch a range, or none",
        {"area": (0.1, 1), "schedule": ((1, {"area": (0.5, 1)}),)},
    ),
    (
        {"resize": 256},
        "resize is for evaluation; set augment=False, or resize=None",
        {"resize": 256, "augment": False},
    ),
    (
        {"resize": 223, "augment": False},
        "resize is 223, less than the crop; choose at least 224, or a smaller crop",
        {"resize": 224, "augment": False},
    ),
    (
        {"resize": 256, "augment": False} | OFFSET,
        "mean='offset' has no meaning for resized images; with resize choose mean='central'",
        {"augment": False} | OFFSET,
    ),
]


@pytest.mark.parametrize(("wrong", "message", "right"), REFUSED, ids=[r[1] for r in REFUSED])
def test_what_contradicts_itself_is_refused_and_its_neighbour_taken(
    wrong: dict[str, Any], message: str, right: dict[str, Any]
) -> None:
    with pytest.raises(GratisError) as refused:
        LoaderConfig(**wrong)
    assert str(refused.value) == message
    LoaderConfig(**right)


def test_what_a_schedule_changes_stays_until_it_is_named_again() -> None:
    config = LoaderConfig(
        crop=9, schedule=((1, {"crop": 8}), (3, {"flip": 0.25}), (4, {"crop": 7}))
    )
    epochs = [config.at_epoch(epoch) for epoch in range(6)]
    assert [one.crop for one in epochs] == [9, 8, 8, 8, 7, 7]
    assert [one.flip for one in epochs] == [0.5, 0.5, 0.5, 0.25, 0.25, 0.25]
    assert [one.schedule for one in epochs] == [()] * 6
    assert [one.crop for one in config.stages] == [9, 8, 8, 7]


def test_noise_ends_with_the_epoch_before_the_one_that_is_named() -> None:
    config = LoaderConfig.alexnet(noise_until=2)
    assert [config.noisy(epoch) for epoch in range(4)] == [True, True, False, False]
    assert not replace(config, augment=False).noisy(0)
    assert not replace(config, noise="off").noisy(0)
    assert LoaderConfig.alexnet().noisy(10**6)


def test_only_whole_images_are_resized_to_8_sevenths_of_the_crop() -> None:
    evaluation = LoaderConfig.evaluation(crop=224)
    assert evaluation.shorter_side(whole=True) == 256
    assert evaluation.shorter_side(whole=False) is None
    assert replace(evaluation, resize=232).shorter_side(whole=True) == 232
    assert LoaderConfig(crop=224).shorter_side(whole=True) is None


def test_an_order_is_named_by_what_it_depends_on() -> None:
    window: dict[str, Any] = {"order": "window", "window": 5}
    assert LoaderConfig().order_name == LoaderConfig(window=5).order_name == "full"
    assert LoaderConfig(**window).order_name == "window:5"
    assert LoaderConfig(**window, repeats=3).order_name == "window:5, each 3 times"
    assert LoaderConfig.evaluation(**window).order_name == "fixed"
