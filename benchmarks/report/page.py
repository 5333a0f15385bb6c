"""The result as a page for people: Markdown, the machine first, a table for each part, what is
missing named."""

from __future__ import annotations

import statistics

from benchmarks.report.ablations import table
from benchmarks.report.results import Entry, ResultFile, describe_entry, failure, format_number

TITLES = {
    "1": "Correctness on the device",
    "2": "The loader alone",
    "3": "Training alone",
    "4": "The free ratio: training from the loader over training from batches that stay on the "
    "device",
    "5": "Trainings of the whole network, and with one part switched off",
}
OTHER_SIZES = (
    "On a GPU these are measured with the network of full width (recipe released, 90 epochs), "
    "batches of 128 to 2048 and more rounds."
)
MORE = (
    "`gratis paper --shards ...` trains longer, draws the paper's figures and puts all into a "
    "report of its own."
)
GOALS = {"speedup": 2.0, "free ratio": 0.99}


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
    lines += ["| machine | |", "|---|---|"]
    lines += [f"| {name} | {cell(value)} |" for name, value in results.machine.items()]
    loads = [float(str(e["load"])) for part in results.entries.values() for e in part.values()]
    if loads and max(loads) > 1.5 * float(results.machine.get("cores", "inf")):
        lines += [
            "",
            f"**The machine was busy with other work: its load was {min(loads)} to {max(loads)} "
            "when measurements began. Rates and ratios are not what it can do alone.**",
        ]
    for part, title in TITLES.items():
        lines += ["", f"## {part}. {title}", ""]
        entries = results.entries.get(part, {})
        if part not in results.complete:
            state, verb = ("Not complete", "goes on") if entries else ("Not measured", "does it")
            lines += [f"{state}: `gratis report --part {part}` {verb}.", ""]
        if entries:
            lines += summary(part, entries)
            lines += ["| what | result | how | s | load |", "|---|---|---|---|---|"]
        for name, entry in entries.items():
            words = (name, describe_entry(entry), str(entry["command"]))
            cells = [*map(cell, words), str(entry["wall_s"]), str(entry["load"])]
            lines.append(f"| {' | '.join(cells)} |")
        if part == "5":
            lines += ["", *([table(results)] if table(results) else []), MORE]
        if missing.get(part):
            lines += ["", f"Needs a GPU, not measured here: {'; '.join(missing[part])}."]
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def summary(part: str, entries: dict[str, Entry]) -> list[str]:
    """The lines of a part that people look for."""
    from benchmarks.report.free import NOISE

    every = {name: entry.get("result") for name, entry in entries.items()}
    results: dict[str, object] = {n: one for n, one in every.items() if isinstance(one, dict)}
    failed = [name for name, entry in entries.items() if failure(entry)]
    lines = [f"Failed: {', '.join(failed)}.", ""] if failed else []
    if part == "3":
        lines += _speedup(results)
    if part == "4" and results:
        ratios = {name: _median(result, "free ratio") for name, result in results.items()}
        best = max(ratios, key=lambda name: ratios[name])
        disagree = [name for name, result in results.items() if _get(result, "agree") != "yes"]
        agreed = "agrees with every one"
        if disagree:
            agreed = f"does not agree for {', '.join(disagree)}"
        goal = _goal(ratios[best], "free ratio")
        if ratios[best] > 1 + NOISE:
            goal = "above 1 the machine was busy: nothing is decided"
        verdict = f"The status page's live verdict {agreed}."
        lines += [f"Best: {best}, {format_number(ratios[best])} ({goal}). {verdict}", ""]
    return lines


def _goal(reached: float, name: str) -> str:
    return f"goal of {GOALS[name]:g} {'met' if reached >= GOALS[name] else 'missed'}"


def _speedup(results: dict[str, object]) -> list[str]:
    """The fastest variant over torchvision's layout at the same batch, and where the rest of the
    roofline went."""
    ratios = {}
    for name, result in results.items():
        base = results.get(f"torchvision's layout, batch {name.rpartition(' ')[2]}")
        if name.startswith("ours, ") and base is not None:
            ratios[name] = _median(result, "images/s") / _median(base, "images/s")
    if not ratios:
        return []
    best = max(ratios, key=lambda name: ratios[name])
    lines = [
        f"Best against torchvision's layout at the same batch: {best}, {ratios[best]:.2f} times "
        f"({_goal(ratios[best], 'speedup')})."
    ]
    share = _get(results[best], "share of the matrix rate")
    if isinstance(share, float):
        lines += [f"It reaches {share:.0%} of this machine's matrix rate."]
    accounts = [name for name in results if name.startswith("where the time goes")]
    lines += ["The rest went here:"] if accounts else []
    for name in accounts:
        parts = [str(_get(results[name], "by kind"))]
        busy = _get(results[name], "device busy, share of the time")
        parts += [f"the device worked {busy:.0%} of the time"] if isinstance(busy, float) else []
        lines += [f"{name.removeprefix('where the time goes, ')}, eager: {'; '.join(parts)}."]
    return [" ".join(lines), ""]


def _get(result: object, key: str) -> object:
    assert isinstance(result, dict)
    return result.get(key)


def _median(result: object, key: str) -> float:
    value = _get(result, key)
    assert isinstance(value, list)
    return float(statistics.median(value))
