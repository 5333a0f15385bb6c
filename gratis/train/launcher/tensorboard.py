"""A run's records as a TensorBoard event file beside them: `gratis train --tensorboard`.

Written by the launcher's process, which only waits meanwhile; the training loop does not know of
it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from gratis.events import EventTail

SUFFIX = ".gratis"  # of our event file, which a resumed run writes anew
EVERY_S = 2.0


@contextmanager
def mirror(folder: Path) -> Iterator[None]:
    """Keeps an event file of rank 0's records, of all attempts, up to date while this is open."""
    from torch.utils.tensorboard import SummaryWriter

    for old in folder.glob(f"events.out.tfevents.*{SUFFIX}"):
        old.unlink()
    writer = SummaryWriter(str(folder), filename_suffix=SUFFIX)
    copier, stop = Copier(folder, writer), threading.Event()

    def follow() -> None:
        while not stop.wait(EVERY_S):
            copier.catch_up()

    thread = threading.Thread(target=follow, name="tensorboard", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        copier.catch_up()
        writer.close()


class Copier:
    """Copies what rank 0's file has gained."""

    def __init__(self, folder: Path, writer: Any) -> None:
        self._tail, self._writer = EventTail(folder / "rank-0.jsonl"), writer
        self._world, self._attempt = 1, 0

    def catch_up(self) -> None:
        while records := self._tail.read():
            for record in records:
                self._copy(record)
        self._writer.flush()

    def _copy(self, record: Mapping[str, Any]) -> None:
        t, step = float(record["t"]), int(record.get("step", 0))
        if record["kind"] == "start":
            self._world = int(record["world"])
        elif record["kind"] == "step":
            if record["attempt"] > self._attempt:
                self._attempt = record["attempt"]
                self._restart(t, step - record["steps"] + 1)
            self._scalars(t, step, step_scalars(record, self._world))
        elif record["kind"] == "eval":
            self._scalars(t, step, eval_scalars(record))

    def _restart(self, t: float, step: int) -> None:
        """From this step on an attempt runs again what an earlier one did: TensorBoard drops that,
        as it does for SummaryWriter's `purge_step`."""
        proto = import_module("tensorboard.compat.proto.event_pb2")
        log = proto.SessionLog(status=proto.SessionLog.START)
        self._writer.file_writer.add_event(proto.Event(session_log=log), step, t)

    def _scalars(self, t: float, step: int, scalars: Mapping[str, float | None]) -> None:
        for tag, value in scalars.items():
            if value is not None:
                self._writer.add_scalar(tag, value, step, t)


def step_scalars(record: Mapping[str, Any], world: int) -> dict[str, float | None]:
    """An interval's scalars; each rank loads 1/world of every batch, so rank 0's rate is that share
    of all."""
    return {
        "train/loss": record["loss"],
        "train/top1_error": None if record["top1"] is None else 1 - record["top1"],
        "train/images_per_s": world * record["images"] / record["wall_s"],
        "train/learning_rate": record["lr"],
        "loader/wait_fraction": record["wait_s"] / record["wall_s"],
    }


def eval_scalars(record: Mapping[str, Any]) -> dict[str, float | None]:
    views = f"{record['views']}_view"
    errors = {f"val/{top}_error_{views}": 1 - record[top] for top in ("top1", "top5")}
    return errors | {f"val/nll_{views}": record["nll"]}
