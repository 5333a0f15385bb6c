"""Parquet and arrow files as a source: sets of Hugging Face, img2dataset's parquet files, and any
table with bytes of images and labels.

    SRC/data/train-00000-of-00294.parquet       a split is a word of the file's name, or of its
    SRC/train/0000.parquet                      folder's
    SRC/dataset_dict.json, train/state.json     what `save_to_disk` writes: .arrow files; they are
                                                found where no folder can be listed (HTTP), too
    SRC itself a .parquet or .arrow file        the training split

Classes are the names that `datasets` keeps with the labels, or the numbers, or, where labels are
texts, these in sorted order. An image without bytes in the table is read from its path, if that is
in SRC. Needs pyarrow.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from gratis import addresses
from gratis.errors import GratisError
from gratis.extras import require
from gratis.preprocess.sources.arrow import arrow_columns, arrow_labels, arrow_schema, list_arrow
from gratis.preprocess.sources.class_numbers import ClassNumbers, refuse_unknown
from gratis.preprocess.sources.columns import NO_BYTES, Columns, TablePart
from gratis.preprocess.sources.listing import (
    IMAGE_NAME,
    QUIET_S,
    Listing,
    ListingBuilder,
    is_hidden,
)
from gratis.preprocess.sources.parquet import (
    list_parquet,
    parquet_columns,
    parquet_labels,
    parquet_schema,
)
from gratis.preprocess.sources.source import Source, SourceOptions
from gratis.preprocess.sources.splits import SplitName, choose, divide, split_of, unread_note

TABLES = (".parquet", ".arrow")
DICT, STATE = "dataset_dict.json", "state.json"
DEEPEST = 3  # folders below SRC


def open_tables(root: str, options: SourceOptions) -> Source | None:
    """The tables' classes and listings; None where there are no tables of images."""
    found = _saved(root) or _find_tables(root)
    if not found:
        return None
    first = next(iter(found.values()))[0]
    require("parquet", first)
    if _columns(first, labelled=False) is None:
        return None  # a table about images, not of images
    chosen, unread = choose(root, found, options.val_from)
    notes = [unread_note(unread, _described(found[unread]))] if unread else []
    columns = _columns(chosen["train"][0], labelled=not options.unlabelled)
    labels = _labels(chosen["train"], columns) if columns and columns.label else None
    builders: dict[str, ListingBuilder] = {}
    for split, paths in chosen.items():
        builders[split] = ListingBuilder((), official=True)
        _list_tables(root, paths, columns, labels, builders[split])
        if not len(builders[split]):
            raise GratisError(f"{paths[0]}: the split {split} has no images; fill or remove it")
    classes = labels.classes(builders["train"].labels) if labels else ()
    splits: dict[str, Listing] = {}
    for split, builder in builders.items():
        builder.wnids = tuple(entry.wnid for entry in classes)
        splits[split] = builder.build()
        if labels:
            refuse_unknown(split, splits[split], len(classes))
        notes += builder.notes
    skipped = [message for builder in builders.values() for message in builder.skipped]
    return Source(classes=classes, splits=splits, skipped=tuple(skipped), notes=tuple(notes))


def _saved(root: str) -> dict[SplitName, list[str]]:
    """The files of what `save_to_disk` wrote, by split; {} where it wrote nothing."""
    if addresses.is_file(path := addresses.join(root, DICT)):
        names = _json(path).get("splits")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise GratisError(f"{path} lists no splits; save the set again")
        folders = divide(addresses.join(root, name) for name in names)
        return {
            split: [file for folder in listed for file in _state_files(folder)]
            for split, listed in folders.items()
        }
    if addresses.is_file(addresses.join(root, STATE)):
        return {"train": _state_files(root)}
    return {}


def _state_files(folder: str) -> list[str]:
    path = addresses.join(folder, STATE)
    if not addresses.is_file(path):
        raise GratisError(f"{folder} lacks {STATE}; save the set again, or copy all of it")
    try:
        names = [os.path.basename(file["filename"]) for file in _json(path)["_data_files"]]
    except (KeyError, TypeError):
        raise GratisError(f"{path} lists no files; save the set again") from None
    return [addresses.join(folder, name) for name in names]


def _json(path: str) -> dict[str, Any]:
    try:
        value = json.loads(addresses.read(path))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise GratisError(f"{path} is no JSON object; get it again")
    return value


def _find_tables(root: str) -> dict[SplitName, list[str]]:
    """The tables below SRC by split; {} if there are none."""
    if root.endswith(TABLES):
        return {"train": [root]}
    found: dict[SplitName, list[str]] = {}
    sets: dict[str, str] = {}  # by folder without the splits' words: a file there
    for parts, files in _walk(root, ()) if addresses.is_folder(root) else ():
        folder = addresses.join(root, "/".join(parts)) if parts else root
        named = [part for part in parts if split_of(part)]
        paths = [addresses.join(folder, name) for name in files]
        divided = {split_of(named[-1]): paths} if named else divide(paths)
        for split, listed in divided.items():
            if split:
                found.setdefault(split, []).extend(listed)
        sets.setdefault("/".join(part for part in parts if part not in named), paths[0])
    if len(sets) > 1:
        one, other, *_ = sets.values()
        raise GratisError(f"{root} holds several sets, of {one} and of {other}; give one's folder")
    return found


def _walk(root: str, parts: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """The folders that hold tables, as their names below SRC, and these tables' names."""
    folder = addresses.join(root, "/".join(parts)) if parts else root
    listed = [entry for entry in addresses.entries(folder) if not is_hidden(entry.name)]
    # 00000.parquet beside 00000/ is a list of its files (img2dataset)
    folders = {entry.name for entry in listed if entry.is_folder}
    tables = [e.name for e in listed if not e.is_folder and e.name.endswith(TABLES)]
    files = [name for name in tables if os.path.splitext(name)[0] not in folders]
    if files:
        _refuse_other_ending(folder, listed)
        yield parts, files
    for entry in listed:
        if entry.is_folder and len(parts) < DEEPEST:
            yield from _walk(root, (*parts, entry.name))


def _refuse_other_ending(folder: str, listed: list[addresses.FileEntry]) -> None:
    for entry in listed:
        named = entry.name.lower().endswith((*TABLES, ".pq", ".feather"))
        if named and not (entry.is_folder or entry.name.endswith(TABLES)):
            raise GratisError(
                f"{addresses.join(folder, entry.name)} is a table by its name, and would not be "
                f"read; let it end in .parquet or .arrow, as those beside it, or move it elsewhere"
            )


def refuse_tables(root: str) -> None:
    """GratisError, which shows the columns, where SRC holds tables and none of images."""
    if found := _find_tables(root):
        first = next(iter(found.values()))[0]
        schema = (parquet_schema if first.endswith(".parquet") else arrow_schema)(first)
        shown = ", ".join(f"{field.name[:80]!r} ({str(field.type)[:80]})" for field in schema)
        raise GratisError(
            f"{first} has no column of images, which are bytes, or a struct of bytes and path: it "
            f"has {shown[:500]}; write them so"
        )


def _columns(path: str, *, labelled: bool) -> Columns | None:
    read = parquet_columns if path.endswith(".parquet") else arrow_columns
    return read(path, labelled=labelled)


def _parts(path: str, columns: Columns) -> Iterator[TablePart]:
    read = list_parquet if path.endswith(".parquet") else list_arrow
    return read(path, columns)


def _labels(paths: list[str], columns: Columns) -> ClassNumbers:
    if not columns.texts:
        return ClassNumbers(None, columns.names)
    return ClassNumbers({text for path in paths for text in _texts(path, columns)})


def _texts(path: str, columns: Columns) -> Iterator[str]:
    read = parquet_labels if path.endswith(".parquet") else arrow_labels
    for row, text in enumerate(read(path, columns)):
        if not isinstance(text, str):
            raise GratisError(f"{path}, row {row} has no label; relabel or remove it")
        yield text


def _list_tables(
    root: str,
    paths: list[str],
    first: Columns | None,
    labels: ClassNumbers | None,
    builder: ListingBuilder,
) -> None:
    for path in tqdm(paths, "listing", unit="table", delay=QUIET_S, leave=False, disable=None):
        columns = _columns(path, labelled=labels is not None)
        if columns is None or (labels and columns != first):
            raise GratisError(
                f"{path} has other columns or classes than the first file of the training split; "
                f"give sets of one kind"
            )
        row = 0
        for part in _parts(path, columns):
            for offset, size, name, value in part.rows():
                label = -1 if labels is None else labels.number(value, f"{path}, row {row}")
                if offset == NO_BYTES and name:
                    image = _file_of_row(root, path, row, name)
                    _enter(os.path.dirname(image), builder)
                    builder.add(os.path.basename(image), -1, os.path.getsize(image), label)
                else:
                    _enter(path, builder)
                    if offset == NO_BYTES:
                        builder.skip(str(row), "it has neither bytes nor a path")
                    else:
                        builder.add(_row_name(path, row, name), offset, size, label)
                row += 1


def _enter(container: str, builder: ListingBuilder) -> None:
    if builder.containers[-1:] != [container]:
        builder.containers.append(container)


def _row_name(path: str, row: int, name: str | None) -> str:
    """With the number of the row, as names may be there twice."""
    stem = os.path.basename(path).partition(".")[0]
    base = os.path.basename(name or "") or f"{stem}_{row:06d}"
    return f"{row}/{base if IMAGE_NAME.fullmatch(base) else f'{base}.jpg'}"


def _file_of_row(root: str, table: str, row: int, name: str) -> str:
    """The image that a row without bytes has the path of."""
    root = os.path.dirname(root) if root.endswith(TABLES) else root
    for folder in () if addresses.is_url(root) else (root, os.path.dirname(table)):
        path = os.path.realpath(os.path.join(folder, name))
        if path.startswith(f"{os.path.realpath(root)}{os.sep}") and os.path.isfile(path):
            return path
    raise GratisError(
        f"{table}, row {row} has no bytes of an image but the path {name[:200]!r}, which is no "
        f"file in {root}; put it there, or write the table with the bytes in it"
    )


def _described(tables: list[str]) -> str:
    counted = "1 table" if len(tables) == 1 else f"{len(tables):,} tables, the first"
    return f"{counted} {tables[0]}"
