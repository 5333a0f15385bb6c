"""Evaluation inside a run: its events, its bar, and its end when a signal comes. What it computes
is `evaluate`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator

from safetensors.torch import save_file
from tqdm import tqdm

from gratis.loader import Batch, Loader
from gratis.records import Outcome
from gratis.train.checkpoint import share
from gratis.train.evaluate import Kept, evaluate, evaluation_config, whole_probabilities
from gratis.train.job import Job
from gratis.train.mesh.mesh import Mesh
from gratis.train.metrics import Scores
from gratis.train.telemetry import check_there

PROGRESS_S = 1.0  # between two signs of life


class Stopped(Exception):
    """A signal cut an evaluation short; it is done again when the run goes on."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome)
        self.outcome = outcome


def validate(job: Job) -> Scores:
    """By the centre view; its error is what the plateau schedule goes by."""
    scores = report_evaluation(job, 1)
    job.errors.append(1 - scores.top1)
    return scores


def report_evaluation(job: Job, views: int, *, keep: bool = False) -> Scores:
    """Evaluates, writes `eval` for each count of views; the scores of the most. Collective.

    keep: the probabilities of every image go to `probabilities.safetensors` beside the events.
    """
    began, mesh = time.perf_counter(), job.mesh
    config = evaluation_config(job.recipe, views, mesh.world)
    kept: Kept | None = [] if keep else None
    loader = Loader(
        job.shards,
        "val",
        config,
        rank=mesh.rank,
        world_size=mesh.world,
        device=mesh.device,
        local_world_size=mesh.local_world,
    )
    with loader:
        found = evaluate(job.network, watched(job, loader, views), mesh, views=views, kept=kept)
    wall_s = time.perf_counter() - began
    if kept:
        probabilities = whole_probabilities(kept, loader.num_samples, mesh)
        if mesh.rank == 0:
            save_file(probabilities, path := job.folder / "probabilities.safetensors")
            share(path)
    if mesh.rank == 0:
        for count, scores in found.items():
            fields = {"views": count, **dataclasses.asdict(scores), "wall_s": wall_s}
            job.events.write("eval", fields, epoch=job.epoch, step=job.step)
    return found[views]


def watched(job: Job, loader: Loader, views: int) -> Iterator[Batch]:
    """The loader's batches, with a bar and signs of life; Stopped, on all ranks at one batch, after
    a signal."""
    began = said = time.perf_counter()
    images = 0
    title = "validation" if views == 1 else f"validation, {views} views"
    with tqdm(total=len(loader), desc=title, leave=False, disable=silent(job.mesh)) as bar:
        for batch in loader:
            if stop := job.signals.agreed(job.mesh):
                raise Stopped(stop)
            yield batch
            bar.update()
            images += int((batch.ids >= 0).sum())
            if (now := time.perf_counter()) - said >= PROGRESS_S:
                check_there(job.events)
                fields = {
                    "views": views,
                    "images": images,
                    "total": loader.num_samples,
                    "wall_s": now - began,
                }
                job.events.write("eval_progress", fields, epoch=job.epoch, step=job.step)
                said = now


def silent(mesh: Mesh) -> bool | None:
    """For tqdm: no bar on other ranks (True) and none without a terminal (None), so that logs stay
    readable."""
    return True if mesh.rank else None
