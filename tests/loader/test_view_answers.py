"""Which part of an image a view is, one view at a time by Python's own arithmetic; and one view's
pixels one at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from handmade import picture, statistics

from gratis.loader import LoaderConfig, plan
from gratis.loader.plan import copies
from gratis.loader.views.colour_noise import colour_shift
from gratis.loader.views.draw_views import Views, draw_views
from gratis.loader.views.normalisation import normalisation
from gratis.loader.views.reference import apply_view
from gratis.loader.views.torch_views import apply_views

SIZES = [(64, 64), (50, 91), (33, 32), (20, 90), (31, 31)]  # height and width
IDS = np.array([4, 9, 0, 17, 5])
SEED, EPOCH, CROP = 11, 3, 32


def drawn(config: LoaderConfig, *, whole: bool = True, chunks: Any = None) -> Views:
    sizes = SIZES if whole else [(64, 64)] * 5
    return draw_views(config, np.array(sizes).T, EPOCH, IDS, chunks, whole=whole)


def config_of(**fields: Any) -> LoaderConfig:
    return LoaderConfig(**{"crop": CROP, "seed": SEED, "normalize": None} | fields)


def corner(sharer: int, down: int, across: int) -> tuple[int, int]:
    """Of a view with so many positions along each axis."""
    one = np.array([sharer])
    y, x = (plan.below(n, SEED, EPOCH, one, plan.CROP) for n in (down, across))
    return int(y[0][0]), int(x[1][0])


@pytest.mark.parametrize("positions", ["all", "printed", "centre"])
@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("whole", [True, False])
def test_crops(positions: Any, views: int, whole: bool) -> None:
    """Of an image smaller than the crop the largest square; printed has one position less."""
    config = config_of(crop_positions=positions, views=views, flip=0.3, noise="sqrt")
    found = drawn(config, whole=whole)
    row = 0
    for sample, size in zip(IDS.tolist(), SIZES if whole else [(64, 64)] * 5, strict=True):
        for view in range(views):
            draw, side = int(copies(np.array(sample), view)), min(CROP, *size)
            counts = [max(n - side + (positions != "printed"), 1) for n in size]
            place = corner(draw, *counts)
            if positions == "centre":
                place = (size[0] - side) // 2, (size[1] - side) // 2
            assert (found.draws.y[row], found.draws.x[row]) == place
            one = np.array([draw])
            assert found.draws.flip[row] == plan.mirrors(SEED, EPOCH, one, 0.3)[0]
            assert (found.draws.normals[row] == plan.normals(SEED, EPOCH, one)[0]).all()
            if whole:
                assert found.extents is not None
                assert found.extents[row].tolist() == [side, side]
            row += 1
    assert len(found.draws.y) == row
    assert (found.extents is None) != whole
    assert found.targets is None


def test_a_chunk_shares_crop_and_mirror_but_no_colour() -> None:
    chunks = np.array([3, 3, 8, 8, 3])
    found = drawn(config_of(crop_chunk=2, flip=0.4), whole=False, chunks=chunks)
    for row, chunk in enumerate(chunks.tolist()):
        assert (found.draws.y[row], found.draws.x[row]) == corner(chunk, 33, 33)
        assert found.draws.flip[row] == plan.mirrors(SEED, EPOCH, np.array([chunk]), 0.4)[0]
    assert (found.draws.normals == plan.normals(SEED, EPOCH, IDS)).all()


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize("whole", [True, False])
def test_parts_that_are_resized(views: int, whole: bool) -> None:
    area, ratio = (0.2, 0.7), (0.5, 3.0)
    found = drawn(config_of(area=area, ratio=ratio, views=views, flip=0.7), whole=whole)
    assert found.targets is None
    assert found.extents is not None
    row = 0
    for sample, size in zip(IDS.tolist(), SIZES if whole else [(64, 64)] * 5, strict=True):
        for view in range(views):
            one = copies(np.array([sample]), view)
            y, x, height, width = plan.boxes(SEED, EPOCH, one, np.array([size]).T, area, ratio)
            assert (found.draws.y[row], found.draws.x[row]) == (y[0], x[0])
            assert found.extents[row].tolist() == [height[0], width[0]]
            assert found.draws.flip[row] == plan.mirrors(SEED, EPOCH, one, 0.7)[0]
            row += 1


@pytest.mark.parametrize(("side", "places"), [(64, [16]), (65, [16]), (32, [0])])
def test_the_centre_of_square_images(side: int, places: list[int]) -> None:
    sizes = np.full((2, 5), side)
    found = draw_views(config_of(augment=False), sizes, EPOCH, IDS)
    assert found.draws.y.tolist() == found.draws.x.tolist() == places * 5
    assert not found.draws.flip.any()
    assert found[1:] == (None, None)
    ten = draw_views(config_of(augment=False, views=10), sizes, EPOCH, IDS)
    last, (middle,) = side - CROP, places
    assert ten.draws.y.tolist() == [0, 0, middle, last, last] * 10
    assert ten.draws.x.tolist() == [0, last, middle, 0, last] * 10
    assert ten.draws.flip.tolist() == ([False] * 5 + [True] * 5) * 5
    assert ten.draws.normals.shape == (50, 3)


@pytest.mark.parametrize("views", [1, 10])
@pytest.mark.parametrize("resize", [33, 40, 64, 20])
def test_evaluation_is_resize_and_centre_crop(resize: int, views: int) -> None:
    """torchvision's: the other side is rounded down, halves of margins to even; images that have
    the size already are cut alone."""
    crop = min(CROP, resize)
    found = drawn(config_of(augment=False, resize=resize, views=views, crop=crop))
    assert found.extents is not None
    assert found.targets is not None
    row = 0
    for height, width in SIZES:
        short = min(height, width)
        made = (int(resize * height / short), int(resize * width / short))
        down, across = made[0] - crop, made[1] - crop
        middle = round(down / 2), round(across / 2)
        places = [middle]
        if views == 10:
            places = [(0, 0), (0, across), middle, (down, 0), (down, across)] * 2
        for view, place in enumerate(places):
            same = made == (height, width)
            at, extent = (place, [crop, crop]) if same else ((0, 0), [height, width])
            assert (found.draws.y[row], found.draws.x[row]) == at
            assert found.extents[row].tolist() == extent
            target = [crop, crop, 0, 0] if same else [*made, *place]
            assert found.targets[row].tolist() == target
            assert found.draws.flip[row] == (view >= 5)
            assert not found.draws.normals[row].any()
            row += 1
    assert len(found.draws.flip) == row


def test_of_whole_images_the_shorter_side_becomes_eight_sevenths_of_the_crop() -> None:
    sizes = np.array([[37, 64], [80, 37]])  # of which 37 is it: they are cut alone
    found = draw_views(config_of(augment=False), sizes, EPOCH, IDS[:2], whole=True)
    assert (found.draws.y.tolist(), found.draws.x.tolist()) == ([2, 16], [24, 2])
    assert found.extents is not None
    assert found.extents.tolist() == [[32, 32]] * 2
    assert found.targets is None


@pytest.mark.parametrize("form", ["central", "offset", "none"])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("side", [7, 8])
def test_one_view_pixel_by_pixel(side: int, flip: bool, form: str) -> None:
    random, crop, y, x = np.random.default_rng(side), 4, 3, 1
    image = random.integers(0, 256, (side, side, 3)).astype(np.uint8)
    mean = random.uniform(0, 255, (side, side, 3)).astype(np.float32)
    shift, factor = random.normal(size=3), np.array([0.5, 2.0, 0.25])
    found = apply_view(
        image, y=y, x=x, flip=flip, crop=crop, mean=mean, mean_form=form, shift=shift, factor=factor
    )
    centre = (side - crop) // 2
    assert found.shape == (3, crop, crop)
    assert found.dtype == np.float64
    for channel, row, column in np.ndindex(3, crop, crop):
        there = x + (crop - 1 - column if flip else column)
        value = float(image[y + row, there, channel])
        if form == "offset":
            value -= float(mean[y + row, there, channel])
        if form == "central":
            value -= float(mean[centre + row, centre + column, channel])
        assert found[channel, row, column] == (value + shift[channel]) * factor[channel]


@pytest.mark.parametrize("form", ["central", "offset"])
@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("layout", ["nchw", "nhwc", "channels_last"])
def test_torch_s_views_are_the_reference_s(layout: Any, views: int, form: Any) -> None:
    """Of images by their numbers, each view at its own place; mirrored, coloured and divided."""
    pictures = [picture(number, 17) for number in range(5)]
    stats, ids = statistics(pictures), np.array([3, 0, 4, 4, 1, 2])
    options: dict[str, Any] = {"normalize": "mean-image", "mean": form, "noise": "sqrt"}
    config = config_of(crop=6, views=views, layout=layout, **options)
    made = draw_views(config, np.full((2, 6), 17), EPOCH, ids).draws
    assert 0 < made.flip.sum() < len(made.flip)
    mean, factor = normalisation(stats, config, EPOCH)
    shift = colour_shift(stats, config, EPOCH, made.normals)
    stacked, there = torch.from_numpy(np.stack(pictures)), torch.from_numpy(mean)
    images = apply_views(stacked, torch.from_numpy(ids), made, there, stats, config, EPOCH)
    planes = images.movedim(-1, -3) if layout == "nhwc" else images
    assert planes.shape == ((6, views, 3, 6, 6) if views > 1 else (6, 3, 6, 6))
    assert images.is_contiguous() == (layout != "channels_last")
    for row, view in enumerate(planes.reshape(-1, 3, 6, 6)):
        wanted = apply_view(
            pictures[ids[row // views]],
            y=int(made.y[row]),
            x=int(made.x[row]),
            flip=bool(made.flip[row]),
            crop=6,
            mean=mean,
            mean_form=form,
            shift=shift[row],
            factor=factor,
        )
        np.testing.assert_allclose(view.numpy(), wanted, atol=1e-3)
