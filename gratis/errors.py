"""Errors and exit codes: a user's mistake is one line on stderr and exit code 2, an interrupt is
one line and 130. Every command ends in `sys.exit(guard(main))`."""

from __future__ import annotations

import os
import select
import sys
import threading
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Future
from typing import TypeVar

USER_ERROR = 2
PREEMPTED = 75  # EX_TEMPFAIL: batch schedulers requeue on it
INTERRUPTED = 130
UNREAD = 141  # as a program that SIGPIPE ended
ANSWER_S = 30.0  # Google's library alone looks for credentials for 17 s where there are none
Answer = TypeVar("Answer")


class GratisError(Exception):
    """What the user can mend. The message is one line: what is wrong, the offending value, the way
    out.

    No ValueError: tyro would catch those of a configuration's checks and draw a box of several
    lines around them."""


class Outage(GratisError):
    """A server was away for longer than it may be. The same command goes on later: exit code 75."""


def printable(text: str) -> str:
    """The text on one line, as it may hold the name of any file: what cannot be printed is
    escaped."""
    return text if text.isprintable() else repr(text)[1:-1]


def guard(main: Callable[[], int | None]) -> int:
    """Runs `main` and returns the process's exit code: its own (None means 0), 2 after GratisError,
    75 after an Outage, 130 after ctrl-C, 141 where nobody reads its output any more (`| head`).

    Any other exception is a defect of ours and keeps its traceback.
    """
    try:
        try:
            return _exit_code(main)
        finally:
            # what is still buffered would fail at the interpreter's end, past every handler
            if sys.stdout:
                sys.stdout.flush()
    except BrokenPipeError:
        if not _unread():  # another pipe: a defect
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNREAD


def _exit_code(main: Callable[[], int | None]) -> int:
    try:
        return main() or 0
    except GratisError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return PREEMPTED if isinstance(error, Outage) else USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _unread() -> bool:
    """Whether the reader of stdout or stderr is gone."""
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        poll.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def call_in_thread(
    call: Callable[[], Answer], thread: type[threading.Thread] = threading.Thread
) -> Future[Answer]:
    """What `call` is to return or raise, in a thread of that class: a server may be silent for
    minutes, and whoever does not wait so long goes on without it."""
    answer: Future[Answer] = Future()

    def run() -> None:
        try:
            answer.set_result(call())
        except BaseException as error:
            answer.set_exception(error)

    thread(target=run, daemon=True).start()
    return answer


def wait_for(
    call: Callable[[], Answer], what: str, answered: Callable[[], bool] = lambda: False
) -> Answer:
    """What `call` returns or raises; GratisError, which begins with `what`, if it does neither
    within ANSWER_S seconds, unless by then the server has `answered` something.

    For the first request to a server: libraries look for credentials and try again for minutes."""
    answer = call_in_thread(call)
    while not futures.wait([answer], ANSWER_S).done:
        if answered():
            continue
        way_out = "look at the address, this machine's network, and the credentials if it wants any"
        raise GratisError(f"{what}: no answer within {ANSWER_S:g} seconds; {way_out}")
    return answer.result()
