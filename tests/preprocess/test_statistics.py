"""Mean and PCA: equal to an independent float64 computation, and to the last bit for any split of
the work."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from gratis.preprocess.statistics import FULL, Accumulator, finish, merge, no_sums


def pictures(count: int, size: int = 16) -> NDArray[np.uint8]:
    rng = np.random.default_rng(1)
    mixed = (
        rng.normal(size=(count, size, size, 3))
        @ np.array([[50, 48, 45], [20, 0, -20], [5, -10, 5]])
        + 120
    )
    return mixed.clip(0, 255).astype(np.uint8)


def summed(images: NDArray[np.uint8]) -> Accumulator:
    accumulator = Accumulator(images.shape[1])
    for picture in images:
        accumulator.add(picture)
    return accumulator


def test_equals_float64() -> None:
    images = pictures(40)
    stats = finish(summed(images).sums())
    pixels = images.reshape(-1, 3).astype(np.float64)
    values, vectors = np.linalg.eigh(np.cov(pixels.T, bias=True))
    np.testing.assert_allclose(stats.mean, images.astype(np.float64).mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(stats.eigenvalues, values[::-1], rtol=1e-9)
    np.testing.assert_allclose(np.abs(stats.eigenvectors), np.abs(vectors[:, ::-1]), atol=1e-9)
    assert stats.mean.dtype == np.float32
    assert stats.num_images == 40
    largest = np.abs(stats.eigenvectors).argmax(axis=0)
    assert (stats.eigenvectors[largest, range(3)] > 0).all()
    np.testing.assert_allclose(stats.eigenvectors.T @ stats.eigenvectors, np.eye(3), atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_each_vector_points_to_where_it_is_longest(seed: int) -> None:
    """Whichever channel that is: the second varies most here, then the third."""
    rng = np.random.default_rng(seed)
    mixing = np.diag([8.0, 60.0, 25.0]) + rng.uniform(-5, 5, (3, 3))
    images = (rng.normal(size=(8, 16, 16, 3)) @ mixing + 128).clip(0, 255).astype(np.uint8)
    vectors = finish(summed(images).sums()).eigenvectors
    assert np.abs(vectors).argmax(axis=0).tolist() == [1, 2, 0]
    assert (vectors[[1, 2, 0], [0, 1, 2]] > 0).all()


@pytest.mark.parametrize("seed", range(8))
def test_grey_images_have_no_negative_variance(seed: int) -> None:
    """Two of the three are 0, and what rounding makes of that is often below it."""
    grey = np.random.default_rng(seed).integers(0, 256, (1, 16, 16, 1), dtype=np.uint8)
    values = finish(summed(np.repeat(grey, 3, axis=3)).sums()).eigenvalues
    assert (values >= 0).all()
    assert values[0] == pytest.approx(3 * grey.var())
    assert values[1:] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("size", [16, None])
def test_sums_are_whole_numbers_and_statistics_of_one_form_alone(size: int | None) -> None:
    accumulator = Accumulator(size)
    accumulator.add(pictures(1)[0])
    for sums in (accumulator.sums(), no_sums(size), merge(no_sums(size), accumulator.sums())):
        assert (sums.pixels.dtype, sums.products.dtype) == (np.int64, np.int64)
    stats = finish(accumulator.sums())
    assert stats.mean.dtype == np.float32
    assert stats.mean.shape == ((16, 16, 3) if size else (0, 0, 3))
    assert (stats.channel_mean is None) == (stats.channel_std is None) == (size is not None)
    mean, std = stats.channels
    pixels = pictures(1).reshape(-1, 3)
    np.testing.assert_allclose(mean, pixels.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(std, pixels.std(axis=0), rtol=1e-6)


def test_any_split_gives_the_same_bits() -> None:
    images = pictures(30)
    whole = finish(summed(images).sums())
    order = np.random.default_rng(2).permutation(30)
    for cuts in ([10, 20], [1], [29], [5, 6, 7]):
        sums = no_sums(16)
        for part in np.split(images[order], cuts):
            sums = merge(summed(part).sums(), sums)
        for one, other in zip(finish(sums), whole, strict=True):
            assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


@pytest.mark.parametrize("size", [128, 256, 300])
def test_largest_sums_are_exact(size: int) -> None:
    """White and nearly white: the largest values that float32 and uint16 have to hold without
    rounding."""
    white = np.full((size, size, 3), 255, np.uint8)
    almost = white.copy()
    almost[::2, 1::3] = (254, 253, 1)
    products = (
        almost.reshape(-1, 3).astype(np.int64).T @ almost.reshape(-1, 3)
    ) + 255 * 255 * size * size
    accumulator = Accumulator(size)
    accumulator.add(white)
    accumulator.add(almost)
    sums = accumulator.sums()
    assert (sums.products == products).all()
    assert (sums.pixels == white.astype(np.int64) + almost).all()


@pytest.mark.parametrize("size", [301, 1001])
def test_sums_of_images_of_any_size_are_exact(size: int) -> None:
    """All white: 255 times an odd number, above 2**24, which float32 does not hold."""
    accumulator = Accumulator(None)
    accumulator.add(np.full((size, size + 2, 3), 255, np.uint8))
    sums = accumulator.sums()
    assert sums.pixels.tolist() == [255 * size * (size + 2)] * 3
    assert (sums.products == 255**2 * size * (size + 2)).all()


def test_more_images_than_uint16_holds() -> None:
    accumulator = Accumulator(2)
    for _ in range(FULL * 2 + 3):
        accumulator.add(np.full((2, 2, 3), 255, np.uint8))
    sums = accumulator.sums()
    assert sums.images == FULL * 2 + 3
    assert (sums.pixels == 255 * sums.images).all()


def test_one_colour_has_no_variance() -> None:
    stats = finish(summed(np.full((3, 4, 4, 3), 77, np.uint8)).sums())
    assert (stats.eigenvalues == 0).all()
    assert (stats.mean == 77).all()
