"""One pass over a split: the centre view alone, or ten views and the centre among them."""

from __future__ import annotations

import torch
from torch import Tensor

from loader import Loader, LoaderConfig
from train.network import AlexNet
from train.parallel import Mesh, gather, sum_over_world
from train.recipes import Recipe
from train.scores import Scores, average_views, score_sums, scores

VIEWS = 10
CENTRE = 2  # of the ten views: corners and centre in the specification's order, then their mirrors


def evaluation_config(recipe: Recipe, views: int, world: int) -> LoaderConfig:
    """As many views per step as the recipe trains on, and a multiple of the world's size."""
    per_rank = max(1, recipe.batch // (views * world))
    return LoaderConfig(
        batch_size=per_rank * world, crop=recipe.crop, augment=False, mean=recipe.mean, views=views, channels_last=True
    )


@torch.inference_mode()
def evaluate(network: AlexNet, loader: Loader, mesh: Mesh, *, views: int) -> dict[int, Scores]:
    """{1: centre view} or {1: centre view, 10: mean over ten}: exact counts, the same on every rank. Collective."""
    sums = {count: torch.zeros(4, dtype=torch.float64, device=mesh.device) for count in {1, views}}
    for images, labels, _ in loader:
        logits = _own_logits(network, images.flatten(0, 1) if views > 1 else images, mesh)
        if views > 1:
            sums[views] += score_sums(average_views(logits, views), labels)
            logits = logits.view(len(labels), views, -1)[:, CENTRE]
        sums[1] += score_sums(average_views(logits, 1), labels)
    return {count: scores(sum_over_world(total)) for count, total in sorted(sums.items())}


def _own_logits(network: AlexNet, images: Tensor, mesh: Mesh) -> Tensor:
    together = gather(images.contiguous(memory_format=torch.channels_last), 0, mesh.tower)
    return mesh.tower.own(network(together))
