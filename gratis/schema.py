"""Whether values read from JSON have the types that their dataclass declares."""

from __future__ import annotations

import dataclasses
import functools
from reprlib import repr as shortened
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints


@functools.cache
def _hints(declaring: Any) -> dict[str, Any]:
    return get_type_hints(declaring)


def check_types(value: Any) -> None:
    """TypeError where a field of a dataclass, or of one inside it, holds another type than it
    declares."""
    declaring: Any = type(value)
    for name, hint in _hints(declaring).items():
        if not _fits(held := getattr(value, name), hint):
            raise TypeError(f"{name} is {shortened(held)}")


def _fits(value: Any, hint: Any) -> bool:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if isinstance(value, hint):
            check_types(value)
        return isinstance(value, hint)
    if (origin := get_origin(hint)) is None:
        return type(value) is hint  # True is no number
    of = get_args(hint)
    if origin is Literal:
        return type(value) is str and value in of
    if origin is UnionType:
        return any(_fits(value, one) for one in of)
    if origin is dict:
        return type(value) is dict and all(
            _fits(k, of[0]) and _fits(v, of[1]) for k, v in value.items()
        )
    return type(value) is tuple and all(_fits(one, of[0]) for one in value)
