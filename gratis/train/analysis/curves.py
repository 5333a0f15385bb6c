"""Training curves, and the learning rate with what happened during the run, from the run's own
records."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from gratis.train.analysis.plots import BLUE, GREEN, GREY, ORANGE, RED, new_figure
from gratis.train.recipes import Recipe
from gratis.train.schedule import noise_until, rates

Record = dict[str, Any]


class Mark(NamedTuple):
    """Something that happened once, at a time in epochs."""

    what: str
    epoch: float


def surviving(records: Sequence[Record]) -> list[Record]:
    """The records whose step counts: what a later attempt ran again is left out. Those without a
    step all stay."""
    first: dict[int, int] = {}  # attempt -> the step it began at
    for record in of_kind(records, "step"):
        first.setdefault(record["attempt"], record["step"] - record["steps"])

    def counts(record: Record) -> bool:
        later = (begin for attempt, begin in first.items() if attempt > record["attempt"])
        return bool(record.get("step", 0) <= min(later, default=math.inf))

    return [record for record in records if counts(record)]


def of_kind(records: Sequence[Record], kind: str) -> list[Record]:
    return [record for record in records if record["kind"] == kind]


def by_epoch(
    steps: Sequence[Record], steps_per_epoch: int, key: str, weight: str
) -> tuple[list[float], list[float]]:
    """Ends of the epochs, of one that is under way the place it has come to, and the means over
    each of a quantity that every interval has."""
    values: dict[int, list[tuple[float, float]]] = {}
    ends: dict[int, float] = {}
    for record in steps:
        if record[key] is not None:
            epoch = math.ceil(record["step"] / steps_per_epoch)
            values.setdefault(epoch, []).append((record[key], record[weight]))
            ends[epoch] = record["step"] / steps_per_epoch
    means = [sum(v * n for v, n in pairs) / sum(n for _, n in pairs) for pairs in values.values()]
    return list(ends.values()), means


def marks(records: Sequence[Record], recipe: Recipe, steps_per_epoch: int) -> list[Mark]:
    """What the recipe's schedule did as far as the run went, and its checkpoints, resumes and
    warnings."""
    history = surviving(records)
    steps = of_kind(history, "step")
    last = max((record["step"] for record in steps), default=0) / steps_per_epoch
    planned = [Mark("noise off", float(noise_until(recipe)))] if recipe.noise != "off" else []
    for what, share in (("conv1 slow", recipe.conv1_slow), ("conv1 frozen", recipe.conv1_frozen)):
        planned += [] if share is None else [Mark(what, share * recipe.epochs)]
    # the rate fell by more than half from one interval to the next: a step, whatever the schedule
    planned += [
        Mark("rate dropped", (now["step"] - now["steps"]) / steps_per_epoch)
        for before, now in pairwise(steps)
        if recipe.schedule != "cosine" and now["lr"] < before["lr"] / 2
    ]
    happened = [mark for mark in planned if mark.epoch < min(last, recipe.epochs)]
    saves = of_kind(history, "checkpoint")
    happened += [Mark("checkpoint", record["step"] / steps_per_epoch) for record in saves]
    firsts = {record["attempt"]: record for record in reversed(of_kind(records, "step"))}
    begin = min((record["attempt"] for record in records), default=0)
    return happened + [
        Mark("resume", (record["step"] - record["steps"]) / steps_per_epoch)
        for attempt, record in sorted(firsts.items())
        if attempt > begin
    ]


def draw_curves(
    records: Sequence[Record], recipe: Recipe, steps_per_epoch: int, title: str
) -> Figure:
    """Loss above, errors below, over epochs. Training's are means of each epoch while it ran,
    augmented, with dropout; validation's are of the centre view after it."""
    history = surviving(records)
    steps, evals = of_kind(history, "step"), of_kind(history, "eval")
    centre = [record for record in evals if record["views"] == 1]
    figure, ((above,), (below,)) = new_figure(7, 6.2, 2, 1, sharex=True)
    at = [record["step"] / steps_per_epoch for record in steps]
    loss = [math.nan if record["loss"] is None else record["loss"] for record in steps]
    above.plot(at, loss, color=BLUE, alpha=0.3, linewidth=0.8)
    means = by_epoch(steps, steps_per_epoch, "loss", "steps")
    above.plot(*means, "-", color=BLUE, label="training")
    after = [record["step"] / steps_per_epoch for record in centre]
    look: Any = {"color": RED, "markersize": 3, "label": "validation, centre"}
    above.plot(after, [record["nll"] for record in centre], "o-", **look)
    above.set_ylabel("loss, nats")
    above.set_ylim(bottom=0)
    above.legend()
    above.set_title(title, loc="left")
    ends, right = by_epoch(steps, steps_per_epoch, "top1", "images")
    below.plot(ends, [1 - share for share in right], "-", color=BLUE, label="training top-1")
    for top, line, fill in (("top1", "o-", "full"), ("top5", "o--", "none")):
        errors = [1 - record[top] for record in centre]
        look = {"color": RED, "markersize": 4, "fillstyle": fill}
        below.plot(after, errors, line, label=f"validation top-{top[-1]}", **look)
    for record in [record for record in evals if record["views"] > 1][-1:]:
        place = record["step"] / steps_per_epoch
        star: Any = {"color": RED, "markersize": 9, "clip_on": False}
        below.plot([place], [1 - record["top1"]], "*", label="ten views, top-1", **star)
        below.plot([place], [1 - record["top5"]], "*", fillstyle="none", label="and top-5", **star)
    below.set_ylabel("error")
    below.set_ylim(0, 1)
    below.yaxis.set_major_formatter(PercentFormatter(1))
    look = {"loc": "lower right", "bbox_to_anchor": (1, 1), "fontsize": 8, "handlelength": 1.6}
    below.legend(ncols=5, columnspacing=1.2, **look)
    _epochs(below, recipe)
    return figure


MOMENTS = 2000  # of a run at which the rates are computed
ROWS = ("rate dropped", "noise off", "conv1 slow", "conv1 frozen", "resume", "checkpoint")
COLOURS = dict(zip(ROWS, (RED, ORANGE, GREEN, GREEN, BLUE, GREY), strict=True))


def draw_rates(
    records: Sequence[Record], recipe: Recipe, steps_per_epoch: int, title: str
) -> Figure:
    """The rates above, as recorded (weights) and by the recipe (biases, conv1); events
    below."""
    history = surviving(records)
    steps = of_kind(history, "step")
    errors = [1 - record["top1"] for record in of_kind(history, "eval") if record["views"] == 1]
    figure, ((above,), (below,)) = new_figure(7, 5, 2, 1, sharex=True, height_ratios=[2, 1.1])
    last = max((record["step"] for record in steps), default=1)
    moments = np.unique(np.linspace(0, last - 1, MOMENTS).astype(int)).tolist()
    planned = [
        rates(recipe, moment, steps_per_epoch, errors[: moment // steps_per_epoch])
        for moment in moments
    ]
    at = [moment / steps_per_epoch for moment in moments]
    biases = [rate["biases"] for rate in planned]
    above.plot(at, biases, "--", color=ORANGE, linewidth=1, label="biases")
    ends, weights = [one["step"] / steps_per_epoch for one in steps], [one["lr"] for one in steps]
    above.step(ends, weights, "-", where="pre", color=BLUE, label="weights, as recorded")
    # frozen: a logarithm has no place for 0
    conv1 = [rate["conv1_weights"] or math.nan for rate in planned]
    above.plot(at, conv1, ":", color=GREEN, linewidth=1.6, label="conv1's weights")
    above.set_yscale("log")
    above.set_ylabel("learning rate")
    above.legend()
    above.set_title(title, loc="left")
    events = marks(records, recipe, steps_per_epoch)
    rows = [row for row in ROWS if any(mark.what == row for mark in events)]
    for place, row in enumerate(rows):
        own = [mark.epoch for mark in events if mark.what == row]
        form = "|" if row == "checkpoint" else "D"
        below.plot(own, [place] * len(own), form, color=COLOURS[row], markersize=7)
        for epoch in own if row not in ("checkpoint", "resume") else ():
            above.axvline(epoch, color=COLOURS[row], linewidth=0.8, alpha=0.5)
    below.set_yticks(range(len(rows)), rows)
    below.set_ylim(len(rows) - 0.5, -0.5)
    below.grid(axis="y", color="#e5e5e5")
    below.tick_params(axis="y", length=0)
    _epochs(below, recipe)
    return figure


def _epochs(axes: Any, recipe: Recipe) -> None:
    axes.set_xlim(0, recipe.epochs)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
