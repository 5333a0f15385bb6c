"""The results as a page for people: Markdown, the machine first, a table for each section, what is
missing named."""

from __future__ import annotations

import statistics

from benchmarks.report.plan import SECTIONS, Measurement
from benchmarks.report.results import Entry, ResultFile, describe_entry, failure, result_of
from benchmarks.report.setting import Setting
from gratis.train.paper.markdown import table

# what the README claims, of a GPU: row's value, goal, in words
GOALS = {
    "free ratio": (0.99, "training from the loader over training on one batch that stays"),
    "over stock DALI": (1.3, "the loader's best route over stock DALI in the same run"),
}
HEADINGS = ("what", "result", "s", "load")


def page(results: ResultFile, rows: list[Measurement], setting: Setting) -> str:
    """rows: all that belong to the report, measured or not."""
    lines = ["# What this machine can do", ""]
    lines += [
        "Made by `gratis report`; `report.json` beside it has every single value. Medians with the "
        "extremes of n; s: seconds that measuring took; load: of the machine when it began.",
        "",
    ]
    if not setting.cuda:
        lines += [
            "**This is the rehearsal on a CPU: the smallest form of each measurement, on a "
            "narrower network and few images. Its rates mean nothing; that it runs does.**",
            "",
        ]
    lines += table(("machine", ""), results.machine.items())
    failed = [key for key, entry in results.entries.items() if failure(entry)]
    lines += ["", f"**Failed: {'; '.join(failed)}.**"] if failed else []
    lines += ["", *goals(results.entries)]
    for letter, title in SECTIONS.items():
        own = [row for row in rows if row.section == letter]
        known = [(row, results.entries.get(row.key)) for row in own]
        if own:
            lines += ["", f"## {letter}. {title}", ""]
            lines += table(HEADINGS, [_cells(row, entry) for row, entry in known])
    return "\n".join(lines) + "\n"


def _cells(row: Measurement, entry: Entry | None) -> tuple[str, ...]:
    if entry is None:
        return row.name, f"not measured, takes about {row.seconds:.0f} s", "", ""
    return row.name, describe_entry(entry), str(entry["wall_s"]), str(entry.get("load", ""))


def goals(entries: dict[str, Entry]) -> list[str]:
    """A line for each goal of which something was measured: the best row's median."""
    lines = []
    for value, (goal, words) in GOALS.items():
        found = {
            key: statistics.median(numbers)
            for key, entry in entries.items()
            if "result" in entry and isinstance(numbers := result_of(entry).get(value), list)
        }
        if found:
            best = max(found, key=lambda key: found[key])
            met = "reached" if found[best] >= goal else "missed"
            lines.append(f"- {words}: at best {found[best]:.3g} ({best}); {goal:g} is {met}")
    return lines
