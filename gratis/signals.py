"""Which signals ask a run to save and end."""

from __future__ import annotations

import signal

from gratis.errors import INTERRUPTED, PREEMPTED

# By signal, the exit code of a run that one ended. A terminal that closes hangs up; ctrl-\ quits.
STOPS: dict[int, int] = {
    signal.SIGTERM: PREEMPTED,
    signal.SIGHUP: PREEMPTED,
    signal.SIGINT: INTERRUPTED,
    signal.SIGQUIT: INTERRUPTED,
}


def heard() -> list[int]:
    """Those that this process is to act on: all, but a hangup that it was started to ignore
    (nohup)."""
    return [one for one in STOPS if one != signal.SIGHUP or signal.getsignal(one) != signal.SIG_IGN]
