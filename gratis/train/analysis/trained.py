"""A run's network as it was last saved, with its dataset's names and statistics: where every look
at a run begins."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from gratis.dataset import (
    Index,
    Manifest,
    Stats,
    read_index,
    read_manifest,
    read_stats,
    require_split,
)
from gratis.errors import GratisError
from gratis.history import records
from gratis.image import decode
from gratis.loader import Batch, Loader, dataset_folder, read_pieces
from gratis.train import checkpoint
from gratis.train.analysis.saved import Saved
from gratis.train.checkpoint import State
from gratis.train.evaluate import VIEWS, evaluation_config
from gratis.train.mesh.mesh import full_float32
from gratis.train.metrics import average_views
from gratis.train.network.alexnet import AlexNet
from gratis.train.recipes import Layer, Recipe
from gratis.train.settings import Launch

Pixels = NDArray[np.uint8]  # [S,S,3], as the dataset stores images


class Tapped(AlexNet):
    """The network, and a way to what a layer inside it says."""

    _wanted: Layer | None = None
    _heard: Tensor | None = None

    def responses(self, layer: Layer, images: Tensor) -> Tensor:
        """[N, units] float32: W x + b after the nonlinearity (fc8: without one), before any
        normalisation, pooling or dropout that follows; of a convolution all its channels, rows and
        columns, in that order."""
        self._wanted, self._heard = layer, None
        self(images)
        self._wanted = None
        assert self._heard is not None, layer
        return self._heard.float().flatten(1)

    def _conv(self, layer: Layer, x: Tensor) -> Tensor:
        return self._hear(layer, super()._conv(layer, x))

    def _dense(self, layer: Layer, x: Tensor) -> Tensor:
        return self._hear(layer, super()._dense(layer, x))

    def _hear(self, layer: Layer, out: Tensor) -> Tensor:
        if layer == self._wanted:
            self._heard = out if layer == "fc8" else self._active(out)
        return out


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A trained network, whole, in this process."""

    folder: Path  # of the run
    launch: Launch  # its last attempt
    state: State
    network: Tapped
    shards: str  # folder or address
    manifest: Manifest
    stats: Stats
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def recipe(self) -> Recipe:
        return self.launch.recipe

    def name(self, label: int) -> str:
        """The class's first word; `class 812` for outputs beyond the dataset's classes."""
        classes = self.manifest.classes
        return classes[label].words.split(",")[0] if label < len(classes) else f"class {label}"

    def index(self, split: str) -> Index:
        """GratisError if there is no such split."""
        entry = require_split(self.shards, self.manifest, split)
        return read_index(dataset_folder(self.shards, split), split, entry.index_sha256)

    def split(self, split: str, views: int = 1) -> Iterator[Batch]:
        """One pass over a split in the order of ids, as evaluation sees it. GratisError if there is
        no such split."""
        config = evaluation_config(self.recipe, views, 1)
        with Loader(self.shards, split, config, device=self.device) as loader:
            yield from loader

    @torch.inference_mode()
    def probabilities(self, pixels: Sequence[Pixels]) -> NDArray[np.float64]:
        """[n, classes]: the mean of the softmax over the ten views of each image."""
        found = []
        for one in pixels:
            views = torch.from_numpy(ten_views(one, self.recipe, self.stats)).to(self.device)
            found.append(average_views(self.network(views), VIEWS)[0])
        return torch.stack(found).cpu().numpy()


def load(saved: Saved) -> Trained:
    """GratisError, one line, where the run has no checkpoint, or one that does not fit, or its
    dataset is not there."""
    folder = run_folder(saved)
    found = checkpoint.latest(folder / "checkpoints")
    if found is None:
        raise GratisError(
            f"run {folder} has no checkpoint yet; wait for the first, or choose another --run"
        )
    if why := checkpoint.damage(found):
        raise GratisError(
            f"{found} is damaged ({why}); an unfinished run goes on from an older one by itself, "
            f"or name another --run"
        )
    launch, state = last_launch(folder), checkpoint.read_state(found)
    shards = dataset_of(saved, launch)
    small = dataset_folder(shards)
    manifest = read_manifest(small)
    checkpoint.check_fits(
        found,
        state,
        architecture=launch.recipe.architecture,
        classes=state.classes,
        dataset=manifest.hash,
    )
    full_float32()
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    network = Tapped(launch.recipe, state.classes)
    network.load_state_dict(load_file(found / "network.safetensors"))
    network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Trained(
        folder=folder,
        launch=launch,
        state=state,
        network=network,
        shards=shards,
        manifest=manifest,
        stats=read_stats(small, manifest.stats_sha256),
        device=device,
    )


def dataset_of(saved: Saved, launch: Launch) -> str:
    """Folder or address. GratisError where it is a folder that is not on this machine."""
    shards = saved.shards or launch.shards
    if "://" not in shards and not Path(shards).is_dir():
        raise GratisError(
            f"run {launch.folder} was trained on {shards}, which is not there; name it with "
            f"--shards"
        )
    return shards


def run_folder(saved: Saved) -> Path:
    """GratisError if there is no such run, or none at all."""
    if saved.run is None:
        marks = list(saved.runs.glob(f"*/checkpoints/{checkpoint.LATEST}"))
        if not marks:
            raise GratisError(
                f"{saved.runs} holds no run with a checkpoint; train one, or name its folder with "
                f"--runs"
            )
        return max(marks, key=lambda mark: mark.stat().st_mtime).parent.parent
    for folder in (saved.runs / saved.run, Path(saved.run)):
        if (folder / "rank-0.jsonl").exists():
            return folder
    raise GratisError(
        f"there is no run {saved.run} in {saved.runs}; choose another --run or --runs"
    )


def last_launch(folder: Path) -> Launch:
    starts = [record for record in records(folder) if record["kind"] == "start"]
    if not starts:
        raise GratisError(f"run {folder} has not begun yet; choose another --run")
    try:
        return Launch.from_json(json.dumps(starts[-1]["config"]))
    except (TypeError, KeyError) as error:
        raise GratisError(
            f"run {folder} is of another version ({error}); choose another --run"
        ) from None


def ten_views(pixels: Pixels, recipe: Recipe, stats: Stats) -> NDArray[np.float32]:
    """[10,3,crop,crop] in the specification's order, as the loader finishes them: four corners and
    the centre, then their mirrors. A mean at the crop's own offset is mirrored with it, the central
    one is not."""
    crop, last = recipe.crop, len(pixels) - recipe.crop
    middle = last // 2
    images = pixels.astype(np.float32)
    found = []
    for y, x in ((0, 0), (0, last), (middle, middle), (last, 0), (last, last)):
        own = (slice(y, y + crop), slice(x, x + crop))
        centre = (slice(middle, middle + crop),) * 2
        if recipe.mean == "offset":
            plain = images[own] - stats.mean[own]
            found.append((plain, plain[:, ::-1]))
        else:
            found.append(
                (images[own] - stats.mean[centre], images[own][:, ::-1] - stats.mean[centre])
            )
    views = np.stack([plain for plain, _ in found] + [mirrored for _, mirrored in found])
    return np.ascontiguousarray(views.transpose(0, 3, 1, 2))


def stored(trained: Trained, split: str, samples: Sequence[int]) -> tuple[list[Pixels], list[int]]:
    """Images of a dataset by id, as they are stored, and their labels. Of an address, a request for
    each."""
    index = trained.index(split)
    rows, shards = list(samples), trained.manifest.splits[split].shards
    places = zip(
        index.shard[rows].tolist(),
        index.offset[rows].tolist(),
        index.size[rows].tolist(),
        strict=True,
    )
    pieces = read_pieces(
        trained.shards, [(shards[shard].name, offset, size) for shard, offset, size in places]
    )
    return [decode(data) for data in pieces], index.label[rows].tolist()
