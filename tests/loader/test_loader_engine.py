"""Batches by the engine: those of DALI and Numba to the bit; what it refuses, DALI decodes in the
same batch."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batches import assert_same, epoch
from engine_cases import needs_library
from handmade import encoded, picture, rotten, write_dataset
from PIL import Image

from gratis import Loader, LoaderConfig
from gratis.errors import GratisError
from gratis.loader.decoding import native

CASES: dict[str, dict[str, Any]] = {
    "released": {"normalize": "mean-image", "noise": "sqrt", "remainder": "pad"},
    "offset mean": {"normalize": "mean-image", "mean": "offset", "noise": "printed"},
    "imagenet": {},
    "imagenet, noise": {"noise": "sqrt"},
    "own mean": {"normalize": ((0.1, 0.5, 0.9), (0.3, 0.2, 0.7)), "flip": 0.9},
    "grey levels": {"normalize": None},
    "resized": {"area": (0.08, 1.0), "crop": 40},
    "resized, released": {"area": (0.08, 1.0), "normalize": "mean-image", "noise": "sqrt"},
    "evaluation": {"augment": False},
    "ten views": {"augment": False, "views": 10, "normalize": "mean-image", "remainder": "pad"},
}


def both(root: Path, **options: Any) -> list[Loader]:
    given = {"batch_size": 25, "crop": 48, "threads": 2} | options
    return [
        Loader(root, "train", LoaderConfig(engine=engine, **given)) for engine in ("native", "dali")
    ]


@needs_library
@pytest.mark.parametrize("layout", ["nchw", "channels_last", "nhwc"])
@pytest.mark.parametrize("name", CASES)
def test_batches_are_dali_s_to_the_bit(jpeg_dataset: Path, name: str, layout: Any) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        ours, theirs = both(jpeg_dataset, layout=layout, dtype=dtype, **CASES[name])
        assert (ours.engine, theirs.engine) == ("native", "dali")
        assert_same(epoch(ours), epoch(theirs))


@needs_library
@pytest.mark.parametrize("layout", ["nchw", "channels_last", "nhwc"])
@pytest.mark.parametrize("area", [None, (0.1, 1.0)])
def test_so_are_those_of_bytes(jpeg_dataset: Path, area: Any, layout: Any) -> None:
    options: dict[str, Any] = {"normalize": None, "dtype": torch.uint8, "layout": layout}
    ours, theirs = both(jpeg_dataset, area=area, **options)
    assert_same(epoch(ours), epoch(theirs))


def mixed(tmp_path: Path) -> Path:
    """Every fourth image is progressive, and every seventh has colour at half its width alone:
    neither is the engine's."""
    codings: list[dict[str, Any]] = [{} for _ in range(60)]
    for number, coding in enumerate(codings):
        if number % 4 == 0:
            coding["progressive"] = True
        if number % 7 == 0:
            coding["subsampling"] = "4:2:2"
    return write_dataset(tmp_path / "mixed", [picture(n) for n in range(60)], codings=codings)
