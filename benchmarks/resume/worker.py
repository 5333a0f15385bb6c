"""One rank of one loader, for `benchmarks.resume.run`: takes batches, saves its state, and is
killed.

python -m benchmarks.resume.worker NAME DATA OUT BATCH WORKERS RANK WORLD STATES|- STOP,STOP,..|-

For each seed 0, 1, .. OUT gets a line of JSON with the ids that were taken, or an error. With STOP
the state after so many batches is left in OUT.SEED, and the process waits to be killed. STATES: OUT
of the process to go on from."""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from benchmarks.resume.adapters import ADAPTERS, CannotError, Job

SEEDS = 3


def main() -> None:
    name, data, out, batch, workers, rank, world, states, stops = sys.argv[1:]
    join(int(rank), int(world))
    for seed in range(SEEDS):
        state = None if states == "-" else pickle.loads(Path(f"{states}.{seed}").read_bytes())
        job = Job(
            data=Path(data),
            batch=int(batch),
            workers=int(workers),
            rank=int(rank),
            world=int(world),
            seed=seed,
            state=state,
        )
        stop = None if stops == "-" else int(stops.split(",")[seed])
        record = epoch(name, job, stop, Path(f"{out}.{seed}"))
        with open(out, "a") as file:
            file.write(json.dumps(record) + "\n")
    if stops != "-":
        os.killpg(os.getpgid(0), signal.SIGKILL)
    os._exit(0)  # some loaders' threads do not end


def join(rank: int, world: int) -> None:
    """torch.distributed, which most loaders ask, by way of a file."""
    places = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world}
    os.environ |= {key: str(value) for key, value in places.items()}
    if world > 1:
        import torch.distributed

        torch.distributed.init_process_group(
            "gloo", init_method=os.environ["RENDEZVOUS"], rank=rank, world_size=world
        )


def epoch(name: str, job: Job, stop: int | None, keep: Path) -> dict[str, Any]:
    """The ids of the epoch, or of its first `stop` batches, the state behind them kept."""
    ids: list[int] = []
    try:
        running = ADAPTERS[name][1](job)
        for number, batch in enumerate(running.batches, 1):
            ids += batch
            if number == stop:
                keep.write_bytes(pickle.dumps(running.state()))
                break
    except CannotError as error:
        return {"ids": ids, "cannot": str(error)}
    except BaseException as error:  # a panic of Rust is one
        traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        if "Original Traceback" in str(error):  # of a worker process: its own error stands last
            return {"ids": ids, "error": lines[-1]}
        return {"ids": ids, "error": f"{type(error).__name__}: {lines[0]}"}
    return {"ids": ids}


if __name__ == "__main__":
    main()
