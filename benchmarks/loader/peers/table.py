"""The peers by name, what each does and needs, and which files it reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from benchmarks.environments import Requirements
from benchmarks.loader.peers import ours, recipes, resized, threads, workers
from benchmarks.loader.peers.common import Files, Stream, Work

# what is installed beside this environment for each; the versions that were measured
ENVIRONMENTS: dict[str, Requirements] = {
    "here": (),
    "torch": (
        ("turboloader==2.39.0", "datago==2026.10.1", "simplejpeg==1.9.0", "torchvision==0.28.0"),
        ("litdata==0.2.76", "mosaicml-streaming==0.13.0", "grain==0.2.18", "spdl-io==0.8.0"),
        ("timm==1.0.31",),
    ),
    "tensorflow": (("tensorflow-cpu==2.21.0",),),
    "ffcv": (  # compiled: needs a C++ compiler, libopencv-dev and libturbojpeg0-dev
        ("setuptools", "wheel", "opencv-python-headless==5.0.0.93", "terminaltables==3.1.10"),
        ("pytorch_pfn_extras==0.9.0", "fastargs==1.2.0", "assertpy==1.1", "tqdm"),
        ("--no-deps", "--no-build-isolation", "ffcv==1.0.2"),
    ),
}


class Peer(NamedTuple):
    streams: dict[Work, Stream]
    needs: tuple[str, ...] = ()  # modules
    environment: str = "here"
    files: Files = "usual"
    write: Callable[[Path, Path], None] | None = None  # the dataset in the peer's own format


TURBOLOADER: dict[Work, Stream] = {"crop": threads.turboloader, "resized": resized.turboloader}
TFDATA: dict[Work, Stream] = {"crop": threads.tfdata, "resized": resized.tfdata}
FFCV: dict[Work, Stream] = {"crop": threads.ffcv, "resized": resized.ffcv}
IMAGEFOLDER: dict[Work, Stream] = {
    "crop": workers.imagefolder,
    "resized": resized.imagefolder,
    "trivial": recipes.trivial,
    "mixup": recipes.mixup,
    "vit": recipes.vit,
}
TIMM: dict[Work, Stream] = {"resized": recipes.timm_resized, "vit": recipes.timm_vit}
DALI: dict[Work, Stream] = {
    "crop": threads.dali,
    "resized": resized.dali_resized,
    "trivial": recipes.dali_trivial,
    "vit": recipes.dali_vit,
}
PEERS: dict[str, Peer] = {
    "ours": Peer(ours.WORKS, files="fitted"),
    "ours-usual": Peer({"crop": ours.crop, "resized": ours.resized}),
    "dali": Peer(DALI, ("nvidia.dali",)),
    "dali-fitted": Peer({"crop": threads.dali}, ("nvidia.dali",), files="fitted"),
    "tfdata": Peer(TFDATA, ("tensorflow",), "tensorflow", write=threads.write_tfdata),
    "turboloader": Peer(TURBOLOADER, ("turboloader",), "torch", write=threads.write_turboloader),
    "datago": Peer({"crop": threads.datago}, ("datago",), "torch"),
    "ffcv": Peer(FFCV, ("ffcv",), "ffcv", write=threads.write_ffcv),
    "grain": Peer({"crop": threads.grain}, ("grain",), "torch"),
    "spdl": Peer({"crop": threads.spdl}, ("spdl.io", "spdl.pipeline"), "torch"),
    "webdataset": Peer({"crop": workers.webdataset}, ("webdataset",), "torch"),
    "litdata": Peer({"crop": workers.litdata}, ("litdata",), "torch", write=workers.write_litdata),
    "streaming": Peer(
        {"crop": workers.streaming}, ("streaming",), "torch", write=workers.write_streaming
    ),
    "dataloader": Peer({"crop": workers.dataloader}, (), "torch"),
    "imagefolder": Peer(IMAGEFOLDER, ("torchvision",), "torch"),
    "timm": Peer(TIMM, ("timm",), "torch"),
    "ours-q90": Peer({"crop": ours.crop}, files="q90"),
    "ours-raw": Peer({"crop": ours.crop}, files="raw"),
    "ffcv-raw": Peer({"crop": threads.ffcv}, ("ffcv",), "ffcv", "raw", threads.write_ffcv),
}
STAGES: dict[str, Peer] = {
    "read": Peer({"crop": ours.read}),
    "decode": Peer({"crop": ours.decoded}),
}
