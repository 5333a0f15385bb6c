"""The peers by name, what each needs, and which files it reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks.loader.peers import ours, threads, workers
from benchmarks.loader.peers.common import Batches, Files

# of a dataset, decoder threads, and a folder of what `write` wrote
Stream = Callable[[Path, int, Path], Batches]


class Peer(NamedTuple):
    stream: Stream
    needs: tuple[str, ...]  # modules
    files: Files = "usual"
    write: Callable[[Path, Path], None] | None = None  # the dataset in the peer's own format


PEERS: dict[str, Peer] = {
    "ours": Peer(ours.whole, ()),
    "dali": Peer(threads.dali, ("nvidia.dali",)),
    "tfdata": Peer(threads.tfdata, ("tensorflow",), write=threads.write_tfdata),
    "ffcv": Peer(threads.ffcv, ("ffcv",), write=threads.write_ffcv),
    "grain": Peer(threads.grain, ("grain",)),
    "spdl": Peer(threads.spdl, ("spdl.io", "spdl.pipeline")),
    "webdataset": Peer(workers.webdataset, ("webdataset",)),
    "litdata": Peer(workers.litdata, ("litdata",), write=workers.write_litdata),
    "streaming": Peer(workers.streaming, ("streaming",), write=workers.write_streaming),
    "dataloader": Peer(workers.dataloader, ()),
    "imagefolder": Peer(workers.imagefolder, ("torchvision",)),
    "ours-fitted": Peer(ours.whole, (), "fitted"),
    "ours-q90": Peer(ours.whole, (), "q90"),
    "ours-raw": Peer(ours.whole, (), "raw"),
    "ffcv-raw": Peer(threads.ffcv, ("ffcv",), "raw", threads.write_ffcv),
}
STAGES: dict[str, Peer] = {"read": Peer(ours.read, ()), "decode": Peer(ours.decoded, ())}
