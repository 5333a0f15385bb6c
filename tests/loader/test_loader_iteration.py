"""Iteration: exactly once on any number of ranks, the same after any resumption, nothing left
behind, clear errors."""

from __future__ import annotations

import copy
import gc
import json
import math
import os
import pickle
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batches import epoch
from handmade import FEW, rotten

from gratis.errors import GratisError
from gratis.loader import Batch, Loader, LoaderConfig, coverage
from gratis.loader.loader import _ranks
from gratis.loader.mixing import MixUp
from gratis.loader.plan import order

COUNT, CROP, STEPS = FEW, 48, 4


def make(
    root: Path, *, rank: int = 0, world: int = 1, batch_size: int = 12, **options: Any
) -> Loader:
    config = LoaderConfig.alexnet(
        **({"batch_size": batch_size, "crop": CROP, "threads": 1} | options)
    )
    return Loader(root, "train", config, rank=rank, world_size=world)


def merged(ranks: list[list[Batch]]) -> list[Batch]:
    """Global batches from those of all ranks, in rank order."""
    return [
        Batch(*(torch.cat(parts) for parts in zip(*step, strict=True)))
        for step in zip(*ranks, strict=True)
    ]


def same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, y)
        for one, two in zip(a, b, strict=True)
        for x, y in zip(one, two, strict=True)
    )


@pytest.mark.parametrize("remainder", ["pad", "drop", "short"])
@pytest.mark.parametrize("order", ["full", "window"])
def test_ranks_together_give_the_same_batches_and_every_sample_once(
    few_jpeg: Path, remainder: str, order: str
) -> None:
    options = {"remainder": remainder, "order": order, "window": 3}
    whole = epoch(make(few_jpeg, **options))
    assert len(whole) == (3 if remainder == "drop" else 4)
    for world in (1, 2, 3, 4):
        loaders = [make(few_jpeg, rank=r, world=world, **options) for r in range(world)]
        ranks = [epoch(loader) for loader in loaders]
        whole_batches = [batch for rank in ranks for batch in rank[:3]]
        assert all(len(batch.ids) == 12 // world for batch in whole_batches)
        assert same(merged(ranks), whole)
        ids = torch.cat([batch.ids for rank in ranks for batch in rank]).numpy()
        dropped = COUNT % 12 if remainder == "drop" else 0
        wanted = {"seen": COUNT - dropped, "missing": 0, "duplicates": 0, "dropped": dropped}
        assert loaders[0].coverage(ids) == wanted


def test_a_rank_without_samples_in_the_last_batch_gets_padding(few_jpeg: Path) -> None:
    # 5 samples are left for 4 ranks of 3 rows
    last = epoch(make(few_jpeg, rank=3, world=4))[-1]
    assert last.ids.tolist() == [-1] * 3
    assert last.labels.tolist() == [-100] * 3
    assert not last.images.any()


@pytest.mark.parametrize(
    ("count", "batch", "world", "shares"),
    [
        (41, 12, 4, [2, 1, 1, 1]),
        (41, 36, 4, [2, 1, 1, 1]),
        (41, 12, 3, [2, 2, 1]),
        (41, 30, 3, [4, 4, 3]),
        (41, 37, 1, [4]),
        (41, 80, 2, [21, 20]),
        (41, 41, 1, [41]),
    ],
)
def test_a_short_last_batch_is_shared_evenly(
    few_jpeg: Path, count: int, batch: int, world: int, shares: list[int]
) -> None:
    """Hand-counted; nothing in it is padding, and together it is the end of the order."""
    options = {"remainder": "short", "batch_size": batch}
    last = [epoch(make(few_jpeg, rank=r, world=world, **options))[-1] for r in range(world)]
    assert [len(each.ids) for each in last] == shares
    assert all(len(part) == len(each.ids) for each in last for part in each)
    left = (count - 1) % batch + 1
    assert torch.cat([each.ids for each in last]).tolist() == order(0, 0, count)[-left:].tolist()
    assert all(each.images[row].any() for each in last for row in range(len(each.ids)))


def test_short_is_the_default(few_jpeg: Path) -> None:
    for config in (LoaderConfig(), LoaderConfig.imagenet(), LoaderConfig.evaluation()):
        loader = Loader(few_jpeg, "train", replace(config, batch_size=12, crop=CROP))
        ids = torch.cat([batch.ids for batch in epoch(loader)])
        assert sorted(ids.tolist()) == list(range(COUNT))


@pytest.mark.parametrize("views", [1, 10])
def test_an_evaluation_s_accuracy_counts_each_sample_once(few_jpeg: Path, views: int) -> None:
    """As timm and torchmetrics count: over all rows that come."""
    config = LoaderConfig.evaluation(batch_size=24, crop=CROP, views=views)
    with Loader(few_jpeg, "train", config) as loader:
        right = [(batch.ids % 7 == batch.labels) for batch in loader]
    assert [len(each) for each in right] == [24, 17]
    assert torch.cat(right).float().mean() == 1


def test_a_state_of_a_padded_epoch_goes_on_in_a_short_one(few_jpeg: Path) -> None:
    padded, short = make(few_jpeg), make(few_jpeg, remainder="short")
    batches = iter(padded)
    taken = [next(batches).ids for _ in range(2)]
    short.load_state_dict(padded.state_dict())
    taken += [batch.ids for batch in short]
    assert sorted(torch.cat(taken).tolist()) == list(range(COUNT))


def test_labels_belong_to_their_samples(few_jpeg: Path) -> None:
    for batch in epoch(make(few_jpeg)):
        real = batch.ids >= 0
        assert torch.equal(batch.labels[real], batch.ids[real] % 7)


def test_samples_are_the_same_at_any_batch_size_thread_count_and_prefetch(few_jpeg: Path) -> None:
    def by_id(**options: Any) -> torch.Tensor:
        batches = epoch(make(few_jpeg, **options))
        ids, images = torch.cat([b.ids for b in batches]), torch.cat([b.images for b in batches])
        return images[ids >= 0][ids[ids >= 0].argsort()]

    expected = by_id()
    for options in (
        {"batch_size": 7},
        {"threads": 3},
        {"prefetch": 3},
        {"batch_size": COUNT, "prefetch": 5},
    ):
        assert torch.equal(by_id(**options), expected)
    assert not torch.equal(by_id(seed=1), expected)


def test_epochs_differ_and_repeat(few_jpeg: Path) -> None:
    loader, again = make(few_jpeg), make(few_jpeg)
    first, second = epoch(loader), epoch(loader)
    assert same(epoch(again), first)
    assert same(epoch(again), second)
    assert not torch.equal(first[0].ids, second[0].ids)


@pytest.mark.parametrize(("step", "world"), [(0, 2), (1, 3), (2, 1), (3, 4), (STEPS, 2)])
def test_resumed_with_another_number_of_ranks(few_jpeg: Path, step: int, world: int) -> None:
    straight = make(few_jpeg)
    expected = epoch(straight) + epoch(straight)
    begun = [make(few_jpeg, rank=r, world=2) for r in range(2)]
    for loader in begun:
        batches = iter(loader)
        for _ in range(step):
            next(batches)
        del batches
    states = [loader.state_dict() for loader in begun]
    assert states[0] == states[1]
    resumed = [make(few_jpeg, rank=r, world=world) for r in range(world)]
    for loader in resumed:
        loader.load_state_dict(states[0])
    rest = [epoch(loader) for loader in resumed]
    if step < STEPS:  # after the last step the state is at the next epoch's beginning
        rest = [part + epoch(loader) for part, loader in zip(rest, resumed, strict=True)]
    assert same(merged(rest), expected[step:])


def test_state_counts_what_was_taken_and_iter_begins_the_next_epoch(few_jpeg: Path) -> None:
    loader = make(few_jpeg)
    assert (loader.epoch, loader.state_dict()["step"]) == (0, 0)
    for number, _ in enumerate(loader):
        if number == 1:
            break
    assert (loader.epoch, loader.state_dict()["step"]) == (0, 2)
    next(iter(loader))
    assert (loader.epoch, loader.state_dict()["step"]) == (1, 1)
    epoch(loader)
    assert (loader.state_dict()["epoch"], loader.state_dict()["step"]) == (3, 0)


@pytest.mark.parametrize(
    "options", [{"seed": 1}, {"batch_size": 24}, {"order": "window"}, {"augment": False}]
)
def test_a_state_of_other_batches_is_refused(few_jpeg: Path, options: dict[str, Any]) -> None:
    with pytest.raises(GratisError, match=r"saved loader state has"):
        make(few_jpeg, **options).load_state_dict(make(few_jpeg).state_dict())


@pytest.mark.parametrize(
    "change", [{"step": STEPS + 1}, {"epoch": -1}, {"epoch": 2**32}, {"epoch": 10**30}]
)
def test_a_damaged_state_is_refused(few_jpeg: Path, change: dict[str, Any]) -> None:
    with pytest.raises(GratisError, match="saved loader state is at epoch"):
        make(few_jpeg).load_state_dict(make(few_jpeg).state_dict() | change)


@pytest.mark.parametrize("change", [{"epoch": None}, {"step": "x"}, {"step": True}, {"epoch": 1.0}])
def test_a_state_of_odd_types_is_refused(few_jpeg: Path, change: dict[str, Any]) -> None:
    loader = make(few_jpeg)
    with pytest.raises(
        GratisError, match=r"the saved loader state's (epoch|step) is .*; it must be a whole number"
    ):
        loader.load_state_dict(loader.state_dict() | change)
    with pytest.raises(
        GratisError, match="the saved loader state is None; it must be what state_dict"
    ):
        loader.load_state_dict(None)  # type: ignore[arg-type]


def test_whole_numbers_of_numpy_are_taken_as_pythons(few_jpeg: Path) -> None:
    options = {
        "batch_size": np.int64(12),
        "crop": np.int32(48),
        "seed": np.uint64(5),
        "threads": np.int8(1),
    }
    loader = make(few_jpeg, rank=np.int64(0), world=np.int32(1), **options)
    plain = make(few_jpeg, **{name: int(number) for name, number in options.items()})
    assert json.dumps(loader.state_dict()) == json.dumps(plain.state_dict())
    assert loader.config == plain.config
    assert same(epoch(loader), epoch(plain))


def test_a_relative_root_stays_where_it_was(
    few_jpeg: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(few_jpeg.parent)
    loader = Loader(
        few_jpeg.name, "train", LoaderConfig.alexnet(batch_size=12, crop=CROP, threads=1)
    )
    monkeypatch.chdir("/")
    assert sum(len(batch.ids) for batch in loader) == 48


@pytest.mark.parametrize("device", ["meta", "mps", "cuda:99"])
def test_a_device_that_is_not_there_is_one_line(few_jpeg: Path, device: str) -> None:
    with pytest.raises(GratisError, match=f"device is {device}; "):
        Loader(few_jpeg, "train", LoaderConfig.alexnet(crop=CROP), device=torch.device(device))


@pytest.mark.parametrize("device", ["foo", None, 3.5, True])
def test_what_is_no_device_is_one_line(few_jpeg: Path, device: Any) -> None:
    with pytest.raises(GratisError, match=f"^device is {device}; it must be cpu or cuda$"):
        Loader(few_jpeg, "train", LoaderConfig.alexnet(crop=CROP), device=device)


def test_a_state_of_another_dataset_is_refused(few_jpeg: Path, few_raw: Path) -> None:
    with pytest.raises(GratisError, match="has dataset"):
        make(few_raw).load_state_dict(make(few_jpeg).state_dict())


def test_evaluation_is_in_the_order_of_ids(few_jpeg: Path) -> None:
    ids = torch.cat([batch.ids for batch in epoch(make(few_jpeg, augment=False))])
    assert ids.tolist() == [*range(COUNT), *[-1] * 7]


def test_a_batch_stays_as_it_is_until_the_next_is_taken(few_jpeg: Path) -> None:
    for batch in make(few_jpeg):
        copy = batch.images.clone()
        time.sleep(0.02)  # the producer fills all it may
        assert torch.equal(batch.images, copy)


def threads_and_files() -> tuple[int, int]:
    files = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
    # the index stays mapped for as long as there is a loader of it
    held = [file for file in files if not os.path.realpath(file).endswith(".index.npz")]
    return len(os.listdir("/proc/self/task")), len(held)


def settled() -> tuple[int, int]:
    """Once no thread has ended for a while: the system counts one a little longer than its owner
    does."""
    counts = threads_and_files()
    for _ in range(20):
        time.sleep(0.05)
        if (now := threads_and_files()) == counts:
            break
        counts = now
    return counts


@pytest.mark.parametrize(
    "ending",
    [
        "break",
        "exception",
        "del",
        "close",
        "whole, close",
        "whole, del",
        "another epoch, close",
        "error",
    ],
)
def test_nothing_is_left_behind(few_jpeg: Path, tmp_path: Path, ending: str) -> None:
    epoch(make(few_jpeg))  # what libraries start once and keep
    rot = rotten(tmp_path, 17, count=COUNT) if ending == "error" else few_jpeg
    if ending == "error":  # in which a decoder that the others do not need is asked
        with pytest.raises(GratisError):
            epoch(make(rot))
    before = settled()
    loader = make(few_jpeg, threads=3)
    if ending == "whole, close":
        epoch(loader)
        loader.close()
    elif ending == "whole, del":
        epoch(loader)
        del loader
    elif ending == "error":
        loader = make(rot, threads=3)
        with pytest.raises(GratisError, match="key s_17, offset"):
            epoch(loader)
    elif ending == "break":
        for _ in loader:
            break
    elif ending == "exception":
        with pytest.raises(ZeroDivisionError):
            fail_inside(loader)
    elif ending == "del":
        batches = iter(loader)
        next(batches)
        del loader, batches
    elif ending == "close":
        batches = iter(loader)
        next(batches)
        loader.close()
        with pytest.raises(RuntimeError, match="closed"):
            next(batches)
    else:
        old = iter(loader)
        next(old)
        epoch(loader)
        with pytest.raises(RuntimeError, match="another"):
            next(old)
        loader.close()
    gc.collect()
    after = settled()
    assert after[0] <= before[0], "threads"
    assert after[1] <= before[1], "files"
    assert not [thread for thread in threading.enumerate() if thread.name == "loader"]


def fail_inside(loader: Loader) -> None:
    for _ in loader:
        _ = 1 / 0


def test_two_loaders_run_side_by_side(few_jpeg: Path, few_raw: Path) -> None:
    pairs = zip(make(few_jpeg), make(few_raw, augment=False), strict=True)
    assert sum(1 for _ in pairs) == STEPS


def test_counters_are_sums_since_the_last_take(few_jpeg: Path) -> None:
    loader = make(few_jpeg, engine="dali")
    epoch(loader)
    taken = loader.take_counters()
    sizes = sum((few_jpeg / f"train-{n:05d}.tar").stat().st_size for n in range(5))
    assert (taken["images"], taken["batches"]) == (COUNT, STEPS)
    assert 0 < taken["bytes_read"] < sizes
    assert all(taken[name] > 0 for name in ("read_s", "decode_s", "finish_s", "wait_s"))  # type: ignore[literal-required]
    again = loader.take_counters()
    assert (again["images"], again["wait_s"], again["queue_depth"]) == (0, 0.0, 0)
    assert again["queue_capacity"] == 1


def test_the_receipt_finds_what_is_missing_and_double() -> None:
    assert coverage(np.array([0, 1, 1, 3, -1]), 6, np.array([5])) == {
        "seen": 3,
        "missing": 2,
        "duplicates": 1,
        "dropped": 1,
    }
    assert coverage(np.array([0, 5]), 6, np.array([5]))["dropped"] == 0
    with pytest.raises(GratisError, match="id 6 is not in a dataset of 6"):
        coverage(np.array([6]), 6)


def test_a_shard_that_was_cut_short_or_is_missing_is_named(few_jpeg: Path, tmp_path: Path) -> None:
    root = tmp_path / "short"
    shutil.copytree(few_jpeg, root)
    os.truncate(root / "train-00003.tar", 1000)
    with pytest.raises(GratisError, match=r"train-00003\.tar has 1000 bytes, not"):
        epoch(make(root))
    (root / "train-00003.tar").unlink()
    with pytest.raises(GratisError, match=r"train-00003\.tar cannot be read"):
        epoch(make(root))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"mean": "middle"}, "mean is 'middle'"),
        ({"seed": -1}, "seed is -1"),
        ({"views": 3, "augment": False}, "views is 3; in evaluation it may be 1 or 10"),
        ({"threads": 0}, "threads is 0"),
        ({"dtype": torch.int8}, "dtype is"),
        ({"batch_size": 64.0}, "batch_size is 64.0"),
        ({"seed": 1.5}, "seed is 1.5"),
        ({"crop": "48"}, "crop is '48'"),
        ({"batch_size": "256"}, "batch_size is '256'; it must be a"),
        ({"threads": True}, "threads is True"),
        ({"order": "fulll"}, "order is 'fulll'; it may be 'full' or"),
        ({"layout": "NHWC"}, "layout is 'NHWC'; it may be 'nchw' or"),
        ({"remainder": None}, "remainder is None; it may be 'short' or"),
        ({"flip": "no"}, "flip is 'no'; it must be a number"),
        ({"flip": True}, "flip is True; it must be a number"),
        ({"flip": 1.5}, "flip is 1.5; it is a probability"),
        ({"flip": math.nan}, "flip is nan; it is a probability"),
        ({"normalize": "caffe"}, "normalize is 'caffe'; it may be 'imagenet', 'mean-image'"),
        ({"normalize": True}, "normalize is True; it may be"),
        ({"normalize": np.zeros((2, 3))}, "normalize is array"),
        ({"normalize": (0.5, 0.5)}, r"normalize is \(0.5, 0.5\); .*two tuples of three numbers"),
        ({"normalize": ((1, 1, 1),)}, "two tuples of three numbers"),
        ({"normalize": ((0, 0, 0), (1, 1, "1"))}, "two tuples of three numbers"),
        ({"normalize": ((0, 0, 0), (1, 1, 0))}, r"std above 0; divide grey levels by 255"),
        ({"normalize": ((0, 0, math.nan), (1, 1, 1))}, r"images scaled to \[0, 1\]"),
        ({"normalize": ((123.7, 116.3, 103.5), (58.4, 57.1, 57.4))}, "levels by 255"),
        ({"normalize": None, "mean": "offset"}, "mean is 'offset'; .*set normalize='mean-image'"),
        ({"dtype": torch.uint8, "noise": "off"}, "grey levels alone; set normalize=None"),
        ({"dtype": torch.uint8, "normalize": None}, "grey levels alone; .* noise='off'"),
        ({"cache_gb": "2"}, "cache_gb is '2'"),
        ({"decoded_gb": math.inf}, "decoded_gb is inf; .*finite"),
        ({"noise_until": "3"}, "noise_until is '3'"),
        ({"augment": "no"}, "augment is 'no'; it must be True or False"),
        ({"cache": 3}, "cache is 3; it must"),
        ({"area": 0.5}, "area is 0.5; it must be two numbers"),
        ({"ratio": ("a", 1)}, r"ratio is \('a', 1\)"),
        ({"crop": 65}, "crop is 65; the images of .* have 64 px a side; choose crop=56, or any up"),
        (
            {"batch_size": 38, "remainder": "short", "world": 19},
            r"3 samples in its last batch of 38, fewer than 19 ranks; choose remainder='drop'",
        ),
        ({"batch_size": 13, "world": 2}, "be shared by 2 ranks"),
        ({"noise": np.array([["sqrt", "off"]] * 99)}, "noise is array"),
        ({"seed": np.zeros((9, 9))}, "seed is array"),
        ({"area": np.zeros((2, 9))}, "area is array"),
        ({"rank": np.zeros((9, 9))}, "rank is array"),
        ({"crop_chunk": 10**30}, "crop_chunk is 10.*most"),
        ({"rank": "0"}, "rank is '0'; it must be a whole number"),
        ({"world": 2.0}, "world_size is 2.0; it must be a"),
        ({"world": 0}, "world_size is 0; it must be at least 1"),
        ({"rank": True, "world": 2}, "rank is True; it must"),
        ({"rank": 2, "world": 2}, "rank is 2"),
        ({"batch_size": 200, "remainder": "drop"}, "than one batch of 200; choose a smaller one"),
    ],
)
def test_mistakes_are_one_line_that_names_the_value(
    few_jpeg: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(GratisError, match=message) as caught:
        make(few_jpeg, **options)
    assert "\n" not in str(caught.value)


def test_what_is_no_root_or_no_configuration_is_one_line(few_jpeg: Path) -> None:
    wrong: list[tuple[Any, Any, str]] = [
        ("", LoaderConfig.alexnet(), "root is empty; name the"),
        (None, LoaderConfig.alexnet(), "root is None; it must be a folder"),
        (3, LoaderConfig.alexnet(), "root is 3"),
        (few_jpeg, {"batch_size": 8}, "config is {'batch_size': 8}; it must be a LoaderConfig"),
        (few_jpeg, None, "config is None"),
    ]
    for root, config, message in wrong:
        with pytest.raises(GratisError, match=message):
            Loader(root, "train", config)
    with pytest.raises(GratisError, match="no split None"):
        Loader(few_jpeg, None, LoaderConfig.alexnet())  # type: ignore[arg-type]
    with pytest.raises(GratisError, match=r"no split \['train'\]; it has train"):
        Loader(few_jpeg, ["train"], LoaderConfig.alexnet())  # type: ignore[arg-type]


def test_a_closed_loader_goes_on_with_the_next_epoch(few_jpeg: Path) -> None:
    with make(few_jpeg) as loader:
        batches = iter(loader)
        next(batches)
    with pytest.raises(RuntimeError, match="closed"):
        next(batches)
    again = make(few_jpeg)
    epoch(again)
    assert same(epoch(loader), epoch(again))


def test_no_such_split_or_dataset(few_jpeg: Path, tmp_path: Path) -> None:
    with pytest.raises(GratisError, match="no split 'val'; it has train"):
        Loader(few_jpeg, "val", LoaderConfig.alexnet(crop=CROP))
    with pytest.raises(GratisError, match="is no dataset"):
        Loader(tmp_path, "train", LoaderConfig.alexnet())


@pytest.mark.parametrize("copied", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_loader_that_is_copied_says_what_to_hand_over(
    few_jpeg: Path, copied: Callable[[object], object]
) -> None:
    with make(few_jpeg) as loader:
        batches = iter(loader)
        before = next(batches).ids.tolist()
        # copy.copy shares what a container holds
        for one in (loader, *([{"train": loader}, batches] if copied is not copy.copy else [])):
            with pytest.raises(GratisError, match=r"hand over root, split \('train'\) and config"):
                copied(one)
        assert loader.state_dict()["step"] == 1  # which goes on as if nothing had been tried
        assert not set(before) & set(next(batches).ids.tolist())


def test_a_configuration_crosses_processes() -> None:
    config = LoaderConfig.alexnet(dtype=torch.bfloat16, seed=2**63)
    assert pickle.loads(pickle.dumps(config)) == config


def test_a_plan_is_of_the_rank_the_epoch_and_the_step(few_jpeg: Path) -> None:
    """With the epoch's own configuration, but with soft labels in all epochs."""
    schedule: Any = ((0, {"crop": 40}), (3, {"crop": 32, "mix": (MixUp(),)}))
    config = LoaderConfig(batch_size=12, schedule=schedule, seed=4)
    loader = Loader(few_jpeg, "train", config, rank=1, world_size=3)
    for number, crop in ((0, 40), (2, 40), (3, 32)):
        plan = loader.epoch_plan(number, 2)
        assert (plan.rank, plan.world_size, plan.epoch, plan.first_step) == (1, 3, number, 2)
        assert (plan.config.crop, plan.config.seed, plan.soft_labels) == (crop, 4, True)
        assert plan.config == config.at_epoch(number)
        assert (plan.manifest, plan.device) == (loader.manifest, torch.device("cpu"))
        assert plan.stats is loader.stats
        assert plan.index.label.tolist() == [k % 7 for k in range(41)]
    assert loader.epoch_plan(1).first_step == 0
    assert not Loader(few_jpeg, "train", LoaderConfig(crop=40)).epoch_plan(0).soft_labels


@pytest.mark.parametrize(("batch_size", "repeats", "world"), [(20, 1, 1), (40, 1, 1), (20, 2, 2)])
def test_as_many_samples_as_ranks_are_a_last_batch(
    few_jpeg: Path, batch_size: int, repeats: int, world: int
) -> None:
    """41 samples; of two copies each 82 rows, of which two are left."""
    config = LoaderConfig(batch_size=batch_size, crop=40, repeats=repeats)
    loader = Loader(few_jpeg, "train", config, world_size=world)
    assert len(loader) == -(-41 * repeats // batch_size)
    assert loader.num_samples == 41
    with pytest.raises(GratisError, match=r"1 samples in its last batch of 20, fewer than 2 ranks"):
        Loader(few_jpeg, "train", LoaderConfig(batch_size=20, crop=40), world_size=2)
    for remainder, steps in (("drop", 2), ("pad", 3)):
        options: dict[str, Any] = {"batch_size": 20, "crop": 40, "remainder": remainder}
        assert len(Loader(few_jpeg, "train", LoaderConfig(**options), world_size=2)) == steps


def test_what_an_epoch_left_out_belongs_to_that_epoch(few_jpeg: Path) -> None:
    loader = Loader(few_jpeg, "train", LoaderConfig(batch_size=12, crop=40, remainder="drop"))
    for number in (0, 7):
        left = order(0, number, 41)[36:].tolist()
        assert loader.dropped(number).tolist() == left
        rest = [k for k in range(41) if k not in left]
        assert loader.coverage(rest, number) == {
            "seen": 36,
            "missing": 0,
            "duplicates": 0,
            "dropped": 5,
        }
        assert loader.coverage(rest, 7 - number)["missing"] > 0
        assert loader.coverage(range(41), number)["dropped"] == 0
    loader.set_epoch(7)
    assert loader.coverage(rest)["missing"] == 0  # of the one begun last, or set


@pytest.mark.parametrize(("step", "place"), [(0, (2, 0)), (3, (2, 3)), (4, (3, 0))])
def test_the_place_of_a_state(few_jpeg: Path, step: int, place: tuple[int, int]) -> None:
    """Of four steps; that after the last one is the next epoch's first."""
    loader = Loader(few_jpeg, "train", LoaderConfig(batch_size=12, crop=40))
    for number in (2, 2**32 - 2):
        loader.load_state_dict(loader.state_dict() | {"epoch": number, "step": step})
        state = loader.state_dict()
        assert (state["epoch"] - number + 2, state["step"]) == place
        assert loader.epoch == state["epoch"]
    with pytest.raises(GratisError, match="step -1, of 4 steps an epoch"):
        loader.load_state_dict(loader.state_dict() | {"step": -1})


def test_shards_at_an_address_are_read_by_the_configuration_s_limits(
    few_jpeg: Path, tmp_path: Path
) -> None:
    config = LoaderConfig(
        batch_size=12, crop=40, cache=str(tmp_path), cache_gb=0.25, outage_s=9, read_timeout_s=8
    )
    loader = Loader(f"file://{few_jpeg}", "train", config)
    assert loader.root.parent == tmp_path
    remote = loader._remote
    assert remote is not None
    assert (remote.server.limits.outage_s, remote.server.limits.read_timeout_s) == (9, 8)
    reader = loader.shard_reader()
    assert reader._cache is not None
    assert reader._cache._limit == 250_000_000
    reader.close()
    local = Loader(few_jpeg, "train", config)
    assert local.shard_reader()._cache is None
    assert [batch.ids.tolist() for batch in loader] == [batch.ids.tolist() for batch in local]
    assert len(list(tmp_path.glob("*/*.tar"))) == 5


@pytest.mark.parametrize(
    ("rank", "world", "local", "message"),
    [
        (-1, 2, None, "rank is -1; with world_size 2 it must be from 0 to 1"),
        (2, 2, None, "rank is 2; with world_size 2 it must be from 0 to 1"),
        (0, 2, 0, "local_world_size is 0; with world_size 2 it must be 1 to 2"),
        (0, 2, 3, "local_world_size is 3; with world_size 2 it must be 1 to 2"),
        (0, 5, None, "batch_size 12 cannot be shared by 5 ranks; choose a multiple"),
        (0, 0, None, "world_size is 0; it must be at least 1"),
        (0, 2, "1", "local_world_size is '1'; it must be a whole number"),
        (1, 2, 1, (1, 2, 1)),
        (1, 2, 2, (1, 2, 2)),
        (1, 2, None, (1, 2, 2)),
        (0, 1, None, (0, 1, 1)),
    ],
)
def test_ranks_that_fit_each_other(rank: int, world: int, local: Any, message: Any) -> None:
    if isinstance(message, tuple):
        assert _ranks(rank, world, local, 12) == message
        return
    with pytest.raises(GratisError) as caught:
        _ranks(rank, world, local, 12)
    assert str(caught.value) == message


def test_counters_of_each_batch(few_jpeg: Path) -> None:
    """On the second of two ranks: its own samples, once for each batch that was taken."""
    loader = Loader(few_jpeg, "train", LoaderConfig(batch_size=12, crop=40), rank=1, world_size=2)
    batches, counted = iter(loader), []
    for _ in range(4):
        next(batches)
        counters = loader.take_counters()
        counted.append((counters["images"], counters["batches"], counters["queue_capacity"]))
    assert counted == [(6, 1, 1), (6, 1, 1), (6, 1, 1), (2, 1, 1)]
    assert loader.quarantined == {}
