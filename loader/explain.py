"""One image's way through the loader, drawn: `python -m loader explain SHARDS --sample KEY --out explain.png`.

The stored image with the ten views of an evaluation; what training makes of it in its first epochs; the colour draws
alone, on the central crop; what the network gets; where crops were cut over many epochs, as a heat map; and, printed,
the covariance of the colour draws beside the theory. All of it from the numbers that the loader itself uses.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import tyro
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from loader import plan, reference
from loader.config import LoaderConfig, MeanForm, NoiseForm, Positions
from loader.finish import colour_matrix, colour_shift, scale
from loader.loader import Loader
from loader.preview import write_picture
from loader.source import Source
from preprocess.arguments import parsed
from preprocess.dataset import Stats, read_manifest
from preprocess.errors import UserError
from preprocess.image import Reject, decode_or_reject

SHOWN = 10  # epochs, colour draws, views
DRAWS = 200_000  # for the heat map and the covariance, at least
Pixels = NDArray[np.uint8]
Floats = NDArray[np.float64]
Look = Literal["place", "shift", "input"]  # what is said above a picture; input: it is shown mean-subtracted


@dataclass(frozen=True, kw_only=True)
class Explain:
    """Draws one image's way from the shard to the network, and where crops and colours fall over many epochs."""

    shards: Annotated[str, tyro.conf.Positional]
    """Folder of the dataset."""
    sample: str
    """Key of the image (n01440764_10026), or its id, a number that is no key."""
    out: Path = Path("explain.png")
    """PNG to write."""
    split: str = "train"
    crop: int | None = None
    """Side of the crop. Default: 7/8 of the image's, as 224 of 256."""
    crop_positions: Positions = "all"
    crop_chunk: int = 1
    mean: MeanForm = "central"
    noise: NoiseForm = "sqrt"
    seed: int = 0

    def __post_init__(self) -> None:
        if "://" in self.shards:
            raise UserError(f"{self.shards}: this reads local folders; copy the dataset first, or give its mount")


def main(arguments: Sequence[str]) -> None:
    prog, told = "python -m loader explain", Explain.__doc__
    options = parsed(lambda: tyro.cli(Explain, args=arguments, prog=prog, description=told))
    crop = read_manifest(Path(options.shards)).image_size * 7 // 8 if options.crop is None else options.crop
    config = LoaderConfig(
        batch_size=1, seed=options.seed, crop=crop, crop_positions=options.crop_positions,
        crop_chunk=options.crop_chunk, mean=options.mean, noise=options.noise,
    )  # fmt: skip
    with Loader(options.shards, options.split, config) as loader:
        sample = find(loader, options.sample)
        image = read(loader, sample)
        offsets, normals = many_draws(loader)
        report(loader, offsets, normals)
        draw(loader, sample, image, offsets, options.out)
    print(options.out)


def find(loader: Loader, wanted: str) -> int:
    """The id of a key, by the shards' own lists; of a number that is no key, itself. UserError if there is none, or if
    a list is damaged."""
    first = 0
    for shard in loader.manifest.splits[loader.split].shards:
        keys = _keys((loader.root / shard.name).with_suffix(".idx"))
        if wanted in keys:
            return first + keys.index(wanted)
        first += shard.samples
    if wanted.isdecimal() and int(wanted) < loader.num_samples:
        return int(wanted)
    raise UserError(
        f"--sample {wanted}: split {loader.split} has no such key, and its ids go from 0 to {loader.num_samples - 1}"
    )


def _keys(listed: Path) -> list[str]:
    """The keys of a shard's .idx in order; none where there is no such file."""
    try:
        return [Path(line.split()[3]).stem for line in listed.read_text(encoding="utf-8").splitlines()[1:]]
    except FileNotFoundError:
        return []
    except OSError as error:
        reason = error.strerror
    except (UnicodeDecodeError, IndexError):
        reason = "it is no index of a shard"
    raise UserError(f"{listed} cannot be read ({reason}); verify the copy of the dataset")


class Shown(NamedTuple):
    """One presentation: input float64 [3,crop,crop] as the network gets it; visible uint8 [crop,crop,3], the same with
    mean and division taken back; where it was cut out, and its colour draw [3] in gray levels."""

    input: Floats
    visible: Pixels
    place: str
    shift: Floats

    def words(self, look: Look) -> str:
        if look == "shift":
            return "RGB " + " ".join(f"{value:+.0f}" for value in self.shift)
        return self.place if look == "place" else f"{self.input.min():.0f} to {self.input.max():.0f}"


def read(loader: Loader, sample: int) -> Pixels:
    """The image as it is stored, uint8 [S,S,3]. UserError if it is damaged."""
    side = loader.manifest.image_size
    with closing(Source(loader.root, loader.manifest.splits[loader.split], loader.job(0).index)) as source:
        try:
            image = decode_or_reject(source.read(np.array([sample]))[0][0].tobytes())
        except Reject as reject:
            reason = reject.reason
        else:
            if image.shape == (side, side, 3):
                return image
            reason = f"it is of shape {image.shape}, not {(side, side, 3)}"
        raise UserError(f"{source.describe(sample)} does not decode ({reason}); verify the copy of the dataset")


def presented(loader: Loader, image: Pixels, draws: plan.Draws, row: int, *, colour: bool) -> Shown:
    """One row of draws applied to the image by the reference that the loader's passes are tested against."""
    config, stats = loader.config, loader.stats
    shift = colour_shift(stats, config, 0, draws.normals[row : row + 1])[0] if colour else np.zeros(3)
    divisor = scale(config, 0) if colour else 1.0
    y, x, flip = int(draws.y[row]), int(draws.x[row]), bool(draws.flip[row])
    found = reference.finish(
        image, y=y, x=x, flip=flip, crop=config.crop, mean=stats.mean, mean_form=config.mean, shift=shift, scale=divisor
    )
    cut = image[y : y + config.crop, x : x + config.crop].astype(np.float64)
    visible = (cut[:, ::-1] if flip else cut) + shift
    place = f"({y}, {x}){' mirrored' if flip else ''}"
    return Shown(found, np.rint(visible.clip(0, 255)).astype(np.uint8), place, shift)


def many_draws(loader: Loader) -> tuple[NDArray[np.int64], Floats]:
    """Offsets int64 [n,2] and normals [n,3] of whole epochs, DRAWS at least: what training will draw."""
    ids = np.arange(loader.num_samples)
    epochs = -(-DRAWS // len(ids))
    drawn = [loader.job(epoch).draws(ids)[0] for epoch in range(epochs)]
    offsets = np.concatenate([np.stack([one.y, one.x], axis=1) for one in drawn])
    return offsets, np.concatenate([one.normals for one in drawn])


def histogram(offsets: NDArray[np.int64], positions: int) -> NDArray[np.int64]:
    """int64 [positions, positions]: how often each offset (y, x) was drawn."""
    flat = np.bincount(offsets[:, 0] * positions + offsets[:, 1], minlength=positions**2)
    return flat.reshape(positions, positions)


def covariance(stats: Stats, noise: str, normals: Floats) -> tuple[Floats, Floats]:
    """[3,3] of the colour draws in gray levels squared, before the division: measured, and the formula's."""
    matrix = colour_matrix(stats, noise)
    return np.cov(normals @ matrix.T, rowvar=False, ddof=0), matrix @ matrix.T


def report(loader: Loader, offsets: NDArray[np.int64], normals: Floats) -> None:
    positions = int(offsets.max()) + 1  # the paper's are one less than there are
    counts = histogram(offsets, positions)
    expected = len(offsets) / positions**2
    chi = float(((counts - expected) ** 2 / expected).sum()) / max(1, positions**2 - 1)
    print(f"{len(offsets):,} crops of split {loader.split}: {int((counts > 0).sum())} of {positions**2} offsets drawn, "
          f"{expected:.1f} expected of each, {counts.min()} to {counts.max()} found; "
          f"chi-square per degree of freedom {chi:.3f} (1: uniform and independent)")  # fmt: skip
    if loader.config.noise == "off":
        print("no colour noise")
        return
    measured, theory = covariance(loader.stats, loader.config.noise, normals)
    middle = {"sqrt": "diag(eigenvalues)", "printed": "diag(eigenvalues / 255)^2"}[loader.config.noise]
    print(f"colour noise, covariance of R, G, B in gray levels squared; theory: 0.01 E {middle} E^T")
    for row in range(3):
        left, right = ("  ".join(f"{value:8.3f}" for value in part[row]) for part in (measured, theory))
        print(f"  measured {left}    theory {right}")
    off = float(np.abs(measured - theory).max() / np.abs(theory).max())
    print(f"  largest difference {off:.2%} of the largest entry, n = {len(normals):,}")


def draw(loader: Loader, sample: int, image: Pixels, offsets: NDArray[np.int64], out: Path) -> None:
    with rc_context({"font.size": 8, "axes.titlesize": 8}):
        figure = Figure(figsize=(13, 10.6), layout="constrained")
        parts: Any = figure.subfigures(2, 1, height_ratios=[1.15, 1.75])
        _head(parts[0], loader, sample, image, offsets)
        _strips(parts[1], loader, sample, image)
        write_picture(out, lambda path: figure.savefig(path, dpi=110))


def _head(figure: Any, loader: Loader, sample: int, image: Pixels, offsets: NDArray[np.int64]) -> None:
    """The stored image with the five crops' frames, the mean that is subtracted, and the heat map of offsets."""
    stored, mean, heat = figure.subplots(1, 3)
    crop, positions = loader.config.crop, loader.job(0).positions
    with closing(Source(loader.root, loader.manifest.splits[loader.split], loader.job(0).index)) as source:
        key = source.describe(sample).split("key ")[1].split(",")[0]
    words = loader.classes[int(loader.job(0).index.label[sample])].words.split(",")[0]
    stored.imshow(image)
    views = plan.ten_views(positions)
    for y, x in zip(views.y[:5].tolist(), views.x[:5].tolist(), strict=True):
        stored.add_patch(_frame(y, x, crop))
    stored.set_title(f"{key}, id {sample}: {words}\nas stored, {len(image)} px; an evaluation's five crops")
    mean.imshow(loader.stats.mean.clip(0, 255) / 255)
    centre = (positions - 1) // 2
    mean.add_patch(_frame(centre, centre, crop))
    form = "its centre is subtracted from every crop" if loader.config.mean == "central" else "subtracted by place"
    mean.set_title(f"mean image of the training split:\n{form}")
    _bare(stored, mean)
    drawn = heat.imshow(histogram(offsets, positions), cmap="viridis", vmin=0, interpolation="nearest")
    figure.colorbar(drawn, ax=heat, shrink=0.8)
    heat.set_title(f"offsets of {len(offsets):,} training crops\n{positions} x {positions} positions")
    heat.set_xlabel("x")
    heat.set_ylabel("y")


def _frame(y: int, x: int, crop: int) -> Any:
    return Rectangle((x - 0.5, y - 0.5), crop, crop, fill=False, edgecolor="white", linewidth=1)


def _strips(figure: Any, loader: Loader, sample: int, image: Pixels) -> None:
    """Ten views; ten epochs; ten colour draws of the central crop; what the network gets of those epochs."""
    positions, ids = loader.job(0).positions, np.array([sample])
    drawn = [loader.job(epoch).draws(ids)[0] for epoch in range(SHOWN)]
    epochs = plan.Draws(*(np.concatenate(column) for column in zip(*drawn, strict=True)))
    centre = (positions - 1) // 2
    still = epochs._replace(y=np.full(SHOWN, centre), x=np.full(SHOWN, centre), flip=np.zeros(SHOWN, np.bool_))
    everything = range(SHOWN)
    evaluated = [presented(loader, image, plan.ten_views(positions), row, colour=False) for row in everything]
    coloured = [presented(loader, image, still, row, colour=True) for row in everything]
    trained = [presented(loader, image, epochs, row, colour=True) for row in everything]
    strips: tuple[tuple[str, list[Shown], Look], ...] = (
        ("evaluation:\nten views", evaluated, "place"),
        ("colour draws\nalone, centre", coloured, "shift"),
        ("training:\nepochs 0 to 9", trained, "place"),
        ("the network's\ninput then", trained, "input"),
    )
    grid = figure.subplots(len(strips), SHOWN)
    for row, (name, shown, look) in enumerate(strips):
        for axes, one in zip(grid[row], shown, strict=True):
            axes.imshow(_visible(one.input) if look == "input" else one.visible)
            axes.set_title(one.words(look), fontsize=6.5, pad=2)
        _bare(*grid[row])
        grid[row][0].set_ylabel(name)


def _visible(found: Floats) -> Floats:
    """[3,c,c] about -150 to 150, zero as middle grey."""
    shown: Floats = (found.transpose(1, 2, 0) / 300 + 0.5).clip(0, 1)
    return shown


def _bare(*all_axes: Any) -> None:
    for axes in all_axes:
        axes.set_xticks([])
        axes.set_yticks([])
