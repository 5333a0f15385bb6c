"""Mixing while the engine makes a batch: its batches are the plain ones, mixed by NumPy, to the
bit, whoever decodes which sample and whichever thread does."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batches import assert_same, epoch
from engine_cases import ABLE, LIBRARY, jpeg, needs_library, photo
from handmade import picture, write_dataset
from test_loader_engine import damage, mixed
from test_loader_mixing import expected

from gratis import Loader, LoaderConfig
from gratis.loader import Batch
from gratis.loader.augmentations import AugMix, ColorJitter
from gratis.loader.engine.decoder import NativeDecoder, Neighbours, ViewBatch, addresses
from gratis.loader.engine.library import Filter, PixelType, Status
from gratis.loader.mixing import CutMix, MixUp
from gratis.loader.pipeline import batch_pipeline
from gratis.loader.views.draw_mixing import draw_mix

pytestmark = needs_library
HALVES = [torch.bfloat16, torch.float16]
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "odd width": {"crop": 37, "batch_size": 11},
    "one sample": {"batch_size": 1},
    "two samples": {"batch_size": 2, "remainder": "pad"},
    "mean image and noise": {"normalize": "mean-image", "noise": "sqrt"},
    "mean image, channels last": {"normalize": "mean-image", "layout": "nhwc", "crop": 39},
    "no normalisation": {"normalize": None, "layout": "channels_last"},
    "resized": {"area": (0.1, 1.0), "interpolation": "bicubic"},
    "two views": {"views": 2, "area": (0.2, 1.0)},
    "operations": {"operations": (ColorJitter(0.4, 0.4, 0.4), AugMix()), "layout": "nhwc"},
    "operations, two views": {"operations": (ColorJitter(0.4),), "views": 2, "repeats": 2},
}


def config_of(mix: Any, **fields: Any) -> LoaderConfig:
    return LoaderConfig(**{"batch_size": 12, "crop": 40, "seed": 5, "mix": (mix,)} | fields)


@lru_cache(4)
def plain_batches(root: Path, config: LoaderConfig) -> list[Batch]:
    with Loader(root, "train", config) as loader:
        return epoch(loader)


def assert_mixed(root: Path, config: LoaderConfig) -> None:
    plain = plain_batches(root, replace(config, mix=(), threads=2))
    with Loader(root, "train", config) as loader:
        for step, (one, other) in enumerate(zip(epoch(loader), plain, strict=True)):
            mix = draw_mix(config, 0, step)
            real = other.ids >= 0
            assert mix is not None
            images = other.images[real]
            images = images.movedim(-1, -3) if config.layout == "nhwc" else images
            made = one.images.movedim(-1, -3) if config.layout == "nhwc" else one.images
            assert torch.equal(made[real], expected(images, mix))
            assert not made[~real].any()
            assert torch.equal(one.ids, other.ids)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("mix", [MixUp(0.8), CutMix()], ids=["mixup", "cutmix"])
@pytest.mark.parametrize("name", CASES)
def test_batches_are_the_plain_ones_mixed(
    few_jpeg: Path, name: str, mix: Any, threads: int
) -> None:
    assert_mixed(few_jpeg, config_of(mix, threads=threads, **CASES[name]))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("mix", [MixUp(0.8), CutMix()], ids=["mixup", "cutmix"])
@pytest.mark.parametrize("name", ["plain", "odd width", "mean image, channels last", "two views"])
def test_so_are_those_of_half_precision(few_jpeg: Path, name: str, mix: Any, dtype: Any) -> None:
    assert_mixed(few_jpeg, config_of(mix, dtype=dtype, threads=2, **CASES[name]))


@pytest.fixture(scope="module")
def mixed_jpeg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mixed(tmp_path_factory.mktemp("neighbours"))


@pytest.mark.parametrize("mix", [MixUp(0.8), CutMix()], ids=["mixup", "cutmix"])
@pytest.mark.parametrize(
    "fields", [{}, {"views": 2, "area": (0.2, 1.0)}, {"operations": (ColorJitter(0.4),)}]
)
def test_samples_that_another_decoder_brings(mixed_jpeg: Path, mix: Any, fields: Any) -> None:
    """Single ones, neighbours, the first and the last of a batch."""
    for remainder in ("short", "pad"):
        assert_mixed(
            mixed_jpeg, config_of(mix, batch_size=9, remainder=remainder, threads=2, **fields)
        )


@pytest.mark.parametrize("mix", [MixUp(0.8), CutMix()], ids=["mixup", "cutmix"])
def test_stand_ins_with_noise_of_their_own(tmp_path: Path, mix: Any) -> None:
    root = write_dataset(tmp_path / "bad", [picture(number) for number in range(48)])
    for sample in (5, 17, 18, 40):
        damage(root, sample, lambda data: data.__setitem__(slice(0, 2), b"xx"))
    fields: dict[str, Any] = {"noise": "sqrt", "normalize": "mean-image", "threads": 2}
    assert_mixed(root, config_of(mix, bad_samples="quarantine", batch_size=8, **fields))


@pytest.mark.parametrize("isa", ABLE)
def test_every_instruction_set_writes_the_same(
    few_jpeg: Path, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRATIS_ENGINE_ISA", isa)
    for mix in (MixUp(0.8), CutMix()):
        for fields in (
            {"dtype": torch.float16},
            {"crop": 37, "dtype": torch.bfloat16},
            {"layout": "nhwc"},
        ):
            assert_mixed(few_jpeg, config_of(mix, engine="native", **fields))


def test_it_is_the_engine_that_mixes(few_jpeg: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the tests above would be about the pass over finished batches."""
    asked = []
    neighbours_of = batch_pipeline.neighbours_of

    def seen(*arguments: Any) -> Any:
        asked.append(neighbours_of(*arguments))
        return asked[-1]

    monkeypatch.setattr(batch_pipeline, "neighbours_of", seen)
    with Loader(few_jpeg, "train", config_of(MixUp(0.8))) as loader:
        epoch(loader)
    assert asked
    assert all(asked)


def test_threads_that_meet_in_any_order() -> None:
    """Small images on more threads than there are cores, again and again."""
    assert LIBRARY is not None
    files = [np.frombuffer(jpeg(photo(32, 32, number)), np.uint8) for number in range(40)]
    boxes = np.tile(np.array([0, 0, 32, 32], np.int32), (40, 1, 1))

    def made(threads: int, **how: Any) -> np.ndarray[Any, Any]:
        out = np.zeros((40, 3, 32, 32), np.float32)
        batch = ViewBatch(
            data=addresses(files),
            size=np.array([len(file) for file in files]),
            rectangles=boxes,
            out=addresses([*out])[:, None],
            height=32,
            width=32,
            neighbours=Neighbours(40, 40, 0.25, **how),
        )
        with NativeDecoder(threads) as decoder:
            assert (decoder(batch) == Status.OK).all()
        return out

    for box in (None, (3, 5, 20, 11)):
        alone = made(1, box=box)
        for _ in range(40):
            np.testing.assert_array_equal(made(7, box=box), alone)


def test_what_cannot_be_mixed_is_refused() -> None:
    fields: dict[str, Any] = {
        "data": np.zeros(2, np.uint64),
        "size": np.zeros(2, np.int64),
        "rectangles": np.zeros((2, 1, 4), np.int32),
        "out": np.zeros((2, 1), np.uint64),
        "height": 8,
        "width": 8,
    }
    with pytest.raises(ValueError, match="bytes, and views of any size, are not mixed"):
        ViewBatch(**fields, type=PixelType.UINT8, neighbours=Neighbours(2, 2, 0.5, None))
    with pytest.raises(ValueError, match="are not mixed"):
        ViewBatch(**fields | {"height": 0, "width": 0}, neighbours=Neighbours(2, 2, 0.5, None))
    with pytest.raises(ValueError, match="neighbours of 3 samples, not 2"):
        ViewBatch(**fields, filter=Filter.CROP, neighbours=Neighbours(3, 3, 0.5, None))


def test_bytes_and_erased_images_are_mixed_too(few_jpeg: Path) -> None:
    """By the pass over the finished batch: the two ways stand for one another."""
    config = config_of(MixUp(0.8), dtype=torch.uint8, normalize=None)
    assert_mixed(few_jpeg, config)
    other = replace(config, engine="dali")
    with Loader(few_jpeg, "train", config) as one, Loader(few_jpeg, "train", other) as two:
        assert_same(epoch(one), epoch(two))
