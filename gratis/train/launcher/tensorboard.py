"""A run's records as a TensorBoard event file, beside the JSON lines it is read from: `gratis train
--tensorboard`.

Written by the parent process, which has nothing else to do, so that the training loop does not know
of it. The format is written out here (TFRecord framing around two small protobuf messages): every
package that writes it brings plain Pillow, protobuf or gRPC along. Sources: tensorflow's
event.proto, summary.proto and record_writer."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from gratis.events import EventTail

# TensorBoard wants the first four words, and reads files by name
NAME = "events.out.tfevents.0000000000.gratis"
EVERY_S = 2.0


@contextmanager
def mirrored(folder: Path) -> Iterator[None]:
    """Rank 0's records as an event file, kept up to date while this is open. All attempts are
    written anew."""
    stop = threading.Event()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / NAME).open("wb") as file:
        mirror = Mirror(folder, file)

        def follow() -> None:
            while not stop.wait(EVERY_S):
                mirror.catch_up()

        thread = threading.Thread(target=follow, name="tensorboard", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            mirror.catch_up()


class Mirror:
    """Copies what rank 0's file has gained."""

    def __init__(self, folder: Path, file: BinaryIO) -> None:
        self._tail, self._file = EventTail(folder / "rank-0.jsonl"), file
        self._world, self._attempt = 1, 0
        self._put(0.0, 0, _text(3, "brain.Event:2"))

    def catch_up(self) -> None:
        while records := self._tail.read():
            for record in records:
                self._copy(record)
        self._file.flush()

    def _copy(self, record: Mapping[str, Any]) -> None:
        t, step = float(record["t"]), int(record.get("step", 0))
        if record["kind"] == "start":
            self._world = int(record["world"])
        elif record["kind"] == "step":
            # from here on it ran the steps again: TensorBoard drops the old ones
            if record["attempt"] > self._attempt:
                self._attempt = record["attempt"]
                self._put(t, step - record["steps"] + 1, _message(7, _varint_field(1, 1)))
            self._scalars(t, step, step_scalars(record, self._world))
        elif record["kind"] == "eval":
            self._scalars(t, step, eval_scalars(record))

    def _scalars(self, t: float, step: int, scalars: Mapping[str, float | None]) -> None:
        known = {tag: value for tag, value in scalars.items() if value is not None}
        values = [
            _message(1, _text(1, tag) + _tag(2, 5) + struct.pack("<f", value))
            for tag, value in known.items()
        ]
        self._put(t, step, _message(5, b"".join(values)))

    def _put(self, t: float, step: int, what: bytes) -> None:
        event = _tag(1, 1) + struct.pack("<d", t) + _varint_field(2, step) + what
        length = struct.pack("<Q", len(event))
        self._file.write(length + _checksum(length) + event + _checksum(event))


def step_scalars(record: Mapping[str, Any], world: int) -> dict[str, float | None]:
    """An interval's scalars; each rank loads 1/world of every batch, so rank 0's rate is that share
    of all."""
    return {
        "train/loss": record["loss"],
        "train/top1_error": None if record["top1"] is None else 1 - record["top1"],
        "train/images_per_s": world * record["images"] / record["wall_s"],
        "train/learning_rate": record["lr"],
        "loader/wait_fraction": record["wait_s"] / record["wall_s"],
    }


def eval_scalars(record: Mapping[str, Any]) -> dict[str, float | None]:
    views = f"{record['views']}_view"
    return {f"val/{top}_error_{views}": 1 - record[top] for top in ("top1", "top5")} | {
        f"val/nll_{views}": record["nll"]
    }


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _tag(field: int, wire: int) -> bytes:
    return _varint(field << 3 | wire)


def _varint_field(field: int, value: int) -> bytes:
    return _tag(field, 0) + _varint(max(value, 0))


def _message(field: int, body: bytes) -> bytes:
    return _tag(field, 2) + _varint(len(body)) + body


def _text(field: int, text: str) -> bytes:
    return _message(field, text.encode())


def _table() -> list[int]:
    """CRC-32C by bytes (Castagnoli's polynomial, reflected)."""
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)  # noqa: PLW2901
        table.append(byte)
    return table


CRC_TABLE = _table()


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = CRC_TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _checksum(data: bytes) -> bytes:
    """Masked as TFRecord asks."""
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
