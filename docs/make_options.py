"""Writes docs/options.md, the reference of every command's options, from the commands' own --help.

.venv/bin/python docs/make_options.py          # docs/options.md anew
.venv/bin/python docs/make_options.py --check  # exit code 1 if it is not what the commands say
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "options.md"
HEAD = """# Options of every command

Made by `.venv/bin/python docs/make_options.py` from what each command prints for `--help`; not
edited by hand. `gratis VERB --help` prints the same. The fields of a recipe have here the defaults
of `released`, which `gratis train --shards FOLDER` takes.
"""


def page() -> str:
    sys.path.insert(0, str(ROOT))
    from benchmarks.command import BENCHMARKS
    from gratis.cli import VERBS
    from gratis.train.recipes import Recipe

    commands = {verb: (purpose, [verb]) for verb, (_, purpose) in VERBS.items() if verb != "bench"}
    commands |= {f"bench {name}": (what, ["bench", name]) for name, (_, what) in BENCHMARKS.items()}
    fields = {"--" + field.name.replace("_", "-") for field in dataclasses.fields(Recipe)}
    commands["train"][1].extend(["--recipe", "released"])
    parts = [HEAD]
    for name, (purpose, words) in commands.items():
        title = f"## gratis {name}\n\n{purpose[0].upper()}{purpose[1:]}.\n"
        parts.append(f"{title}\n{table(words, fields)}")
    return "\n".join(parts)


def table(words: list[str], fields: set[str]) -> str:
    """A row for each option that `gratis WORDS --help` prints; the fields of a recipe in `gratis
    train` alone. There an entry begins two columns in at most, and its text goes on further in."""
    from gratis.cli import run

    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        run([*words, "--help"])
    lines = [line.strip("│|").rstrip() for line in output.getvalue().splitlines()]
    entries: list[list[str]] = []
    for line in lines:
        if re.match(r" {1,2}\S", line) and not re.match(
            r"[ ─-]*(options|positional arguments)?$", line
        ):
            entries.append(re.split(r"\s{2,}", line.strip(), maxsplit=1))
        elif entries and line.startswith("    "):
            entries[-1].append(line.strip())
    rows = ["| option | what |", "|---|---|"]
    repeats = words[0] != "train" and any(name.startswith("--lrn-alpha") for name, *_ in entries)
    for option, *text in entries:
        name = option.split()[0].rstrip(",")
        if not (option.startswith("-h") or (repeats and name in fields)):
            cells = option.replace("{None}|", ""), " ".join(text)
            rows.append("| `{}` | {} |".format(*(cell.replace("|", "\\|") for cell in cells)))
    if repeats:
        rows.append(
            "| the fields of a recipe | as `gratis train` has them, from `--image-size` on |"
        )
    return "\n".join([*rows, ""]) if len(rows) > 2 else "No options.\n"


def main() -> int:
    os.environ |= {"COLUMNS": "1000", "NO_COLOR": "1", "TERM": "dumb"}
    made = page()
    if "--check" in sys.argv[1:]:
        same = PAGE.exists() and PAGE.read_text() == made
        print(f"{PAGE} is {'up to date' if same else 'out of date: make it again without --check'}")
        return int(not same)
    PAGE.write_text(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
