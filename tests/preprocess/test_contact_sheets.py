"""What inspect draws, pixel by pixel, of numbers that are known."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from handmade import encode
from numpy.typing import NDArray
from PIL import Image

from gratis.dataset import Stats
from gratis.image import Whole
from gratis.preprocess.contact_sheets import draw_classes, draw_components, draw_mean, draw_montage

WHITE, BAR, LINE = [255] * 3, [52, 101, 164], [220, 30, 30]


def drawn(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as picture:
        return np.asarray(picture)


def stats(mean: NDArray[np.float32]) -> Stats:
    return Stats(mean, np.array([100.0, 25.0, 0.0]), np.eye(3)[:, [1, 0, 2]], 7)


def test_a_mean_beside_itself_with_its_contrast_stretched(tmp_path: Path) -> None:
    mean = np.full((2, 3, 3), 100, np.float32)
    mean[0, 0], mean[1, 2] = 60.4, 160.4
    draw_mean(stats(mean), tmp_path / "a.png")
    found = drawn(tmp_path / "a.png")
    assert found[..., 0].tolist() == [[60, 100, 100, 0, 101, 101], [100, 100, 160, 101, 101, 255]]
    draw_mean(stats(np.full((1, 1, 3), 9, np.float32)), tmp_path / "b.png")
    assert drawn(tmp_path / "b.png").tolist() == [[[9] * 3, [0] * 3]]


def test_the_mean_colour_moves_along_each_component(tmp_path: Path) -> None:
    """Three deviations to either side: of 10 levels of green, of 5 of red, and of none."""
    draw_components(stats(np.full((2, 2, 3), 100, np.float32)), [1, 1, 1], tmp_path / "a.png")
    found = drawn(tmp_path / "a.png").astype(int)
    assert found.shape == (3 * 96 + 16, 672, 3)
    for k, (channel, most) in enumerate(((1, 30), (0, 15), (2, 0))):
        strip = found[k * 96 + 32 : k * 96 + 96, 16:656]
        assert (strip == strip[:1]).all()
        moved = strip[0] - 100
        assert np.delete(moved, channel, axis=1).tolist() == [[0, 0]] * 640
        expected = np.linspace(-most, most, 640)
        assert np.abs(moved[:, channel] - expected).max() <= 1
        assert found[k * 96 + 31, 16:656].min() == 255  # the strip begins below


@pytest.mark.parametrize("split", [0, 1])
def test_a_bar_for_each_class(tmp_path: Path, split: int) -> None:
    """240 pixels are the most of a split; a class has 250 of the 1,000 columns."""
    counts = {"train": np.array([4, 2, 1, 0]), "val": np.array([1, 0, 2, 1])}
    draw_classes(counts, tmp_path / "a.png")
    found = drawn(tmp_path / "a.png")
    assert found.shape == (2 * (240 + 48), 1000 + 32, 3)
    base = (split + 1) * 288 - 16
    for label, count in enumerate([*counts.values()][split].tolist()):
        column = found[:, 16 + label * 250 + 100].tolist()
        height = 240 * count // (4 if split == 0 else 2)
        assert column[base - height : base + 1] == [BAR] * (height + 1)
        assert column[base + 1 : base + 10] == [WHITE] * 9
        if height < 240:
            assert column[base - height - 1] == WHITE


def test_of_more_classes_than_pixels_the_least_of_each_column_is_drawn(tmp_path: Path) -> None:
    images = np.full(2000, 10)
    images[501] = 5
    draw_classes({"train": images}, tmp_path / "a.png")
    found = drawn(tmp_path / "a.png")[:272]
    heights = (found[:, 16:1016] == BAR).all(axis=2).sum(axis=0)
    assert heights.tolist() == [240 if x != 250 else 120 for x in range(1000)]
    assert found[271, :16].tolist() == [WHITE] * 16


@pytest.mark.parametrize(
    ("whole", "left", "right"),
    [(None, 64, 191), (Whole(4.0, enlarge=False), 0, 255), (Whole(1.5, enlarge=False), 32, 223)],
)
def test_originals_beside_what_they_became(
    tmp_path: Path, whole: Whole | None, left: int, right: int
) -> None:
    """Of 40 x 20 pixels, shown six times as large; four pairs fill two rows."""
    pixels = np.full((20, 40, 3), 90, np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    pairs = [(file.getvalue(), np.full((16, 16, 3), 10 * k, np.uint8)) for k in range(4)]
    draw_montage(pairs, tmp_path / "a.png", 16, whole)
    found = drawn(tmp_path / "a.png")
    assert found.shape == (2 * 272 + 16, 3 * 560, 3)
    for k in range(4):
        x, y = k % 3 * 560 + 16, k // 3 * 272 + 16
        top = y + 64
        original = found[top : top + 128, x : x + 256]
        outline = (original == LINE).all(axis=2)
        rows, columns = np.flatnonzero(outline.any(axis=1)), np.flatnonzero(outline.any(axis=0))
        assert (rows[0], rows[-1], columns[0], columns[-1]) == (0, 127, left, right)
        assert outline[:2, left : right + 1].all()
        assert (original[60, left + 2 : right - 1] == 90).all()
        assert found[top - 1, x].tolist() == WHITE
        became = found[y : y + 256, x + 272 : x + 528]
        assert (became == 10 * k).all()
        assert found[y + 10, x + 271].tolist() == found[y + 10, x + 528].tolist() == WHITE


def test_an_odd_original_is_shown_as_what_came_of_it(tmp_path: Path) -> None:
    import gzip

    picture = np.full((20, 40, 3), 90, np.uint8)
    data = gzip.compress(encode(picture, "jpeg"))
    draw_montage([(data, picture)], tmp_path / "a.png", 16, None)
    found = drawn(tmp_path / "a.png")
    assert np.abs(found[16:272, 16:272].astype(int) - 90).max() <= 2
    assert (found[80:208, 288:544] == 90).all()
    assert found[79, 288].tolist() == WHITE
