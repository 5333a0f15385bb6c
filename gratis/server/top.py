"""The status page for a terminal: a run's state, verdict, rates and ranks, twice a second until q
or Ctrl-C."""

from __future__ import annotations

import os
import re
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
from gratis.server.summaries import user_cache
from gratis.signals import terminate_interrupts
from gratis.verdict import duration, rate

REFRESH_S = 0.5
LEAVE = "q or Ctrl-C: leave"
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
    runs, console = Runs(root, stall_s, user_cache()), Console()
    snapshot = runs.snapshot(name)
    if snapshot is None:
        which = f"run {name}" if name else "run"
        raise GratisError(f"no {which} in {root}: give another --run or --runs")
    if not console.is_terminal:
        console.print(screen(snapshot.status))
        return
    terminate_interrupts()  # the terminal is given back as it was
    first = screen(snapshot.status, LEAVE)  # which imports: nothing may be imported below
    with (
        suppress(KeyboardInterrupt),
        pressed_keys() as pressed,
        Live(first, console=console, screen=True, auto_refresh=False) as live,
    ):
        live.refresh()
        while "q" not in pressed(REFRESH_S).lower():
            snapshot = runs.snapshot(name) or snapshot
            live.update(screen(snapshot.status, LEAVE), refresh=True)


@contextmanager
def pressed_keys() -> Iterator[Callable[[float], str]]:
    """A function that waits for so many seconds, and returns the keys that were pressed. None ever
    are where the standard input is no terminal. Ctrl-C is a KeyboardInterrupt as before."""
    file, terminal = sys.stdin.fileno(), sys.stdin.isatty()

    def pressed(seconds: float) -> str:
        if not terminal:
            time.sleep(seconds)
            return ""
        ready, _, _ = select.select([file], [], [], seconds)
        return os.read(file, 64).decode(errors="replace") if ready else ""

    before = termios.tcgetattr(file) if terminal else []
    try:
        if terminal:
            tty.setcbreak(file)
        yield pressed
    finally:
        if terminal:
            termios.tcsetattr(file, termios.TCSADRAIN, before)


def screen(run: RunStatus, hint: str = "") -> RenderableType:
    """hint: at the top right, where a terminal of few lines has it too."""
    head = Text.assemble(
        (plain(run.name), "bold"),
        "  ",
        (run.state, f"bold {COLOURS[run.state]}"),
        f"  {plain(run.reason)}",
        overflow="fold",
    )
    verdict = Text.assemble((run.verdict.title, "bold"), "  ", plain(run.verdict.text))
    parts: list[RenderableType] = [head, verdict, *_startup(run), _bars(run), _numbers(run)]
    parts += [*_shards(run), _ranks(run)]
    parts += [Text(f"! {plain(warning)}", "yellow") for warning in run.warnings[-3:]]
    title = f"gratis top  ·  {hint}" if hint else "gratis top"
    return Panel(Group(*parts), title=title, title_align="left")


def _startup(run: RunStatus) -> list[Text]:
    """Unless the verdict is of it alone."""
    if run.startup is None or run.verdict.kind == "starting":
        return []
    return [Text(f"start-up, in no rate: {run.startup.text}", "dim")]


def _bars(run: RunStatus) -> Table:
    """How far the epoch and the run are."""
    table = Table.grid(padding=(0, 2))
    epoch = min(run.epoch + 1, run.epochs or run.epoch + 1)
    left = "" if run.remaining_s is None else f"{duration(run.remaining_s)} to go"
    for label, done, total, note in (
        (f"epoch {epoch} of {run.epochs or '?'}", run.epoch_step or 0, run.steps_per_epoch, ""),
        (f"step {run.step:,} of {number(run.total_steps)}", run.step, run.total_steps, left),
    ):
        bar = ProgressBar(total=max(total or 1, 1), completed=done if total else 0, width=30)
        table.add_row(label, bar, f"{done / total:.0%}" if total else "", note)
    return table


def _numbers(run: RunStatus) -> Table:
    table = Table.grid(padding=(0, 3))
    speed = run.images_per_s
    newest = {one.views: one for one in run.evaluations}
    cells = [
        ("loader could", images_per_s(speed.loader)),
        ("training takes", images_per_s(speed.trainer)),
        ("headroom", number(run.headroom, "x", 1)),
        ("data wait", percent(run.data_wait_fraction)),
        ("GPU use", percent(run.gpu_busy)),
        ("GPU memory", gigabytes(run.gpu_memory_bytes, run.gpu_memory_total_bytes)),
        ("process memory", gigabytes(run.rss_bytes)),
        ("decoder fallback", fallback(run)),
        ("loss", number(run.loss, "", 3)),
        ("learning rate", number(run.learning_rate, "", 5)),
        *(
            (f"top-1 error, {views} view{'s' * (views > 1)}", percent(one.top1_error))
            for views, one in sorted(newest.items())
        ),
        ("best epoch", "-" if run.best is None else str(run.best.epoch)),
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
    speed = images_per_s(shards.images_per_s)
    text = f"shards {shards.state}: {shards.done:,} of {shards.total:,}, {speed}"
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


def images_per_s(value: float | None) -> str:
    return "-" if value is None else rate(value)


def gigabytes(used: float | None, total: float | None = None) -> str:
    if used is None:
        return "-"
    return f"{used / 1e9:.2f}" + (f" of {total / 1e9:.1f} GB" if total else " GB")


def fallback(run: RunStatus) -> str:
    """Of the images that the engine was given, how many another decoder decoded."""
    given = run.native_images + run.fallback_images
    return f"{run.fallback_images:,} of {given:,}" if given else "-"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
