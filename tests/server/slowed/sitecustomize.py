"""Put before everything on PYTHONPATH, this makes one thing slow in the ranks of a real run, as the
environment says.

GRATIS_SLOW_READ: seconds that each read of a batch's bytes takes longer: a slow disk.
GRATIS_SLOW_STEP: seconds that each pass through the network takes longer: a slow device. Both as
<seconds> or <seconds>@<rank>."""

from __future__ import annotations

import os
import time
from typing import Any


def slow_down(owner: Any, name: str, variable: str) -> None:
    seconds, _, rank = os.environ.get(variable, "").partition("@")
    if not seconds or rank not in ("", os.environ["RANK"]):
        return
    original = getattr(owner, name)

    def slowed(*args: Any, **kwargs: Any) -> Any:
        time.sleep(float(seconds))
        return original(*args, **kwargs)

    setattr(owner, name, slowed)


if "RANK" in os.environ:
    from gratis.loader.reading.shard_reader import ShardReader
    from gratis.train.network.alexnet import AlexNet

    slow_down(ShardReader, "read", "GRATIS_SLOW_READ")
    slow_down(AlexNet, "forward", "GRATIS_SLOW_STEP")
