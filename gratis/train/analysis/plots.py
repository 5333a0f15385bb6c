"""What the figures share: colours, style, a figure, writing a PNG. Matplotlib without pyplot: no
windows, no global state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from gratis.atomic import atomic_output

BLUE, ORANGE, RED, GREEN = "#3b6fb6", "#d9822b", "#c0392b", "#3a8f5c"
GREY, DARK = "#8a8a8a", "#444444"
DPI = 150
STYLE: Any = {
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "legend.frameon": False,
    "figure.facecolor": "white",
}


def style() -> Any:
    """The context in which figures are drawn and saved."""
    return rc_context(STYLE)


def new_figure(
    width: float, height: float, rows: int = 1, columns: int = 1, **grid: Any
) -> tuple[Figure, Any]:
    """A figure of so many inches, and its axes: one, or an array [rows, columns]."""
    figure = Figure(figsize=(width, height), layout="constrained")
    one = rows == columns == 1
    return figure, figure.subplots(rows, columns, squeeze=one, **grid)


def bare(axes: Any) -> None:
    """No ticks and no frame: for pictures."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def save(figure: Figure, path: Path) -> Path:
    """Writes a PNG; GratisError where that cannot be, with the one of before as it was."""
    with atomic_output(path, "choose another --out") as draft:
        figure.savefig(draft, dpi=DPI, format="png")
    return path
