"""Operations by torch on a batch, which is for GPUs: the reference's levels; here on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batches import LAYOUTS
from engine_cases import needs_library, photo
from numpy.typing import NDArray
from test_loader_operations import CASES, SIMCLR
from test_loader_views import graph_of, plan_of
from test_operations_engine import cases, program

from gratis.loader import Loader, LoaderConfig
from gratis.loader.augmentations import AugMix, Operation, RandAugment, TrivialAugmentWide
from gratis.loader.decoding import gpu
from gratis.loader.engine.library import Op
from gratis.loader.views.draw_operations import Program, draw_program
from gratis.loader.views.normalisation import normalisation
from gratis.loader.views.operations_reference import apply_program
from gratis.loader.views.torch_operations import apply_programs
from gratis.loader.views.torch_views import apply_views

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device(request.param)


def assert_reference(
    images: NDArray[np.uint8], made: Program, device: torch.device, levels: int
) -> None:
    """images uint8 [n,3,h,w]."""
    found = apply_programs(torch.from_numpy(images).to(device), made).cpu().numpy()
    for image, ops, values, out in zip(images, *made, found, strict=True):
        expected = apply_program(image, ops, values).astype(int)
        assert np.abs(out - expected).max() <= levels, (ops, values)
        assert (out != expected).mean() < 1e-3, (ops, values)


@pytest.mark.parametrize("size", [(40, 52), (2, 7), (1, 1)])
def test_each_operation(device: torch.device, size: tuple[int, int]) -> None:
    """All samples at once: each has the numbers of its own."""
    image = photo(*size, noise=30)
    pictures = [image, np.repeat(image[..., :1], 3, axis=2), image // 32 + 100]
    for op in sorted({op for op, _ in cases(size)}):
        made = [program([(op, numbers)]) for o, numbers in cases(size) if o == op]
        ops, values = (np.concatenate(parts) for parts in zip(*made, strict=True))
        for picture in pictures:
            planes = picture.transpose(2, 0, 1)[None].repeat(len(ops), axis=0)
            on_gpu = int(device.type == "cuda")
            assert_reference(planes, Program(ops, values), device, on_gpu)


def test_blur(device: torch.device) -> None:
    steps = [(Op.BLUR, [sigma, sigma * 2, 23.0, 11.0]) for sigma in (0.1, 1.0, 2.0, 7.0)]
    made = Program(*(np.concatenate(p) for p in zip(*(program([s]) for s in steps), strict=True)))
    images = np.stack([photo(40, 50, n).transpose(2, 0, 1) for n in range(4)])
    assert_reference(images, made, device, 1)


@pytest.mark.parametrize(
    "operations",
    [
        (TrivialAugmentWide(fill=9.0), RandAugment(interpolation="bilinear")),
        (AugMix(), RandAugment(), AugMix(mixture_width=2)),
        SIMCLR,
    ],
)
def test_drawn_programs(device: torch.device, operations: tuple[Operation, ...]) -> None:
    images = np.stack([photo(30, 45, n).transpose(2, 0, 1) for n in range(40)])
    made = draw_program(operations, 2, 7, np.arange(40), 30, 45)
    levels = 0 if device.type == "cpu" and operations != SIMCLR else 2
    assert_reference(images, made, device, levels)


@needs_library
@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("area", [None, (0.2, 1.0)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_graph_for_gpus_run_on_the_cpu(
    jpeg_dataset: Path, area: Any, layout: Any, views: int
) -> None:
    """The loader's own batches, where nothing is resized; DALI's filter is a level away."""
    config = LoaderConfig(
        batch_size=25,
        crop=48,
        seed=3,
        area=area,
        layout=layout,
        views=views,
        operations=CASES["simclr"][:2],
    )
    plan = plan_of(jpeg_dataset, config)
    with Loader(jpeg_dataset, "train", config) as loader:
        batches = [(batch.ids, batch.images.clone()) for batch in loader]
    for (ids, images), (batch, tensor) in zip(batches, graph_of(jpeg_dataset, plan), strict=True):
        found = gpu.to_torch(tensor, plan, batch)
        assert found.stride() == images.stride()
        assert ids.tolist() == batch.ids.tolist()
        apart = (found - images).abs()
        assert float(apart.max() if area is None else apart.mean()) < (
            1e-3 if area is None else 0.02
        )


@needs_library
def test_the_decoded_cache_for_gpus(jpeg_dataset: Path, device: torch.device) -> None:
    config = LoaderConfig.alexnet(batch_size=101, crop=48, operations=(TrivialAugmentWide(),))
    plan = plan_of(jpeg_dataset, config)
    with Loader(jpeg_dataset, "train", config) as loader:
        batch = next(iter(loader))
    whole = LoaderConfig(augment=False, crop=64, batch_size=101, normalize=None, layout="nhwc")
    with Loader(jpeg_dataset, "train", whole) as loader:
        stored = next(iter(loader)).images.to(torch.uint8)
    ids = batch.ids.numpy()
    mean = torch.from_numpy(normalisation(plan.stats, config, 0).mean).to(device)
    draws, of_epoch = plan.draws(ids)[0], (plan.stats, config, 0)
    made = apply_views(stored.to(device), batch.ids, draws, mean, *of_epoch, plan.program(ids))
    assert float((made.cpu() - batch.images).abs().max()) < 1e-3
