"""The merge command: the reduce alone, once the tasks of a batch scheduler have made the shards.

gratis merge shards
"""

from __future__ import annotations

from dataclasses import dataclass

import tyro

from gratis import dataset
from gratis.dataset import Manifest
from gratis.errors import GratisError
from gratis.preprocess.output.ownership import claimed
from gratis.preprocess.output.store import WORK, Store, open_store
from gratis.preprocess.stages.plan import PLAN, Plan
from gratis.preprocess.stages.publish import publish, published, summary
from gratis.preprocess.stages.shard import finished


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """Publishes the dataset whose shards the tasks of a batch scheduler have made."""

    out: tyro.conf.Positional[str]
    """Folder or URL of the dataset."""
    max_rejects: int = 0
    """Publish although up to so many files could not be used."""


def merge(config: MergeConfig) -> Manifest:
    """The reduce alone. GratisError naming shards that no task has finished yet."""
    store = open_store(config.out)
    if dataset.MANIFEST in store.sizes():
        return _already(config.out, store)
    if not store.sizes(WORK):  # before the claim, which would make the folder
        raise GratisError(
            f"{config.out} holds no work of any task; run the shards command's tasks first"
        )
    with claimed(config.out, store, shared=False):
        # another merge has published it since, and let the lock go
        if dataset.MANIFEST in store.sizes():
            return _already(config.out, store)
        try:
            plan = Plan.from_json(store.read(PLAN))
        except (OSError, ValueError, KeyError, TypeError):
            raise GratisError(
                f"{config.out} holds no work of any task; run the shards command's tasks first"
            ) from None
        there, receipts = store.sizes(), store.sizes(WORK)
        by_split = plan.shard_names()
        names = [name for shards in by_split.values() for name in shards]
        missing = [name for name in names if finished(store, name, there, receipts) is None]
        if missing:
            shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            raise GratisError(
                f"{config.out} lacks {len(missing)} of {len(names)} shards: {shown}; run their "
                f"tasks again"
            )
        manifest = publish(store, config.out, plan.draft, by_split, config.max_rejects)
    print(f"{config.out}: {summary(manifest)}")
    return manifest


def _already(out: str, store: Store) -> Manifest:
    manifest = published(out, store)
    # of this command's claim, or of a run that was killed after its last act but one
    store.remove(WORK)
    print(f"{out} is already there: {summary(manifest)}")
    return manifest
