"""Write files so that a reader finds the old content or the new one, whatever happens in between."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import itertools
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from efface.errors import OutputError

_ADVICE = {
    errno.ENOSPC: ("the disk is full", "Free some space or choose another folder"),
    errno.EDQUOT: ("the disk quota is used up", "Free some space or choose another folder"),
    errno.EFBIG: ("the file is larger than the file system allows", "Choose a folder on another disk"),
    errno.EROFS: ("the file system is read-only", "Choose a folder that can be written"),
    errno.EACCES: ("there is no permission to write here", "Change the permissions or choose another folder"),
    errno.EPERM: ("there is no permission to write here", "Change the permissions or choose another folder"),
    errno.ENAMETOOLONG: ("the name is too long", "Choose a shorter name"),
    errno.ENOTDIR: ("a file stands where a folder is needed", "Choose another folder"),
    errno.EEXIST: ("a file stands where a folder is needed", "Choose another folder"),
    errno.ELOOP: ("links lead in a circle", "Choose a folder without such links"),
}
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_count = itertools.count()


def output_error(error: OSError, path: Path | str) -> OutputError:
    """Turn an operating system's ``error`` while writing ``path`` into one that says what to do."""
    unknown = (f"cannot be written ({error.strerror or error})", "Check the disk or choose another folder")
    what, fix = _ADVICE.get(error.errno or 0, unknown)
    return OutputError(what, where=path, fix=fix)


def inside(root: Path | str, path: Path | str) -> bool:
    """Say whether ``path`` lies in ``root`` once every link and ``..`` on the way is followed."""
    return Path(path).resolve().is_relative_to(Path(root).resolve())


def check_target(path: Path | str, *, overwrite: bool = False, root: Path | str | None = None) -> None:
    """Raise :class:`OutputError` if ``path`` may not be written: taken, a link, a folder, or outside ``root``."""
    path = Path(path)
    try:
        if path.is_symlink():
            raise OutputError("is a link, and links are not written through", where=path, fix="Remove the link")
        if root is not None and not inside(root, path):
            fix = "Remove the link on the way or choose another folder"
            raise OutputError(f"leads out of the output folder {root}", where=path, fix=fix)
        if path.is_dir():
            raise OutputError("is a folder, and a file is to be written", where=path, fix="Choose another name")
        if not overwrite and os.path.lexists(path):
            raise _taken(path)
        path.lstat()  # is_dir and lexists keep quiet about names that are too long
    except FileNotFoundError:
        pass
    except (OSError, RuntimeError) as error:  # resolve() meets a circle of links: RuntimeError before Python 3.13
        raise output_error(error if isinstance(error, OSError) else OSError(errno.ELOOP, ""), path) from error


@contextlib.contextmanager
def atomic_write(path: Path | str, *, overwrite: bool = False, root: Path | str | None = None) -> Iterator[Path]:
    """Yield a new empty file beside ``path``; when the block ends well it becomes ``path``, else it goes away.

    The temporary has the suffix of ``path``, is flushed to the disk before it takes the name, and the folders above are
    made as needed. Without ``overwrite`` a file that stands at ``path``, or appears there during the block, is kept.

    Raises
    ------
    OutputError
        Before the block if ``path`` is taken, a link, leads out of ``root``, or its folder cannot be written; after it
        if the disk fills up or the name was taken meanwhile.
    """
    path = Path(path)
    check_target(path, overwrite=overwrite, root=root)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path.parent.resolve())
        temporary = _create_beside(path)
    except OSError as error:
        raise output_error(error, path) from error
    try:
        yield temporary
        _flush(temporary)
        (os.replace if overwrite else _take_free_name)(temporary, path)
        with contextlib.suppress(OSError):  # some file systems cannot flush a folder; the name is taken all the same
            _flush(path.parent)
    except OSError as error:
        if error.filename in (None, str(temporary)):
            raise output_error(error, path) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def write_bytes(path: Path | str, data: bytes, *, overwrite: bool = False) -> None:
    """Write ``data`` to ``path`` atomically."""
    with atomic_write(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path | str, text: str, *, overwrite: bool = False) -> None:
    """Write ``text`` to ``path`` atomically, as UTF-8 and with its line ends as they are."""
    write_bytes(path, text.encode(), overwrite=overwrite)


def write_json(path: Path | str, value: object, *, overwrite: bool = False) -> None:
    """Write ``value`` to ``path`` atomically, as indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n", overwrite=overwrite)


def _taken(path: Path) -> OutputError:
    return OutputError(
        "exists already", where=path, fix="Choose another name, or overwrite it on purpose (--overwrite)"
    )


def _create_beside(path: Path) -> Path:
    while True:
        temporary = path.parent / f"{_prefix()}{os.getpid()}-{next(_count)}{path.suffix[:16]}"
        with contextlib.suppress(FileExistsError):  # left by an earlier process of the same number
            os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
            return temporary


def _take_free_name(temporary: Path, path: Path) -> None:
    try:
        try:
            os.link(temporary, path)  # fails if the name is taken, which a rename does not
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))  # claim the name, then fill it
            os.replace(temporary, path)
    except FileExistsError as error:
        raise _taken(path) from error


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _prefix() -> str:
    host = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
    return f".efface-{host}-"


@functools.lru_cache(maxsize=1024)  # once for each folder, not once for each of its files
def _sweep(folder: Path) -> None:
    """Remove what processes of this computer left in ``folder`` when they were killed."""
    for left in folder.glob(f"{_prefix()}*"):
        number = left.name.removeprefix(_prefix()).partition("-")[0]
        if number.isdecimal() and not _alive(int(number)):
            with contextlib.suppress(OSError):
                left.unlink()


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
