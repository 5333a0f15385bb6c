"""The ablation's table: errors by setting and seed as rows, in Markdown and in JSON."""

from __future__ import annotations

import dataclasses
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gratis.atomic import atomic_output
from gratis.dataset import Manifest
from gratis.train.paper.costs import Cost, words
from gratis.train.paper.differences import RULE, difference, shown, verdict
from gratis.train.paper.markdown import table
from gratis.train.paper.switches import SWITCHES
from gratis.train.recipes import Recipe

WHOLE = "whole"
ERRORS = ("top-1", "top-5")
DIFFERENCES = ("top-1 difference", "top-5 difference")
SIGNS = ("as in the paper", "against the paper", "not told from 0")
LOSSES = "loss, training / validation"
BESIDE = ("paper's", "on", "top-1 beside the paper's")
HEADINGS = ("", "n", *ERRORS, LOSSES, *DIFFERENCES, *BESIDE)


class Errors(NamedTuple):
    """Of a run's last evaluation, in per cent. losses: of training in the last epoch, with dropout
    and on altered images, and of the validation images' centre view; None: not on record."""

    top1: float
    top5: float
    losses: tuple[float, float] | None = None


ErrorTable = dict[str, dict[int, Errors]]  # by setting, by seed


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """What was measured on what. rates: the factors that were taken of settings that choose one."""

    manifest: Manifest
    recipe_name: str
    whole: Recipe
    results: ErrorTable
    rates: dict[str, float]
    cost: Cost


def write(folder: Path, ablation: Ablation) -> Path:
    """Writes ablation.md and ablation.json; the path of the first."""
    rows = [row(name, ablation.results) for name in ablation.results]
    manifest = ablation.manifest
    report = {
        "dataset": manifest.hash,
        "train_images": manifest.splits["train"].samples,
        "classes": len(manifest.classes),
        "image_size": manifest.image_size,
        "recipe": ablation.recipe_name,
        "settings": dataclasses.asdict(ablation.whole),
        "rates": ablation.rates,
        "cost": ablation.cost._asdict(),
        "rows": rows,
    }
    texts = {"ablation.json": json.dumps(report, indent=1) + "\n"}
    texts["ablation.md"] = markdown(rows, ablation)
    for name, text in texts.items():
        with atomic_output(folder / name, "choose another --out") as draft:
            draft.write_text(text)
    return folder / "ablation.md"


def row(name: str, results: ErrorTable) -> dict[str, Any]:
    """Errors of a setting by seed, and differences to the whole network's of the same seed, in
    points."""
    own, whole = results[name], results[WHOLE]
    switch = SWITCHES.get(name)
    pairs = [(own[seed], whole[seed]) for seed in own if switch and seed in whole]
    made: dict[str, Any] = {
        "setting": name,
        "words": switch.words if switch else "the whole network",
        "seeds": list(own),
        "top1": [errors.top1 for errors in own.values()],
        "top5": [errors.top5 for errors in own.values()],
        "losses": [errors.losses for errors in own.values() if errors.losses],
        "top1_delta": [one[0] - other[0] for one, other in pairs],
        "top5_delta": [one[1] - other[1] for one, other in pairs],
        "paper": switch.paper if switch else (None, None),
        "paper_on": switch.measured_on if switch else "",
    }
    for key in ("top1", "top5"):
        of_seeds = difference(made[f"{key}_delta"])
        made[f"{key}_difference"] = of_seeds and of_seeds._asdict()
    return made


def markdown(rows: list[dict[str, Any]], ablation: Ablation) -> str:
    manifest, whole = ablation.manifest, ablation.whole
    train, val = (manifest.splits[split].samples for split in ("train", "val"))
    lines = [
        f"Errors in % over ten views of {val:,} validation images, means over n seeds with the "
        "extremes; differences in points to the whole network of the same seed, mean and its "
        f"standard error over the seeds, positive: worse without. {RULE} Losses are means too: of "
        "training in the last epoch, with dropout and on altered images, and of the validation "
        "images' centre view. Where both are about the same, what works against overfitting has "
        "little to gain.",
        f"Measured on {train:,} training images of {len(manifest.classes):,} classes at "
        f"{manifest.image_size} px, recipe {ablation.recipe_name}, crop {whole.crop}, width "
        f"{whole.width:g}, {whole.epochs} epochs. The paper's differences are the full network's "
        "after 90 epochs on 1.2 million images of 1,000 classes: what a small short run shows need "
        "not be theirs.",
        f"The runs took {words(ablation.cost)}.",
        "",
        *table(HEADINGS, map(_cells, rows)),
    ]
    switches = [(name, SWITCHES[name]) for name in ablation.results if name in SWITCHES]
    notes = [(switch.words, switch.why(whole)) for _, switch in switches]
    notes += [
        (
            SWITCHES[name].words,
            f"{rate:g} times the whole network's rate, the best of the first seed's "
            f"at {', '.join(f'{one:g}' for one in sorted(SWITCHES[name].rates))} times",
        )
        for name, rate in ablation.rates.items()
    ]
    lines += ["", *(f"- {about}: {note}." for about, note in notes if note)]
    lines += [f"- {line}." for line in signs(rows)]
    return "\n".join(lines) + "\n"


def signs(rows: list[dict[str, Any]]) -> list[str]:
    """Of what the paper has a number for and that has seeds enough: which signs are the paper's."""
    said = {row["words"]: verdict(difference(row["top1_delta"]), row["paper"][0]) for row in rows}
    of = {what: [name for name, own in said.items() if what in own] for what in SIGNS}
    numbered = {row["words"] for row in rows if row["paper"][0]}
    named = {what: [name for name in names if name in numbered] for what, names in of.items()}
    return [f"{what}: {', '.join(names)}" for what, names in named.items() if names]


def _cells(row: dict[str, Any]) -> list[str]:
    errors = [_spread(row[key]) for key in ("top1", "top5")]
    of_seeds = [difference(row[f"{key}_delta"]) for key in ("top1", "top5")]
    paper = " / ".join(f"{points:g}" for points in row["paper"] if points)
    said = verdict(of_seeds[0], row["paper"][0])
    differences = map(shown, of_seeds)
    return [
        row["words"],
        str(of_seeds[0].n if of_seeds[0] else len(row["seeds"])),
        *errors,
        " / ".join(f"{statistics.mean(each):.2f}" for each in zip(*row["losses"], strict=True)),
        *differences,
        paper,
        row["paper_on"],
        said,
    ]


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    ends = f" [{min(values):.1f}..{max(values):.1f}]" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{ends}"
