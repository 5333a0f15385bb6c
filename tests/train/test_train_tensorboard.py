"""TensorBoard's event file, read back by a second decoder of the format, and by TensorBoard itself
where it is."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path

import pytest

from gratis.events import EventWriter
from gratis.train.launcher.tensorboard import NAME, crc32c, mirrored

STEP = {
    "steps": 10,
    "images": 160,
    "wall_s": 2.0,
    "wait_s": 0.5,
    "loss": 1.5,
    "top1": 0.25,
    "lr": 0.01,
}


def fields(message: bytes) -> list[tuple[int, object]]:
    """(number, value) of a protobuf message: integers, floats by their width, the rest as bytes."""
    found, place = [], 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            place += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while place < len(message):
        key = varint()
        if key & 7 == 0:
            value: object = varint()
        elif key & 7 == 2:
            size = varint()
            value, place = message[place : place + size], place + size
        else:
            size, form = (8, "<d") if key & 7 == 1 else (4, "<f")
            (value,), place = struct.unpack(form, message[place : place + size]), place + size
        found.append((key >> 3, value))
    return found


def masked(data: bytes) -> int:
    crc = crc32c(data)
    return ((crc >> 15) | (crc << 17 & 0xFFFFFFFF)) + 0xA282EAD8 & 0xFFFFFFFF


def events(path: Path) -> list[dict[int, object]]:
    block, found = path.read_bytes(), []
    while block:
        (size,) = struct.unpack("<Q", block[:8])
        body = block[12 : 12 + size]
        assert struct.unpack("<I", block[8:12])[0] == masked(block[:8])
        assert struct.unpack("<I", block[12 + size : 16 + size])[0] == masked(body)
        found.append(dict(fields(body)))
        block = block[16 + size :]
    return found


def scalars(event: dict[int, object]) -> dict[str, float]:
    values = [dict(fields(value)) for _, value in fields(event[5])]  # type: ignore[arg-type]
    return {value[1].decode(): value[2] for value in values}  # type: ignore[union-attr,misc]


def a_run(folder: Path) -> None:
    for attempt, steps in ((1, (10, 20)), (2, (20, 30))):
        writer = EventWriter(folder / "rank-0.jsonl", attempt=attempt, rank=0)
        writer.write("start", {"world": 2})
        for step in steps:
            writer.write("step", STEP, epoch=0, step=step)
        writer.close()


def test_the_checksum_is_castagnolis() -> None:
    assert crc32c(b"123456789") == 0xE3069283


def test_records_become_events(tmp_path: Path) -> None:
    a_run(tmp_path)
    with mirrored(tmp_path):
        writer = EventWriter(tmp_path / "rank-0.jsonl", attempt=2, rank=0)
        writer.write("eval", {"views": 10, "top1": 0.6, "top5": 0.8, "nll": None}, epoch=1, step=30)
    first, restart, *rest = events(tmp_path / NAME)
    assert first[3] == b"brain.Event:2"
    assert (restart[2], fields(restart[7])) == (1, [(1, 1)])  # type: ignore[arg-type]
    assert [event[2] for event in rest] == [10, 20, 11, 20, 30, 30]
    assert scalars(rest[0]) == pytest.approx(
        {
            "train/loss": 1.5,
            "train/top1_error": 0.75,
            "train/images_per_s": 160.0,
            "train/learning_rate": 0.01,
            "loader/wait_fraction": 0.25,
        }
    )
    assert scalars(rest[-1]) == pytest.approx(
        {"val/top1_error_10_view": 0.4, "val/top5_error_10_view": 0.2}
    )


def test_tensorboard_reads_it(tmp_path: Path) -> None:
    if importlib.util.find_spec("tensorboard") is None:
        pytest.skip("needs the package tensorboard, which brings plain Pillow")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    a_run(tmp_path)
    with mirrored(tmp_path):
        pass
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    assert [one.step for one in read.Scalars("train/loss")] == [10, 20, 30]
