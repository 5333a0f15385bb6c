"""Kaggle's copy of ILSVRC as a source: "ImageNet Object Localization Challenge", unpacked.

    SRC/ILSVRC/Data/CLS-LOC/train/<wnid>/*.JPEG     SRC may also be the folder ILSVRC itself, or
    SRC/ILSVRC/Data/CLS-LOC/val/*.JPEG              CLS-LOC
    SRC/ILSVRC/Data/CLS-LOC/test/*.JPEG             has no published labels: never read
    SRC/LOC_synset_mapping.txt                      "n01440764 tench, Tinca tinca": names and order
    SRC/LOC_val_solution.csv                        "ILSVRC2012_val_00048981,n03995372 85 1 499 272"

The two files beside ILSVRC may lie in any of these folders. The validation images may also have
been sorted into class folders; then their names are not looked up.
"""

from __future__ import annotations

import os

import numpy as np
from tqdm import tqdm

from gratis import addresses
from gratis.dataset import ImageClass
from gratis.errors import GratisError
from gratis.preprocess.sources.folders import (
    list_beside_classes,
    list_class_folder,
    open_class_folders,
)
from gratis.preprocess.sources.listing import QUIET_S, Listing, ListingBuilder, is_hidden
from gratis.preprocess.sources.source import Source, SourceOptions
from gratis.preprocess.sources.val_labels import (
    SOLUTION,
    list_labelled_folder,
    read_solution,
    text_lines,
)

MAPPING = "LOC_synset_mapping.txt"
IMAGES = ("ILSVRC", "Data", "CLS-LOC")


def open_kaggle(root: str, options: SourceOptions) -> Source | None:
    """The classes, and the listings of train and val; None where no folder is called CLS-LOC."""
    images = _find_images(root)
    if images is None:
        return None
    if options.unlabelled:
        return open_class_folders(images, options)
    test = f"{images}/test"
    if options.val_from == "test":
        raise GratisError(f"--val-from test: {test} has no labels, they were never published")
    classes = _classes(images)
    wnids = tuple(entry.wnid for entry in classes)
    train = ListingBuilder(wnids, official=True)
    _list_classes(f"{images}/train", train)
    builders = {"train": train}
    if addresses.is_folder(f"{images}/val"):
        builders["val"] = ListingBuilder(wnids, official=True)
        _list_val(images, builders["val"])
    splits = {split: builder.build() for split, builder in builders.items()}
    _refuse_empty_class(images, splits["train"])
    skipped = [message for builder in builders.values() for message in builder.skipped]
    notes = [message for builder in builders.values() for message in builder.notes]
    if not _look_for(images, MAPPING):
        notes.append(f"classes have no names but their wnids, as {MAPPING} is not there")
    if addresses.is_folder(test):
        notes.append(f"test: not read, {test}: the labels of its images were never published")
    return Source(classes=classes, splits=splits, skipped=tuple(skipped), notes=tuple(notes))


def _find_images(root: str) -> str | None:
    """The folder CLS-LOC: SRC itself, or below it."""
    root = root.rstrip("/") if addresses.is_url(root) else os.path.abspath(root)
    if os.path.basename(root) == IMAGES[-1]:
        return root
    for depth in range(len(IMAGES)):
        path = "/".join((root, *IMAGES[depth:]))
        if addresses.is_folder(path):
            return path
    return None


def _classes(images: str) -> tuple[ImageClass, ...]:
    """The mapping's, or, where there is none, those that train has a folder of."""
    if mapping := _look_for(images, MAPPING):
        return _read_mapping(mapping)
    folder = f"{images}/train"
    listed = addresses.entries(folder) if addresses.is_folder(folder) else []
    wnids = [entry.name for entry in listed if entry.is_folder and not is_hidden(entry.name)]
    if not wnids:
        raise GratisError(f"{images} has no class folders in train; unpack it again")
    return tuple(ImageClass(wnid=wnid, words=wnid, ilsvrc_id=None) for wnid in wnids)


def _find_file(images: str, name: str) -> str:
    if path := _look_for(images, name):
        return path
    raise GratisError(
        f"{images} is Kaggle's copy of ILSVRC, and {name} is neither in it nor above; put it there"
    )


def _look_for(images: str, name: str) -> str | None:
    """The file of this name in CLS-LOC, or up to three folders above."""
    folder = images
    for _ in range(len(IMAGES) + 1):
        if addresses.is_file(path := f"{folder}/{name}"):
            return path
        folder = folder.rpartition("/")[0]
    return None


def _read_mapping(path: str) -> tuple[ImageClass, ...]:
    rows = [line.partition(" ") for line in text_lines(path)]
    classes = [ImageClass(wnid=wnid, words=words, ilsvrc_id=None) for wnid, _, words in rows]
    wnids = [entry.wnid for entry in classes]
    if wnids != sorted(set(wnids)) or not wnids:
        raise GratisError(f"{path} is no list of classes in the order of wnids; get it again")
    return tuple(classes)


def _list_classes(folder: str, builder: ListingBuilder) -> None:
    """Adds the images of the class folders."""
    labels = {wnid: label for label, wnid in enumerate(builder.wnids)}
    listed = addresses.entries(folder) if addresses.is_folder(folder) else []
    listed = [entry for entry in listed if not is_hidden(entry.name)]
    for entry in tqdm(listed, "listing", delay=QUIET_S, leave=False, disable=None):
        path = addresses.join(folder, entry.name)
        if not entry.is_folder:
            builder.containers.append(folder)
            list_beside_classes(entry, builder)
        elif entry.name not in labels:
            raise GratisError(f"{path} is no class of {MAPPING}; remove it, or get both again")
        else:
            list_class_folder(path, labels[entry.name], builder)


def _refuse_empty_class(images: str, listing: Listing) -> None:
    counts = np.bincount(listing.label, minlength=len(listing.wnids))
    if missing := [listing.wnids[label] for label in np.flatnonzero(counts == 0)]:
        raise GratisError(
            f"{images}/train has no images of {len(missing):,} of the {len(counts):,} classes in "
            f"{MAPPING}, {missing[0]} for one; unpack it again, or take those lines out"
        )


def _list_val(images: str, builder: ListingBuilder) -> None:
    folder = f"{images}/val"
    if any(entry.is_folder and entry.name in builder.wnids for entry in addresses.entries(folder)):
        _list_classes(folder, builder)
    else:
        labels = read_solution(_find_file(images, SOLUTION), builder.wnids)
        list_labelled_folder(folder, labels, builder)
