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
from collections.abc import Callable
from types import FrameType

import tyro

from preprocess.arguments import parsed
from preprocess.bench import BenchConfig, bench
from preprocess.errors import UserError, guard
from preprocess.index import IndexConfig, index
from preprocess.inspect import InspectConfig, inspect
from preprocess.merge import MergeConfig, merge
from preprocess.sample import SampleConfig, make_sample
from preprocess.shards import ShardsConfig, make_shards
from preprocess.verify import VerifyConfig, verify

COMMANDS: dict[str, Callable[..., object]] = {
    "sample": SampleConfig,
    "shards": ShardsConfig,
    "merge": MergeConfig,
    "index": IndexConfig,
    "verify": VerifyConfig,
    "inspect": InspectConfig,
    "bench": BenchConfig,
}
PROGRAM = "python -m preprocess"


def main() -> None:
    signal.signal(signal.SIGTERM, _interrupt)
    match parsed(lambda: _configured(sys.argv[1:])):
        case SampleConfig() as config:
            make_sample(config)
        case ShardsConfig() as config:
            make_shards(_in_slurm_array(config))
        case MergeConfig() as config:
            merge(config)
        case IndexConfig() as config:
            index(config)
        case VerifyConfig() as config:
            verify(config)
        case InspectConfig() as config:
            inspect(config)
        case BenchConfig() as config:
            bench(config)


def _configured(arguments: list[str]) -> object:
    if arguments and arguments[0] in COMMANDS:  # tyro's hints then name a command that can be typed
        name, *rest = arguments
        return tyro.cli(COMMANDS[name], args=rest, prog=f"{PROGRAM} {name}")
    return tyro.extras.subcommand_cli_from_dict(COMMANDS, args=arguments, prog=PROGRAM)


def _in_slurm_array(config: ShardsConfig) -> ShardsConfig:
    """As a task of the batch scheduler's array, if it is one and nothing else was asked for."""
    task, count = os.environ.get("SLURM_ARRAY_TASK_ID"), os.environ.get("SLURM_ARRAY_TASK_COUNT")
    if config.task_id is not None or not task or not count or config.dry_run:
        return config
    tasks = int(count)
    first, step = (int(os.environ.get(f"SLURM_ARRAY_TASK_{name}", least)) for name, least in (("MIN", 0), ("STEP", 1)))
    last = int(os.environ.get("SLURM_ARRAY_TASK_MAX", first + (tasks - 1) * step))
    if last != first + (tasks - 1) * step:  # --array=1,3,7: nobody knows who is who
        numbers = f"SLURM_ARRAY_TASK_COUNT={tasks} numbers from {first} to {last} by SLURM_ARRAY_TASK_STEP={step}"
        raise UserError(
            f"the array has gaps ({numbers}): take --array=0-{tasks - 1}, or give --task-id and --num-tasks"
        )
    return dataclasses.replace(config, task_id=(int(task) - first) // step, num_tasks=tasks)  # 1-64, or 0-6:2


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(guard(main))
