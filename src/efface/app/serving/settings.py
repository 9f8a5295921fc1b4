"""Hold what the server is told at its start, and what it allows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote

from efface.verbs.find import evidence

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Limits of the server; amounts of memory and disk are in bytes."""

    host: str = "127.0.0.1"
    token: str | None = None
    """What clients must show; None lets in whoever reaches the server."""
    workers: int = 1
    """Pictures that are cleaned at the same time."""
    memory: int = 2_000_000_000
    """What cleaning one picture may use, about; a worker that takes half as much again is ended."""
    seconds: float = 600
    """How long one job may take."""
    max_file_bytes: int = 200_000_000
    max_total_bytes: int = 8_000_000_000
    """All that is held on the disk, renditions and results included."""
    max_pictures: int = 200
    max_pixels: int = 100_000_000
    max_waiting: int = 16
    weights: Path | None = None
    """Weights folder for jobs that name no method, or that folder's own."""
    results: Path = field(default_factory=evidence)
    """Where the measured claims lie."""

    @property
    def local(self) -> bool:
        """Whether only this machine reaches the server."""
        return self.host in LOOPBACK

    def guarded_by(self, token: str) -> Settings:
        """Return the same settings with ``token``."""
        return replace(self, token=token)

    def address(self, port: int) -> str:
        """Return what to open in a browser."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{port}/" + ("" if self.token is None else f"?token={quote(self.token)}")
