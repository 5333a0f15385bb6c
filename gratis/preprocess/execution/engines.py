"""Engines: who runs shard tasks. Local processes by default, or a Ray cluster (`pip install ray`,
--engine ray).

A task is whole in itself and its output a pure function of it, so that engines may run one twice,
anywhere, at any time. Ray starts at RAY_ADDRESS or on this machine; OUT and SRC must be the same
for all its nodes, a shared file system or a URL. A node that dies costs the tasks it was at: Ray
runs them again elsewhere."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Literal

import gratis
from gratis.errors import GratisError
from gratis.preprocess.execution.workers import Step, Worker, run_tasks
from gratis.preprocess.stages.shard import ShardTask

Engine = Literal["local", "ray"]
AHEAD = 2  # tasks given to the cluster per core: one at work, one waiting


def run_by(engine: Engine, tasks: Iterable[ShardTask], workers: int) -> Iterator[Step]:
    """Runs every task; yields what was done as it is done. GratisError where a task cannot read or
    write."""
    return run_on_ray(tasks) if engine == "ray" else run_tasks(tasks, workers)


def run_on_ray(tasks: Iterable[ShardTask]) -> Iterator[Step]:
    """The tasks on a Ray cluster, a core each; yields a step a shard."""
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
                step, failure = ray.get(done)
                if failure:
                    raise GratisError(failure)
                yield step
    except (
        ray.exceptions.RayError
    ) as error:  # the cluster itself is lost: a task's own failures come back as text
        raise GratisError(
            f"--engine ray: {' '.join(str(error).split())[:300]}; run it again to go on"
        ) from None
    finally:
        ray.shutdown()


# A worker process of our own inside each of Ray's: the guard against decoders that crash or hang is
# the same. It waits for the next shard, as starting one costs 0.2 CPU s; when Ray ends its process,
# the pipe to this one ends it too.
_kept: list[Worker] = []


def _one(task: ShardTask, folder: str) -> tuple[Step, str]:
    """What the task did, and why it failed or ""; `folder` is where relative paths start."""
    os.chdir(folder)
    total = Step()
    try:
        for step in run_tasks([task], 1, _kept):
            total = total.plus(step)
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
    try:
        ray.init(
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(_import_path())}},
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise GratisError(
            f"--engine ray: no cluster: {' '.join(str(error).split())[:300]}"
        ) from None
    return ray


def _import_path() -> list[str]:
    home = os.path.dirname(os.path.dirname(os.path.abspath(gratis.__file__)))
    return [home, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
