"""Crops as the paper counts them and as the released code shares them; the default is neither."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gratis.errors import GratisError
from gratis.loader import Loader, LoaderConfig, plan

CPU = torch.device("cpu")


def config(**fields: float | str) -> LoaderConfig:
    return LoaderConfig(batch_size=100, crop=112, seed=5, **fields)  # type: ignore[arg-type]


def test_offsets_are_17_values_or_as_the_paper_counts_16(sample_shards: Path) -> None:
    for positions, values in (("all", 17), ("printed", 16)):
        with Loader(sample_shards, "train", config(crop_positions=positions), device=CPU) as loader:
            drawn = loader.epoch_plan(0).draws(np.arange(1000)).draws
        assert set(drawn.y.tolist()) == set(drawn.x.tolist()) == set(range(values))


def test_without_crops_and_mirrors_training_sees_what_evaluation_sees(sample_shards: Path) -> None:
    """The same pixels, in another order: 8 of 16 pixels above and to the left."""
    fixed = config(crop_positions="centre", flip=0.0)
    with Loader(sample_shards, "train", fixed, device=CPU) as loader:
        drawn = loader.epoch_plan(1).draws(np.arange(1000)).draws
        images, _, ids = next(iter(loader))
    assert set(drawn.y.tolist()) == set(drawn.x.tolist()) == {8}
    assert not drawn.flip.any()
    with Loader(sample_shards, "train", config(augment=False), device=CPU) as loader:
        plain = torch.cat([batch.images.clone() for batch in loader])
    assert ids.tolist() != list(range(100))
    assert torch.equal(images, plain[ids])


def test_a_crop_of_the_whole_image_has_one_position(sample_shards: Path) -> None:
    whole = LoaderConfig(batch_size=100, crop=128, crop_positions="printed")
    with Loader(sample_shards, "train", whole, device=CPU) as loader:
        drawn = loader.epoch_plan(0).draws(np.arange(1000)).draws
    assert not drawn.y.any()


def test_32_consecutive_images_share_a_crop_and_a_mirror_and_no_colour(sample_shards: Path) -> None:
    with Loader(sample_shards, "train", config(crop_chunk=32), device=CPU) as loader:
        epoch = loader.epoch_plan(3)
        order = epoch.order()
        drawn = epoch.draws(order).draws
        few = epoch.draws(order[40:50]).draws
    shared = np.stack([drawn.y, drawn.x, drawn.flip], axis=1)
    chunks = [shared[first : first + 32] for first in range(0, 1000, 32)]
    assert all((chunk == chunk[0]).all() for chunk in chunks)
    assert len({tuple(chunk[0].tolist()) for chunk in chunks}) > 25  # of 32
    assert len(np.unique(drawn.normals[:, 0])) == 1000
    np.testing.assert_array_equal(few.y, drawn.y[40:50])
    single = plan.draws(5, 3, order, 17)
    np.testing.assert_array_equal(drawn.normals, single.normals)


@pytest.mark.parametrize("fields", [{"crop_chunk": 32}, {"crop_positions": "printed"}])
def test_batches_are_the_same_on_any_number_of_ranks(
    sample_shards: Path, fields: dict[str, int | str]
) -> None:
    def first(rank: int, world: int) -> torch.Tensor:
        with Loader(
            sample_shards, "train", config(**fields), rank=rank, world_size=world, device=CPU
        ) as loader:
            return next(iter(loader)).images.clone()

    assert torch.equal(first(0, 1), torch.cat([first(0, 2), first(1, 2)]))


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(GratisError, match="crop_chunk is 0"):
        config(crop_chunk=0)
    with pytest.raises(GratisError, match="crop_positions is 'both'"):
        config(crop_positions="both")
    with pytest.raises(GratisError, match="crop_chunk is for plain crops"):
        LoaderConfig(crop_chunk=2, area=(0.1, 1))
