"""The result of a finished run, read back from its own events: a table, what held training back,
and the `result` line."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from gratis.history import records
from gratis.rates import attempt_counters
from gratis.train.settings import Launch
from gratis.verdict import Verdict, performance, rate

LABELS = {
    "top1": "validation top-1, centre view",
    "top5": "validation top-5, centre view",
    "top1_10view": "validation top-1, ten views",
    "top5_10view": "validation top-5, ten views",
    "images_per_s": "training images/s",
    "loader_images_per_s": "loader images/s",
    "headroom": "loader headroom",
    "wait_fraction": "waited for data",
    "startup_s": "start-up, left out above",
}
ONLY_STARTUP = "start-up, all there is above"  # of an attempt of one interval


class Result(NamedTuple):
    """A finished run's."""

    values: dict[str, float]  # by LABELS' keys; NaN where there was nothing to measure
    verdict: Verdict | None  # None: its newest attempt trained nothing


def show(launch: Launch) -> None:
    """Prints the table, what held training back, and as the last line `result key=value ...`.

    Where there was nothing to measure the table has a dash, and the line not the key.
    """
    values, verdict = result(launch.folder)
    table = Table(title=launch.run, show_header=False)
    table.add_column("")
    table.add_column("", justify="right")
    alone = verdict is not None and verdict.kind == "starting"
    labels = LABELS | ({"startup_s": ONLY_STARTUP} if alone else {})
    for key, label in labels.items():
        table.add_row(label, "-" if math.isnan(values[key]) else _cell(key, values[key]))
    console = Console()
    console.print(table)
    if verdict is not None:
        console.print(f"{verdict.title}. {verdict.text}", markup=False, highlight=False)
    known = [f"{key}={_digits(key, value)}" for key, value in values.items()]
    known = [pair for pair in known if not pair.endswith("=nan")]
    print("result " + " ".join(known), flush=True)


def result(folder: Path) -> Result:
    """The newest accuracies, as shares, and the rates of the newest attempt over all its ranks
    without its start-up. GratisError where a file cannot be read."""
    values = dict.fromkeys(LABELS, math.nan)
    history = records(folder)
    for record in history:
        if record["kind"] == "eval":
            suffix = "" if record["views"] == 1 else "_10view"
            values |= {f"top1{suffix}": record["top1"], f"top5{suffix}": record["top5"]}
    # the last: the ranks may have begun again
    start = next((record for record in reversed(history) if record["kind"] == "start"), None)
    world, attempt = (start["world"], start["attempt"]) if start else (0, 0)
    ranks = {rank: attempt_counters(records(folder, rank), attempt) for rank in range(world)}
    if not ranks or not all(one.whole.steps for one in ranks.values()):
        return Result(values, None)  # this attempt only evaluated, or its events were removed
    speed, wait, startup, verdict = performance(ranks)
    rates = {
        "images_per_s": speed.trainer,
        "loader_images_per_s": speed.loader,
        "headroom": speed.headroom,
        "wait_fraction": wait,
        "startup_s": sum(startup) if startup else None,
    }
    known = {key: value for key, value in rates.items() if value is not None}
    return Result(values | known, verdict)


def _cell(key: str, value: float) -> str:
    """As the status page writes it."""
    if key.endswith("images_per_s"):
        return rate(value).removesuffix(" images/s")
    return {"headroom": f"{value:.1f} x", "startup_s": f"{value:.1f} s"}.get(key, f"{value:.1%}")


def _digits(key: str, value: float) -> str:
    """Shares with four digits; rates with six, which no rate of a machine outgrows."""
    return f"{value:{'.6g' if key.endswith('images_per_s') else '.4g'}}"
