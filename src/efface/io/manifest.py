"""Plan where the results of a folder run go, and keep a record of it that survives a sudden end."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from efface.errors import OutputError, UsageError
from efface.io.atomic import check_target, output_error

Status = Literal["planned", "done", "failed"]


class Manifest:
    """Keep one JSON line per item in ``path``, each on the disk before the next item begins.

    A line with options says how the items after it are made. All runs into a folder add to one manifest, of which the
    last line about each output counts. What is there is read at once, and nothing is written before ``with``, which
    cuts off a last line torn by a sudden end.

    Raises
    ------
    UsageError
        If the file is not a manifest.
    OutputError
        If it cannot be read or written.
    """

    def __init__(self, path: Path | str, options: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.options = json.loads(json.dumps(options, default=str))
        self.items: dict[str, dict[str, Any]] = {}  # the last line about each output, with its options
        self._written: set[str] = set()
        self._stated: dict[str, Any] | None = None  # the last options in the file
        check_target(self.path, overwrite=True)
        self._torn = self._read()

    def __enter__(self) -> Manifest:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b", buffering=0)
        except OSError as error:
            raise output_error(error, self.path) from error
        try:
            if self._torn is not None:
                self._file.truncate(self._torn)
            if self._stated != self.options:
                self._append({"options": self.options, "hash": options_hash(self.options)})
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def done(self, source: Path | str, output: Path | str) -> bool:
        """Say whether ``output`` was made from ``source`` as it is now: same size and time, the output still there.

        Raises :class:`UsageError` if it was made with other options.
        """
        item = self.items.get(_key(output))
        if item is None or item["status"] != "done" or item["input"] != _key(source):
            return False
        state, written = _stat(source), _stat(output)
        if state is None or (state.st_size, state.st_mtime_ns) != (item["bytes"], item["modified"]):
            return False
        if written is None or written.st_size != item["output_bytes"]:
            return False
        self._refuse_others(item["options"])
        return True

    def made(self, output: Path | str) -> bool:
        """Say whether what stands at ``output`` was written by a run, or by one that was stopped while it could be."""
        item = self.items.get(_key(output))
        return item is not None and (item["status"] == "planned" or _key(output) in self._written)

    def plan(self, outputs: Mapping[Path, Path]) -> None:
        """Record which outputs will be made from which sources, all at once."""
        self._append(*(_line(source, output, "planned") for source, output in outputs.items()))

    def add(
        self,
        source: Path | str,
        output: Path | str,
        status: Status,
        reason: str | None = None,
        seconds: float | None = None,
    ) -> None:
        """Record how ``source`` ended; with status ``done``, ``output`` must be written already."""
        self._append(_line(source, output, status, reason, seconds))

    def _read(self) -> int | None:
        """Take in the lines of the file, and return where a torn one begins, if there is one."""
        try:
            text = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise output_error(error, self.path) from error
        whole = text.rfind(b"\n") + 1
        if not whole and text[: len(_HEAD)] == _HEAD[: len(text)]:  # not even the first line was finished
            return 0
        try:
            for line in text[:whole].splitlines():
                self._learn(json.loads(line))
            if self._stated is None:
                raise KeyError("options")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            fix = "Move it away, or choose another folder"
            raise UsageError("is not a manifest of efface", where=self.path, fix=fix) from error
        return whole if whole < len(text) else None

    def _learn(self, line: dict[str, Any]) -> None:
        if "options" in line:
            self._stated = dict(line["options"])
            return
        if self._stated is None or not line.keys() >= _FIELDS:
            raise KeyError("a field is missing")
        self.items[line["output"]] = {**line, "options": self._stated}
        if line["status"] == "done":
            self._written.add(line["output"])

    def _refuse_others(self, options: Mapping[str, Any]) -> None:
        changed = [
            f"{name} was {options.get(name)!r}, now {self.options.get(name)!r}"
            for name in sorted(options.keys() | self.options.keys())
            if options.get(name) != self.options.get(name)
        ]
        if changed:
            fix = "Resume with the same options, or start anew in another folder"
            raise UsageError(f"was begun with other options: {'; '.join(changed)}", where=self.path, fix=fix)

    def _append(self, *lines: dict[str, Any]) -> None:
        data = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        end = self._file.seek(0, os.SEEK_END)
        try:
            if self._file.write(data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(end)  # no half line in the middle
            raise output_error(error, self.path) from error
        for line in lines:
            self._learn(line)


def options_hash(options: Mapping[str, Any]) -> str:
    """Return a short hash of ``options``, the same for the same values in any order."""
    return hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode()).hexdigest()[:16]


def plan_outputs(
    inputs: Iterable[Path | str],
    out: Path | str | None = None,
    *,
    suffix: str = "_clean",
    replaces: Callable[[Path], bool] = lambda path: False,
    roots: Iterable[Path] = (),
) -> dict[Path, Path]:
    """Return the path of each input's result: ``stem`` + ``suffix`` + ``.ext`` in ``out``, or beside the input.

    Inputs below one of the folders ``roots`` keep their folders below it. An input that is the result of another one,
    left by an earlier run, is left out. ``replaces`` says which files may be overwritten.

    Raises
    ------
    UsageError
        If two inputs would share an output.
    OutputError
        If an output leads out of ``out`` by a link, or exists and may not be replaced. Nothing is written by then.
    """
    folders = list(roots)
    plan: dict[Path, Path] = {}
    for source in dict.fromkeys(map(Path, inputs)):
        folder = source.parent if out is None else Path(out) / below(source, folders)
        plan[source] = folder / f"{source.stem}{suffix}{source.suffix}"
    results = {_key(output) for source, output in plan.items() if _key(source) != _key(output)}
    plan = {source: output for source, output in plan.items() if _key(source) not in results}

    owners: dict[str, Path] = {}
    for source, output in plan.items():
        other = owners.setdefault(_key(output), source)
        if other != source:
            fix = "Clean them into different folders"
            raise UsageError(f"{other} and {source} would both become this file", where=output, fix=fix)
    taken = [output for output in plan.values() if output.exists() and not replaces(output)]
    if taken:
        names = ", ".join(map(str, taken[:3])) + (", ..." if len(taken) > 3 else "")
        fix = "Choose another folder, resume the run that made them (--resume), or overwrite them (--overwrite)"
        raise OutputError(f"{len(taken)} of {len(plan)} results exist already: {names}", where=out, fix=fix)
    for output in plan.values():
        check_target(output, overwrite=replaces(output), root=out)
    return plan


def below(source: Path, roots: Iterable[Path]) -> Path:
    """Return the folder of ``source`` below the nearest of ``roots``, empty where it lies below none."""
    places = [source.relative_to(root).parent for root in roots if source.is_relative_to(root)]
    return min(places, key=lambda place: len(place.parts), default=Path())


def _key(path: Path | str) -> str:
    return os.path.abspath(path)


def _stat(path: Path | str) -> os.stat_result | None:
    try:
        return Path(path).stat()
    except OSError:
        return None


def _line(
    source: Path | str, output: Path | str, status: Status, reason: str | None = None, seconds: float | None = None
) -> dict[str, Any]:
    state = _stat(source)
    written = _stat(output) if status == "done" else None
    return {
        "input": _key(source),
        "bytes": state.st_size if state else None,
        "modified": state.st_mtime_ns if state else None,
        "output": _key(output),
        "output_bytes": written.st_size if written else None,
        "status": status,
        "reason": reason,
        "seconds": None if seconds is None else round(seconds, 3),
    }


_HEAD = b'{"options": '
_FIELDS = {"input", "bytes", "modified", "output", "output_bytes", "status"}
