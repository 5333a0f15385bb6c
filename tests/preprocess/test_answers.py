"""The shard stage's arithmetic and order against answers worked out by hand."""

from __future__ import annotations

import gzip
import hashlib
import io
import struct
import tarfile
import zlib
from pathlib import Path

import fsspec
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as Pillow

from gratis.image import Reject, central_box, to_image
from gratis.preprocess.output.shard_writer import ShardWriter
from gratis.preprocess.sources.listing import Item
from gratis.preprocess.sources.open import open_source
from gratis.preprocess.stages.plan import draft_manifest, permutation, slices
from gratis.preprocess.stages.shard import ShardTask
from gratis.preprocess.statistics import Accumulator


@pytest.mark.parametrize(
    ("width", "height", "longer", "start"),
    [
        (500, 333, 96, 16),  # 96.1
        (375, 251, 96, 16),  # 95.6: to the nearest, not down
        (193, 128, 97, 16),  # 96.5: half up; 33 / 2 is cut
        (640, 333, 123, 29),  # 123.003
    ],
)
def test_the_longer_side_is_rounded_to_the_nearest(
    width: int, height: int, longer: int, start: int
) -> None:
    """A picture of `longer` x 64 pixels, of which 64 columns are kept, back in its own pixels."""
    left, right = start * width / longer, (start + 64) * width / longer
    assert central_box(width, height, 64) == pytest.approx((left, 0, right, height))
    assert central_box(height, width, 64) == pytest.approx((0, left, height, right))


def chunk(kind: bytes, data: bytes) -> bytes:
    sum_of = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + sum_of


def test_too_many_pixels_are_refused_by_the_header() -> None:
    """108 million: fewer than Pillow's own limit, and 324 MB."""
    header = struct.pack(">IIBBBBB", 12_000, 9_000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))
    with pytest.raises(Reject, match="12000 x 9000 pixels") as caught:
        to_image(png)
    assert caught.value.kind == "too-large"


def test_a_gzip_stream_without_its_end_is_truncated() -> None:
    """The picture in it is whole; what vouches for it is not there."""
    buffer = io.BytesIO()
    Pillow.new("RGB", (40, 30), (200, 100, 50)).save(buffer, "JPEG")
    whole = gzip.compress(buffer.getvalue())
    assert "gzip" in to_image(whole).conversions
    with pytest.raises(Reject) as caught:
        to_image(whole[:-8])
    assert caught.value.kind == "truncated"


@pytest.mark.parametrize("size", [300, 301])
def test_rows_longer_than_float32_sums_exactly(size: int) -> None:
    """301 products of 255 * 255 are an odd number above 2**24."""
    accumulator = Accumulator(size)
    accumulator.add(np.full((size, size, 3), 255, np.uint8))
    assert (accumulator.sums().products == 65_025 * size * size).all()


@pytest.mark.parametrize("size", [1, 7168, 7680, 8192, 8704])
def test_an_archive_ends_with_two_blocks_of_zeros(size: int) -> None:
    """Sizes with which the samples end before, at and behind a record's last two blocks."""
    file, expected = io.BytesIO(), io.BytesIO()
    writer = ShardWriter(file, "jpg")
    writer.add("a", bytes(size), 7)
    writer.close()
    with tarfile.open(fileobj=expected, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in (("a.jpg", bytes(size)), ("a.cls", b"7")):
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.uname, member.gname = (
                len(data),
                0o644,
                "gratis",
                "gratis",
            )
            tar.addfile(member, io.BytesIO(data))
    assert file.getvalue() == expected.getvalue()
    assert file.getvalue().endswith(bytes(1024))
    assert len(file.getvalue()) % 10_240 == 0


def test_a_shards_columns_are_where_its_images_are() -> None:
    """As tarfile finds them; DALI's index names image and label, each with its place."""
    file, samples = io.BytesIO(), {"a": (b"1" * 700, 3), "b c": (b"", 0), "d": (b"3" * 512, 1000)}
    writer = ShardWriter(file, "jpg")
    for key, (data, label) in samples.items():
        writer.add(key, data, label)
    offset, size, label = writer.columns()
    assert (offset.dtype, size.dtype, label.dtype) == (np.int64, np.int32, np.int32)
    before = writer.bytes
    writer.close()
    whole = file.getvalue()
    assert (before % 512, writer.bytes) == (0, len(whole))
    assert writer.digest.hexdigest() == hashlib.sha256(whole).hexdigest()
    with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
        found = {member.name: member for member in tar.getmembers()}
    assert [*found] == [f"{key}.{kind}" for key in samples for kind in ("jpg", "cls")]
    lines = ["v1.2 3"]
    for row, (key, (data, number)) in enumerate(samples.items()):
        image, text = found[f"{key}.jpg"], found[f"{key}.cls"]
        assert (offset[row], size[row], label[row]) == (image.offset_data, len(data), number)
        assert whole[text.offset_data :][: text.size] == b"%d" % number
        shown = key.replace(" ", "_")  # blanks separate its fields
        lines.append(
            f"jpg {image.offset_data} {len(data)} {shown}.jpg "
            f"cls {text.offset_data} {text.size} {shown}.cls"
        )
    assert writer.index().decode() == "\n".join(lines) + "\n"


@pytest.mark.parametrize("remote", [False, True])
def test_while_a_server_sends_no_image_is_blamed(tmp_path: Path, remote: bool) -> None:
    """Once its bytes are here the image is: -1 stands for none."""
    data = io.BytesIO()
    Pillow.new("RGB", (8, 8), (200, 100, 50)).save(data, "PNG")
    content, container = data.getvalue(), f"memory://{tmp_path}" if remote else str(tmp_path)
    names = ("a.png", "b.png", "c.png")
    for name in names:
        if remote:
            fsspec.filesystem("memory").pipe(f"{tmp_path}/{name}", content)
        else:
            (tmp_path / name).write_bytes(content)
    items = tuple(Item(container, name, -1, len(content), 3, name) for name in names)
    task = ShardTask(
        out=str(tmp_path),
        split="val",
        items=items,
        size=8,
        codec="jpeg",
        number=0,
        quality=95,
        excluded={2: "crashed"},
    )
    begun: list[int] = []
    used: list[tuple[int, str, int]] = []
    counted: list[tuple[int, ...]] = []

    def use(item: Item, source: bytes) -> tuple[NDArray[np.uint8], int]:
        used.append((begun[-1], item.name, len(source)))
        return np.zeros((8, 8, 3), np.uint8), 1536

    rejects, sums = task.read_images(begun.append, lambda *more: counted.append(more), use)
    assert begun == ([-1, 0, -1, 1, -1, -1] if remote else [0, 0, 1, 1, 2, -1])
    assert used == [(0, "a.png", len(content)), (1, "b.png", len(content))]
    assert counted == [(1, len(content), 1536, 0)] * 2 + [(0, len(content), 0, 1)]
    assert sums is None
    assert [(row["file"], row["kind"]) for row in rejects] == [
        (f"{tmp_path.name}/c.png", "crashed")
    ]


def test_shards_are_cut_from_an_order_of_the_seed_and_the_split(tmp_path: Path) -> None:
    """Each split in an order of its own, cut as it comes; the last shard holds the rest."""
    for split, count in (("train", 9), ("val", 9)):
        (tmp_path / split / "c").mkdir(parents=True)
        for number in range(count):
            (tmp_path / split / "c" / f"{number}.jpg").write_bytes(b"x")
    source = open_source(str(tmp_path))
    orders = []
    for seed in (0, 1):
        draft = draft_manifest(source, size=8, codec="jpeg", samples_per_shard=4, seed=seed)
        parts = [*slices(source, draft)]
        assert [part.name for part in parts] == [
            f"{split}-0000{number}" for split in ("train", "val") for number in range(3)
        ]
        assert [len(part.rows) for part in parts] == [4, 4, 1] * 2
        for k, split in ((0, "train"), (3, "val")):
            rows = np.concatenate([part.rows for part in parts[k : k + 3]])
            assert np.array_equal(rows, permutation(9, seed, split))
            orders.append(tuple(rows.tolist()))
    assert len(set(orders)) == 4
