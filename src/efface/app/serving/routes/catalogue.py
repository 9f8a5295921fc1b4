"""Show the catalogue, and what this server is."""

from __future__ import annotations

from importlib.metadata import version

from fastapi import APIRouter
from fastapi.responses import FileResponse

from efface.app.serving import catalogue
from efface.app.serving.refusing import RequestError
from efface.app.serving.routes.pictures import PNG
from efface.app.serving.schemas import About, Method, MethodPage
from efface.app.serving.service import Here
from efface.errors import UnknownNameError
from efface.io.images import SUFFIXES

router = APIRouter(prefix="/api", tags=["catalogue"])


@router.get("/about")
def about(here: Here) -> About:
    """Say what this server is and allows."""
    settings = here.settings
    return About(
        version=version("efface"),
        max_file_bytes=settings.max_file_bytes,
        max_total_bytes=settings.max_total_bytes,
        max_pictures=settings.max_pictures,
        max_pixels=settings.max_pixels,
        max_name=255,
        max_waiting=settings.max_waiting,
        workers=settings.workers,
        suffixes=[*SUFFIXES],
        qualities=catalogue.qualities(settings),
    )


@router.get("/methods")
def list_methods(here: Here) -> list[Method]:
    """List all methods by name; the page searches and filters them itself."""
    return catalogue.methods(here.settings)


@router.get("/methods/{name}")
def describe_method(here: Here, name: str) -> MethodPage:
    """Describe one method: card, hyper-parameters, weights and its claim's measured result."""
    try:
        return catalogue.method_page(name, here.settings)
    except UnknownNameError as error:
        raise RequestError(404, error.what, fix=error.fix) from error


@router.get("/methods/{name}/plot", responses=PNG, response_class=FileResponse)
def plot_method(here: Here, name: str) -> FileResponse:
    """Return the plot of the measured claim as PNG; 404 where there is none."""
    path = catalogue.plot(describe_method(here, name).name, here.settings)
    if path is None:
        raise RequestError(404, "there is no plot of that", fix=f"Measure it: efface check {name}")
    return FileResponse(path, media_type="image/png")
