"""Bytes to pixels on the CPU. DALI decodes the crop alone (ROI), uint8; raw samples need only
arithmetic.

DALI gets bytes and crop corners and holds no state of its own. Its executor works on the next batch
in its own threads while this one is finished. Per 1,000 images, 224 of 256 px at quality 95 on a
shared 2-core EPYC, n = 5 alternating rounds of `gratis bench loader`: 0.285 CPU s; libjpeg-turbo
2.1 in a bare C loop 0.247, its entropy decoding alone 0.205. In a profile the difference is copies
of rows and DALI's executor; no page is faulted in after the first batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gratis.errors import GratisError
from gratis.loader.pipeline.work import Job, Meter, Reader, Work, malformed
from gratis.loader.reading.quarantine import Quarantine
from gratis.loader.reading.shards import Source
from gratis.loader.views.normaliser import Crops

DEPTH = 2  # batches inside DALI: one being decoded, one behind it

Feed = Callable[[], tuple[Any, ...]]


class Mender:
    """Finds the samples that broke a batch, hands them to the quarantine, and reads the batch again
    without them."""

    def __init__(self, reader: Reader, source: Source, quarantine: Quarantine) -> None:
        self._reader, self._source, self._quarantine = reader, source, quarantine

    def mend(self, error: Exception, works: list[Work], job: Job) -> list[Work]:
        """GratisError naming shard, key and offset, where that is the policy; the error itself if
        no sample has any."""
        found = False
        for work in works:
            for row in undecodable(work, job):
                sample = int(work.ids[row])
                self._quarantine.add(int(work.wanted[row]), sample, self._source.describe(sample))
                found = True
        if not found:
            raise error
        return [self._reader.again(job, work) for work in works]


class Runner:
    """Drives one DALI pipeline over works, epoch after epoch. After an error, and after `close`, it
    is built anew."""

    def __init__(self, meter: Meter, mender: Mender) -> None:
        self._meter, self._mender = meter, mender
        self._pipeline: Any = None
        self._built_for: object = None
        self._feed: Feed = tuple

    def run(
        self,
        works: Iterator[Work],
        job: Job,
        build: Callable[[Feed], Any],
        inputs: Callable[[Work], tuple[Any, ...]],
        key: object = None,
    ) -> Generator[tuple[Work, Any], None, None]:
        """Each work with DALI's output for it, valid until the next is taken. A new key asks for a
        new pipeline."""
        # DALI does not copy: all must live until it is done
        pending: deque[tuple[Work, tuple[Any, ...]]] = deque()
        waiting = [works]
        failed: list[GratisError] = []

        def feed() -> tuple[Any, ...]:
            try:
                work = next(waiting[0])  # its StopIteration is DALI's end of data
            except (
                GratisError
            ) as error:  # of this step; those before it, which are on their way, come first
                failed.append(error)
                raise StopIteration from None
            pending.append((work, inputs(work)))
            return pending[-1][1]

        self._feed = feed
        while True:
            if self._pipeline is None or self._built_for != key:
                self._pipeline, self._built_for = build(self._next), key
            try:
                with self._meter.time("decode_s"):
                    self._pipeline.schedule_run()
                    (output,) = self._pipeline.share_outputs()  # waits until the batch is there
            except StopIteration:
                self._pipeline.reset()
                if failed:
                    raise failed[0] from None
                return
            except RuntimeError as error:
                self._pipeline = None
                waiting[0] = chain(
                    self._mender.mend(error, [work for work, _ in pending], job), waiting[0]
                )
                pending.clear()
                continue
            yield pending.popleft()[0], output
            del output
            self._pipeline.release_outputs()

    def _next(self) -> tuple[Any, ...]:
        return self._feed()  # of the epoch that is under way: the pipeline outlives it

    def close(self) -> None:
        """Ends DALI's threads and frees its buffers."""
        self._pipeline, self._feed = None, tuple


def needs_pipeline(job: Job) -> bool:
    """Whether DALI has work to do: raw samples without resizing are only cut out."""
    return job.manifest.codec == "jpeg" or job.config.area is not None


def decode_raw(
    works: Iterator[Work], job: Job, mender: Mender
) -> Generator[tuple[Work, Crops], None, None]:
    """Samples stored as PPM: their pixels are where the reader put them, behind a short header."""
    size = job.manifest.image_size
    for work in works:
        while wrong_ppm(work, job):
            (work,) = mender.mend(AssertionError("a PPM is wrong and is not"), [work], job)  # noqa: PLW2901
        headers = np.array([len(part) for part in work.parts]) - 3 * size * size
        yield work, crops_of(work, work.buffer, work.begins + headers, job, side=size, corner=True)


def decode(
    works: Iterator[Work], job: Job, runner: Runner, threads: int
) -> Generator[tuple[Work, Crops], None, None]:
    """Crops by DALI, resized ones too; valid until the next is taken."""
    whole = job.config.views == 10
    side = job.manifest.image_size if whole else job.config.crop

    def build(feed: Feed) -> Any:
        return crop_pipeline(feed, job, threads, side, rows=job.rows)

    def inputs(work: Work) -> tuple[Any, ...]:
        return encoded(work, job), *rectangles(work, whole=whole)

    for work, images in runner.run(works, job, build, inputs):
        pixels = np.asarray(images.as_tensor())
        begins = np.arange(len(work.ids)) * (3 * side * side)
        yield work, crops_of(work, pixels.reshape(-1), begins, job, side=side, corner=whole)
        del pixels, images


def crop_pipeline(
    feed: Feed, job: Job, threads: int, side: int, *, rows: int, lockstep: bool = False
) -> Any:
    """A DALI pipeline from (bytes, corner, extent) to uint8 [side,side,3] without the rotation that
    EXIF may ask for. lockstep: a batch is fed when it is asked for, so that an error is its own."""
    from nvidia.dali import Pipeline, fn, types

    raw = job.manifest.codec == "raw"
    pipeline = Pipeline(
        batch_size=rows,
        num_threads=threads,
        device_id=None,
        prefetch_queue_depth=1 if lockstep else DEPTH,
        exec_pipelined=not lockstep,
        exec_async=not lockstep,
    )
    with pipeline:
        inputs = 3 if job.config.area else 2
        data, anchor, *extent = fn.external_source(
            source=feed,
            num_outputs=inputs,
            batch=True,
            no_copy=True,
            dtype=[types.UINT8, types.INT32, types.INT32][:inputs],
            ndim=[3 if raw else 1, 1, 1][:inputs],
        )
        images = cut(data, anchor, *(extent or [[side, side]]), raw=raw)
        pipeline.set_outputs(resized(images, job))
    pipeline.build()
    return pipeline


def cut(data: Any, anchor: Any, extent: Any, *, raw: bool) -> Any:
    """DALI: uint8 HWC of the rectangle; of raw samples a slice, of JPEGs what is decoded at all."""
    from nvidia.dali import fn, types

    if raw:
        return fn.slice(data, start=anchor, shape=extent, axes=[0, 1])
    return fn.decoders.image_slice(
        data,
        start=anchor,
        shape=extent,
        axes=[0, 1],
        device="cpu",
        output_type=types.RGB,
        adjust_orientation=False,
    )


def resized(images: Any, job: Job) -> Any:
    """DALI: to crop x crop, if parts are resized: triangular filter where it shrinks, as Pillow's
    bilinear."""
    from nvidia.dali import fn, types

    if job.config.area is None:
        return images
    return fn.resize(
        images, size=[job.config.crop] * 2, interp_type=types.INTERP_LINEAR, antialias=True
    )


def encoded(work: Work, job: Job) -> list[Any]:
    """What DALI gets of each sample: a JPEG's bytes, or a raw sample's pixels [S,S,3]."""
    size = job.manifest.image_size
    if job.manifest.codec == "jpeg":
        return list(work.parts)
    return [part[-3 * size * size :].reshape(size, size, 3) for part in work.parts]


def rectangles(work: Work, *, whole: bool = False) -> list[NDArray[np.int32]]:
    """What is cut out of each sample, on a CPU while it is decoded: corner (y, x) and, where they
    differ between samples, height and width, int32 [n,2] each."""
    corner = (
        np.zeros((len(work.ids), 2)) if whole else np.stack([work.draws.y, work.draws.x], axis=1)
    )
    places = [corner] if work.extents is None else [corner, work.extents]
    return [place.astype(np.int32) for place in places]


def wrong_ppm(work: Work, job: Job) -> list[int]:
    """Rows whose raw sample is no PPM of the dataset's size."""
    size = job.manifest.image_size
    header = b"P6\n%d %d\n255\n" % (size, size)
    length = len(header) + 3 * size * size
    return [
        i
        for i, part in enumerate(work.parts)
        if len(part) != length or part[: len(header)].tobytes() != header
    ]


def spoilt(work: Work, job: Job) -> list[int]:
    """Rows that need no decoder to be seen as spoilt."""
    if job.manifest.codec == "raw":
        return wrong_ppm(work, job)
    return malformed(work.parts, job.manifest.image_size)


def crops_of(
    work: Work,
    pixels: NDArray[np.uint8],
    begins: NDArray[np.int64],
    job: Job,
    *,
    side: int,
    corner: bool,
) -> Crops:
    """Every view of every sample; begins [n] is where its decoded pixels begin, whole (corner) or
    cut already."""
    draws, start = work.draws, np.repeat(begins, job.config.views)
    if corner:
        start = start + 3 * (draws.y * side + draws.x)
    return Crops(pixels, 3 * side, start, draws.y, draws.x, draws.flip, draws.normals)


def undecodable(work: Work, job: Job) -> list[int]:
    """Rows whose sample fails by itself, of as much of it as the batch decodes: on a GPU that is
    always the whole."""
    if job.manifest.codec == "raw":
        return wrong_ppm(work, job)
    whole = job.config.views == 10 or job.device.type == "cuda"
    side = job.manifest.image_size if whole else job.config.crop
    if whole and work.extents is not None:
        work = work._replace(extents=np.full_like(work.extents, side))
    inputs: list[Any] = [encoded(work, job), *rectangles(work, whole=whole)]
    pipeline, bad, row = None, [], 0

    def feed() -> tuple[Any, ...]:
        return tuple(values[row : row + 1] for values in inputs)

    for row in range(len(work.ids)):
        pipeline = pipeline or crop_pipeline(feed, job, 1, side, rows=1, lockstep=True)
        try:
            pipeline.run()
        except RuntimeError:
            bad.append(row)
            pipeline = None
    return bad
