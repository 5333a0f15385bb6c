"""Several views of a sample, repeated augmentation, and what changes by epoch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batches import LAYOUTS, assert_same, epoch
from handmade import FEW, SIZE
from test_loader_views import graph_of, plan_of, read_with_pillow

from gratis import Loader, LoaderConfig, coverage
from gratis.errors import GratisError
from gratis.loader import plan
from gratis.loader.batch import Batch
from gratis.loader.decoding import gpu
from gratis.loader.mixing import CutMix, MixUp, RandomErasing

AREA = (0.2, 1.0)


def config_of(**fields: Any) -> LoaderConfig:
    return LoaderConfig(**{"batch_size": 12, "crop": 40, "seed": 5} | fields)


def whole_batches(root: Path, config: LoaderConfig, world: int, number: int = 0) -> list[Batch]:
    loaders = [Loader(root, "train", config, rank=rank, world_size=world) for rank in range(world)]
    for loader in loaders:
        loader.set_epoch(number)
    steps = zip(*map(epoch, loaders), strict=True)
    return [Batch(*(torch.cat(parts) for parts in zip(*step, strict=True))) for step in steps]


def test_draw_ids() -> None:
    ids = np.array([0, 7, 2**33])
    assert plan.copies(ids, 0).tolist() == ids.tolist()
    views = plan.of_views(plan.copies(ids, 2), 3)
    assert plan.samples_of(views).tolist() == np.repeat(ids, 3).tolist()
    assert (views >> plan.COPY_BIT).tolist() == [6, 7, 8] * 3
    assert plan.samples_of(np.array([plan.PAD])).tolist() == [plan.PAD]
    assert plan.of_views(ids, 1) is ids


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("area", [None, AREA])
@pytest.mark.parametrize("codec", ["jpeg", "raw"])
def test_the_first_view_is_that_of_a_loader_with_one(
    codec: str, area: Any, layout: Any, request: pytest.FixtureRequest
) -> None:
    """View 0 is that of a loader with one view, whoever decodes."""
    root: Path = request.getfixturevalue(f"few_{codec}")
    config = config_of(views=3, area=area, layout=layout, noise="sqrt", remainder="pad")
    one = whole_batches(root, replace(config, views=1), 1)
    for engine in ("auto", "dali"):
        for several, single in zip(
            whole_batches(root, replace(config, engine=engine), 1), one, strict=True
        ):
            assert several.images.shape == (12, 3, *single.images.shape[1:])
            assert torch.equal(several.images[:, 0], single.images)
            assert torch.equal(several.ids, single.ids)
            assert torch.equal(several.labels, single.labels)
            assert not several.images[several.ids < 0].any()


def test_every_view_is_cut_at_its_own_draws(few_jpeg: Path) -> None:
    """From the pixels that Pillow reads."""
    config = config_of(views=3, normalize=None, dtype=torch.uint8)
    stored = read_with_pillow(few_jpeg)
    (first, *_), one = whole_batches(few_jpeg, config, 1), replace(config, views=1)
    seen = set()
    for row, sample in enumerate(first.ids.tolist()):
        views = plan.of_views(np.array([sample]), 3)
        draws = plan_of(few_jpeg, one).draws(views).draws
        for view, (y, x, flip) in enumerate(zip(draws.y, draws.x, draws.flip, strict=True)):
            cut = stored[sample][y : y + 40, x : x + 40]
            wanted = torch.from_numpy(cut[:, :: -1 if flip else 1].transpose(2, 0, 1).copy())
            assert torch.equal(first.images[row, view], wanted)
            seen.add((row, int(y), int(x), bool(flip)))
    assert len(seen) == 36


@pytest.mark.parametrize("area", [None, AREA])
def test_views_of_the_graph_for_gpus_equal_the_loader_s(few_jpeg: Path, area: Any) -> None:
    config = config_of(views=2, area=area, normalize=None, noise="printed")
    batches = whole_batches(few_jpeg, config, 1)
    made = graph_of(few_jpeg, epoch_plan := plan_of(few_jpeg, config))
    for (encoded, tensor), batch in zip(made, batches, strict=True):
        images = gpu.to_torch(tensor, epoch_plan, encoded)
        assert images.shape == batch.images.shape
        assert (images - batch.images).abs().max() < (4.1 if area else 1e-3)


def test_views_from_a_decoded_cache(few_jpeg: Path) -> None:
    for area in (None, AREA):
        config = config_of(views=2, area=area, repeats=2, mix=(MixUp(),))
        held = Loader(few_jpeg, "train", replace(config, decoded="host"))
        with held, Loader(few_jpeg, "train", config) as loader:
            for _ in range(2):
                assert_same(epoch(held), epoch(loader))


@pytest.mark.parametrize("order", ["full", "window"])
@pytest.mark.parametrize("batch_size", [12, 10])
def test_repeats_come_in_one_batch_and_on_different_ranks(
    few_jpeg: Path, order: Any, batch_size: int
) -> None:
    config = config_of(repeats=3, order=order, batch_size=batch_size)
    epoch_plan = plan_of(few_jpeg, config)
    ids = epoch_plan.order()
    assert len(set(ids.tolist())) == len(ids) == 3 * FEW
    samples = plan.samples_of(ids)
    assert np.bincount(samples).tolist() == [3] * FEW
    single = plan_of(few_jpeg, replace(config, repeats=1)).order()
    first = [sample for n, sample in enumerate(samples) if sample not in samples[:n]]
    assert sorted(first) == sorted(single)
    whole = 0
    for step in range(0, 3 * FEW - batch_size, batch_size):
        batch = samples[step : step + batch_size]
        counts = np.bincount(batch)
        assert np.count_nonzero((counts > 0) & (counts < 3)) <= 2  # at its two ends
        whole += np.count_nonzero(counts == 3)
        if batch_size == 12:
            shares = batch.reshape(3, 4)
            assert (np.sort(shares) == np.sort(shares[0])).all()
        assert (batch != np.roll(batch, 1)).all()
    assert whole >= 28


@pytest.mark.parametrize("remainder", ["short", "drop", "pad"])
def test_repeated_epochs_are_whole(few_jpeg: Path, remainder: Any) -> None:
    """len, coverage, dropped and counters; each copy with draws of its own; on any number of ranks,
    and after a resumption."""
    config = config_of(repeats=3, remainder=remainder, mix=(MixUp(), CutMix()))
    alone, shared = (whole_batches(few_jpeg, config, world, 1) for world in (1, 3))
    assert_same(shared, alone)
    with Loader(few_jpeg, "train", config) as loader:
        assert len(loader) == (10 if remainder == "drop" else 11) == len(alone)
        assert loader.num_samples == FEW
        loader.set_epoch(1)
        found = epoch(loader)
        seen = torch.cat([batch.ids for batch in found])
        dropped = 3 if remainder == "drop" else 0
        # the three that are dropped are the copies of one sample
        wanted = {"seen": FEW - dropped // 3, "missing": 0, "duplicates": 0, "dropped": dropped}
        assert loader.coverage(seen) == wanted
        assert len(loader.dropped(1)) == dropped
        assert loader.take_counters()["images"] == 3 * FEW - dropped
        state = loader.state_dict()
        assert (state["epoch"], state["step"]) == (2, 0)
        loader.load_state_dict(state | {"epoch": 1, "step": 4})
        assert_same(epoch(loader), found[4:])
        with pytest.raises(GratisError, match="has order 'full, each 3 times', this loader 'full'"):
            Loader(few_jpeg, "train", replace(config, repeats=1)).load_state_dict(state)
    batch = whole_batches(few_jpeg, replace(config, mix=()), 1, 1)[0]
    sample = int(batch.ids[0])
    first, *others = batch.images[batch.ids == sample]
    assert len(others) == 2
    assert not any(torch.equal(first, other) for other in others)


def test_coverage_counts_what_a_sample_lacks() -> None:
    ids = np.array([0, 0, 0, 1, 1, 2, -1])
    assert coverage(ids, 4, None, 2) == {"seen": 3, "missing": 3, "duplicates": 1, "dropped": 0}
    dropped = np.array([3, 2])
    assert coverage(ids, 4, dropped, 2) == {"seen": 3, "missing": 1, "duplicates": 1, "dropped": 2}


SCHEDULE = (
    (0, {"crop": 32, "area": (0.5, 1.0)}),
    (1, {"crop": 48, "flip": 0.0}),
    (2, {"mix": (MixUp(),)}),
    (3, {"crop": 40, "mix": (CutMix(),), "erasing": RandomErasing(1.0)}),
)


@pytest.mark.parametrize("engine", ["auto", "dali"])
def test_a_schedule_changes_crops_by_epoch(few_jpeg: Path, engine: Any) -> None:
    """Each epoch is that of a loader which has its fields from the beginning; resumed in the middle
    too; labels are of one form in all of them."""
    config = config_of(area=AREA, schedule=SCHEDULE, engine=engine)
    assert config.at_epoch(1).area == (0.5, 1.0)
    fields: list[dict[str, Any]] = [
        {"crop": 32, "area": (0.5, 1.0)},
        {"crop": 48, "area": (0.5, 1.0), "flip": 0.0},
        {"crop": 48, "area": (0.5, 1.0), "flip": 0.0, "mix": (MixUp(),)},
        {"crop": 40, "area": (0.5, 1.0), "flip": 0.0, "mix": (CutMix(),)}
        | {"erasing": RandomErasing(1.0)},
    ]
    found = []
    with Loader(few_jpeg, "train", config, rank=1, world_size=2) as loader:
        for number, those in enumerate(fields):
            plain = Loader(
                few_jpeg, "train", config_of(engine=engine, **those), rank=1, world_size=2
            )
            plain.set_epoch(number)
            found.append(epoch(loader))
            for one, other in zip(found[-1], epoch(plain), strict=True):
                assert one.images.shape[2] == those["crop"]
                assert torch.equal(one.images, other.images)
                assert one.labels.dtype == torch.float32
                if other.labels.dtype == torch.float32:
                    assert torch.equal(one.labels, other.labels)
                else:
                    assert torch.equal(one.labels.argmax(1), other.labels)
        state = loader.state_dict()
    with Loader(few_jpeg, "train", config, rank=1, world_size=2) as again:
        again.load_state_dict(state | {"epoch": 2, "step": 2})
        assert_same(epoch(again), found[2][2:])
        assert_same(epoch(again), found[3])


def test_batches_of_an_earlier_size_stay_as_they_are(few_jpeg: Path) -> None:
    config = config_of(schedule=((1, {"crop": 32}), (2, {"crop": 48})))
    with Loader(few_jpeg, "train", config) as loader:
        kept, copies = [], []
        for _ in range(3):
            for batch in loader:
                kept.append(batch.images)
                copies.append(batch.images.clone())
        assert {images.shape[-1] for images in kept} == {40, 32, 48}
        assert all(map(torch.equal, kept, copies))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"repeats": 2, "augment": False}, "repeats is for training"),
        ({"repeats": 0}, "repeats is 0; it must be at least 1"),
        ({"views": 101}, "views is 101; it may be at most 100"),
        ({"views": 2, "crop_chunk": 4}, "crop_chunk is for single views"),
        ({"schedule": "160"}, "schedule is '160'; it must be as"),
        ({"schedule": None}, "schedule is None; it must be as"),
        ({"schedule": 0}, "schedule is 0; it must be as"),
        ({"schedule": np.array([1, 2])}, r"schedule is array\(\[1, 2\]\); it must be as"),
        ({"schedule": ((1, {"crop": 32}), (1, {"crop": 40}))}, "epochs ascending"),
        ({"schedule": ((1, {"crops": 32}),)}, "schedule changes 'crops'; it may change crop, area"),
        ({"schedule": ((1, {"crop": 0}),)}, "crop is 0; it must be at least 1"),
        ({"schedule": ((1, {"area": (0.5, 1)}),)}, "schedule turns area on or off"),
    ],
)
def test_mistakes_are_one_line(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(GratisError, match=message):
        config_of(**fields)


def test_no_schedule_in_any_form_is_the_same() -> None:
    empty: tuple[Any, ...] = ((), [], {})
    assert {config_of(schedule=schedule) for schedule in empty} == {config_of()}


def test_a_crop_of_a_later_epoch_that_is_too_large(few_jpeg: Path) -> None:
    config = config_of(schedule=((9, {"crop": SIZE + 1}),))
    with pytest.raises(GratisError, match="crop is 65; the images of"):
        Loader(few_jpeg, "train", config)
