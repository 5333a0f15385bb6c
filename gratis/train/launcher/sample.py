"""The dataset of `gratis train` without --shards: drawn and sharded here, by stages of their own
processes."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from gratis.errors import INTERRUPTED
from gratis.processes import end
from gratis.signals import Terminated

FOLDER = Path("sample")
SHARDS = FOLDER / "shards"
STAGE_S = 5.0  # for a stage to end after ctrl-C before it is asked to


def prepare_sample(size: int, run: Path) -> Path:
    """Draws and shards the sample dataset, to be watched as `run`; both stages know when there is
    nothing to do. CalledProcessError if one fails."""
    source = str(FOLDER / "source")
    _stage(["sample", "--out", source])
    sharding = ["shards", "--src", source, "--out", str(SHARDS), "--size", str(size)]
    # the whole of it, also where a batch scheduler's variables would make it one task of several
    whole = ["--task-id", "0", "--num-tasks", "1"]
    _stage([*sharding, "--run-dir", str(run), *whole])
    return SHARDS


def _stage(arguments: list[str]) -> None:
    """Ctrl-C reaches the stage too, and its message on that is enough."""
    stage = subprocess.Popen([sys.executable, "-m", "gratis", *arguments])
    try:
        code = stage.wait()
    except KeyboardInterrupt:
        with suppress(subprocess.TimeoutExpired):
            stage.wait(STAGE_S)
        end(stage)
        code = INTERRUPTED
    except Terminated:
        end(stage)
        raise
    if code:
        raise subprocess.CalledProcessError(code, stage.args)
