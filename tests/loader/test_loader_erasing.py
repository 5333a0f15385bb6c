"""RandomErasing of finished batches: the passes against NumPy, the draws against timm's, and what
does not depend on ranks."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batches import LAYOUTS, assert_same, epoch
from engine_cases import ABLE, LIBRARY, needs_library

from gratis import Loader, LoaderConfig
from gratis.errors import GratisError
from gratis.loader.engine.batch_passes import BatchPasses, Rows
from gratis.loader.engine.library import ISAS, PixelType
from gratis.loader.mixing import CutMix, MixUp, RandomErasing
from gratis.loader.pipeline import batch_operations
from gratis.loader.plan import ERASE_NOISE, copies
from gratis.loader.views.draw_mixing import Erased, draw_erasing
from gratis.loader.views.mixing_reference import erase_images, pixel_noise
from gratis.loader.views.torch_mixing import erase_views

SIDE, SEED, EPOCH = 40, 2**40 + 3, 7
VIEWS = np.array([0, 5, copies(np.array([5]), 3)[0], 2**33])
TYPES = {
    torch.float32: PixelType.FLOAT32,
    torch.bfloat16: PixelType.BFLOAT16,
    torch.float16: PixelType.FLOAT16,
    torch.uint8: PixelType.UINT8,
}


def drawn(mode: Any, **fields: Any) -> Erased:
    erasing = RandomErasing(1.0, mode=mode, min_count=1, max_count=3, **fields)
    return draw_erasing(LoaderConfig(crop=SIDE, seed=SEED, erasing=erasing), EPOCH, VIEWS)


def images_of(dtype: torch.dtype) -> torch.Tensor:
    images = torch.randn((4, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(2))
    return (images * 50 + 100).clamp(0, 255).to(dtype)


@needs_library
@pytest.mark.parametrize("isa", ABLE)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_the_engine_s_pass_equals_numpy(isa: str, last: bool, dtype: Any, mode: Any) -> None:
    if dtype == torch.uint8 and mode != "const":
        return
    assert LIBRARY is not None
    passes, erased, images = BatchPasses(LIBRARY, 2, ISAS.index(isa)), drawn(mode), images_of(dtype)
    assert len(erased.boxes) > 4
    wanted = erase_images(images.float().numpy(), erased, mode, SEED, EPOCH, VIEWS)
    memory = (images.movedim(1, -1) if last else images).contiguous()
    passes.erase(
        Rows(memory.data_ptr(), 4, memory[0].numel() * memory.element_size()),
        erased.first,
        erased.boxes,
        None if mode == "pixel" else erased.colours.astype(np.float32),
        (
            np.stack([VIEWS & 0xFFFFFFFF, VIEWS >> 32], 1).astype(np.uint32),
            SEED,
            EPOCH,
            ERASE_NOISE,
        ),
        (SIDE, SIDE),
        TYPES[dtype],
        channels_last=last,
    )
    made = (memory.movedim(-1, 1) if last else memory).float()
    near = {torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-10}
    rounding = near.get(dtype, 0.0)
    np.testing.assert_allclose(made.numpy(), wanted, rtol=rounding, atol=rounding)
    untouched = wanted == images.float().numpy()
    assert np.array_equal(made.numpy()[untouched], wanted[untouched])
    passes.close()


@needs_library
def test_instruction_sets_agree_on_every_bit_of_the_noise() -> None:
    assert LIBRARY is not None
    first, boxes = np.array([0, 1]), np.array([[0, 0, 200, 300]], np.int32)
    made = []
    for isa in ABLE:
        passes, memory = BatchPasses(LIBRARY, 1, ISAS.index(isa)), torch.zeros(1, 3, 200, 300)
        noise = (np.array([[9, 0]], np.uint32), SEED, EPOCH, ERASE_NOISE)
        rows, shape = Rows(memory.data_ptr(), 1, memory.numel() * 4), (200, 300)
        kind = PixelType.FLOAT32
        passes.erase(rows, first, boxes, None, noise, shape, kind, channels_last=False)
        made.append(memory)
    for other in made[1:]:
        assert torch.equal(other, made[0])
    wanted = pixel_noise(SEED, EPOCH, 9, (200, 300))
    np.testing.assert_allclose(made[0][0].numpy(), wanted, atol=1e-5)
    flat = made[0].double().flatten()  # 180,000 standard normals
    assert abs(float(flat.mean())) < 0.01
    assert float(flat.var()) == pytest.approx(1, abs=0.015)
    assert float((flat**4).mean()) == pytest.approx(3, abs=0.1)
    assert abs(float((flat[1:] * flat[:-1]).mean())) < 0.01


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_torch_s_pass_equals_numpy(mode: Any) -> None:
    erased, images = drawn(mode), images_of(torch.float32)
    wanted = erase_images(images.numpy(), erased, mode, SEED, EPOCH, VIEWS)
    erase_views(images, erased, mode, SEED, EPOCH, VIEWS)
    np.testing.assert_allclose(images.numpy(), wanted, rtol=2e-6, atol=1e-5)


@pytest.mark.parametrize("layout", ["nchw", "channels_last", "nhwc"])
@pytest.mark.parametrize("views", [1, 2])
def test_batches_without_the_engine_are_the_same(
    few_jpeg: Path, layout: Any, views: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By torch then, as on a GPU; on one of two ranks."""
    config = LoaderConfig(
        batch_size=12,
        crop=SIDE,
        layout=layout,
        views=views,
        engine="dali",
        mix=(MixUp(p=0.5), CutMix(p=0.5)),
        erasing=RandomErasing(0.7, mode="pixel", max_count=2),
    )
    passes = epoch(Loader(few_jpeg, "train", config, rank=1, world_size=2))
    monkeypatch.setattr(batch_operations, "load", lambda: None)
    for one, other in zip(
        epoch(Loader(few_jpeg, "train", config, rank=1, world_size=2)), passes, strict=True
    ):
        torch.testing.assert_close(one.images, other.images, rtol=0, atol=1e-5)
        assert one.images.stride() == other.images.stride()
        assert torch.equal(one.labels, other.labels)


def timm_boxes(erasing: RandomErasing, side: int, images: int) -> tuple[np.ndarray[Any, Any], Any]:
    """As timm 1.0.31 draws them: of each image how many, and y, x, height, width of each."""
    rng, counts, boxes = random.Random(1), [], []
    (low, high), logs = erasing.counts, np.log(erasing.aspects)
    for _ in range(images):
        counts.append(0)
        if rng.random() > erasing.p:
            continue
        count = low if low == high else rng.randint(low, high)
        for _ in range(count):
            for _ in range(10):
                area = rng.uniform(erasing.min_area, erasing.max_area) * side * side / count
                aspect = np.exp(rng.uniform(*logs))
                h, w = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
                if w < side and h < side:
                    boxes.append((rng.randint(0, side - h), rng.randint(0, side - w), h, w))
                    counts[-1] += 1
                    break
    return np.array(counts), np.array(boxes)


@pytest.mark.parametrize(
    "erasing",
    [
        RandomErasing(0.25),
        RandomErasing(0.7, max_area=1.0, min_aspect=0.1, max_aspect=4.0),
        RandomErasing(1.0, min_count=2, max_count=5),
    ],
)
def test_draws_are_distributed_as_timm_s(erasing: RandomErasing) -> None:
    """Two samples of 20,000 images: counts, corners and sides, by the largest gap between their
    distributions, which chance passes once in ten thousand."""
    images, side = 20_000, 224
    config = LoaderConfig(crop=side, erasing=erasing)
    ours = draw_erasing(config, 0, np.arange(images))
    counts, boxes = timm_boxes(erasing, side, images)
    pairs = [(np.diff(ours.first), counts)]
    pairs += [(ours.boxes[:, k], boxes[:, k]) for k in range(4)]
    pairs += [(ours.boxes[:, 2] * ours.boxes[:, 3], boxes[:, 2] * boxes[:, 3])]
    for one, other in pairs:
        values = np.union1d(one, other)
        shares = [np.searchsorted(np.sort(x), values, side="right") / len(x) for x in (one, other)]
        limit = 2.23 * np.sqrt((len(one) + len(other)) / (len(one) * len(other)))
        assert np.abs(shares[0] - shares[1]).max() < limit


@pytest.mark.prove
def test_timm_erases_the_same_boxes_in_the_same_way() -> None:
    """Its own class, whose random numbers are ours."""
    timm = pytest.importorskip("timm.data.random_erasing")
    erased = drawn("const")
    images = images_of(torch.float32)
    wanted = images.clone()
    for row in range(4):
        for y, x, h, w in erased.boxes[erased.first[row] : erased.first[row + 1]].tolist():
            patch = timm._get_pixels(False, False, (3, h, w), device="cpu")
            wanted[row, :, y : y + h, x : x + w] = patch
    erase_views(images, erased, "const", SEED, EPOCH, VIEWS)
    assert torch.equal(images, wanted)
    # and the distribution of its own draws: the share of what is erased
    theirs = timm.RandomErasing(0.5, max_area=0.4, mode="const", device="cpu")
    random.seed(3)
    ones = theirs(torch.ones(3000, 1, 64, 64))
    config = LoaderConfig(crop=64, erasing=RandomErasing(0.5, max_area=0.4))
    boxes = draw_erasing(config, 0, np.arange(3000)).boxes
    share = (boxes[:, 2] * boxes[:, 3]).sum() / (3000 * 64 * 64)
    assert share == pytest.approx(float(1 - ones.mean()), rel=0.06)


def test_draws_stay_what_they_are() -> None:
    erased = drawn("rand")
    assert erased.first.tolist() == GOLDEN_FIRST
    assert erased.boxes[:3].tolist() == GOLDEN_BOXES
    np.testing.assert_allclose(erased.colours[0], GOLDEN_COLOUR, rtol=1e-12)
    np.testing.assert_allclose(pixel_noise(1, 2, 3, (1, 1)).ravel(), GOLDEN_NOISE, rtol=1e-9)


GOLDEN_FIRST = [0, 2, 3, 4, 5]
GOLDEN_BOXES = [[19, 7, 8, 12], [9, 17, 12, 9], [17, 23, 4, 13]]
GOLDEN_COLOUR = [-1.4111583625054696, -0.6309359232790362, -0.5307264859795975]
GOLDEN_NOISE = [0.6031062921596431, -0.14638432606310633, 0.18691060698204806]


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_batches_are_the_plain_ones_erased(few_jpeg: Path, mode: Any, layout: Any) -> None:
    """On one rank and on three, with mixing after it, which needs a row of another rank erased."""
    erasing = RandomErasing(0.5, mode=mode, max_count=2)
    config = LoaderConfig(batch_size=12, crop=SIDE, erasing=erasing, layout=layout, seed=SEED)
    plain = replace(config, erasing=None)
    with Loader(few_jpeg, "train", config) as a, Loader(few_jpeg, "train", plain) as b:
        pairs = list(zip(epoch(a), epoch(b), strict=True))
    some = 0
    for one, other in pairs:
        ids = one.ids.numpy()
        erased = draw_erasing(config, 0, ids)
        planes = [x.images.movedim(-1, 1) if layout == "nhwc" else x.images for x in (one, other)]
        wanted = erase_images(planes[1].numpy(), erased, mode, SEED, 0, ids)
        np.testing.assert_allclose(planes[0].numpy(), wanted, atol=1e-5)
        some += len(erased.boxes)
    assert 25 < some < 110
    mixed = replace(config, mix=(MixUp(),))
    alone = Loader(few_jpeg, "train", mixed)
    shared = [Loader(few_jpeg, "train", mixed, rank=r, world_size=3) for r in range(3)]
    for whole, *parts in zip(epoch(alone), *map(epoch, shared), strict=True):
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)


def test_resuming_erases_the_same(jpeg_dataset: Path) -> None:
    config = LoaderConfig(batch_size=12, crop=SIDE, erasing=RandomErasing(1.0, mode="pixel"))
    with Loader(jpeg_dataset, "train", config) as loader:
        whole = epoch(loader)
        loader.load_state_dict(loader.state_dict() | {"epoch": 0, "step": 5})
        assert_same(epoch(loader), whole[5:])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomErasing(1.5), "p of RandomErasing is 1.5; it is a prob"),
        (lambda: RandomErasing(min_area=0.5), "area of RandomErasing is .0.5, 0.33"),
        (lambda: RandomErasing(max_aspect=0), "aspect of RandomErasing is"),
        (lambda: RandomErasing(mode=np.array([1, 2])), "mode of RandomErasing is array"),  # type: ignore[arg-type]
        (lambda: RandomErasing(mode="noise"), "mode of RandomErasing is 'noise'; it may be"),  # type: ignore[arg-type]
        (lambda: RandomErasing(min_count=3, max_count=2), r"count of RandomErasing is \(3, 2\)"),
        (lambda: RandomErasing(min_aspect=0), "min_aspect of RandomErasing is 0.0; it must be"),
        (lambda: LoaderConfig(erasing=0.25), "erasing is 0.25; it must be a RandomErasing"),  # type: ignore[arg-type]
        (lambda: LoaderConfig.evaluation(erasing=RandomErasing()), "erasing is for training"),
        (
            lambda: LoaderConfig(normalize=None, erasing=RandomErasing(mode="rand")),
            "erasing in mode 'rand' is for a standard deviation of 1; set normalize",
        ),
    ],
)
def test_mistakes_are_one_line(make: Any, message: str) -> None:
    with pytest.raises(GratisError, match=message):
        make()
