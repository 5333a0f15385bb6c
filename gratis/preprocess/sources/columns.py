"""Which columns of a parquet or arrow table hold images, their names and their labels.

image {bytes, path}, label     as `datasets` (Hugging Face) writes them, with the names of the
                               classes in the schema's metadata
jpg, label                     bytes alone, as img2dataset and pandas write them
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gratis.errors import GratisError
from gratis.preprocess.sources.labels import LABEL_FIELDS

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp")
NO_BYTES = -1  # in place of an offset, where a row has no bytes
SHOWN = 8  # columns in a message


class Columns(NamedTuple):
    """data: of the bytes, "image.bytes" or "jpg". path, label: None where there is none. texts: the
    labels are no numbers. names: of the classes, by number, where the schema tells them."""

    data: str
    path: str | None
    label: str | None
    texts: bool
    names: tuple[str, ...] | None

    def batch_data(self, batch: Any) -> Any:
        """The array of bytes of a record batch."""
        return _leaf(batch, self.data)

    def paths(self, table: Any) -> list[str | None]:
        """The images' names in a table or record batch."""
        if self.path is None:
            return [None] * table.num_rows
        paths: list[str | None] = _leaf(table, self.path).to_pylist()
        return paths

    def labels(self, table: Any) -> list[object] | None:
        """Of a table or record batch; None where there are none."""
        if self.label is None:
            return None
        labels: list[object] = table.column(self.label).to_pylist()
        return labels


class TablePart(NamedTuple):
    """Rows that follow each other in a file: where each one's image lies, its size in bytes, its
    name and its label."""

    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    paths: list[str | None]
    labels: list[object] | None

    def rows(self) -> Iterator[tuple[int, int, str | None, object]]:
        """Offset, size, name, and label, None where there are none, of each row."""
        labels = self.labels or [None] * len(self.paths)
        numbers = self.offsets.tolist(), self.sizes.tolist()
        return zip(*numbers, self.paths, labels, strict=True)


def find_columns(place: str, schema: Any, *, labelled: bool) -> Columns | None:
    """The columns of the file at `place`, whose pyarrow.Schema this is; None where it holds no
    images. GratisError where images have no label, unless they need none (labelled=False), and
    where several columns may be meant."""
    features = _features(schema)
    images = [field for field in schema if _is_image(field, features)]
    if not images:
        return None
    image = _only(place, "images", [field.name for field in images], IMAGE_COLUMNS)
    struct = {field.name for field in _fields(schema.field(image).type)}
    data = f"{image}.bytes" if struct else image
    path = f"{image}.path" if "path" in struct else None
    if not labelled:
        return Columns(data, path, None, False, None)
    classes = [name for name, feature in features.items() if feature.get("_type") == "ClassLabel"]
    labels = [name for name in schema.names if _letters(name) in LABEL_FIELDS] + classes
    if not labels:
        raise GratisError(
            f"{place} has images and no labels: its columns are {_some(schema.names)}, and none is "
            f"called label; name it so, or go without: --unlabelled"
        )
    label = _only(place, "labels", list(dict.fromkeys(labels)), ("label", *classes[:1]))
    names = features.get(label, {}).get("names")
    texts = "string" in str(schema.field(label).type)
    return Columns(data, path, label, texts, tuple(map(str, names)) if names else None)


def _leaf(table: Any, name: str) -> Any:
    if name in table.schema.names:
        return table.column(name)
    column, _, field = name.partition(".")
    struct = table.column(column)
    index = [one.name for one in _fields(struct.type)].index(field)
    return struct.flatten()[index]  # null where the whole is


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """What `datasets` says of the columns; {} where it did not write the file."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: one for name, one in features.items() if isinstance(one, dict)}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _is_image(field: Any, features: dict[str, dict[str, Any]]) -> bool:
    said = features.get(field.name, {}).get("_type", "Image")
    inside = {one.name: one.type for one in _fields(field.type)}
    return said in ("Image", "Value") and _is_binary(inside.get("bytes", field.type))


def _is_binary(kind: Any) -> bool:
    return str(kind) in ("binary", "large_binary")


def _fields(kind: Any) -> list[Any]:
    """Of a struct; [] of any other type."""
    if not str(kind).startswith("struct"):
        return []
    return [kind.field(index) for index in range(kind.num_fields)]


def _only(place: str, what: str, names: list[str], preferred: tuple[str, ...]) -> str:
    if len(names) == 1:
        return names[0]
    if first := [name for name in preferred if name in names]:
        return first[0]
    raise GratisError(
        f"{place} has several columns of {what}, {_some(names)}; call the one to be used "
        f"{preferred[0]!r}"
    )


def _letters(name: str) -> str:
    return "".join(filter(str.isalpha, name)).lower()


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else ""
    return ", ".join(map(repr, names[:SHOWN])) + more
