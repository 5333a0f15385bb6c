"""Event records as numbers that can be added: tolerant of anything a file may hold, exact about
what it should.

A record that lacks what it needs is worth nothing and is dropped; a missing or absurd field counts
as 0. Nothing here raises on any JSON, so a garbage line can never become an error of the server.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

Record = Mapping[str, Any]
STAGES = ("read", "decode", "finish", "transfer")

_SANE = 1e15  # no count of ours in one interval comes near; beyond it JSON numbers stop being exact
_PATH = re.compile(
    r"(?<![\w:/.])(?:[A-Za-z]:)?(?:\.{0,2}|~)/(?:[^\s/:'\",;()]+/)*([^\s/:'\",;()]*)"
)


class Sums(NamedTuple):
    """Raw counters of one rank over some steps; the sum of two intervals is the interval of
    both."""

    steps: float
    images: float  # trained
    wall_s: float
    wait_s: float
    exchange_s: float  # inside collectives
    cpu_s: float
    delivered: float  # images that the loader handed over
    bytes_read: float
    read_s: float
    decode_s: float
    finish_s: float
    transfer_s: float
    blocked_s: float
    loss: float  # sum over steps, of the intervals whose loss is finite
    loss_steps: float
    hits: float  # training images right, of the intervals that count them
    hit_images: float

    def plus(self, other: Sums) -> Sums:
        return Sums._make(map(operator.add, self, other))

    def stages(self) -> dict[str, float]:
        """Seconds of the producer by stage."""
        return dict(
            zip(STAGES, (self.read_s, self.decode_s, self.finish_s, self.transfer_s), strict=True)
        )


NOTHING = Sums(*[0.0] * len(Sums._fields))


def number(record: Record, key: str) -> float | None:
    """The field if it is a finite number of sane size."""
    value = record.get(key)
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _SANE:
        return float(value)
    return None


def count(record: Record, key: str) -> float:
    """The field as a non-negative number; 0 where it is missing or none."""
    return max(number(record, key) or 0.0, 0.0)


def integer(record: Record, key: str) -> int | None:
    """The field if it is a whole, non-negative number."""
    value = number(record, key)
    return int(value) if value is not None and value >= 0 and value == int(value) else None


def text(record: Record, key: str) -> str | None:
    """The field as one short line without folders: messages may quote paths, which are nobody's
    business over HTTP."""
    value = record.get(key)
    if not isinstance(value, str):
        return None
    line = " ".join(value.encode("utf-8", "replace").decode().split())
    return _PATH.sub(lambda match: match[1] or "...", line)[:300]


def step_sums(record: Record) -> Sums | None:
    """The counters of a `step` record; None if it has no steps or no duration."""
    loader = record.get("loader")
    loader = loader if isinstance(loader, Mapping) else {}
    steps, wall_s, images = count(record, "steps"), count(record, "wall_s"), count(record, "images")
    if not (steps and wall_s):
        return None
    loss, top1 = number(record, "loss"), number(record, "top1")
    return Sums(
        steps=steps,
        images=images,
        wall_s=wall_s,
        wait_s=count(record, "wait_s"),
        exchange_s=count(record, "exchange_s"),
        cpu_s=count(record, "cpu_s"),
        delivered=count(loader, "images"),
        bytes_read=count(loader, "bytes_read"),
        read_s=count(loader, "read_s"),
        decode_s=count(loader, "decode_s"),
        finish_s=count(loader, "finish_s"),
        transfer_s=count(loader, "transfer_s"),
        blocked_s=count(loader, "blocked_s"),
        loss=0.0 if loss is None else loss * steps,
        loss_steps=0.0 if loss is None else steps,
        hits=0.0 if top1 is None else top1 * images,
        hit_images=0.0 if top1 is None else images,
    )
