"""A training loop whose every step is timed: `python stepper.py SHARDS RUN`. Until SIGTERM; then
all of them as JSON.

The real loader, network and event writer, on one thread, so that the server has a core where there
are two."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from gratis.events import EventWriter
from gratis.loader import Loader, LoaderConfig
from gratis.signals import StopSignals
from gratis.train.mesh.mesh import connect
from gratis.train.network.alexnet import AlexNet
from gratis.train.network.dropout import DropoutKey
from gratis.train.recipes import RECIPES
from gratis.train.telemetry import IntervalMeter

ROWS = 16


def main(shards: Path, run: Path) -> None:
    mesh = connect(1)
    torch.set_num_threads(1)
    network = AlexNet(replace(RECIPES["sample"], width=0.125, hidden=256), 10)
    writer = EventWriter(run / "rank-0.jsonl", attempt=1, rank=0)
    writer.write("start", {"world": 1})
    signals, times, step = StopSignals(), [], 0
    with Loader(
        shards, "train", LoaderConfig.alexnet(batch_size=ROWS, crop=112, threads=1)
    ) as loader:
        interval = IntervalMeter(mesh, loader, writer, signals)
        while not signals.terminated:
            begin = time.monotonic()
            for images, labels, _ in interval.batches():
                logits = network(images, DropoutKey(seed=0, step=step, rows=range(ROWS)))
                loss = cross_entropy(logits, labels)
                loss.backward()  # type: ignore[no-untyped-call]
                interval.add(loss, logits, labels)
                step += 1
                if interval.due:
                    interval.close(epoch=0, step=step, rate=0.01)
                end = time.monotonic()
                times.append((begin, end - begin))
                begin = end
                if signals.terminated:
                    break
    print(json.dumps(times))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
