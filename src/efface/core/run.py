"""Keep a training on disk: its recipe, log, resumable state, samples and final weights, in one folder."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.errors import OutputError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

VERSIONED = ("efface", "torch", "numpy", "pillow", "opencv-python-headless", "safetensors", "accelerate")


def versions() -> dict[str, str]:
    """Return the installed versions of the packages that a result depends on."""
    found = {}
    for package in VERSIONED:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True)
class Run:
    """A training on disk.

    It holds ``recipe.json`` (recipe as resolved, versions), ``log.jsonl``, ``loss.png``, ``samples/``,
    ``state/<step>/`` (what is needed to go on, bit by bit) and, once training has ended, ``weights/``. Nothing in it is
    pickled.
    """

    path: Path

    @classmethod
    def create(cls, path: str | Path, recipe: dict[str, Any]) -> Run:
        """Begin a run in the folder ``path``, which must not hold one yet."""
        from efface.io.atomic import write_json

        run = cls(Path(path))
        if run._recipe.exists():
            raise OutputError("there is a run already", where=path, fix="Resume it, or choose another folder")
        write_json(run._recipe, {"recipe": recipe, "versions": versions()})
        return run

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Open the run in the folder ``path``."""
        run = cls(Path(path))
        if not run._recipe.is_file():
            raise UsageError("there is no run", where=path, fix="Give the folder that a training was written to")
        return run

    def discard(self) -> None:
        """Remove a run that has logged nothing yet, so that it can begin anew; what else its folder holds stays."""
        if not (self.log.is_file() and self.log.stat().st_size):
            self.log.unlink(missing_ok=True)
            self._recipe.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty
                self.path.rmdir()

    @property
    def recipe(self) -> dict[str, Any]:
        """Recipe as it was resolved when the run began."""
        return json.loads(self._recipe.read_text(encoding="utf-8"))["recipe"]

    @property
    def _recipe(self) -> Path:
        return self.path / "recipe.json"

    @property
    def log(self) -> Path:
        """Log with one JSON object a line."""
        return self.path / "log.jsonl"

    @property
    def samples(self) -> Path:
        """Folder of sample sheets."""
        return self.path / "samples"

    @property
    def weights(self) -> Path:
        """Folder of the final weights."""
        return self.path / "weights"

    @property
    def finished(self) -> bool:
        """Whether the final weights are there, whole."""
        return (self.weights / "card.json").is_file()  # written last

    def save_state(self, step: int, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Store what is needed to go on after ``step`` steps; older states go once it is whole."""
        from efface.io.weights import save_weights

        folder = self.path / "state" / f"{step:09d}"
        save_weights(folder, tensors, {"step": step, **values}, overwrite=True)
        for other in folder.parent.iterdir():
            if other != folder:
                shutil.rmtree(other)

    def load_state(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the tensors and values of the newest whole state, or None where there is none."""
        from efface.io.weights import load_weights

        whole = sorted(card.parent for card in (self.path / "state").glob("[0-9]*/card.json"))
        return load_weights(whole[-1]) if whole else None

    def save_weights(self, tensors: dict[str, Tensor], card: dict[str, Any]) -> None:
        """Store the final weights, with a card that says what they are and how they came about."""
        from efface.io.weights import save_weights

        save_weights(self.weights, tensors, {**card, "recipe": self.recipe, "versions": versions()})
