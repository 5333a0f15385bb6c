"""torchvision's published AlexNet on our shards: `gratis evaluate-published FILE --shards S`.

FILE is a state dict by torchvision's names, as its model zoo publishes it; its classes are in the
order of sorted wnids, as ours. The weights go into the `torchvision` recipe's network. That network
was trained on images scaled to [0, 1], minus MEAN, divided by STD: the loader's batches get their
mean image back and are scaled so, exactly, before they enter. On ILSVRC2012's validation split
torchvision publishes accuracies of 56.522 % (top-1) and 79.066 % (top-5), with its own resizing and
without JPEG between."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from gratis.command_line import parse
from gratis.errors import GratisError
from gratis.train.recipes import TORCHVISION, Recipe

if TYPE_CHECKING:
    from gratis.dataset import Stats
    from gratis.loader import Batch, LoaderConfig
    from gratis.train.metrics import Scores
    from gratis.train.network.alexnet import AlexNet

# of torchvision's transforms, RGB in [0, 1]
MEAN, STD = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# the scaling is done outside, by channel
RECIPE = dataclasses.replace(TORCHVISION, input_scale=1.0, batch=64)


@dataclass(frozen=True, kw_only=True)
class EvaluatePublished:
    """Evaluates a state dict of torchvision's AlexNet through our shards and loader."""

    file: Annotated[Path, tyro.conf.Positional]
    """A state dict, such as alexnet-owt-7be5be79.pth."""
    shards: str
    """Folder of the dataset, or its address: 256 px, as many classes as the file has."""
    split: Literal["train", "val"] = "val"
    views: Literal[1, 10] = 1
    """1: the centre, as torchvision evaluates; 10: the paper's ten views too."""
    crop: int = TORCHVISION.crop
    """Side of the network's input."""


def main(arguments: list[str]) -> None:
    options = parse(EvaluatePublished, arguments, "gratis evaluate-published")
    recipe = dataclasses.replace(RECIPE, crop=options.crop, image_size=max(256, options.crop))
    network = load(options.file, recipe)
    for views, scores in evaluate(network, options).items():
        name = "centre view" if views == 1 else f"{views} views"
        print(
            f"{options.file.name}, {name}: top-1 {scores.top1:.3%}, top-5 {scores.top5:.3%}, "
            f"{scores.nll:.4f} nats on {scores.images:,} {options.split} images"
        )


def load(file: Path, recipe: Recipe) -> AlexNet:
    """The file's network. GratisError if it is no state dict of this network. Nothing in the file
    is executed."""
    import torch

    from gratis.train.analysis.deployment import from_torchvision
    from gratis.train.network.alexnet import AlexNet

    if not file.is_file():
        raise GratisError(f"{file} is not there, or no regular file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it takes the file for
            state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception:  # anything may come of bytes that are no pickle
        why = "is no state dict that can be read without running code from it"
        raise GratisError(f"{file} {why}") from None
    if not (isinstance(state, dict) and all(isinstance(name, str) for name in state)):
        raise GratisError(f"{file} holds no state dict: names with tensors")
    for name, value in state.items():
        if wrong := why_unusable(value):
            raise GratisError(f"{file} holds no state dict of numbers: {name} is {wrong}")
    try:
        weights = from_torchvision(state)
    except GratisError as error:
        raise GratisError(f"{file}: {error}") from None
    network = AlexNet(recipe, max([1, *weights["fc8.weight"].shape[:1]]))
    for name, own in network.state_dict().items():
        if own.shape != weights[name].shape:
            raise GratisError(
                f"{file} has {name} of shape {list(weights[name].shape)}, not {list(own.shape)}"
            )
    network.load_state_dict(weights)
    return network


def why_unusable(value: object) -> str | None:
    """Why it cannot be a network's weights; None if it can."""
    import torch

    if not isinstance(value, torch.Tensor):
        return f"a {type(value).__name__}"
    if value.layout != torch.strided or value.is_meta or not value.is_floating_point():
        return f"{value.dtype}, {value.layout} on {value.device}, not plain floats"
    return None if value.float().isfinite().all() else "not finite"


def evaluate(network: AlexNet, options: EvaluatePublished) -> dict[int, Scores]:
    """Scores by views. GratisError if the dataset's classes cannot be the network's."""
    import torch

    from gratis.loader import Loader
    from gratis.train.evaluate import evaluate as score
    from gratis.train.evaluate import evaluation_config
    from gratis.train.mesh.mesh import Mesh, full_float32

    full_float32()
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    config = evaluation_config(network.recipe, options.views, 1)
    with Loader(options.shards, options.split, config, device=device) as loader:
        if (own := len(loader.classes)) != network.classes:
            raise GratisError(
                f"{options.file} tells {network.classes} classes apart, {options.shards} has {own}"
            )
        network.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        batches = to_torchvision_scale(loader, config, loader.stats)
        return score(network, batches, Mesh(device=device), views=options.views)


def to_torchvision_scale(
    batches: Iterable[Batch], config: LoaderConfig, stats: Stats
) -> Iterator[Batch]:
    """Evaluation batches (mean "central", float32) as torchvision's networks want them: (x / 255 -
    MEAN) / STD."""
    import torch

    from gratis.train.analysis.deployment import centre_view

    crop = centre_view(stats.mean, config.crop)
    mean, std = (255 * torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    for batch in batches:
        device = batch.images.device
        pixels = batch.images + crop.to(device)
        yield batch._replace(images=(pixels - mean.to(device)) / std.to(device))
