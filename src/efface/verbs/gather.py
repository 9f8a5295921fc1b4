"""Find the pictures that are meant, what is left out of them, and the mask and the preview of each."""

from __future__ import annotations

import glob
import mimetypes
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from efface.errors import UsageError
from efface.io.images import SUFFIXES, format_of
from efface.io.leftovers import is_left
from efface.io.manifest import below

EARLIER, UNKNOWN, NOWHERE = "left by an earlier run", "not of a known kind", "links to nothing"
"""Why files are left out."""


@dataclass(frozen=True)
class Gathered:
    """What the inputs mean."""

    pictures: list[Path] = field(default_factory=list)
    named: set[Path] = field(default_factory=set)
    """Those that were given themselves, not found."""
    roots: list[Path] = field(default_factory=list)
    """The folders that were given."""
    left_out: dict[Path, str] = field(default_factory=dict)
    """Files that are no inputs, and why."""

    def file(self, out: str | Path | None) -> Path | None:
        """Return ``out`` where it names the file to write; None where it is a folder or not given."""
        if out is None or os.path.isdir(out):
            return None
        if Path(out).suffix.lower() not in SUFFIXES and not (mimetypes.guess_type(out)[0] or "").startswith("image/"):
            return None
        format_of(out)
        if self.roots or len(self.pictures) > 1:
            raise UsageError("is the name of one picture, and there may be several", where=out, fix="Name a folder")
        return Path(out)

    def folder(self, out: str | Path | None) -> Path:
        """Return where the record goes: with the results, or to the user where these go to several folders."""
        if out is not None:
            return Path(out)
        alone = [path.parent for path in self.pictures if not any(map(path.is_relative_to, self.roots))]
        places = {*self.roots, *alone}
        return places.pop() if len(places) == 1 else Path()

    def leave_out_results(self, results: Mapping[Path, Path], made: Callable[[Path], bool]) -> None:
        """Leave out what is the result of another picture; refuse it where it was named and no run has ``made`` it."""
        written = set(map(os.path.realpath, results.values()))
        for path in self.pictures:
            if path not in results:
                self.left_out[path] = EARLIER
            if path in self.named and os.path.realpath(path) in written and (path in results or not made(path)):
                fix = "Give another folder for the results (-o), or leave it out"
                raise UsageError("is an input, and a result would take its place", where=path, fix=fix)


def gather(inputs: Sequence[str | Path]) -> Gathered:
    """Return the files that are meant: those named, those of folders and all below, and those that match patterns.

    Hidden files of folders never are; others that cannot be or should not be cleaned are left out, for a reason.
    """
    found = Gathered()
    pictures: dict[Path, None] = {}
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            found.roots.append(path)
            files = [p for p in sorted(path.rglob("*")) if not _hidden(p.relative_to(path))]
        elif path.exists() or not glob.has_magic(str(given)):
            found.named.add(path)
            files = [path]
        else:
            files = [Path(p) for p in sorted(glob.glob(str(given), recursive=True))]
        reasons = {p: _reason(p, p in found.named) for p in files if not p.is_dir()}
        found.left_out.update({p: reason for p, reason in reasons.items() if reason})
        if not any(reason == "" for reason in reasons.values()):
            raise UsageError("no pictures are there", where=given, fix=f"Known endings: {' '.join(SUFFIXES)}")
        pictures |= dict.fromkeys(p for p, reason in reasons.items() if not reason)
    found.pictures.extend(pictures)
    return found


def masks_of(pictures: Sequence[Path], roots: Sequence[Path], folder: Path) -> dict[Path, list[Path]]:
    """Return the masks in ``folder`` that each picture may have; it should be one.

    They lie where the picture lies below its root, and are called like it, or anywhere if it alone has that name.
    """
    by_place, by_stem = defaultdict[Path, list[Path]](list), defaultdict[str, list[Path]](list)
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES:
            by_place[path.relative_to(folder).with_suffix("")].append(path)
            by_stem[path.stem].append(path)
    namesakes = Counter(path.stem for path in pictures)
    return {
        p: by_place[below(p, roots) / p.stem] or (by_stem[p.stem] if namesakes[p.stem] == 1 else []) for p in pictures
    }


def previews(results: Mapping[Path, Path]) -> dict[Path, Path]:
    """Return the preview to write for each picture, in place of its result."""
    short = {
        source: path.with_name(f"{path.stem.removesuffix('_clean')}_boxes.png") for source, path in results.items()
    }
    if len(set(short.values())) < len(short):  # a.jpg beside a.png
        return {source: path.with_name(f"{source.name}_boxes.png") for source, path in results.items()}
    return short


def _reason(path: Path, named: bool) -> str:
    """Say why ``path`` is left out; an empty answer means that it is not."""
    if is_left(path):
        return EARLIER
    if named:
        return ""  # whatever is wrong with it is to be told
    if path.is_symlink() and not path.exists():
        return NOWHERE
    return "" if path.suffix.lower() in SUFFIXES and path.is_file() else UNKNOWN


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
