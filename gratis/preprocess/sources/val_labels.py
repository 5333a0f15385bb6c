"""The labels of ILSVRC2012's validation images, which lie in no class folders: by the names of the
images, from LOC_val_solution.csv or from the devkit."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from typing import NamedTuple

from gratis import addresses
from gratis.errors import GratisError
from gratis.preprocess.sources.imagenet import read_devkit
from gratis.preprocess.sources.listing import IMAGE_NAME, ListingBuilder, is_hidden
from gratis.preprocess.sources.tar import members

SOLUTION = "LOC_val_solution.csv"
HEADER = "ImageId"


class ValLabels(NamedTuple):
    """path: the file that says them; labels: by image name without its ending."""

    path: str
    labels: dict[str, int]


def read_solution(path: str, wnids: tuple[str, ...]) -> ValLabels:
    """From LOC_val_solution.csv ("ILSVRC2012_val_00048981,n03995372 85 1 499 272"). GratisError for
    a line without a class of `wnids`, and for an image of two classes."""
    number = {wnid: label for label, wnid in enumerate(wnids)}
    labels: dict[str, int] = {}
    for line, (image, *boxes) in enumerate(csv.reader(text_lines(path)), 1):
        if image == HEADER:
            continue
        wnid = " ".join(boxes).partition(" ")[0]
        if wnid not in number:
            raise GratisError(
                f"{path}, line {line}: {image[:80]!r} has class {wnid[:80]!r}, which the training "
                f"split has not; get the file again, or the missing class"
            )
        if labels.setdefault(image, number[wnid]) != number[wnid]:
            raise GratisError(f"{path} gives {image[:80]!r} two classes; get the file again")
    return ValLabels(path, labels)


def read_truth(devkit: str, wnids: tuple[str, ...]) -> ValLabels:
    """From the devkit's archive. GratisError for a class that is not in `wnids`."""
    synsets, truth = read_devkit(devkit)
    wnid_of = {synset.ilsvrc_id: synset.wnid for synset in synsets}
    number = {wnid: label for label, wnid in enumerate(wnids)}
    for ilsvrc_id in sorted(set(truth)):
        if wnid_of.get(ilsvrc_id) not in number:
            missing = wnid_of.get(ilsvrc_id, ilsvrc_id)
            raise GratisError(
                f"{devkit} has validation images of class {missing}, which the training split has "
                f"not; get the missing class, or take the validation images away"
            )
    names = (f"ILSVRC2012_val_{image:08d}" for image in range(1, len(truth) + 1))
    labels = (number[wnid_of[ilsvrc_id]] for ilsvrc_id in truth)
    return ValLabels(devkit, dict(zip(names, labels, strict=True)))


def list_labelled_folder(folder: str, known: ValLabels, builder: ListingBuilder) -> None:
    """Adds the images that lie directly in the folder. GratisError for one without a label, and
    where one of a label is missing."""
    builder.containers.append(folder)
    before = len(builder)
    for entry in addresses.entries(folder):
        if is_image(entry):
            builder.add(entry.name, -1, entry.size, _label(folder, entry.name, known))
        else:
            builder.leave_out(entry.name)
    _refuse_missing(folder, len(builder) - before, known)


def list_labelled_tar(path: str, known: ValLabels, builder: ListingBuilder) -> None:
    """The same for a tar of images."""
    builder.containers.append(path)
    before = len(builder)
    with addresses.Bytes(path) as archive:
        for member in members(archive, path, builder.skip, 0, archive.size):
            if is_hidden(member.name):
                builder.leave_out(member.name)
            else:
                builder.add(*member, _label(path, member.name, known))
    _refuse_missing(path, len(builder) - before, known)


def is_image(entry: addresses.FileEntry) -> bool:
    """Whether a folder's entry is a file that is called like an image, and not hidden."""
    named = IMAGE_NAME.fullmatch(entry.name) and not is_hidden(entry.name)
    return bool(named) and not entry.is_folder


def text_lines(path: str) -> Iterator[str]:
    """The lines of a text file that are not empty."""
    text = addresses.read(path).decode("utf-8-sig", "replace")
    return (line for line in text.splitlines() if line.strip())


def _label(place: str, name: str, known: ValLabels) -> int:
    stem = os.path.basename(name).partition(".")[0]
    if stem not in known.labels:
        raise GratisError(
            f"{place} holds {name[:200]!r}, which {known.path} does not name; remove it, or get "
            f"both again"
        )
    return known.labels[stem]


def _refuse_missing(place: str, found: int, known: ValLabels) -> None:
    if found != len(known.labels):
        raise GratisError(
            f"{place} has {found:,} images, {known.path} has labels of {len(known.labels):,}; get "
            f"both again"
        )
