"""One rank's epoch by hand: which samples in which step, whose pixels mixing needs, what the
tensors of a batch hold, and what is counted. No shard is read."""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from handmade import write_dataset

from gratis.dataset import Index, Manifest, read_manifest, read_stats
from gratis.errors import GratisError
from gratis.loader import LoaderConfig
from gratis.loader.augmentations import ColorJitter, RandAugment
from gratis.loader.batch import IGNORE
from gratis.loader.epoch.coverage import coverage
from gratis.loader.epoch.epoch_plan import EpochPlan
from gratis.loader.epoch.stage_timer import StageTimer
from gratis.loader.mixing import MixUp, RandomErasing
from gratis.loader.pipeline.batch_operations import BatchOperations, labels_of, mixed_segments
from gratis.loader.pipeline.batch_tensors import (
    blank_images,
    image_bytes,
    images_in,
    new_memory,
    pad_images,
)
from gratis.loader.plan import PAD, copies, of_views, order, samples_of, window_order
from gratis.loader.views.draw_mixing import Mix, draw_erasing, draw_mix
from gratis.loader.views.draw_operations import draw_program
from gratis.loader.views.mixing_reference import erase_images, mix_images

COUNT, BATCH, SEED = 25, 6, 5  # one sample is in the last batch, or two copies


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> tuple[Manifest, Any]:
    images = [np.zeros((48, 48, 3), np.uint8)] * 2
    root: Path = write_dataset(tmp_path_factory.mktemp("plan") / "d", images)
    return read_manifest(root), read_stats(root)


def plan_of(manifest: tuple[Manifest, Any], **fields: Any) -> EpochPlan:
    """Of COUNT samples in shards of 5, whose labels are their ids mod 7; other fields than the
    plan's are the configuration's."""
    ids = np.arange(COUNT)
    index = Index(
        (ids // 5).astype(np.int32),
        ids * 1024,
        np.full(COUNT, 9, np.int32),
        (ids % 7).astype(np.int32),
    )
    own: dict[str, Any] = {
        "rank": 0,
        "world_size": 1,
        "epoch": 2,
        "first_step": 0,
        "soft_labels": False,
    }
    own |= {"manifest": manifest[0], "index": index, "stats": manifest[1]}
    own |= {name: fields.pop(name) for name in list(fields) if name in own}
    config = LoaderConfig(**{"batch_size": BATCH, "crop": 32, "seed": SEED} | fields)
    return EpochPlan(**own, config=config, device=torch.device("cpu"))


def shares(batch: list[int], world: int, *, padded: bool) -> list[list[int]]:
    """A global batch in consecutive parts, the first of them the larger ones; padded, all of one
    size but for what is not there."""
    if padded:
        return [batch[k * BATCH // world : (k + 1) * BATCH // world] for k in range(world)]
    parts: list[list[int]] = []
    for left in range(world, 0, -1):
        taken = sum(map(len, parts))
        parts.append(batch[taken : taken + -(-(len(batch) - taken) // left)])
    return parts


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("repeats", [1, 2])
@pytest.mark.parametrize("remainder", ["short", "pad", "drop"])
@pytest.mark.parametrize("way", ["full", "window", "by id"])
def test_samples_of_every_step_and_the_one_before_them(
    manifest: tuple[Manifest, Any], way: str, remainder: Any, repeats: int, world: int
) -> None:
    """Of a batch that is mixed, each rank that has not all of it gets what precedes its first, of
    the first rank the last of all."""
    options: dict[str, Any] = {"remainder": remainder, "repeats": repeats}
    options |= {"augment": False, "repeats": 1} if way == "by id" else {"order": way, "window": 2}
    options |= {"mix": () if way == "by id" else (MixUp(p=0.5),)}
    plan = plan_of(manifest, **options)
    shard, copy = np.arange(COUNT, dtype=np.int32) // 5, options["repeats"]
    ordered = {
        "full": order(SEED, 2, COUNT),
        "window": window_order(SEED, 2, shard, 2),
        "by id": np.arange(COUNT),
    }[way]
    every = [(int(one), k) for one in ordered for k in range(copy)]
    batches = [every[at : at + BATCH] for at in range(0, len(every), BATCH)]
    batches = [sorted(batch, key=lambda one: one[1]) for batch in batches]  # copy by copy
    named = [[int(copies(np.array(s), k)) for s, k in batch] for batch in batches]
    assert plan.order().tolist() == [one for batch in named for one in batch]
    assert plan.sample_order().tolist() == [s for batch in batches for s, _ in batch]
    if remainder == "drop":
        named = [batch for batch in named if len(batch) == BATCH]
    assert len(plan.steps) == len(named)
    for first in (0, 2):
        for rank in range(world):
            plan = plan_of(manifest, rank=rank, world_size=world, first_step=first, **options)
            assert list(plan.steps) == list(range(first, len(named)))
            wanted = []
            for step, batch in enumerate(named[first:], first):
                own = shares(batch, world, padded=remainder != "short")[rank]
                mix = draw_mix(plan.config, 2, step) if options["mix"] else None
                assert plan.mix(step) == mix
                lacks = mix is not None and len(own) < len(batch)
                if own:
                    assert plan.partners(step, mix) == lacks
                    assert plan.partners(step, Mix(0.3, None)) == (len(own) < len(batch))
                    before = [batch[batch.index(own[0]) - 1]] * lacks
                    wanted.append(own + before)
            assert [ids.tolist() for ids in plan.ids_by_step()] == wanted
    assert plan.rows == BATCH // world
    assert plan.decoded_rows == BATCH // world + (world > 1 and way != "by id")
    assert plan.padding(1) == (BATCH // world - 1 if remainder == "pad" else 0)


def test_where_a_plan_s_images_are_resized(manifest: tuple[Manifest, Any]) -> None:
    plan = plan_of(manifest)
    assert (plan.positions, plan.whole, plan.resizes) == (17, False, False)
    assert plan_of(manifest, area=(0.1, 1.0)).resizes
    assert plan_of(manifest, augment=False, resize=40).resizes
    whole = plan_of((replace(manifest[0], shape="whole"), manifest[1]))
    assert whole.whole
    assert whole.resizes


def test_sizes_are_height_then_width(manifest: tuple[Manifest, Any]) -> None:
    plan = plan_of(manifest)
    assert plan.sizes(np.array([3, 1])).tolist() == [[48, 48], [48, 48]]
    index = plan.index._replace(
        width=np.arange(100, 125, dtype=np.int32), height=np.arange(200, 225, dtype=np.int32)
    )
    sizes = replace(plan, index=index).sizes(np.array([3, 1]))
    assert sizes.tolist() == [[203, 201], [103, 101]]
    assert sizes.dtype == np.int64


def test_views_are_those_of_the_image_that_stands_in(manifest: tuple[Manifest, Any]) -> None:
    pair = (replace(manifest[0], shape="whole"), manifest[1])
    sides = np.full(COUNT, 40, np.int32)
    sides[7] = 33
    plan = plan_of(pair, crop=32)
    plan = replace(plan, index=plan.index._replace(width=sides, height=sides))
    wanted = copies(np.full(100, 3), np.arange(100))
    assert plan.draws(wanted).draws.y.max() == 40 - 32
    assert plan.draws(wanted, np.full(100, 7)).draws.y.max() == 33 - 32
    sides[7] = 31  # smaller than the crop: all of it, enlarged
    extents = plan.draws(wanted, np.full(100, 7)).extents
    assert extents is not None
    assert (extents == 31).all()


@pytest.mark.parametrize("chunk", [2, 4])
def test_a_chunk_is_of_neighbours_in_the_epoch_s_order(
    manifest: tuple[Manifest, Any], chunk: int
) -> None:
    plan = plan_of(manifest, crop_chunk=chunk, crop=8)
    drawn = plan.draws(plan.order()).draws
    places = list(zip(drawn.y.tolist(), drawn.x.tolist(), strict=True))
    groups = [places[at : at + chunk] for at in range(0, COUNT, chunk)]
    assert all(len(set(group)) == 1 for group in groups)
    assert all(one[0] != other[0] for one, other in pairwise(groups))


def test_a_program_is_of_the_view_and_of_its_crop(manifest: tuple[Manifest, Any]) -> None:
    assert plan_of(manifest).program(np.arange(3)) is None
    operations, seed = (ColorJitter(brightness=0.5), RandAugment()), 2**40 + 1
    plan = plan_of(manifest, operations=operations, seed=seed, views=2)
    program = plan.program(np.arange(COUNT))
    ids = np.stack([np.arange(COUNT), copies(np.arange(COUNT), 1)], axis=1).ravel()
    wanted = draw_program(operations, seed, 2, ids, 32, 32)
    assert program is not None
    for one, other in zip(program, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


def test_labels_and_ids_of_a_batch(manifest: tuple[Manifest, Any]) -> None:
    """Padded behind; mixed with the labels of what precedes, whoever's it is."""
    ids, mix = np.array([8, 3, 15, 9]), Mix(0.25, None)  # labels 1, 3, 1 and, before them, 2
    plan = plan_of(manifest, remainder="pad")
    labels, padded = labels_of(plan, ids, 3, None)
    assert labels.tolist() == [1, 3, 1] + [IGNORE] * 3
    assert padded.tolist() == [8, 3, 15] + [PAD] * 3
    assert (labels.dtype, padded.dtype) == (torch.int64, torch.int64)
    soft, padded = labels_of(replace(plan, soft_labels=True), ids, 3, mix)
    by_hand = np.zeros((6, 7))
    by_hand[0, [1, 2]] = by_hand[1, [3, 1]] = by_hand[2, [1, 3]] = 0.25, 0.75
    assert soft.dtype == torch.float32
    np.testing.assert_array_equal(soft.numpy(), by_hand)
    assert padded.tolist() == [8, 3, 15] + [PAD] * 3
    soft, _ = labels_of(replace(plan, soft_labels=True), ids[:3], 3, None)  # not mixed
    np.testing.assert_array_equal(soft.numpy().argmax(1)[:3], [1, 3, 1])
    np.testing.assert_array_equal(soft.numpy().sum(1), [1, 1, 1, 0, 0, 0])
    soft, _ = labels_of(replace(plan, soft_labels=True), np.array([8, 15]), 2, mix)
    np.testing.assert_array_equal(soft.numpy()[:2, 1], [1, 1])  # of one label: all of it
    none, no_ids = labels_of(replace(plan, soft_labels=True), np.empty(0, np.int64), 0, None)
    assert not none.any()
    assert no_ids.tolist() == [PAD] * 6


@pytest.mark.parametrize("layout", ["nchw", "nhwc", "channels_last"])
@pytest.mark.parametrize("views", [1, 2])
def test_images_in_memory(manifest: tuple[Manifest, Any], layout: Any, views: int) -> None:
    """The value of each place is its byte's number: so shape and strides are what they are."""
    options = {"layout": layout, "views": views, "normalize": None, "dtype": torch.uint8}
    plan = plan_of(manifest, crop=4, remainder="pad", world_size=2, mix=(MixUp(),), **options)
    rows, pixels = 4 * views, 3 * 4 * 4  # three of its own and one of another rank
    assert image_bytes(plan) == rows * pixels
    memory = torch.arange(rows * pixels).to(torch.uint8)
    wanted = memory.numpy().reshape((rows, 3, 4, 4) if layout == "nchw" else (rows, 4, 4, 3))
    wanted = wanted.transpose(0, 3, 1, 2) if layout == "channels_last" else wanted
    wanted = wanted.reshape(4, 2, *wanted.shape[1:]) if views == 2 else wanted
    images = images_in(memory, plan)
    np.testing.assert_array_equal(images.numpy(), wanted)
    padded = pad_images(images[:2], plan)
    assert padded.shape == (3, *wanted.shape[1:])
    assert torch.equal(padded[:2], images[:2])
    assert not padded[2].any()
    assert padded.stride() == images.stride()
    assert pad_images(images[:3], plan).data_ptr() == images.data_ptr()
    assert blank_images(plan).shape == padded.shape
    assert not blank_images(plan).any()
    assert image_bytes(replace(plan, config=replace(plan.config, dtype=torch.float32))) == (
        4 * rows * pixels
    )
    memory_of_ours = new_memory(plan)
    assert memory_of_ours.ctypes.data % 64 == 0
    assert (memory_of_ours.dtype.name, len(memory_of_ours)) == ("uint8", rows * pixels)
    assert not memory_of_ours.any()


@pytest.mark.parametrize("layout", ["nchw", "nhwc", "channels_last"])
@pytest.mark.parametrize("side", [10, 224])
def test_places_that_are_mixed(manifest: tuple[Manifest, Any], layout: Any, side: int) -> None:
    """Each once, in parts of at most 16,384."""
    plan = plan_of(manifest, crop=side, views=2, layout=layout)
    for box in (None, (1, 3, 4, 5), (0, 0, side, side), (2, 2, 0, 4), (2, 2, 4, 0)):
        marked = np.zeros((2, 3, side, side) if layout == "nchw" else (2, side, side, 3), np.uint8)
        y, x, height, width = box or (0, 0, side, side)
        planes = marked if layout == "nchw" else marked.transpose(0, 3, 1, 2)
        planes[:, :, y : y + height, x : x + width] = 1
        segments, found = mixed_segments(plan, box), np.zeros(marked.size, np.uint8)
        assert segments.dtype == np.int64
        assert segments.flags.c_contiguous
        for begin, count in segments.tolist():
            assert 0 < count <= 16384
            found[begin : begin + count] += 1
        np.testing.assert_array_equal(found, marked.ravel())


@pytest.mark.parametrize(
    ("ids", "dropped", "repeats", "counts"),
    [
        ([0, 1, 2, 3, -1, -1], None, 1, (4, 0, 0, 0)),
        ([3, 3, 3, 0], None, 1, (2, 2, 2, 0)),
        ([0, 1], [2], 1, (2, 1, 0, 1)),
        ([0, 1, 2], [2, 3], 1, (3, 0, 0, 1)),  # 2 was left out and seen all the same
        ([0, 0, 1, 1, 2, 2, 3], None, 2, (4, 1, 0, 0)),
        ([0, 0, 0, 1, 1, 2], [2, 3, 3], 2, (3, 0, 1, 3)),
        ([], None, 1, (0, 4, 0, 0)),
    ],
)
def test_coverage_by_hand(ids: Any, dropped: Any, repeats: int, counts: tuple[int, ...]) -> None:
    left_out = None if dropped is None else np.array(dropped)
    found = coverage(np.array(ids, np.int64).reshape(1, -1), 4, left_out, repeats)
    assert tuple(found[name] for name in ("seen", "missing", "duplicates", "dropped")) == counts


def test_an_id_that_no_dataset_has() -> None:
    with pytest.raises(GratisError, match="sample id 4 is not in a dataset of 4 samples"):
        coverage(np.array([0, 4]), 4)


def test_a_span_is_counted_without_the_spans_inside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """1 s, then 4 s of another, 16 s, 64 s of a third around 256 s of a fourth, 1024 s."""
    now = iter([0.0, 1.0, 5.0, 21.0, 85.0, 341.0, 405.0, 1429.0, 2000.0, 2003.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    timer = StageTimer()
    with timer.time("decode_s"):
        with timer.time("read_s"):
            pass
        with timer.time("finish_s"), timer.time("transfer_s"):
            pass
    with timer.time("wait_s"):
        pass
    timer.add(images=3, batches=1, bytes_read=10, native=2, fallback=1, blocked_s=0.5)
    timer.add(images=4, batches=1, bytes_read=20, native=5)
    counters = timer.take(depth=2, capacity=3)
    assert counters == {
        "images": 7,
        "batches": 2,
        "bytes_read": 30,
        "read_s": 4.0,
        "decode_s": 1.0 + 16.0 + 1024.0,
        "finish_s": 64.0 + 64.0,
        "transfer_s": 256.0,
        "wait_s": 3.0,
        "blocked_s": 0.5,
        "queue_depth": 2,
        "queue_capacity": 3,
        "native": 7,
        "fallback": 1,
    }
    assert set(timer.take(depth=0, capacity=3).values()) == {0, 3}
    assert samples_of(np.array([PAD])).tolist() == [PAD]


@pytest.mark.parametrize("passes", ["engine", "torch"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc", "channels_last"])
@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_passes_over_a_finished_batch(
    manifest: tuple[Manifest, Any], passes: str, layout: Any, views: int, dtype: torch.dtype
) -> None:
    """By the engine, which is the CPU's where it is compiled, and by torch, in place: boxes of each
    view, then each row with the one before it; the first with another rank's, or the last."""
    erasing = RandomErasing(0.8, mode="pixel", max_count=2)
    options: dict[str, Any] = {"layout": layout, "views": views, "dtype": dtype, "seed": 2**33 + 5}
    plan = plan_of(manifest, crop=16, erasing=erasing, mix=(MixUp(),), world_size=2, **options)
    shape = (4, 2, 3, 16, 16) if views == 2 else (4, 3, 16, 16)
    start = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    wanted = copies(np.array([3, 20, 9, 4]), np.array([0, 1, 0, 2]))
    ids = of_views(wanted, views)
    drawn = draw_erasing(plan.config, plan.epoch, ids)
    assert len(drawn.boxes) >= 3
    flat = start.float().numpy().reshape(-1, 3, 16, 16)
    erased = erase_images(flat, drawn, "pixel", plan.config.seed, plan.epoch, ids)
    erased = torch.from_numpy(erased).to(dtype).float().numpy().reshape(shape)
    operations = BatchOperations(2, torch.device("cpu" if passes == "engine" else "meta"))
    near: dict[str, Any] = (
        {"rtol": 2**-7, "atol": 2**-7} if dtype == torch.bfloat16 else {"atol": 1e-5}
    )
    for mix in (None, Mix(0.3, None), Mix(1 - 20 / 256, (3, 9, 4, 5))):
        for samples in (4, 3):
            images = images_in(torch.from_numpy(new_memory(plan)), plan)
            planes = images.movedim(-1, -3) if layout == "nhwc" else images
            planes.copy_(start)
            operations.erase(images, wanted, plan)
            np.testing.assert_allclose(planes.float().numpy(), erased, **near)
            now = planes.float().numpy().copy()
            operations.mix(images, samples, mix, plan)
            ring = now[:4] if samples == 4 else np.concatenate([now[3:], now[:3]])
            mixed = ring if mix is None else mix_images(ring, mix)
            made = planes.float().numpy()
            if mix is None:
                np.testing.assert_array_equal(made, now)
                continue
            np.testing.assert_allclose(made[:samples], mixed[-samples:], **near)
            np.testing.assert_array_equal(made[samples:], now[samples:])
    plain = images.clone()
    operations.erase(images, wanted, replace(plan, config=replace(plan.config, erasing=None)))
    assert torch.equal(images, plain)
    operations.close()
