"""Mutation testing: careless changes, one at a time, that the quick tests should see.

    python -m benchmarks.mutants loader/plan.py train/schedule.py

mutmut, which is installed in a temporary folder, makes the changes in a copy of the checkout, and
runs for each the quick tests that reach it: those of the module's room and of the ground floor, or
the ones given by --tests. The table counts, of each module, the mutants and those that some test
saw; then come the survivors, as differences. Named equivalents (`equivalent_mutants.txt`), which
compute the same, are not counted, nor is `strict` of a zip, which changes nothing that is right,
nor the type in a `cast`. Exit code 1 below --least.

What is compiled cannot be changed this way: the engine's C, and functions that Numba compiles,
which are left as they are."""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
MUTMUT = "mutmut==3.8.1"
EQUIVALENTS = Path(__file__).with_name("equivalent_mutants.txt")
QUICK = "not starts and not slow"
# of the whole tree as text: they would see every change, and say nothing of it
OF_THE_TREE = ("tests/test_house.py", "tests/test_readme.py", "tests/test_package.py")
SEEN = (1, 3, 36, 24, -24, 152, 255)  # a test failed, or never came to an end
UNREACHED = (5, 33)
NOT_THIS = "# pragma: no mutate"  # from "start" to "end"
DIGITS = "3816952740"  # in which order a sample takes in mutants, by the last of their number
CAST_TYPE = re.compile(r"\bcast\((None|[\w.]+(\[[^\]]*\])?), ")
ZIP_STRICT = re.compile(r"(\bzip\(.+?), (strict=\w+)?\)")


class Outcome(NamedTuple):
    """Of one module's mutants: how many, how many no test saw, and these by name."""

    module: str
    mutants: int
    equivalent: int
    survivors: list[str]
    unreached: int

    @property
    def share(self) -> float:
        return 1 - len(self.survivors) / self.mutants if self.mutants else 1.0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("modules", nargs="+", help="below gratis/, as loader/plan.py")
    parser.add_argument("--tests", nargs="+", help="test files or folders instead of the room's")
    parser.add_argument("--least", type=float, default=0.0, help="share that must be seen, 0 to 1")
    parser.add_argument(
        "--tenths", type=int, choices=range(1, 11), default=10, help="of the mutants, as a sample"
    )
    parser.add_argument("--most", type=int, help="mutants of each module, evenly over its lines")
    parser.add_argument("--only", nargs="+", help="names of mutants, as survivors are printed")
    parser.add_argument("--jobs", type=int, default=1, help="mutants tried at a time")
    parser.add_argument("--quiet", action="store_true", help="the table without the survivors")
    options = parser.parse_args()
    modules = [f"gratis/{name.removeprefix('gratis/')}" for name in options.modules]
    for module in modules:
        if not (ROOT / module).is_file():
            parser.error(f"there is no {module}")
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy, tool = Path(folder) / "gratis", Path(folder) / "mutmut"
        copy_checkout(copy)
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tool)]
        needs = (MUTMUT, "click", "coverage", "libcst", "setproctitle", "textual", "pyyaml")
        subprocess.run([*pip, *needs, "rich", "typing_extensions"], check=True)
        configure(copy, modules, options.tests or tests_of(modules))
        for module in modules:
            leave_compiled(copy / module)
        wanted = [f"*.{name}" for name in options.only or []] or sample(options.tenths)
        if options.most:
            wanted = drawn(copy, modules, options.most, tool)
        ran = subprocess.run(
            [*command(tool), "run", "--max-children", str(options.jobs), *wanted],
            cwd=copy,
            env=environment(tool),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        outcomes = [outcome_of(copy, module, tool) for module in modules]
        if not any(one.mutants for one in outcomes):
            print(ran.stdout.decode(errors="replace").split("\r")[-1][-4000:], file=sys.stderr)
            return 2
        if not options.quiet:
            for one in outcomes:
                for difference in one.survivors:
                    print(difference)
    print(
        "| module | mutants | equivalent | seen | reached by no quick test |\n|---|---|---|---|---|"
    )
    for one in outcomes:
        seen = f"{one.mutants - len(one.survivors)}, {one.share:.0%}"
        print(f"| {one.module} | {one.mutants} | {one.equivalent} | {seen} | {one.unreached} |")
    return int(any(one.share < options.least for one in outcomes))


def sample(tenths: int) -> list[str]:
    """Patterns of mutants' names, by the last digit of the number: none for all."""
    return [f"*__mutmut_*{digit}" for digit in DIGITS[:tenths]] if tenths < 10 else []


GENERATE = """
import sys
sys.path.append(sys.argv[1])
from mutmut import __main__ as mutmut
mutmut.set_mutant_under_test("mutant_generation")
mutmut.makedirs("mutants", exist_ok=True)
mutmut.copy_src_dir()
mutmut.copy_also_copy_files()
mutmut.create_mutants(1)
"""


def drawn(copy: Path, modules: list[str], most: int, tool: Path) -> list[str]:
    """Names of so many of each module's mutants, at even distances in the order of its lines.
    mutmut finds those made here, and does not make them again."""
    make = [sys.executable, "-c", GENERATE, str(tool)]
    subprocess.run(make, cwd=copy, env=environment(tool), stdout=subprocess.DEVNULL, check=True)
    found = []
    for module in modules:
        meta = json.loads((copy / "mutants" / f"{module}.meta").read_text())
        names = list(meta["exit_code_by_key"])
        count = min(most, len(names))
        found += [names[(2 * index + 1) * len(names) // (2 * count)] for index in range(count)]
    return found


def tests_of(modules: list[str]) -> list[str]:
    """The rooms' folders of tests, and what tests the ground floor."""
    rooms = {Path(module).parts[1] for module in modules if len(Path(module).parts) > 2}
    ground = {str(path.relative_to(ROOT)) for path in (ROOT / "tests").glob("test_*.py")}
    return sorted({f"tests/{room}" for room in rooms} | ground.difference(OF_THE_TREE))


def copy_checkout(copy: Path) -> None:
    """The files that git knows or would add, and the compiled engine."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True).stdout.decode()
    engine = [str(path.relative_to(ROOT)) for path in (ROOT / "gratis").rglob("*.so")]
    for name in [*filter(None, names.split("\0")), *engine]:
        source, target = ROOT / name, copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            target.symlink_to(os.readlink(source))
        elif source.is_file():
            target.write_bytes(source.read_bytes())


def configure(copy: Path, modules: list[str], tests: list[str]) -> None:
    beside = sorted(path.name for path in copy.iterdir() if path.name not in ("gratis", ".git"))
    # under mutmut a test runs many times in one process
    ignored = [f"--ignore={name}" for name in OF_THE_TREE]
    lines = {
        "source_paths": ["gratis"],
        "only_mutate": modules,
        "also_copy": [name for name in beside if not (copy / name).is_symlink()],
        "pytest_add_cli_args_test_selection": tests,
        "pytest_add_cli_args": ["-m", QUICK, "-p", "no:cacheprovider", *ignored],
    }
    section = "".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items())
    with (copy / "pyproject.toml").open("a") as file:
        file.write(f"\n[tool.mutmut]\n{section}use_git_change_detection = false\n")


def leave_compiled(module: Path) -> None:
    """Marks the functions that Numba compiles, so that mutmut leaves them alone."""
    text = module.read_text()
    lines = text.splitlines()
    names = re.findall(r"\bjit\([^()]*\)\((\w+)\)", text)
    for node in reversed(ast.parse(text).body):
        if not isinstance(node, ast.FunctionDef):
            continue
        decorators = [ast.unparse(one) for one in node.decorator_list]
        if node.name in names or any("jit" in one for one in decorators):
            lines.insert(node.end_lineno or 0, f"{NOT_THIS} end")
            first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
            lines.insert(first - 1, f"{NOT_THIS} start")
    module.write_text("\n".join(lines) + "\n")


def command(tool: Path) -> list[str]:
    start = f"import sys; sys.path.append({str(tool)!r}); from mutmut.__main__ import cli; cli()"
    return [sys.executable, "-c", start]


def environment(tool: Path) -> dict[str, str]:
    # a process that is forked has none of its parent's threads
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(tool), "GRATIS_MUTANTS": "1"}


def outcome_of(copy: Path, module: str, tool: Path) -> Outcome:
    meta = copy / "mutants" / f"{module}.meta"
    found = json.loads(meta.read_text())["exit_code_by_key"] if meta.exists() else {}
    codes = {name: code for name, code in found.items() if code is not None}  # of the sample
    survivors, equivalents = [], 0
    named = known_equivalents(module)
    alive = [name for name, code in codes.items() if code not in SEEN]
    for name, difference in zip(alive, differences(copy, module, alive, tool), strict=True):
        change = changed_lines(difference)
        if named[change] or is_idle(change):
            named[change] -= 1
            equivalents += 1
        else:
            reached = "reached by no quick test" if codes[name] in UNREACHED else "survived"
            survivors.append(f"{module}: {name.rpartition('.')[2]}: {reached}\n{change}\n")
    unreached = sum(code in UNREACHED for code in codes.values())
    return Outcome(module, len(codes) - equivalents, equivalents, survivors, unreached)


SHOW = """
import json, sys
sys.path.append(sys.argv[1])
from mutmut.mutation.diff_apply import get_diff_for_mutant
names = json.load(sys.stdin)
json.dump([get_diff_for_mutant(name, path=sys.argv[2]) for name in names], sys.stdout)
"""


def differences(copy: Path, module: str, names: list[str], tool: Path) -> list[str]:
    """Of the mutants of a module, all by one process: `mutmut show` takes a second for each."""
    shown = subprocess.run(
        [sys.executable, "-c", SHOW, str(tool), module],
        cwd=copy,
        env=environment(tool),
        input=json.dumps(names),
        capture_output=True,
        text=True,
        check=True,
    )
    found: list[str] = json.loads(shown.stdout)
    return found


def changed_lines(difference: str) -> str:
    """Of a difference in the form of diff -u, what goes and what comes."""
    lines = difference.splitlines()
    return "\n".join(
        line[0] + " " + line[1:].strip()
        for line in lines
        if line[:1] in "+-" and not line.startswith(("+++", "---"))
    )


def is_idle(change: str) -> bool:
    """Whether it only drops a check that a zip's columns are equally long, or changes a type that
    `cast` tells a type checker."""
    lines = [CAST_TYPE.sub("cast(", line[2:]) for line in change.splitlines()]
    return len({ZIP_STRICT.sub(r"\1)", line) for line in lines}) == 1


def known_equivalents(module: str) -> Counter[str]:
    """Of a module, from paragraphs of the file: its name, a reason, then the change."""
    found: Counter[str] = Counter()
    text = EQUIVALENTS.read_text() if EQUIVALENTS.exists() else ""
    for paragraph in text.split("\n\n"):
        name, _, rest = paragraph.strip().partition("\n")
        if name.partition(":")[0] == module:
            found[rest] += 1
    return found


if __name__ == "__main__":
    sys.exit(main())
