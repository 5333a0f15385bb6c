"""The process that estimates: what becomes of it costs the estimate, not the run."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest

from gratis.preprocess.stages import estimate
from gratis.preprocess.stages.shard import ShardTask

pytestmark = pytest.mark.starts

PATIENCE_S = 2.0


def late() -> ShardTask:
    time.sleep(PATIENCE_S + 0.1)
    return ShardTask(out="", split="train", number=0, items=(), size=16, codec="jpeg", quality=90)


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Arriving(ShardTask):
    """A task that does `fate` where the process receives it, which is before it begins."""

    fate: Callable[[], object]

    def __reduce__(self) -> tuple[Callable[[], object], tuple[()]]:
        return type(self).fate, ()


@pytest.mark.parametrize("fate", [late, killed])
def test_a_process_that_begins_late_or_never_costs_the_estimate(
    monkeypatch: pytest.MonkeyPatch, fate: Callable[[], object]
) -> None:
    monkeypatch.setattr(estimate, "TIMEOUT_S", PATIENCE_S)
    monkeypatch.setattr(Arriving, "fate", fate, raising=False)
    tried = Arriving(out="", split="train", number=0, items=(), size=16, codec="jpeg", quality=90)
    assert estimate.estimate_apart(1, tried) is None
