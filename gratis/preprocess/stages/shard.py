"""Map: one shard, a pure function of its slice of the plan. One worker makes it, with its
statistics and a receipt.

    OUT/train-00007.tar, .idx            renamed once they are whole and on disk
    OUT/.work/train-00007.receipt.npz    renamed last: its presence means that the shard is done

Every sample is decoded again from the bytes in the tar, and the statistics are those of the decoded
pixels, which training will see. The decoder is libjpeg-turbo through Pillow; training's (DALI's on
the CPU) is libjpeg-turbo too, and a test holds them equal to the last bit on such files. They are
all baseline JPEGs by one encoder, so any build of that library decodes them alike."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from gratis import addresses, image
from gratis.atomic import temporary_name
from gratis.dataset import EXTENSIONS
from gratis.errors import GratisError
from gratis.network import DEFAULT_LIMITS, NetworkLimits
from gratis.preprocess.codecs import CODECS
from gratis.preprocess.execution.workers import ReportProgress
from gratis.preprocess.output.receipt import ShardReceipt, reject_row, write_receipt
from gratis.preprocess.output.shard_writer import ShardWriter
from gratis.preprocess.output.store import open_store
from gratis.preprocess.sources.listing import Item
from gratis.preprocess.sources.reader import ImageReader, Stamp
from gratis.preprocess.statistics import Accumulator, PixelSums

Same = TypeVar("Same", bound="ImageTask")


@dataclass(frozen=True, kw_only=True)
class ImageTask:
    """The images of one shard, as a worker gets them. out: the dataset's folder or URL; excluded:
    by position in `items`, why a decoder must not see that file again ("crashed" or "hung");
    tolerant: rejects are permitted, so that a format that is not read here ends nothing. whole:
    images keep their shape; None: they are square."""

    out: str
    split: str
    items: tuple[Item, ...]
    size: int
    codec: str
    excluded: dict[int, str] = field(default_factory=dict)
    tolerant: bool = True
    limits: NetworkLimits = DEFAULT_LIMITS  # of whatever is at a URL
    whole: image.Whole | None = None
    stamps: dict[str, Stamp] = field(default_factory=dict)  # of its archives, when they were listed

    def exclude(self: Same, position: int, cause: str) -> Same:
        return dataclasses.replace(self, excluded=self.excluded | {position: cause})

    def use_limits(self) -> None:
        """For a process that works on this: its servers have answered the one that listed them."""
        places = {item.container for item in self.items}
        addresses.use_limits(self.limits, answered=(self.out, *places))

    def read_images(
        self,
        begin: Callable[[int], None],
        report: ReportProgress,
        use: Callable[[Item, bytes], tuple[NDArray[np.uint8], int]],
    ) -> tuple[list[dict[str, str]], PixelSums | None]:
        """Calls use(item, its bytes) for every file in order, which returns the image's pixels and
        how many bytes it wrote, or raises Reject. Returns the rejects' rows, and the sums of the
        pixels if this is the train split. GratisError: see `tolerant`."""
        size = None if self.whole else self.size or None
        statistics = Accumulator(size) if self.split == "train" else None
        rejects: list[dict[str, str]] = []
        with ImageReader(self.stamps) as reader:
            for position, item in enumerate(self.items):
                # a slow network is not the file's fault
                begin(-1 if addresses.is_url(item.container) else position)
                try:
                    refuse_unread(self.excluded, position, item)
                    data = reader.read(item)
                    begin(position)
                    pixels, written = use(item, data)
                except image.Reject as reject:
                    refuse_unsupported(self, item, reject)
                    rejects.append(reject_row(self.split, item, reject))
                    report(0, item.size, 0, 1)
                    continue
                if statistics:
                    statistics.add(pixels)
                report(1, item.size, written, 0)
        begin(-1)
        return rejects, statistics.sums() if statistics else None


@dataclass(frozen=True, kw_only=True)
class ShardTask(ImageTask):
    """One shard to write."""

    number: int
    quality: int

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:05d}"

    def make(self, begin: Callable[[int], None], report: ReportProgress) -> None:
        """Makes and publishes the shard, as `workers.Task` says."""
        self.use_limits()
        store, codec = open_store(self.out), CODECS[self.codec]
        conversions: Counter[str] = Counter()
        sizes: list[tuple[int, int]] = []

        def add(item: Item, source: bytes) -> tuple[NDArray[np.uint8], int]:
            before = writer.bytes
            picture, converted = image.to_picture(
                source, self.size, whole=self.whole, padded=not codec.lossless
            )
            data, pixels = codec.sample(picture, self.quality)
            assert pixels.shape == (picture.height, picture.width, 3)
            writer.add(item.key, data, item.label)
            sizes.append(picture.size)
            conversions.update(converted)
            return pixels, writer.bytes - before

        with store.staging() as folder:
            temporary = folder / temporary_name(f"{self.name}.tar")
            with temporary.open("wb") as file:
                writer = ShardWriter(file, EXTENSIONS[self.codec])
                rejects, sums = self.read_images(begin, report, add)
                writer.close()
            store.write(f"{self.name}.idx", writer.index())
            store.publish(temporary, f"{self.name}.tar")
        width, height = np.array(sizes, np.int32).reshape(-1, 2).T
        receipt = ShardReceipt(
            *writer.columns(),
            width=width if self.whole else None,
            height=height if self.whole else None,
            bytes=writer.bytes,
            sha256=writer.digest.hexdigest(),
            conversions=dict(sorted(conversions.items())),
            rejects=rejects,
            sums=sums,
        )
        write_receipt(store, self.name, receipt)


def sample_size(data: bytes, task: ShardTask) -> int:
    """Bytes of the image member that a source file becomes. Raises Reject."""
    codec = CODECS[task.codec]
    picture, _ = image.to_picture(data, task.size, whole=task.whole, padded=not codec.lossless)
    return len(codec.sample(picture, task.quality)[0])


def refuse_unsupported(task: ImageTask, item: Item, reject: image.Reject) -> None:
    """GratisError for the first file of a format that is not read here: there may be as many as
    files, which is better said now than after all of them."""
    if reject.kind == image.UNSUPPORTED and not task.tolerant:
        kept = "; what is done is kept" if isinstance(task, ShardTask) else ""
        way_out = f"or give --max-rejects a number to leave such files out{kept}"
        raise GratisError(f"{item.source}: {reject.reason}; {way_out}")


def refuse_unread(excluded: dict[int, str], position: int, item: Item) -> None:
    """Raises Reject for a file that must not even be read: it might not fit memory, or crashes
    decoders."""
    if position in excluded:
        raise image.Reject(excluded[position], "the decoder did not survive this file")
    if item.size > image.MAX_BYTES:
        raise image.Reject("too-large", f"{item.size} bytes, the limit is {image.MAX_BYTES}")
