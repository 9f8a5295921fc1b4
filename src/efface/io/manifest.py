"""Plan where the results of a folder run go, and keep a record of it that survives a sudden end."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from efface.errors import OutputError, UsageError
from efface.io.atomic import check_target, output_error

Status = Literal["done", "failed", "skipped"]


class Manifest:
    """Append one JSON line per item to ``path``, each on the disk before the next item begins.

    The first line holds the options of the run. With ``resume`` a manifest that is there is continued, and a last line
    torn by a sudden end is cut off; without it a new one begins.

    Raises
    ------
    UsageError
        If the manifest to resume was begun with other ``options``, or is not a manifest.
    OutputError
        If it cannot be written.
    """

    def __init__(self, path: Path | str, options: Mapping[str, Any], *, resume: bool = False) -> None:
        self.path = Path(path)
        self.options = json.loads(json.dumps(options, default=str))
        self.items: dict[str, dict[str, Any]] = {}  # the last line about each input
        check_target(self.path, overwrite=True)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b", buffering=0)
        except OSError as error:
            raise output_error(error, self.path) from error
        try:
            if resume:
                self._resume()
            else:
                self._file.truncate(0)
            if self._file.seek(0, os.SEEK_END) == 0:
                self._append({"options": self.options, "hash": options_hash(self.options)})
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Manifest:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; every line is on the disk already."""
        self._file.close()

    def done(self, source: Path | str) -> bool:
        """Say whether ``source`` was done with as it is now: same size and time, and its output still there."""
        item = self.items.get(_key(source))
        if item is None or item["status"] != "done":
            return False
        state, output = _stat(source), _stat(item["output"])
        return (
            state is not None
            and output is not None
            and (state.st_size, state.st_mtime_ns) == (item["bytes"], item["modified"])
            and output.st_size == item["output_bytes"]
        )

    def add(
        self,
        source: Path | str,
        output: Path | str,
        status: Status,
        reason: str | None = None,
        seconds: float | None = None,
    ) -> None:
        """Record how ``source`` ended; with status ``done``, ``output`` must be written already."""
        state = _stat(source)
        written = _stat(output) if status == "done" else None
        item: dict[str, Any] = {
            "input": _key(source),
            "bytes": state.st_size if state else None,
            "modified": state.st_mtime_ns if state else None,
            "output": _key(output),
            "output_bytes": written.st_size if written else None,
            "status": status,
            "reason": reason,
            "seconds": None if seconds is None else round(seconds, 3),
        }
        self._append(item)
        self.items[item["input"]] = item

    def _resume(self) -> None:
        self._file.seek(0)
        text = self._file.read()
        whole = text.rfind(b"\n") + 1
        if not whole and text[:1] in (b"", b"{"):  # not even the first line was finished
            self._file.truncate(0)
            return
        try:
            first, *items = [json.loads(line) for line in text[:whole].splitlines()]
            options = dict(first["options"])
            self.items = {item["input"]: item for item in items}
            if not all(item.keys() >= _FIELDS for item in items):
                raise KeyError("a field is missing")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            fix = "Move it away, or choose another folder"
            raise UsageError("is not a manifest of efface", where=self.path, fix=fix) from error
        changed = [
            f"{name} was {options.get(name)!r}, now {self.options.get(name)!r}"
            for name in sorted(options.keys() | self.options.keys())
            if options.get(name) != self.options.get(name)
        ]
        if changed:
            fix = "Resume with the same options, or start anew in another folder"
            raise UsageError(f"was begun with other options: {'; '.join(changed)}", where=self.path, fix=fix)
        self._file.truncate(whole)

    def _append(self, line: Mapping[str, Any]) -> None:
        data = json.dumps(line).encode() + b"\n"
        end = self._file.seek(0, os.SEEK_END)
        try:
            if self._file.write(data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(end)  # no half line in the middle
            raise output_error(error, self.path) from error


def options_hash(options: Mapping[str, Any]) -> str:
    """Return a short hash of ``options``, the same for the same values in any order."""
    return hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode()).hexdigest()[:16]


def plan_outputs(
    inputs: Iterable[Path | str],
    out: Path | str | None = None,
    *,
    suffix: str = "_clean",
    overwrite: bool = False,
    roots: Iterable[Path | str] = (),
) -> dict[Path, Path]:
    """Return the path of each input's result: ``stem`` + ``suffix`` + ``.ext`` in ``out``, or beside the input.

    Inputs below one of the folders ``roots`` keep their folders below it. An input that is the result of another one,
    left by an earlier run, is left out.

    Raises
    ------
    UsageError
        If two inputs would share an output.
    OutputError
        If an output leads out of ``out`` by a link, or exists and ``overwrite`` is false. Nothing is written by then.
    """
    folders = sorted(map(Path, roots), key=lambda root: len(root.parts), reverse=True)  # the nearest root first
    plan: dict[Path, Path] = {}
    for source in dict.fromkeys(map(Path, inputs)):
        folder = source.parent if out is None else Path(out) / _below(source, folders)
        plan[source] = folder / f"{source.stem}{suffix}{source.suffix}"
    results = {_key(output) for source, output in plan.items() if _key(source) != _key(output)}
    plan = {source: output for source, output in plan.items() if _key(source) not in results}

    owners: dict[str, Path] = {}
    for source, output in plan.items():
        other = owners.setdefault(_key(output), source)
        if other != source:
            fix = "Clean them into different folders"
            raise UsageError(f"{other} and {source} would both become this file", where=output, fix=fix)
    taken = [output for output in plan.values() if output.exists()] if not overwrite else []
    if taken:
        names = ", ".join(map(str, taken[:3])) + (", ..." if len(taken) > 3 else "")
        fix = "Choose another folder, resume (--resume), or overwrite them (--overwrite)"
        raise OutputError(f"{len(taken)} of {len(plan)} results exist already: {names}", where=out, fix=fix)
    for output in plan.values():
        check_target(output, overwrite=overwrite, root=out)
    return plan


def _below(source: Path, roots: Iterable[Path]) -> Path:
    for root in roots:
        if source.is_relative_to(root):
            return source.relative_to(root).parent
    return Path()


def _key(path: Path | str) -> str:
    return os.path.abspath(path)


def _stat(path: Path | str) -> os.stat_result | None:
    try:
        return Path(path).stat()
    except OSError:
        return None


_FIELDS = {"input", "bytes", "modified", "output", "output_bytes", "status"}
