"""How anything is read over a network: what is tried again and for how long, and what is not.

A request that fails, or whose connection is silent for `read_timeout_s`, is tried again with
growing pauses until the server has been away for `outage_s`. What cannot get better (a file that is
not there or not allowed, another length, wrong credentials) is an error at once. While a server is
away the logger `gratis.network` says so: Python writes its warnings to stderr, and a run into its
events.

Imports the standard library and `gratis.errors` alone; `gratis.addresses` connects."""

from __future__ import annotations

import logging
import random
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from gratis.errors import GratisError, Outage, call_in_thread

log = logging.getLogger("gratis.network")
MOST_OUTAGE_S, MOST_TIMEOUT_S = 86_400.0, 3600.0  # bounds of the options
FIRST_S = 6.0  # of a server that has not answered yet: its address may be wrong
FIRST_PAUSE, MOST_PAUSE = 0.1, 15.0  # seconds between two tries, doubled each time
SAY_AFTER, SAY_EVERY = 1.0, 60.0  # seconds that a server is away, and then between messages
POLL = 0.02  # seconds between looks at a request's answer, or at what is asked to stop
LASTING = (501, 505)  # of 5xx: not implemented, version not supported
PASSING = (408, 409, 425, 429)  # of 4xx: time-out, conflict, too early, too many requests

T = TypeVar("T")


class FetchCancelled(Exception):
    """Whoever waited for a server was asked to stop."""


@dataclass(frozen=True, kw_only=True)
class NetworkLimits:
    """How long a server may be away or silent. GratisError for a value out of its range."""

    outage_s: float = 600.0
    read_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        if not 0 <= self.outage_s <= MOST_OUTAGE_S:
            bounds = f"from 0 to {MOST_OUTAGE_S:,.0f} seconds"
            raise GratisError(f"outage_s is {self.outage_s}; it must be {bounds}")
        if not 0 < self.read_timeout_s <= MOST_TIMEOUT_S:
            bounds = f"above 0 and at most {MOST_TIMEOUT_S:,.0f} seconds"
            raise GratisError(f"read_timeout_s is {self.read_timeout_s}; it must be {bounds}")


DEFAULT_LIMITS = NetworkLimits()


class _Hurry:
    """asked: this process is to end, so that no server is waited for any longer. A plain flag, as a
    signal's handler sets it."""

    asked = False


def stop_waiting() -> None:
    """From now on a server that is away is an Outage at once. For a signal's handler."""
    _Hurry.asked = True


class Server:
    """Requests to one server. For any thread.

    answered: it has answered, if only that it cannot now, so that it is waited for; else FIRST_S
    seconds of failures are an error of the address. thread: the class of the threads that requests
    run in."""

    def __init__(
        self,
        name: str,
        limits: NetworkLimits = DEFAULT_LIMITS,
        *,
        answered: bool = False,
        thread: type[threading.Thread] = threading.Thread,
    ) -> None:
        self.name, self.limits, self.answered, self._thread = name, limits, answered, thread
        self._lock = threading.Lock()
        self._down: float | None = None  # monotonic seconds of the first failure in a row
        self._said: float | None = None  # of the newest message on it

    def forget(self) -> None:
        """Whoever reads next waits for the server anew."""
        with self._lock:
            self._down = self._said = None

    def ask(self, request: Callable[[], T], what: str, stop: threading.Event | None = None) -> T:
        """What `request` returns, or raises where that cannot get better. GratisError, which begins
        with `what`, for a server that never answered, Outage for one that did and is away for too
        long; FetchCancelled on request."""
        stop, began, pause, tries = stop or threading.Event(), time.monotonic(), FIRST_PAUSE, 0
        while True:
            tries += 1
            try:
                answer = self._answer(request, what, stop)
            except FetchCancelled:
                raise
            except Exception as error:  # each protocol's library has errors of its own
                if is_lasting(error):
                    if self.answered:  # and it does so again
                        self._recover()
                    raise
                reason = error
                self.answered = self.answered or is_of_server(error)
            else:
                self._recover()
                return answer
            left = self._fail(began, what, reason, tries)
            wanted = max(pause * random.uniform(0.8, 1.2), retry_after(reason))
            _sleep(min(left, wanted), stop)
            pause = min(2 * pause, MOST_PAUSE)

    def _answer(self, request: Callable[[], T], what: str, stop: threading.Event) -> T:
        """FetchCancelled on request: the one to the server is then left to its library."""
        began = time.monotonic()
        answer = call_in_thread(request, self._thread)
        while not futures.wait([answer], POLL).done:
            if stop.is_set():
                raise FetchCancelled
            now = time.monotonic()
            if _Hurry.asked:
                raise Outage(f"{what}: no answer when this process was to end")
            if now - began > self.limits.read_timeout_s + 2 * SAY_AFTER:
                self._say(f"{what}: no whole answer for {now - began:.0f} s; it is waited for")
        return answer.result()

    def _fail(self, began: float, what: str, reason: Exception, tries: int) -> float:
        """Seconds for which the server is still waited for."""
        now, why = time.monotonic(), first_line(reason)
        with self._lock:
            self._down = began if self._down is None else min(self._down, began)
            away = now - self._down
        if not self.answered:
            if away >= FIRST_S:
                raise GratisError(f"{what}, after {tries} attempts: {why}")
            return FIRST_S - away
        outage_s = self.limits.outage_s
        if away >= outage_s or _Hurry.asked:
            way_out = "the same command goes on when the server is back"
            raise Outage(f"{what} for {away:.0f} s: {why}; {way_out}")
        if away > SAY_AFTER:
            self._say(f"{what} ({why}); it is tried again for up to {outage_s:g} s")
        return outage_s - away

    def _say(self, message: str) -> None:
        """A warning, unless there was one in the last minute."""
        now = time.monotonic()
        with self._lock:
            if self._said is not None and now - self._said < SAY_EVERY:
                return
            self._said = now
        log.warning(message)

    def _recover(self) -> None:
        self.answered = True
        if self._down is None and self._said is None:
            return
        with self._lock:
            down, said, self._down, self._said = self._down, self._said, None, None
        if said is not None:
            away = f", after {time.monotonic() - down:.0f} s" if down is not None else ""
            log.warning(f"{self.name} answers again{away}")


def _sleep(seconds: float, stop: threading.Event) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0 and not _Hurry.asked:
        if stop.wait(min(left, 0.2)):
            raise FetchCancelled


def first_line(error: BaseException) -> str:
    return str(error).split("\n", maxsplit=1)[0] or type(error).__name__


def is_lasting(error: BaseException) -> bool:
    """Whether the same request would fail again, however long one waits."""
    if isinstance(error, TimeoutError):
        return False
    causes = list(_causes(error))
    status = next((one for one in map(http_status, causes) if one is not None), None)
    if status is not None and status >= 400:
        return status in LASTING or (status < 500 and status not in PASSING)
    kinds = (PermissionError, ImportError, ValueError, TypeError, AttributeError, GratisError)
    others = (FileExistsError, IsADirectoryError, NotADirectoryError, NotImplementedError)
    if isinstance(error, FileNotFoundError):  # over HTTP of a server that cannot be reached, too
        return len(causes) == 1 or isinstance(causes[1], LookupError) or is_lasting(causes[1])
    if isinstance(error, (*kinds, *others, ssl.SSLCertVerificationError)):
        return "JSONDecode" not in type(error).__name__  # a gateway's page
    names = " ".join(type(one).__name__ for one in causes)
    # of gcsfs, of botocore and google.auth, of aiohttp
    return (
        str(error).startswith("Forbidden: ")
        or "CredentialsError" in names
        or "ConnectorCertificateError" in names
    )


def is_of_server(error: BaseException) -> bool:
    """Whether there is a server at the address: it answered that it cannot now, or what is no HTTP.
    A wrong address refuses, is silent, or no name server knows it."""
    return any(http_status(one) is not None or _is_garbage(one) for one in _causes(error))


def _is_garbage(error: BaseException) -> bool:
    """Whether aiohttp could not understand the answer. It says 400 then, as a server does that does
    not understand the request."""
    return type(error.__cause__).__module__ == "aiohttp.http_exceptions"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from."""
    one: BaseException | None = error
    for _ in range(5):
        if one is None:
            return
        yield one
        one = one.__cause__


def http_status(error: BaseException) -> int | None:
    """As aiohttp's, gcsfs's and botocore's errors have it."""
    answer = getattr(error, "response", None)
    if _is_garbage(error):
        return None
    if isinstance(answer, dict):
        if answer.get("Error", {}).get("Code") == "RequestTimeout":  # which S3 answers with 400
            return 408
        said = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    elif type(error).__module__.startswith("gcsfs"):
        said = getattr(error, "code", None)
    else:  # aiohttp's `code` is 400 too where a connection broke
        said = getattr(error, "status", None)
    return int(said) if str(said).isdecimal() and int(said) > 0 else None


def retry_after(error: BaseException) -> float:
    """Seconds that the server asks to be left alone for; 0 where it does not say."""
    for one in _causes(error):
        answer = getattr(one, "response", None)
        headers: Any = getattr(one, "headers", None)
        if isinstance(answer, dict):
            headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders")
        said = headers.get("retry-after") if hasattr(headers, "get") else None
        said = said or (headers.get("Retry-After") if hasattr(headers, "get") else None)
        if said:
            return _seconds(str(said))
    return 0.0


def _seconds(said: str) -> float:
    if said.strip().isdecimal():
        return float(said)
    try:
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    except (ValueError, OverflowError):  # a year of twenty digits
        return 0.0
