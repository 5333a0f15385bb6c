"""One image's way through the loader, drawn: `gratis explain SHARDS --sample KEY --out
explain.png`.

The stored image with the ten views of an evaluation; what training makes of it in its first epochs;
the colour draws alone, on the central crop; what the network gets; where crops were cut over many
epochs, as a heat map; and, printed, the covariance of the colour draws beside the theory. All of it
from the numbers that the loader itself uses."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gratis.choices import MeanForm, NoiseForm, Positions
from gratis.command_line import parse
from gratis.dataset import Stats, read_manifest
from gratis.errors import GratisError
from gratis.extras import require
from gratis.image import Reject, decode_or_reject
from gratis.loader.config import LoaderConfig
from gratis.loader.inspect.config_file import read_config
from gratis.loader.inspect.pictures import PictureOptions
from gratis.loader.loader import Loader
from gratis.loader.views.colour_noise import colour_matrix

if TYPE_CHECKING:
    from gratis.loader.inspect.explain_figure import Floats, Pixels

DRAWS = 200_000  # for the heat map and the covariance, at least
ALEXNET = ("crop_positions", "crop_chunk", "mean", "noise")  # options that are about its crops


@dataclass(frozen=True, kw_only=True)
class Explain(PictureOptions):
    """Draws one image's way from the shard to the network as `gratis train` takes it
    (LoaderConfig.alexnet()), and where crops and colours fall over many epochs; of whole images as
    LoaderConfig.imagenet() and .evaluation() take it."""

    sample: str
    """Key of the image (n01440764_10026), or its id, a number that is no key."""
    config: Path | None = None
    """JSON file of LoaderConfig's fields, or of a recipe (examples/recipes), with resized crops:
    draw its views of each epoch, with its operations. Mixing and erasing are not drawn. Default:
    none."""
    out: Path = Path("explain.png")
    """PNG to write."""
    crop_positions: Positions = "all"
    """all: of 224 in 256 pixels 33 offsets along each axis; printed: the paper's 32; centre: the
    central one."""
    crop_chunk: int = 1
    """So many consecutive samples of the epoch's order share one crop and mirror."""
    mean: MeanForm = "central"
    """Subtract the mean image's central crop from every crop, or its crop at the same offset."""
    noise: NoiseForm = "sqrt"
    """Colour noise by standard deviations, by eigenvalues as the paper prints, or none."""


def main(arguments: Sequence[str]) -> None:
    options = parse(Explain, arguments, "gratis explain")
    require("figures", "gratis explain")
    if options.config or read_manifest(Path(options.shards)).shape == "whole":
        explain_whole(options)
        return
    from gratis.loader.inspect.explain_figure import draw

    config = LoaderConfig.alexnet(
        batch_size=1,
        seed=options.seed,
        crop=options.crop_side,
        crop_positions=options.crop_positions,
        crop_chunk=options.crop_chunk,
        mean=options.mean,
        noise=options.noise,
    )
    with Loader(options.shards, options.split, config) as loader:
        sample = find(loader, options.sample)
        image = read(loader, sample)
        offsets, normals = many_draws(loader)
        report(loader, offsets, normals)
        draw(loader, sample, image, offsets, options.out)
    print(options.out)


def explain_whole(options: Explain) -> None:
    """Of a dataset of whole images, or by a file: resized crops, and torchvision's evaluation."""
    from gratis.loader.inspect.explain_whole_figure import draw, many_views, report

    for field in dataclasses.fields(Explain):
        given = getattr(options, field.name)
        if field.name in ALEXNET and given != field.default:
            option = f"--{field.name.replace('_', '-')}"
            whole = f"the images of {options.shards} keep their shape"
            whole = f"--config {options.config} says what is drawn" if options.config else whole
            raise GratisError(f"{option} is of AlexNet's crops, and {whole}; leave it out")
    config = _resized_crops(options)
    evaluation = LoaderConfig.evaluation(crop=config.crop, views=10)
    with Loader(options.shards, options.split, config) as loader:
        sample = find(loader, options.sample)
        image = read(loader, sample)
        views = many_views(loader, image, DRAWS)
        report(views, image)
        draw(loader, evaluation, sample, image, views, options.out)
    print(options.out)


def _resized_crops(options: Explain) -> LoaderConfig:
    """Of the file, or LoaderConfig.imagenet(); one view of one sample."""
    changes: dict[str, Any] = {"batch_size": 1, "seed": options.seed}
    if options.config is None:
        return LoaderConfig.imagenet(**changes, crop=options.crop_side)
    changes |= {"views": 1, "repeats": 1, "mix": (), "erasing": None}
    changes |= {"decoded": "none"} | ({} if options.crop is None else {"crop": options.crop})
    config = read_config(options.config, options.split, **changes)
    if config.area is None:
        raise GratisError(
            f"--config {options.config} has no area, and what is drawn are resized crops; "
            "leave it out, or look at `gratis preview`"
        )
    return config


def find(loader: Loader, wanted: str) -> int:
    """The id of a key, by the shards' own lists; of a number that is no key, itself. GratisError if
    there is none, or if a list is damaged."""
    first = 0
    for shard in loader.manifest.splits[loader.split].shards:
        keys = _keys((loader.root / shard.name).with_suffix(".idx"))
        if wanted in keys:
            return first + keys.index(wanted)
        first += shard.samples
    if wanted.isdecimal() and int(wanted) < loader.num_samples:
        return int(wanted)
    raise GratisError(
        f"--sample {wanted}: split {loader.split} has no such key, and its ids go from 0 to "
        f"{loader.num_samples - 1}"
    )


def _keys(listed: Path) -> list[str]:
    """The keys of a shard's .idx in order; none where there is no such file."""
    try:
        lines = listed.read_text(encoding="utf-8").splitlines()[1:]
        return [Path(line.split()[3]).stem for line in lines]
    except FileNotFoundError:
        return []
    except OSError as error:
        reason = error.strerror
    except (UnicodeDecodeError, IndexError):
        reason = "it is no index of a shard"
    raise GratisError(f"{listed} cannot be read ({reason}); verify the copy of the dataset")


def read(loader: Loader, sample: int) -> Pixels:
    """The image as it is stored, uint8 [height,width,3]. GratisError if it is damaged."""
    size = tuple(loader.epoch_plan(0).sizes(np.array([sample]))[:, 0].tolist())
    with closing(loader.shard_reader()) as shards:
        try:
            image = decode_or_reject(shards.read(np.array([sample]))[0][0].tobytes())
        except Reject as reject:
            reason = reject.reason
        else:
            if image.shape == (*size, 3):
                return image
            reason = f"it is of shape {image.shape}, not {(*size, 3)}"
        raise GratisError(
            f"{shards.describe(sample)} does not decode ({reason}); verify the copy of the dataset"
        )


def many_draws(loader: Loader) -> tuple[NDArray[np.int64], Floats]:
    """Offsets int64 [n,2] and normals [n,3] of whole epochs, DRAWS at least: what training will
    draw."""
    ids = np.arange(loader.num_samples)
    epochs = -(-DRAWS // len(ids))
    drawn = [loader.epoch_plan(epoch).draws(ids).draws for epoch in range(epochs)]
    offsets = np.concatenate([np.stack([one.y, one.x], axis=1) for one in drawn])
    return offsets, np.concatenate([one.normals for one in drawn])


def covariance(stats: Stats, noise: str, normals: Floats) -> tuple[Floats, Floats]:
    """[3,3] of the colour draws in gray levels squared, before the division: measured, and the
    formula's."""
    matrix = colour_matrix(stats, noise)
    return np.cov(normals @ matrix.T, rowvar=False, ddof=0), matrix @ matrix.T


def report_offsets(loader: Loader, offsets: NDArray[np.int64]) -> None:
    from gratis.loader.inspect.explain_figure import histogram

    crops = f"{len(offsets):,} crops of split {loader.split}"
    if loader.config.crop_positions == "centre":
        print(f"{crops}: all at offset {' '.join(map(str, np.unique(offsets, axis=0)))}")
        return
    positions = int(offsets.max()) + 1  # the paper's are one less than there are
    counts = histogram(offsets, positions)
    expected = len(offsets) / positions**2
    chi = float(((counts - expected) ** 2 / expected).sum()) / max(1, positions**2 - 1)
    print(
        f"{crops}: {int((counts > 0).sum())} of "
        f"{positions**2} offsets drawn, "
        f"{expected:.1f} expected of each, {counts.min()} to {counts.max()} found; "
        f"chi-square per degree of freedom {chi:.3f} (1: uniform and independent)"
    )


def report(loader: Loader, offsets: NDArray[np.int64], normals: Floats) -> None:
    report_offsets(loader, offsets)
    if loader.config.noise == "off":
        print("no colour noise")
        return
    measured, theory = covariance(loader.stats, loader.config.noise, normals)
    sqrt = loader.config.noise == "sqrt"
    theory_text = f"0.01 E {'diag(eigenvalues)' if sqrt else 'diag(eigenvalues / 255)^2'} E^T"
    print(f"colour noise, covariance of R, G, B in gray levels squared; theory: {theory_text}")
    for row in range(3):
        left, right = (
            "  ".join(f"{value:8.3f}" for value in part[row]) for part in (measured, theory)
        )
        print(f"  measured {left}    theory {right}")
    off = float(np.abs(measured - theory).max() / np.abs(theory).max())
    print(f"  largest difference {off:.2%} of the largest entry, n = {len(normals):,}")
