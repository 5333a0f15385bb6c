"""One pass over a split: the centre view alone, or ten views and the centre among them.

`evaluate` computes; `report_evaluation` is that inside a run, with its events, its bar, and its end
when a signal comes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Iterator

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from gratis.loader import Batch, Loader, LoaderConfig
from gratis.train.checkpoint import share
from gratis.train.mesh.mesh import Mesh, gather, gather_world, sum_over_world
from gratis.train.metrics import Scores, average_views, score_sums, scores
from gratis.train.network.alexnet import AlexNet
from gratis.train.recipes import Recipe
from gratis.train.telemetry import RunStopped, agree_on_stop, check_there, together
from gratis.train.training_state import TrainingState, rank_loader

PROGRESS_S = 1.0  # between two `eval_progress` events
VIEWS = 10
CENTRE = 2  # of the ten views: corners and centre in the specification's order, then their mirrors


def evaluation_config(recipe: Recipe, views: int, world: int) -> LoaderConfig:
    """As many views per step as the recipe trains on, and a multiple of the world's size."""
    per_rank = max(1, recipe.batch // (views * world))
    return LoaderConfig(
        batch_size=per_rank * world,
        crop=recipe.crop,
        augment=False,
        normalize="mean-image",
        mean=recipe.mean,
        views=views,
        remainder="pad",
        layout="channels_last",
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
    none = torch.zeros(len(dataclasses.fields(Scores)), dtype=torch.float64, device=mesh.device)
    sums = {count: none.clone() for count in {1, views}}
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
    own = (torch.cat(parts) for parts in zip(*kept, strict=True))
    ids, labels, probabilities = (gather_world(rows, mesh).cpu() for rows in own)
    real, whole = ids >= 0, {}
    for name, rows in (("labels", labels), ("probabilities", probabilities)):
        whole[name] = rows.new_zeros((samples, *rows.shape[1:]))
        whole[name][ids[real]] = rows[real]
    return whole


def _own_logits(network: AlexNet, images: Tensor, mesh: Mesh) -> Tensor:
    together = gather(images.contiguous(memory_format=torch.channels_last), 0, mesh.tower, "images")
    return mesh.tower.own(network(together))


def validate(state: TrainingState) -> Scores:
    """By the centre view; its error is what the plateau schedule goes by."""
    scores = report_evaluation(state, 1)
    state.errors.append(1 - scores.top1)
    return scores


def report_evaluation(state: TrainingState, views: int, *, keep: bool = False) -> Scores:
    """Evaluates, writes `eval` for each count of views; the scores of the most. Collective.

    keep: the probabilities of every image go to `probabilities.safetensors` beside the events.
    """
    began, mesh = time.perf_counter(), state.mesh
    config = evaluation_config(state.recipe, views, mesh.world)
    limits = dataclasses.asdict(state.launch.network)
    config = dataclasses.replace(config, **limits)
    kept: Kept | None = [] if keep else None
    opened = together(lambda: rank_loader(state.launch, "val", config, mesh), state.signals, mesh)
    with opened as loader:
        batches = with_progress(state, loader, views)
        results = evaluate(state.network, batches, mesh, views=views, kept=kept)
    wall_s = time.perf_counter() - began
    if kept:
        probabilities = whole_probabilities(kept, loader.num_samples, mesh)
        if mesh.rank == 0:
            save_file(probabilities, path := state.launch.folder / "probabilities.safetensors")
            share(path)
    if mesh.rank == 0:
        for count, scores in results.items():
            fields = {"views": count, **dataclasses.asdict(scores), "wall_s": wall_s}
            state.events.write("eval", fields, epoch=state.epoch, step=state.step)
    return results[views]


def with_progress(state: TrainingState, loader: Loader, views: int) -> Iterator[Batch]:
    """The loader's batches, with a bar and `eval_progress` events; RunStopped after a signal, or
    where a rank's server is away for too long."""
    began = last = time.perf_counter()
    images = 0
    title = "validation" if views == 1 else f"validation, {views} views"
    with tqdm(total=len(loader), desc=title, leave=False, disable=no_bar(state.mesh)) as bar:
        batches = iter(loader)
        while batch := together(lambda: next(batches, None), state.signals, state.mesh):
            if stop := agree_on_stop(state.signals, state.mesh):
                raise RunStopped(stop)
            yield batch
            bar.update()
            images += int((batch.ids >= 0).sum())
            if (now := time.perf_counter()) - last >= PROGRESS_S:
                check_there(state.events)
                done = {"images": images, "total": loader.num_samples}
                fields = {"views": views, **done, "wall_s": now - began}
                state.events.write("eval_progress", fields, epoch=state.epoch, step=state.step)
                last = now


def no_bar(mesh: Mesh) -> bool | None:
    """For tqdm: no bar on other ranks (True) and none without a terminal (None), so that logs stay
    readable."""
    return True if mesh.rank else None
