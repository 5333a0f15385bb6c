"""Source: the classes of a dataset to be, and a listing of each split's files. How they are found
is the business of imagenet.py, folders.py and webdataset.py beside it; open.py chooses among them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from gratis.dataset import ImageClass
from gratis.errors import GratisError
from gratis.preprocess.sources.listing import Listing


@dataclass(frozen=True, kw_only=True)
class Source:
    """Classes in label order, and a listing for "train" and, where there is one, "val". A label is
    the rank of its class's wnid in sorted order. skipped: a message for each file that is no
    sample."""

    classes: tuple[ImageClass, ...]
    splits: dict[str, Listing]
    skipped: tuple[str, ...]

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
            for row in np.flatnonzero(listing.shared).tolist():
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
        return Source(classes=kept, splits=splits, skipped=self.skipped)
