"""Peers that work in processes of torch's DataLoader, which send uint8 crops; float32 is made in
the parent, which was quicker for each than float32 from its workers. Each is optional."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from benchmarks.loader.peers.common import (
    BATCH,
    SHUFFLE,
    Batches,
    NumpyNormaliser,
    Samples,
    crop_of,
    cut,
    cut_all,
    encoded,
    tars_of,
    torchvision,
)


def dataloader(root: Path, threads: int, scratch: Path) -> Batches:
    """torch's DataLoader alone over our index; decoded by simplejpeg, or Pillow."""
    return _finished(root, map_loader(Samples(root), threads))


def imagefolder(root: Path, threads: int, scratch: Path) -> Batches:
    """torchvision's ImageFolder, its own decoder (Pillow) and its second transforms."""
    torchvision()
    folders: Any = import_module("torchvision.datasets")
    v2: Any = import_module("torchvision.transforms.v2")
    cutting = [v2.RandomCrop(crop_of(root)), v2.RandomHorizontalFlip(), v2.PILToTensor()]
    samples = folders.ImageFolder(str(scratch.parent / "folder"), v2.Compose(cutting))
    normalise = NumpyNormaliser(root)
    for batch, _ in map_loader(samples, threads):
        yield normalise(batch.permute(0, 2, 3, 1).numpy())


def webdataset(root: Path, threads: int, scratch: Path) -> Batches:
    """WebLoader's processes decode and cut."""
    wds: Any = import_module("webdataset")
    crop = crop_of(root)
    shards = [str(path) for path in tars_of(root)]
    samples = wds.WebDataset(shards, resampled=True, shardshuffle=False).shuffle(SHUFFLE)
    batches = samples.to_tuple("jpg", "cls").batched(BATCH, partial=False)
    batches = batches.map_tuple(lambda parts: cut_all(parts, crop), lambda labels: labels)
    normalise = NumpyNormaliser(root)
    for batch, _ in wds.WebLoader(batches, batch_size=None, num_workers=threads):
        yield normalise(batch.numpy())


def write_litdata(root: Path, scratch: Path) -> None:
    """Chunks of 64 MB."""
    library: Any = import_module("litdata")
    files = sorted(str(path) for path in (scratch.parent / "folder").glob("*/*.jpg"))
    out = str(scratch / "chunks")
    library.optimize(fn=packed, inputs=files, output_dir=out, chunk_bytes="64MB", num_workers=2)


def packed(path: str) -> dict[str, Any]:
    """A sample as litdata stores it."""
    return {"image": Path(path).read_bytes(), "label": 0}


def litdata(root: Path, threads: int, scratch: Path) -> Batches:
    """Lightning's StreamingDataset and StreamingDataLoader on local chunks."""
    library: Any = import_module("litdata")
    dataset = _crop_dataset(library.StreamingDataset, crop_of(root))
    samples = dataset(str(scratch / "chunks"), shuffle=True, drop_last=True)
    loader = library.StreamingDataLoader(
        samples, batch_size=BATCH, num_workers=threads, drop_last=True, persistent_workers=True
    )
    return _finished(root, loader)


def write_streaming(root: Path, scratch: Path) -> None:
    """MDS shards."""
    torchvision()
    library: Any = import_module("streaming")
    columns = {"image": "bytes", "label": "int"}
    with library.MDSWriter(out=str(scratch / "mds"), columns=columns) as writer:
        for label, data in encoded(root):
            writer.write({"image": data, "label": label})


def streaming(root: Path, threads: int, scratch: Path) -> Batches:
    """MosaicML's StreamingDataset on local shards."""
    torchvision()
    library: Any = import_module("streaming")
    import_module("streaming.base.util").clean_stale_shared_memory()
    dataset = _crop_dataset(library.StreamingDataset, crop_of(root))
    samples = dataset(local=str(scratch / "mds"), shuffle=True, batch_size=BATCH)
    from torch.utils.data import DataLoader

    loader: Any = DataLoader(
        samples, batch_size=BATCH, num_workers=threads, drop_last=True, persistent_workers=True
    )
    return _finished(root, loader)


def _crop_dataset(base: Any, crop: int) -> Any:
    """A library's dataset of {"image": bytes} whose samples are uint8 crops."""

    class CropDataset(base):  # type: ignore[misc]
        def __getitem__(self, number: Any) -> Any:
            return torch.from_numpy(cut(super().__getitem__(number)["image"], crop))

    return CropDataset


def map_loader(samples: Any, threads: int) -> Any:
    from torch.utils.data import DataLoader, RandomSampler

    sampler = RandomSampler(samples, replacement=True, num_samples=1 << 30)
    return DataLoader(
        samples, BATCH, sampler=sampler, num_workers=threads, prefetch_factor=2, drop_last=True
    )


def _finished(root: Path, loader: Any) -> Batches:
    normalise = NumpyNormaliser(root)
    while True:
        for batch in loader:
            yield normalise(batch.numpy())
