"""Peers that work in threads of one process, with the settings that were best for each on two
cores: decode a JPEG of 256 px, a random 224 px crop, mirror, colour noise, minus mean, float32 NCHW
torch batches. Each is optional."""

from __future__ import annotations

import io
import itertools
import json
import os
import random
import tarfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.loader.peers.common import (
    BATCH,
    SHUFFLE,
    Batches,
    NumpyNormaliser,
    Pixels,
    Samples,
    crop_of,
    cut_pixels,
    decode,
    encoded,
    tars_of,
)
from gratis.dataset import read_manifest


def dali(root: Path, threads: int, scratch: Path) -> Batches:
    """readers.webdataset with its own shuffle and random numbers, ROI decode and mirror in the
    graph."""
    from nvidia.dali import Pipeline, fn, types

    crop = crop_of(root)
    tars = [str(path) for path in tars_of(root)]
    pipeline = Pipeline(
        batch_size=BATCH, num_threads=threads, device_id=None, prefetch_queue_depth=2, seed=1
    )
    with pipeline:
        data, label = fn.readers.webdataset(  # type: ignore[misc]
            paths=tars,
            index_paths=[tar.replace(".tar", ".idx") for tar in tars],
            ext=["jpg", "cls"],
            random_shuffle=True,
            initial_fill=SHUFFLE,
            missing_component_behavior="error",
        )
        y, x = fn.random.uniform(range=(0, 1)), fn.random.uniform(range=(0, 1))
        images = fn.decoders.image_crop(
            data, output_type=types.RGB, crop=(crop, crop), crop_pos_x=x, crop_pos_y=y
        )
        pipeline.set_outputs(fn.flip(images, horizontal=fn.random.coin_flip()), label)
    pipeline.build()
    normalise = NumpyNormaliser(root)
    while True:
        yield normalise(np.asarray(pipeline.run()[0].as_tensor()))


def write_tfdata(root: Path, scratch: Path) -> None:
    """The dataset in TensorFlow's format, ten files."""
    tf: Any = import_module("tensorflow")
    files = [str(scratch / f"{number:05d}.tfrecord") for number in range(10)]
    writers = [tf.io.TFRecordWriter(file) for file in files]
    for number, (_, data) in enumerate(encoded(root)):
        writers[number % 10].write(data)
    for writer in writers:
        writer.close()


def tfdata(root: Path, threads: int, scratch: Path) -> Batches:
    """TFRecord files and decode_and_crop_jpeg."""
    tf: Any = import_module("tensorflow")
    crop, size = crop_of(root), read_manifest(root).image_size

    def sample(data: Any) -> Any:
        place = tf.random.uniform((2,), 0, size - crop + 1, tf.int32)
        window = tf.stack([place[0], place[1], crop, crop])
        image = tf.io.decode_and_crop_jpeg(data, window, channels=3, dct_method="INTEGER_ACCURATE")
        image = tf.cond(tf.random.uniform(()) < 0.5, lambda: tf.reverse(image, [1]), lambda: image)
        return tf.ensure_shape(image, (crop, crop, 3))

    files = tf.data.Dataset.list_files(str(scratch / "*.tfrecord"))
    records = files.interleave(tf.data.TFRecordDataset, cycle_length=4)
    samples = records.shuffle(SHUFFLE).repeat()
    samples = samples.map(sample, num_parallel_calls=threads, deterministic=False)
    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    normalise = NumpyNormaliser(root)
    batches = samples.batch(BATCH, drop_remainder=True).prefetch(2).with_options(options)
    for batch in batches.as_numpy_iterator():
        yield normalise(batch)


def write_turboloader(root: Path, scratch: Path) -> None:
    """One tar: it takes a single one."""
    with tarfile.open(scratch / "data.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, (_, data) in enumerate(encoded(root)):
            member = tarfile.TarInfo(f"{number:06d}.jpg")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def turboloader(root: Path, threads: int, scratch: Path) -> Batches:
    """TurboLoader decodes whole images to float32 in its fused pass, which has no plain crop; cut,
    mirrored and finished by NumPy in the parent, which was quicker than its RandomCrop, that works
    image by image. Its threads are one per core."""
    library: Any = import_module("turboloader")
    crop, size = crop_of(root), read_manifest(root).image_size
    loader = library.DataLoader(
        str(scratch / "data.tar"),
        batch_size=BATCH,
        image_size=size,
        output_format="numpy",
        shuffle=True,
        pin_memory=True,
        drop_last=True,
    )
    normalise = NumpyNormaliser(root)
    for epoch in itertools.count():
        loader.set_epoch(epoch)
        for images, _ in loader:
            out = normalise.buffer()
            for image, target, shift in zip(
                images.numpy(), out.numpy(), normalise.shifts(), strict=True
            ):
                # scaled to [0, 1] by it
                normalise.one(cut_pixels(image, crop), shift, target, scale=255.0)
            yield out


def datago(root: Path, threads: int, scratch: Path) -> Batches:
    """datago decodes whole files by tasks of its own; it has no random crop, so that NumPy in the
    parent cuts, mirrors and finishes."""
    os.environ["DATAGO_MAX_TASKS"] = str(threads)
    library: Any = import_module("datago")
    source = {"root_path": str(scratch.parent / "folder"), "random_sampling": True}
    buffers = dict.fromkeys(("prefetch_buffer_size", "samples_buffer_size"), 2 * BATCH)
    config = {"source_type": "file", "source_config": source | {"rank": 0, "world_size": 1}}
    client = library.DatagoClient(json.dumps(config | buffers | {"limit": 1 << 30}))
    crop, normalise, samples = crop_of(root), NumpyNormaliser(root), _endless(client)
    while True:
        out = normalise.buffer()
        for target, shift in zip(out.numpy(), normalise.shifts(), strict=True):
            image = next(samples).image.to_numpy_array()
            normalise.one(cut_pixels(image, crop), shift, target)
        yield out


def _endless(client: Any) -> Iterator[Any]:
    while True:
        client.start()
        while (sample := client.get_sample()) is not None:
            yield sample


def grain(root: Path, threads: int, scratch: Path) -> Batches:
    """Google's grain: a shuffled map with reading threads."""
    library: Any = import_module("grain.python")
    import_module("absl.flags").FLAGS(["bench"])
    source = library.MapDataset.source(Samples(root)).seed(1).shuffle().repeat()
    options = library.ReadOptions(num_threads=threads, prefetch_buffer_size=512)
    normalise = NumpyNormaliser(root)
    for batch in source.to_iter_dataset(options).batch(BATCH, drop_remainder=True):
        yield normalise(batch)


def spdl(root: Path, threads: int, scratch: Path) -> Batches:
    """Meta's SPDL: files in class folders, decoded whole by FFmpeg, each thread finishes a batch of
    its own."""
    io: Any = import_module("spdl.io")
    builder: Any = import_module("spdl.pipeline").PipelineBuilder()
    workers, crop, to_rgb = threads, crop_of(root), io.get_video_filter_desc(pix_fmt="rgb24")
    normalise, turn = NumpyNormaliser(root, ring=workers + 4), itertools.count()
    buffers = [normalise.buffer() for _ in range(workers + 4)]

    def batch_of(paths: list[str]) -> torch.Tensor:
        out = buffers[next(turn) % len(buffers)]
        for path, target, shift in zip(paths, out.numpy(), normalise.shifts(), strict=True):
            frames = io.decode_packets(io.demux_image(path), filter_desc=to_rgb)
            normalise.one(cut_pixels(io.to_numpy(io.convert_frames(frames)), crop), shift, target)
        return out

    files = builder.add_source(_shuffled(scratch.parent / "folder")).aggregate(BATCH)
    piped = files.pipe(batch_of, concurrency=workers, output_order="completion").add_sink(2)
    pipeline = piped.build(num_threads=workers)
    with pipeline.auto_stop():
        yield from pipeline.get_iterator(timeout=60)


def _shuffled(folder: Path) -> Iterator[str]:
    files = [str(path) for path in folder.glob("*/*.jpg")]
    while True:
        random.shuffle(files)
        yield from files


class Pictures:
    """Pixels and label by number: what FFCV's writer asks for."""

    def __init__(self, root: Path) -> None:
        self._samples = list(encoded(root))
        self._size, self._raw = read_manifest(root).image_size, read_manifest(root).codec == "raw"

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, number: int) -> tuple[Pixels, int]:
        label, data = self._samples[number]
        size = self._size
        if self._raw:
            return np.frombuffer(data, np.uint8)[-3 * size * size :].reshape(size, size, 3), label
        return decode(data), label


def write_ffcv(root: Path, scratch: Path) -> None:
    """Pixels as they are, or JPEG of the same quality by OpenCV."""
    fields, writer = import_module("ffcv.fields"), import_module("ffcv.writer")
    manifest = read_manifest(root)
    mode = {"write_mode": "jpg", "jpeg_quality": manifest.quality}
    if manifest.codec == "raw":
        mode = {"write_mode": "raw"}
    columns = {"image": fields.RGBImageField(**mode), "label": fields.IntField()}
    beton = writer.DatasetWriter(str(scratch / "data.beton"), columns, num_workers=2)
    beton.from_indexed_dataset(Pictures(root))


def ffcv(root: Path, threads: int, scratch: Path) -> Batches:
    """FFCV: all compiled, noise and mean too, into its own buffers."""
    decoders, transforms = import_module("ffcv.fields.decoders"), import_module("ffcv.transforms")
    library: Any = import_module("ffcv.loader")
    normalising = import_module("benchmarks.loader.peers.ffcv_normalise").normalising
    crop, size = crop_of(root), read_manifest(root).image_size
    area = crop * crop / (size * size)
    decoder = decoders.RandomResizedCropRGBImageDecoder
    cutter = decoder((crop, crop), scale=(area, area), ratio=(1, 1))
    image = [cutter, transforms.RandomHorizontalFlip(), normalising(root), transforms.ToTensor()]
    loader = library.Loader(
        str(scratch / "data.beton"),
        batch_size=BATCH,
        num_workers=threads,
        order=library.OrderOption.RANDOM,
        os_cache=True,
        drop_last=True,
        pipelines={"image": image, "label": [decoders.IntDecoder(), transforms.ToTensor()]},
    )
    while True:
        yield from (images for images, _ in loader)
