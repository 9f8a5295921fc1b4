"""Hold uploaded pictures in folders with random names, and everything that is known of them."""

from __future__ import annotations

import asyncio
import re
import secrets
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from efface.app.serving.pool import Pool, Ticket
from efface.app.serving.refusing import RequestError
from efface.app.serving.schemas import Picture
from efface.app.serving.settings import Settings
from efface.app.serving.tasks import Admit, AdmitMask, Admitted, FindTexts
from efface.app.serving.worker import Task
from efface.errors import EffaceError
from efface.io.images import SUFFIXES
from efface.parts.text.detect import TextBox

Chunks = AsyncIterator[bytes]


@dataclass(eq=False)
class Entry:
    """An uploaded picture."""

    id: str
    name: str
    folder: Path
    admitted: Admitted
    finding: Ticket | None = None
    texts: list[TextBox] | None = None
    """The text that was found, once it was looked for."""
    masked: float | None = None
    """Share that the painted mask covers; None where there is none."""

    @property
    def source(self) -> Path:
        """The file as it came."""
        return self.folder / "file"

    @property
    def mask(self) -> Path:
        """The painted mask as PNG."""
        return self.folder / "mask.png"

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.admitted.rendition.height, self.admitted.rendition.width

    @property
    def suffix(self) -> str:
        """The ending of the picture's own format, as its name has it where that is right."""
        own = Path(self.name).suffix
        first = {form: suffix for suffix, form in reversed(SUFFIXES.items())}
        return own if SUFFIXES.get(own.lower()) == self.admitted.format else first[self.admitted.format]

    def named(self, error: EffaceError) -> EffaceError:
        """Let ``error`` speak of the picture by its name, not of where it lies."""
        if error.where is not None and str(self.folder.parent.parent) in error.where:
            error.where = self.name
        return error

    def describe(self) -> Picture:
        """Return what the API says of the picture."""
        height, width = self.size
        return Picture(
            id=self.id,
            name=self.name,
            width=width,
            height=height,
            bytes=self.source.stat().st_size,
            format=self.admitted.format,
            depth=self.admitted.depth,  # type: ignore[arg-type]
            channels=self.admitted.rendition.channels,
            notes=self.admitted.notes,
            view=f"/api/pictures/{self.id}/view",
        )


class Store:
    """The pictures, by their random names. ``pool`` reads what comes in."""

    def __init__(self, root: Path, settings: Settings, pool: Pool) -> None:
        self.root, self.settings, self.pool = root, settings, pool
        self._entries: dict[str, Entry] = {}
        self._coming = 0

    def get(self, id: str) -> Entry:
        """Return the picture called ``id``; a 404 where there is none."""
        entry = self._entries.get(id)
        if entry is None:
            raise RequestError(404, "there is no such picture", fix="Upload it again")
        return entry

    def all(self) -> list[Entry]:
        """Return the pictures in the order they came."""
        return [*self._entries.values()]

    def folder(self, kind: str) -> Path:
        """Make a folder for one more of its ``kind``; its random name is the id."""
        folder = self.root / kind / secrets.token_hex(16)
        folder.mkdir(parents=True)
        return folder

    def check_room(self) -> int:
        """Return how many bytes may still be held; a 413 where none."""
        left = self.settings.max_total_bytes - sum(f.stat().st_size for f in self.root.rglob("*") if f.is_file())
        if left <= 0:
            raise RequestError(413, "the server holds as much as it may", fix="Remove pictures")
        return left

    async def add(self, name: str, chunks: Chunks) -> Entry:
        """Take in a picture; all that was written goes away if it is refused."""
        if len(self._entries) + self._coming >= self.settings.max_pictures:
            raise RequestError(413, f"{self.settings.max_pictures} pictures are held already", fix="Remove some")
        self._coming += 1
        folder = self.folder("pictures")
        try:
            await self._receive(chunks, folder / "file")
            admitted = await self._read(Admit(folder / "file", folder / "view", self.settings.max_pixels))
            self.check_room()
            entry = self._entries[folder.name] = Entry(folder.name, label(name), folder, admitted)
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, EffaceError) and error.where is not None:
                error.where = label(name)
            raise
        finally:
            self._coming -= 1
        return entry

    def remove(self, entry: Entry) -> None:
        """Forget a picture."""
        self._entries.pop(entry.id, None)
        if entry.finding is not None:
            self.pool.cancel(entry.finding)
        shutil.rmtree(entry.folder, ignore_errors=True)

    async def put_mask(self, entry: Entry, chunks: Chunks) -> float:
        """Take in a painted mask, and return the share that it covers; the one before stays if it is refused."""
        given, made = (entry.folder / f"{secrets.token_hex(8)}{end}" for end in (".given", ".png"))
        try:
            await self._receive(chunks, given)
            masked = await self._read(AdmitMask(given, made, entry.size))
            made.replace(entry.mask)
        except EffaceError as error:
            if error.where == str(given):
                error.where = "mask"
            raise
        finally:
            given.unlink(missing_ok=True)
            made.unlink(missing_ok=True)
        entry.masked = masked
        return masked

    async def find_texts(self, entry: Entry) -> list[TextBox]:
        """Return the texts of a picture; whoever asks at the same time waits for the same answer."""
        while entry.texts is None:
            if entry.finding is None or (entry.finding.over and entry.finding.state != "done"):
                entry.finding = self.pool.submit(FindTexts(entry.source))
            try:
                entry.texts = await asyncio.wrap_future(entry.finding.future)
            except EffaceError as error:
                raise entry.named(error) from error
        return entry.texts

    async def _receive(self, chunks: Chunks, path: Path) -> None:
        most = min(self.settings.max_file_bytes, self.check_room())
        with path.open("xb") as file:
            async for chunk in chunks:
                if file.tell() + len(chunk) > most:
                    raise RequestError(413, f"the file has more than {most / 1e6:g} MB", fix="Give a smaller file")
                file.write(chunk)

    async def _read(self, task: Task) -> Any:
        return await asyncio.wrap_future(self.pool.submit(task).future)


def label(name: str) -> str:
    """Return the last part of a file's name, without what is not printed; it is shown, and never is a path here."""
    last = re.split(r"[\\/]", name)[-1]
    return re.sub(r"[^\w.,()\[\]{}&+=@!~' -]", "_", last).strip() or "picture"
