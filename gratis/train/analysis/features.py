"""A layer's responses to every image of a split: `gratis features --layer fc7 --run R OUT.npy`.

OUT.npy is float32 [N, units]: row i is sample i of the split by its centre view; a convolution's
units are its channels, rows and columns, in that order. OUT.ids.npz holds `ids` int64 [N] and
`labels` int64 [N]. What counts as a response is said in gratis.train.analysis.trained, `responses`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import tyro
from tqdm import tqdm

from gratis.command_line import parse
from gratis.errors import GratisError
from gratis.train.analysis.saved import Saved
from gratis.train.network.layers import LayerSpec, plan
from gratis.train.recipes import Layer
from gratis.written import written

if TYPE_CHECKING:
    from torch import Tensor

    from gratis.train.analysis.trained import Trained


@dataclass(frozen=True, kw_only=True)
class Features(Saved):
    """Writes a layer's responses to every image of a split, for retrieval or another classifier."""

    out: Annotated[Path, tyro.conf.Positional]
    """File to write, OUT.npy; ids and labels go to OUT.ids.npz."""
    layer: Layer = "fc7"
    split: Literal["train", "val"] = "val"

    def __post_init__(self) -> None:
        if self.out.suffix != ".npy":
            raise GratisError(f"{self.out} must end in .npy")
        if not self.out.parent.is_dir():
            raise GratisError(f"{self.out.parent} is no folder; make it, or choose another OUT")


def main(arguments: list[str]) -> None:
    options = parse(Features, arguments, "gratis features")
    from gratis.train.analysis.trained import load

    trained = load(options)
    samples, units = write(trained, options.layer, options.split, options.out)
    print(
        f"{options.out}: {options.layer} of {samples:,} {options.split} images, float32 "
        f"[{samples}, {units}]; "
        f"ids and labels in {ids_path(options.out)}"
    )


def ids_path(out: Path) -> Path:
    return out.with_suffix(".ids.npz")


def units_of(own: LayerSpec) -> int:
    return own.outputs * own.side**2


def write(trained: Trained, layer: Layer, split: str, out: Path) -> tuple[int, int]:
    """Returns N and units. The file grows in place under another name, so its size is not bound by
    memory."""
    layers = plan(trained.recipe, trained.state.classes)
    if layer not in layers:
        raise GratisError(f"--layer {layer}: this network has {', '.join(layers)}")
    index = trained.index(split)
    samples = len(index.label)
    units = units_of(layers[layer])
    if (needed := 4 * samples * units) > (free := shutil.disk_usage(out.parent).free):
        raise GratisError(
            f"{out} takes {needed / 1e6:,.1f} MB, {out.parent} has {free / 1e6:,.1f} left; "
            f"make room"
        )
    with written(out, "choose another OUT") as draft:
        rows = np.lib.format.open_memmap(draft, "w+", np.float32, (samples, units))
        for ids, found in responses(trained, layer, split):
            rows[ids] = found.cpu().numpy()
        rows.flush()
        np.savez(ids_path(out), ids=np.arange(samples), labels=index.label.astype(np.int64))
    return samples, units


def responses(trained: Trained, layer: Layer, split: str) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Batch by batch: ids [b] and responses [b, units] of the samples in it, padding left out."""
    import torch

    total = trained.manifest.splits[split].samples
    with (
        torch.inference_mode(),
        tqdm(total=total, desc=f"{layer}, {split}", leave=False, disable=None) as bar,
    ):
        for images, _, ids in trained.split(split):
            real = ids >= 0
            yield ids[real].numpy(), trained.network.responses(layer, images)[real]
            bar.update(int(real.sum()))
