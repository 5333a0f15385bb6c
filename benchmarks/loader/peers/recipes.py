"""Peers at whole recipes: timm's loader without its prefetcher (which needs a GPU), torchvision's
second transforms in a DataLoader, and what DALI has of them in its graph. Batches as in `resized`;
labels are mixed too, and not returned."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from benchmarks.loader.peers.common import BATCH, Batches, ImagenetNormaliser, crop_of, torchvision
from benchmarks.loader.peers.resized import dali
from benchmarks.loader.peers.workers import map_loader
from gratis.loader.config import IMAGENET

CLASSES = 1000
MIXUP, CUTMIX, SMOOTHING = 0.8, 1.0, 0.1  # alphas and label smoothing of timm's ViT recipe
VIT = {"auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.25, "re_mode": "pixel"}


def timm_resized(root: Path, threads: int, scratch: Path) -> Batches:
    return (images for images, _ in _timm(root, threads, scratch, interpolation="bilinear"))


def timm_vit(root: Path, threads: int, scratch: Path) -> Batches:
    """Bicubic resized crop, mirror, RandAugment, erasing, mixup and cutmix in turn."""
    torchvision()
    _allow_zero_bits()
    loader = _timm(root, threads, scratch, interpolation="bicubic", **VIT)
    mix: Any = import_module("timm.data").Mixup(
        mixup_alpha=MIXUP, cutmix_alpha=CUTMIX, label_smoothing=SMOOTHING, num_classes=CLASSES
    )
    for images, labels in loader:
        yield mix(images, labels)[0]


def _allow_zero_bits() -> None:
    """timm 1.0.31 posterizes to 0 bits at this magnitude, which Pillow 13 refuses: 1 costs as
    much."""
    library: Any = import_module("PIL.ImageOps")
    posterize = library.posterize
    library.posterize = lambda image, bits: posterize(image, max(1, bits))


def _timm(root: Path, threads: int, scratch: Path, **changes: Any) -> Any:
    torchvision()
    library: Any = import_module("timm.data")
    loader = library.create_loader(
        library.ImageDataset(str(scratch.parent / "folder")),
        crop_of(root),
        BATCH,
        is_training=True,
        use_prefetcher=False,
        color_jitter=None,
        num_workers=threads,
        device=torch.device("cpu"),
        **changes,
    )
    while True:
        yield from loader


def trivial(root: Path, threads: int, scratch: Path) -> Batches:
    """Resized crop, mirror, TrivialAugmentWide, by Pillow; finished in the parent."""
    v2 = _v2()
    steps = [*_cutting(v2, root), v2.TrivialAugmentWide(), v2.PILToTensor()]
    normalise = ImagenetNormaliser(crop_of(root))
    for batch, _ in _folder(scratch, threads, v2.Compose(steps)):
        yield normalise(batch.permute(0, 2, 3, 1).numpy())


def mixup(root: Path, threads: int, scratch: Path) -> Batches:
    """Resized crop, mirror; mixup or cutmix of the finished batch in the parent."""
    v2 = _v2()
    mix, normalise = _mix(v2), ImagenetNormaliser(crop_of(root))
    steps = v2.Compose([*_cutting(v2, root), v2.PILToTensor()])
    for batch, labels in _folder(scratch, threads, steps):
        yield mix(normalise(batch.permute(0, 2, 3, 1).numpy()), labels)[0]


def vit(root: Path, threads: int, scratch: Path) -> Batches:
    """timm's ViT recipe by torchvision: its RandAugment has fourteen operations, timm's fifteen."""
    v2 = _v2()
    mix = _mix(v2)
    cutting = _cutting(v2, root, interpolation=v2.InterpolationMode.BICUBIC)
    steps = [
        *(*cutting, v2.RandAugment(2, 9), v2.PILToTensor()),
        *(v2.ToDtype(torch.float32, scale=True), v2.Normalize(*IMAGENET)),
        v2.RandomErasing(0.25, value="random"),
    ]
    for images, labels in _folder(scratch, threads, v2.Compose(steps)):
        yield mix(images, labels)[0]


def dali_trivial(root: Path, threads: int, scratch: Path) -> Batches:
    """auto_aug's TrivialAugmentWide in the graph."""
    from nvidia.dali import types
    from nvidia.dali.auto_aug import trivial_augment

    return dali(root, threads, types.INTERP_LINEAR, trivial_augment.trivial_augment_wide)


def dali_vit(root: Path, threads: int, scratch: Path) -> Batches:
    """auto_aug's RandAugment in the graph after a bicubic resized crop; erasing, mixup and cutmix
    are left out, which costs it nothing."""
    from nvidia.dali import types
    from nvidia.dali.auto_aug import rand_augment

    augment = partial(rand_augment.rand_augment, n=2, m=9)
    return dali(root, threads, types.INTERP_CUBIC, augment)


def _v2() -> Any:
    torchvision()
    return import_module("torchvision.transforms.v2")


def _cutting(v2: Any, root: Path, **changes: Any) -> list[Any]:
    return [v2.RandomResizedCrop(crop_of(root), **changes), v2.RandomHorizontalFlip()]


def _mix(v2: Any) -> Any:
    ways = v2.MixUp(alpha=MIXUP, num_classes=CLASSES), v2.CutMix(alpha=CUTMIX, num_classes=CLASSES)
    return v2.RandomChoice(ways)


def _folder(scratch: Path, threads: int, transform: Any) -> Any:
    folders: Any = import_module("torchvision.datasets")
    return map_loader(folders.ImageFolder(str(scratch.parent / "folder"), transform), threads)
