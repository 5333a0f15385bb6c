"""MixUp and CutMix of finished batches: the passes against NumPy and torchvision, the draws, and
the same batches on any number of ranks and after any resumption."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batches import assert_same, epoch
from engine_cases import ABLE, LIBRARY, needs_library
from handmade import FEW, picture, write_dataset
from test_loader_engine import damage
from torch import Tensor

from gratis import Loader, LoaderConfig
from gratis.errors import GratisError
from gratis.loader.batch import Batch
from gratis.loader.engine.batch_passes import BatchPasses, Rows
from gratis.loader.engine.library import ISAS, PixelType
from gratis.loader.mixing import CutMix, MixUp
from gratis.loader.pipeline.batch_operations import mixed_segments
from gratis.loader.views.draw_mixing import Mix, beta, choices, cutmix_box, draw_mix
from gratis.loader.views.mixing_reference import mix_images, mix_labels
from gratis.loader.views.torch_mixing import mix_rows

BOTH = (MixUp(0.8, p=0.4), CutMix(1.0, p=0.4))
MIXES = [Mix(0.3, None), Mix(0.99999, None), Mix(1 - 12 * 7 / 40**2, (5, 28, 7, 12))]
TYPES = {
    torch.float32: PixelType.FLOAT32,
    torch.bfloat16: PixelType.BFLOAT16,
    torch.float16: PixelType.FLOAT16,
    torch.uint8: PixelType.UINT8,
}


def config_of(**fields: Any) -> LoaderConfig:
    return LoaderConfig(**{"batch_size": 12, "crop": 40, "seed": 5, "mix": BOTH} | fields)


class PlanOf:  # what mixed_segments asks of a plan
    def __init__(self, config: LoaderConfig) -> None:
        self.config = config


def random_images(dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    if dtype == torch.uint8:
        return torch.randint(0, 256, shape, generator=generator, dtype=dtype)
    return torch.randn(shape, generator=generator).to(dtype)


def expected(images: Tensor, mix: Mix) -> Tensor:
    mixed = torch.from_numpy(mix_images(images.float().numpy(), mix))
    return (mixed.round() if images.dtype == torch.uint8 else mixed).to(images.dtype)


@needs_library
@pytest.mark.parametrize("isa", ABLE)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("views", [1, 2])
def test_the_engine_s_pass_equals_numpy(isa: str, layout: Any, dtype: Any, views: int) -> None:
    """To the bit; and so does a part of the batch with what precedes it."""
    assert LIBRARY is not None
    passes = BatchPasses(LIBRARY, 2, ISAS.index(isa))
    plain = {"normalize": None} if dtype == torch.uint8 else {}
    config = LoaderConfig(crop=40, layout=layout, views=views, dtype=dtype, **plain)
    images = random_images(dtype, (5, *([views] if views > 1 else []), 3, 40, 40))
    size = images[0].numel() * images.element_size()
    for mix in MIXES:
        wanted = expected(images, mix)
        segments = mixed_segments(PlanOf(config), mix.box)  # type: ignore[arg-type]
        for first, last in ((0, 5), (2, 4)):
            memory = images.movedim(-3, -1) if layout == "nhwc" else images
            before = memory[first - 1].contiguous() if last < 5 else None
            memory = memory[first:last].clone(memory_format=torch.contiguous_format)
            rows = Rows(memory.data_ptr(), last - first, size)
            address = None if before is None else before.data_ptr()
            lam = mix.lam if mix.box is None else 0.0
            passes.mix(rows, address, segments, lam, TYPES[dtype])
            made = memory.movedim(-1, -3) if layout == "nhwc" else memory
            assert torch.equal(made, wanted[first:last])
    passes.close()


@pytest.mark.parametrize("dtype", TYPES)
def test_torch_s_pass_equals_numpy(dtype: Any) -> None:
    images = random_images(dtype, (5, 3, 40, 40))
    for mix in MIXES:
        for first, last in ((0, 5), (2, 4)):
            part = images[first:last].clone()
            mix_rows(part, images[first - 1] if last < 5 else None, mix)
            assert torch.equal(part, expected(images, mix)[first:last])


def test_values_that_torchvision_gave() -> None:
    """0.29.1: MixUp with lam 0.3, and CutMix with lam 0.3 and its box about (1, 2), of a batch of
    three images of 1 x 4 x 5; labels 2, 0, 2 of 3 classes."""
    images = np.arange(60, dtype=np.float32).reshape(3, 1, 4, 5)
    labels = np.array([2, 0, 2])
    mixed = mix_images(images, Mix(0.3, None))
    np.testing.assert_allclose(mixed[:, 0, 0, 0], [28.0, 6.0, 26.0], rtol=1e-6)
    assert cutmix_box(0.3, 2, 1, 5) == (0, 0, 4, 3)
    soft = mix_labels(labels, Mix(0.3, None), 3)
    np.testing.assert_allclose(soft, [[0, 0, 1], [0.3, 0, 0.7], [0.7, 0, 0.3]], atol=1e-6)


@pytest.mark.prove
def test_torchvision_s_own_functions_on_the_same_parameters() -> None:
    v2 = pytest.importorskip("torchvision.transforms.v2")
    images, labels = random_images(torch.float32, (6, 3, 40, 40)), torch.tensor([0, 3, 3, 1, 6, 2])
    config = config_of()
    kinds = set()
    for step in range(40):
        if (mix := draw_mix(config, 0, step)) is None:
            continue
        kinds.add(mix.box is None)
        params: dict[str, Any] = {"labels": labels, "batch_size": 6}
        if mix.box is None:
            operation, more = v2.MixUp(num_classes=7), {"lam": mix.lam}
        else:
            y, x, h, w = mix.box
            box = (x, y, x + w, y + h)
            operation, more = v2.CutMix(num_classes=7), {"box": box, "lam_adjusted": mix.lam}
        wanted = operation.transform(images, params | more).numpy()
        np.testing.assert_array_equal(mix_images(images.numpy(), mix), wanted)
        soft = operation.transform(labels, params | more).numpy()
        np.testing.assert_array_equal(mix_labels(labels.numpy(), mix, 7), soft)
    assert kinds == {True, False}


def test_the_box_is_torchvision_s() -> None:
    """Its formula, at every place of the centre."""
    for lam in (0.0, 0.1, 0.5, 0.77, 1.0):
        for y in range(0, 40, 3):
            for x in range(0, 40, 7):
                half = int(0.5 * (1.0 - lam) ** 0.5 * 40)
                top, left, height, width = cutmix_box(lam, y, x, 40)
                assert (left, top) == (max(x - half, 0), max(y - half, 0))
                assert (left + width, top + height) == (min(x + half, 40), min(y + half, 40))


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 4.0])
def test_coefficients_are_of_the_beta_distribution(alpha: float) -> None:
    """Mean and variance, and the largest gap to NumPy's own draws, of a level that chance passes
    once in a thousand."""
    count = 1500
    drawn = np.sort([beta(alpha, 1, 2, step) for step in range(count)])
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(drawn.mean() - 0.5) < 4 * np.sqrt(variance / count)
    assert drawn.var() == pytest.approx(variance, rel=0.14)
    theirs = np.sort(np.random.default_rng(3).beta(alpha, alpha, 10 * count))
    places = np.searchsorted(theirs, drawn) / len(theirs)
    assert np.abs(places - np.arange(count) / count).max() < 1.95 * np.sqrt(1.1 / count)


def test_draws_stay_what_they_are() -> None:
    """Golden values: a resumed run draws what it would have drawn."""
    assert beta(0.8, 1, 2, 3) == pytest.approx(GOLDEN_BETA, rel=1e-12)
    for step, golden in enumerate(GOLDEN_MIXES):
        drawn = draw_mix(config_of(), 1, step)
        assert (drawn is None) == (golden is None)
        if drawn and golden:
            assert drawn.box == golden.box
            assert drawn.lam == pytest.approx(golden.lam, rel=1e-12)


GOLDEN_BETA = 0.8854070813131812
GOLDEN_MIXES = [
    Mix(0.61, (14, 0, 26, 24)),
    Mix(0.475, (3, 0, 30, 28)),
    Mix(0.5139400569658881, None),
    None,
]


def test_each_kind_has_its_probability() -> None:
    steps = np.arange(20_000)
    chosen = np.bincount(choices(config_of(), 3, steps) + 1, minlength=3) / len(steps)
    np.testing.assert_allclose(chosen, [0.2, 0.4, 0.4], atol=0.015)
    shared = LoaderConfig(mix=(MixUp(), CutMix()))
    assert np.bincount(choices(shared, 0, steps))[0] == pytest.approx(10_000, abs=300)
    assert (choices(LoaderConfig(mix=MixUp()), 0, steps) == 0).all()  # type: ignore[arg-type]


def whole_batches(root: Path, config: LoaderConfig, world: int, number: int = 0) -> list[Batch]:
    """The global batches of an epoch, of all ranks in their order."""
    loaders = [Loader(root, "train", config, rank=rank, world_size=world) for rank in range(world)]
    for loader in loaders:
        loader.set_epoch(number)
    steps = zip(*map(epoch, loaders), strict=True)
    return [Batch(*(torch.cat(parts) for parts in zip(*step, strict=True))) for step in steps]


@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("remainder", ["short", "drop", "pad"])
def test_any_number_of_ranks_mixes_the_same_batches(
    few_jpeg: Path, remainder: Any, world: int
) -> None:
    config = config_of(remainder=remainder)
    alone, shared = (whole_batches(few_jpeg, config, n) for n in (1, world))
    assert_same(shared, alone)
    assert len(alone) == (3 if remainder == "drop" else 4)


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "nhwc"])
@pytest.mark.parametrize("engine", ["auto", "dali"])
@pytest.mark.parametrize("remainder", ["short", "pad"])
def test_batches_are_the_plain_ones_mixed(
    few_jpeg: Path, layout: Any, engine: Any, remainder: Any
) -> None:
    """By NumPy; padding takes no part."""
    config = config_of(layout=layout, engine=engine, remainder=remainder)
    mixed = whole_batches(few_jpeg, config, 1)
    plain = whole_batches(few_jpeg, replace(config, mix=()), 1)
    for step, (one, other) in enumerate(zip(mixed, plain, strict=True)):
        mix, real = draw_mix(config, 0, step), other.ids >= 0
        planes = other.images.movedim(-1, 1) if layout == "nhwc" else other.images
        images, labels = planes[real].numpy(), other.labels[real].numpy()
        wanted = torch.from_numpy(images if mix is None else mix_images(images, mix))
        made = one.images.movedim(-1, 1) if layout == "nhwc" else one.images
        assert torch.equal(made[real], wanted)
        assert one.images.stride() == other.images.stride()
        assert not made[~real].any()
        assert torch.equal(one.ids, other.ids)
        np.testing.assert_array_equal(one.labels[real].numpy(), mix_labels(labels, mix, 7))
        assert not one.labels[~real].any()
        assert one.labels.dtype == torch.float32
    assert sum(draw_mix(config, 0, step) is None for step in range(9)) in range(1, 9)


def test_resuming_gives_the_same_batches(few_jpeg: Path) -> None:
    """On another number of ranks too."""
    config = config_of()
    whole = whole_batches(few_jpeg, config, 1)
    with Loader(few_jpeg, "train", config) as loader:
        taken = iter(loader)
        for _ in range(2):
            next(taken)
        state = loader.state_dict()
        del taken
    loaders = [Loader(few_jpeg, "train", config, rank=r, world_size=2) for r in range(2)]
    for loader in loaders:
        loader.load_state_dict(state)
    for first, second, other in zip(*map(epoch, loaders), whole[2:], strict=True):
        assert torch.equal(torch.cat([first.images, second.images]), other.images)
        assert torch.equal(torch.cat([first.labels, second.labels]), other.labels)


def test_where_a_decoded_cache_holds_them(few_jpeg: Path) -> None:
    config = config_of()
    held = replace(config, decoded="host")
    with Loader(few_jpeg, "train", held, rank=1, world_size=2) as loader:
        first, second = epoch(loader), epoch(loader)
    with Loader(few_jpeg, "train", config, rank=1, world_size=2) as loader:
        assert_same(first, epoch(loader))
        assert_same(second, epoch(loader))


def test_a_stand_in_is_mixed_on_every_rank(tmp_path: Path) -> None:
    """Bad samples, some of them the first of a rank's rows or the last: their stand-ins' pixels and
    labels are those of one rank's batches."""
    root = write_dataset(tmp_path / "bad", [picture(number) for number in range(48)])
    for sample in (5, 17, 18, 40):
        damage(root, sample, lambda data: data.__setitem__(slice(0, 2), b"xx"))
    config = config_of(bad_samples="quarantine", mix=(MixUp(),), repeats=2)
    alone, shared = (whole_batches(root, config, world) for world in (1, 4))
    assert_same(shared, alone)
    assert not {5, 17, 18, 40} & set(torch.cat([batch.ids for batch in alone]).tolist())


def test_counters_count_own_samples(few_jpeg: Path) -> None:
    loaders = [Loader(few_jpeg, "train", config_of(), rank=r, world_size=2) for r in range(2)]
    for loader in loaders:
        epoch(loader)
    assert sum(loader.take_counters()["images"] for loader in loaders) == FEW


def wrong() -> Iterator[tuple[Any, str]]:
    yield lambda: MixUp(0), "alpha of MixUp is 0.0; it must be from"
    yield lambda: CutMix("1"), "alpha of CutMix is '1'; it must be a number"  # type: ignore[arg-type]
    yield lambda: MixUp(p=2), "p of MixUp is 2.0; it is a probability"
    yield lambda: LoaderConfig(mix=(MixUp(p=0.7), CutMix(p=0.7))), "sum to 1.4; 1 is the most"
    yield lambda: LoaderConfig(mix="mixup"), "mix is 'mixup'; it must be a tuple of"  # type: ignore[arg-type]
    yield lambda: LoaderConfig.evaluation(mix=(MixUp(),)), "mix is for training"


@pytest.mark.parametrize(("make", "message"), list(wrong()))
def test_mistakes_are_one_line(make: Any, message: str) -> None:
    with pytest.raises(GratisError, match=message):
        make()
