"""The HTTP interface. Every response about a run comes from `Runs`; nothing is ever written."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, HTTPException, Query, Response
from fastapi import Path as InPath
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse
from starlette.staticfiles import StaticFiles

from gratis.server.access import Access, Gate
from gratis.server.metrics import exposition
from gratis.server.models import Health, IntervalList, RunList, RunStatus
from gratis.server.run_reader import RunSnapshot
from gratis.server.runs import Runs
from gratis.server.stream import stream

STATIC = Path(__file__).parent / "static"
CLIENTS = 64  # event streams at a time: each costs a socket and a check twice a second
NOT_FOUND: dict[int | str, dict[str, Any]] = {
    404: {"description": "no such run; or no run yet, for which /readyz returns 503"}
}
KnownName = Annotated[str, InPath(description="a run's name")]
Accept = Annotated[
    str, Header(description="the format: text/plain or application/openmetrics-text")
]
RunName = Annotated[str | None, Query(description="a run's name; else the newest")]


def create_app(runs: Runs, access: Access, closing: Callable[[], bool]) -> FastAPI:
    """The app; once `closing` is true, event streams end."""
    app = FastAPI(
        title="gratis",
        description="How fast the loader is, and what holds training back.",
        docs_url=None,  # their scripts come from other hosts; /openapi.json is there
        redoc_url=None,
        redirect_slashes=False,  # behind a proxy that strips a prefix it would lead elsewhere
    )
    app.add_middleware(Gate, access=access)
    app.mount("/static", StaticFiles(directory=STATIC))
    _add_status(app, runs)
    _add_events(app, runs, closing)
    _add_probes(app, runs)

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(STATIC / "index.html")

    return app


def _snapshot(runs: Runs, name: str | None) -> RunSnapshot:
    snapshot = runs.snapshot(name)
    if snapshot is None:
        none_yet = "no run yet: the first one appears here by itself"
        raise HTTPException(404, none_yet if name is None else "no such run")
    return snapshot


def _add_status(app: FastAPI, runs: Runs) -> None:
    @app.get("/status", response_model=RunStatus, responses=NOT_FOUND)
    def newest_status(run: RunName = None) -> Response:
        """The run of that name, else the one whose files grew last."""
        return Response(_snapshot(runs, run).json, media_type="application/json")

    @app.get("/status/{run}", response_model=RunStatus, responses=NOT_FOUND)
    def status(run: KnownName) -> Response:
        """The run of that name."""
        return Response(_snapshot(runs, run).json, media_type="application/json")

    @app.get("/status/{run}/intervals", response_model=IntervalList, responses=NOT_FOUND)
    def intervals(run: KnownName) -> Response:
        """The curves of the run of that name."""
        return Response(_snapshot(runs, run).intervals_json, media_type="application/json")

    @app.get(
        "/status/{run}/picture",
        response_class=Response,
        responses={
            200: {"content": {"image/jpeg": {}}},
            404: {"description": "no such run, or no picture of it"},
        },
    )
    def picture(run: KnownName) -> Response:
        """The newest augmented training images, side by side."""
        if (body := runs.picture(run)) is None:
            raise HTTPException(404, "no picture")
        return Response(body, media_type="image/jpeg")

    @app.get("/runs")
    def listing() -> RunList:
        """All runs, by the ends of rank 0's files."""
        return runs.listing()

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    def metrics(accept: Accept = "") -> Response:
        """The newest run for Prometheus; OpenMetrics by the Accept header."""
        body, content_type = exposition(runs, accept)
        return Response(body, headers={"Content-Type": content_type})


def _add_events(app: FastAPI, runs: Runs, closing: Callable[[], bool]) -> None:
    clients: set[object] = set()

    async def slot() -> AsyncIterator[None]:
        if len(clients) >= CLIENTS:
            message = f"{CLIENTS} clients are listening already"
            raise HTTPException(503, message, {"Retry-After": "10"})
        me = object()
        clients.add(me)
        try:
            yield
        finally:
            clients.discard(me)

    async def known(run: RunName = None) -> None:
        if run is not None:
            await run_in_threadpool(_snapshot, runs, run)

    @app.get(
        "/events",
        response_class=EventSourceResponse,
        dependencies=[Depends(known), Depends(slot)],
        responses=NOT_FOUND | {503: {"description": "too many clients"}},
    )
    async def events(
        run: RunName = None,
        last_event_id: Annotated[
            str | None, Header(description="resume after this interval")
        ] = None,
    ) -> AsyncIterator[ServerSentEvent]:
        """`interval` events, one per interval of training, and `status` events, one per change."""
        async for event in stream(runs, run, last_event_id, closing):
            yield event


def _add_probes(app: FastAPI, runs: Runs) -> None:
    @app.get("/healthz")
    @app.get("/livez")
    async def livez() -> Health:  # on no thread: all of them may be waiting for a run
        """Whether the server answers."""
        return Health(status="ok", reason="the server answers")

    @app.get(
        "/readyz",
        responses={503: {"model": Health, "description": "not training, and not finished"}},
    )
    def readyz(response: Response) -> Health:
        """Whether the newest run trains, or has finished: 503 before its first batch and once it
        has stalled."""
        snapshot = runs.snapshot()
        trains = snapshot is not None and bool(snapshot.status.ranks)
        state = snapshot.status.state if snapshot is not None and trains else "starting"
        if state in ("running", "finished"):
            return Health(status="ok", reason=state)
        response.status_code = 503
        return Health(status="unready", reason=state)
