"""Engines: where shard tasks run. Local processes by default, or a Ray cluster (`pip install ray`,
--engine ray).

A task's output is a pure function of the task, so an engine may run it twice, anywhere, at any
time. Ray starts at RAY_ADDRESS or on this machine; OUT and SRC must be the same for all its nodes,
a shared file system or a URL. Ray runs the tasks of a node that dies again on another."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from gratis.errors import GratisError
from gratis.preprocess.execution.workers import TaskProgress, Worker, run_tasks, stop_all
from gratis.preprocess.stages.shard import ShardTask

Engine = Literal["local", "ray"]
AHEAD = 2  # tasks given to the cluster per core: one that runs, one that waits


def run_by(
    engine: Engine, tasks: Iterable[ShardTask], workers: int, pool: list[Worker]
) -> Iterator[TaskProgress]:
    """Runs every task; yields progress. GratisError where a task cannot read or write. pool: local
    processes that are there already."""
    if engine == "local":
        return run_tasks(tasks, workers, pool)
    stop_all(pool)
    return run_on_ray(tasks)


def run_on_ray(tasks: Iterable[ShardTask]) -> Iterator[TaskProgress]:
    """The tasks on a Ray cluster, a core each; yields progress shard by shard."""
    ray = _connect()
    remote = ray.remote(num_cpus=1, max_retries=-1)(_one)
    source = iter(tasks)
    running: dict[Any, ShardTask] = {}
    try:
        while True:
            cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
            for task in islice(source, max(0, AHEAD * cores - len(running))):
                running[remote.remote(task, os.getcwd())] = task
            if not running:
                return
            for done in ray.wait(list(running), timeout=1.0)[0]:
                del running[done]
                progress, failure = ray.get(done)
                if failure:
                    raise GratisError(failure)
                yield progress
    except ray.exceptions.RayError as error:  # of the cluster; a task's own failures are texts
        reason = " ".join(str(error).split())[:300]
        raise GratisError(f"--engine ray: {reason}; run it again to go on") from None
    finally:
        ray.shutdown()


# A worker process of our own inside each of Ray's, so that decoders which crash or hang are handled
# alike. It waits for the next shard, as starting one costs 0.2 CPU s; when Ray ends its process,
# the pipe to this one ends it too.
_pool: list[Worker] = []


def _one(task: ShardTask, folder: str) -> tuple[TaskProgress, str]:
    """Progress of the whole task, and why it failed, or "". folder: where relative paths start."""
    os.chdir(folder)
    total = TaskProgress()
    try:
        for progress in run_tasks([task], 1, _pool):
            total = total.plus(progress)
    except GratisError as error:
        return total, str(error)
    return total, ""


def _connect() -> Any:
    try:
        import ray
    except ImportError:
        raise GratisError(
            "--engine ray: ray is not installed; pip install ray, or leave --engine out"
        ) from None
    # Ray's own future default; it warns otherwise
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    home = str(Path(__file__).resolve().parents[3])  # of the package gratis
    path = [home, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(path)}}
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, runtime_env=environment)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise GratisError(f"--engine ray: no cluster: {reason}") from None
    return ray
