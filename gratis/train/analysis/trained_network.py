"""A run's network from its last checkpoint, with its dataset's names and statistics: what figures,
predictions, features and exports begin with."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor
from tqdm import tqdm

from gratis.dataset import (
    Index,
    Manifest,
    Stats,
    read_index,
    read_manifest,
    read_stats,
    require_split,
    require_square,
)
from gratis.errors import GratisError
from gratis.history import records
from gratis.image import decode
from gratis.loader import Batch, Loader, dataset_folder, read_pieces
from gratis.train import checkpoint
from gratis.train.analysis.run_options import RunOptions
from gratis.train.checkpoint import State
from gratis.train.evaluate import VIEWS, evaluation_config
from gratis.train.mesh.mesh import full_float32
from gratis.train.metrics import average_views
from gratis.train.network.alexnet import AlexNet
from gratis.train.recipes import Layer, Recipe
from gratis.train.settings import Launch

Pixels = NDArray[np.uint8]  # [S,S,3], as the dataset stores images


class RecordingAlexNet(AlexNet):
    """The network, and the responses of any layer inside it."""

    _layer: Layer | None = None
    _output: Tensor | None = None

    def responses(self, layer: Layer, images: Tensor) -> Tensor:
        """[N, units] float32: W x + b after the nonlinearity (fc8: without one), before any
        normalisation, pooling or dropout that follows; of a convolution all its channels, rows and
        columns, in that order."""
        if layer not in self.plan:
            raise GratisError(f"--layer {layer}: this network has {', '.join(self.plan)}")
        self._layer, self._output = layer, None
        self(images)
        self._layer = None
        assert self._output is not None, layer
        return self._output.float().flatten(1)

    def _conv(self, layer: Layer, x: Tensor) -> Tensor:
        return self._record(layer, super()._conv(layer, x))

    def _dense(self, layer: Layer, x: Tensor) -> Tensor:
        return self._record(layer, super()._dense(layer, x))

    def _record(self, layer: Layer, out: Tensor) -> Tensor:
        if layer == self._layer:
            self._output = out if layer == "fc8" else self._active(out)
        return out


@dataclass(frozen=True, kw_only=True)
class TrainedNetwork:
    """A trained network, whole, in this process."""

    folder: Path  # of the run
    launch: Launch  # its last attempt
    state: State
    network: RecordingAlexNet
    shards: str  # folder or address
    manifest: Manifest
    stats: Stats
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    # [3,crop,crop], added to centre views: what another dataset's mean differs by
    shift: Tensor | None = None

    @property
    def recipe(self) -> Recipe:
        return self.launch.recipe

    @property
    def weights(self) -> dict[str, Tensor]:
        """The network's tensors by name, on the CPU."""
        state = self.network.state_dict()
        return {name: own.cpu().contiguous() for name, own in state.items()}

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

    def images(
        self, split: str, title: str, limit: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Centre views and ids of a split's samples, or of the first batches that hold `limit` of
        them, batch by batch under a bar; padding left out."""
        samples = self.manifest.splits[split].samples
        total, done = min(limit or samples, samples), 0
        with tqdm(total=total, desc=title, leave=False, disable=None) as bar:
            for images, _, ids in self.split(split):
                real = ids >= 0
                own = images[real] if self.shift is None else images[real] + self.shift
                yield own, ids[real]
                bar.update(int(real.sum()))
                done += len(ids)
                if done >= total:
                    return

    def with_images_of(self, shards: str) -> TrainedNetwork:
        """The network with another dataset's images, less the mean that it was trained with.
        GratisError where they have another size."""
        small = dataset_folder(shards)
        manifest = read_manifest(small)
        require_square(shards, manifest, "AlexNet")
        if (size := manifest.image_size) != (own := self.manifest.image_size):
            raise GratisError(
                f"{shards} holds {size}-pixel images, the run was trained on {own}: make shards "
                f"with --size {own}"
            )
        mean = read_stats(small, manifest.stats_sha256).mean - self.stats.mean
        first = (size - self.recipe.crop) // 2
        centre = mean[first : first + self.recipe.crop, first : first + self.recipe.crop]
        dtype = getattr(torch, self.recipe.compute)
        shift = torch.from_numpy(centre.transpose(2, 0, 1)).to(self.device, dtype)
        return dataclasses.replace(self, shards=shards, manifest=manifest, shift=shift)

    @torch.inference_mode()
    def probabilities(self, pixels: Sequence[Pixels]) -> NDArray[np.float64]:
        """[n, classes]: the mean of the softmax over the ten views of each image."""
        means = []
        for one in pixels:
            views = torch.from_numpy(ten_views(one, self.recipe, self.stats)).to(self.device)
            means.append(average_views(self.network(views), VIEWS)[0])
        return torch.stack(means).cpu().numpy()


def load(options: RunOptions) -> TrainedNetwork:
    """GratisError where the run has no checkpoint, or one that does not fit, or its dataset is not
    there."""
    folder = run_folder(options)
    path = checkpoint.latest(folder / "checkpoints")
    if path is None:
        raise GratisError(
            f"run {folder} has no checkpoint yet; wait for the first, or choose another --run"
        )
    if why := checkpoint.damage(path):
        raise GratisError(
            f"{path} is damaged ({why}); an unfinished run goes on from an older one by itself, "
            f"or name another --run"
        )
    launch, state = last_launch(folder), checkpoint.read_state(path)
    recipe, shards = launch.recipe, options.shards or launch.shards
    if "://" not in shards and not Path(shards).is_dir():
        was = f"run {launch.folder} was trained on {shards}"
        raise GratisError(f"{was}, which is not there; name it with --shards")
    small = dataset_folder(shards)
    manifest = read_manifest(small)
    checkpoint.check_fits(
        path, state, architecture=recipe.architecture, classes=state.classes, dataset=manifest.hash
    )
    full_float32()
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    network = RecordingAlexNet(recipe, state.classes)
    network.load_state_dict(load_file(path / "network.safetensors"))
    network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return TrainedNetwork(
        folder=folder,
        launch=launch,
        state=state,
        network=network,
        shards=shards,
        manifest=manifest,
        stats=read_stats(small, manifest.stats_sha256),
        device=device,
    )


def run_folder(options: RunOptions) -> Path:
    """GratisError if there is no such run, or none at all."""
    runs, run = options.runs, options.run
    if run is None:
        latest = list(runs.glob(f"*/checkpoints/{checkpoint.LATEST}"))
        if not latest:
            way_out = "train one, or name its folder with --runs"
            raise GratisError(f"{runs} holds no run with a checkpoint; {way_out}")
        return max(latest, key=lambda mark: mark.stat().st_mtime).parent.parent
    for folder in (runs / run, Path(run)):
        if (folder / "rank-0.jsonl").exists():
            return folder
    raise GratisError(f"there is no run {run} in {runs}; choose another --run or --runs")


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
    plain, mirrors = [], []
    for y, x in ((0, 0), (0, last), (middle, middle), (last, 0), (last, last)):
        own, centre = (slice(y, y + crop), slice(x, x + crop)), (slice(middle, middle + crop),) * 2
        mean = stats.mean[own if recipe.mean == "offset" else centre]
        plain.append(images[own] - mean)
        mirrors.append(images[own][:, ::-1] - (mean[:, ::-1] if recipe.mean == "offset" else mean))
    return np.ascontiguousarray(np.stack(plain + mirrors).transpose(0, 3, 1, 2))


def read_images(
    trained: TrainedNetwork, split: str, samples: Sequence[int]
) -> tuple[list[Pixels], list[int]]:
    """Images of a dataset by id, as they are stored, and their labels. Of an address, a request for
    each."""
    index, rows = trained.index(split), list(samples)
    shards = trained.manifest.splits[split].shards
    columns = (column[rows].tolist() for column in (index.shard, index.offset, index.size))
    places = zip(*columns, strict=True)
    pieces = [(shards[shard].name, offset, size) for shard, offset, size in places]
    images = [decode(data) for data in read_pieces(trained.shards, pieces)]
    return images, index.label[rows].tolist()
