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

import numpy as np

from gratis import addresses, image
from gratis.atomic import temporary_name
from gratis.dataset import EXTENSIONS
from gratis.preprocess.codecs import CODECS
from gratis.preprocess.execution.workers import ReportProgress
from gratis.preprocess.output.receipt import ShardReceipt, reject_row, write_receipt
from gratis.preprocess.output.shard_writer import ShardWriter
from gratis.preprocess.output.store import open_store
from gratis.preprocess.sources.listing import Item
from gratis.preprocess.sources.reader import ImageReader
from gratis.preprocess.statistics import Accumulator


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """One shard, as a worker gets it. out: the dataset's folder or URL; condemned: by position in
    `items`, why a decoder must not see that file again ("crashed" or "hung")."""

    out: str
    split: str
    number: int
    items: tuple[Item, ...]
    size: int
    codec: str
    quality: int
    condemned: dict[int, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:05d}"

    def make(self, begin: Callable[[int], None], report: ReportProgress) -> None:
        """Makes and publishes the shard, as `workers.Task` says."""
        store = open_store(self.out)
        with store.staging() as folder:
            temporary = folder / temporary_name(f"{self.name}.tar")
            with temporary.open("wb") as file, ImageReader() as reader:
                writer = ShardWriter(file, EXTENSIONS[self.codec])
                receipt = _fill(self, reader, writer, begin, report)
                begin(-1)
            store.write(f"{self.name}.idx", writer.index())
            store.publish(temporary, f"{self.name}.tar")
        write_receipt(store, self.name, receipt)

    def condemn(self, position: int, cause: str) -> ShardTask:
        return dataclasses.replace(self, condemned=self.condemned | {position: cause})


def sample_size(data: bytes, task: ShardTask) -> int:
    """Bytes of the image member that a source file becomes. Raises Reject."""
    picture, _ = image.to_picture(data, task.size)
    return len(CODECS[task.codec].sample(picture, task.quality)[0])


def refuse_unread(condemned: dict[int, str], position: int, item: Item) -> None:
    """Raises Reject for a file that must not even be read: it might not fit memory, or crashes
    decoders."""
    if position in condemned:
        raise image.Reject(condemned[position], "the decoder did not survive this file")
    if item.size > image.MAX_BYTES:
        raise image.Reject("too-large", f"{item.size} bytes, the limit is {image.MAX_BYTES}")


def _fill(
    task: ShardTask,
    reader: ImageReader,
    writer: ShardWriter,
    begin: Callable[[int], None],
    report: ReportProgress,
) -> ShardReceipt:
    codec = CODECS[task.codec]
    statistics = Accumulator(task.size) if task.split == "train" else None
    conversions: Counter[str] = Counter()
    rejects: list[dict[str, str]] = []
    for position, item in enumerate(task.items):
        # a slow network is not the file's fault
        begin(-1 if addresses.is_url(item.container) else position)
        before = writer.bytes
        try:
            refuse_unread(task.condemned, position, item)
            source = reader.read(item)
            begin(position)
            picture, converted = image.to_picture(source, task.size)
            data, pixels = codec.sample(picture, task.quality)
            assert pixels.shape == (task.size, task.size, 3)
        except image.Reject as reject:
            rejects.append(reject_row(task.split, item, reject))
            report(0, item.size, 0, 1)
            continue
        writer.add(item.key, data, item.label)
        conversions.update(converted)
        if statistics:
            statistics.add(pixels)
        report(1, item.size, writer.bytes - before, 0)
    writer.close()
    return ShardReceipt(
        offset=np.array(writer.offset, np.int64),
        size=np.array(writer.size, np.int32),
        label=np.array(writer.label, np.int32),
        bytes=writer.bytes,
        sha256=writer.digest.hexdigest(),
        conversions=dict(sorted(conversions.items())),
        rejects=rejects,
        sums=statistics.sums() if statistics else None,
    )
