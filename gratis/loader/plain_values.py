"""Configurations from plain values, as JSON and TOML hold them: `LoaderConfig.from_dict`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

import torch

from gratis.errors import GratisError
from gratis.loader.augmentations import OPERATIONS
from gratis.loader.mixing import CutMix, MixUp, RandomErasing

TYPES: dict[str, Any] = {
    kind.__name__: kind for kind in (*OPERATIONS, MixUp, CutMix, RandomErasing)
}
DTYPES = ("float32", "float16", "bfloat16", "uint8")


def plain_fields(values: Any, names: Collection[str]) -> dict[str, Any]:
    """Of a configuration whose fields have these names. GratisError for another name."""
    if not isinstance(values, Mapping):
        raise GratisError(f"a configuration is {values!r:.80}; it must be fields and values")
    refuse_others(values, names, "LoaderConfig")
    given = {name: plain_value(value) for name, value in values.items()}
    # another value: LoaderConfig says what it may be
    if given.get("dtype") in DTYPES:
        given["dtype"] = getattr(torch, given["dtype"])
    return given


def plain_value(value: Any) -> Any:
    """Lists as tuples; {"type": "MixUp", "alpha": 0.2} as MixUp(alpha=0.2)."""
    if isinstance(value, (list, tuple)):
        return tuple(map(plain_value, value))
    if not isinstance(value, Mapping):
        return value
    arguments = {name: plain_value(each) for name, each in value.items() if name != "type"}
    if "type" not in value:
        return arguments
    name = value["type"]
    if not isinstance(name, str) or name not in TYPES:
        raise GratisError(f"type is {name!r}; it may be {', '.join(TYPES)}")
    refuse_others(arguments, [field.name for field in fields(TYPES[name])], name)
    try:
        return TYPES[name](**arguments)
    except TypeError as error:
        raise GratisError(f"{name}: {error}") from None  # a field without a default is missing


def refuse_others(given: Collection[str], names: Collection[str], owner: str) -> None:
    for name in given:
        if name not in names:
            raise GratisError(f"{owner} has no {name!r}; it has {', '.join(names)}")
