"""The training loop. `train_epoch` is the algorithm; the rest is what happens between epochs."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from loader import Batch, Loader, coverage
from preprocess.events import EventWriter
from train import checkpoint, picture
from train.checkpoint import State
from train.evaluate import VIEWS, Kept, evaluate, evaluation_config, whole_probabilities
from train.events import Outcome
from train.interval import Interval, Report, Signals
from train.network import AlexNet, Draw
from train.optim import Optimiser
from train.parallel import GradientSum, Mesh, gather, gather_rows
from train.recipes import Recipe
from train.saving import Saver
from train.schedule import rates
from train.scores import Scores, share_of_loss, valid_rows

PROGRESS_S = 1.0  # between two signs of life of an evaluation


@dataclass(kw_only=True)
class Job:
    """One rank's part of a run. step counts the run's steps, epoch its complete epochs."""

    recipe: Recipe
    seed: int
    shards: str
    folder: Path
    mesh: Mesh
    network: AlexNet
    optimiser: Optimiser
    gradients: GradientSum
    loader: Loader
    events: EventWriter
    signals: Signals
    saver: Saver
    save_every_s: float  # of training
    evaluates: bool
    save_probabilities: bool = False
    step: int = 0
    epoch: int = 0
    seen: list[Tensor] = field(default_factory=list)  # this rank's ids of the begun epoch
    seen_before: Tensor = field(
        default_factory=lambda: torch.zeros(0, dtype=torch.int64)
    )  # all ranks', before a resume
    errors: list[float] = field(default_factory=list)  # on the validation split, after each complete epoch
    unsaved_s: float = 0.0


def run(job: Job) -> Outcome:
    """Trains to the end of the recipe, or to what stops it. Collective, the same answer on every rank."""
    interval = Interval(job.mesh, job.loader, job.events, job.signals)
    while job.epoch < job.recipe.epochs:
        reports = train_epoch(job, interval)
        report = reports[-1]
        if not math.isfinite(report.loss):
            return "diverged"
        if job.step == (job.epoch + 1) * len(job.loader):
            scores = finish_epoch(job, reports)
            if scores and not math.isfinite(scores.nll):
                return "diverged"
        if report.stop:
            if job.unsaved_s:  # the end of an epoch may just have saved this step
                save(job)
            return report.stop
    if job.evaluates:
        scores = report_evaluation(job, VIEWS, keep=job.save_probabilities)
        return "finished" if math.isfinite(scores.nll) else "diverged"
    return "finished"


def train_epoch(job: Job, interval: Interval) -> list[Report]:
    """To the end of the epoch or to the first interval that says stop; the report of every interval."""
    recipe, mesh = job.recipe, job.mesh
    steps, rows = len(job.loader), recipe.batch // mesh.data.size
    positions = range(mesh.data.index * rows, (mesh.data.index + 1) * rows)
    begun = job.step - job.epoch * steps
    reports: list[Report] = []
    interval.begin()
    with tqdm(total=steps, initial=begun, desc=f"epoch {job.epoch + 1}", leave=False, disable=_silent(mesh)) as bar:
        for images, labels, ids in interval.batches():
            rate = rates(recipe, job.step, steps, job.errors)
            job.optimiser.freeze(rate)
            draw = Draw(seed=job.seed, step=job.step, rows=positions)
            logits = mesh.tower.own(job.network(gather(images, 0, mesh.tower, "images"), draw))
            valid = valid_rows(job.step - job.epoch * steps, recipe.batch, job.loader.num_samples)
            loss = share_of_loss(logits, labels, valid)
            loss.backward()  # type: ignore[no-untyped-call]
            job.gradients.wait()
            job.optimiser.step(rate)
            interval.add(loss, logits, labels)
            job.seen.append(ids.clone())  # the loader re-uses its buffers
            job.step += 1
            if interval.due or job.step == (job.epoch + 1) * steps:
                report = interval.close(epoch=job.epoch, step=job.step, rate=rate["weights"])
                reports.append(report)
                if mesh.rank == 0:
                    picture.renew(job.folder, Batch(images, labels, ids), job.loader, job.epoch)
                job.unsaved_s += report.wall_s
                bar.update(job.step - job.epoch * steps - bar.n)
                bar.set_postfix_str(f"loss {report.loss:.3f}, {report.images / report.wall_s:.0f} images/s")
                if job.step < (job.epoch + 1) * steps:
                    if report.stop or not math.isfinite(report.loss):
                        break
                    save_if_due(job)
    return reports


def finish_epoch(job: Job, reports: list[Report]) -> Scores | None:
    """Receipt, validation by the centre view, and a checkpoint unless it diverged; the scores, if it validates."""
    seen = all_seen(job)
    if job.mesh.rank == 0:
        job.events.write("receipt", coverage(seen.numpy(), job.loader.num_samples), epoch=job.epoch, step=job.step)
    job.epoch += 1
    job.seen.clear()
    job.seen_before = job.seen_before[:0]
    last = job.epoch == job.recipe.epochs
    scores = report_evaluation(job, 1) if job.evaluates and not last else None  # the last is covered by the ten views
    if job.mesh.rank == 0:
        against = f", validation top-1 {scores.top1:.1%}" if scores else ""
        steps, images = sum(report.steps for report in reports), sum(report.images for report in reports)
        loss = sum(report.loss * report.steps for report in reports) / steps
        top1 = sum(report.top1 * report.images for report in reports) / images
        tqdm.write(f"epoch {job.epoch}/{job.recipe.epochs}: loss {loss:.3f}, training top-1 {top1:.1%}{against}")
    if scores:
        job.errors.append(1 - scores.top1)
    if scores is None or math.isfinite(scores.nll):
        save_if_due(job, now=last)
    return scores


def all_seen(job: Job) -> Tensor:
    """The ids of the begun epoch over all ranks, padding left out. Collective."""
    own = torch.cat(job.seen) if job.seen else torch.zeros(0, dtype=torch.int64)
    own = own.to(job.mesh.device)  # the loader's ids stay on the CPU, of which NCCL sends nothing
    for axis in (job.mesh.tower, job.mesh.data):
        own = gather_rows(own, len(own) * axis.size, axis)
    return torch.cat([job.seen_before, own[own >= 0].cpu()])


def report_evaluation(job: Job, views: int, *, keep: bool = False) -> Scores:
    """Evaluates, writes `eval` for each count of views; the scores of the most. Collective.

    keep: the probabilities of every image go to `probabilities.safetensors` beside the events.
    """
    began, mesh = time.perf_counter(), job.mesh
    config = evaluation_config(job.recipe, views, mesh.world)
    kept: Kept | None = [] if keep else None
    loader = Loader(
        job.shards, "val", config, rank=mesh.rank, world_size=mesh.world, device=mesh.device,
        local_world_size=mesh.local_world,
    )  # fmt: skip
    with loader:
        found = evaluate(job.network, watched(job, loader, views), mesh, views=views, kept=kept)
    wall_s = time.perf_counter() - began
    if kept:
        probabilities = whole_probabilities(kept, loader.num_samples, mesh)
        if mesh.rank == 0:
            save_file(probabilities, job.folder / "probabilities.safetensors")
    if mesh.rank == 0:
        for count, scores in found.items():
            fields = {"views": count, **dataclasses.asdict(scores), "wall_s": wall_s}
            job.events.write("eval", fields, epoch=job.epoch, step=job.step)
    return found[views]


def watched(job: Job, loader: Loader, views: int) -> Iterator[Batch]:
    """The loader's batches, with a bar and signs of life."""
    began = said = time.perf_counter()
    images = 0
    title = "validation" if views == 1 else f"validation, {views} views"
    with tqdm(total=len(loader), desc=title, leave=False, disable=_silent(job.mesh)) as bar:
        for batch in loader:
            yield batch
            bar.update()
            images += int((batch.ids >= 0).sum())
            if (now := time.perf_counter()) - said >= PROGRESS_S:
                fields = {"views": views, "images": images, "total": loader.num_samples, "wall_s": now - began}
                job.events.write("eval_progress", fields, epoch=job.epoch, step=job.step)
                said = now


def _silent(mesh: Mesh) -> bool | None:
    """For tqdm: no bar on other ranks (True) and none without a terminal (None), so that logs stay readable."""
    return True if mesh.rank else None


def save_if_due(job: Job, *, now: bool = False) -> None:
    job.saver.settle(wait=False)
    if now or job.unsaved_s >= job.save_every_s:  # all ranks agree: it adds up means over them
        save(job)


def save(job: Job) -> None:
    """A checkpoint of this step; a thread writes it. Collective."""
    state = State(
        step=job.step, epoch=job.epoch, seed=job.seed, classes=job.network.classes, dataset=job.loader.manifest.hash,
        architecture=job.recipe.architecture, loader=dict(job.loader.state_dict()), errors=list(job.errors),
    )  # fmt: skip
    writer = job.mesh.rank == 0
    arrays = checkpoint.collect(job.network, job.optimiser, all_seen(job), writer=writer)
    if writer:
        job.saver.begin(arrays, state)
    job.unsaved_s = 0.0


def resume(job: Job) -> bool:
    """Goes to the latest checkpoint's step, if there is one; UserError if it is of something else."""
    found = checkpoint.latest(job.folder / "checkpoints")
    if found is None:
        return False
    state = checkpoint.read_state(found)
    checkpoint.check_fits(
        found, state, architecture=job.recipe.architecture, classes=job.network.classes,
        dataset=job.loader.manifest.hash,
    )  # fmt: skip
    job.seen_before = checkpoint.load(found, job.network, job.optimiser)
    job.loader.load_state_dict(state.loader)
    job.step, job.epoch, job.errors = state.step, state.epoch, list(state.errors)
    return True
