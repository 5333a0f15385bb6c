"""Map: one shard, a pure function of its slice of the plan. One worker makes it, with its
statistics and a receipt.

    OUT/train-00007.tar, .idx            published by rename once they are whole and on disk
    OUT/.work/train-00007.receipt.npz    renamed last: its presence means that the shard is done

Every sample is decoded again from the bytes that go into the tar, and the statistics are those of
the decoded pixels: what training will see. The decoder is libjpeg-turbo through Pillow; training's
(DALI's on the CPU) is libjpeg-turbo too, and a test holds them equal to the last bit on such files.
They are all baseline JPEGs made by one encoder, so what one build of that library decodes without
an error, the other does."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow

from gratis import addresses, image
from gratis.dataset import EXTENSIONS
from gratis.preprocess.execution.workers import Report
from gratis.preprocess.output.store import WORK, Store, open_store, publish_bytes, temporary
from gratis.preprocess.sources.listing import Item
from gratis.preprocess.sources.source import Reader
from gratis.preprocess.stages.statistics import Accumulator, Sums

BLOCK = 512
OWNER = "gratis"  # the same everywhere, so that equal samples give equal bytes


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """What a worker is told. `out` is the dataset's folder or URL, condemned maps positions in
    `items` to why a decoder must not see that file again."""

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

    def make(self, begin: Callable[[int], None], report: Report) -> None:
        make_shard(self, begin, report)

    def condemn(self, position: int, cause: str) -> ShardTask:
        return dataclasses.replace(self, condemned=self.condemned | {position: cause})


class Receipt(NamedTuple):
    """A finished shard: where its samples lie, what went wrong, its statistics (train split
    only)."""

    offset: NDArray[np.int64]
    size: NDArray[np.int32]
    label: NDArray[np.int32]
    bytes: int
    sha256: str
    conversions: dict[str, int]
    rejects: list[dict[str, str]]
    sums: Sums | None


def make_sample_bytes(data: bytes, task: ShardTask) -> bytes:
    """The image member that a source file becomes. Raises Reject."""
    return _encode(image.to_picture(data, task.size)[0], task)[0]


def receipt_name(shard: str) -> str:
    return f"{WORK}/{shard}.receipt.npz"


def make_shard(task: ShardTask, begin: Callable[[int], None], report: Report) -> None:
    """Makes and publishes the shard. begin(k) is called before item k is touched, and begin(-1)
    after the last."""
    store = open_store(task.out)
    with store.staging() as folder:
        made = folder / temporary(f"{task.name}.tar")
        with made.open("wb") as file, Reader() as reader:
            writer = ShardWriter(file, EXTENSIONS[task.codec])
            receipt = _fill(task, reader, writer, begin, report)
            begin(-1)
        index = f"v1.2 {len(writer.lines)}\n" + "".join(writer.lines)
        publish_bytes(store, f"{task.name}.idx", index.encode())
        store.publish(made, f"{task.name}.tar")
    write_receipt(store, task.name, receipt)


def write_receipt(store: Store, shard: str, receipt: Receipt) -> None:
    """Last of all: its presence means that the shard is done."""
    publish_bytes(store, receipt_name(shard), _pack(receipt))


def read_receipt(store: Store, shard: str) -> Receipt:
    """Raises OSError, ValueError or KeyError where there is none, or a torn one."""
    with np.load(io.BytesIO(store.read(receipt_name(shard))), allow_pickle=False) as arrays:
        facts: dict[str, Any] = json.loads(arrays["facts"].tobytes())
        images = facts.pop("images")
        sums = (
            None
            if images is None
            else Sums(images, arrays["pixels"].astype(np.int64), arrays["products"])
        )
        return Receipt(
            offset=arrays["offset"], size=arrays["size"], label=arrays["label"], sums=sums, **facts
        )


def finished(
    store: Store, name: str, there: dict[str, int], receipts: dict[str, int]
) -> int | None:
    """How many files the finished shard rejected; None if it is not finished. there, receipts: what
    the store and its work folder hold, name -> bytes."""
    if PurePath(receipt_name(name)).name not in receipts or f"{name}.idx" not in there:
        return None
    try:
        receipt = read_receipt(store, name)
    except (OSError, ValueError, KeyError, EOFError):
        return None
    return len(receipt.rejects) if there.get(f"{name}.tar") == receipt.bytes else None


def refuse_unread(condemned: dict[int, str], position: int, item: Item) -> None:
    """Raises Reject for what must not even be read: it might not fit memory, or kills decoders."""
    if position in condemned:
        raise image.Reject(condemned[position], "the decoder did not survive this file")
    if item.size > image.MAX_BYTES:
        raise image.Reject("too-large", f"{item.size} bytes, the limit is {image.MAX_BYTES}")


def rejected(split: str, item: Item, reject: image.Reject) -> dict[str, str]:
    """The file's line in rejects.jsonl."""
    # classes may hold files of one name
    folder = f"{PurePath(item.container).name}/" if item.offset < 0 else ""
    return {
        "split": split,
        "key": item.key,
        "file": folder + item.name,
        "kind": reject.kind,
        "reason": reject.reason,
    }


class ShardWriter:
    """Writes samples as USTAR members and keeps their index. sha256 and bytes are of what was
    written so far."""

    def __init__(self, file: io.BufferedWriter, extension: str) -> None:
        self._file = file
        self._extension = extension
        self.digest = hashlib.sha256()
        self.bytes = 0
        self.lines: list[str] = []  # of DALI's index: extension, offset, size, name of each member
        self.offset: list[int] = []
        self.size: list[int] = []
        self.label: list[int] = []

    def add(self, key: str, data: bytes, label: int) -> None:
        self.label.append(label)
        self.size.append(len(data))
        self.offset.append(self.bytes + BLOCK)
        first = self._member(f"{key}.{self._extension}", data)
        second = self._member(f"{key}.cls", b"%d" % label)
        self.lines.append(f"{first} {second}\n")

    def close(self) -> None:
        """Ends the archive as tarfile does: two empty blocks, filled up to a record of 20."""
        padded = -(-(self.bytes + 2 * BLOCK) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE
        self._write(bytes(padded - self.bytes))

    def _member(self, name: str, data: bytes) -> str:
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(data), 0o644
        info.uname = info.gname = OWNER
        self._write(info.tobuf(tarfile.USTAR_FORMAT))
        line = f"{name.partition('.')[2]} {self.bytes} {len(data)} {name}"
        self._write(data + bytes(-len(data) % BLOCK))
        return line

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self.digest.update(data)
        self.bytes += len(data)


def _fill(
    task: ShardTask,
    reader: Reader,
    writer: ShardWriter,
    begin: Callable[[int], None],
    report: Report,
) -> Receipt:
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
            data, pixels = _encode(picture, task)
        except image.Reject as reject:
            rejects.append(rejected(task.split, item, reject))
            report(0, item.size, 0, 1)
            continue
        writer.add(item.key, data, item.label)
        conversions.update(converted)
        if statistics:
            statistics.add(pixels)
        report(1, item.size, writer.bytes - before, 0)
    writer.close()
    return Receipt(
        offset=np.array(writer.offset, np.int64),
        size=np.array(writer.size, np.int32),
        label=np.array(writer.label, np.int32),
        bytes=writer.bytes,
        sha256=writer.digest.hexdigest(),
        conversions=dict(sorted(conversions.items())),
        rejects=rejects,
        sums=statistics.sums() if statistics else None,
    )


def _encode(picture: Pillow.Image, task: ShardTask) -> tuple[bytes, NDArray[np.uint8]]:
    """The member's bytes, and the pixels that they decode to."""
    if task.codec == "raw":
        decoded = np.asarray(picture)
        data = image.encode_ppm(decoded)
    else:
        data = image.encode_jpeg(picture, task.quality)
        decoded = image.decode(data)
    assert decoded.shape == (task.size, task.size, 3)
    return data, decoded


def _pack(receipt: Receipt) -> bytes:
    fields = receipt._asdict()
    arrays = {name: fields.pop(name) for name in ("offset", "size", "label")}
    sums: Sums | None = fields.pop("sums")
    if sums:  # a shard's sums of pixels fit 32 bits up to 16 million images: half the bytes
        arrays |= {"pixels": sums.pixels.astype(np.uint32), "products": sums.products}
    facts = json.dumps(fields | {"images": sums.images if sums else None}).encode()
    file = io.BytesIO()
    np.savez(file, facts=np.frombuffer(facts, np.uint8), **arrays)
    return file.getvalue()
