"""Lists of tars that lie beside them, as others write them: which tars are a split's, and how many
samples each has.

    _info.json, info.json            {"splits": {"train": {"filenames": ["a-{00..63}.tar"],
                                     "shard_lengths": [1252, ...]}, ...}}           timm
    dataset.json, shardindex.json    {"shardlist": [{"url": "a-00.tar", "nsamples": 1252}, ...]},
                                     or such lists in "datasets", with names       webdataset (wids)
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from gratis import addresses
from gratis.errors import GratisError
from gratis.preprocess.sources.folders import some
from gratis.preprocess.sources.listing import is_hidden
from gratis.preprocess.sources.splits import SPLITS, SplitName, divide, split_of

LISTS = ("_info.json", "info.json", "dataset.json", "shardindex.json")
LONGEST = 64 << 20  # bytes
BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
MOST_TARS = 10_000_000


class ShardList(NamedTuple):
    """path: of the list; tars: by split; lengths: samples of a tar, where the list says it."""

    path: str
    tars: dict[SplitName, list[str]]
    lengths: dict[str, int]

    def unlisted(self, root: str) -> list[str]:
        """Messages about tars and folders that are there and not in the list."""
        known = {tar for listed in self.tars.values() for tar in listed}
        listed = addresses.entries(root) if addresses.is_folder(root) else []
        seen = [entry.name for entry in listed if not is_hidden(entry.name)]
        folders = {entry.name for entry in listed if entry.is_folder}
        tars = [name for name in seen if name.lower().endswith(".tar") and name not in folders]
        others = [name for name in tars if addresses.join(root, name) not in known]
        for name in sorted(folders & set(seen)):
            if not any(tar.startswith(f"{addresses.join(root, name)}/") for tar in known):
                others.append(f"{name}/")
        if not others:
            return []
        return [f"not read, as {self.path} does not list them: {some(others)} in {root}"]

    def check(self, tar: str, samples: int) -> None:
        """GratisError if the tar has fewer or more samples than the list says."""
        said = self.lengths.get(tar, samples)
        if said != samples:
            raise GratisError(
                f"{tar} has {samples:,} samples, {self.path} says {said:,}; get the tar again"
            )


def read_shard_list(root: str) -> ShardList | None:
    """The first list in SRC; None if there is none, or files of these names are something else."""
    for name in LISTS:
        path = addresses.join(root, name)
        if addresses.is_file(path) and (entries := _entries(path)):
            return _resolve(root, path, entries)
    return None


def _entries(path: str) -> list[tuple[str | None, str, int | None]]:
    """(name of the split, tar, samples) of each tar; [] for JSON of another kind."""
    with addresses.Bytes(path) as file:
        text = file.read(0, min(file.size, LONGEST))
    try:
        return list(_parse(json.loads(text)))
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return []


def _parse(raw: dict[str, Any]) -> Iterator[tuple[str | None, str, int | None]]:
    if "shardlist" in raw:
        for shard in raw["shardlist"]:
            yield None, shard["url"], shard.get("nsamples")
    for part in raw.get("datasets", ()):
        for shard in part["shardlist"]:
            yield part.get("split") or part["name"], shard["url"], shard.get("nsamples")
    splits = raw.get("splits", {})
    named = splits.items() if isinstance(splits, dict) else ((one["name"], one) for one in splits)
    for split, one in named:
        tars = [tar for pattern in one["filenames"] for tar in expand(pattern)]
        lengths = one.get("shard_lengths") or [None] * len(tars)
        yield from ((split, *pair) for pair in zip(tars, lengths, strict=True))


def expand(pattern: str) -> Iterator[str]:
    """The names that a pattern stands for: "a-{00..63}.tar"."""
    braces = BRACES.search(pattern)
    if not braces:
        yield pattern
        return
    first, last = braces.groups()
    if int(last) - int(first) > MOST_TARS:
        raise ValueError(pattern)
    for number in range(int(first), int(last) + 1):
        yield from expand(
            f"{pattern[: braces.start()]}{number:0{len(first)}d}{pattern[braces.end() :]}"
        )


def _resolve(root: str, path: str, entries: list[tuple[str | None, str, int | None]]) -> ShardList:
    tars: dict[SplitName, list[str]] = {}
    lengths: dict[str, int] = {}
    unnamed: list[str] = []
    for split, name, samples in entries:
        tar = _address(root, path, name)
        if split is None:
            unnamed.append(tar)
        elif known := split_of(split):
            tars.setdefault(known, []).append(tar)
        else:
            raise GratisError(f"{path} has the split {split[:80]!r}, which is none of {SPLITS}")
        if type(samples) is int:
            lengths[tar] = samples
    for one, listed in (divide(unnamed) if unnamed else {}).items():
        tars.setdefault(one, []).extend(listed)
    return ShardList(path, tars, lengths)


def _address(root: str, path: str, name: str) -> str:
    """Of a tar that the list names, from its own folder."""
    inside = not name.startswith("/") and ".." not in name.split("/") and "://" not in name
    if not inside or ":" in name:
        beside = addresses.join(root, name.rpartition("/")[2])
        if not addresses.is_file(beside):
            raise GratisError(
                f"{path} names {name[:200]!r}, which is not in {root}; give the folder or address "
                f"that holds the tars"
            )
        return beside
    return addresses.join(root, name.removeprefix("./"))
