"""Images beside a list of their labels, as `datasets` (Hugging Face) calls an imagefolder.

    SRC/train/metadata.csv      file_name,label         paths are from the list's own folder; the
    SRC/train/metadata.jsonl    {"file_name": "a/1.png", "label": 3}    list may lie in SRC, too

The split is a word of the list's folder, or of the first folder in the path. A label is a number or
a text. A list without labels leaves its images to their class folders.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from tqdm import tqdm

from gratis import addresses
from gratis.errors import GratisError
from gratis.preprocess.sources.class_numbers import ClassNumbers, refuse_unknown
from gratis.preprocess.sources.folders import split_folders
from gratis.preprocess.sources.labels import LABEL_FIELDS
from gratis.preprocess.sources.listing import IMAGE_NAME, QUIET_S, ListingBuilder
from gratis.preprocess.sources.source import Source, SourceOptions
from gratis.preprocess.sources.splits import SplitName, choose, split_of, unread_note
from gratis.preprocess.sources.val_labels import text_lines

LISTS = ("metadata.csv", "metadata.jsonl")
FILE, LABEL = "file_name", "label"


class Row(NamedTuple):
    """place: the list and its line, for messages; path: of the image."""

    place: str
    path: str
    label: object


def open_metadata_folder(root: str, options: SourceOptions) -> Source | None:
    """The lists' classes, and listings of the images that they name; None where no list has
    labels."""
    found = {} if options.unlabelled else _find_rows(root)
    if not any(found.values()):
        return None
    found = {split: rows for split, rows in found.items() if rows}
    chosen, unread = choose(root, found, options.val_from)
    notes = [unread_note(unread, f"{len(found[unread]):,} images")] if unread else []
    texts = [row.label for row in chosen["train"] if isinstance(row.label, str)]
    numbers = ClassNumbers(filter(None, texts) if texts else None)
    named = {row.path for rows in found.values() for row in rows}
    builders: dict[str, ListingBuilder] = {}
    for split, rows in chosen.items():
        builders[split] = ListingBuilder((), official=True)
        _list_rows(rows, named, numbers, builders[split])
        notes += builders[split].notes
    classes = numbers.classes(builders["train"].labels)
    splits = {}
    for split, builder in builders.items():
        builder.wnids = tuple(entry.wnid for entry in classes)
        splits[split] = builder.build()
        refuse_unknown(split, splits[split], len(classes))
    skipped = [message for builder in builders.values() for message in builder.skipped]
    return Source(classes=classes, splits=splits, skipped=tuple(skipped), notes=tuple(notes))


def _find_rows(root: str) -> dict[SplitName, list[Row]]:
    """The rows of all lists that have labels, by split."""
    if not addresses.is_folder(root):
        return {}
    rows: dict[SplitName, list[Row]] = {}
    if lists := _lists(root):
        for row in _read(root, lists):
            inside = row.path[len(root) :].strip("/").partition("/")
            rows.setdefault((inside[1] and split_of(inside[0])) or "train", []).append(row)
    for split, folder in split_folders(root)[0].items():
        if lists := _lists(folder):
            rows.setdefault(split, []).extend(_read(folder, lists))
    return rows


def _lists(folder: str) -> list[str]:
    paths = [addresses.join(folder, name) for name in LISTS]
    return [path for path in paths if addresses.is_file(path)]


def _read(folder: str, lists: list[str]) -> Iterator[Row]:
    """The rows of the first list in the folder; none where it has no labels."""
    if len(lists) > 1:
        raise GratisError(f"{lists[0]} and {lists[1]} lie beside each other; remove one")
    (path,) = lists
    lines = _csv_lines(path) if path.endswith(".csv") else _json_lines(path)
    for number, fields in lines:
        place = f"{path}, line {number}"
        name = fields.get(FILE)
        if not isinstance(name, str) or not name:
            raise GratisError(f"{place} has no {FILE}, which names the image; add it")
        if name.startswith("/") or ".." in name.split("/"):
            raise GratisError(f"{place} names {name[:200]!r}, which is outside of its folder")
        label = _label_field(fields)
        if label is None:
            return
        yield Row(place, addresses.join(folder, name.removeprefix("./")), fields[label])


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
    for folder in tqdm(sorted(by_folder), "listing", delay=QUIET_S, leave=False):
        builder.containers.append(folder)
        listed = addresses.entries(folder) if addresses.is_folder(folder) else []
        sizes = {entry.name: entry.size for entry in listed if not entry.is_folder}
        for row in by_folder[folder]:
            name = row.path.rpartition("/")[2]
            if name in sizes:
                builder.add(name, -1, sizes.pop(name), numbers.number(row.label, row.place))
            else:
                builder.skip(name, f"{row.place} names it, and it is not there, or named twice")
        for name in sizes:
            if IMAGE_NAME.fullmatch(name) and f"{folder}/{name}" not in named:
                builder.skip(name, "no list names it")
