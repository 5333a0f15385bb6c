"""The plan's arithmetic one number at a time, by Python's own."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gratis.loader import plan

COPY = 1 << 48


def part(
    place: list[float],
    attempts: list[list[float]],
    size: tuple[int, int],
    area: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[int, int, int, int]:
    """y, x, height and width of one image's part, as the docstring of `boxes` has it, of the
    numbers that were drawn for it."""
    tall, wide = size
    for drawn in attempts:
        pixels = (area[0] + (area[1] - area[0]) * drawn[0]) * tall * wide
        low, high = math.log(ratio[0]), math.log(ratio[1])
        shape = math.exp(low + (high - low) * drawn[1])
        w, h = round(math.sqrt(pixels * shape)), round(math.sqrt(pixels / shape))
        if 1 <= w <= wide and 1 <= h <= tall:
            return (
                math.floor(place[0] * (tall - h + 1)),
                math.floor(place[1] * (wide - w + 1)),
                h,
                w,
            )
    shape = min(max(wide / tall, ratio[0]), ratio[1])
    h = min(max(round(wide / shape), 1), tall)
    w = min(max(round(tall * shape), 1), wide)
    return (tall - h) // 2, (wide - w) // 2, h, w


@pytest.mark.parametrize(
    ("area", "ratio"),
    [
        ((0.08, 1.0), (3 / 4, 4 / 3)),
        ((0.2, 0.4), (1.5, 2.0)),
        ((0.9, 1.0), (1.0, 1.0)),
        ((0.9, 1.0), (0.01, 0.02)),  # never fits: a central sliver
        ((0.9, 1.0), (60.0, 90.0)),
        ((1e-6, 1e-4), (0.5, 2.0)),  # of few pixels, or of none
    ],
)
def test_parts_one_by_one(area: tuple[float, float], ratio: tuple[float, float]) -> None:
    sizes = [(64, 64), (47, 61), (61, 47), (1, 30), (30, 1), (1, 1), (2, 3)] * 30
    ids = np.arange(len(sizes)) * 7
    found = plan.boxes(3, 5, ids, np.array(sizes).T, area, ratio)
    places = np.stack(plan.uniforms(3, 5, ids, plan.PLACE), axis=1).tolist()
    drawn = [np.stack(plan.uniforms(3, 5, ids, plan.BOX, k), axis=1).tolist() for k in range(10)]
    of_each = zip(places, zip(*drawn, strict=True), sizes, strict=True)
    expected = [part(place, [*tried], size, area, ratio) for place, tried, size in of_each]
    assert np.stack(found, axis=1).tolist() == [list(one) for one in expected]
    assert all(column.dtype == np.int64 for column in found)


def test_parts_of_squares_may_be_given_by_one_size() -> None:
    ids = np.arange(20)
    pair = np.full((2, 20), 64)
    for one, other in zip(
        plan.boxes(1, 2, ids, 64, (0.1, 1.0), (0.5, 2.0)),
        plan.boxes(1, 2, ids, pair, (0.1, 1.0), (0.5, 2.0)),
        strict=True,
    ):
        assert one.tolist() == other.tolist()


def test_who_is_just_reached_is_mirrored() -> None:
    """The word's lowest bit counts most, 2^31, then come the others; it has to be at least as large
    as what is left of 2^32."""
    ids = np.arange(200)
    words = [int(word) for word in plan.words(3, 7, ids, plan.MIRROR)[0]]
    for row, word in enumerate(words):
        number = (word >> 1) + (word & 1) * 2**31
        for probability, mirrored in (
            (1 - number / 2**32, True),
            (1 - (number + 1) / 2**32, False),
        ):
            found = plan.mirrors(3, 7, ids, probability)
            assert found[row] == mirrored


def test_views_of_an_evaluation() -> None:
    ten, centre = plan.ten_views(8), plan.centre_view(8)
    assert ten.y.tolist() == [0, 0, 3, 7, 7] * 2
    assert ten.x.tolist() == [0, 7, 3, 0, 7] * 2
    assert ten.flip.tolist() == [False] * 5 + [True] * 5
    assert ten.normals.tolist() == [[0.0] * 3] * 10
    assert (centre.y.tolist(), centre.x.tolist()) == ([3], [3])
    assert (centre.flip.tolist(), centre.normals.tolist()) == ([False], [[0.0] * 3])


def test_copies_and_views_have_ids_of_their_own() -> None:
    ids = np.array([5, 0, 7])
    assert plan.copies(ids, 2).tolist() == [5 + 2 * COPY, 2 * COPY, 7 + 2 * COPY]
    assert plan.copies(ids, np.array([0, 1, 3])).tolist() == [5, COPY, 7 + 3 * COPY]
    drawn = np.array([5, 5 + COPY, -1])
    assert plan.samples_of(drawn).tolist() == [5, 5, -1]
    assert plan.of_views(drawn, 1) is drawn
    views = plan.of_views(np.array([5, 9 + COPY]), 3)
    assert views.tolist() == [5 + k * COPY for k in (0, 1, 2)] + [9 + k * COPY for k in (3, 4, 5)]
    assert plan.every_copy(ids, 2).tolist() == [5, 5 + COPY, 0, COPY, 7, 7 + COPY]
    assert plan.by_copy(plan.every_copy(ids, 2)).tolist() == [5, 0, 7, 5 + COPY, COPY, 7 + COPY]


def test_copies_come_one_after_another_within_a_batch() -> None:
    """Batches of four: of the second sample one copy is in the first, two in the second."""
    repeated = plan.repeated(np.array([8, 6, 9]), 3, 4)
    expected = [[8, 6, 8 + COPY, 8 + 2 * COPY], [9, 6 + COPY, 9 + COPY, 6 + 2 * COPY]]
    assert repeated.tolist() == [*expected[0], *expected[1], 9 + 2 * COPY]


def test_ranks_rows_and_steps() -> None:
    assert [plan.num_steps(n, 4, "drop") for n in (3, 4, 7, 8)] == [0, 1, 1, 2]
    assert [plan.num_steps(n, 4, kind) for n in (3, 4, 9) for kind in ("pad", "short")] == [
        *(1, 1),
        *(1, 1),
        *(3, 3),
    ]
    ids = np.arange(10, 17)
    found = [plan.short_rows(ids, 1, 4, rank, 4).tolist() for rank in range(4)]
    assert found == [[14], [15], [16], []]
    assert [plan.short_rows(ids, 0, 4, rank, 3).tolist() for rank in range(3)] == [
        [10, 11],
        [12],
        [13],
    ]
    assert plan.rows(ids, 1, 4, 1, 2).tolist() == [16, -1]


def test_a_stand_in_is_a_64_bit_word_of_the_sample() -> None:
    for attempt in (0, 1):
        high, low = (int(w[0]) for w in plan.words(4, 6, np.array([9]), plan.STAND_IN, attempt)[:2])
        assert plan.stand_in(4, 6, 9, 101, attempt) == (high * 2**32 + low) % 101
