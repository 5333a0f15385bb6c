"""One tar per class as a source: ImageNet's training archive unpacked once, or any such tars.

    SRC/train/n01440764.tar ...           or SRC/n01440764.tar ...; the class is the tar's name
    SRC/val/n01440764.tar ...             or class folders, or flat with LOC_val_solution.csv or the
                                          devkit beside it, or ILSVRC2012_img_val.tar and the devkit

A tar's name is a class where it is a wnid, or where all names differ in more than digits, and where
the first image in it has no label beside it: 00000.tar, 00001.tar and whatever has labels are
WebDataset's.
"""

from __future__ import annotations

import re
from itertools import islice

from tqdm import tqdm

from gratis import addresses
from gratis.dataset import ImageClass
from gratis.errors import GratisError
from gratis.preprocess.sources.folders import CONTAINERS, list_class_folder, some, split_folders
from gratis.preprocess.sources.imagenet import DEVKIT, TRAIN, VAL
from gratis.preprocess.sources.listing import QUIET_S, ListingBuilder, is_hidden
from gratis.preprocess.sources.source import Source, SourceOptions
from gratis.preprocess.sources.splits import SplitName, choose, split_of, unread_note
from gratis.preprocess.sources.tar import members
from gratis.preprocess.sources.val_labels import (
    SOLUTION,
    ValLabels,
    is_image,
    list_labelled_folder,
    list_labelled_tar,
    read_solution,
    read_truth,
)

WNID = re.compile(r"n\d{8}")
LABELS = (".cls", ".json", ".txt")
LOOK = 16  # members of a tar, to see whether its images have labels


def open_class_tars(root: str, options: SourceOptions) -> Source | None:
    """The tars' names as classes, and the listings of train and val; None where tars are no
    classes."""
    official = addresses.is_file(addresses.join(root, TRAIN))
    if options.unlabelled or official or not addresses.is_folder(root):
        return None
    tars = _train_tars(root)
    if not tars:
        return None
    folders, notes = split_folders(root)
    found: dict[SplitName, str] = {"train": root, **folders}
    if "val" not in found and addresses.is_file(archive := addresses.join(root, VAL)):
        found["val"] = archive
    chosen, unread = choose(root, found, options.val_from)
    if unread:
        notes.append(unread_note(unread, found[unread]))
    wnids = tuple(tars)
    builders = {"train": ListingBuilder(wnids, official=False)}
    _list_tars(tars, builders["train"])
    _skip_beside(root, tars, builders["train"])
    loose = [
        entry.name for entry in addresses.entries(root) if entry.name != VAL and _is_tar(entry)
    ]
    if others := [name for name in loose if addresses.join(root, name) not in tars.values()]:
        notes.append(f"not read, beside tars of classes: {some(others)} in {root}")
    if "val" in chosen:
        builders["val"] = ListingBuilder(wnids, official=False)
        _list_val(root, chosen["val"], builders["val"])
    skipped = [message for builder in builders.values() for message in builder.skipped]
    notes += [message for builder in builders.values() for message in builder.notes]
    classes = tuple(ImageClass(wnid=wnid, words=wnid, ilsvrc_id=None) for wnid in wnids)
    splits = {split: builder.build() for split, builder in builders.items()}
    return Source(classes=classes, splits=splits, skipped=tuple(skipped), notes=tuple(notes))


def _train_tars(root: str) -> dict[str, str]:
    """The training split's tars by class, from the folder of that split, else from SRC."""
    folders, _ = split_folders(root)
    if "train" in folders and (tars := _class_tars(folders["train"])):
        return tars
    tars = _class_tars(root)
    return {} if any(map(split_of, tars)) else tars  # of splits, not of classes


def _class_tars(folder: str) -> dict[str, str]:
    """The folder's tars by class; {} where their names are none, or where the first has labels."""
    listed = addresses.entries(folder)
    names = [entry.name for entry in listed if _is_tar(entry)]
    classes = [name.removesuffix(".tar") for name in names if name != VAL]
    spelled = {re.sub(r"[\d\W_]+", "", name) for name in classes}
    # cat-0.tar, cat-1.tar, dog-0.tar are no three classes
    apart = "" not in spelled and len(spelled) == len(classes) > 1
    if not (apart or all(map(WNID.fullmatch, classes))):
        return {}
    tars = {wnid: addresses.join(folder, f"{wnid}.tar") for wnid in classes}
    return tars if tars and not _has_labels(next(iter(tars.values()))) else {}


def _is_tar(entry: addresses.FileEntry) -> bool:
    return entry.name.endswith(".tar") and not (entry.is_folder or is_hidden(entry.name))


def _has_labels(path: str) -> bool:
    """Whether a label lies beside the first images."""
    with addresses.Bytes(path) as archive:
        files = members(archive, path, lambda name, reason: None, 0, archive.size)
        return any(member.name.lower().endswith(LABELS) for member in islice(files, LOOK))


def _list_tars(tars: dict[str, str], builder: ListingBuilder) -> None:
    labels = {wnid: label for label, wnid in enumerate(builder.wnids)}
    for wnid, path in tqdm(
        tars.items(), "listing", unit="tar", delay=QUIET_S, leave=False, disable=None
    ):
        if wnid not in labels:
            raise GratisError(f"{path} has no counterpart in train; remove it or add the class")
        builder.containers.append(path)
        before = len(builder)
        with addresses.Bytes(path) as archive:
            for member in members(archive, path, builder.skip, 0, archive.size):
                builder.add(*member, labels[wnid])
        if len(builder) == before:
            raise GratisError(f"{path} holds no images; get it again, or remove the class")


def _skip_beside(root: str, tars: dict[str, str], builder: ListingBuilder) -> None:
    """What may be other classes' images, beside the tars, is lost. Folders in SRC are named
    already."""
    folder = next(iter(tars.values())).rpartition("/")[0]
    read = {f"{name}.tar" for name in tars} | {VAL, DEVKIT}
    builder.containers.append(folder)
    for entry in addresses.entries(folder):
        if entry.name in read or is_hidden(entry.name):
            continue
        inside = entry.is_folder and folder.rstrip("/") != root.rstrip("/")
        if inside or is_image(entry) or entry.name.lower().endswith(CONTAINERS):
            builder.skip(entry.name, "it lies beside tars of classes; make it one, or move it")
    builder.containers.pop()


def _list_val(root: str, folder: str, builder: ListingBuilder) -> None:
    """Adds the validation images of a folder, or of the official archive."""
    if folder == addresses.join(root, VAL):
        list_labelled_tar(folder, _val_labels(root, folder, builder.wnids), builder)
    elif tars := _class_tars(folder):
        _list_tars(tars, builder)
        _skip_beside(root, tars, builder)
    elif any(is_image(entry) for entry in addresses.entries(folder)):
        list_labelled_folder(folder, _val_labels(root, folder, builder.wnids), builder)
    else:
        _list_class_folders(folder, builder)


def _list_class_folders(folder: str, builder: ListingBuilder) -> None:
    labels = {wnid: label for label, wnid in enumerate(builder.wnids)}
    for entry in addresses.entries(folder):
        if not entry.is_folder or is_hidden(entry.name):
            continue
        path = addresses.join(folder, entry.name)
        if entry.name not in labels:
            raise GratisError(f"{path} has no counterpart in train; remove it or add the class")
        list_class_folder(path, labels[entry.name], builder)
    if not len(builder):
        raise GratisError(
            f"{folder} holds neither class folders, a tar of each class, nor images; fill or "
            f"remove it"
        )


def _val_labels(root: str, place: str, wnids: tuple[str, ...]) -> ValLabels:
    if addresses.is_file(path := addresses.join(root, SOLUTION)):
        return read_solution(path, wnids)
    if addresses.is_file(path := addresses.join(root, DEVKIT)):
        return read_truth(path, wnids)
    raise GratisError(
        f"{place} holds images without labels, and neither {DEVKIT} nor {SOLUTION} is in {root}; "
        f"put one there, or take the images away"
    )
