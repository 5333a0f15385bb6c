"""How long a client may take for a request, and how many connections there may be, so that clients
that say nothing take the server from nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_S = 10.0  # from a request's first byte, or the connection, until its headers are whole
CONNECTIONS = 256
CLIENT_CONNECTIONS = 128  # of them from one address: a proxy is one
PROBES = ("/livez", "/readyz", "/healthz")


class BoundedProtocol(H11Protocol):
    """A connection. Beyond the bounds the one that was silent longest is closed; if all of them are
    being answered, the new one has an answer to probes alone."""

    _timer: asyncio.TimerHandle | None = None
    _heard = 0.0  # when the client last sent something

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._note_progress()
        others = [one for one in self.connections if isinstance(one, BoundedProtocol)]
        own = [one for one in others if one._address == self._address]
        for bound, connections in ((CLIENT_CONNECTIONS, own), (CONNECTIONS, others)):
            if len(connections) > bound and not self._close_silent(connections):
                self.app = _for_probes(self.config.loaded_app)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._note_progress()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    @property
    def _address(self) -> str | None:
        return self.client[0] if self.client else None

    @property
    def _silent(self) -> bool:
        """Whether nothing is being answered, or the client does not take the answer."""
        return self.cycle is None or self.cycle.response_complete or self.flow.write_paused

    def _note_progress(self) -> None:
        self._heard = self.loop.time()
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_timer()
        elif self._timer is None:
            self._timer = self.loop.call_later(REQUEST_S, self._end_if_silent)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end_if_silent(self) -> None:
        self._timer = None
        if self._silent and not self.transport.is_closing():
            self.transport.close()

    def _close_silent(self, connections: Iterable[BoundedProtocol]) -> bool:
        silent = [one for one in connections if one is not self and one._silent]
        if not silent:
            return False
        longest = min(silent, key=lambda one: one._heard)
        longest.connections.discard(longest)  # counted no more, however long it takes to close
        longest.transport.abort()
        return True


def _for_probes(app: ASGIApp) -> ASGIApp:
    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        answerer: Any = app
        if scope["path"] not in PROBES:
            detail = f"{CONNECTIONS} connections, or {CLIENT_CONNECTIONS} of yours, are busy"
            answerer = JSONResponse({"detail": detail}, 503, {"Retry-After": "10"})
        await answerer(scope, receive, send)

    return answer
