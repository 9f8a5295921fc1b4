"""Clean pictures: begin jobs, follow them, cancel them, and fetch what they made."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import FileResponse, StreamingResponse

from efface.app.serving.routes.pictures import PNG, Pixel, Size
from efface.app.serving.schemas import Id, Job, NewJob

router = APIRouter(prefix="/api/jobs", tags=["jobs"])
Iterate = Annotated[int | None, Query(ge=1, le=64, description="An iterate instead of the result, from 1.")]


@router.post("", status_code=202)
def begin_job(job: NewJob) -> Job:
    """Begin to clean a picture. 429 with Retry-After where too many jobs wait."""
    raise NotImplementedError


@router.get("")
def list_jobs() -> list[Job]:
    """List the jobs, in the order they came."""
    raise NotImplementedError


@router.get("/{id}")
def get_job(id: Id) -> Job:
    """Describe one job as it stands."""
    raise NotImplementedError


@router.get("/{id}/events", responses={200: {"content": {"text/event-stream": {}}}}, response_class=StreamingResponse)
async def follow_job(id: Id) -> StreamingResponse:
    """Follow a job by server-sent events: event `job`, data a Job as JSON; the first at once, the last when it ended.

    The stream closes after a Job whose state is done, failed or cancelled.
    """
    raise NotImplementedError


@router.delete("/{id}", status_code=204)
def cancel_job(id: Id) -> None:
    """Cancel a job that waits or runs, which frees its memory; forget one that ended, with its files."""
    raise NotImplementedError


@router.get("/{id}/view", responses=PNG, response_class=Response)
def view_result(
    id: Id,
    x: Pixel = None,
    y: Pixel = None,
    w: Pixel = None,
    h: Pixel = None,
    size: Size = None,
    iteration: Iterate = None,
) -> Response:
    """Show the result as `GET /api/pictures/{id}/view` shows the picture. 409 while there is none."""
    raise NotImplementedError


@router.get("/{id}/mask", responses=PNG, response_class=Response)
def download_mask(id: Id) -> Response:
    """Return what was taken away, 8-bit grey PNG of 0 and 255, named as the copied command names it."""
    raise NotImplementedError


@router.get("/{id}/download", response_class=FileResponse)
def download_result(id: Id, iteration: Iterate = None) -> FileResponse:
    """Return the result in the picture's own format, with its metadata, as `NAME_clean.EXT`."""
    raise NotImplementedError
