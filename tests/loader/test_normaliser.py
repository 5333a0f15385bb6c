"""The compiled pass over crops, and the numbers that others take from it, against NumPy: every type
and memory layout, on more crops than are done at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gratis.dataset import Stats
from gratis.loader import LoaderConfig
from gratis.loader.views.colour_noise import colour_matrix, colour_shift, scale
from gratis.loader.views.normalisation import normalisation
from gratis.loader.views.normaliser import CHUNK, Crops, Normaliser

SIZE, CROP, COUNT = 12, 7, 2 * CHUNK + 3  # the margin of 5 is odd: the centre begins at 2
RANDOM = np.random.default_rng(1)
IMAGES = RANDOM.integers(0, 256, (COUNT, SIZE, SIZE, 3), dtype=np.uint8)
STATS = Stats(
    RANDOM.uniform(80, 150, (SIZE, SIZE, 3)).astype(np.float32),
    np.array([9000.0, 400.0, 0.25]),
    np.linalg.qr(RANDOM.normal(size=(3, 3)))[0],
    1,
)
Y, X = RANDOM.integers(0, SIZE - CROP + 1, (2, COUNT))
FLIP = np.arange(COUNT) % 3 == 1
NORMALS = RANDOM.normal(size=(COUNT, 3))
CROPS = Crops(
    IMAGES.reshape(-1),
    3 * SIZE,
    3 * (SIZE * (SIZE * np.arange(COUNT) + Y) + X),
    Y,
    X,
    FLIP,
    NORMALS,
)
PAIR = ((0.1, 0.5, 0.9), (0.5, 0.25, 1.0))
CONFIGS = {
    "released": LoaderConfig.alexnet(crop=CROP),
    "offset mean with noise": LoaderConfig.alexnet(crop=CROP, mean="offset"),
    "paper": LoaderConfig.alexnet(crop=CROP, noise="printed"),
    "noise is over": LoaderConfig.alexnet(crop=CROP, noise_until=2),
    "pair": LoaderConfig(crop=CROP, normalize=PAIR, noise="sqrt"),
    "imagenet": LoaderConfig(crop=CROP),
    "grey levels": LoaderConfig(crop=CROP, normalize=None),
}
# of x / 255: (x / 255 - mean) / std
LEVELS = {
    "pair": PAIR,
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "grey levels": ((0.0,) * 3, (1 / 255,) * 3),
}


def by_numpy(name: str) -> NDArray[np.float64]:
    """[m,crop,crop,3], from the formulas of the specification and of torchvision's Normalize."""
    found = []
    for image, y, x, flip, z in zip(IMAGES, Y, X, FLIP, NORMALS, strict=True):
        pixels = image[y : y + CROP, x : x + CROP].astype(np.float64)
        place = STATS.mean[y : y + CROP, x : x + CROP].astype(np.float64)
        if flip:
            pixels, place = pixels[:, ::-1], place[:, ::-1]
        noise = 0.1 * STATS.eigenvectors @ (np.sqrt(STATS.eigenvalues) * z)
        if name == "offset mean with noise":
            found.append((pixels - place + noise) / 1.1)
        elif name in LEVELS:
            mean, std = map(np.array, LEVELS[name])
            if name == "pair":
                pixels, std = pixels + noise, 1.1 * std
            found.append((pixels / 255 - mean) / std)
        else:
            pixels = pixels - STATS.mean[2 : 2 + CROP, 2 : 2 + CROP]
            if name == "released":
                pixels = (pixels + noise) / 1.1
            elif name == "paper":
                pixels += 255 * 0.1 * STATS.eigenvectors @ (STATS.eigenvalues / 255**2 * z)
            found.append(pixels)
    return np.stack(found)


def empty(count: int, config: LoaderConfig) -> torch.Tensor:
    """As the loader makes them."""
    if config.layout == "nhwc":
        return torch.full((count, CROP, CROP, 3), 77, dtype=config.dtype)
    last = config.layout == "channels_last"
    form = torch.channels_last if last else torch.contiguous_format
    return torch.full((count, 3, CROP, CROP), 77, dtype=config.dtype).to(memory_format=form)


def changed(name: str, **changes: Any) -> LoaderConfig:
    return LoaderConfig(**{**vars(CONFIGS[name]), **changes})


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "nhwc"])
def test_crops_are_normalised_as_numpy_does(layout: str) -> None:
    """Other types are float32's, rounded, in parts of a batch as in whole ones, and bytes are what
    was cut out."""
    for name in CONFIGS:
        config = changed(name, layout=layout)
        wide = empty(COUNT, config)
        Normaliser(STATS, config, 3)(CROPS, wide)
        found = wide if layout == "nhwc" else wide.permute(0, 2, 3, 1)
        np.testing.assert_allclose(found.numpy(), by_numpy(name), atol=2e-4, err_msg=name)
        for dtype in (torch.float16, torch.bfloat16):
            config = changed(name, layout=layout, dtype=dtype)
            normaliser = Normaliser(STATS, config, 3)
            for first, last in ((0, 1), (1, 3), (3, COUNT), (0, 1)):
                part, narrow = slice(first, last), empty(last - first, config)
                normaliser(CROPS.rows(part), narrow)
                assert torch.equal(narrow, wide[part].to(dtype)), (name, dtype)
    config = changed("grey levels", layout=layout, dtype=torch.uint8)
    narrow = empty(COUNT, config)
    Normaliser(STATS, config, 3)(CROPS, narrow)
    assert torch.equal(narrow, wide.to(torch.uint8))


def test_rounded_crops_are_done_once_and_some_at_a_time() -> None:
    asked = []

    class Noted(Crops):
        def rows(self, part: slice) -> Crops:
            asked.append(part)
            return super().rows(part)

    config = changed("released", dtype=torch.float16)
    Normaliser(STATS, config, 3)(Noted(*CROPS), empty(COUNT, config))
    done = [np.arange(COUNT)[part] for part in asked]
    assert [len(part) for part in done] == [16, 16, 3]
    assert np.concatenate(done).tolist() == list(range(COUNT))


def test_what_another_pass_takes_to_do_the_same() -> None:
    """The mean as it is and mirrored, times the factor, in the memory's order; what is added; and
    which part of which mean is whose."""
    for name, config in CONFIGS.items():
        planes, rows = (
            Normaliser(STATS, changed(name, layout=layout), 3) for layout in ("nchw", "nhwc")
        )
        noisy = name not in ("noise is over", "imagenet", "grey levels", "paper")
        factor, mean = np.full(3, 1 / 1.1 if noisy else 1.0), STATS.mean
        if name in LEVELS:
            level, std = map(np.array, LEVELS[name])
            mean = np.full((CROP, CROP, 3), 255 * level)
            factor = factor / (255 * std)
            assert planes.level is not None
            np.testing.assert_allclose(planes.level, 255 * level * factor, rtol=1e-6)
            assert planes.level.dtype == np.float32
        else:
            assert planes.level is None
            assert rows.level is None
        np.testing.assert_allclose(planes.factor, factor, rtol=1e-6)
        assert planes.factor.dtype == np.float32
        side = len(mean)
        both = np.stack([mean, mean[:, ::-1]]) * factor
        np.testing.assert_allclose(rows.mean, both.reshape(2, side, 3 * side), rtol=1e-6)
        np.testing.assert_allclose(planes.mean, np.moveaxis(both, 3, 1), rtol=1e-6)
        for mean_there in (planes.mean, rows.mean):
            assert mean_there.dtype == np.float32
            assert mean_there.flags.c_contiguous
        shift = colour_shift(STATS, config, 3, NORMALS) * factor
        np.testing.assert_allclose(planes.shift(CROPS), shift, rtol=1e-5)
        assert planes.shift(CROPS).dtype == np.float32
        regions = planes.mean_region(CROPS)
        if name == "offset mean with noise":
            mirrored = [5 - x if flip else x for x, flip in zip(X, FLIP, strict=True)]
            wanted: list[Any] = [FLIP.astype(int), Y, mirrored]
        else:
            begin = 0 if name in LEVELS else 2
            wanted = [np.zeros(COUNT), np.full(COUNT, begin), np.full(COUNT, begin)]
        for one, other in zip(regions, wanted, strict=True):
            assert one.dtype == np.int64
            np.testing.assert_array_equal(one, other)


def test_the_form_of_a_normalisation() -> None:
    pixel = Normaliser(STATS, LoaderConfig(crop=1, normalize=PAIR), 0)
    assert pixel.level is not None
    np.testing.assert_allclose(pixel.level, [0.2, 2, 0.9], rtol=1e-6)
    image = normalisation(STATS, CONFIGS["released"], 3)
    assert image.mean is STATS.mean
    assert image.factor.tolist() == [1 / 1.1] * 3
    same = normalisation(STATS, CONFIGS["pair"], 3)
    assert same.mean.shape == (CROP, CROP, 3)
    assert same.mean.dtype == np.dtype(np.float32)
    np.testing.assert_allclose(same.mean[CROP - 1, 0], [25.5, 127.5, 229.5], rtol=1e-6)
    np.testing.assert_allclose(same.factor * 1.1, [2 / 255, 4 / 255, 1 / 255], rtol=1e-12)
    none = normalisation(STATS, CONFIGS["grey levels"], 3)
    assert none.mean.shape == (CROP, CROP, 3)
    assert none.mean.dtype == np.dtype(np.float32)
    assert not none.mean.any()
    assert none.factor.tolist() == [1.0] * 3
    assert none.factor.dtype == np.float64


def test_noise_of_a_dataset_without_a_third_component() -> None:
    """Its smallest eigenvalue may come out as a little less than 0."""
    flat = STATS._replace(eigenvalues=np.array([100.0, 0.25, -1e-9]), eigenvectors=np.eye(3))
    np.testing.assert_allclose(colour_matrix(flat, "sqrt"), np.diag([1, 0.05, 0]), atol=1e-12)
    np.testing.assert_allclose(
        colour_matrix(flat, "printed"), np.diag([10 / 255, 0.025 / 255, 0]), atol=1e-12
    )
    for epoch, wanted in ((1, 1 / 1.1), (2, 1.0)):
        assert scale(CONFIGS["noise is over"], epoch) == wanted
        shift = colour_shift(flat, CONFIGS["noise is over"], epoch, np.ones((2, 3)))
        noise = [1.0, 0.05, 0.0] if epoch == 1 else [0.0] * 3
        np.testing.assert_allclose(shift, [noise, noise], atol=1e-12)
