"""Source: the classes of a dataset to be, and a listing of each split's files. How they are found
is the business of imagenet.py, folders.py and webdataset.py beside it; open.py chooses among them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gratis.dataset import ImageClass
from gratis.errors import GratisError, printable
from gratis.preprocess.sources.listing import Listing

ValFrom = Literal["val", "test"]
MOST_EXAMPLES = 10  # messages that name an example


@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """What the user wants of a source. val_from: the split of it that becomes "val"."""

    val_from: ValFrom = "val"
    unlabelled: bool = False


DEFAULT = SourceOptions()


@dataclass(frozen=True, kw_only=True)
class Source:
    """Classes in label order, and a listing for "train" and, where there is one, "val". A label is
    the rank of its class's wnid in sorted order; where there are no classes, all labels are -1.

    skipped: a message for each file that is lost, as it should be a sample and cannot be. notes:
    what else was not read, a message for each kind."""

    classes: tuple[ImageClass, ...]
    splits: dict[str, Listing]
    skipped: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def fingerprint(self) -> str:
        """sha256 of classes, names, sizes and labels. Contents are not read: an edit that keeps
        sizes goes unseen."""
        digest = hashlib.sha256()
        for part in [[c.wnid, c.words, c.ilsvrc_id] for c in self.classes]:
            digest.update(repr(part).encode())
        for split, listing in sorted(self.splits.items()):
            digest.update(split.encode())
            for column in (listing.label, listing.size, listing.name_end):
                digest.update(column.astype(column.dtype.newbyteorder("<")).tobytes())
            digest.update(listing.names)
            # keys that come from the archives' names too
            for row in np.flatnonzero(listing.hashed).tolist():
                digest.update(listing.item(row).key.encode())
        return digest.hexdigest()

    def limited(self, classes: int | None, per_class: int | None) -> Source:
        """The first `classes` classes, and of each the first `per_class` images of a split, as they
        are listed."""
        if classes is None and per_class is None:
            return self
        kept = self.classes[:classes]
        splits = {}
        for split, listing in self.splits.items():
            rows = np.flatnonzero(listing.label < len(kept))
            if per_class is not None:
                order = rows[np.argsort(listing.label[rows], kind="stable")]
                labels = listing.label[order]
                position = np.arange(len(order)) - np.searchsorted(labels, labels)  # in its class
                rows = np.sort(order[position < per_class])
            splits[split] = listing.take(rows)
            if not len(rows):  # by --limit-classes, as each class is listed with an image at least
                least = int(listing.label.min()) + 1
                raise GratisError(
                    f"--limit-classes {classes} leaves no image of the split {split}; with {least} "
                    f"there is one; or take {split} out of SRC"
                )
        return dataclasses.replace(self, classes=kept, splits=splits)

    def without_labels(self) -> Source:
        """For official archives, whose keys do not hold the class."""
        splits = {
            split: dataclasses.replace(listing, label=np.full_like(listing.label, -1))
            for split, listing in self.splits.items()
        }
        return dataclasses.replace(self, classes=(), splits=splits)

    def report(self) -> None:
        """Prints what became which split; and, on stderr, what was not read, with at most
        MOST_EXAMPLES examples of what is lost."""
        for split, listing in self.splits.items():
            print(printable(_describe(split, listing)))
        shown = self.skipped[: max(1, MOST_EXAMPLES - len(self.notes))]
        more = len(self.skipped) - len(shown)
        for message in (*self.notes, *shown, *[f"skipped {more:,} more"] * (more > 0)):
            print(printable(message), file=sys.stderr)

    def refuse_lost(self, max_rejects: int) -> None:
        """GratisError if more files are lost than may be."""
        if (lost := len(self.skipped)) > max_rejects:
            files = "1 file is" if lost == 1 else f"{lost:,} files are"
            raise GratisError(
                f"{files} skipped ({self.skipped[0].removeprefix('skipped ')}); mend what is named "
                f"above, or run again with --max-rejects {lost}"
            )


def _describe(split: str, listing: Listing) -> str:
    """One line: "val: 50,000 images in 64 tars, the first SRC/imagenet1k-validation-00.tar"."""
    images = "1 image" if len(listing) == 1 else f"{len(listing):,} images"
    kind = "folder" if len(listing) and listing.offset[0] < 0 else "tar"
    count = len(listing.containers)
    places = f"1 {kind}," if count == 1 else f"{count:,} {kind}s, the first"
    return f"{split}: {images} in {places} {listing.containers[0]}"
