"""Commands of ours as lists of arguments."""

from __future__ import annotations

import dataclasses

from gratis.train.recipes import Recipe


def flags(**options: object) -> list[str]:
    """`--name value` of each option; of a tuple all values, of True and False `--name` and
    `--no-name`. None is left out."""
    words: list[str] = []
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            words += [f"--{flag}", *map(str, value if isinstance(value, tuple) else (value,))]
    return words


def recipe_flags(recipe: Recipe, base: Recipe) -> list[str]:
    """The options of `gratis train` that make `recipe` out of `base`."""
    own, default = (dataclasses.asdict(one) for one in (recipe, base))
    changed = {name: value for name, value in own.items() if value != default[name]}
    return flags(**{name: "None" if value is None else value for name, value in changed.items()})
