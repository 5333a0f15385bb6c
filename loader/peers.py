"""The same work by other libraries, with the settings that were best for each on two cores: decode a 256 px JPEG, a
random 224 px crop, mirror, colour noise, minus mean, float32 NCHW torch batches.

uint8 leaves the library and one NumPy pass finishes into buffers that are used again: for every peer that was quicker
than arithmetic in its graph or its workers. Each is optional: what is not installed is left out.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from loader.config import LoaderConfig
from loader.finish import colour_matrix
from loader.loader import Loader
from loader.stages import source_of
from loader.work import Meter, Reader
from preprocess.dataset import Manifest, read_index, read_manifest, read_stats

BATCH = 256
SHUFFLE = 1000  # samples in the shuffle buffers of libraries that have no other shuffle

Batches = Iterator[torch.Tensor]
Pixels = NDArray[np.uint8]


def ours(root: Path, threads: int, scratch: Path) -> Batches:
    loader = Loader(root, "train", _config(root, threads))
    while True:
        yield from (batch.images for batch in loader)


def ours_read(root: Path, threads: int, scratch: Path) -> Batches:
    """Stage: the bytes alone."""
    loader = Loader(root, "train", _config(root, threads))
    source = source_of(loader.job(0))
    reader, nothing = Reader(source, Meter(), loader._quarantine), torch.zeros(1)
    for epoch in range(1 << 30):
        for _ in reader.works(loader.job(epoch)):
            yield nothing


def ours_decode(root: Path, threads: int, scratch: Path) -> Batches:
    """Stages: bytes and DALI's decode of the crop."""
    from loader.decode import Mender, Runner, decode

    loader, meter = Loader(root, "train", _config(root, threads)), Meter()
    source = source_of(loader.job(0))
    reader, nothing = Reader(source, meter, loader._quarantine), torch.zeros(1)
    runner = Runner(meter, Mender(reader, source, loader._quarantine))
    for epoch in range(1 << 30):
        job = loader.job(epoch)
        for _ in decode(reader.works(job), job, runner, threads):
            yield nothing


def dali(root: Path, threads: int, scratch: Path) -> Batches:
    """readers.webdataset with its own shuffle and random numbers, ROI decode and mirror in the graph."""
    from nvidia.dali import Pipeline, fn, types

    crop = _crop(root)
    tars = [str(path) for path in _tars(root)]
    pipeline = Pipeline(batch_size=BATCH, num_threads=threads + 1, device_id=None, prefetch_queue_depth=2, seed=1)
    with pipeline:
        encoded, label = fn.readers.webdataset(  # type: ignore[misc]
            paths=tars, index_paths=[tar.replace(".tar", ".idx") for tar in tars], ext=["jpg", "cls"],
            random_shuffle=True, initial_fill=SHUFFLE, missing_component_behavior="error",
        )  # fmt: skip
        y, x, flip = fn.random.uniform(range=(0, 1)), fn.random.uniform(range=(0, 1)), fn.random.coin_flip()
        images = fn.decoders.image_crop(encoded, output_type=types.RGB, crop=(crop, crop), crop_pos_x=x, crop_pos_y=y)
        pipeline.set_outputs(fn.flip(images, horizontal=flip), label)
    pipeline.build()
    finish = Finish(root)
    while True:
        yield finish(np.asarray(pipeline.run()[0].as_tensor()))


def tfdata(root: Path, threads: int, scratch: Path) -> Batches:
    """TFRecord files and decode_and_crop_jpeg."""
    tf: Any = import_module("tensorflow")
    crop, size = _crop(root), read_manifest(root).image_size

    def sample(encoded: Any) -> Any:
        place = tf.random.uniform((2,), 0, size - crop + 1, tf.int32)
        window = tf.stack([place[0], place[1], crop, crop])
        image = tf.io.decode_and_crop_jpeg(encoded, window, channels=3, dct_method="INTEGER_ACCURATE")
        image = tf.cond(tf.random.uniform(()) < 0.5, lambda: tf.reverse(image, [1]), lambda: image)
        return tf.ensure_shape(image, (crop, crop, 3))

    records = tf.data.Dataset.list_files(_tfrecords(root, scratch)).interleave(tf.data.TFRecordDataset, cycle_length=4)
    samples = records.shuffle(SHUFFLE).repeat().map(sample, num_parallel_calls=threads + 1, deterministic=False)
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads + 1
    finish = Finish(root)
    for batch in samples.batch(BATCH, drop_remainder=True).prefetch(2).with_options(options).as_numpy_iterator():
        yield finish(batch)


def webdataset(root: Path, threads: int, scratch: Path) -> Batches:
    """WebLoader's processes decode and cut."""
    wds: Any = import_module("webdataset")
    crop = _crop(root)
    shards = [str(path) for path in _tars(root)]
    samples = wds.WebDataset(shards, resampled=True, shardshuffle=False).shuffle(SHUFFLE).to_tuple("jpg", "cls")
    batches = samples.batched(BATCH, partial=False).map_tuple(
        lambda parts: _cut_all(parts, crop), lambda labels: labels
    )
    finish = Finish(root)
    for batch, _ in wds.WebLoader(batches, batch_size=None, num_workers=threads + 1):
        yield finish(batch.numpy())


def dataloader(root: Path, threads: int, scratch: Path) -> Batches:
    """torch's DataLoader over our index, Pillow-SIMD or simplejpeg in its processes (torchvision has no CPU build)."""
    from torch.utils.data import DataLoader, RandomSampler

    samples: Any = Samples(root, _crop(root))
    sampler = RandomSampler(samples, replacement=True, num_samples=1 << 30)
    loader: Any = DataLoader(
        samples, BATCH, sampler=sampler, num_workers=threads + 1, prefetch_factor=2, drop_last=True
    )  # fmt: skip
    finish = Finish(root)
    for batch in loader:
        yield finish(batch.numpy())


def grain(root: Path, threads: int, scratch: Path) -> Batches:
    """Google's grain: a shuffled map with reading threads."""
    library: Any = import_module("grain.python")
    import_module("absl.flags").FLAGS(["bench"])
    source = library.MapDataset.source(Samples(root, _crop(root))).seed(1).shuffle().repeat()
    options = library.ReadOptions(num_threads=threads + 1, prefetch_buffer_size=512)
    finish = Finish(root)
    for batch in source.to_iter_dataset(options).batch(BATCH, drop_remainder=True):
        yield finish(batch)


PEERS: dict[str, Callable[[Path, int, Path], Batches]] = {
    "ours": ours, "dali": dali, "tfdata": tfdata, "grain": grain, "webdataset": webdataset, "dataloader": dataloader,
}  # fmt: skip
STAGES: dict[str, Callable[[Path, int, Path], Batches]] = {"read": ours_read, "decode": ours_decode}
NEEDS = {"ours": "torch", "dali": "nvidia.dali", "tfdata": "tensorflow", "grain": "grain", "webdataset": "webdataset",
         "dataloader": "torch"}  # fmt: skip


class Samples:
    """Random access to uint8 crops, as map-style datasets have it."""

    def __init__(self, root: Path, crop: int) -> None:
        self._tars, self._index, self._crop = [str(tar) for tar in _tars(root)], read_index(root, "train"), crop

    def __len__(self) -> int:
        return len(self._index.label)

    def __getitem__(self, sample: int) -> Pixels:
        with open(self._tars[self._index.shard[sample]], "rb") as file:
            file.seek(int(self._index.offset[sample]))
            return _cut(file.read(int(self._index.size[sample])), self._crop)


class Finish:
    """uint8 NHWC to float32 NCHW with colour noise and mean, by NumPy, into three buffers in turn."""

    def __init__(self, root: Path) -> None:
        stats, crop = read_stats(root), _crop(root)
        first = (len(stats.mean) - crop) // 2
        mean = stats.mean[first : first + crop, first : first + crop]
        self._mean = np.ascontiguousarray(mean.transpose(2, 0, 1))
        self._matrix, self._random = colour_matrix(stats, "sqrt"), np.random.default_rng(1)
        self._ring = [torch.zeros((BATCH, 3, crop, crop)) for _ in range(3)]

    def __call__(self, images: Pixels) -> torch.Tensor:
        self._ring.append(self._ring.pop(0))
        out = self._ring[0].numpy()
        noise = (self._random.standard_normal((len(images), 3)) @ self._matrix.T).astype(np.float32)
        for image, target, shift in zip(images, out, noise, strict=True):
            np.subtract(image.transpose(2, 0, 1), self._mean, out=target, dtype=np.float32)
            np.add(target, shift[:, None, None], out=target)
        return self._ring[0]


def _config(root: Path, threads: int) -> LoaderConfig:
    return LoaderConfig(batch_size=BATCH, crop=_crop(root), threads=threads)


def _crop(root: Path) -> int:
    return read_manifest(root).image_size * 7 // 8


def _tars(root: Path) -> list[Path]:
    manifest: Manifest = read_manifest(root)
    return [root / shard.name for shard in manifest.splits["train"].shards]


def _cut(encoded: bytes, crop: int) -> Pixels:
    """Decoded by simplejpeg (libjpeg-turbo) where it is installed, else by Pillow; cut, mirrored at random."""
    if find_spec("simplejpeg"):
        image = import_module("simplejpeg").decode_jpeg(encoded)
    else:
        image = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    y, x = random.randrange(len(image) - crop + 1), random.randrange(len(image) - crop + 1)
    part: Pixels = image[y : y + crop, x : x + crop]
    return np.ascontiguousarray(part[:, ::-1] if random.random() < 0.5 else part)


def _cut_all(encoded: list[bytes], crop: int) -> torch.Tensor:
    return torch.from_numpy(np.stack([_cut(part, crop) for part in encoded]))


def _tfrecords(root: Path, scratch: Path) -> str:
    """Writes the dataset in TensorFlow's format, once."""
    tf: Any = import_module("tensorflow")
    if not (scratch / "done").exists():
        index = read_index(root, "train")
        for number, tar in enumerate(_tars(root)):
            data, rows = tar.read_bytes(), np.flatnonzero(index.shard == number)
            with tf.io.TFRecordWriter(str(scratch / f"{number:05d}.tfrecord")) as writer:
                for offset, size in zip(index.offset[rows].tolist(), index.size[rows].tolist(), strict=True):
                    writer.write(data[offset : offset + size])
        (scratch / "done").touch()
    return str(scratch / "*.tfrecord")
