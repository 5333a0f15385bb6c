"""What every peer's measurement shares: sizes, the normalisation that was quickest for them, the
crop by a plain decoder."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from gratis.dataset import read_index, read_manifest, read_stats
from gratis.loader.config import IMAGENET
from gratis.loader.views.colour_noise import colour_matrix

BATCH = 256
SHUFFLE = 1000  # samples in the shuffle buffers of libraries that have no other shuffle

VIEWS_BATCH = 32  # images whose ten views are a batch

Work = Literal["crop", "resized", "views", "bfloat16", "uint8", "trivial", "mixup", "vit"]
"""crop: 224 px, mirror, colour noise, minus mean, to float32; resized: a random-resized crop (0.08
to 1 of the area) of 224 px, mirror, ImageNet's mean and standard deviation, to float32; views: ten
of each image; bfloat16: as crop; uint8: crop and mirror alone. trivial, mixup: resized with
TrivialAugmentWide, or with mixup or cutmix of each batch; vit: timm's recipe (bicubic resized crop,
mirror, RandAugment, erasing, mixup or cutmix)."""
WORKS: tuple[Work, ...] = ("crop", "resized", "views", "bfloat16", "uint8")
Files = Literal["usual", "fitted", "older", "q90", "raw"]
"""JPEG with the standard's Huffman tables and no restart markers, as most files are; as `gratis
shards` writes it; as versions of format 1 did; as `gratis shards --quality 90` does; pixels."""
Batches = Iterator[torch.Tensor]
# of a dataset, decoder threads, and a folder of what `write` wrote
Stream = Callable[[Path, int, Path], Batches]
Pixels = NDArray[np.uint8]


class NumpyNormaliser:
    """uint8 NHWC to float32 NCHW with colour noise and mean, by NumPy, into buffers that are used
    in turn.

    In the parent, for every peer that was quicker so than with arithmetic in its graph or its
    workers. A fresh batch of 154 MB would cost three times as much in page faults."""

    def __init__(self, root: Path, ring: int = 3) -> None:
        crop = crop_of(root)
        self._mean, self._matrix = mean_of(root), colour_matrix(read_stats(root), "sqrt")
        self._random = np.random.default_rng(1)
        self._ring = [torch.zeros((BATCH, 3, crop, crop)) for _ in range(ring)]

    def buffer(self) -> torch.Tensor:
        """The one used longest ago."""
        self._ring.append(self._ring.pop(0))
        return self._ring[-1]

    def shifts(self) -> NDArray[np.float32]:
        """Colour noise of a batch, [256,3]."""
        return (self._random.standard_normal((BATCH, 3)) @ self._matrix.T).astype(np.float32)

    def one(
        self,
        image: NDArray[Any],
        shift: NDArray[np.float32],
        target: NDArray[np.float32],
        scale: float = 1.0,
    ) -> None:
        """scale: of what is no grey level, by 255."""
        if scale != 1.0:
            np.multiply(image, scale, out=image)
        np.subtract(image.transpose(2, 0, 1), self._mean, out=target, dtype=np.float32)
        np.add(target, shift[:, None, None], out=target)

    def __call__(self, images: Pixels) -> torch.Tensor:
        out = self.buffer()
        for image, target, shift in zip(images, out.numpy(), self.shifts(), strict=True):
            self.one(image, shift, target)
        return out


class ImagenetNormaliser:
    """uint8 NHWC to float32 NCHW, minus ImageNet's mean, over its standard deviation, as above."""

    def __init__(self, crop: int, ring: int = 3) -> None:
        mean, std = (np.array(three, np.float32)[:, None, None] for three in IMAGENET)
        self._scale, self._offset = 1 / (255 * std), -mean / std
        self._ring = [torch.zeros((BATCH, 3, crop, crop)) for _ in range(ring)]

    def __call__(self, images: Pixels) -> torch.Tensor:
        self._ring.append(self._ring.pop(0))
        for image, target in zip(images, self._ring[-1].numpy(), strict=True):
            np.multiply(image.transpose(2, 0, 1), self._scale, out=target)
            np.add(target, self._offset, out=target)
        return self._ring[-1]


class Samples:
    """Random access to uint8 crops, as map-style datasets have it."""

    def __init__(self, root: Path) -> None:
        self._tars, self._index = tars_of(root), read_index(root, "train")
        self._crop = crop_of(root)

    def __len__(self) -> int:
        return len(self._index.label)

    def __getitem__(self, sample: int) -> Pixels:
        with open(self._tars[self._index.shard[sample]], "rb") as file:
            file.seek(int(self._index.offset[sample]))
            return cut(file.read(int(self._index.size[sample])), self._crop)


def crop_of(root: Path) -> int:
    """7/8 of the image's side, as 224 of 256."""
    return read_manifest(root).image_size * 7 // 8


def images_of(work: Work) -> int:
    """Of a batch."""
    return VIEWS_BATCH if work == "views" else BATCH


def expected_of(root: Path, work: Work) -> tuple[torch.dtype, tuple[int, ...]]:
    """What a batch must be."""
    dtypes = {"bfloat16": torch.bfloat16, "uint8": torch.uint8}
    views = (10,) if work == "views" else ()
    shape = (images_of(work), *views, 3, crop_of(root), crop_of(root))
    return dtypes.get(work, torch.float32), shape


def mean_of(root: Path) -> NDArray[np.float32]:
    """The central region of the mean image, [3,crop,crop]."""
    mean, crop = read_stats(root).mean, crop_of(root)
    first = (len(mean) - crop) // 2
    return np.ascontiguousarray(mean[first : first + crop, first : first + crop].transpose(2, 0, 1))


def tars_of(root: Path) -> list[Path]:
    return [root / shard.name for shard in read_manifest(root).splits["train"].shards]


def encoded(root: Path) -> Iterator[tuple[int, bytes]]:
    """Label and stored bytes of every sample, in order."""
    index, paths = read_index(root, "train"), tars_of(root)
    for number, path in enumerate(paths):
        data, rows = path.read_bytes(), np.flatnonzero(index.shard == number)
        for row in rows.tolist():
            first = int(index.offset[row])
            yield int(index.label[row]), data[first : first + int(index.size[row])]


def decode(data: bytes) -> Pixels:
    """By simplejpeg (libjpeg-turbo) where it is installed, else by Pillow."""
    if find_spec("simplejpeg"):
        pixels: Pixels = import_module("simplejpeg").decode_jpeg(data)
        return pixels
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def cut(data: bytes, crop: int) -> Pixels:
    """A random part, mirrored at random."""
    return cut_pixels(decode(data), crop)


def cut_pixels(image: Pixels, crop: int) -> Pixels:
    y, x = random.randrange(len(image) - crop + 1), random.randrange(len(image) - crop + 1)
    part: Pixels = image[y : y + crop, x : x + crop]
    return np.ascontiguousarray(part[:, ::-1] if random.random() < 0.5 else part)


def cut_all(data: list[bytes], crop: int) -> torch.Tensor:
    return torch.from_numpy(np.stack([cut(part, crop) for part in data]))


def torchvision() -> Any:
    """The library; its compiled part is built for CUDA and does not load beside a torch for the CPU
    alone, where its Python part does once two operators have a name."""
    try:
        return import_module("torchvision")
    except RuntimeError:
        operators: Any = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        LIBRARIES.append(operators)
        return import_module("torchvision")


LIBRARIES: list[Any] = []  # operators live as long as their library
