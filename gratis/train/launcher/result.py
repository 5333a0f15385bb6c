"""The result of a finished run, read back from its own events: a table and the `result` line."""

from __future__ import annotations

import math
from pathlib import Path

from rich.console import Console
from rich.table import Table

from gratis.history import records
from gratis.rates import attempt_counters, throughput, wait_fraction
from gratis.train.settings import Launch

LABELS = {
    "top1": "validation top-1, centre view",
    "top5": "validation top-5, centre view",
    "top1_10view": "validation top-1, ten views",
    "top5_10view": "validation top-5, ten views",
    "images_per_s": "training images/s",
    "loader_images_per_s": "loader images/s",
    "wait_fraction": "waited for data",
}


def show(launch: Launch) -> None:
    """Prints the table, and as the last line `result key=value ...`.

    Where there was nothing to measure the table has a dash, and the line not the key.
    """
    values = result(launch.folder)
    table = Table(title=launch.run)
    table.add_column("")
    table.add_column("", justify="right")
    for key, label in LABELS.items():
        form = ",.0f" if key.endswith("_per_s") else ".1%"
        table.add_row(label, "-" if math.isnan(values[key]) else format(values[key], form))
    Console().print(table)
    known = [f"{key}={value:.4g}" for key, value in values.items() if not math.isnan(value)]
    print("result " + " ".join(known), flush=True)


def result(folder: Path) -> dict[str, float]:
    """By LABELS' keys: the newest accuracies, as shares, and the rates of the newest attempt over
    all its ranks; NaN where there is none. GratisError where a file cannot be read."""
    values = dict.fromkeys(LABELS, math.nan)
    history = records(folder)
    for record in history:
        if record["kind"] == "eval":
            suffix = "" if record["views"] == 1 else "_10view"
            values |= {f"top1{suffix}": record["top1"], f"top5{suffix}": record["top5"]}
    # the last: the ranks may have begun again
    start = next((record for record in reversed(history) if record["kind"] == "start"), None)
    world, attempt = (start["world"], start["attempt"]) if start else (0, 0)
    ranks = [attempt_counters(records(folder, rank), attempt) for rank in range(world)]
    if not ranks or not all(one.steps for one in ranks):
        return values  # this attempt only evaluated, or its events were removed
    rates = throughput(ranks)
    return values | {
        "images_per_s": _or_nan(rates.trainer),
        "loader_images_per_s": _or_nan(rates.loader),
        "wait_fraction": _or_nan(wait_fraction(ranks)),
    }


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value
