"""The loader: sharded images as augmented, normalised batches, every sample exactly once an epoch.

from gratis import Loader, LoaderConfig

with Loader("shards", "train", LoaderConfig.imagenet(batch_size=256)) as loader:
    for images, labels, ids in loader: ...
"""

from gratis.loader.augmentations import (
    AugMix,
    ColorJitter,
    GaussianBlur,
    RandAugment,
    RandomAdjustSharpness,
    RandomAutocontrast,
    RandomEqualize,
    RandomGrayscale,
    RandomInvert,
    RandomPosterize,
    RandomSolarize,
    TimmRandAugment,
    TrivialAugmentWide,
)
from gratis.loader.batch import Batch
from gratis.loader.config import LoaderConfig
from gratis.loader.decoding.gpu import GPU_DECODER
from gratis.loader.epoch.coverage import Coverage, coverage
from gratis.loader.loader import Loader
from gratis.loader.mixing import CutMix, MixUp, RandomErasing
from gratis.loader.reading.remote import dataset_folder, read_pieces

__all__ = [
    "GPU_DECODER",
    "AugMix",
    "Batch",
    "ColorJitter",
    "Coverage",
    "CutMix",
    "GaussianBlur",
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
    "dataset_folder",
    "read_pieces",
]
