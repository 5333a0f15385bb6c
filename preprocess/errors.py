"""The one law for mistakes: a user's is one line on stderr and exit code 2, an interrupt is one line and 130.

A contract module (standard library alone): every entry point of every package ends in `sys.exit(guard(main))`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

USER_ERROR = 2
PREEMPTED = 75  # EX_TEMPFAIL: batch schedulers requeue on it
INTERRUPTED = 130


class UserError(Exception):
    """What the user can mend. The message is one line: what is wrong, the offending value, the way out.

    No ValueError: tyro would catch those of a configuration's checks and draw a box of several lines around them.
    """


def guard(main: Callable[[], int | None]) -> int:
    """Runs `main` and returns the process's exit code: its own (None means 0), 2 after UserError, 130 after ctrl-C.

    Any other exception is a defect of ours and keeps its traceback.
    """
    try:
        return main() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
