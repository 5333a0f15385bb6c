"""When Python looks for garbage: seldom, and not in what will stay. With 256 ranks the collector
held a request up for 50 ms at a time, and found nothing: what the server drops has no cycles."""

from __future__ import annotations

import gc


def collect_rarely() -> None:
    """For a server's process. The default is 700."""
    gc.set_threshold(5_000)
    leave_out_all()


def leave_out_all() -> None:
    """The collector looks no more into what there is now. What is dropped of it is freed as
    before, but for cycles."""
    gc.collect()
    gc.freeze()
