"""The status page for a terminal: a run's state, verdict, rates and ranks, twice a second until
ctrl-C."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gratis.errors import GratisError
from gratis.server.models import RunStatus
from gratis.server.runs import Runs

COLOURS = {
    "running": "green",
    "finished": "green",
    "starting": "cyan",
    "preempted": "yellow",
    "stalled": "yellow",
    "crashed": "red",
    "diverged": "red",
}


def top(root: Path, name: str | None, stall_s: float) -> None:
    """Shows the run `name`, or whichever is the newest. Not a terminal: once. Raises GratisError if
    there is none."""
    runs, console = Runs(root, stall_s), Console()
    snapshot = runs.snapshot(name)
    if snapshot is None:
        which = f"run {name}" if name else "run"
        raise GratisError(f"no {which} in {root}: give another --run or --runs")
    if not console.is_terminal:
        console.print(screen(snapshot.status))
        return
    with (
        suppress(KeyboardInterrupt),
        Live(screen(snapshot.status), console=console, screen=True, auto_refresh=False) as live,
    ):
        while True:
            time.sleep(0.5)
            snapshot = runs.snapshot(name) or snapshot
            live.update(screen(snapshot.status), refresh=True)


def screen(run: RunStatus) -> RenderableType:
    head = Text.assemble(
        (plain(run.name), "bold"),
        "  ",
        (run.state, f"bold {COLOURS[run.state]}"),
        f"  {plain(run.reason)}",
        overflow="fold",
    )
    verdict = Text.assemble((run.verdict.title, "bold"), "  ", plain(run.verdict.text))
    parts: list[RenderableType] = [head, verdict, _numbers(run), *_shards(run), _ranks(run)]
    parts += [Text(f"! {plain(warning)}", "yellow") for warning in run.warnings[-3:]]
    return Panel(Group(*parts), title="gratis")


def _numbers(run: RunStatus) -> Table:
    table = Table.grid(padding=(0, 3))
    speed = run.images_per_s
    newest = {one.views: one for one in run.evaluations}
    cells = [
        ("loader could", number(speed.loader, "images/s")),
        ("training takes", number(speed.trainer, "images/s")),
        ("headroom", number(run.headroom, "x", 1)),
        ("data wait", percent(run.data_wait_fraction)),
        ("epoch", f"{run.epoch} of {run.epochs or '?'}"),
        ("step", f"{run.step:,}"),
        ("loss", number(run.loss, "", 3)),
        ("learning rate", number(run.learning_rate, "", 5)),
        *(
            (f"top-1 error, {views} views", percent(one.top1_error))
            for views, one in sorted(newest.items())
        ),
    ]
    for first in range(0, len(cells), 4):
        row = cells[first : first + 4]
        table.add_row(*(Text(label, "dim") for label, _ in row))
        table.add_row(*(Text(value, "bold") for _, value in row))
    return table


def _shards(run: RunStatus) -> list[RenderableType]:
    if run.shards is None or run.shards.state == "finished":
        return []
    shards = run.shards
    rate = number(shards.images_per_s, "images/s")
    text = f"shards {shards.state}: {shards.done:,} of {shards.total:,}, {rate}"
    return [Text(text), ProgressBar(total=max(shards.total, 1), completed=shards.done, width=40)]


def _ranks(run: RunStatus) -> Table:
    columns = "rank state device step loader/s trained/s wait queue".split()
    table = Table(*columns, "slowest stage", box=None)
    for rank in run.ranks:
        shares = {stage: share or 0.0 for stage, share in rank.stages}
        stage = max(shares, key=lambda name: shares[name])
        table.add_row(
            str(rank.rank),
            rank.state,
            Text(plain(rank.device or "")),
            f"{rank.step:,}",
            number(rank.images_per_s.loader),
            number(rank.images_per_s.trainer),
            percent(rank.data_wait_fraction),
            "" if rank.queue_depth is None else f"{rank.queue_depth}/{rank.queue_capacity}",
            f"{stage} {shares[stage]:.0%}" if shares[stage] else "",
        )
    return table


def plain(text: str) -> str:
    """Text from files, without what a terminal would act on: control characters as Python writes
    them."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda match: repr(match[0])[1:-1], text)


def number(value: float | None, unit: str = "", digits: int = 0) -> str:
    return "-" if value is None else f"{value:,.{digits}f} {unit}".strip()


def percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
