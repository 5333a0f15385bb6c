"""The one law for mistakes: a user's is one line on stderr and exit code 2, an interrupt is one line and 130.

A contract module (standard library alone): every entry point of every package ends in `sys.exit(guard(main))`.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
from collections.abc import Callable
from typing import TypeVar

USER_ERROR = 2
PREEMPTED = 75  # EX_TEMPFAIL: batch schedulers requeue on it
INTERRUPTED = 130
UNREAD = 141  # as a program that SIGPIPE ended
Parsed = TypeVar("Parsed")


class UserError(Exception):
    """What the user can mend. The message is one line: what is wrong, the offending value, the way out.

    No ValueError: tyro would catch those of a configuration's checks and draw a box of several lines around them.
    """


def guard(main: Callable[[], int | None]) -> int:
    """Runs `main` and returns the process's exit code: its own (None means 0), 2 after UserError, 130 after ctrl-C, 141
    where nobody reads its output any more (`| head`).

    Any other exception is a defect of ours and keeps its traceback.
    """
    try:
        try:
            return _told(main)
        finally:
            if sys.stdout:  # what is still buffered would fail at the interpreter's end, past every handler
                sys.stdout.flush()
    except BrokenPipeError:
        if not _unread():  # another pipe: a defect
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNREAD


def _told(main: Callable[[], int | None]) -> int:
    try:
        return main() or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _unread() -> bool:
    """Is the reader of stdout or stderr gone?"""
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        poll.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def parsed(parse: Callable[[], Parsed]) -> Parsed:
    """What a parser of the command line returns; where it says that something is missing, that in one line (UserError).

    The parser is tyro, which draws a box for it; all else that it says stays as it is.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            found = parse()
    except SystemExit:
        if missing := _missing(said.getvalue()):
            raise UserError(missing) from None
        raise
    finally:
        if not _missing(said.getvalue()):
            sys.stderr.write(said.getvalue())
    return found


def _missing(box: str) -> str:
    lines = [line.strip(" │|") for line in box.splitlines()]
    heads = [number for number, line in enumerate(lines) if line.startswith("Missing from ")]
    if not heads:
        return ""
    ends = next((number for number, line in enumerate(lines) if number > heads[0] and line.startswith(("──", "--- "))),
                len(lines))  # fmt: skip
    told = " ".join(lines[heads[0] + 1 : ends]).replace(" (required)", "").removeprefix("STR ").rstrip(".")
    program = lines[heads[0]].removeprefix("Missing from ").rstrip(":")
    return f"{program}: missing {told}; {program} --help says more"
