"""Every signal handler of gratis: which signal does what, in which phase of which process.

phase (who sets it up)                     signal            what happens                      exit
-----------------------------------------  ----------------  --------------------------------  ----
a command imports (cli)                    INT               one message, at once               130
a command runs (cli)                       INT               KeyboardInterrupt, to `guard`      130
shards, sample and the like (preprocess)   TERM              as INT                             130
their workers (preprocess)                 INT               ignored: the parent decides          -
                                           TERM              the system's default               -15
train, before there are ranks (launcher)   first TERM, HUP   Terminated: stages are ended        75
                                           INT               KeyboardInterrupt                  130
train, with ranks (torch's agent)          first of STOPS    passed on to the ranks, which      75
                                                             save; the exit code is by what    130
                                                             they recorded (0, 1 if they had     0
                                                             come to an end before it)           1
                                           others after it   ignored
a rank imports (rank)                      any of STOPS      ends at once: nothing to save    75,130
a rank trains (StopSignals)                any of STOPS      all ranks stop at one step and   75,130
                                                             save
a rank whose parent is gone (kernel)       TERM, or KILL     as TERM above; KILL where other     75
                                                             machines go on without it
paper, ablate, export, report              first TERM, HUP   SystemExit: children are ended,     75
                                                             half-written files removed
a status server                            TERM, INT         ends at once, or once clients have    0
                                                             their answers; so does TERM from
                                                             the kernel when its parent is gone
gratis top                                 TERM, INT         ends, the terminal as it was         0
a command whose exit code is known (cli)   any of STOPS      ignored                              -
what raises, while a module is imported    as above          ends at once                      same

STOPS are TERM and HUP (75: preempted, batch schedulers requeue on it), INT and QUIT (130). A hangup
that a process was started to ignore (nohup) stays ignored. "First": later ones are ignored, so that
what is under way ends undisturbed (`timeout` sends two)."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from gratis.errors import INTERRUPTED, PREEMPTED

PR_SET_PDEATHSIG = 1
IMPORT_SYSTEM = "<frozen importlib._bootstrap>"  # the file of its code
# By signal, the exit code of a run that one ended. A terminal that closes hangs up; ctrl-\ quits.
STOPS: dict[int, int] = {
    signal.SIGTERM: PREEMPTED,
    signal.SIGHUP: PREEMPTED,
    signal.SIGINT: INTERRUPTED,
    signal.SIGQUIT: INTERRUPTED,
}


class Terminated(BaseException):
    """SIGTERM came while `gratis train` prepared its run."""


class StopSignals:
    """Remembers signals that ask a run to stop; ranks agree on a step at which to. hurry: is called
    in the handler, so that nothing waits for long any more. Main thread."""

    def __init__(self, hurry: Callable[[], None] = lambda: None) -> None:
        self.terminated = self.interrupted = False
        self._hurry = hurry
        for number in stop_signals():
            signal.signal(number, self._remember)

    def _remember(self, number: int, _: object) -> None:
        self._hurry()
        if STOPS[number] == INTERRUPTED:
            self.interrupted = True
        else:
            self.terminated = True


def stop_signals() -> list[int]:
    """Those of STOPS that this process acts on: all, but a hangup that it was started to ignore."""
    return [one for one in STOPS if one != signal.SIGHUP or signal.getsignal(one) != signal.SIG_IGN]


def name_of(number: int) -> str:
    return signal.Signals(number).name


def interrupt_ends_at_once() -> None:
    """Ctrl-C: one message and exit code 130, without a traceback out of an import."""
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        end = lambda *_: (os.write(2, b"interrupted\n"), os._exit(INTERRUPTED))  # noqa: E731
        signal.signal(signal.SIGINT, end)


def interrupt_raises() -> None:
    """Ctrl-C: KeyboardInterrupt, unless it was ignored from the start."""
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, _interrupt)


def terminate_interrupts() -> None:
    """SIGTERM: KeyboardInterrupt, as ctrl-C."""
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(_: int, frame: FrameType | None) -> NoReturn:
    if _imports(frame):
        os.write(2, b"interrupted\n")
        os._exit(INTERRUPTED)
    raise KeyboardInterrupt


def _imports(frame: FrameType | None) -> bool:
    """Whether a module is being imported. What a handler raises there is lost (in the import lock's
    callbacks) or comes out as another error (of a class whose body was executed)."""
    while frame is not None:
        if frame.f_code.co_filename == IMPORT_SYSTEM:
            return True
        frame = frame.f_back
    return False


def terminate_raises(make: Callable[[], BaseException]) -> None:
    """The first SIGTERM, or SIGHUP of a terminal that closes, raises what `make` makes; later ones
    are ignored."""
    asked = [one for one in stop_signals() if STOPS[one] == PREEMPTED]

    def first(_: int, frame: FrameType | None) -> NoReturn:
        for number in asked:
            signal.signal(number, signal.SIG_IGN)
        if _imports(frame):
            os._exit(PREEMPTED)
        raise make()

    for number in asked:
        signal.signal(number, first)


def terminate_exits() -> None:
    """The first of these raises SystemExit(75), so that each `finally` runs; later ones are
    ignored."""
    terminate_raises(lambda: SystemExit(PREEMPTED))


def stops_end_at_once() -> None:
    """Any of STOPS ends this process with its exit code, without cleaning up."""
    for number in stop_signals():
        signal.signal(number, lambda number, _: os._exit(STOPS[number]))


def serve_until_signalled() -> None:
    """SIGTERM and SIGINT: this process ends at once, with 0. There is nothing to lose."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))


def leave_to_parent() -> None:
    """For a worker process: ctrl-C reaches the whole group, and the parent decides; SIGTERM ends
    this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def interrupt_held_back() -> Iterator[None]:
    """Processes that are started inside never get ctrl-C; one that this process gets inside has
    its effect afterwards. Main thread."""
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # multiprocessing's, which lets signals in when it starts
    came: list[int] = []
    # The mask is this thread's, for its children; the system may choose another thread for ctrl-C.
    handler = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.signal(signal.SIGINT, handler)
        if came:
            signal.raise_signal(signal.SIGINT)


def ignore_stops() -> None:
    """From now on none of STOPS is acted on."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def handlers_restored(numbers: Iterable[int] = tuple(STOPS)) -> Iterator[None]:
    """Afterwards these signals have the handlers that they have now, whatever was set inside."""
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_with_parent(parent: int, number: int = signal.SIGTERM) -> None:
    """This process gets the signal when its parent, process `parent`, ends, by kill -9 too.
    SystemExit(75) where it has ended already. Linux alone can be asked for that; elsewhere nothing
    happens."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:
            sys.exit(PREEMPTED)
