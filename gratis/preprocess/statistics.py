"""Statistics of the training pixels: integers until the last step, so that the result is the same
to the last bit however the work is split.

Per image, exactly: sums of pixels (of square images of one size of each place, S*S*3; of others of
each channel) and the six sums of products of two channels. The products are taken by float32 dot
products of 256 pixels at a time. That is exact: they are at most 255 * 255 each, every partial sum
is an integer not above 256 * 65,025 = 16,646,400 < 2**24, and float32 holds all of those, whatever
the order of summation and with or without fused multiply-add. It costs 0.09 ms for 256x256 on one
core with AVX-512, where an integer 3x3 product costs 0.7. All of ILSVRC2012 sums to less than
2**63 / 1000."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gratis.dataset import Stats

ROW = 256  # products of two bytes that float32 can sum exactly
FULL = 257  # images whose sums fit uint16: 257 * 255 = 65,535
PAIRS = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))


class PixelSums(NamedTuple):
    """images: their number; places: the number of their pixels; pixels int64 [S,S,3], of images of
    several sizes [3]: sums over images, or over all places; products int64 [3,3] of two channels
    each: sums over all places."""

    images: int
    places: int
    pixels: NDArray[np.int64]
    products: NDArray[np.int64]

    def by_channel(self) -> PixelSums:
        """With pixels [3]."""
        return self._replace(pixels=self.pixels.reshape(-1, 3).sum(axis=0))


def no_sums(size: int | None) -> PixelSums:
    """size: of square images; None: of images of several sizes."""
    pixels = np.zeros(3 if size is None else (size, size, 3), np.int64)
    return PixelSums(0, 0, pixels, np.zeros((3, 3), np.int64))


def merge(a: PixelSums, b: PixelSums) -> PixelSums:
    """By channel where the images are not all of one size."""
    if a.pixels.shape != b.pixels.shape:
        a, b = a.by_channel(), b.by_channel()
    images, places = a.images + b.images, a.places + b.places
    return PixelSums(images, places, a.pixels + b.pixels, a.products + b.products)


class Accumulator:
    """Adds up images. Pixels of each place are summed in uint16 first, at a fifth of the cost of
    int64. size: of square images; by channel from the first image on that has another, and if it is
    None."""

    def __init__(self, size: int | None) -> None:
        self._total = no_sums(size)
        # channel by channel, as decoded pixels are
        self._recent = np.zeros((3, size or 0, size or 0), np.uint16).transpose(1, 2, 0)
        self._recent_images = 0
        self._planes = np.empty((3, 0), np.float32)

    def add(self, pixels: NDArray[np.uint8]) -> None:
        """pixels uint8 [height,width,3]."""
        if self._total.pixels.ndim == 3 and pixels.shape != self._recent.shape:
            self._flush()
            self._total = self._total.by_channel()
        images, places, sums, products = self._total
        rows = self._rows(pixels)
        for i, j in PAIRS:
            # below 2**53: exact as well
            total = int(np.vecdot(rows[i], rows[j]).sum(dtype=np.float64))
            products[i, j] += total
            if i != j:
                products[j, i] += total
        if sums.ndim == 3:
            np.add(self._recent, pixels, out=self._recent)
            self._recent_images += 1
        else:
            sums += rows.sum(axis=2).sum(axis=1, dtype=np.float64).astype(np.int64)
        size = pixels.shape[0] * pixels.shape[1]
        self._total = PixelSums(images + 1, places + size, sums, products)
        if self._recent_images == FULL:
            self._flush()

    def sums(self) -> PixelSums:
        self._flush()
        return self._total

    def _rows(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The channels, float32 [3,n,ROW], with zeros behind the last pixel."""
        size = pixels.shape[0] * pixels.shape[1]
        padded = -(-size // ROW) * ROW
        if self._planes.shape[1] < padded:
            self._planes = np.empty((3, padded), np.float32)
        planes = self._planes[:, :padded]
        np.copyto(planes[:, :size], pixels.reshape(-1, 3).T)
        planes[:, size:] = 0
        return planes.reshape(3, -1, ROW)

    def _flush(self) -> None:
        if self._recent_images:
            pixels = np.add(self._total.pixels, self._recent, order="C")
            self._total = self._total._replace(pixels=pixels)
        self._recent[:] = 0
        self._recent_images = 0


def finish(sums: PixelSums) -> Stats:
    """Mean image, or means and standard deviations of the channels, and principal components of
    single pixels, from at least one image.

    cov = E[x x^T] - E[x] E[x]^T, its numerator in whole numbers: in float64 the difference of the
    two terms would lose digits. Each eigenvector's component of the largest magnitude is made
    positive."""
    count = sums.places
    first = [int(v) for v in sums.by_channel().pixels]
    second = [[int(v) for v in row] for row in sums.products]
    covariance = np.array(
        [
            [(second[i][j] * count - first[i] * first[j]) / count**2 for j in range(3)]
            for i in range(3)
        ]
    )
    ascending, columns = np.linalg.eigh(covariance)
    vectors = columns[:, ::-1]
    largest = vectors[np.abs(vectors).argmax(axis=0), np.arange(3)]
    square = sums.pixels.ndim == 3
    none = np.empty((0, 0, 3), np.float32)
    return Stats(
        mean=(sums.pixels / sums.images).astype(np.float32) if square else none,
        eigenvalues=np.ascontiguousarray(ascending[::-1].clip(min=0)),
        eigenvectors=np.ascontiguousarray(vectors * np.where(largest < 0, -1.0, 1.0)),
        num_images=sums.images,
        channel_mean=None if square else np.array([value / count for value in first]),
        channel_std=None if square else np.sqrt(covariance.diagonal()),
    )
