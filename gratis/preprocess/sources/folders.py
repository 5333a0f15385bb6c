"""Folders of images as a source. A split's folder has the split's name as a word of its own
(splits.py).

    SRC/train/<class>/<image>     and, perhaps, SRC/validation/<class>/<image>

With --unlabelled any images below SRC/train or, where no folder names a split, below SRC.
"""

from __future__ import annotations

import os

from tqdm import tqdm

from gratis import addresses
from gratis.dataset import ImageClass
from gratis.errors import GratisError
from gratis.preprocess.sources.imagenet import DEVKIT
from gratis.preprocess.sources.listing import (
    HIDDEN_FILES,
    IMAGE_NAME,
    QUIET_S,
    ListingBuilder,
    is_hidden,
)
from gratis.preprocess.sources.source import Source, SourceOptions
from gratis.preprocess.sources.splits import SplitName, choose, split_of, unread_note
from gratis.preprocess.sources.tar import COMPRESSED_TARS

NO_FILE = "it is not a file"
# endings, in small, of files that may hold images
CONTAINERS = (
    *(".tar", *COMPRESSED_TARS, ".zip", ".parquet", ".arrow"),
    *(".beton", ".mds", ".tfrecord", ".tfrecords", ".rec", ".h5", ".hdf5", ".lmdb"),
)


def open_class_folders(root: str, options: SourceOptions) -> Source | None:
    """The folders' classes, which are train's, and listings; None where train has no class
    folders."""
    if options.unlabelled:
        return _open_unlabelled(root, options)
    found, notes = split_folders(root)
    wnids = tuple(_folders(found["train"])) if "train" in found else ()
    if not wnids or not _is_meant(found["train"], wnids[0]):
        return None
    files = [entry.name for entry in addresses.entries(root) if not entry.is_folder]
    if beside := [name for name in files if name.lower().endswith(CONTAINERS)]:
        notes.append(f"not read, beside class folders: {some(beside)} in {root}")
    for wnid in wnids:
        if wnid != wnid.encode(errors="replace").decode():  # surrogates, which no manifest can hold
            raise GratisError(
                f"{found['train']} holds a class folder named {wnid!r}: no UTF-8; rename it"
            )
    chosen, unread = choose(root, found, options.val_from)
    if unread:
        notes.append(unread_note(unread, found[unread]))
    splits, skipped = {}, []
    for split, folder in chosen.items():
        builder = ListingBuilder(wnids, official=False)
        _list_folders(folder, builder)
        splits[split] = builder.build()
        skipped += builder.skipped
        notes += builder.notes
    classes = tuple(ImageClass(wnid=wnid, words=wnid, ilsvrc_id=None) for wnid in wnids)
    return Source(classes=classes, splits=splits, skipped=tuple(skipped), notes=tuple(notes))


def _is_meant(train: str, wnid: str) -> bool:
    """Whether the folder holds class folders: training_logs/ holds others."""
    if addresses.name_of(train) == "train":
        return True
    files = addresses.entries(addresses.join(train, wnid))
    return any(IMAGE_NAME.fullmatch(entry.name) for entry in files)


def split_folders(root: str) -> tuple[dict[SplitName, str], list[str]]:
    """The folder of each split in `root`, and a message about the folders that are not read, which
    name no split or two. Of several of one split, the one that is called plainly "train", "val" or
    "test"; GratisError where none is."""
    if not addresses.is_folder(root):
        return {}, []
    named: dict[SplitName, list[str]] = {}
    listed = [entry for entry in addresses.entries(root) if not is_hidden(entry.name)]
    folders = [entry.name for entry in listed if entry.is_folder]
    for entry in listed:
        if entry.size < 0 and _split_of_folder(entry.name):
            raise GratisError(
                f"{addresses.join(root, entry.name)} names a split and is neither a folder nor a "
                f"file: a link to what is not there? mend or remove it"
            )
    for name in folders:
        if split := _split_of_folder(name):
            named.setdefault(split, []).append(name)
    found = {split: _plain_name(root, split, names) for split, names in named.items()}
    unread = [f"{name}/" for name in folders if name not in found.values()]
    notes = [f"not read, as no split's folders: {some(unread)} in {root}"] if unread else []
    return {split: addresses.join(root, name) for split, name in found.items()}, notes


def _split_of_folder(name: str) -> SplitName | None:
    try:
        return split_of(name)
    except GratisError:  # of two splits
        return None


def _plain_name(root: str, split: str, names: list[str]) -> str:
    if len(names) > 1 and split not in names:
        raise GratisError(
            f"{root} has two folders of the split {split}, {names[0]!r} and {names[1]!r}; call one "
            f"of them {split!r}, or move one elsewhere"
        )
    return split if split in names else names[0]


def _open_unlabelled(root: str, options: SourceOptions) -> Source | None:
    if not addresses.is_folder(root):
        return None
    found, notes = split_folders(root)
    if not found:
        found, notes = {"train": root}, []
    if not any(map(_holds_image, found.values())):
        return None
    chosen, unread = choose(root, found, options.val_from)
    if unread:
        notes.append(unread_note(unread, found[unread]))
    splits, skipped = {}, []
    for split, folder in chosen.items():
        builder = ListingBuilder((), official=False)
        builder.containers.append(folder)
        _list_tree(folder, "", builder, frozenset())
        if not len(builder):
            return None
        splits[split] = builder.build()
        skipped += builder.skipped
        notes += builder.notes
    return Source(classes=(), splits=splits, skipped=tuple(skipped), notes=tuple(notes))


def _list_tree(root: str, below: str, builder: ListingBuilder, above: frozenset[str]) -> None:
    """Adds all images below a folder, by their paths. above: the folders that it lies in, as a link
    may lead back into one."""
    folder = addresses.join(root, below) if below else root
    place = folder if addresses.is_url(folder) else os.path.realpath(folder)
    if place in above:
        builder.skip(below, "it leads back to a folder that it lies in")
        return
    listed = addresses.entries(folder)
    splits = {_split_of_folder(entry.name) for entry in listed if entry.is_folder} - {None}
    if len(splits) > 1:
        raise GratisError(
            f"{folder} holds the splits {' and '.join(sorted(map(str, splits)))}, which would be "
            f"one; give that folder as SRC, or rename them"
        )
    for entry in listed:
        path = f"{below}/{entry.name}" if below else entry.name
        if entry.is_folder and not is_hidden(entry.name):
            _list_tree(root, path, builder, above | {place})
        elif entry.size < 0:
            builder.skip(path, NO_FILE)
        elif entry.name.lower().endswith(CONTAINERS) and not is_hidden(entry.name):
            builder.skip(path, "it may hold images; give its folder alone as SRC, or move it")
        else:
            builder.add(path, -1, entry.size, -1)


def _holds_image(folder: str, above: frozenset[str] = frozenset()) -> bool:
    """Whether an image is somewhere below the folder."""
    place = folder if addresses.is_url(folder) else os.path.realpath(folder)
    listed = [] if place in above else addresses.entries(folder)
    if any(IMAGE_NAME.fullmatch(entry.name) and not is_hidden(entry.name) for entry in listed):
        return True
    inside = [entry.name for entry in listed if entry.is_folder and not is_hidden(entry.name)]
    return any(_holds_image(addresses.join(folder, name), above | {place}) for name in inside)


def some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3:,} more" if len(names) > 3 else "")


def holds_instead(folder: str) -> str:
    """What the folder holds where something else was expected, for an error message: " but a/,
    b.txt and 3 more"."""
    if not addresses.is_folder(folder):
        return ""
    listed = addresses.entries(folder)
    names = [entry.name + "/" * entry.is_folder for entry in listed]
    return f" but {some(names)}" if names else ", nor anything else"


def _list_folders(root: str, builder: ListingBuilder) -> None:
    labels = {wnid: label for label, wnid in enumerate(builder.wnids)}
    classes = _folders(root)
    if not classes:
        way_out = "sort the images into class folders as train's, or rename it to go without"
        official = f"the labels of the official images are in {DEVKIT}"
        raise GratisError(
            f"{root} has no class folders{holds_instead(root)}; {way_out} ({official}: SRC may "
            f"hold the archives themselves)"
        )
    builder.containers.append(root)
    for entry in addresses.entries(root):
        if is_hidden(entry.name):
            builder.pass_over(entry.name, HIDDEN_FILES)
        elif entry.is_folder:
            continue
        else:
            list_beside_classes(entry, builder)
    builder.containers.pop()
    for wnid in tqdm(classes, "listing", delay=QUIET_S, leave=False, disable=None):
        folder = addresses.join(root, wnid)
        if wnid not in labels:
            raise GratisError(
                f"{folder} has no counterpart in train; remove it or add the class there"
            )
        before = len(builder)
        list_class_folder(folder, labels[wnid], builder)
        if len(builder) == before:
            raise GratisError(_no_images(root, folder))


def list_beside_classes(entry: addresses.FileEntry, builder: ListingBuilder) -> None:
    """A file beside class folders is lost if it may be, or hold, images, as is what may have been a
    class folder."""
    if entry.size < 0:
        builder.skip(entry.name, NO_FILE)
    elif IMAGE_NAME.fullmatch(entry.name) or entry.name.lower().endswith(CONTAINERS):
        builder.skip(entry.name, "it is in no class folder")
    else:
        builder.leave_out(entry.name)


def list_class_folder(folder: str, label: int, builder: ListingBuilder) -> None:
    """Adds the images that lie directly in the folder. Folders in it are lost."""
    builder.containers.append(folder)
    for entry in addresses.entries(folder):
        if (entry.is_folder or entry.size < 0) and not is_hidden(entry.name):
            builder.skip(entry.name, NO_FILE)
        else:
            builder.add(entry.name, -1, entry.size, label)


def _no_images(root: str, folder: str) -> str:
    empty = f"{folder} holds no images{holds_instead(folder)}"
    if not _folders(folder):
        return f"{empty}; fill the class folder or remove it"
    return f"{empty}; class folders lie directly in {root}, images directly in them"


def _folders(root: str) -> list[str]:
    entries = addresses.entries(root)
    return [entry.name for entry in entries if entry.is_folder and not is_hidden(entry.name)]
