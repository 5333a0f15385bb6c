"""How much memory this process may still take: of the machine, of a container, of a batch system's
job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

GROUPS, OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# of the files with a group's limit and use, and, in its memory.stat, of cache it may drop
Names = tuple[str, str, str]
VERSION_1: Names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
VERSION_2: Names = ("memory.max", "memory.current", "inactive_file")


def available_bytes() -> int:
    """The least of what is free on the machine and in each control group (cgroups(7)) that holds
    this process."""
    return max(0, min([int(psutil.virtual_memory().available), *_left_in_groups()]))


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
