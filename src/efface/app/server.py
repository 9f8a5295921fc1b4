"""Serve the page and its API on this machine.

The page lies at ``/``, its files at ``/assets/NAME`` (from ``app/web/``), the description of the API at
``/openapi.json``. Pictures and jobs have random names given here; whatever a client calls a file is a label only.
Every answer of 400 and above is a :class:`efface.app.serving.schemas.Problem`. Where a token is set, a browser comes in
by ``/?token=TOKEN``, which sets a cookie; others send ``Authorization: Bearer TOKEN``.
"""

from __future__ import annotations

from fastapi import FastAPI

from efface.app.serving.routes import jobs, methods, pictures


def create_app() -> FastAPI:
    """Build the application."""
    app = FastAPI(title="efface", docs_url=None, redoc_url=None)
    for room in (pictures, jobs, methods):
        app.include_router(room.router)
    return app
