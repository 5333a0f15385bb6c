"""What is tried again, for how long and with which pauses: by a clock that waits for nobody."""

from __future__ import annotations

import email.utils
import json
import logging
import queue
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from logging.handlers import QueueHandler
from types import SimpleNamespace
from typing import Any

import pytest

from gratis.errors import GratisError, Outage
from gratis.network import (
    FetchCancelled,
    NetworkLimits,
    Server,
    first_line,
    is_lasting,
    is_of_server,
    retry_after,
)


class Answered(Exception):
    """By an HTTP server, as aiohttp's exceptions and botocore's have it."""

    def __init__(self, status: int, **more: Any) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status
        self.__dict__ |= more


def botocore(status: int, code: str = "", **headers: str) -> Exception:
    error = Exception("An error occurred")
    metadata = {"HTTPStatusCode": status, "HTTPHeaders": headers}
    error.response = {"Error": {"Code": code}, "ResponseMetadata": metadata}  # type: ignore[attr-defined]
    return error


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def of(module: str, name: str, error: type[Exception] = Exception, **more: Any) -> Exception:
    """An exception of this name that another package raises."""
    return type(name, (error,), {"__module__": module, **more})(name)


def not_json() -> Exception:
    with pytest.raises(ValueError, match="Expecting value") as caught:
        json.loads("<html>a gateway's page")
    return caught.value


GARBAGE = caused(Answered(400), of("aiohttp.http_exceptions", "BadStatusLine"))

LASTING: list[tuple[Exception, bool]] = [
    (FileNotFoundError(), True),
    (FileExistsError(), True),
    (IsADirectoryError(), True),
    (NotADirectoryError(), True),
    (PermissionError(), True),
    (NotImplementedError(), True),
    (ImportError(), True),
    (ValueError(), True),
    (TypeError(), True),
    (AttributeError(), True),
    (GratisError(), True),
    (ssl.SSLCertVerificationError(), True),
    (RuntimeError("Forbidden: no"), True),
    (of("botocore", "NoCredentialsError"), True),
    (of("google", "DefaultCredentialsError"), True),
    (of("aiohttp", "ClientConnectorCertificateError"), True),
    (caused(RuntimeError(), of("botocore", "PartialCredentialsError")), True),
    (RuntimeError("what is Forbidden: no"), False),
    (TimeoutError(), False),
    (ConnectionRefusedError(), False),
    (OSError(101, "Network is unreachable"), False),
    (RuntimeError(), False),
    (ssl.SSLError(), False),
    (not_json(), False),
    (caused(FileNotFoundError(), ConnectionRefusedError()), False),
    (caused(FileNotFoundError(), Answered(404)), True),
    (caused(FileNotFoundError(), PermissionError()), True),
    (caused(FileNotFoundError(), KeyError()), True),  # of a listing
    (caused(FileNotFoundError(), Answered(503)), False),
    *((Answered(status), True) for status in (400, 401, 403, 404, 410, 416, 499, 501, 505)),
    *((Answered(status), False) for status in (408, 409, 425, 429, 500, 502, 503, 504, 599)),
    *((Answered(status), False) for status in (0, 200, 399)),
    (caused(ValueError(), Answered(503)), False),  # the first status in the row counts
    (caused(Answered(503), Answered(404)), False),
    (botocore(403), True),
    (botocore(503), False),
    (botocore(400, "RequestTimeout"), False),
    (of("gcsfs.retry", "HttpError", code=404), True),
    (of("gcsfs.retry", "HttpError", code=503), False),
    (of("elsewhere", "HttpError", code=404), False),  # aiohttp's is 400 where a connection broke
    (GARBAGE, False),
]


@pytest.mark.parametrize(("error", "lasting"), LASTING)
def test_what_would_fail_again(error: Exception, lasting: bool) -> None:
    assert is_lasting(error) is lasting


def deep(causes: int) -> Exception:
    """An answer so many causes down."""
    error: Exception = Answered(503)
    for _ in range(causes):
        error = caused(RuntimeError(), error)
    return error


@pytest.mark.parametrize(
    ("error", "there"),
    [
        (Answered(503), True),
        (Answered(404), True),
        (GARBAGE, True),
        (ConnectionRefusedError(), False),
        (TimeoutError(), False),
        (Answered(0), False),
        (deep(4), True),
        (deep(5), False),
    ],
)
def test_whether_anybody_is_at_the_address(error: Exception, there: bool) -> None:
    assert is_of_server(error) is there


@pytest.mark.parametrize(
    ("said", "seconds"),
    [("7", 7.0), (" 12 ", 12.0), ("0", 0.0), ("soon", 0.0), ("-5", 0.0), ("", 0.0)],
)
def test_how_long_a_server_wants_to_be_left_alone(said: str, seconds: float) -> None:
    for name in ("Retry-After", "retry-after"):
        error = Answered(503, headers={name: said})
        assert retry_after(error) == seconds
        assert retry_after(caused(RuntimeError(), error)) == seconds
    assert retry_after(botocore(503, **{"retry-after": said})) == seconds


def test_it_may_name_a_date() -> None:
    for seconds in (100.0, -100.0):
        date = email.utils.formatdate(time.time() + seconds, usegmt=True)
        left = retry_after(Answered(503, headers={"Retry-After": date}))
        assert left == pytest.approx(max(0.0, seconds), abs=5)
    year = "Fri, 31 Dec 99999999999999999999 23:59:59 GMT"
    assert retry_after(Answered(503, headers={"Retry-After": year})) == 0.0
    assert retry_after(Answered(503)) == retry_after(OSError()) == 0.0


def test_a_message_s_first_line() -> None:
    assert first_line(OSError("a\nb\nc")) == "a"
    assert first_line(KeyError()) == "KeyError"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"outage_s": -0.1}, "outage_s is -0.1; it must be from 0 to 86,400 seconds"),
        ({"outage_s": 86_400.5}, "outage_s is 86400.5; it must be from 0 to 86,400 seconds"),
        ({"read_timeout_s": 0.0}, "read_timeout_s is 0.0; it must be above 0 and at most 3,600"),
        ({"read_timeout_s": 3600.5}, "read_timeout_s is 3600.5; it must be above 0"),
        ({"outage_s": 0.0, "read_timeout_s": 3600.0}, None),
        ({"outage_s": 86_400.0, "read_timeout_s": 0.1}, None),
    ],
)
def test_limits_have_a_range(fields: dict[str, float], message: str | None) -> None:
    if message is None:
        NetworkLimits(**fields)
    else:
        with pytest.raises(GratisError, match=f"^{message}"):
            NetworkLimits(**fields)


class AtOnce(threading.Thread):
    """Does its work where it is started."""

    def start(self) -> None:
        self.run()


class Clock(threading.Event):
    """Goes on by what is waited for; set once `ends` is over."""

    def __init__(self, ends: float = 1e9) -> None:
        super().__init__()
        self.now, self.ends = 1000.0, 1000.0 + ends

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        assert timeout > 0
        self.now += timeout
        return self.now >= self.ends


class Tries:
    """A server that fails so often. at: when it was asked; costs: seconds of each answer."""

    def __init__(self, clock: Clock, *failures: Exception, costs: float = 0.0) -> None:
        self.clock, self.left, self.costs = clock, [*failures], costs
        self.at: list[float] = []

    def __call__(self) -> str:
        self.at.append(self.clock.now - 1000.0)
        self.clock.now += self.costs
        if self.left:
            raise self.left.pop(0)
        return "answer"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    fake = SimpleNamespace(monotonic=lambda: clock.now, time=time.time)
    monkeypatch.setattr("gratis.network.time", fake)
    return clock


def server(outage_s: float = 600.0, *, answered: bool = True) -> Server:
    limits = NetworkLimits(outage_s=outage_s)
    return Server("s3://b", limits, answered=answered, thread=AtOnce)


@pytest.fixture
def said() -> Iterator[Callable[[], list[str]]]:
    """What is logged; pytest's own capture is off."""
    records, log = queue.SimpleQueue[logging.LogRecord](), logging.getLogger("gratis.network")
    handler = QueueHandler(records)
    log.addHandler(handler)
    yield lambda: [records.get_nowait().getMessage() for _ in range(records.qsize())]
    log.removeHandler(handler)


def test_pauses_grow_to_fifteen_seconds(clock: Clock, said: Callable[[], list[str]]) -> None:
    """A fifth more or less each, so that the ranks of a run do not ask at once."""
    tries = Tries(clock, *[OSError("away\nreally")] * 20)
    assert server().ask(tries, "cannot read x", clock) == "answer"
    assert len(tries.at) == 21
    pauses = [b - a for a, b in zip(tries.at, tries.at[1:], strict=False)]
    for k, pause in enumerate(pauses):
        wanted = min(0.1 * 2**k, 15.0)
        assert 0.8 * wanted - 1e-6 <= pause <= 1.2 * wanted + 1e-6
    assert len({round(pause, 6) for pause in pauses[-8:]}) > 1
    away = tries.at[-1]
    lines = said()
    assert lines[0] == "cannot read x (away); it is tried again for up to 600 s"
    assert lines[-1] == f"s3://b answers again, after {away:.0f} s"
    # after the first second, then every minute at most
    assert 2 + int(away // 75.1) <= len(lines) <= 2 + away // 60


def test_a_short_failure_is_not_told(clock: Clock, said: Callable[[], list[str]]) -> None:
    tries = Tries(clock, OSError(), OSError())
    assert server().ask(tries, "x", clock) == "answer"
    assert said() == []


def test_a_server_that_was_there_is_waited_for_so_long(clock: Clock) -> None:
    tries = Tries(clock, *[OSError("away\nreally")] * 100)
    with pytest.raises(Outage) as caught:
        server(100.0).ask(tries, "cannot read x", clock)
    assert str(caught.value) == (
        "cannot read x for 100 s: away; the same command goes on when the server is back"
    )
    assert tries.at[-1] == pytest.approx(100.0, abs=1e-6)


def test_an_address_where_nobody_is_is_an_error_soon(clock: Clock) -> None:
    tries = Tries(clock, *[OSError("refused")] * 100)
    asked = server(answered=False)
    with pytest.raises(GratisError) as caught:
        asked.ask(tries, "cannot read x", clock)
    assert str(caught.value) == f"cannot read x, after {len(tries.at)} attempts: refused"
    assert not isinstance(caught.value, Outage)
    assert tries.at[-1] == pytest.approx(6.0, abs=1e-6)
    assert not asked.answered


def test_a_server_that_says_that_it_cannot_now_is_there(clock: Clock) -> None:
    tries = Tries(clock, Answered(503), *[OSError("away")] * 100)
    with pytest.raises(Outage):
        server(50.0, answered=False).ask(tries, "x", clock)
    assert tries.at[-1] == pytest.approx(50.0, abs=1e-6)


def test_as_long_as_the_server_asks_it_is_left_alone(clock: Clock) -> None:
    tries = Tries(clock, Answered(503, headers={"Retry-After": "40"}))
    server().ask(tries, "x", clock)
    assert tries.at == pytest.approx([0.0, 40.0], abs=1e-6)
    with pytest.raises(Outage):
        server(30.0).ask(
            Tries(clock, *[Answered(503, headers={"Retry-After": "40"})] * 9), "x", clock
        )


def test_what_lasts_is_raised_at_once(clock: Clock, said: Callable[[], list[str]]) -> None:
    """And is an answer, by which the server is back."""
    asked = server()
    error = Answered(404)
    tries = Tries(clock, *[OSError("away")] * 6, error)
    with pytest.raises(Answered) as caught:
        asked.ask(tries, "x", clock)
    assert caught.value is error
    assert len(tries.at) == 7
    assert said()[-1].startswith("s3://b answers again")
    new = server(answered=False)
    with pytest.raises(FileNotFoundError):
        new.ask(Tries(clock, FileNotFoundError()), "x", clock)
    assert not new.answered


def test_an_outage_is_one_for_all_that_ask(clock: Clock) -> None:
    """Whoever asks later waits for what is left of it; after `forget`, anew."""
    asked = server(100.0)
    with pytest.raises(Outage):
        asked.ask(Tries(clock, *[OSError()] * 99), "x", clock)
    later = Tries(clock, *[OSError()] * 99)
    with pytest.raises(Outage):
        asked.ask(later, "x", clock)
    assert len(later.at) == 1
    asked.forget()
    begun, anew = clock.now - 1000.0, Tries(clock, *[OSError()] * 99)
    with pytest.raises(Outage):
        asked.ask(anew, "x", clock)
    assert anew.at[-1] - begun == pytest.approx(100.0, abs=1e-6)


def test_an_answer_ends_an_outage(clock: Clock) -> None:
    asked = server(100.0)
    asked.ask(Tries(clock, *[OSError()] * 9), "x", clock)
    clock.now += 500
    begun, again = clock.now - 1000.0, Tries(clock, *[OSError()] * 99)
    with pytest.raises(Outage):
        asked.ask(again, "x", clock)
    assert again.at[-1] - begun == pytest.approx(100.0, abs=1e-6)


def test_whoever_waits_may_be_stopped(clock: Clock) -> None:
    clock.ends = 1020.0
    tries = Tries(clock, *[OSError()] * 99)
    with pytest.raises(FetchCancelled):
        server().ask(tries, "x", clock)
    assert clock.now == pytest.approx(1020.0, abs=0.21)
