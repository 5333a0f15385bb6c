"""The training loop. `train_epoch` is the algorithm; the rest is what happens between epochs."""

from __future__ import annotations

import math

from tqdm import tqdm

from gratis.loader import Batch, coverage
from gratis.records import Outcome
from gratis.train import latest_batch
from gratis.train.evaluate import VIEWS
from gratis.train.job import Job, all_seen, save, save_if_due
from gratis.train.mesh.mesh import gather
from gratis.train.metrics import Scores, share_of_loss, valid_rows
from gratis.train.network.alexnet import Draw
from gratis.train.schedule import rates
from gratis.train.telemetry import Interval, Report
from gratis.train.validation import Stopped, report_evaluation, silent, validate


def run(job: Job) -> Outcome:
    """Trains to the end of the recipe, or to what stops it, and saves. Collective, the same answer
    on every rank."""
    try:
        return train(job)
    except Stopped as stopped:
        if job.unsaved_s:
            save(job)
        return stopped.outcome


def train(job: Job) -> Outcome:
    """`run`, but for a signal during an evaluation: Stopped."""
    interval = Interval(job.mesh, job.loader, job.events, job.signals)
    # by a signal, this validation was
    stopped = job.evaluates and len(job.errors) < job.epoch < job.recipe.epochs
    if stopped and not math.isfinite(validate(job).nll):
        return "diverged"
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
    """To the end of the epoch or to the first interval that says stop; the report of every
    interval."""
    recipe, mesh = job.recipe, job.mesh
    steps, rows = len(job.loader), recipe.batch // mesh.data.size
    positions = range(mesh.data.index * rows, (mesh.data.index + 1) * rows)
    begun = job.step - job.epoch * steps
    reports: list[Report] = []
    interval.begin()
    with tqdm(
        total=steps, initial=begun, desc=f"epoch {job.epoch + 1}", leave=False, disable=silent(mesh)
    ) as bar:
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
                    latest_batch.renew(
                        job.folder, Batch(images, labels, ids), job.loader, job.epoch
                    )
                job.unsaved_s += report.wall_s
                bar.update(job.step - job.epoch * steps - bar.n)
                bar.set_postfix_str(
                    f"loss {report.loss:.3f}, {report.images / report.wall_s:.0f} images/s"
                )
                if job.step < (job.epoch + 1) * steps:
                    if report.stop or not math.isfinite(report.loss):
                        break
                    save_if_due(job)
    return reports


def finish_epoch(job: Job, reports: list[Report]) -> Scores | None:
    """Receipt, validation by the centre view, and a checkpoint unless it diverged; the scores, if
    it validates."""
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
    # the last is covered by the ten views
    scores = validate(job) if job.evaluates and not last else None
    if scores is None or math.isfinite(scores.nll):
        save_if_due(job, now=last)
    if job.mesh.rank == 0:
        against = f", validation top-1 {scores.top1:.1%}" if scores else ""
        steps, images = (
            sum(report.steps for report in reports),
            sum(report.images for report in reports),
        )
        loss = sum(report.loss * report.steps for report in reports) / steps
        top1 = sum(report.top1 * report.images for report in reports) / images
        tqdm.write(
            f"epoch {job.epoch}/{job.recipe.epochs}: loss {loss:.3f}, training top-1 "
            f"{top1:.1%}{against}"
        )
    return scores
