"""Resized crops of the loader, by whoever decodes, against torch's and torchvision's resize of the
same boxes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from handmade import FEW, SIZE
from numpy.typing import NDArray
from test_loader_views import read_with_pillow, through_the_graph, through_the_loader

from gratis import LoaderConfig
from gratis.errors import GratisError
from gratis.loader import plan

AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
# the largest difference and the mean one between DALI's filters and torch's, in levels, at most
OF_THE_GRAPH = {
    ("bilinear", True): (3, 0.3),
    ("bilinear", False): (2, 0.3),
    ("bicubic", True): (3, 0.3),
    ("bicubic", False): (5, 0.8),
}
every_form = pytest.mark.parametrize("antialias", [True, False])
every_filter = pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])


def config_of(interpolation: Any, antialias: bool) -> LoaderConfig:
    return LoaderConfig(
        batch_size=25,
        crop=32,
        area=AREA,
        seed=3,
        flip=0,
        normalize=None,
        interpolation=interpolation,
        antialias=antialias,
    )


def parts(root: Path, ids: plan.Ids) -> list[NDArray[np.uint8]]:
    images = read_with_pillow(root)
    boxes = zip(ids, *plan.boxes(3, 0, ids, SIZE, AREA, RATIO), strict=True)
    return [images[sample][y : y + h, x : x + w] for sample, y, x, h, w in boxes]


def by_torch(part: NDArray[np.uint8], config: LoaderConfig) -> NDArray[np.int64]:
    planes = torch.from_numpy(part.transpose(2, 0, 1).copy())[None]
    made = torch.nn.functional.interpolate(
        planes, size=(32, 32), mode=config.interpolation, antialias=config.antialias
    )
    return made[0].numpy().astype(np.int64)


@every_form
@every_filter
@pytest.mark.parametrize("engine", ["native", "dali"])
@pytest.mark.parametrize("codec", ["jpeg", "raw"])
def test_resized_crops_are_torch_s_to_one_level(
    codec: str, engine: Any, interpolation: str, antialias: bool, request: Any
) -> None:
    root: Path = request.getfixturevalue(f"few_{codec}")
    config = replace(config_of(interpolation, antialias), engine="dali")
    if engine == "native" and codec == "jpeg":
        config = replace(config, engine="auto")
    ids, got = through_the_loader(root, config)
    assert len(ids) == FEW
    for part, view in zip(parts(root, ids), got, strict=True):
        assert np.abs(view - by_torch(part, config)).max() <= 1


@every_form
@every_filter
def test_those_of_the_graph_for_gpus_to_a_few(
    few_jpeg: Path, interpolation: str, antialias: bool
) -> None:
    config = config_of(interpolation, antialias)
    ids, got = through_the_graph(few_jpeg, config)
    of_each = zip(parts(few_jpeg, ids), got, strict=True)
    gaps = np.array([np.abs(view - by_torch(part, config)) for part, view in of_each])
    most, mean = OF_THE_GRAPH[interpolation, antialias]
    assert gaps.max() <= most
    assert gaps.mean() <= mean


@pytest.mark.prove
@every_form
@every_filter
def test_torchvision_s_resized_crop_of_the_same_boxes(
    few_jpeg: Path, interpolation: str, antialias: bool
) -> None:
    v2 = pytest.importorskip("torchvision.transforms.v2")
    config = config_of(interpolation, antialias)
    ids, got = through_the_loader(few_jpeg, config)
    images = read_with_pillow(few_jpeg)
    boxes = zip(ids, got, *plan.boxes(3, 0, ids, SIZE, AREA, RATIO), strict=True)
    worst = 0
    for sample, view, *box in boxes:
        image = torch.from_numpy(images[sample].transpose(2, 0, 1).copy())
        mode = v2.InterpolationMode(interpolation)
        size = map(int, box)
        wanted = v2.functional.resized_crop(image, *size, [32, 32], mode, antialias=antialias)
        worst = max(worst, int(np.abs(view - wanted.numpy()).max()))
    assert worst <= 1


def test_a_wrong_filter_is_one_line() -> None:
    with pytest.raises(GratisError, match="interpolation is 'lanczos'; it may be 'bilinear' or"):
        LoaderConfig(interpolation="lanczos")  # type: ignore[arg-type]
    with pytest.raises(GratisError, match="antialias is 1; it must be True or False"):
        LoaderConfig(antialias=1)  # type: ignore[arg-type]
