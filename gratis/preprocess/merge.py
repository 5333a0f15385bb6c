"""The merge command: publishes a dataset whose shards the tasks of a batch scheduler have made.

gratis merge shards
"""

from __future__ import annotations

from dataclasses import dataclass

import tyro

from gratis import dataset
from gratis.dataset import Manifest
from gratis.errors import GratisError
from gratis.preprocess.output.receipt import finished_shards
from gratis.preprocess.output.store import WORK, open_store
from gratis.preprocess.stages.ownership import lock_output
from gratis.preprocess.stages.plan import PLAN, ShardPlan
from gratis.preprocess.stages.publish import already_there, publish, summary


@dataclass(frozen=True, kw_only=True)
class MergeConfig:
    """Publishes the dataset whose shards the tasks of a batch scheduler have made."""

    out: tyro.conf.Positional[str]
    """Folder or URL of the dataset."""
    max_rejects: int = 0
    """Publish although up to so many files could not be used."""


def merge_tasks(config: MergeConfig) -> Manifest:
    """Publishes the dataset, returns its manifest. GratisError naming shards that no task has
    finished yet."""
    store = open_store(config.out)
    if dataset.MANIFEST in store.sizes():
        return already_there(store)
    no_work = GratisError(
        f"{config.out} holds no work of any task; run the shards command's tasks first"
    )
    if not store.sizes(WORK):  # before the lock, which would make the folder
        raise no_work
    with lock_output(store, shared=False):
        # another merge has published it in between, and released the lock
        if dataset.MANIFEST in store.sizes():
            return already_there(store)
        try:
            plan = ShardPlan.from_json(store.read(PLAN))
        except (OSError, ValueError, KeyError, TypeError):
            raise no_work from None
        shards = plan.shard_names()
        names = [name for split in shards.values() for name in split]
        done = finished_shards(store, names)
        if missing := [name for name in names if name not in done]:
            shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            raise GratisError(
                f"{config.out} lacks {len(missing)} of {len(names)} shards: {shown}; run their "
                f"tasks again"
            )
        manifest = publish(store, plan.draft, shards, config.max_rejects, plan.lost)
    print(f"{config.out}: {summary(manifest)}")
    return manifest
