"""Our numbers beside the paper's Tables 1 and 2: `gratis tables --runs runs`.

Only a run of the unchanged recipe `released` (or, with --init-from, `1 CNN*`) on ILSVRC2012 itself
stands beside a paper's row; a cell is empty where that was not measured. Every finished run follows
in a table of its own, with the data it was measured on. Markdown on the output, or into --out."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from gratis.atomic import atomic_output
from gratis.command_line import parse
from gratis.errors import GratisError
from gratis.fields import Record
from gratis.history import outcome, records
from gratis.train.paper.markdown import table
from gratis.train.recipes import RECIPES

CLASSES, VALIDATION, TRAINING = 1000, 50_000, 1_281_167  # of ILSVRC2012


@dataclass(frozen=True, kw_only=True)
class Tables:
    """Writes our runs' errors beside the paper's Tables 1 and 2, as Markdown."""

    runs: Path = Path("runs")
    """Folder of all runs."""
    out: Path | None = None
    """File to write to. Default: the terminal."""


TABLE1 = (  # model, top-1, top-5; errors in %, as printed in the paper
    ("sparse coding", "47.1", "28.2"),
    ("SIFT + FVs", "45.7", "25.7"),
    ("CNN", "37.5", "17.0"),
)
TABLE2 = (  # model, top-1 and top-5 of validation, top-5 of the test set
    ("SIFT + FVs", "", "", "26.2"),
    ("1 CNN", "40.7", "18.2", ""),
    ("5 CNNs", "38.1", "16.4", "16.4"),
    ("1 CNN*", "39.0", "16.6", ""),
    ("7 CNNs*", "36.7", "15.4", "15.3"),
)
"""Source: specification, section 5. * pretrained on the Fall 2011 release."""


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """A finished run by its own records: its last start, and its last evaluation by how many
    views."""

    name: str
    start: Record
    evals: dict[int, Record]

    @property
    def recipe(self) -> dict[str, Any]:
        """The fields it was trained with."""
        return cast(dict[str, Any], self.start["config"]["recipe"])

    @property
    def pretrained(self) -> bool:
        return bool(self.recipe.get("init_from"))

    @property
    def is_ilsvrc2012(self) -> bool:
        sizes = tuple(self.start[key] for key in ("classes", "val_images", "train_images"))
        return sizes == (CLASSES, VALIDATION, TRAINING)

    @property
    def unchanged(self) -> bool:
        """Is every field but where it began as the recipe of that name has it?"""
        if self.start["recipe"] not in RECIPES:
            return False
        own = json.loads(json.dumps(dataclasses.asdict(RECIPES[self.start["recipe"]])))
        free = {"init_from", "conv_rate"} if self.pretrained else set()
        return all(
            own.get(name) == value for name, value in self.recipe.items() if name not in free
        )


def main(arguments: list[str]) -> None:
    options = parse(Tables, arguments, "gratis tables")
    text = tables(options.runs)
    if options.out is None:
        print(text, end="")
        return
    with atomic_output(options.out, "choose another --out") as draft:
        draft.write_text(text)
    print(options.out)


def tables(runs: Path) -> str:
    """Markdown. GratisError if there is no such folder."""
    if not runs.is_dir():
        raise GratisError(f"--runs {runs} is no folder; train something first, or name its folder")
    ours = [run for path in sorted(runs.iterdir()) if path.is_dir() and (run := read(path))]
    return "\n".join([*_table1(), "", *_table2(ours), "", *_table_of_ours(ours)]) + "\n"


def read(folder: Path) -> FinishedRun | None:
    """None for a run that is not finished, or that had no validation split."""
    if outcome(folder) != "finished":
        return None
    history = records(folder)
    starts = [record for record in history if record["kind"] == "start"]
    evals: dict[int, Record] = {
        record["views"]: record for record in history if record["kind"] == "eval"
    }
    if not starts or 10 not in evals:
        return None
    return FinishedRun(name=folder.name, start=starts[-1], evals=evals)


def _table1() -> list[str]:
    headings = ("model", "top-1, paper", "top-5, paper", "top-1, ours", "top-5, ours")
    return [
        "**Table 1.** Errors in % on the test set of ILSVRC-2010 (its labels are public; nothing "
        "here measures it).",
        "",
        *table(headings, [(*row, "", "") for row in TABLE1]),
    ]


def _table2(ours: list[FinishedRun]) -> list[str]:
    rows = []
    for row in TABLE2:
        best = counterpart(row[0], ours)
        own = (_error(best, "top1"), _error(best, "top5"), best.name) if best else ("", "", "")
        rows.append((*row, *own))
    paper = ("top-1 val, paper", "top-5 val, paper", "top-5 test, paper")
    lines = [
        "**Table 2.** Errors in % on ILSVRC-2012 validation and test.",
        "",
        *table(("model", *paper, "top-1 val, ours", "top-5 val, ours", "run"), rows),
        "",
        "\\* pretrained on the Fall 2011 release of ImageNet; of ours, on what `--init-from` "
        "names.",
    ]
    if not any(run.is_ilsvrc2012 for run in ours):
        how = "`gratis shards --src ...`, then `gratis train --shards ... --gpus 2`"
        lines += ["", f"No run here is on ILSVRC-2012: {how}."]
    return lines


def counterpart(model: str, ours: list[FinishedRun]) -> FinishedRun | None:
    """The best of our runs that matches the paper's row: the unchanged recipe on
    ILSVRC-2012."""
    wanted = {"1 CNN": False, "1 CNN*": True}.get(model)
    fitting = [
        run
        for run in ours
        if run.is_ilsvrc2012 and run.start["recipe"] == "released" and run.unchanged
        if run.pretrained == wanted
    ]
    return max(fitting, key=lambda run: float(run.evals[10]["top1"]), default=None)


def _table_of_ours(ours: list[FinishedRun]) -> list[str]:
    if not ours:
        return ["No run here is finished and evaluated yet."]
    rows = []
    for run in ours:
        recipe = f"{run.start['recipe']}{'' if run.unchanged else ', changed'}"
        errors = (_error(run, "top1"), _error(run, "top5"), _error(run, "top1", views=1))
        rows.append((run.name, recipe, str(run.start["epochs"]), *errors, measured_on(run)))
    headings = ("run", "recipe", "epochs", "top-1", "top-5", "top-1, centre", "measured on")
    return [
        "**Runs here**, errors in % over ten views; not to be held against the tables above but "
        "on the same data.",
        "",
        *table(headings, rows),
    ]


def measured_on(run: FinishedRun) -> str:
    start = run.start
    name = "ILSVRC-2012" if run.is_ilsvrc2012 else f"dataset {start['dataset'][:8]}"
    val = f"{start['val_images']:,} validation images of {start['classes']:,} classes"
    size = f"{run.recipe['image_size']} px, trained on {start['train_images']:,}"
    return f"{name}: {val} at {size}"


def _error(run: FinishedRun, top: str, views: int = 10) -> str:
    """In %; empty where it was not evaluated by so many views."""
    return f"{100 - 100 * run.evals[views][top]:.1f}" if views in run.evals else ""
