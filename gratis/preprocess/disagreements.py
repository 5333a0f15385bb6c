"""What the index command says of JPEGs that loaders are known to read differently."""

from __future__ import annotations

from collections import Counter

from gratis.jpeg_variants import OTHERWISE
from gratis.preprocess.output.receipt import read_receipt
from gratis.preprocess.output.store import Store


def print_disagreements(store: Store, shards: dict[str, list[str]]) -> None:
    """A line for each kind that the shards' receipts, by split, have counted; nothing where there
    is none."""
    counts: Counter[str] = Counter()
    for name in (name for names in shards.values() for name in names):
        counts.update(read_receipt(store, name).disagreements or {})
    for kind, count in counts.most_common():
        images = "1 image" if count == 1 else f"{count:,} images"
        print(f"loaders disagree on {images}: {kind}; {OTHERWISE[kind]} (docs/loaders.md)")
