"""The training loop. `train_epoch` is the algorithm; the rest is what happens between epochs."""

from __future__ import annotations

import math

from tqdm import tqdm

from gratis.loader import Batch, coverage
from gratis.records import Outcome
from gratis.train import latest_batch
from gratis.train.evaluate import VIEWS, no_bar, report_evaluation, validate
from gratis.train.mesh.mesh import gather
from gratis.train.metrics import Scores, share_of_loss, valid_rows
from gratis.train.network.dropout import DropoutKey
from gratis.train.schedule import rates
from gratis.train.telemetry import IntervalMeter, IntervalSummary, RunStopped
from gratis.train.training_state import TrainingState, all_seen, save, save_if_due


def run(state: TrainingState) -> Outcome:
    """Trains to the end of the recipe, or to what stops it, and saves. Collective, the same answer
    on every rank."""
    try:
        return train(state)
    except RunStopped as stopped:
        if state.saved != state.step:
            save(state)
        return stopped.outcome


def train(state: TrainingState) -> Outcome:
    """`run`, but for what stops it elsewhere than at an interval's end: RunStopped."""
    interval = IntervalMeter(state.mesh, state.loader, state.events, state.signals)
    # a signal ended this validation before the resume
    missing = state.evaluates and len(state.errors) < state.epoch < state.recipe.epochs
    if missing and not math.isfinite(validate(state).nll):
        return "diverged"
    while state.epoch < state.recipe.epochs:
        intervals = train_epoch(state, interval)
        if not math.isfinite(intervals[-1].loss):
            return "diverged"
        if state.step == (state.epoch + 1) * len(state.loader):
            scores = finish_epoch(state, intervals)
            if scores and not math.isfinite(scores.nll):
                return "diverged"
        if stop := intervals[-1].stop:
            if state.unsaved_s:  # the end of an epoch may just have saved this step
                save(state)
            return stop
    if state.evaluates:
        scores = report_evaluation(state, VIEWS, keep=state.launch.save_probabilities)
        return "finished" if math.isfinite(scores.nll) else "diverged"
    return "finished"


def train_epoch(state: TrainingState, interval: IntervalMeter) -> list[IntervalSummary]:
    """To the end of the epoch or to the first interval that says stop; the summary of every
    interval."""
    recipe, mesh = state.recipe, state.mesh
    steps, rows = len(state.loader), recipe.batch // mesh.data.size
    positions = range(mesh.data.index * rows, (mesh.data.index + 1) * rows)
    first = state.epoch * steps
    intervals: list[IntervalSummary] = []
    interval.begin()
    title, begun = f"epoch {state.epoch + 1}", state.step - first
    with tqdm(total=steps, initial=begun, desc=title, leave=False, disable=no_bar(mesh)) as bar:
        for images, labels, ids in interval.batches():
            rate = rates(recipe, state.step, steps, state.errors)
            state.optimiser.freeze(rate)
            key = DropoutKey(seed=state.launch.seed, step=state.step, rows=positions)
            logits = mesh.tower.own(state.network(gather(images, 0, mesh.tower, "images"), key))
            valid = valid_rows(state.step - first, recipe.batch, state.loader.num_samples)
            loss = share_of_loss(logits, labels, valid)
            loss.backward()  # type: ignore[no-untyped-call]
            state.gradients.wait()
            state.optimiser.step(rate)
            interval.add(loss, logits, labels)
            state.seen.append(ids)
            state.step += 1
            if interval.due or state.step == first + steps:
                summary = interval.close(epoch=state.epoch, step=state.step, rate=rate["weights"])
                intervals.append(summary)
                state.unsaved_s += summary.wall_s
                show(state, summary, Batch(images, labels, ids), bar)
                if state.step < first + steps:
                    if summary.stop or not math.isfinite(summary.loss):
                        break
                    save_if_due(state)
    return intervals


def show(state: TrainingState, summary: IntervalSummary, batch: Batch, bar: tqdm[None]) -> None:
    """What a watcher sees of an interval: the latest images, and the bar."""
    if state.mesh.rank == 0:
        latest_batch.renew(state.launch.folder, batch, state.loader, state.epoch)
    bar.update(state.step - state.epoch * len(state.loader) - bar.n)
    speed = summary.images / summary.wall_s
    bar.set_postfix_str(f"loss {summary.loss:.3f}, {speed:.0f} images/s")


def finish_epoch(state: TrainingState, intervals: list[IntervalSummary]) -> Scores | None:
    """Receipt, validation by the centre view, and a checkpoint unless it diverged; the scores, if
    it validates."""
    seen = all_seen(state)
    if state.mesh.rank == 0:
        receipt = coverage(seen.numpy(), state.loader.num_samples)
        state.events.write("receipt", receipt, epoch=state.epoch, step=state.step)
    state.epoch += 1
    state.seen.clear()
    state.seen_before = state.seen_before[:0]
    last = state.epoch == state.recipe.epochs
    # the last is covered by the ten views
    scores = validate(state) if state.evaluates and not last else None
    if scores is None or math.isfinite(scores.nll):
        save_if_due(state, now=last)
    if state.mesh.rank == 0:
        against = f", validation top-1 {scores.top1:.1%}" if scores else ""
        steps = sum(one.steps for one in intervals)
        images = sum(one.images for one in intervals)
        loss = sum(one.loss * one.steps for one in intervals) / steps
        top1 = sum(one.top1 * one.images for one in intervals) / images
        tqdm.write(
            f"epoch {state.epoch}/{state.recipe.epochs}: loss {loss:.3f}, training top-1 "
            f"{top1:.1%}{against}"
        )
    return scores
