"""The training loop. `train_epoch` is the algorithm; the rest is what happens between epochs."""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from loader import Batch, Loader, coverage
from preprocess.events import EventWriter
from train import checkpoint, picture
from train.checkpoint import State
from train.evaluate import VIEWS, evaluate, evaluation_config
from train.events import Outcome
from train.interval import Interval, Report, Signals
from train.network import AlexNet, Draw
from train.optim import Optimiser
from train.parallel import Mesh, gather, gather_rows, sum_gradients
from train.recipes import Recipe
from train.schedule import rates
from train.scores import Scores, share_of_loss, valid_rows

SAVE_EVERY_S = 30.0  # of training: epochs of the small recipes take less than a checkpoint


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
    loader: Loader
    events: EventWriter
    signals: Signals
    evaluates: bool
    step: int = 0
    epoch: int = 0
    seen: list[Tensor] = field(default_factory=list)  # this rank's ids of the begun epoch
    seen_before: Tensor = field(
        default_factory=lambda: torch.zeros(0, dtype=torch.int64)
    )  # all ranks', before a resume
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
            finish_epoch(job, reports)
        if report.stop:
            save(job)
            return report.stop
    if job.evaluates:
        report_evaluation(job, VIEWS)
    return "finished"


def train_epoch(job: Job, interval: Interval) -> list[Report]:
    """To the end of the epoch or to the first interval that says stop; the report of every interval."""
    recipe, mesh, network = job.recipe, job.mesh, job.network
    steps, rows = len(job.loader), recipe.batch // mesh.data.size
    positions = range(mesh.data.index * rows, (mesh.data.index + 1) * rows)
    begun = job.step - job.epoch * steps
    reports: list[Report] = []
    interval.begin()
    with tqdm(total=steps, initial=begun, desc=f"epoch {job.epoch + 1}", leave=False, disable=mesh.rank != 0) as bar:
        for images, labels, ids in interval.batches():
            rate = rates(recipe, job.step, steps)
            job.optimiser.freeze(rate)
            draw = Draw(seed=job.seed, step=job.step, rows=positions)
            logits = mesh.tower.own(network(gather(images, 0, mesh.tower), draw))
            valid = valid_rows(job.step - job.epoch * steps, recipe.batch, job.loader.num_samples)
            loss = share_of_loss(logits, labels, valid)
            loss.backward()  # type: ignore[no-untyped-call]
            sum_gradients(network.parameters(), mesh.data)
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
                if job.step < (job.epoch + 1) * steps and (report.stop or not math.isfinite(report.loss)):
                    break
    return reports


def finish_epoch(job: Job, reports: list[Report]) -> None:
    """Receipt, validation by the centre view, checkpoint."""
    seen = all_seen(job)
    if job.mesh.rank == 0:
        job.events.write(
            "receipt",
            coverage(seen.numpy(), job.loader.num_samples),
            epoch=job.epoch,
            step=job.step,
        )
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
    if last or job.unsaved_s >= SAVE_EVERY_S:
        save(job)


def all_seen(job: Job) -> Tensor:
    """The ids of the begun epoch over all ranks, padding left out. Collective."""
    own = torch.cat(job.seen) if job.seen else torch.zeros(0, dtype=torch.int64, device=job.mesh.device)
    for axis in (job.mesh.tower, job.mesh.data):
        own = gather_rows(own, len(own) * axis.size, axis)
    return torch.cat([job.seen_before, own[own >= 0].cpu()])


def report_evaluation(job: Job, views: int) -> Scores:
    """Evaluates, writes `eval` for each count of views; the scores of the most. Collective."""
    began = time.perf_counter()
    config = evaluation_config(job.recipe, views, job.mesh.world)
    mesh = job.mesh
    with Loader(job.shards, "val", config, rank=mesh.rank, world_size=mesh.world, device=mesh.device) as loader:
        found = evaluate(job.network, loader, mesh, views=views)
    wall_s = time.perf_counter() - began
    if mesh.rank == 0:
        for count, scores in found.items():
            fields = {"views": count, **dataclasses.asdict(scores), "wall_s": wall_s}
            job.events.write("eval", fields, epoch=job.epoch, step=job.step)
    return found[views]


def save(job: Job) -> None:
    """A checkpoint of this step; on a failing disk a warning, and training goes on. Collective."""
    began = time.perf_counter()
    state = State(
        step=job.step, epoch=job.epoch, seed=job.seed, classes=job.network.classes, dataset=job.loader.manifest.hash,
        architecture=job.recipe.architecture, loader=dict(job.loader.state_dict()),
    )  # fmt: skip
    folder, writer = job.folder / "checkpoints", job.mesh.rank == 0
    try:
        size = checkpoint.save(folder, job.network, job.optimiser, state, all_seen(job), writer=writer)
    except OSError as error:
        job.events.write("warning", {"message": f"no checkpoint at step {job.step}: {error}"}, step=job.step)
        return
    job.unsaved_s = 0.0
    if writer:
        path = f"checkpoints/step-{job.step:08d}"
        fields = {"path": path, "bytes": size, "wall_s": time.perf_counter() - began}
        job.events.write("checkpoint", fields, epoch=job.epoch, step=job.step)


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
    job.step, job.epoch = state.step, state.epoch
    return True
