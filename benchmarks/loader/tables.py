"""What `benchmarks.loader.bench` prints, also of a run that was not finished:

python -m benchmarks.loader.tables RECORDS    # the file that --records named; whole rounds alone"""

from __future__ import annotations

import json
import operator
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.loader.peers.table import STAGES

LIMITS = ("crop", "huffman")  # of bare libjpeg-turbo

Key = tuple[str, str]  # work, or "shards"; loader
Record = dict[str, float]
Records = dict[Key, list[Record]]


def report(records: Records, title: str) -> None:
    """Prints a table for each work that was measured."""
    console = Console(width=150)
    for work in dict.fromkeys(work for work, _ in records):
        its = {name: each for (one, name), each in records.items() if one == work}
        if work == "shards":
            console.print(_shard_table(its, title))
            continue
        loaders = {name: each for name, each in its.items() if name not in (*STAGES, *LIMITS)}
        console.print(_loader_table(loaders, f"{work}: {title}"))
        if work == "crop":
            console.print(_stages(its))


def whole_rounds(path: Path) -> tuple[Records, int]:
    """What was measured in every round that is complete, and how many are."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    keys: dict[int, set[Key]] = defaultdict(set)
    for line in lines:
        keys[line["round"]].add((line["work"], line["name"]))
    whole = [number for number, its in keys.items() if its == keys[1]]
    records: Records = defaultdict(list)
    for line in sorted(lines, key=lambda line: int(line["round"])):
        if line["round"] in whole:
            records[line["work"], line["name"]].append(line)
    return records, len(whole)


def _loader_table(records: dict[str, list[Record]], title: str) -> Table:
    """Ratios are of ours over the row's, round by round."""
    columns = ("", "images/s", "CPU s per 1,000", "ours: CPU", "rate", "MB", "MB")
    table = Table(*columns, title=title)
    for name in sorted(records, key=lambda name: _median(records[name], "cost")):
        its = records[name]
        cells = [_spread(its, "rate", ",.0f"), _spread(its, "cost", ".3f")]
        for key in ("cost", "rate", "megabytes"):
            ratios = _ratios(records["ours"], its, key) if "ours" in records else []
            cells.append(_range(ratios, ".2f") if ratios else "")
        table.add_row(name, *cells, f"{_median(its, 'megabytes'):,.0f}")
    return table


def _ratios(mine: list[Record], its: list[Record], key: str) -> list[float]:
    return [a[key] / b[key] for a, b in zip(mine, its, strict=True)]


def _shard_table(records: dict[str, list[Record]], title: str) -> Table:
    table = Table("", "CPU s per 1,000", "bytes", "ours: CPU", "bytes", title=f"shards: {title}")
    for name, its in records.items():
        ratios = (_range(_ratios(records["ours"], its, key), ".4f") for key in ("cost", "bytes"))
        table.add_row(name, _spread(its, "cost", ".3f"), _spread(its, "bytes", ",.0f"), *ratios)
    return table


def _stages(records: dict[str, list[Record]]) -> Table:
    """Each stage's CPU seconds, by subtraction within a round."""
    title = "where our time goes, beside bare libjpeg-turbo"
    table = Table("stage", "CPU s per 1,000", "ours over it", title=title)
    costs = {name: [record["cost"] for record in each] for name, each in records.items()}
    rows = {"whole": costs["ours"]}
    if costs.keys() >= STAGES.keys():
        read, decode = costs["read"], costs["decode"]
        rows = {
            "read": read,
            "decode, finish and hand-over": list(map(operator.sub, costs["ours"], read)),
            "whole": costs["ours"],
            "beside it, DALI's decode alone": list(map(operator.sub, decode, read)),
        }
    for name in LIMITS:
        if name in costs:
            rows[f"libjpeg-turbo of this system: {name}"] = costs[name]
    for stage, values in rows.items():
        ratios = [*map(operator.truediv, costs["ours"], values)]
        table.add_row(stage, _range(values, ".3f"), _range(ratios, ".2f"))
    return table


def _median(records: list[Record], key: str) -> float:
    return statistics.median(record[key] for record in records)


def _spread(records: list[Record], key: str, form: str) -> str:
    return _range([record[key] for record in records], form)


def _range(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} [{min(values):{form}}..{max(values):{form}}]"


if __name__ == "__main__":
    measured, count = whole_rounds(Path(sys.argv[1]))
    report(measured, f"n = {count} alternating rounds")
