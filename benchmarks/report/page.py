"""The result as a page for people: Markdown, the machine first, a table for each part, what is
missing named."""

from __future__ import annotations

import statistics

from benchmarks.report import ablations
from benchmarks.report.free import GOAL, NOISE
from benchmarks.report.plan import PARTS
from benchmarks.report.results import (
    Entry,
    Result,
    ResultFile,
    Value,
    describe_entry,
    failure,
    format_number,
    result_of,
)
from gratis.train.paper.markdown import table

OTHER_SIZES = (
    "On a GPU these are measured with the network of full width (recipe released, 90 epochs), "
    "batches of 128 to 2048 and more rounds."
)
MORE = (
    "`gratis paper --shards ...` trains longer, draws the paper's figures and puts all into a "
    "report of its own."
)
SPEEDUP = 2.0  # the goal over torchvision's layout

HEADINGS = ("what", "result", "how", "s", "load")


def page(results: ResultFile, missing: dict[str, list[str]]) -> str:
    """missing: by part what a GPU alone could measure; empty on one."""
    lines = [
        "# What this machine can do",
        "",
        "Made by `gratis report`; `report.json` beside it has every single value. Medians with the "
        "extremes of n; s: seconds that measuring took; load: of the machine when it began.",
        "",
    ]
    if missing:
        lines += [
            "**No GPU here: this is the CPU's part of the report, on a smaller network. What needs "
            f"a GPU is named under each part and remains unproven.** {OTHER_SIZES}",
            "",
        ]
    lines += table(("machine", ""), results.machine.items())
    loads = [float(str(e["load"])) for part in results.entries.values() for e in part.values()]
    if loads and max(loads) > 1.5 * float(results.machine.get("cores", "inf")):
        lines += [
            "",
            f"**The machine was busy with other work: its load was {min(loads)} to {max(loads)} "
            "when measurements began. Rates and ratios are not what it can do alone.**",
        ]
    for number, (title, _) in PARTS.items():
        part = str(number)
        lines += ["", f"## {part}. {title}", ""]
        entries = results.entries.get(part, {})
        if part not in results.complete:
            state, verb = ("Not complete", "goes on") if entries else ("Not measured", "does it")
            lines += [f"{state}: `gratis report --part {part}` {verb}.", ""]
        rows = (
            (name, describe_entry(own), *(str(own[key]) for key in ("command", "wall_s", "load")))
            for name, own in entries.items()
        )
        if entries:
            lines += [*summary(part, entries), *table(HEADINGS, rows)]
        if part == "5":
            lines += ["", *ablations.table(results), MORE]
        if missing.get(part):
            lines += ["", f"Needs a GPU, not measured here: {'; '.join(missing[part])}."]
    return "\n".join(lines) + "\n"


def summary(part: str, entries: dict[str, Entry]) -> list[str]:
    """The lines of a part that people look for."""
    results = {name: result_of(own) for name, own in entries.items() if "error" not in own}
    failed = [name for name, entry in entries.items() if failure(entry)]
    lines = [f"Failed: {', '.join(failed)}.", ""] if failed else []
    if part == "3":
        lines += _speedup(results)
    if part == "4" and results:
        lines += _free_ratio(results)
    return lines


def _free_ratio(results: dict[str, Result]) -> list[str]:
    best, ratio = _best({name: _median(own["free ratio"]) for name, own in results.items()})
    disagree = [name for name, own in results.items() if own["agree"] != "yes"]
    agreed = f"does not agree for {', '.join(disagree)}" if disagree else "agrees with every one"
    goal = _goal(ratio, GOAL)
    if ratio > 1 + NOISE:
        goal = "above 1 the machine was busy: nothing is decided"
    verdict = f"The status page's live verdict {agreed}."
    return [f"Best: {best}, {format_number(ratio)} ({goal}). {verdict}", ""]


def _speedup(results: dict[str, Result]) -> list[str]:
    """The fastest variant over torchvision's layout at the same batch, and where the rest of the
    roofline went."""
    ratios = {}
    for name, result in results.items():
        base = results.get(f"torchvision's layout, batch {name.rpartition(' ')[2]}")
        if name.startswith("ours, ") and base is not None:
            ratios[name] = _median(result["images/s"]) / _median(base["images/s"])
    if not ratios:
        return []
    best, ratio = _best(ratios)
    lines = [
        f"Best against torchvision's layout at the same batch: {best}, {ratio:.2f} times "
        f"({_goal(ratio, SPEEDUP)})."
    ]
    if share := results[best].get("share of the matrix rate"):
        lines += [f"It reaches {share:.0%} of this machine's matrix rate."]
    prefix = "where the time goes, "
    accounts = {name: own for name, own in results.items() if name.startswith(prefix)}
    lines += ["The rest went here:"] if accounts else []
    for name, account in accounts.items():
        kinds, busy = account["by kind"], account.get("device busy, share of the time")
        worked = "" if busy is None else f"; the device worked {busy:.0%} of the time"
        lines += [f"{name.removeprefix(prefix)}, eager: {kinds}{worked}."]
    return [" ".join(lines), ""]


def _goal(reached: float, goal: float) -> str:
    return f"goal of {goal:g} {'met' if reached >= goal else 'missed'}"


def _best(ratios: dict[str, float]) -> tuple[str, float]:
    return max(ratios.items(), key=lambda each: each[1])


def _median(value: Value) -> float:
    assert isinstance(value, list)
    return float(statistics.median(value))
