"""Take pictures in, show them, find their text, and hold their painted masks."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse

from efface.app.serving.refusing import RequestError
from efface.app.serving.rendering import Rendition
from efface.app.serving.schemas import Id, Mask, Picture, Rules, Text, Words
from efface.app.serving.service import Here
from efface.app.serving.store import Entry
from efface.app.serving.tasks import Choose, Preview

router = APIRouter(prefix="/api/pictures", tags=["pictures"])
Pixel = Annotated[int | None, Query(ge=0, le=1_000_000)]
Size = Annotated[int | None, Query(ge=1, le=8192, description="Longest side of what comes back, in pixels.")]
Corners = tuple[int | None, int | None, int | None, int | None]
FILE = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
PNG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/png": {}}}}
FOR_EVER = {"Cache-Control": "private, max-age=31536000, immutable"}
NOT_KEPT = {"Cache-Control": "no-store"}
LOOK, THINK = 30.0, 2.0
"""Seconds that a preview may take, and matching words with patterns, of which some would take years."""


@router.post("", status_code=201, openapi_extra=FILE)
async def add_picture(
    here: Here,
    request: Request,
    name: Annotated[str, Query(min_length=1, max_length=255, description="The file's name.")],
) -> Picture:
    """Take one picture; the body is the file as it is. 413 too large or too many, 422 not a picture."""
    return (await here.pictures.add(name, request.stream())).describe()


@router.get("")
def list_pictures(here: Here) -> list[Picture]:
    """List the pictures, in the order they came."""
    return [entry.describe() for entry in here.pictures.all()]


@router.get("/{id}")
def get_picture(here: Here, id: Id) -> Picture:
    """Describe one picture."""
    return here.pictures.get(id).describe()


@router.delete("/{id}", status_code=204)
def remove_picture(here: Here, id: Id) -> None:
    """Forget a picture, its mask and its jobs, which are cancelled."""
    entry = here.pictures.get(id)
    for record in here.jobs.all():
        if record.entry is entry:
            here.jobs.remove(record)
    here.pictures.remove(entry)


@router.get("/{id}/view", responses=PNG, response_class=Response)
def view_picture(
    here: Here, id: Id, x: Pixel = None, y: Pixel = None, w: Pixel = None, h: Pixel = None, size: Size = None
) -> Response:
    """Show a picture, or a rectangle of it (all of x, y, w, h; clipped to the picture), as PNG, 1:1 without `size`.

    With `size` it is made smaller, never larger. It never changes: browsers may keep it.
    """
    return show(here.pictures.get(id).admitted.rendition, (x, y, w, h), size)


@router.post("/choose")
async def choose_words(here: Here, words: Words) -> list[str]:
    """Say why each of the words stays, nothing where it goes: what jobs with these patterns will choose.

    422 where a pattern is none, or takes more than seconds.
    """
    return await asyncio.wrap_future(here.looking.submit(Choose(words), seconds=THINK).future)


@router.get("/{id}/texts")
async def find_texts(here: Here, id: Id) -> list[Text]:
    """Find and read the text in a picture, all confidences; the answer takes seconds at first and none later.

    429 with Retry-After where too much is waiting.
    """
    texts = await here.pictures.find_texts(here.pictures.get(id))
    return [
        Text(index=i, words=t.words, confidence=t.confidence, polygon=[(float(x), float(y)) for x, y in t.polygon])
        for i, t in enumerate(texts)
    ]


@router.put("/{id}/mask", openapi_extra=FILE)
async def put_mask(here: Here, request: Request, id: Id) -> Mask:
    """Take the picture's painted mask: the body is a picture file of its size, white (luma from half) goes."""
    entry = here.pictures.get(id)
    masked = await here.pictures.put_mask(entry, request.stream())
    return Mask(width=entry.size[1], height=entry.size[0], masked=masked)


@router.get("/{id}/mask", responses=PNG, response_class=FileResponse)
def get_mask(here: Here, id: Id) -> FileResponse:
    """Return the painted mask as an 8-bit grey PNG of 0 and 255, whatever format it came in; 404 where none is."""
    return FileResponse(_masked(here.pictures.get(id)).mask, media_type="image/png", headers=NOT_KEPT)


@router.delete("/{id}/mask", status_code=204)
def remove_mask(here: Here, id: Id) -> None:
    """Forget the painted mask."""
    entry = _masked(here.pictures.get(id))
    entry.masked = None
    entry.mask.unlink(missing_ok=True)


@router.post("/{id}/preview", responses=PNG, response_class=Response)
async def preview_mask(here: Here, id: Id, rules: Rules, size: Size = None) -> Response:
    """Show what the rules would take away, as an 8-bit grey PNG: the weight, 255 goes, the feather falls to 0.

    409 where the rules need the picture's texts and `GET texts` was not asked before.
    """
    entry = here.pictures.get(id)
    if entry.texts is None and (rules.texts or rules.take or rules.leave):
        raise RequestError(409, "the picture's texts are not known yet", fix="Get its texts first")
    means = here.jobs.means(rules, _masked(entry).mask if rules.mask else None)
    task = Preview(rules, entry.texts or [], means, *entry.size, size)
    png = await asyncio.wrap_future(here.looking.submit(task, seconds=LOOK).future)
    return Response(png, media_type="image/png", headers=NOT_KEPT)


def show(
    rendition: Rendition, corners: tuple[int | None, int | None, int | None, int | None], size: int | None
) -> Response:
    """Answer with a part of a rendition."""
    x, y, w, h = corners
    if x is None and y is None and w is None and h is None:
        box = None
    elif x is None or y is None or w is None or h is None:
        raise RequestError(422, "a rectangle needs all of x, y, w and h")
    else:
        box = (x, y, w, h)
    return Response(rendition.png(box, size), media_type="image/png", headers=FOR_EVER)


def _masked(entry: Entry) -> Entry:
    if entry.masked is None:
        raise RequestError(404, "the picture has no painted mask", fix="Put one first")
    return entry
