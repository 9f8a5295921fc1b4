"""Serve the page and its API on this machine.

The page lies at ``/``, its files at ``/assets/NAME`` (from ``app/web/``), the description of the API at
``/openapi.json``. Pictures and jobs have random names given here; whatever a client calls a file is a label only.
Every answer of 400 and above is a :class:`efface.app.serving.schemas.Problem`. Where a token is set, a browser comes in
by ``/?token=TOKEN``, which sets a cookie; others send ``Authorization: Bearer TOKEN``.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

from efface.app.serving.refusing import add_handlers
from efface.app.serving.routes import catalogue, jobs, pictures
from efface.app.serving.schemas import Problem
from efface.app.serving.security import Guard
from efface.app.serving.service import Service
from efface.app.serving.settings import Settings
from efface.errors import UsageError

WEB = Path(__file__).parent / "web"


def create_app(settings: Settings | None = None) -> FastAPI:
    """Build the application; its workers and its temporary folder last from startup to shutdown."""
    settings = settings or Settings()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.service = Service(settings)
        try:
            yield
        finally:
            await run_in_threadpool(app.state.service.close)

    app = FastAPI(
        title="efface",
        description="Take text out of pictures.",
        version=version("efface"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses={"4XX": {"model": Problem, "description": "What is wrong, and what to do"}},
    )
    add_handlers(app)
    app.add_middleware(Guard, settings=settings)
    for room in (pictures, jobs, catalogue):
        app.include_router(room.router)

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(WEB / "index.html", headers={"Cache-Control": "no-cache"})

    app.mount("/assets", StaticFiles(directory=WEB, check_dir=False))
    return app


def listen(host: str, port: int) -> socket.socket:
    """Take ``port`` of ``host``; :class:`UsageError` where that cannot be had."""
    if not 0 <= port < 65536:
        raise UsageError(f"{port} is not a port", where="--port", fix="Give one from 1 to 65535, or 0 for a free one")
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        what = f"port {port} of {host} cannot be had ({error.strerror or error})"
        raise UsageError(what, where="--host or --port", fix="Choose another, or --port 0 for a free one") from error


def serve(settings: Settings, listening: socket.socket, *, started: Callable[[], None] = lambda: None) -> None:
    """Serve at a socket until stopped. ``started`` is told once connections are taken."""
    app = create_app(settings)

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            started()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            await run_in_threadpool(app.state.service.stop)  # whoever waits for a job gets an answer
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # uploads may be cut off without a word
            await super().shutdown(sockets)

    config = uvicorn.Config(
        app,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=1,  # a page that follows a job would hold it open
    )
    Server(config).run([listening])
