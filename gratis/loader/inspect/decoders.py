"""Who decodes a dataset's images, and whether they agree: what `gratis verify` asks of each image
that it decodes.

The engine's pixels are held against those of DALI, where it can be imported, else against those of
the caller's decoder. An image of 256 px takes 0.7 ms of CPU time for that, beside 0.4 ms in Pillow
(500 photographs, n = 3, on an EPYC), and importing the libraries takes 2 s once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gratis.loader.decoding.crop_graph import empty_pipeline
from gratis.loader.decoding.pillow import dali_is_here
from gratis.loader.engine.decoder import NativeDecoder, addresses, whole_images
from gratis.loader.engine.library import Status, load

Pixels = NDArray[np.uint8]

REASONS = {
    Status.NOT_JPEG: "no JPEG",
    Status.NOT_BASELINE: "progressive, or coded in another rare way",
    Status.SAMPLING: "another sampling of colour than 4:2:0 and 4:4:4",
    Status.COMPONENTS: "components in an unusual order, or a scan for each",
    Status.ADOBE: "an Adobe marker",
    Status.EXIF: "EXIF",
    Status.TABLES: "unusual tables",
    Status.SEGMENT: "an unusual segment",
    Status.SIZE: "too large",
    Status.MEMORY: "not enough memory",
    Status.TRUNCATED: "cut short",
    Status.MARKER: "damaged between restart markers",
    Status.CODE: "a damaged code",
    Status.LENGTH: "bytes too many or too few between restart markers",
}


class EngineCheck:
    """Counts what the engine decodes and what it leaves to another decoder, and compares pixels."""

    def __init__(self, other: Callable[[bytes], Pixels] | None = None) -> None:
        """other: decodes to uint8 [height,width,3]; None: DALI, where it is."""
        self._engine = NativeDecoder() if load() else None
        self._refused: Counter[Status] = Counter()
        self._decoded = self._different = 0
        self._other = other or (WholeImages() if dali_is_here() else None)

    def difference(self, data: bytes, pixels: Pixels) -> str | None:
        """What is wrong with an image that can be decoded; pixels: by the caller's decoder."""
        if self._engine is None:
            return None
        status, ours = self._decode(self._engine, data, pixels.shape)
        if status != Status.OK:
            self._refused[status] += 1
            return None
        self._decoded += 1
        problem = self._compare(ours, data, pixels)
        self._different += problem is not None
        return problem

    def _compare(self, ours: Pixels, data: bytes, pixels: Pixels) -> str | None:
        try:
            theirs = pixels if self._other is None else self._other(data)
        except RuntimeError:
            return "is decoded by the engine, and not by DALI"
        if ours.shape == theirs.shape and (ours == theirs).all():
            return None
        levels = np.abs(ours.astype(np.int16) - theirs) if ours.shape == theirs.shape else None
        far = "in another size" if levels is None else f"by up to {levels.max()} levels"
        return f"is decoded otherwise by the engine than by {self._name}, {far}"

    @property
    def summary(self) -> str:
        """One line, for all images so far."""
        if self._engine is None:
            return f"decoders: the engine is not compiled here; {self._name} decodes all"
        refused = sum(self._refused.values())
        line = (
            f"decoders: the engine decodes {self._decoded:,} of {self._decoded + refused:,} images"
        )
        agree = f"{self._different:,} otherwise than" if self._different else "all to the pixels of"
        reasons = ", ".join(f"{n:,} {REASONS[why]}" for why, n in self._refused.most_common())
        rest = f"; {self._name} decodes the others: {reasons}" if reasons else ""
        return f"{line}, {agree} {self._name}{rest}" if self._decoded else f"{line}{rest}"

    @property
    def _name(self) -> str:
        return "Pillow" if self._other is None else "DALI"

    @staticmethod
    def _decode(
        engine: NativeDecoder, data: bytes, shape: tuple[int, ...]
    ) -> tuple[Status, Pixels]:
        file, pixels = np.frombuffer(data, np.uint8), np.empty(shape, np.uint8)
        sizes = np.array([len(data)], np.int64)
        extents = np.array([shape[:2]])
        batch = whole_images(addresses([file]), sizes, addresses([pixels]), extents)
        return Status(engine(batch)[0]), pixels


class WholeImages:
    """By DALI, one at a time. RuntimeError for what it cannot decode. The caller has looked at the
    image (gratis.jpeg_check), as DALI may die of one that cannot be decoded."""

    def __init__(self) -> None:
        self._pipeline: Any = None
        self._file = np.empty(0, np.uint8)

    def __call__(self, data: bytes) -> Pixels:
        self._file = np.frombuffer(data, np.uint8)
        pipeline = self._pipeline or self._build()
        self._pipeline = None  # an error breaks it
        (images,) = pipeline.run()
        self._pipeline = pipeline
        return np.array(images.at(0))

    def _build(self) -> Any:
        from nvidia.dali import fn, types

        pipeline = empty_pipeline(1, 1, None, lockstep=True)
        with pipeline:
            data = fn.external_source(source=lambda: [self._file], dtype=types.UINT8, ndim=1)
            images = fn.decoders.image(data, output_type=types.RGB, adjust_orientation=False)
            pipeline.set_outputs(images)
        pipeline.build()
        return pipeline
