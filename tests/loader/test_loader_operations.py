"""`LoaderConfig.operations`: whoever decodes, on any number of ranks, after any resume the same."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batches import LAYOUTS, assert_same, epoch
from engine_cases import needs_library
from handmade import FEW, picture, write_dataset

from gratis import GratisError, Loader, LoaderConfig
from gratis.loader.augmentations import (
    AugMix,
    ColorJitter,
    GaussianBlur,
    Operation,
    RandAugment,
    RandomAdjustSharpness,
    RandomGrayscale,
    RandomPosterize,
    RandomSolarize,
    TimmRandAugment,
    TrivialAugmentWide,
)
from gratis.loader.decoding import native
from gratis.loader.engine import library
from gratis.loader.views.operations_reference import apply_program

SIMCLR: tuple[Operation, ...] = (
    ColorJitter(0.4, 0.4, 0.2, 0.1, p=0.8),
    RandomGrayscale(0.2),
    GaussianBlur(5, p=0.5),
    RandomSolarize(128, p=0.2),
)
CASES: dict[str, tuple[Operation, ...]] = {
    "trivial": (TrivialAugmentWide(),),
    "rand": (RandAugment(),),
    "timm": (TimmRandAugment(),),
    "augmix": (AugMix(),),
    "simclr": SIMCLR,
}
BYTES: dict[str, Any] = {"normalize": None, "dtype": torch.uint8}


def loader(root: Path, operations: tuple[Operation, ...], **options: Any) -> Loader:
    given: dict[str, Any] = {"batch_size": 25, "crop": 48, "threads": 2, "seed": 3} | options
    rank, world = given.pop("rank", 0), given.pop("world_size", 1)
    config = LoaderConfig(operations=operations, **given)
    return Loader(root, "train", config, rank=rank, world_size=world)


@needs_library
@pytest.mark.parametrize("name", CASES)
def test_pixels_are_the_reference_s(few_jpeg: Path, name: str) -> None:
    """Of the crops that a loader without operations makes."""
    ours, plain = (loader(few_jpeg, each, **BYTES) for each in (CASES[name], ()))
    plan, differ = ours.epoch_plan(0), 0
    for made, crops in zip(epoch(ours), epoch(plain), strict=True):
        program = plan.program(made.ids.numpy())
        assert program is not None
        rows = zip(made.images.numpy(), crops.images.numpy(), *program, strict=True)
        for found, crop, ops, values in rows:
            expected = apply_program(crop, ops, values).astype(int)
            most = 1 if library.Op.BLUR in ops else 0
            assert np.abs(found - expected).max() <= most
            differ += not np.array_equal(found, crop)
    assert differ > 20


@needs_library
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("area", [None, (0.1, 1.0)])
def test_batches_do_not_depend_on_who_decodes(few_jpeg: Path, area: Any, layout: Any) -> None:
    forms: list[dict[str, Any]] = [
        {},
        {"dtype": torch.bfloat16},
        {"normalize": "mean-image", "noise": "sqrt", "remainder": "pad"},
        BYTES,
    ]
    for form in forms:
        given = form | {"area": area, "layout": layout}
        ours = epoch(loader(few_jpeg, SIMCLR, engine="native", **given))
        assert_same(epoch(loader(few_jpeg, SIMCLR, engine="dali", **given)), ours)
        cached = loader(few_jpeg, SIMCLR, decoded="host", decoded_gb=1.0, **given)
        assert_same(epoch(cached), ours)
        cached.set_epoch(0)
        assert_same(epoch(cached), ours)


@needs_library
def test_nor_on_what_the_engine_refuses(tmp_path: Path) -> None:
    """Every third image is progressive."""

    def options(number: int) -> dict[str, Any]:
        return {"progressive": number % 3 == 0}

    images = [picture(number) for number in range(50)]
    root = write_dataset(tmp_path / "mixed", images, options=options)
    ours = loader(root, SIMCLR, engine="native")
    found = epoch(ours)
    assert ours.take_counters()["fallback"] == 17
    assert_same(found, epoch(loader(root, SIMCLR, engine="dali")))


@needs_library
def test_each_view_and_copy_has_a_program_of_its_own(few_jpeg: Path) -> None:
    """In the epochs that the schedule gives operations to."""
    given: dict[str, Any] = BYTES | {"views": 2, "repeats": 2, "batch_size": 50}
    schedule: Any = ((0, {"operations": ()}), (1, {"operations": CASES["trivial"]}))
    ours = loader(few_jpeg, SIMCLR, schedule=schedule, **given)
    plain = loader(few_jpeg, (), **given)
    assert_same(epoch(ours), epoch(plain))
    plan = ours.epoch_plan(1)
    steps = plan.ids_by_step()
    for ids, made, crops in zip(steps, epoch(ours), epoch(plain), strict=True):
        program = plan.program(ids)
        assert program is not None
        assert len(np.unique(program.values[:, 0], axis=0)) > len(ids)
        views = (batch.images.flatten(0, 1).numpy() for batch in (made, crops))
        for found, crop, ops, values in zip(*views, *program, strict=True):
            np.testing.assert_array_equal(found, apply_program(crop, ops, values))


@needs_library
def test_raw_pixels(few_raw: Path) -> None:
    ours, plain = (loader(few_raw, each, **BYTES) for each in (SIMCLR, ()))
    program = ours.epoch_plan(0).program(np.arange(FEW))
    assert program is not None
    for made, crops in zip(epoch(ours), epoch(plain), strict=True):
        for sample, found, crop in zip(made.ids.tolist(), made.images, crops.images, strict=True):
            ops, values = program.ops[sample], program.values[sample]
            expected = apply_program(crop.numpy(), ops, values).astype(int)
            assert np.abs(found.numpy() - expected).max() <= 1


@needs_library
@pytest.mark.parametrize("operations", CASES.values(), ids=CASES)
def test_ranks_and_resuming(few_jpeg: Path, operations: tuple[Operation, ...]) -> None:
    whole = epoch(loader(few_jpeg, operations, batch_size=24))
    ranks = [
        epoch(loader(few_jpeg, operations, batch_size=24, rank=rank, world_size=3))
        for rank in range(3)
    ]
    for batch, *parts in zip(whole, *ranks, strict=True):
        assert torch.equal(batch.images, torch.cat([part.images for part in parts]))
    first = loader(few_jpeg, operations, batch_size=24)
    iterator = iter(first)
    next(iterator)
    second = loader(few_jpeg, operations, batch_size=24)
    second.load_state_dict(first.state_dict())
    assert_same(epoch(second), whole[1:])


@needs_library
def test_epochs_and_seeds_differ(few_jpeg: Path) -> None:
    one = loader(few_jpeg, SIMCLR)
    programs = [one.epoch_plan(number).program(np.arange(FEW)) for number in (0, 0, 1)]
    other = loader(few_jpeg, SIMCLR, seed=4).epoch_plan(0).program(np.arange(FEW))
    assert all(program is not None for program in [*programs, other])
    values = [program.values for program in [*programs, other] if program]
    assert np.array_equal(values[0], values[1])
    assert not np.array_equal(values[0], values[2])
    assert not np.array_equal(values[0], values[3])


def test_without_the_library_there_are_no_operations(
    few_jpeg: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "load", lambda: None)
    with pytest.raises(GratisError, match=r"operations are the engine's, and .* compiler"):
        loader(few_jpeg, SIMCLR)


BAD: list[tuple[Any, str]] = [
    (lambda: LoaderConfig(operations=TrivialAugmentWide()), "operations is Trivial.* tuple"),
    (lambda: LoaderConfig(operations=("grey",)), "operations has .grey.; it may be .*ColorJitter"),
    (lambda: LoaderConfig(operations=SIMCLR, augment=False), "operations are for training"),
    (lambda: LoaderConfig(operations=SIMCLR * 17), "operations are 68; at most 64"),
    (lambda: LoaderConfig(operations=(GaussianBlur(23),), crop=11), "reaches beyond .*crop is 11"),
    (
        lambda: LoaderConfig(operations=SIMCLR, normalize="mean-image", mean="offset"),
        "mean='offset' has no meaning here",
    ),
    (lambda: ColorJitter(-1), "ColorJitter's brightness is -1; it must be at least 0"),
    (lambda: ColorJitter(hue=0.7), "hue is 0.7; it must be .* within -0.5 and 0.5"),
    (lambda: ColorJitter(contrast=(2, 1)), r"contrast is \(2, 1\)"),
    (lambda: ColorJitter(saturation="much"), "saturation is 'much'"),
    (lambda: RandomGrayscale(1.5), "p is 1.5; it must be a number from 0 to 1"),
    (lambda: RandomGrayscale(float("nan")), "p is nan"),
    (lambda: RandomPosterize(9), "bits is 9; it must be a whole number from 0 to 8"),
    (lambda: GaussianBlur(22), "kernel_size is 22; it must be odd"),
    (lambda: GaussianBlur((3, 129)), "kernel_size is .3, 129.; it must be odd, from 1 to 127"),
    (lambda: GaussianBlur(3, sigma=0), "sigma is 0"),
    (lambda: TrivialAugmentWide(1), "num_magnitude_bins is 1"),
    (lambda: TrivialAugmentWide(interpolation=np.array([1, 2])), "interpolation is array"),
    (lambda: TrivialAugmentWide(interpolation="bicubic"), "interpolation is 'bicubic'"),
    (lambda: RandAugment(magnitude=31), "magnitude is 31; it must be a whole number from 0 to 30"),
    (lambda: RandAugment(fill=(1, 2)), r"fill is \(1, 2\)"),
    (lambda: AugMix(mixture_width=11), "mixture_width is 11"),
    (lambda: AugMix(alpha=0), "alpha is 0"),
]


@pytest.mark.parametrize(("make", "message"), BAD)
def test_contradictions_are_one_line(make: Any, message: str) -> None:
    with pytest.raises(GratisError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)


# of a number: whose it is, the least and the most that it may be, and the next beyond
LIMITS: list[tuple[Any, str, float, float, float]] = [
    (RandomPosterize, "bits", 0, 8, 1),
    (RandomSolarize, "threshold", 0, 255, 0.1),
    (RandomAdjustSharpness, "sharpness_factor", 0, 1000, 0.1),
    (RandomGrayscale, "p", 0, 1, 0.1),
    (GaussianBlur, "kernel_size", 1, 127, 2),
    (partial(GaussianBlur, 3), "sigma", 0.001, 1000, 0.0005),
    (TrivialAugmentWide, "num_magnitude_bins", 2, 1000, 1),
    (RandAugment, "num_ops", 0, 64, 1),
    (RandAugment, "magnitude", 0, 30, 1),
    (partial(RandAugment, magnitude=0), "num_magnitude_bins", 2, 1000, 1),
    (TimmRandAugment, "magnitude", 0, 10, 0.1),
    (TimmRandAugment, "magnitude_std", 0, 100, 0.1),
    (TimmRandAugment, "num_ops", 0, 64, 1),
    (AugMix, "severity", 1, 10, 1),
    (AugMix, "mixture_width", 1, 10, 1),
    (AugMix, "chain_depth", -1, 16, 1),
    (AugMix, "alpha", 0.01, 1000, 0.005),
]


def test_every_number_may_be_its_least_and_its_most() -> None:
    for make, name, least, most, step in LIMITS:
        for value in (least, most):
            kept = getattr(make(**{name: value}), name)
            assert kept in (value, (value, value)), (make, name)
        for value in (least - step, most + step):
            with pytest.raises(GratisError, match=f"{name} is {value}; it must be"):
                make(**{name: value})


def test_operations_are_plain_values() -> None:
    assert ColorJitter(0.4) == ColorJitter((0.6, 1.4)) == ColorJitter([0.6, 1.4])  # type: ignore[arg-type]
    assert GaussianBlur(3, 1.0) == GaussianBlur((3, 3), (1.0, 1.0))
    assert hash(LoaderConfig(operations=[RandAugment()])) == hash(  # type: ignore[arg-type]
        LoaderConfig(operations=(RandAugment(),))
    )
