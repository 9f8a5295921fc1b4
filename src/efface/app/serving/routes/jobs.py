"""Clean pictures: begin jobs, follow them, cancel them, and fetch what they made."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Query, Response
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import StringConstraints

from efface.app.serving.bundling import distinct, zipped
from efface.app.serving.copying import clean_name, mask_name
from efface.app.serving.jobs import Record
from efface.app.serving.routes.pictures import NOT_KEPT, PNG, Pixel, Size, show
from efface.app.serving.schemas import Id, Job, NewJob
from efface.app.serving.service import Here

router = APIRouter(prefix="/api/jobs", tags=["jobs"])
Iterate = Annotated[int | None, Query(ge=1, le=64, description="An iterate instead of the result, from 1.")]
Wanted = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}(:[1-9][0-9]?)?$")]
LOOK, ALIVE = 0.1, 15.0
"""Seconds between looks at a job that is followed, and until a sign of life where nothing happens."""


@router.post("", status_code=202)
def begin_job(here: Here, job: NewJob) -> Job:
    """Begin to clean a picture. 429 with Retry-After where too many jobs wait."""
    return here.jobs.begin(here.pictures.get(job.picture), job.rules).describe()


@router.get("")
def list_jobs(here: Here) -> list[Job]:
    """List the jobs, in the order they came."""
    return [record.describe() for record in here.jobs.all()]


@router.get("/archive", responses={200: {"content": {"application/zip": {}}}}, response_class=StreamingResponse)
def download_results(
    here: Here, job: Annotated[list[Wanted], Query(min_length=1, max_length=1000)]
) -> StreamingResponse:
    """Return the results of several jobs as one ZIP archive; `ID:K` is an iterate instead of the result."""
    asked = [one.partition(":")[::2] for one in job]
    records = [(here.jobs.get(id_), int(iterate) if iterate else None) for id_, iterate in asked]
    paths = [record.result(iterate) for record, iterate in records]
    names = distinct(clean_name(record.entry.name, record.entry.suffix) for record, _ in records)
    headers = {"Content-Disposition": 'attachment; filename="efface.zip"'}
    return StreamingResponse(zipped(zip(names, paths, strict=True)), media_type="application/zip", headers=headers)


@router.get("/{id}")
def get_job(here: Here, id: Id) -> Job:
    """Describe one job as it stands."""
    return here.jobs.get(id).describe()


@router.get("/{id}/events", responses={200: {"content": {"text/event-stream": {}}}}, response_class=StreamingResponse)
async def follow_job(here: Here, id: Id) -> StreamingResponse:
    """Follow a job by server-sent events: event `job`, data a Job as JSON; the first at once, the last when it ended.

    The stream closes after a Job whose state is done, failed or cancelled.
    """
    return StreamingResponse(_events(here.jobs.get(id)), media_type="text/event-stream", headers=NOT_KEPT)


@router.delete("/{id}", status_code=204)
def remove_job(here: Here, id: Id) -> None:
    """Forget a job with its files; one that waits or runs is cancelled, which frees its memory."""
    here.jobs.remove(here.jobs.get(id))


@router.get("/{id}/view", responses=PNG, response_class=Response)
def view_result(
    here: Here,
    id: Id,
    x: Pixel = None,
    y: Pixel = None,
    w: Pixel = None,
    h: Pixel = None,
    size: Size = None,
    iteration: Iterate = None,
) -> Response:
    """Show the result as `GET /api/pictures/{id}/view` shows the picture. 409 while there is none."""
    return show(here.jobs.get(id).rendition(iteration), (x, y, w, h), size)


@router.get("/{id}/mask", responses=PNG, response_class=FileResponse)
def download_mask(here: Here, id: Id) -> FileResponse:
    """Return what was taken away, 8-bit grey PNG of 0 and 255, named as the copied command names it."""
    record = here.jobs.get(id)
    return FileResponse(record.place() / "mask.png", media_type="image/png", filename=mask_name(record.entry.name))


@router.get("/{id}/download", response_class=FileResponse)
def download_result(here: Here, id: Id, iteration: Iterate = None) -> FileResponse:
    """Return the result in the picture's own format, with its metadata, as `NAME_clean.EXT`."""
    record = here.jobs.get(id)
    suffix = record.entry.suffix
    return FileResponse(
        record.result(iteration),
        media_type=f"image/{record.entry.admitted.format.lower()}",
        filename=clean_name(record.entry.name, suffix),
    )


async def _events(record: Record) -> AsyncIterator[str]:
    last, told = "", 0.0
    while True:
        job = record.describe()
        text = job.model_dump_json()
        if text != last:
            yield f"event: job\ndata: {text}\n\n"
            last, told = text, time.monotonic()
        elif time.monotonic() - told > ALIVE:
            yield ": \n\n"
            told = time.monotonic()
        if job.state in ("done", "failed", "cancelled"):
            return
        await asyncio.sleep(LOOK)
