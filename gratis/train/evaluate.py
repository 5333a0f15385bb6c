"""One pass over a split: the centre view alone, or ten views and the centre among them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from gratis.loader import Batch, LoaderConfig
from gratis.train.mesh.mesh import Mesh, gather, gather_rows, sum_over_world
from gratis.train.metrics import Scores, average_views, score_sums, scores
from gratis.train.network.alexnet import AlexNet
from gratis.train.recipes import Recipe

VIEWS = 10
CENTRE = 2  # of the ten views: corners and centre in the specification's order, then their mirrors


def evaluation_config(recipe: Recipe, views: int, world: int) -> LoaderConfig:
    """As many views per step as the recipe trains on, and a multiple of the world's size."""
    per_rank = max(1, recipe.batch // (views * world))
    return LoaderConfig(
        batch_size=per_rank * world,
        crop=recipe.crop,
        augment=False,
        mean=recipe.mean,
        views=views,
        channels_last=True,
        dtype=getattr(torch, recipe.compute),
    )


# of each batch: ids, labels, probabilities averaged over all views
Kept = list[tuple[Tensor, Tensor, Tensor]]


@torch.inference_mode()
def evaluate(
    network: AlexNet, batches: Iterable[Batch], mesh: Mesh, *, views: int, kept: Kept | None = None
) -> dict[int, Scores]:
    """{1: centre view} or {1: centre view, 10: mean over ten}: exact counts, the same on every
    rank. Collective.

    Appends this rank's rows to `kept`, if given.
    """
    sums = {count: torch.zeros(4, dtype=torch.float64, device=mesh.device) for count in {1, views}}
    for images, labels, ids in batches:
        logits = _own_logits(network, images.flatten(0, 1) if views > 1 else images, mesh)
        probabilities = average_views(logits, views)
        if kept is not None:
            kept.append((ids.clone(), labels.cpu(), probabilities.float().cpu()))
        if views > 1:
            sums[views] += score_sums(probabilities, labels)
            probabilities = average_views(logits.view(len(labels), views, -1)[:, CENTRE], 1)
        sums[1] += score_sums(probabilities, labels)
    return {count: scores(sum_over_world(total)) for count, total in sorted(sums.items())}


def whole_probabilities(kept: Kept, samples: int, mesh: Mesh) -> dict[str, Tensor]:
    """Probabilities [samples, C] and labels [samples] of all ranks in the order of ids.
    Collective."""
    ids, labels, probabilities = (torch.cat(parts) for parts in zip(*kept, strict=True))
    found = {"labels": labels, "probabilities": probabilities}
    for axis in (mesh.tower, mesh.data):
        ids = gather_rows(ids.to(mesh.device), len(ids) * axis.size, axis)
        found = {
            name: gather_rows(own.to(mesh.device), len(own) * axis.size, axis)
            for name, own in found.items()
        }
    real = ids >= 0
    whole = {name: own.new_zeros((samples, *own.shape[1:])) for name, own in found.items()}
    for name, own in found.items():
        whole[name][ids[real]] = own[real]
    return {name: own.cpu() for name, own in whole.items()}


def _own_logits(network: AlexNet, images: Tensor, mesh: Mesh) -> Tensor:
    together = gather(images.contiguous(memory_format=torch.channels_last), 0, mesh.tower, "images")
    return mesh.tower.own(network(together))
