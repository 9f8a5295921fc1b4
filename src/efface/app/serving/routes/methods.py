"""Show the catalogue, and what this server is."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import FileResponse

from efface.app.serving.schemas import About, Method, MethodPage

router = APIRouter(prefix="/api", tags=["catalogue"])


@router.get("/about")
def about() -> About:
    """Say what this server is and allows."""
    raise NotImplementedError


@router.get("/methods")
def list_methods() -> list[Method]:
    """List all methods by name; the page searches and filters them itself."""
    raise NotImplementedError


@router.get("/methods/{name}")
def describe_method(name: str) -> MethodPage:
    """Describe one method: card, hyper-parameters, weights and its claim's measured result."""
    raise NotImplementedError


@router.get("/methods/{name}/plot", response_class=FileResponse)
def plot_method(name: str) -> FileResponse:
    """Return the plot of the measured claim as PNG; 404 where there is none."""
    raise NotImplementedError
