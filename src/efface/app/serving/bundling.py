"""Send many files as one ZIP archive while it is made, so that it takes neither memory nor disk."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from zipfile import ZipFile, ZipInfo

CHUNK = 1 << 20


class _Tray(io.RawIOBase):
    """Holds what was written until it is taken away."""

    def __init__(self) -> None:
        self.held = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:  # type: ignore[no-untyped-def, override]
        self.held += data
        return len(data)

    def take(self) -> bytes:
        taken, self.held = bytes(self.held), bytearray()
        return taken


def zipped(files: Iterable[tuple[str, Path]]) -> Iterator[bytes]:
    """Yield a ZIP archive of ``files`` by their names, stored as they are: pictures are compressed already."""
    tray = _Tray()
    with ZipFile(tray, "w") as archive:
        for name, path in files:
            with path.open("rb") as source, archive.open(ZipInfo.from_file(path, name), "w") as target:
                while chunk := source.read(CHUNK):
                    target.write(chunk)
                    yield tray.take()
    yield tray.take()


def distinct(names: Iterable[str]) -> list[str]:
    """Return ``names``, those that came before with a number."""
    given: list[str] = []
    for name in names:
        path, number, new = Path(name), 2, name
        while new in given:
            new, number = f"{path.stem} {number}{path.suffix}", number + 1
        given.append(new)
    return given
