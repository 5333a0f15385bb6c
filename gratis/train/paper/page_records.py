"""What a page of `gratis paper --hours` is made from: its sections, and of each run the evaluation,
the end and the cost.

A file in the run's folder, and one beside --docs (docs/paper.json of docs/paper.md), from which
another machine goes on: its runs are then over, though weights and probabilities stay behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gratis.atomic import atomic_output
from gratis.errors import GratisError
from gratis.history import outcome, records
from gratis.train.paper import costs
from gratis.train.paper.parts import PartResult
from gratis.train.paper.trainings import OVER_FOR_GOOD, last_epoch

HISTORY = "rank-0.jsonl"
STEP = ("kind", "t", "attempt", "epoch", "step", "images", "loss")
WAY_OUT = "make room, or choose other --runs"
Sections = dict[str, PartResult]


def read_sections(path: Path, settings: str) -> Sections:
    """What the last call wrote of each part; empty where there is none that can be read.
    GratisError where the file is of other settings or seeds."""
    content = _content(path)
    if content and content["settings"] != settings:
        other = f"{path} is of {content['settings']}, this is {settings}"
        raise GratisError(f"{other}; name another --docs, or remove that file")
    return {title: PartResult(*section) for title, section in content.get("sections", {}).items()}


def restore_runs(path: Path, runs: Path) -> None:
    """The file's runs as folders that hold their records, where they are not there."""
    for name, lines in _content(path).get("runs", {}).items():
        if Path(name).name == name and not (runs / name).exists():
            (runs / name).mkdir(parents=True)
            for file, own in lines.items():
                (runs / name / Path(file).name).write_text("".join(f"{line}\n" for line in own))


def write(path: Path, settings: str, sections: Sections, runs: Path, prefix: str) -> None:
    """prefix: what the names of the page's runs begin with."""
    folders = sorted(runs.glob(f"{prefix}*"))
    content = {
        "settings": settings,
        "sections": sections,
        "runs": {one.name: _records(one) for one in folders if outcome(one) in OVER_FOR_GOOD},
    }
    with atomic_output(path, WAY_OUT) as draft:
        draft.write_text(json.dumps(content, indent=1) + "\n")


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
        for state, lines, made in content["sections"].values():
            _ = state + made, [line + "" for line in lines]
        _ = {name: [*map(str, own.items())] for name, own in content["runs"].items()}
        _ = content["settings"] + ""
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return {}
    return dict(content)


def _records(folder: Path) -> dict[str, list[str]]:
    """Lines of the run's files, without those that tables of errors, losses and costs do not read.
    Of the last epoch's steps one."""
    history = records(folder)
    step = last_epoch(history)
    kept: dict[object, object] = {"step": {key: step[key] for key in STEP}} if step else {}
    for record in history:
        if record["kind"] in ("eval", "end"):
            kept[record["kind"], record.get("views")] = record
    cost = folder / costs.FILE
    spent = cost.read_text(errors="replace").splitlines() if cost.is_file() else []
    return {HISTORY: [json.dumps(record) for record in kept.values()], costs.FILE: spent}
