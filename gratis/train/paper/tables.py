"""Our numbers beside the paper's Tables 1 and 2: `gratis tables --runs runs`.

Only a run of the unchanged recipe `released` (or, with --init-from, `1 CNN*`) on ILSVRC2012 itself
stands beside a paper's row; a cell is empty where that was not measured. Every finished run follows
in a table of its own, with the data it was measured on. Markdown on the output, or into --out."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gratis.command_line import parse
from gratis.errors import GratisError
from gratis.history import outcome, records
from gratis.train.recipes import RECIPES
from gratis.written import written

CLASSES, VALIDATION, TRAINING = 1000, 50_000, 1_281_167  # of ILSVRC2012


@dataclass(frozen=True, kw_only=True)
class Tables:
    """Writes our runs' errors beside the paper's Tables 1 and 2, as Markdown."""

    runs: Path = Path("runs")
    """Folder of all runs."""
    out: Path | None = None
    """File to write to. Default: the terminal."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Errors in %, as printed in the paper; None where it has none."""

    model: str
    data: str
    top1: float | None
    top5: float | None
    test: float | None = None


TABLE1 = (
    Row(model="sparse coding", data="ILSVRC-2010 test", top1=47.1, top5=28.2),
    Row(model="SIFT + FVs", data="ILSVRC-2010 test", top1=45.7, top5=25.7),
    Row(model="CNN", data="ILSVRC-2010 test", top1=37.5, top5=17.0),
)
TABLE2 = (
    Row(model="SIFT + FVs", data="ILSVRC-2012", top1=None, top5=None, test=26.2),
    Row(model="1 CNN", data="ILSVRC-2012", top1=40.7, top5=18.2),
    Row(model="5 CNNs", data="ILSVRC-2012", top1=38.1, top5=16.4, test=16.4),
    Row(model="1 CNN*", data="ILSVRC-2012", top1=39.0, top5=16.6),
    Row(model="7 CNNs*", data="ILSVRC-2012", top1=36.7, top5=15.4, test=15.3),
)
"""Source: specification, section 5. * pretrained on the Fall 2011 release."""


@dataclass(frozen=True, kw_only=True)
class Ours:
    """A finished run. Errors in %, averaged over ten views; centre: of one."""

    run: str
    recipe: str
    epochs: int
    train_images: int
    val_images: int
    classes: int
    pixels: int
    dataset: str
    pretrained: bool
    whole: bool  # all fields are the recipe's own
    top1: float
    top5: float
    centre: float | None

    @property
    def is_ilsvrc2012(self) -> bool:
        return (self.classes, self.val_images, self.train_images) == (CLASSES, VALIDATION, TRAINING)


def main(arguments: list[str]) -> None:
    options = parse(Tables, arguments, "gratis tables")
    text = tables(options.runs)
    if options.out is None:
        print(text, end="")
        return
    with written(options.out, "choose another --out") as draft:
        draft.write_text(text)
    print(options.out)


def tables(runs: Path) -> str:
    if not runs.is_dir():
        raise GratisError(f"--runs {runs} is no folder; train something first, or name its folder")
    ours = [found for path in sorted(runs.iterdir()) if path.is_dir() and (found := read(path))]
    return "\n".join([*_table1(), "", *_table2(ours), "", *_table_of_ours(ours)]) + "\n"


def read(folder: Path) -> Ours | None:
    """None for a run that is not finished, or that had no validation split."""
    if outcome(folder) != "finished":
        return None
    history = records(folder)
    starts = [record for record in history if record["kind"] == "start"]
    evals = {record["views"]: record for record in history if record["kind"] == "eval"}
    if not starts or 10 not in evals:
        return None
    start: dict[str, Any] = starts[-1]
    recipe, ten, one = start["config"]["recipe"], evals[10], evals.get(1)
    return Ours(
        run=folder.name,
        recipe=start["recipe"],
        epochs=start["epochs"],
        train_images=start["train_images"],
        val_images=start["val_images"],
        classes=start["classes"],
        pixels=recipe["image_size"],
        dataset=start["dataset"],
        pretrained=bool(recipe.get("init_from")),
        whole=unchanged(start["recipe"], recipe),
        top1=100 - 100 * ten["top1"],
        top5=100 - 100 * ten["top5"],
        centre=100 - 100 * one["top1"] if one else None,
    )


def unchanged(name: str, recipe: dict[str, Any]) -> bool:
    """Is every field but where it began as the recipe of that name has it?"""
    if name not in RECIPES:
        return False
    own = json.loads(json.dumps(dataclasses.asdict(RECIPES[name])))
    free = {"init_from", "conv_rate"} if recipe.get("init_from") else set()
    return all(own.get(field) == value for field, value in recipe.items() if field not in free)


def _table1() -> list[str]:
    lines = [
        "**Table 1.** Errors in % on the test set of ILSVRC-2010 (its labels are public; nothing "
        "here measures it).",
        "",
    ]
    lines += [
        "| model | top-1, paper | top-5, paper | top-1, ours | top-5, ours |",
        "|---|---|---|---|---|",
    ]
    return lines + [
        f"| {row.model} | {_cell(row.top1)} | {_cell(row.top5)} |  |  |" for row in TABLE1
    ]


def _table2(ours: list[Ours]) -> list[str]:
    lines = ["**Table 2.** Errors in % on ILSVRC-2012 validation and test.", ""]
    lines += [
        "| model | top-1 val, paper | top-5 val, paper | top-5 test, paper | top-1 val, ours | "
        "top-5 val, ours | run |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in TABLE2:
        best = counterpart(row.model, ours)
        cells = [row.model, _cell(row.top1), _cell(row.top5), _cell(row.test)]
        cells += [_cell(best.top1), _cell(best.top5), best.run] if best else ["", "", ""]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "\\* pretrained on the Fall 2011 release of ImageNet; of ours, on what `--init-from` "
        "names.",
    ]
    if not any(run.is_ilsvrc2012 for run in ours):
        lines += [
            "",
            "No run here is on ILSVRC-2012: `make shards SRC=...`, then `make train SHARDS=... "
            "GPUS=2`.",
        ]
    return lines


def counterpart(model: str, ours: list[Ours]) -> Ours | None:
    """The best of our runs that is what the paper's row says: the unchanged recipe on
    ILSVRC-2012."""
    wanted = {"1 CNN": False, "1 CNN*": True}.get(model)
    fitting = [
        run
        for run in ours
        if run.is_ilsvrc2012 and run.recipe == "released" and run.whole and run.pretrained == wanted
    ]
    return min(fitting, key=lambda run: run.top1, default=None)


def _table_of_ours(ours: list[Ours]) -> list[str]:
    lines = [
        "**Runs here**, errors in % over ten views; not to be held against the tables above but "
        "on the same data.",
        "",
    ]
    lines += [
        "| run | recipe | epochs | top-1 | top-5 | top-1, centre | measured on |",
        "|---|---|---|---|---|---|---|",
    ]
    for run in ours:
        recipe = run.recipe if run.whole else f"{run.recipe}, changed"
        cells = [
            run.run,
            recipe,
            str(run.epochs),
            _cell(run.top1),
            _cell(run.top5),
            _cell(run.centre),
        ]
        lines.append("| " + " | ".join([*cells, measured_on(run)]) + " |")
    return lines if ours else ["No run here is finished and evaluated yet."]


def measured_on(run: Ours) -> str:
    name = "ILSVRC-2012" if run.is_ilsvrc2012 else f"dataset {run.dataset[:8]}"
    told = (
        f"{name}: {run.val_images:,} validation images of {run.classes:,} classes at "
        f"{run.pixels} px"
    )
    return f"{told}, trained on {run.train_images:,}"


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
