"""The verbs of the preprocess stage: each parses its arguments and calls one function.

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
from collections.abc import Callable
from typing import TypeVar

from gratis.command_line import parse
from gratis.errors import GratisError
from gratis.preprocess.index import IndexConfig, index_tars
from gratis.preprocess.inspect import InspectConfig, inspect_dataset
from gratis.preprocess.merge import MergeConfig, merge_tasks
from gratis.preprocess.sample import SampleConfig, make_sample
from gratis.preprocess.shards import ShardsConfig, make_shards
from gratis.preprocess.verify import DecoderCheck, VerifyConfig, verify_dataset
from gratis.signals import terminate_interrupts

Config = TypeVar("Config")


def sample(arguments: list[str]) -> None:
    make_sample(_parse(SampleConfig, arguments, "sample"))


def shards(arguments: list[str]) -> None:
    make_shards(as_array_task(_parse(ShardsConfig, arguments, "shards")))


def merge(arguments: list[str]) -> None:
    merge_tasks(_parse(MergeConfig, arguments, "merge"))


def index(arguments: list[str]) -> None:
    index_tars(_parse(IndexConfig, arguments, "index"))


def verify(arguments: list[str], decoders: Callable[[], DecoderCheck | None]) -> None:
    verify_dataset(_parse(VerifyConfig, arguments, "verify"), decoders)


def inspect(arguments: list[str]) -> None:
    inspect_dataset(_parse(InspectConfig, arguments, "inspect"))


def as_array_task(config: ShardsConfig) -> ShardsConfig:
    """With the task of SLURM's array, if this process is one and the options name no task.
    GratisError for an array with gaps."""
    number, count = os.environ.get("SLURM_ARRAY_TASK_ID"), os.environ.get("SLURM_ARRAY_TASK_COUNT")
    if config.task_id is not None or not number or not count or config.dry_run:
        return config
    tasks = int(count)
    first = int(os.environ.get("SLURM_ARRAY_TASK_MIN", "0"))
    step = int(os.environ.get("SLURM_ARRAY_TASK_STEP", "1"))
    expected = first + (tasks - 1) * step
    last = int(os.environ.get("SLURM_ARRAY_TASK_MAX", str(expected)))
    if last != expected:  # --array=1,3,7: a task does not know its position
        numbers = (
            f"SLURM_ARRAY_TASK_COUNT={tasks} numbers from {first} to {last} by "
            f"SLURM_ARRAY_TASK_STEP={step}"
        )
        raise GratisError(
            f"the array has gaps ({numbers}): take --array=0-{tasks - 1}, or give --task-id and "
            f"--num-tasks"
        )
    task = (int(number) - first) // step  # of --array=1-64 or 0-6:2
    return dataclasses.replace(config, task_id=task, num_tasks=tasks)


def _parse(kind: type[Config], arguments: list[str], verb: str) -> Config:
    terminate_interrupts()
    return parse(kind, arguments, f"gratis {verb}")
