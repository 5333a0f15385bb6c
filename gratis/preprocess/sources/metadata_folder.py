"""Images beside a list of their labels, as `datasets` (Hugging Face) calls an imagefolder.

    SRC/train/metadata.csv      file_name,label         paths are from the list's own folder; the
    SRC/train/metadata.jsonl    {"file_name": "a/1.png", "label": 3}    list may lie in SRC, too

The split is a word of the list's folder, or a column `split` of a list in SRC, or a word of the
first folder in the path. A label is a number or a text. A list without labels leaves its images to
their class folders.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from tqdm import tqdm

from gratis import addresses
from gratis.errors import GratisError
from gratis.preprocess.sources.class_numbers import ClassNumbers, refuse_unknown
from gratis.preprocess.sources.folders import split_folders
from gratis.preprocess.sources.labels import LABEL_FIELDS
from gratis.preprocess.sources.listing import (
    IMAGE_NAME,
    QUIET_S,
    ListingBuilder,
    is_hidden,
    refuse_empty,
)
from gratis.preprocess.sources.source import Source, SourceOptions
from gratis.preprocess.sources.splits import SPLITS, SplitName, choose, split_of, unread_note
from gratis.preprocess.sources.val_labels import is_image, text_lines

LISTS = ("metadata.csv", "metadata.jsonl")
FILE, LABEL, SPLIT = "file_name", "label", "split"


class Row(NamedTuple):
    """place: the list and its line, for messages; path: of the image; split: what the list says of
    it, None if nothing."""

    place: str
    path: str
    label: object
    split: object


def open_metadata_folder(root: str, options: SourceOptions) -> Source | None:
    """The lists' classes, and listings of the images that they name; None where no list has
    labels."""
    found = {} if options.unlabelled else _find_rows(root)
    if not found:
        return None
    notes = _without_list(root, found)
    chosen, unread = choose(root, found, options.val_from)
    if unread:
        notes.append(unread_note(unread, f"{len(found[unread]):,} images"))
    texts = [row.label for row in chosen["train"] if isinstance(row.label, str)]
    numbers = ClassNumbers(filter(None, texts) if texts else None)
    named = {row.path for rows in found.values() for row in rows}
    builders: dict[str, ListingBuilder] = {}
    for split, rows in chosen.items():
        builders[split] = ListingBuilder((), official=True)
        _list_rows(rows, named, numbers, builders[split])
        notes += builders[split].notes
    _skip_unlisted_folders(root, found, builders["train"])
    refuse_empty(root, builders)
    classes = numbers.classes(builders["train"].labels)
    splits = {}
    for split, builder in builders.items():
        builder.wnids = tuple(entry.wnid for entry in classes)
        splits[split] = builder.build()
        refuse_unknown(split, splits[split], len(classes))
    skipped = [message for builder in builders.values() for message in builder.skipped]
    return Source(classes=classes, splits=splits, skipped=tuple(skipped), notes=tuple(notes))


def _skip_unlisted_folders(
    root: str, found: dict[SplitName, list[Row]], builder: ListingBuilder
) -> None:
    """Images in folders that no row is of are lost, unless they are the test split's."""
    known = {row.path.rpartition("/")[0] for rows in found.values() for row in rows}
    folders, _ = split_folders(root)
    test = None if "test" in found else folders.get("test")
    tops = [root] if _lists(root) else [folders[split] for split in found]
    for top in tops:
        _skip_images_below(top, known, builder, test, frozenset())


def _skip_images_below(
    folder: str, known: set[str], builder: ListingBuilder, test: str | None, above: frozenset[str]
) -> None:
    """test: a folder that is not read. above: the folders that it lies in, as a link may lead back
    into one."""
    place = folder if addresses.is_url(folder) else os.path.realpath(folder)
    for entry in addresses.entries(folder) if place not in above else ():
        path = addresses.join(folder, entry.name)
        if is_hidden(entry.name) or not entry.is_folder or path == test:
            continue
        if path not in known:
            builder.containers.append(path)
            for image in filter(is_image, addresses.entries(path)):
                builder.skip(image.name, "no list names it")
            builder.containers.pop()
        _skip_images_below(path, known, builder, test, above | {place})


def _find_rows(root: str) -> dict[SplitName, list[Row]]:
    """The rows of all lists that have labels, by split."""
    if not addresses.is_folder(root):
        return {}
    rows: dict[SplitName, list[Row]] = {}
    if lists := _lists(root):
        for row in _read(root, lists):
            rows.setdefault(_split_of_row(root, row), []).append(row)
    for split, folder in split_folders(root)[0].items():
        if (lists := _lists(folder)) and (read := _read(folder, lists)):
            rows.setdefault(split, []).extend(read)
    return rows


def _split_of_row(root: str, row: Row) -> SplitName:
    if row.split is not None:
        named = split_of(str(row.split))
        if not named:
            raise GratisError(
                f"{row.place} has the split {str(row.split)[:80]!r}: none of {SPLITS}"
            )
        return named
    inside = row.path[len(root) :].strip("/").partition("/")
    return (split_of(inside[0]) if inside[1] else None) or "train"


def _without_list(root: str, found: dict[SplitName, list[Row]]) -> list[str]:
    """Messages about folders that no list with labels is of. GratisError for a split's, unless it
    is test's."""
    folders, notes = split_folders(root)
    if _lists(root):
        notes = []  # its rows say which folders are read
    for split, folder in folders.items():
        if split in found:
            continue
        what = f"{folder} has no {LISTS[0]} or {LISTS[1]} with labels"
        if split != "test":
            raise GratisError(f"{what}, as {next(iter(found))} has; write one, or move the folder")
        notes.append(f"test: not read, {what}")
    return notes


def _lists(folder: str) -> list[str]:
    paths = [addresses.join(folder, name) for name in LISTS]
    return [path for path in paths if addresses.is_file(path)]


def _read(folder: str, lists: list[str]) -> list[Row]:
    """The rows of the list in the folder; none where none has a label."""
    if len(lists) > 1:
        raise GratisError(f"{lists[0]} and {lists[1]} lie beside each other; remove one")
    (path,) = lists
    rows, labelled = [], False
    lines = _csv_lines(path) if path.endswith(".csv") else _json_lines(path)
    for number, fields in lines:
        place = f"{path}, line {number}"
        name = fields.get(FILE)
        if not isinstance(name, str) or not name:
            raise GratisError(f"{place} has no {FILE}, which names the image; add it")
        if name.startswith("/") or ".." in name.split("/"):
            raise GratisError(f"{place} names {name[:200]!r}, which is outside of its folder")
        field = _label_field(fields)
        labelled = labelled or field is not None
        image = addresses.join(folder, name.removeprefix("./"))
        rows.append(Row(place, image, fields[field] if field else None, fields.get(SPLIT)))
    return rows if labelled else []


def _label_field(fields: dict[str, Any]) -> str | None:
    if LABEL in fields:
        return LABEL
    letters = {name: "".join(filter(str.isalpha, name)).lower() for name in fields}
    return next((name for name in fields if letters[name] in LABEL_FIELDS), None)


def _csv_lines(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(text_lines(path), restkey="", restval="")
    for fields in reader:
        yield reader.line_num, fields


def _json_lines(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text_lines(path), 1):
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError):
            fields = None
        if not isinstance(fields, dict):
            raise GratisError(f"{path}, line {number} is no JSON object; mend it")
        yield number, fields


def _list_rows(
    rows: list[Row], named: set[str], numbers: ClassNumbers, builder: ListingBuilder
) -> None:
    """Adds the images folder by folder. What is missing, and images that no list names, are
    lost."""
    by_folder: dict[str, list[Row]] = {}
    for row in rows:
        by_folder.setdefault(row.path.rpartition("/")[0], []).append(row)
    for folder in tqdm(sorted(by_folder), "listing", delay=QUIET_S, leave=False, disable=None):
        builder.containers.append(folder)
        listed = addresses.entries(folder) if addresses.is_folder(folder) else []
        sizes = {entry.name: entry.size for entry in listed if not entry.is_folder}
        for row in by_folder[folder]:
            name = addresses.name_of(row.path)
            if name in sizes:
                builder.add(name, -1, sizes.pop(name), numbers.number(row.label, row.place))
            else:
                builder.skip(name, f"{row.place} names it, and it is not there, or named twice")
        for name in sizes:
            if IMAGE_NAME.fullmatch(name) and addresses.join(folder, name) not in named:
                builder.skip(name, "no list names it")
