"""What a training step gets."""

from __future__ import annotations

from typing import NamedTuple

import torch

IGNORE = -100  # the label of a row without a sample: PyTorch's ignore_index


class Batch(NamedTuple):
    """One rank's rows of one step.

    images [b,3,crop,crop] or [b,views,3,crop,crop], or with layout "nhwc" the 3 last, RGB,
    normalised as configured, on the loader's device; labels int64 [b], on it too, or float32
    [b,classes], which sum to 1, where `LoaderConfig.mix` is on in some epoch; ids int64 [b], on the
    CPU. b is batch_size / world_size; a short last batch has fewer. With remainder="pad" a row
    without a sample has zero pixels, label -100 (or zeros) and id -1, and takes no part in mixing.
    A batch may be kept, or any part of it, for as long as one likes: its memory is used again only
    when nothing refers to it any more."""

    images: torch.Tensor
    labels: torch.Tensor
    ids: torch.Tensor
