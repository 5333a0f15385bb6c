"""img2dataset's `files` form as a source: each image has a .json beside it, and its label there.

    SRC/00000/000000003.jpg  000000003.json  000000003.txt     save_additional_columns=["label"]
    SRC/00000.parquet  00000_stats.json                        beside each folder; not read

Its forms webdataset and parquet are other sources (webdataset.py, tables.py).
"""

from __future__ import annotations

import os

from tqdm import tqdm

from gratis import addresses
from gratis.dataset import ImageClass
from gratis.errors import GratisError
from gratis.preprocess.sources.class_numbers import ClassNumbers, refuse_unknown
from gratis.preprocess.sources.folders import some, split_folders
from gratis.preprocess.sources.labels import ClassNames, Label, NoLabelError, read_label
from gratis.preprocess.sources.listing import (
    OTHER_IMAGE_NAME,
    QUIET_S,
    ListingBuilder,
    is_hidden,
    refuse_empty,
)
from gratis.preprocess.sources.source import Source, SourceOptions
from gratis.preprocess.sources.splits import SplitName, choose, unread_note
from gratis.preprocess.sources.tar import Member
from gratis.preprocess.sources.val_labels import is_image

STATS = "_stats.json"
WAY_OUT = "let img2dataset write one (save_additional_columns), or go without labels: --unlabelled"


def open_image_json(root: str, options: SourceOptions) -> Source | None:
    """Listings of the images and their labels; None where img2dataset wrote no folders."""
    found, notes = _find_folders(root)
    if not found:
        return None
    chosen, unread = choose(root, found, options.val_from)
    if unread:
        notes.append(unread_note(unread, f"{found[unread][0]} ..."))
    builders = {split: ListingBuilder((), official=True) for split in chosen}
    names = None if options.unlabelled else ClassNames()
    for split, folders in chosen.items():
        for folder in tqdm(folders, "listing", delay=QUIET_S, leave=False, disable=None):
            _list_folder(folder, builders[split], names)
    refuse_empty(root, builders)
    classes = _classes(builders["train"], names) if names else ()
    splits = {}
    for split, builder in builders.items():
        builder.wnids = tuple(entry.wnid for entry in classes)
        splits[split] = builder.build()
        notes += builder.notes
        if classes:
            refuse_unknown(split, splits[split], len(classes))
    skipped = [message for builder in builders.values() for message in builder.skipped]
    return Source(classes=classes, splits=splits, skipped=tuple(skipped), notes=tuple(notes))


def _find_folders(root: str) -> tuple[dict[SplitName, list[str]], list[str]]:
    """The folders that img2dataset wrote, by split: in SRC, or in the splits' folders there; and
    messages about the folders beside them."""
    if not addresses.is_folder(root):
        return {}, []
    folders, notes = _written(root)
    if folders:
        return {"train": folders}, notes
    found: dict[SplitName, list[str]] = {}
    splits, notes = split_folders(root)
    for split, folder in splits.items():
        folders, beside = _written(folder)
        if folders:
            found[split] = folders
            notes += beside
        else:
            notes.append(f"not read, as img2dataset wrote no images there: {folder}")
    return found, notes


def _written(root: str) -> tuple[list[str], list[str]]:
    """The folders that img2dataset has finished in `root`, and a message about the others."""
    listed = [entry for entry in addresses.entries(root) if not is_hidden(entry.name)]
    names = {entry.name for entry in listed}
    folders = [entry.name for entry in listed if entry.is_folder]
    done = [name for name in folders if f"{name}{STATS}" in names]
    others = [f"{name}/" for name in folders if name not in done]
    note = f"not read, as no <folder>{STATS} lies beside: {some(others)} in {root}"
    return [addresses.join(root, name) for name in done], [note] if others else []


def _list_folder(folder: str, builder: ListingBuilder, names: ClassNames | None) -> None:
    """names: None where labels are not to be read."""
    builder.containers.append(folder)
    listed = addresses.entries(folder)
    sizes = {entry.name: entry.size for entry in listed if not entry.is_folder}
    for entry in listed:
        if not is_image(entry):
            if OTHER_IMAGE_NAME.fullmatch(entry.name):
                builder.leave_out(entry.name)
            continue
        label = -1
        if names:
            try:
                found = _read_label(folder, entry.name, sizes)
            except NoLabelError as error:
                raise GratisError(f"{error}; {WAY_OUT}") from None
            names.add(found, entry.name)
            label = found.number
        builder.add(entry.name, -1, entry.size, label)


def _read_label(folder: str, name: str, sizes: dict[str, int]) -> Label:
    key = os.path.splitext(name)[0]
    beside = f"{key}.json"
    if beside not in sizes:
        raise NoLabelError(f"{folder}: {name[:200]!r} has no label: {beside[:200]!r} is not there")
    with addresses.Bytes(addresses.join(folder, beside)) as file:
        return read_label(file, folder, key, [Member(beside, 0, file.size)])


def _classes(builder: ListingBuilder, names: ClassNames) -> tuple[ImageClass, ...]:
    told, labels = names.names(), builder.labels
    words = tuple(told.get(number, f"{number:06d}") for number in range(int(labels.max()) + 1))
    return ClassNumbers(None, words).classes(labels)
