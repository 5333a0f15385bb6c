"""Which split a name says: by a word of it, wherever the word stands.

    imagenet1k-validation-00.tar, ILSVRC2012_val, val01, devSet    "val"
    Training, imagenet1k-train-0000.tar                            "train"
    retrieval, medieval, trainer, contest, 00000.tar               None
    train-clean-eval.tar                                           an error

A word ends at whatever is no letter (a digit too), and where a capital follows a small letter.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Literal, TypeVar

from gratis.errors import GratisError

SplitName = Literal["train", "val", "test"]
Files = TypeVar("Files")

SPLITS: tuple[SplitName, ...] = ("train", "val", "test")
SPLIT_WORDS: dict[str, SplitName] = {
    "train": "train",
    "val": "val",
    "dev": "val",
    "eval": "val",
    "test": "test",
}
LONG_FORMS = {
    "training": "train",
    "valid": "val",
    "validation": "val",
    "evaluation": "eval",
    "testing": "test",
}
WORD = re.compile(r"[^\W\d_]+")
CAPITAL = re.compile(r"(?<=[a-z])(?=[A-Z])")


def split_of(path: str) -> SplitName | None:
    """The split that the path's last part names; None if it names none. GratisError, which shows
    the path, if it names two."""
    words = _split_words(path)
    if len({SPLIT_WORDS[word] for word in words}) > 1:
        named = " and ".join(repr(word) for word in dict.fromkeys(words))
        raise GratisError(
            f"{path!r} has words of two splits in its name, {named}; rename it with the one it is "
            f"of, or move it elsewhere"
        )
    return SPLIT_WORDS[words[0]] if words else None


def divide(paths: Iterable[str]) -> dict[SplitName, list[str]]:
    """The paths of one folder by split, in their order; all are "train" where none names a split.
    So are mere numbers (00000.tar) beside names of other splits.

    GratisError where one names no split beside those that do, where one names two, where some hold
    "train" inside a word alone, and where two of the same split name it by words that may mean two:
    'dev' and 'eval'."""
    divided: dict[SplitName, list[str]] = {}
    unnamed: list[str] = []
    for path in paths:
        split = split_of(path)
        (divided.setdefault(split, []) if split else unnamed).append(path)
    for same in divided.values():
        _refuse_two_words(same)
    if divided:
        named = next(iter(divided.values()))[0]
        for path in unnamed:
            if "train" in divided or WORD.search(_stem(path)):
                raise GratisError(
                    f"{path!r} names no split, and {os.path.basename(named)!r} beside it does; "
                    f"rename it with train, val or test in its name, or move it elsewhere"
                )
    elif glued := _glued(unnamed):
        raise GratisError(
            f"{glued[0]!r} may be of the training split, and {os.path.basename(glued[1])!r} beside "
            f"it of another; set the splits' names off: a-train-0.tar, a-val-0.tar"
        )
    if unnamed:
        divided["train"] = unnamed
    return {split: divided[split] for split in SPLITS if split in divided}


def choose(
    root: str, found: Mapping[SplitName, Files], val_from: SplitName
) -> tuple[dict[str, Files], SplitName | None]:
    """Of what was found for each split, what becomes "train" and "val", in this order; and the
    split that is not read, if there is one. Nothing is trained on but "train".

    GratisError where there is no "train", and where val_from is "test" and there is none."""
    if "train" not in found:
        named = " and ".join(split for split in SPLITS if split in found)
        raise GratisError(
            f"{root} holds the split {named} alone; put the training split beside it, with train "
            f"in its name"
        )
    if val_from == "test" and "test" not in found:
        raise GratisError(f"--val-from test: {root} has no split test; leave it out")
    chosen = {"train": found["train"]}
    if val_from in found:
        chosen["val"] = found[val_from]
    other: SplitName = "val" if val_from == "test" else "test"
    return chosen, other if other in found else None


def unread_note(split: SplitName, what: str) -> str:
    """The message about the split that is not read."""
    way = "; --val-from test makes it the validation split" if split == "test" else ""
    return f"{split}: not read, {what}{way}"


def _glued(paths: list[str]) -> tuple[str, str] | None:
    """Of names that name no split, one with "train" inside a word, and one without; None unless
    both are there: imagenettrain.tar and imagenetval.tar."""
    train = ["train" in _stem(path).lower() for path in paths]
    if not any(train) or all(train):
        return None
    return paths[train.index(True)], paths[train.index(False)]


def _stem(path: str) -> str:
    """The path's last part, without .tar."""
    return re.sub(r"(?i)\.tar$", "", os.path.basename(path.rstrip("/")))


def _split_words(path: str) -> list[str]:
    """The words of the path's last part that name a split, each as in SPLIT_WORDS."""
    name = CAPITAL.sub(" ", _stem(path))
    words = (word.lower().removesuffix("set") for word in WORD.findall(name))
    return [word for long in words if (word := LONG_FORMS.get(long, long)) in SPLIT_WORDS]


def _refuse_two_words(paths: list[str]) -> None:
    """GratisError for the first of these paths of one split that has no word in common with the
    first path."""
    words = _split_words(paths[0])
    for path in paths[1:]:
        if set(words).isdisjoint(other := _split_words(path)):
            raise GratisError(
                f"{paths[0]!r} names the split {SPLIT_WORDS[words[0]]} by {words[0]!r}, "
                f"{os.path.basename(path)!r} by {other[0]!r}: are they one? rename them alike, or "
                f"move one elsewhere"
            )
