"""Samples that rot after publication: named, or replaced without touching anything else of the epoch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from handmade import rotten

from loader import Batch, Loader, LoaderConfig
from preprocess.errors import UserError

COUNT, BAD = 101, (17, 42, 43)


def make(root: Path, *, rank: int = 0, world: int = 1, **options: Any) -> Loader:
    config = LoaderConfig(**({"batch_size": 12, "crop": 48, "threads": 1, "bad_samples": "quarantine"} | options))
    return Loader(root, "train", config, rank=rank, world_size=world)


def epoch(loader: Loader) -> list[Batch]:
    return [Batch(*(tensor.clone() for tensor in batch)) for batch in loader]


def flat(batches: list[Batch]) -> list[torch.Tensor]:
    return [torch.cat(parts) for parts in zip(*batches, strict=True)]


@pytest.mark.parametrize("views", [1, 10])
@pytest.mark.parametrize("codec", ["jpeg", "raw"])
def test_raise_names_shard_key_and_offset(tmp_path: Path, views: int, codec: str) -> None:
    root = rotten(tmp_path, 17, codec=codec, count=30)
    with np.load(root / "train.index.npz") as index:
        offset = int(index["offset"][17])
    loader = make(root, batch_size=8, augment=False, views=views, bad_samples="raise")
    with pytest.raises(UserError, match=rf"train-00001\.tar, key s_17, offset {offset}: cannot be decoded") as caught:
        epoch(loader)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("codec", ["jpeg", "raw"])
def test_quarantine_replaces_the_sample_and_nothing_else(tmp_path: Path, codec: str) -> None:
    sound = make(rotten(tmp_path / "sound", codec=codec))
    loader = make(rotten(tmp_path, *BAD, codec=codec))
    for number in range(2):  # the second epoch as the first, with the pipeline that was built anew
        images, labels, ids = flat(epoch(loader))
        wanted_images, wanted_labels, wanted_ids = flat(epoch(sound))
        replaced = torch.isin(wanted_ids, torch.tensor(BAD))
        assert replaced.sum() == 3
        for got, wanted in ((images, wanted_images), (labels, wanted_labels), (ids, wanted_ids)):
            assert torch.equal(got[~replaced], wanted[~replaced])
        assert not torch.isin(ids[replaced], torch.tensor(BAD)).any()
        assert torch.equal(labels[replaced], ids[replaced] % 7)
        assert images[replaced].flatten(1).std(1).min() > 1
        assert loader.coverage(ids) == {"seen": COUNT - 3, "missing": 3, "duplicates": 3, "dropped": 0}
        assert len(loader.take_warnings()) == (0 if number else 3)
    assert sorted(loader.quarantined) == sorted(BAD)
    assert "train-00004.tar, key s_42, offset" in loader.quarantined[42]


def test_stand_ins_are_the_same_on_any_number_of_ranks_and_after_resumption(tmp_path: Path) -> None:
    root = rotten(tmp_path, *BAD)
    whole = epoch(make(root))
    ranks = [epoch(make(root, rank=r, world=3)) for r in range(3)]
    for step, batch in enumerate(whole):
        assert torch.equal(torch.cat([rank[step].ids for rank in ranks]), batch.ids)
        assert torch.equal(torch.cat([rank[step].images for rank in ranks]), batch.images)
    begun, resumed = make(root), make(root)
    batches = iter(begun)
    for _ in range(5):
        next(batches)
    resumed.load_state_dict(begun.state_dict())
    assert all(torch.equal(a.images, b.images) for a, b in zip(epoch(resumed), whole[5:], strict=True))


def test_a_stand_in_that_is_bad_itself_is_replaced(tmp_path: Path) -> None:
    most = tuple(range(1, 10))
    root = rotten(tmp_path, *most, count=14)  # two of three first stand-ins are bad as well
    _, _, ids = flat(epoch(make(root, batch_size=7)))
    assert len(ids) == 14
    assert set(ids.tolist()) <= {0, 10, 11, 12, 13}


def test_a_dataset_that_is_bad_as_a_whole_is_an_error(tmp_path: Path) -> None:
    root = rotten(tmp_path, *range(30))
    with pytest.raises(UserError, match="as 10 other samples; verify"):
        epoch(make(root))


def test_an_evaluation_does_not_replace() -> None:
    with pytest.raises(UserError, match="an evaluation must see every sample"):
        LoaderConfig(augment=False, bad_samples="quarantine")
