"""Loads and augments images so that it costs training nothing.

from gratis import Loader, LoaderConfig

with Loader("shards", "train", LoaderConfig(batch_size=256)) as loader:
    for images, labels, ids in loader: ...

The public names are loaded when they are first asked for: `import gratis` alone imports neither
torch nor DALI."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gratis.errors import GratisError
    from gratis.loader import (
        AugMix,
        Batch,
        ColorJitter,
        Coverage,
        CutMix,
        GaussianBlur,
        Loader,
        LoaderConfig,
        MixUp,
        RandAugment,
        RandomAdjustSharpness,
        RandomAutocontrast,
        RandomEqualize,
        RandomErasing,
        RandomGrayscale,
        RandomInvert,
        RandomPosterize,
        RandomSolarize,
        TimmRandAugment,
        TrivialAugmentWide,
        coverage,
    )

__version__ = "0.4.0"
__all__ = [
    "AugMix",
    "Batch",
    "ColorJitter",
    "Coverage",
    "CutMix",
    "GaussianBlur",
    "GratisError",
    "Loader",
    "LoaderConfig",
    "MixUp",
    "RandAugment",
    "RandomAdjustSharpness",
    "RandomAutocontrast",
    "RandomEqualize",
    "RandomErasing",
    "RandomGrayscale",
    "RandomInvert",
    "RandomPosterize",
    "RandomSolarize",
    "TimmRandAugment",
    "TrivialAugmentWide",
    "coverage",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(
        import_module("gratis.errors" if name == "GratisError" else "gratis.loader"), name
    )
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
