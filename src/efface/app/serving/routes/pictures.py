"""Take pictures in, show them, find their text, and hold their painted masks."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from efface.app.serving.schemas import Id, Mask, Picture, Rules, Text

router = APIRouter(prefix="/api/pictures", tags=["pictures"])
Pixel = Annotated[int | None, Query(ge=0, le=1_000_000)]
Size = Annotated[int | None, Query(ge=1, le=8192, description="Longest side of what comes back, in pixels.")]
RAW = {"requestBody": {"required": True, "content": {"application/octet-stream": {"schema": {"type": "string"}}}}}
PNG = {200: {"content": {"image/png": {}}}}


@router.post("", status_code=201, openapi_extra=RAW)
async def add_picture(
    request: Request, name: Annotated[str, Query(min_length=1, max_length=255, description="The file's name.")]
) -> Picture:
    """Take one picture; the body is the file as it is. 413 too large, 422 not a picture, 507 the store is full."""
    raise NotImplementedError


@router.get("")
def list_pictures() -> list[Picture]:
    """List the pictures, in the order they came."""
    raise NotImplementedError


@router.get("/{id}")
def get_picture(id: Id) -> Picture:
    """Describe one picture."""
    raise NotImplementedError


@router.delete("/{id}", status_code=204)
def remove_picture(id: Id) -> None:
    """Forget a picture, its mask and its jobs, which are cancelled."""
    raise NotImplementedError


@router.get("/{id}/view", responses=PNG, response_class=Response)
def view_picture(
    id: Id, x: Pixel = None, y: Pixel = None, w: Pixel = None, h: Pixel = None, size: Size = None
) -> Response:
    """Show a picture, or a rectangle of it (all of x, y, w, h; clipped to the picture), as PNG, 1:1 without `size`.

    With `size` it is made smaller, never larger. It never changes: browsers may keep it.
    """
    raise NotImplementedError


@router.get("/{id}/texts")
async def find_texts(id: Id) -> list[Text]:
    """Find and read the text in a picture, all confidences; the answer takes seconds at first and none later.

    429 with Retry-After where too much is waiting.
    """
    raise NotImplementedError


@router.put("/{id}/mask", openapi_extra=RAW)
async def put_mask(request: Request, id: Id) -> Mask:
    """Take the picture's painted mask: the body is a picture file of its size, white (luma from half) goes."""
    raise NotImplementedError


@router.get("/{id}/mask", responses=PNG, response_class=Response)
def get_mask(id: Id) -> Response:
    """Return the painted mask as an 8-bit grey PNG of 0 and 255, whatever format it came in; 404 where none is."""
    raise NotImplementedError


@router.delete("/{id}/mask", status_code=204)
def remove_mask(id: Id) -> None:
    """Forget the painted mask."""
    raise NotImplementedError


@router.post("/{id}/preview", responses=PNG, response_class=Response)
def preview_mask(id: Id, rules: Rules, size: Size = None) -> Response:
    """Show what the rules would take away, as an 8-bit grey PNG: the weight, 255 goes, the feather falls to 0.

    409 where the rules need the picture's texts and `GET texts` was not asked before.
    """
    raise NotImplementedError
