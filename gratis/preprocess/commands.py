"""The verbs of the preprocess stage, as functions of their arguments.

gratis sample --out sample/source
gratis shards --src sample/source --out sample/shards
gratis merge sample/shards
gratis index TARS
gratis verify sample/shards
gratis inspect sample/shards
"""

from __future__ import annotations

import dataclasses
import os
from typing import TypeVar

from gratis.command_line import parse
from gratis.errors import GratisError
from gratis.preprocess.index import IndexConfig
from gratis.preprocess.index import index as index_tars
from gratis.preprocess.inspect import InspectConfig
from gratis.preprocess.inspect import inspect as inspect_dataset
from gratis.preprocess.merge import MergeConfig
from gratis.preprocess.merge import merge as merge_shards
from gratis.preprocess.sample import SampleConfig, make_sample
from gratis.preprocess.shards import ShardsConfig, make_shards
from gratis.preprocess.verify import VerifyConfig
from gratis.preprocess.verify import verify as verify_dataset
from gratis.signals import terminate_interrupts

Config = TypeVar("Config")


def sample(arguments: list[str]) -> None:
    make_sample(_parsed(SampleConfig, arguments, "sample"))


def shards(arguments: list[str]) -> None:
    make_shards(_in_slurm_array(_parsed(ShardsConfig, arguments, "shards")))


def merge(arguments: list[str]) -> None:
    merge_shards(_parsed(MergeConfig, arguments, "merge"))


def index(arguments: list[str]) -> None:
    index_tars(_parsed(IndexConfig, arguments, "index"))


def verify(arguments: list[str]) -> None:
    verify_dataset(_parsed(VerifyConfig, arguments, "verify"))


def inspect(arguments: list[str]) -> None:
    inspect_dataset(_parsed(InspectConfig, arguments, "inspect"))


def _parsed(kind: type[Config], arguments: list[str], verb: str) -> Config:
    terminate_interrupts()
    return parse(kind, arguments, f"gratis {verb}")


def _in_slurm_array(config: ShardsConfig) -> ShardsConfig:
    """As a task of the batch scheduler's array, if it is one and nothing else was asked for."""
    task, count = os.environ.get("SLURM_ARRAY_TASK_ID"), os.environ.get("SLURM_ARRAY_TASK_COUNT")
    if config.task_id is not None or not task or not count or config.dry_run:
        return config
    tasks = int(count)
    first, step = (
        int(os.environ.get(f"SLURM_ARRAY_TASK_{name}", least))
        for name, least in (("MIN", 0), ("STEP", 1))
    )
    last = int(os.environ.get("SLURM_ARRAY_TASK_MAX", first + (tasks - 1) * step))
    if last != first + (tasks - 1) * step:  # --array=1,3,7: nobody knows who is who
        numbers = (
            f"SLURM_ARRAY_TASK_COUNT={tasks} numbers from {first} to {last} by "
            f"SLURM_ARRAY_TASK_STEP={step}"
        )
        raise GratisError(
            f"the array has gaps ({numbers}): take --array=0-{tasks - 1}, or give --task-id and "
            f"--num-tasks"
        )
    # 1-64, or 0-6:2
    return dataclasses.replace(config, task_id=(int(task) - first) // step, num_tasks=tasks)
