"""What a finished run amounts to, read back from its own events: the closing table and the `result`
line."""

from __future__ import annotations

import math
from typing import Any

from rich.console import Console
from rich.table import Table

from gratis.train.launcher.launch import records
from gratis.train.settings import Launch

KEYS = (
    "top1",
    "top5",
    "top1_10view",
    "top5_10view",
    "images_per_s",
    "loader_images_per_s",
    "wait_fraction",
)
WORDS = {
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
    found = result(launch)
    table = Table(title=launch.run)
    table.add_column("")
    table.add_column("", justify="right")
    for key in KEYS:
        share = not key.endswith("_per_s")
        table.add_row(
            WORDS[key],
            "-"
            if math.isnan(found[key])
            else f"{found[key]:.1%}"
            if share
            else f"{found[key]:,.0f}",
        )
    Console().print(table)
    print(
        "result "
        + " ".join(f"{key}={found[key]:.4g}" for key in KEYS if not math.isnan(found[key])),
        flush=True,
    )


def result(launch: Launch) -> dict[str, float]:
    found = dict.fromkeys(KEYS, math.nan)
    history = records(launch.folder)
    for record in history:
        if record["kind"] == "eval":
            suffix = "" if record["views"] == 1 else "_10view"
            found |= {f"top1{suffix}": record["top1"], f"top5{suffix}": record["top5"]}
    world = next((record["world"] for record in history[::-1] if record["kind"] == "start"), 0)
    # the ranks may have begun again
    attempt = max((record.get("attempt", 0) for record in history), default=0)
    ranks = [_steps(records(launch.folder, rank), attempt) for rank in range(world)]
    if not ranks or not all(ranks):  # this attempt only evaluated, or its events were removed
        return found
    walls = [sum(step["wall_s"] for step in steps) for steps in ranks]
    images = [sum(step["images"] for step in steps) for steps in ranks]
    waits = [sum(step["wait_s"] for step in steps) for steps in ranks]
    return found | {
        "images_per_s": sum(images) / max(walls),
        "loader_images_per_s": sum(_loader_rate(steps) for steps in ranks),
        "wait_fraction": sum(waits) / sum(walls),
    }


def _steps(history: list[dict[str, Any]], attempt: int) -> list[dict[str, Any]]:
    return [
        record for record in history if record["kind"] == "step" and record["attempt"] == attempt
    ]


def _loader_rate(steps: list[dict[str, Any]]) -> float:
    """What the rank's loader could have delivered: its images over the time at work, as the status
    page reckons it.

    At work are its stages' seconds, and at least as long as training waited. What it was not
    blocked would not do: at the end of an epoch there is nothing left to make, and it is neither
    blocked nor at work."""
    stages = sum(
        step["loader"][key]
        for step in steps
        for key in ("read_s", "decode_s", "finish_s", "transfer_s")
    )
    busy = max(stages, sum(step["wait_s"] for step in steps))
    return float(sum(step["loader"]["images"] for step in steps) / max(busy, 1e-9))
