"""When an epoch begins, which one it is, and where a state goes on: as other people's training
programs ask for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batches import assert_same, epoch
from handmade import FEW

from gratis.errors import GratisError
from gratis.loader import Loader, LoaderConfig

COUNT, STEPS = FEW, 4


def make(root: Path, **options: Any) -> Loader:
    config = LoaderConfig(**({"batch_size": 12, "crop": 48, "threads": 1} | options))
    return Loader(root, "train", config)


def place(loader: Loader) -> tuple[int, int]:
    state = loader.state_dict()
    return state["epoch"], state["step"]


def test_iter_alone_costs_nothing_and_changes_nothing(few_jpeg: Path) -> None:
    """As Lightning probes a loader, timm and Keras ask for its length by way of an iterator."""
    loader, plain = make(few_jpeg), make(few_jpeg)
    before = threading.active_count()
    kept = [iter(loader) for _ in range(5)]
    assert threading.active_count() == before
    assert place(loader) == (0, 0)
    assert loader.take_counters()["bytes_read"] == 0
    assert_same(epoch(loader), epoch(plain))  # epoch 0
    for _ in range(3):
        iter(loader)
    assert place(loader) == (1, 0)
    assert_same(epoch(loader), epoch(plain))  # epoch 1
    del kept


def test_an_old_iterator_that_took_nothing_begins_the_next_epoch(few_jpeg: Path) -> None:
    loader, plain = make(few_jpeg), make(few_jpeg)
    waiting = iter(loader)
    assert_same(epoch(loader), epoch(plain))
    assert torch.equal(next(waiting).ids, next(iter(plain)).ids)
    assert place(loader) == (1, 1)


def test_iter_inside_an_epoch_does_not_end_it(few_jpeg: Path) -> None:
    loader = make(few_jpeg)
    batches = iter(loader)
    next(batches)
    other = iter(loader)
    assert len(list(batches)) == STEPS - 1
    assert place(loader) == (1, 0)
    assert len(list(other)) == STEPS
    assert place(loader) == (2, 0)


def test_a_batch_that_was_looked_at_belongs_to_its_epoch(few_jpeg: Path) -> None:
    """And set_epoch begins it again."""
    loader, plain = make(few_jpeg), make(few_jpeg)
    first, second = epoch(plain), epoch(plain)
    looked = next(iter(loader)).ids.clone()
    assert place(loader) == (0, 1)
    assert torch.equal(looked, first[0].ids)
    assert_same(epoch(loader), second)
    loader.set_epoch(0)
    assert place(loader) == (0, 0)
    assert_same(epoch(loader), first)
    assert_same(epoch(loader), second)


@pytest.mark.parametrize("number", [0, 1, 7, np.int64(2**32 - 1)])
def test_any_epoch_can_be_begun(few_jpeg: Path, number: Any) -> None:
    loader = make(few_jpeg)
    loader.set_epoch(number)
    assert (loader.epoch, place(loader)) == (number, (number, 0))
    ids = torch.cat([batch.ids for batch in loader])
    assert ids.tolist() == loader.epoch_plan(int(number)).order().tolist()
    assert loader.coverage(ids)["seen"] == COUNT


def test_the_loop_of_a_distributed_sampler_s_users(few_jpeg: Path) -> None:
    """set_epoch before every epoch is what happens anyway."""
    loader, plain = make(few_jpeg), make(few_jpeg)
    for number in range(3):
        loader.set_epoch(number)
        assert_same(epoch(loader), epoch(plain))


def test_set_epoch_inside_an_epoch_is_of_the_next_one(few_jpeg: Path) -> None:
    loader = make(few_jpeg)
    batches = iter(loader)
    next(batches)
    loader.set_epoch(5)
    assert place(loader) == (0, 1)
    assert len(list(batches)) == STEPS - 1
    next(iter(loader))
    assert place(loader) == (5, 1)


@pytest.mark.parametrize("ending", ["close", "all taken"])
def test_set_epoch_after_the_end_shows_in_the_state(few_jpeg: Path, ending: str) -> None:
    loader = make(few_jpeg)
    batches = iter(loader)
    list(islice(batches, STEPS if ending == "all taken" else 1))
    if ending == "close":
        loader.close()
    for number in (5, 2):  # each time that it is called
        loader.set_epoch(number)
        assert place(loader) == (number, 0)
    del batches


def test_a_resumed_loop_that_sets_its_epoch_goes_on_inside_it(few_jpeg: Path) -> None:
    plain = make(few_jpeg)
    wanted = [epoch(plain) for _ in range(4)]
    state = make(few_jpeg).state_dict() | {"epoch": 2, "step": 2}
    loader = make(few_jpeg)
    loader.load_state_dict(state)
    loader.set_epoch(2)
    assert place(loader) == (2, 2)
    assert_same(epoch(loader), wanted[2][2:])
    loader.set_epoch(3)
    assert_same(epoch(loader), wanted[3])
    loader.load_state_dict(state)
    loader.set_epoch(1)  # another epoch begins at its beginning
    assert_same(epoch(loader), wanted[1])
    loader.set_epoch(2)  # and the place is gone
    assert_same(epoch(loader), wanted[2])


def test_a_state_loaded_after_iter_counts(few_jpeg: Path) -> None:
    """Nothing has begun."""
    plain = make(few_jpeg)
    epoch(plain)
    wanted = epoch(plain)
    loader = make(few_jpeg)
    batches = iter(loader)
    loader.load_state_dict(loader.state_dict() | {"epoch": 1, "step": 3})
    assert torch.equal(next(batches).ids, wanted[3].ids)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (-1, "epoch is -1; it must be at least 0 and below 2"),
        (2**32, "epoch is 4294967296; it must be at least 0"),
        ("1", "epoch is '1'; it must be a whole number"),
        (1.0, "epoch is 1.0; it must be a whole number"),
        (True, "epoch is True; it must be a whole number"),
        (None, "epoch is None; it must be a whole number"),
    ],
)
def test_what_is_no_epoch_is_one_line(few_jpeg: Path, number: Any, message: str) -> None:
    loader = make(few_jpeg)
    with pytest.raises(GratisError, match=message):
        loader.set_epoch(number)
    assert place(loader) == (0, 0)


def test_a_state_saved_by_an_older_version_goes_on(few_jpeg: Path) -> None:
    """The keys are written out: padding was its default, and is no part of a state."""
    plain = make(few_jpeg)
    epoch(plain)
    wanted = epoch(plain)
    saved = {
        "epoch": 1,
        "step": 2,
        "dataset": plain.manifest.hash,
        "split": "train",
        "seed": 0,
        "order": "full",
        "batch_size": 12,
    }
    loader = make(few_jpeg)
    assert set(loader.state_dict()) == set(saved)
    loader.load_state_dict(saved)
    assert_same(epoch(loader), wanted[2:])


def ids_of(batches: Any, first: int | None = None) -> list[int]:
    return [int(number) for batch in islice(batches, first) for number in batch_ids(batch)]


def batch_ids(batch: Any) -> torch.Tensor:
    return batch.ids if hasattr(batch, "ids") else batch


def protocol(make: Callable[[], Any]) -> list[list[int]]:
    """The ids that come of every use of a state, by a loader or by torchdata's."""
    seen: list[list[int]] = []
    fresh, state = make(), make().state_dict()
    fresh.load_state_dict(state)  # of the beginning
    seen.append(ids_of(fresh))
    states = [fresh.state_dict()]  # of the end
    seen.append(ids_of(fresh, 2))  # the next epoch, broken off
    states.append(fresh.state_dict())
    seen.append(ids_of(fresh))  # a whole one
    for state in states:
        resumed = make()
        resumed.load_state_dict(state)
        again = make()
        again.load_state_dict(resumed.state_dict())  # before anything was taken
        for loader in (resumed, again):
            seen += [ids_of(loader), ids_of(loader)]
    used = make()
    ids_of(used, 2)
    used.load_state_dict(states[1])  # a loader that was used
    seen += [ids_of(used, 1), ids_of(used)]
    return seen


def test_states_of_every_moment_go_on(few_jpeg: Path) -> None:
    whole, rest = list(range(COUNT)), list(range(24, COUNT))
    wanted = [whole, whole[:24], whole]  # fresh
    wanted += [whole, whole] * 2  # of the end
    wanted += [rest, whole] * 2  # of the middle
    wanted += [rest[:12], whole]
    assert protocol(lambda: make(few_jpeg, augment=False)) == wanted


@pytest.mark.prove
@pytest.mark.filterwarnings(
    "ignore:'set_vital' is deprecated:UserWarning"
)  # of torch, in torchdata
def test_states_go_on_as_torchdata_s_do(few_jpeg: Path) -> None:
    """The same uses of torchdata's StatefulDataLoader give the same samples."""
    stateful = pytest.importorskip("torchdata.stateful_dataloader", reason="needs torchdata")
    theirs = protocol(lambda: stateful.StatefulDataLoader(range(COUNT), batch_size=12))
    assert protocol(lambda: make(few_jpeg, augment=False)) == theirs
