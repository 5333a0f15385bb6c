"""Command line of the preprocess stage.

python -m preprocess sample --out sample/source
python -m preprocess shards --src sample/source --out sample/shards
python -m preprocess merge sample/shards
python -m preprocess index TARS
python -m preprocess verify sample/shards
python -m preprocess inspect sample/shards
python -m preprocess bench --src FOLDER
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from types import FrameType
from typing import Annotated

import tyro

from preprocess.bench import BenchConfig, bench
from preprocess.errors import guard
from preprocess.index import IndexConfig, index
from preprocess.inspect import InspectConfig, inspect
from preprocess.sample import SampleConfig, make_sample
from preprocess.shards import MergeConfig, ShardsConfig, make_shards, merge
from preprocess.verify import VerifyConfig, verify

Command = (
    Annotated[SampleConfig, tyro.conf.subcommand("sample")]
    | Annotated[ShardsConfig, tyro.conf.subcommand("shards")]
    | Annotated[MergeConfig, tyro.conf.subcommand("merge")]
    | Annotated[IndexConfig, tyro.conf.subcommand("index")]
    | Annotated[VerifyConfig, tyro.conf.subcommand("verify")]
    | Annotated[InspectConfig, tyro.conf.subcommand("inspect")]
    | Annotated[BenchConfig, tyro.conf.subcommand("bench")]
)


def main() -> None:
    signal.signal(signal.SIGTERM, _interrupt)
    config = tyro.cli(Command, prog="python -m preprocess", config=(tyro.conf.OmitSubcommandPrefixes,))
    match config:
        case SampleConfig():
            make_sample(config)
        case ShardsConfig():
            make_shards(_in_slurm_array(config))
        case MergeConfig():
            merge(config)
        case IndexConfig():
            index(config)
        case VerifyConfig():
            verify(config)
        case InspectConfig():
            inspect(config)
        case BenchConfig():
            bench(config)


def _in_slurm_array(config: ShardsConfig) -> ShardsConfig:
    """As a task of the batch scheduler's array, if it is one and nothing else was asked for."""
    task, count = os.environ.get("SLURM_ARRAY_TASK_ID"), os.environ.get("SLURM_ARRAY_TASK_COUNT")
    if config.task_id is not None or not task or not count or config.dry_run:
        return config
    first = int(os.environ.get("SLURM_ARRAY_TASK_MIN", "0"))  # --array=1-64 counts from 1
    return dataclasses.replace(config, task_id=int(task) - first, num_tasks=int(count))


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(guard(main))
