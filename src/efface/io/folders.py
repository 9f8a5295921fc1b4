"""Write a folder so that a reader finds the whole of it or nothing, whatever happens in between."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from efface.errors import OutputError
from efface.io.atomic import output_error


@contextlib.contextmanager
def atomic_folder(path: Path | str, *, overwrite: bool = False, ours: str = "") -> Iterator[Path]:
    """Yield a new empty folder beside ``path``; when the block ends well it becomes ``path``, else it goes away.

    With ``overwrite`` a folder at ``path`` is replaced if it is empty or holds a file called ``ours``, the mark of an
    earlier result; a folder of anything else is kept.

    Raises
    ------
    OutputError
        Before the block if ``path`` is taken or its parent cannot be written; after it if the disk is full.
    """
    path = Path(path)
    check_folder(path, overwrite=overwrite, ours=ours)
    new, old = (path.parent / f".efface-{os.getpid()}-{secrets.token_hex(4)}-{name}" for name in ("new", "old"))
    try:
        new.mkdir(parents=True)
        yield new
        _flush(new)
        if os.path.lexists(path):
            check_folder(path, overwrite=overwrite, ours=ours)
            path.rename(old)
        try:
            new.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
    except OSError as error:
        raise output_error(error, path) from error
    finally:
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)


def check_folder(path: Path | str, *, overwrite: bool = False, ours: str = "") -> None:
    """Raise :class:`OutputError` if :func:`atomic_folder` may not write ``path``."""
    path = Path(path)
    if not os.path.lexists(path):
        return
    if path.is_symlink() or not path.is_dir():
        raise OutputError("is no folder, and a folder is to be written", where=path, fix="Choose another name")
    if not overwrite:
        fix = "Choose another name, or overwrite it on purpose (--overwrite)"
        raise OutputError("exists already", where=path, fix=fix)
    if any(path.iterdir()) and not (ours and (path / ours).is_file()):
        raise OutputError("holds something else, which is kept", where=path, fix="Choose another name")


def free_name(path: Path) -> Path:
    """Return ``path``, or where it is taken the first of ``path-2``, ``path-3``, … that is not."""
    number, free = 1, path
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def _flush(folder: Path) -> None:
    for place, _, names in os.walk(folder):
        for name in (place, *(os.path.join(place, name) for name in names)):
            handle = os.open(name, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
