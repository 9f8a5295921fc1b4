"""``efface serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from efface.app.options import HOW, WORK
from efface.errors import UsageError
from efface.parts.units import parse_bytes


def serve_(
    *,
    host: Annotated[
        str, Parameter(group=HOW, help="Address to listen at. Any but this machine's own needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, Parameter(group=HOW, help="Port to listen at; 0 takes a free one.")] = 8000,
    open_: Annotated[bool, Parameter(name="--open", group=HOW, help="Open the page in the browser.")] = False,
    token: Annotated[
        str | None, Parameter(group=HOW, help="What clients must show. Default: none here, a random one elsewhere.")
    ] = None,
    weights: Annotated[
        Path | None, Parameter(group=HOW, help="Weights folder instead of the one that comes along.")
    ] = None,
    workers: Annotated[int, Parameter(group=WORK, help="Pictures to clean at the same time.")] = 1,
    memory: Annotated[str, Parameter(group=WORK, help="Memory for one picture, such as 800MB or 2GB.")] = "2GB",
    max_upload: Annotated[str, Parameter(group=WORK, help="Largest picture file to take.")] = "200MB",
) -> None:
    """Serve the page until Ctrl+C."""
    from efface.extras import need

    need("fastapi", extra="web", job="efface serve")
    import re
    import secrets

    from efface.app.server import listen, serve
    from efface.app.serving.settings import Settings
    from efface.io.weights import load_card

    if workers < 1:
        raise UsageError(f"{workers} workers cannot work", where="--workers", fix="Give 1 or more")
    if token is not None and not re.fullmatch(r"[\w.~-]{8,200}", token, re.ASCII):
        raise UsageError("the token is not one", where="--token", fix="Give 8 or more letters, digits, or any of .~_-")
    if weights is not None:
        load_card(weights)
    settings = Settings(
        host=host, workers=workers, memory=parse_bytes(memory), max_file_bytes=parse_bytes(max_upload), weights=weights
    )
    if token is not None or not settings.local:
        settings = settings.guarded_by(token or secrets.token_urlsafe(24))
    with listen(settings.host, port) as socket:
        address = settings.address(socket.getsockname()[1])

        def started() -> None:
            print(f"efface serves {address}\nCtrl+C stops it.", flush=True)
            if open_:
                import webbrowser

                webbrowser.open(address)

        serve(settings, socket, started=started)
