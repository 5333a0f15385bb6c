"""How much memory this process may still take: of the machine, of a container, of a batch system's
job."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

MACHINE = Path("/proc/meminfo")
GROUPS, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# of the files with a group's limit and use, and, in its memory.stat, of cache it may drop
Names = tuple[str, str, str]
VERSION_1: Names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
VERSION_2: Names = ("memory.max", "memory.current", "inactive_file")


def available_bytes() -> int:
    """The least of what is free on the machine and in each control group (cgroups(7)) that holds
    this process. 0 where nothing tells it."""
    return max(0, min([*_left_on_machine(), *_left_in_groups()], default=0))


def _left_on_machine() -> Iterator[int]:
    text = MACHINE.read_text() if MACHINE.exists() else ""
    yield from (1024 * int(kib) for kib in re.findall(r"^MemAvailable:\s+(\d+) kB", text, re.M))


def _left_in_groups() -> Iterator[int]:
    for line in OWN.read_text().splitlines() if OWN.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, names = (GROUPS / "memory", VERSION_1) if controllers else (GROUPS, VERSION_2)
        # in a container perhaps the host's name; its own group is then the root
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(root) and (folder / names[0]).exists():
                yield from _left(folder, names)


def _left(group: Path, names: Names) -> Iterator[int]:
    limit, used, cache = names
    if (most := (group / limit).read_text().strip()) != "max":
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        yield int(most) - int((group / used).read_text()) + int(stat[cache])
