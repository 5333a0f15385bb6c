"""From what a table says of an image's class to the class's number."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from gratis.dataset import ImageClass
from gratis.errors import GratisError
from gratis.preprocess.sources.labels import MOST_CLASSES, whole_number
from gratis.preprocess.sources.listing import Listing


class ClassNumbers:
    """texts: what the training split says, where that is text: the classes are these, sorted, or,
    if all are whole numbers, these numbers. None: it says numbers. names: the classes' by number,
    where they are known. A text is taken without blanks around it."""

    def __init__(self, texts: Iterable[str] | None, names: tuple[str, ...] | None = None) -> None:
        self._names = names
        self._numbers: dict[str, int] | None = None
        known = sorted({text.strip() for text in texts or () if not _is_none(text)})
        if any(whole_number(text) is None for text in known):
            self._numbers = {text: number for number, text in enumerate(known)}

    def number(self, value: object, place: str) -> int:
        """GratisError, which begins with the place, for what is no class."""
        if isinstance(value, str):
            value = value.strip()
        if self._numbers is not None and isinstance(value, str) and value in self._numbers:
            return self._numbers[value]
        most = len(self._names or ()) or MOST_CLASSES
        if self._numbers is None:
            number = value if type(value) is int else whole_number(value)
            if number is not None and 0 <= number < most:
                return number
            value = value if number is None else number
        raise GratisError(f"{place}: {_wrong(value, most)}")

    def classes(self, labels: NDArray[np.int32]) -> tuple[ImageClass, ...]:
        """In the order of their numbers. labels: of the training split."""
        if self._numbers is not None:
            return tuple(ImageClass(wnid=t, words=t, ilsvrc_id=None) for t in self._numbers)
        names = self._names or [f"{number:06d}" for number in range(int(labels.max()) + 1)]
        # a class is its number, padded so that sorting keeps the order
        return tuple(
            ImageClass(wnid=f"{number:06d}", words=name, ilsvrc_id=None)
            for number, name in enumerate(names)
        )


def refuse_unknown(split: str, listing: Listing, classes: int) -> None:
    """GratisError for the first sample of a class that the training split has not."""
    if len(unknown := np.flatnonzero(listing.label >= classes)):
        item = listing.item(int(unknown[0]))
        raise GratisError(
            f"{item.source} of the split {split} has label {item.label}, the training split has "
            f"{classes:,} classes; relabel or remove such samples"
        )


def _is_none(value: object) -> bool:
    """Whether it is what tables have where there is no label."""
    return value is None or value == "" or whole_number(value) == -1


def _wrong(value: object, most: int) -> str:
    if _is_none(value):
        return (
            f"it has no label ({value}), as test splits have; leave the file out, or go without "
            f"labels: --unlabelled"
        )
    if isinstance(value, str):
        return f"label {value[:50]!r} is no class of the training split; relabel or remove it"
    return f"label {str(value)[:50]} is no class number from 0 to {most - 1:,}; relabel it"
