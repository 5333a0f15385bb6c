"""`--config FILE` of `gratis preview` and `gratis explain`: a loader's configuration, as training
reads it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gratis.errors import GratisError
from gratis.loader.config import LoaderConfig

PARTS = {"train": "train", "val": "validation"}  # of a recipe, by split


def read_config(path: Path, split: str, **changes: Any) -> LoaderConfig:
    """Of a JSON file of LoaderConfig's fields, or of a recipe's (examples/recipes), which has those
    of each split; with other values for some of them. GratisError if it cannot be read, or says
    what cannot be."""
    advice = "give a JSON file of LoaderConfig's fields"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise GratisError(f"--config {path}: {error.strerror}; {advice}") from None
    except ValueError as error:
        raise GratisError(f"--config {path} is no JSON ({error}); {advice}") from None
    part = PARTS.get(split, split)
    if isinstance(values, dict) and isinstance(values.get(part), dict):
        values = values[part]
    try:
        return LoaderConfig.from_dict(values | changes if isinstance(values, dict) else values)
    except GratisError as error:
        raise GratisError(f"--config {path}: {error}") from None
