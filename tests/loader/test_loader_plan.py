"""The plan: golden numbers, exactness and statistics of orders and draws."""

from __future__ import annotations

import math
import time
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special  # scipy.stats takes a second to import

from gratis.loader import plan

ILSVRC = 1_281_167  # training images
WINDOW = [0, 7, 1, 6, 4, 5, 3, 2]
GOLDEN_DRAWS = ([13, 6, 12], [31, 5, 32], [True, True, True])
GOLDEN_NORMALS = [
    [0.17836494388776736, 0.3019559345146151, 0.08992183118416508],
    [-0.5769981619607498, 0.26520419265799283, 0.6450874725776605],
    [0.3961218282400828, 0.3000282263197383, -0.5455439403567213],
]


def chance(counts: NDArray[Any]) -> float:
    """Of counts as uneven where all are equally likely (Pearson's chi-squared test)."""
    mean = counts.mean()
    return float(special.chdtrc(counts.size - 1, ((counts - mean) ** 2 / mean).sum()))


def gap(values: NDArray[Any]) -> float:
    """The largest to the uniform distribution from 0 to 1 (Kolmogorov-Smirnov test)."""
    ordered, count = np.sort(values), len(values)
    above, below = np.arange(1, count + 1) / count - ordered, ordered - np.arange(count) / count
    return float(max(above.max(), below.max()))


def chance_of_gap(values: NDArray[Any]) -> float:
    return float(special.kolmogorov(math.sqrt(len(values)) * gap(values)))


def counter(*numbers: int) -> tuple[plan.U64, plan.U64, plan.U64, plan.U64]:
    a, b, c, d = (np.array([n], np.uint64) for n in numbers)
    return a, b, c, d


@pytest.mark.parametrize(
    ("numbers", "key", "expected"),
    [  # the generator's published known answers (Random123, kat_vectors, philox4x32 10)
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_answers(
    numbers: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    assert tuple(int(w[0]) for w in plan.philox(counter(*numbers), key)) == expected


def test_plan_never_changes() -> None:
    """Golden values: a change here makes every saved run and every published result another one."""
    assert plan.order(0, 0, 8).tolist() == [4, 5, 0, 7, 3, 1, 6, 2]
    assert plan.order(1, 0, 8).tolist() == [7, 4, 3, 1, 2, 5, 6, 0]
    assert plan.window_order(0, 0, np.repeat(np.arange(4, dtype=np.int32), 2), 2).tolist() == WINDOW
    draws = plan.draws(2**40 + 1, 3, np.array([0, 1, 2**33]), 33)
    assert (draws.y.tolist(), draws.x.tolist(), draws.flip.tolist()) == GOLDEN_DRAWS
    np.testing.assert_allclose(draws.normals, GOLDEN_NORMALS, rtol=1e-9)


@pytest.mark.parametrize("count", [1, 2, 7, 33_000])
def test_order_is_a_permutation_and_depends_on_seed_and_epoch(count: int) -> None:
    orders = [plan.order(seed, epoch, count) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(count))
    if count > 7:
        assert len({order.tobytes() for order in orders}) == 3


def test_orders_of_consecutive_epochs_are_uncorrelated() -> None:
    ranks = [np.argsort(plan.order(0, epoch, 50_000)) for epoch in range(3)]
    for a, b in ((0, 1), (1, 2), (0, 2)):
        assert abs(np.corrcoef(ranks[a], ranks[b])[0, 1]) < 4 / np.sqrt(50_000)
    assert abs(np.corrcoef(ranks[0], np.arange(50_000))[0, 1]) < 4 / np.sqrt(50_000)


def test_every_place_of_the_order_is_uniform() -> None:
    places = np.zeros((6, 6))
    for seed in range(3000):
        places[np.arange(6), plan.order(seed, 0, 6)] += 1
    assert chance(places) > 1e-4


def test_window_order_is_a_permutation_that_reads_a_window_of_shards_at_a_time() -> None:
    shard = np.repeat(np.arange(10, dtype=np.int32), 20)[:195]
    order = plan.window_order(0, 0, shard, 3)
    np.testing.assert_array_equal(np.sort(order), np.arange(195))
    seen = shard[order]
    changes = [k for k in range(195) if set(seen[:k].tolist()).isdisjoint(seen[k:].tolist())]
    assert len(changes) == 4  # 0 and between the windows of 3, 3, 3 and 1 shards
    assert all(len(set(seen[a:b].tolist())) == 3 for a, b in pairwise(changes))
    assert not np.array_equal(order, plan.window_order(0, 1, shard, 3))


@pytest.mark.parametrize(("count", "window"), [(1, 1), (2, 5), (1000, 1), (1000, 7), (1000, 1000)])
def test_within_a_window_samples_come_in_the_order_of_a_full_shuffle(
    count: int, window: int
) -> None:
    shard = (np.arange(count) // 37).astype(np.int32)
    order, full = plan.window_order(3, 1, shard, window), plan.order(3, 1, count)
    left, parts = set(shard.tolist()), []
    # the shards of a window are those of its first sample and of what follows until a full window
    # is out
    while left:
        first = len(np.concatenate(parts)) if parts else 0
        size = min(window, len(left))
        opened, end = {int(shard[order[first]])}, first
        while end < count and (int(shard[order[end]]) in opened or len(opened) < size):
            opened.add(int(shard[order[end]]))
            end += 1
        parts.append(order[first:end])
        np.testing.assert_array_equal(parts[-1], full[np.isin(shard[full], list(opened))])
        left -= opened
    assert sum(map(len, parts)) == count


def class_mix(order: plan.Ids, labels: plan.Ids, batch: int) -> float:
    """Different classes in a batch, as a share of what a random batch of so many would have."""
    classes, steps = int(labels.max()) + 1, len(order) // batch
    distinct = [len(np.unique(labels[part])) for part in np.split(order[: steps * batch], steps)]
    return float(np.mean(distinct) / (classes * (1 - (1 - 1 / classes) ** batch)))


def test_batches_of_class_sorted_input_are_mixed_as_random_ones() -> None:
    count, labels = 128_000, np.arange(128_000) // 128
    assert class_mix(plan.order(0, 0, count), labels, 256) > 0.99
    shard = (np.arange(count) // 1000).astype(np.int32)
    window = plan.window_order(0, 0, shard, 8)
    # the price of sequential reads where shards are sorted
    assert class_mix(window, labels, 256) < 0.5
    assert class_mix(window, labels[plan.order(1, 0, count)], 256) > 0.99  # and where they are not


def test_window_orders_of_consecutive_epochs_are_uncorrelated() -> None:
    shard = np.repeat(np.arange(400, dtype=np.int32), 10)
    ranks = [np.argsort(plan.window_order(0, epoch, shard, 8)) for epoch in range(11)]
    correlations = [np.corrcoef(a, b)[0, 1] for a, b in pairwise(ranks)]
    assert np.abs(correlations).max() < 4 / np.sqrt(
        400
    )  # whole shards move: 400 independent places
    assert abs(np.mean(correlations)) < 4 / np.sqrt(400 * len(correlations))


@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("remainder", ["pad", "drop"])
def test_every_id_exactly_once_over_ranks_whatever_the_resumptions(
    world: int, remainder: str
) -> None:
    count, batch = 10_007, 24 * 8
    order = plan.order(7, 3, count)
    steps, random = plan.num_steps(count, batch, remainder), np.random.default_rng(world)
    seen, step, ranks = [], 0, world
    while step < steps:  # every so often the run dies and goes on with another number of ranks
        seen += [plan.rows(order, step, batch, rank, ranks) for rank in range(ranks)]
        step += 1
        if random.random() < 0.2:
            ranks = int(random.choice([1, 2, 3, 4, 8]))
    ids = np.concatenate(seen)
    counts = np.bincount(ids[ids >= 0], minlength=count)
    assert counts.max() == 1
    assert counts.sum() == (count if remainder == "pad" else steps * batch)


def test_parts_are_inside_and_follow_area_and_ratio() -> None:
    ids = np.arange(60_000)
    y, x, height, width = plan.boxes(3, 1, ids, 256, (0.08, 1.0), (3 / 4, 4 / 3))
    assert min(y.min(), x.min()) == 0
    assert ((y + height <= 256) & (x + width <= 256) & (height >= 1) & (width >= 1)).all()
    share, ratio = height * width / 256**2, width / height
    assert 0.078 < share.min() < share.max() <= 1
    assert 0.74 < ratio.min() < ratio.max() < 1.35
    small = share < 0.7  # parts up to here always fit, so that their law is that of the draw
    assert chance_of_gap((share[small] - 0.08) / 0.62) > 1e-4
    # whole pixels
    assert gap(np.log(ratio[small]) / np.log(16 / 9) + 0.5) < 0.02
    free = (height < 200) & (width < 200)
    assert gap(((y + 0.5) / (256 - height + 1))[free]) < 0.02
    again = plan.boxes(3, 1, ids[77:99], 256, (0.08, 1.0), (3 / 4, 4 / 3))
    np.testing.assert_array_equal(again[3], width[77:99])


def test_parts_that_never_fit_become_the_largest_central_one() -> None:
    y, x, height, width = plan.boxes(0, 0, np.arange(5), 256, (1.0, 1.0), (2.0, 2.0))
    assert (set(y.tolist()), set(x.tolist()), set(height.tolist()), set(width.tolist())) == (
        {64},
        {0},
        {128},
        {256},
    )


@pytest.mark.parametrize("size", [1, 8, 40, 64])
@pytest.mark.parametrize("ratio", [(100.0, 100.0), (0.005, 0.01), (50.0, 80.0)])
def test_parts_of_any_ratio_have_a_pixel(size: int, ratio: tuple[float, float]) -> None:
    y, x, height, width = plan.boxes(0, 0, np.arange(50), size, (0.9, 1.0), ratio)
    assert min(y.min(), x.min()) >= 0
    assert min(height.min(), width.min()) >= 1
    assert max((y + height).max(), (x + width).max()) <= size


def test_offsets_are_exactly_33_values_and_uniform() -> None:  # trap 6
    draws = plan.draws(0, 0, np.arange(200_000), 33)
    counts = np.zeros((33, 33, 2))
    np.add.at(counts, (draws.y, draws.x, draws.flip.astype(int)), 1)
    assert counts.min() > 0  # 2178 different crops
    assert chance(counts) > 1e-4


def test_uniform_integers_have_no_modulo_bias() -> None:
    """With a bound of 3 * 2**30 a fourth of all words must be drawn again; without that, thirds
    would get 2, 1, 1."""
    low, _ = plan.below(3 << 30, 0, 0, np.arange(60_000), plan.CROP)
    assert chance(np.bincount(low >> 30, minlength=3)) > 1e-4
    assert chance(np.bincount(low % 3, minlength=3)) > 1e-4


def test_normals_are_normal_and_independent() -> None:
    z = plan.normals(0, 0, np.arange(100_000))
    for k in range(3):
        assert chance_of_gap(special.ndtr(z[:, k])) > 1e-4
    np.testing.assert_allclose(np.cov(z.T), np.eye(3), atol=0.02)


def test_draws_depend_on_nothing_but_seed_epoch_and_id() -> None:
    ids = np.arange(1000)
    whole = plan.draws(5, 2, ids, 33)
    for part in (ids[::-1], ids[10:13], ids[[999, 0, 500]]):
        for field, expected in zip(plan.draws(5, 2, part, 33), whole, strict=True):
            np.testing.assert_array_equal(field, expected[part])
    assert not np.array_equal(plan.draws(5, 3, ids, 33).y, whole.y)
    assert not np.array_equal(plan.draws(6, 2, ids, 33).flip, whole.flip)


def test_ten_views_are_corners_and_centre_then_mirrored() -> None:  # trap 6
    views = plan.ten_views(33)
    corners = [(0, 0), (0, 32), (16, 16), (32, 0), (32, 32)]
    assert list(zip(views.y.tolist(), views.x.tolist(), strict=True)) == corners * 2
    assert views.flip.tolist() == [False] * 5 + [True] * 5


@pytest.mark.parametrize(
    ("step", "rank", "expected"),
    [(0, 0, [0, 1]), (0, 1, [2, 3]), (1, 0, [4, 5]), (1, 1, [6, -1]), (2, 0, [-1, -1])],
)
def test_ranks_take_consecutive_rows(step: int, rank: int, expected: list[int]) -> None:
    assert plan.rows(np.arange(7), step, 4, rank, 2).tolist() == expected


def planned(order: str) -> None:
    if order == "full":
        plan.order(0, 0, ILSVRC)
    else:
        plan.window_order(0, 0, (np.arange(ILSVRC) // 1000).astype(np.int32), 8)


@pytest.mark.parametrize("order", ["full", pytest.param("window", marks=pytest.mark.slow)])
def test_planning_an_epoch_of_ilsvrc_is_quick_and_small(order: str) -> None:
    tracemalloc.start()
    planned(order)
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()
    # 2 to 4.4 times as long; a loop in Python over the samples would take 50 times
    assert cpu_s(lambda: planned(order)) < 8 * cpu_s(drawn_and_sorted)


def drawn_and_sorted() -> None:
    """What cannot be done without: a key of each sample, all at once, and their sort."""
    words = plan.words(0, 0, np.arange(ILSVRC // 2), plan.ORDER)
    np.concatenate(words[:2]).sort()


def cpu_s(call: Callable[[], None]) -> float:
    """Of one core, the least of three: on a busy machine a clock on the wall measures its
    neighbours."""
    taken = []
    for _ in range(3):
        start = time.process_time()
        call()
        taken.append(time.process_time() - start)
    return min(taken)


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_share_that_is_mirrored(probability: float) -> None:
    """Within four standard deviations; exactly none at 0 and all at 1."""
    ids = np.arange(100_000)
    mirrored = plan.mirrors(3, 7, ids, probability)
    deviation = math.sqrt(probability * (1 - probability) / len(ids))
    assert abs(mirrored.mean() - probability) <= 4 * deviation


def test_at_one_half_the_mirror_is_the_words_lowest_bit() -> None:
    """As ever; who is mirrored stays so at a higher probability."""
    ids = np.arange(10_000)
    lowest = plan.words(3, 7, ids, plan.MIRROR)[0] % 2 == 1
    assert (plan.mirrors(3, 7, ids, 0.5) == lowest).all()
    assert (plan.mirrors(3, 7, ids, 0.9)[lowest]).all()
    assert not (plan.mirrors(3, 7, ids, 0.1)[~lowest]).any()
    assert (plan.draws(3, 7, ids, 33, flip=1.0).flip).all()
    assert (plan.draws(3, 7, ids, 33).flip == lowest).all()


MILLIONS = 4_200_000  # as many samples take several parts


@pytest.mark.parametrize(
    "count", [1, 2, 7, 40_001, 2_200_001, pytest.param(MILLIONS, marks=pytest.mark.slow)]
)
def test_an_order_in_parts_is_the_order(count: int) -> None:
    """From any place on, to the bit."""
    whole, parts = plan.order(3, 5, count), [*plan.order_parts(3, 5, count)]
    assert len(parts) == (1 if count < 1 << 21 else 2 if count < 4e6 else 4)
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    places = [1, count // 3, count // 2, count - 1, count]
    for first in places if count < MILLIONS // 4 else (count // 2, count):
        parts = [np.empty(0, np.int64), *plan.order_parts(3, 5, count, first)]
        np.testing.assert_array_equal(np.concatenate(parts), whole[first:])


@pytest.mark.parametrize("window", [1, 3, 100])
def test_windows_one_by_one_are_the_order(window: int) -> None:
    """Of shards of odd and even sizes, one of them empty."""
    sizes = [5, 8, 1, 0, 40_000, 7, 2, 33_333]
    shard = np.repeat(np.arange(8, dtype=np.int32), sizes)
    starts, keys = np.cumsum([0, *sizes]), np.argsort(plan.order(2, 1, len(shard)))
    shards = plan.window_order(2, 1, np.arange(8, dtype=np.int32), 1)  # of one sample each
    opened = [shards[k : k + window] for k in range(0, 8, window)]
    ids = [np.concatenate([np.arange(starts[k], starts[k + 1]) for k in few]) for few in opened]
    expected = np.concatenate([few[np.argsort(keys[few])] for few in ids])
    np.testing.assert_array_equal(plan.window_order(2, 1, shard, window), expected)
    for first in (1, 5, 13, 14, 40_014, len(shard) - 1, len(shard)):
        parts = [np.empty(0, np.int64), *plan.window_parts(2, 1, shard, window, first)]
        np.testing.assert_array_equal(np.concatenate(parts), expected[first:])


def test_a_large_order_is_never_held_as_a_whole() -> None:
    tracemalloc.start()
    drawn = sum(len(part) for part in plan.order_parts(0, 0, MILLIONS))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert drawn == MILLIONS
    assert peak < 8 * MILLIONS * 4 / 5
