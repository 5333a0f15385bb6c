"""The result as a page for people: Markdown, one table a part, the machine first, what is missing said."""

from __future__ import annotations

import statistics

from train.report.book import Book, Result, described, number

TITLES = {
    "1": "Correctness on the device",
    "2": "The loader alone",
    "3": "Training alone",
    "4": "The free ratio: training from the loader over training from batches that stay on the device",
    "5": "Whole trainings",
}


def page(book: Book) -> str:
    lines = ["# What this machine can do", ""]
    lines += ["Made by `python -m train.report`; `report.json` beside it has every single value. Medians with the "
              "extremes of n.", ""]  # fmt: skip
    if book.machine.get("gpu") == "none":
        lines += ["**No GPU here: this is the CPU's part of the report, on a smaller network.**", ""]
    lines += ["| machine | |", "|---|---|"] + [f"| {name} | {cell(value)} |" for name, value in book.machine.items()]
    loads = [float(str(e["load"])) for part in book.entries.values() for e in part.values() if "load" in e]
    if loads and max(loads) > 1.5 * float(book.machine.get("cores", "inf")):
        lines += ["", f"**The machine was busy with other work: its load was {min(loads)} to {max(loads)} when "
                  "measurements began.**"]  # fmt: skip
    for part, title in TITLES.items():
        lines += ["", f"## {part}. {title}", ""]
        entries = book.entries.get(part)
        if not entries:
            lines += [f"Not measured: `python -m train.report --part {part}`."]
            continue
        if part in book.unfinished:
            lines += [f"Not complete: `python -m train.report --part {part}` goes on.", ""]
        lines += summary(part, entries)
        lines += ["| what | result | how | s |", "|---|---|---|---|"]
        for name, entry in entries.items():
            lines.append(
                f"| {cell(name)} | {cell(described(entry))} | {cell(str(entry['command']))} | {entry['wall_s']} |"
            )
    return "\n".join(lines) + "\n"


def cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def summary(part: str, entries: dict[str, dict[str, object]]) -> list[str]:
    """The one line of a part that people look for."""
    results = {name: entry["result"] for name, entry in entries.items() if isinstance(entry.get("result"), dict)}
    failed = [name for name, entry in entries.items() if "error" in entry]
    lines = [f"Failed: {', '.join(failed)}.", ""] if failed else []
    if part == "3" and (best := _speedup(results)):
        lines += [best, ""]
    if part == "4" and results:
        ratios = {name: _median(result, "free ratio") for name, result in results.items()}
        best_name = max(ratios, key=lambda name: ratios[name])
        disagree = [name for name, result in results.items() if _get(result, "agree") != "yes"]
        agreed = f"does not agree for {', '.join(disagree)}" if disagree else "agrees with every one"
        lines += [f"Best: {best_name}, {number(ratios[best_name])}. The status page's live verdict {agreed}.", ""]
    if part == "5" and results:
        lines += _deltas(results) + _pictures(results)
    return lines


def _speedup(results: dict[str, object]) -> str | None:
    """The fastest variant over torchvision's layout at the same batch."""
    found = {}
    for name, result in results.items():
        if name.startswith("ours, "):
            base = results.get(f"torchvision's layout, batch {name.rpartition(' ')[2]}")
            if base is not None:
                found[name] = _median(result, "images/s") / _median(base, "images/s")
    if not found:
        return None
    best = max(found, key=lambda name: found[name])
    return f"Best against torchvision's layout at the same batch: {best}, {found[best]:.2f} times."


def _deltas(results: dict[str, object]) -> list[str]:
    """Each variant's errors over its seeds, and against the whole network's."""
    from train.report.whole import PAPER

    by_variant: dict[str, list[Result]] = {}
    for name, result in results.items():
        assert isinstance(result, dict)
        by_variant.setdefault(name.rpartition(", seed ")[0], []).append(result)
    lines = [
        "| variant | seeds | top-1 error, % | top-5 error, % | against whole, top-1 | the paper's, top-1 / top-5 |"
    ]
    lines.append("|---|---|---|---|---|---|")
    whole = by_variant.get("whole")
    for name, runs in by_variant.items():
        tops = [[float(str(one[f"error {top}, %"])) for one in runs if f"error {top}, %" in one]
                for top in ("top1_10view", "top5_10view")]  # fmt: skip
        if not tops[0]:
            continue
        base = [float(str(one["error top1_10view, %"])) for one in whole or [] if "error top1_10view, %" in one]
        delta = f"{statistics.mean(tops[0]) - statistics.mean(base):+.1f}" if base else "?"
        cells = [f"{statistics.mean(each):.1f} [{min(each):.1f}..{max(each):.1f}]" for each in tops]
        lines.append(f"| {name} | {len(runs)} | {' | '.join(cells)} | {delta} | {PAPER.get(name, '')} |")
    return [*lines, ""]


def _pictures(results: dict[str, object]) -> list[str]:
    """Figures 3 and 4 of the paper, of the run that was drawn."""
    from train.report.whole import FIGURES

    drawn = results.get(FIGURES, {})
    assert isinstance(drawn, dict)
    return [line for name, png in drawn.items() for line in (f"![{name}]({png})", "")]


def _get(result: object, key: str) -> object:
    assert isinstance(result, dict)
    return result.get(key)


def _median(result: object, key: str) -> float:
    value = _get(result, key)
    assert isinstance(value, list)
    return float(statistics.median(value))
