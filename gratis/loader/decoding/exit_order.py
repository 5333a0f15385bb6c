"""At exit all loaders must end before DALI's own exit handler: what is registered later runs
earlier. DALI may be imported at any time, as the engine needs it for a few samples alone."""

from __future__ import annotations

import atexit
from collections.abc import Callable

_ends: list[Callable[[], None]] = []


def run_before_dali_s(end: Callable[[], None]) -> None:
    """At exit, whenever DALI is imported. For one function."""
    if end not in _ends:
        _ends.append(end)
    _register(end)


def dali_is_imported() -> None:
    for end in _ends:
        _register(end)


def _register(end: Callable[[], None]) -> None:
    atexit.unregister(end)
    atexit.register(end)
