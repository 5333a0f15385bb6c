"""Local worker processes for tasks of many images each: a decoder that crashes or hangs costs one
image, not the run.

A worker notes which image it is at in memory shared with the parent. One that dies, or is at the
same image for longer than IMAGE_SECONDS, is replaced and its shard begun again; an image at which
that happens twice is excluded: the shard is made without it, and it counts as a reject ("crashed"
or "hung"). A single death may be the machine's fault (a worker killed for memory), so it changes
nothing in the output.

Reading a local file is inside that minute: a read that never ends is then noticed whether it is the
file (a pipe, a disk that fails) or the decoder, which the parent cannot tell apart. A network mount
that stalls for longer, twice at the same image, costs that image: the run fails unless
--max-rejects permits it, and --discard begins again. Reading a URL is outside: its library's own
time limits hold there."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing as mp
import os
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple, Protocol

from gratis.addresses import describe
from gratis.errors import GratisError, Outage
from gratis.network import log
from gratis.signals import leave_to_parent

IMAGE_SECONDS = 60.0
MEMORY = 8 << 30  # address space of a worker: an image of the largest permitted size needs 1 GB
MAX_FAILURES = 2
NOT_BEGUN = -2  # in the place of a position
NO_MAIN_GUARD = (
    "worker processes end before they begin, for the reason above; in a script of your own the "
    "call belongs under "
    "`if __name__ == '__main__':`, as each of them imports it"
)
REPORT_S = 0.2

# images, bytes read, bytes written, rejects
ReportProgress = Callable[[int, int, int, int], None]


class Task(Protocol):
    """Work on one shard, sent to a worker as a whole. It may be begun again at any time."""

    @property
    def name(self) -> str:
        """Of the shard."""

    def make(self, begin: Callable[[int], None], report: ReportProgress) -> object:
        """Does the work. Calls begin(k) before it touches image k, and begin(-1) when it leaves the
        last. Raises OSError, GratisError. What it returns is the worker's `result`."""

    def exclude(self, position: int, cause: str) -> Task:
        """The same task without this image, which counts as a reject of that kind."""


class TaskProgress(NamedTuple):
    """What was done since the last report."""

    images: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    rejects: int = 0

    def plus(self, other: TaskProgress) -> TaskProgress:
        return TaskProgress(*(a + b for a, b in zip(self, other, strict=True)))


@contextlib.contextmanager
def closing_pool() -> Iterator[list[Worker]]:
    """A list of processes, which end with the block."""
    pool: list[Worker] = []
    try:
        yield pool
    finally:
        stop_all(pool)


def stop_all(pool: list[Worker]) -> None:
    while pool:
        pool.pop().stop()


def run_tasks(
    tasks: Iterable[Task], workers: int, pool: list[Worker] | None = None
) -> Iterator[TaskProgress]:
    """Runs every task; yields progress at least once a second. GratisError if a worker cannot read
    or write.

    Images and rejects of a shard that is begun again are reported again: negative counts take the
    first ones back. pool: processes of an earlier call, which are used, and stay there for the
    next; after an error it is empty. None: processes that end with this call."""
    source = iter(tasks)
    again: list[Task] = []
    failures: Counter[tuple[str, int]] = Counter()
    reuse, pool = pool is not None, [] if pool is None else pool
    pool += [Worker() for _ in range(workers - len(pool))]
    finished = False
    try:
        while True:
            for worker in pool:
                task = None if worker.task else again.pop() if again else next(source, None)
                if task:
                    worker.give(task)
            if not any(worker.task for worker in pool):
                finished = True
                return
            wait([handle for worker in pool for handle in worker.handles], timeout=1.0)
            for number, worker in enumerate(pool):
                yield worker.progress()
                if cause := worker.cause_of_death():
                    yield worker.progress()  # what it has sent in between
                    if worker.task:
                        again.append(_after_death(worker.task, worker, cause, failures))
                        yield worker.cancel()
                    worker.stop()
                    pool[number] = Worker()
    finally:
        if not (reuse and finished):
            stop_all(pool)


def _after_death(
    task: Task, worker: Worker, cause: str, failures: Counter[tuple[str, int]]
) -> Task:
    position = worker.position
    failures[task.name, position] += 1
    if failures[task.name, position] < MAX_FAILURES:
        return task
    if position == NOT_BEGUN and not worker.killed:
        raise GratisError(NO_MAIN_GUARD)
    if position < 0:
        raise GratisError(
            f"workers died {MAX_FAILURES} times outside any image of {task.name}: {worker.reason()}"
        )
    return task.exclude(position, cause)


class Worker:
    """The parent's side of one process."""

    def __init__(self) -> None:
        # a fork would copy whatever threads and locks the parent holds
        context = mp.get_context("spawn")
        # position in the shard, and when it was begun (monotonic seconds)
        self._at = context.RawArray("d", 2)
        self._at[0] = NOT_BEGUN
        self._pipe, theirs = context.Pipe()
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # one worker, one core
        arguments = (theirs, self._at, os.getpid())
        self._process = context.Process(target=_work, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        self._reported = TaskProgress()
        self._reason = ""
        self.task: Task | None = None
        self.result: object = None  # of the last task that was finished

    @property
    def handles(self) -> list[Connection | int]:
        return [self._pipe, self._process.sentinel]

    @property
    def position(self) -> int:
        return int(self._at[0])

    def give(self, task: Task) -> None:
        self.task, self._reported = task, TaskProgress()
        # it is dead already, which cause_of_death will tell
        with contextlib.suppress(BrokenPipeError):
            self._pipe.send(task)

    def progress(self) -> TaskProgress:
        """What the worker has reported since the last call, added up. GratisError if it failed."""
        total = TaskProgress()
        with contextlib.suppress(EOFError, ConnectionResetError):
            while self._pipe.poll():
                kind, value = self._pipe.recv()
                if kind == "failed":
                    raise GratisError(value)
                if kind == "outage":
                    raise Outage(value)
                if kind == "finished":
                    self.task, self.result = None, value
                elif kind == "died":
                    self._reason = value
                elif kind == "warning":
                    log.warning(value)
                else:
                    total = total.plus(value)
        self._reported = self._reported.plus(total)
        return total

    def cancel(self) -> TaskProgress:
        """Takes the task away; the negative of what was reported of it."""
        self.task = None
        return TaskProgress(*(-count for count in self._reported))

    def cause_of_death(self) -> str | None:
        if not self._process.is_alive():
            return "crashed"
        busy = self.task is not None and self.position >= 0
        return "hung" if busy and time.monotonic() - self._at[1] > IMAGE_SECONDS else None

    @property
    def killed(self) -> bool:
        return (self._process.exitcode or 0) < 0

    def reason(self) -> str:
        """Why it is dead."""
        code = self._process.exitcode or 0
        ended = (
            f"signal {-code}; is the machine out of memory?" if code < 0 else f"exit code {code}"
        )
        return self._reason or ended

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _limit_memory() -> None:
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]  # of a batch scheduler, or `ulimit -v`
    soft = MEMORY if hard == resource.RLIM_INFINITY else min(MEMORY, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


class _ToParent(logging.Handler):
    """The parent says what there is to be said of servers."""

    def __init__(self, pipe: Connection) -> None:
        super().__init__()
        self._pipe = pipe

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):  # it is gone
            self._pipe.send(("warning", record.getMessage()))


def _work(pipe: Connection, at: Any, parent: int) -> None:
    """What a worker does: tasks from the pipe until the parent is gone."""
    at[0] = -1
    leave_to_parent()
    _limit_memory()
    counts, last = TaskProgress(), time.monotonic()

    def begin(position: int) -> None:
        if os.getppid() != parent:
            os._exit(1)  # the parent was killed: its successor makes this shard
        at[1] = time.monotonic()
        at[0] = position

    def report(*new: int) -> None:
        nonlocal counts
        counts = counts.plus(TaskProgress(*new))
        if time.monotonic() - last > REPORT_S:
            flush()

    def flush() -> None:
        nonlocal counts, last
        pipe.send(("counts", counts))
        counts, last = TaskProgress(), time.monotonic()

    log.addHandler(_ToParent(pipe))
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            task = pipe.recv()
            try:
                result = task.make(begin, report)
            except GratisError as error:
                pipe.send(("outage" if isinstance(error, Outage) else "failed", str(error)))
                return
            except OSError as error:
                way_out = "what is finished stays: mend that and run it again"
                pipe.send(("failed", f"{task.name}: {error}; {way_out}"))
                return
            except Exception as error:
                pipe.send(("died", describe(error)))
                raise
            flush()
            pipe.send(("finished", result))
