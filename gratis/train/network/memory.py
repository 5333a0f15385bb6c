"""What a GPU that has run out of memory means, and how large a batch fits into one, for the
message about it."""

from __future__ import annotations

import torch
from torch import Tensor

from gratis.train.network.alexnet import AlexNet
from gratis.train.network.dropout import DropoutKey
from gratis.train.recipes import Recipe

COPIES = 4  # of every parameter: itself, its gradient, its velocity, and narrow or scratch copies
TRANSIENT = 1.5  # memory at the peak of backward over what forward keeps for it
# the last two are DALI's
WORDS = ("ALLOC_FAILED", "out of memory", "CUDA allocation failed", "bytes on device")
RESERVED = 2 << 30  # bytes: the context, the libraries' workspaces, the loader's batches


def ran_out(error: RuntimeError) -> bool:
    """Whether it is for want of a GPU's memory: torch has a class for that, cuBLAS, cuDNN, NCCL and
    DALI have words."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in WORDS)


def kept_bytes(recipe: Recipe, classes: int) -> tuple[float, int]:
    """(bytes that forward keeps for backward per image, bytes of all parameters), seen on the CPU
    in one process."""
    network, rows = AlexNet(recipe, classes), 2
    own = {parameter.data_ptr() for parameter in network.parameters()}
    sizes: dict[int, int] = {}

    def seen(tensor: Tensor) -> Tensor:
        # copies of weights do not grow with the batch
        if tensor.data_ptr() not in own and len(tensor) == rows:
            sizes[tensor.data_ptr()] = tensor.nbytes
        return tensor

    images = torch.zeros(rows, 3, recipe.crop, recipe.crop)
    key = DropoutKey(seed=0, step=0, rows=range(rows))
    with torch.autograd.graph.saved_tensors_hooks(seen, lambda tensor: tensor):
        network(images, key)
    return sum(sizes.values()) / rows, sum(parameter.nbytes for parameter in network.parameters())


def fitting_batch(
    recipe: Recipe, classes: int, *, world: int, towers: int, device_bytes: int
) -> int:
    """About the largest global batch for `world` GPUs of this size, a multiple of world; 0 where
    not even that fits."""
    per_image, parameters = kept_bytes(recipe, classes)
    free = device_bytes - RESERVED - COPIES * parameters / towers
    return max(0, int(free / (TRANSIENT * per_image))) * world


def too_large(
    recipe: Recipe,
    classes: int,
    *,
    size: int,
    world: int | None = None,
    towers: int = 1,
    sharers: int = 1,
) -> str:
    """That the recipe's batch does not fit, and which would; size: bytes of a GPU, which so many
    ranks share.

    world: the processes that the batch is split over; None where one has it all, and more GPUs
    would not help."""
    split = world or 1
    fits = fitting_batch(recipe, classes, world=split, towers=towers, device_bytes=size // sharers)
    # an estimate that this batch would fit has just been proved wrong
    fits = min(fits, recipe.batch // 2) // split * split
    on, more = (f" on {world}", "more GPUs, or ") if world else ("", "")
    way_out = f"about --batch {fits} fits" if fits else f"take {more}a smaller --width"
    gpu = f"a GPU of {size / 2**30:.0f} GiB"
    return f"--batch {recipe.batch}{on} does not fit into {gpu}: {way_out}"
