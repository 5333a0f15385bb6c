"""One epoch of each loader, as its documentation says to make it resumable: an adapter gives the
ids of each batch, and the state to go on from. Runs in the environment that `run` makes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.loader.peers.common import torchvision
from benchmarks.resume.pictures import SIDE, decoded_id, id_of


@dataclass(frozen=True, kw_only=True)
class Job:
    """data: of `write_data`. batch: of one rank. state: what another process saved, or None."""

    data: Path
    batch: int
    workers: int
    rank: int
    world: int
    seed: int
    state: Any


class CannotError(Exception):
    """There is no way in the loader's documentation."""


class Running:
    """An epoch under way: `batches` yields the ids of each batch; `state` is asked between two of
    them."""

    def __init__(self, batches: Iterator[list[int]], state: Callable[[], Any]) -> None:
        self.batches, self.state = batches, state


def no_state() -> Any:
    raise CannotError("no state")


def ours(job: Job) -> Running:
    library: Any = import_module("gratis.loader")
    config = library.LoaderConfig(
        batch_size=job.batch * job.world,  # of all ranks
        crop=SIDE,
        flip=0.0,
        normalize=None,
        dtype=import_module("torch").uint8,
        layout="nhwc",
        threads=job.workers,
        seed=job.seed,
    )
    loader = library.Loader(
        job.data / "shards", "train", config, rank=job.rank, world_size=job.world
    )
    if job.state:
        loader.load_state_dict(job.state)
    return Running((ids_of(batch.images) for batch in loader), loader.state_dict)


def dali(job: Job) -> Running:
    """readers.webdataset, with a checkpoint of the iterator for PyTorch."""
    library, fn = import_module("nvidia.dali"), import_module("nvidia.dali.fn")
    plugin: Any = import_module("nvidia.dali.plugin.pytorch")
    tars = sorted(str(path) for path in (job.data / "tars").glob("*.tar"))

    @library.pipeline_def  # type: ignore[untyped-decorator]
    def graph() -> Any:
        data, label = fn.readers.webdataset(
            paths=tars,
            index_paths=[tar.replace(".tar", ".idx") for tar in tars],
            ext=["jpg", "cls"],
            random_shuffle=True,
            initial_fill=64,
            shard_id=job.rank,
            num_shards=job.world,
            name="reader",
        )
        return fn.decoders.image(data), label

    pipeline = graph(
        batch_size=job.batch,
        num_threads=job.workers,
        device_id=None,
        seed=job.seed,
        enable_checkpointing=True,
        checkpoint=job.state[0] if job.state else None,
    )
    iterator = plugin.DALIGenericIterator(
        [pipeline],
        ["images", "labels"],
        reader_name="reader",
        last_batch_policy=plugin.LastBatchPolicy.PARTIAL,
    )
    return Running((ids_of(one["images"]) for (one,) in iterator), iterator.checkpoints)


def webdataset(job: Job) -> Running:
    """Shards to ranks and workers, a shuffle buffer, WebLoader. It has no state."""
    library: Any = import_module("webdataset")
    os.environ |= {"RANK": str(job.rank), "WORLD_SIZE": str(job.world)}
    tars = sorted(str(path) for path in (job.data / "tars").glob("*.tar"))
    samples = library.WebDataset(
        tars, shardshuffle=100, nodesplitter=library.split_by_node, seed=job.seed
    )
    ids = samples.shuffle(64).to_tuple("jpg").map(lambda sample: decoded_id(sample[0]))
    batches = library.WebLoader(ids, batch_size=job.batch, num_workers=job.workers)
    return Running(map(np.ndarray.tolist, map(np.asarray, batches)), no_state)


def streaming(job: Job) -> Running:
    """StreamingDataset and StreamingDataLoader on local shards."""
    torchvision()
    library: Any = import_module("streaming")
    samples = of_dictionaries(library.StreamingDataset)(
        local=str(job.data / "mds"),
        shuffle=True,
        shuffle_seed=job.seed,
        batch_size=job.batch,
        num_canonical_nodes=1,
    )
    loader = library.StreamingDataLoader(
        samples, batch_size=job.batch, num_workers=job.workers, drop_last=False
    )
    if job.state:
        loader.load_state_dict(job.state)
    return Running((batch.tolist() for batch in loader), loader.state_dict)


def litdata(job: Job) -> Running:
    """StreamingDataset and StreamingDataLoader on local chunks."""
    library: Any = import_module("litdata")
    samples = of_dictionaries(library.StreamingDataset)(
        str(job.data / "chunks"), shuffle=True, seed=job.seed, drop_last=False
    )
    loader = library.StreamingDataLoader(
        samples, batch_size=job.batch, num_workers=job.workers, drop_last=False
    )
    if job.state:
        loader.load_state_dict(job.state)
    return Running((batch.tolist() for batch in loader), loader.state_dict)


def grain(job: Job) -> Running:
    """DataLoader, IndexSampler, and the state of its iterator."""
    library: Any = import_module("grain")
    import_module("absl.flags").FLAGS(["resume"])
    source = Files(job.data)
    options = library.sharding.ShardOptions(job.rank, job.world, drop_remainder=False)
    loader = library.DataLoader(
        data_source=source,
        sampler=library.samplers.IndexSampler(
            len(source), shard_options=options, shuffle=True, num_epochs=1, seed=job.seed
        ),
        operations=[library.transforms.Batch(job.batch, drop_remainder=False)],
        worker_count=job.workers,
    )
    iterator = iter(loader)
    if job.state:
        iterator.set_state(job.state)
    return Running((batch.tolist() for batch in iterator), iterator.get_state)


def turboloader(job: Job) -> Running:
    """Its fused path, on one tar. Its threads are one per core, whatever is asked for."""
    library: Any = import_module("turboloader")
    loader = library.DataLoader(
        str(job.data / "one.tar"),
        batch_size=job.batch,
        num_workers=job.workers,
        image_size=SIDE,
        output_format="numpy",
        shuffle=True,
        seed=job.seed,
        enable_distributed=job.world > 1,
        world_rank=job.rank,
        world_size=job.world,
    )
    loader.set_epoch(0)
    if job.state:
        loader.load_state_dict(job.state)
    return Running((ids_of(images * 255) for images, _ in loader), loader.state_dict)


def datago(job: Job) -> Running:
    """Files; it has no state and no batches."""
    library: Any = import_module("datago")
    source = {"root_path": str(job.data / "files"), "random_sampling": True}
    config = {"source_type": "file", "limit": 1 << 30, "samples_buffer_size": 32}
    config["source_config"] = source | {"rank": job.rank, "world_size": job.world}
    client = library.DatagoClient(import_module("json").dumps(config))

    def batches() -> Iterator[list[int]]:
        ids: list[int] = []
        while (sample := client.get_sample()) is not None:
            ids.append(id_of(sample.image.to_numpy_array()))
            if len(ids) == job.batch:
                yield ids
                ids = []
        yield ids

    return Running(batches(), no_state)


def torchdata(job: Job) -> Running:
    """StatefulDataLoader over files; with ranks its StatefulDistributedSampler."""
    library: Any = import_module("torchdata.stateful_dataloader")
    samplers: Any = import_module("torchdata.stateful_dataloader.sampler")
    torch: Any = import_module("torch")
    torch.manual_seed(job.seed)
    samples, sampler = Files(job.data), None
    if job.world > 1:
        sampler = samplers.StatefulDistributedSampler(
            samples, job.world, job.rank, shuffle=True, seed=job.seed
        )
    loader = library.StatefulDataLoader(
        samples,
        batch_size=job.batch,
        shuffle=sampler is None,
        sampler=sampler,
        num_workers=job.workers,
    )
    if job.state:
        loader.load_state_dict(job.state)
    return Running((batch.tolist() for batch in loader), loader.state_dict)


class Files:
    """The id of each file by number, read from its pixels."""

    def __init__(self, data: Path) -> None:
        self._paths = sorted((data / "files").glob("*/*.jpg"))

    def __len__(self) -> int:
        return len(self._paths)

    def __repr__(self) -> str:
        """The same in every process: grain compares it with the one in its checkpoint."""
        return f"Files({len(self)})"

    def __getitem__(self, number: int) -> int:
        return decoded_id(self._paths[number].read_bytes())


def of_dictionaries(base: Any) -> Any:
    """A library's dataset of {"image": bytes}, whose samples are ids."""

    class Ids(base):  # type: ignore[misc]
        def __getitem__(self, number: Any) -> int:
            return decoded_id(super().__getitem__(number)["image"])

    return Ids


def ids_of(images: Any) -> list[int]:
    return [id_of(np.asarray(image)) for image in images]


ADAPTERS: dict[str, tuple[str, Callable[[Job], Running]]] = {  # name -> package, epoch
    "gratis": ("gratis", ours),
    "DALI, readers.webdataset": ("nvidia-dali-cuda130", dali),
    "webdataset": ("webdataset", webdataset),
    "MosaicML streaming": ("mosaicml-streaming", streaming),
    "litdata": ("litdata", litdata),
    "grain": ("grain", grain),
    "TurboLoader": ("turboloader", turboloader),
    "datago": ("datago", datago),
    "torchdata, StatefulDataLoader": ("torchdata", torchdata),
}
