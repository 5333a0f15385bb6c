"""A layer's responses to every image of a split: `gratis features --layer fc7 --run R OUT.npy`.

OUT.npy is float32 [N, units]: row i is sample i of the split by its centre view; a convolution's
units are its channels, rows and columns, in that order. OUT.ids.npz holds `ids` int64 [N] and
`labels` int64 [N], -1 where there are none. A response is defined in
gratis.train.analysis.trained_network, `responses`.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import tyro

from gratis.atomic import atomic_output
from gratis.command_line import parse
from gratis.errors import GratisError
from gratis.train.analysis.run_options import RunOptions
from gratis.train.network.layers import plan
from gratis.train.recipes import Layer

if TYPE_CHECKING:
    from gratis.train.analysis.trained_network import TrainedNetwork


@dataclass(frozen=True, kw_only=True)
class Features(RunOptions):
    """Writes a layer's responses to every image of a split, for retrieval or another classifier."""

    out: Annotated[Path, tyro.conf.Positional]
    """File to write, OUT.npy; ids and labels go to OUT.ids.npz."""
    layer: Layer = "fc7"
    split: Literal["train", "val"] = "val"
    images: str | None = None
    """Another dataset, with or without labels, whose images have the same size. Default: the one it
    was trained on."""

    def __post_init__(self) -> None:
        if self.out.suffix != ".npy":
            raise GratisError(f"{self.out} must end in .npy")
        if not self.out.parent.is_dir():
            raise GratisError(f"{self.out.parent} is no folder; make it, or choose another OUT")


def main(arguments: list[str]) -> None:
    options = parse(Features, arguments, "gratis features")
    from gratis.train.analysis.trained_network import load

    out, layer, split = options.out, options.layer, options.split
    trained = load(options)
    if options.images is not None:
        trained = trained.with_images_of(options.images)
    samples, units = write(trained, layer, split, out)
    print(
        f"{out}: {layer} of {samples:,} {split} images, float32 [{samples}, {units}]; ids and "
        f"labels in {out.with_suffix('.ids.npz')}"
    )


def write(trained: TrainedNetwork, layer: Layer, split: str, out: Path) -> tuple[int, int]:
    """Returns N and units. The file grows in place under another name, so its size is not bound by
    memory."""
    import torch

    layers = plan(trained.recipe, trained.state.classes)
    if layer not in layers:
        raise GratisError(f"--layer {layer}: this network has {', '.join(layers)}")
    index, own = trained.index(split), layers[layer]
    samples, units = len(index.label), own.outputs * own.side**2
    if (needed := 4 * samples * units) > (free := shutil.disk_usage(out.parent).free):
        left = f"{out.parent} has {free / 1e6:,.1f} left"
        raise GratisError(f"{out} takes {needed / 1e6:,.1f} MB, {left}; make room")
    with atomic_output(out, "choose another OUT") as draft:
        rows = np.lib.format.open_memmap(draft, "w+", np.float32, (samples, units))
        with torch.inference_mode():
            for images, ids in trained.images(split, f"{layer}, {split}"):
                rows[ids.numpy()] = trained.network.responses(layer, images).cpu().numpy()
        rows.flush()
        np.savez(
            out.with_suffix(".ids.npz"), ids=np.arange(samples), labels=index.label.astype(np.int64)
        )
    return samples, units
