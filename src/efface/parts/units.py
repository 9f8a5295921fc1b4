"""Read amounts with their units."""

from __future__ import annotations

import re

from efface.errors import UsageError


def parse_bytes(amount: int | str) -> int:
    """Read an amount of memory: ``800MB``, ``2GB``, ``1.5 GiB``, or a plain number of bytes."""
    match = re.fullmatch(r"([0-9.]+)\s*([kmgt]?)(i?)b?", str(amount).strip().lower())
    try:
        number, unit, binary = match.groups() if match else ("", "", "")
        return int(float(number) * (1024 if binary else 1000) ** " kmgt".index(unit or " "))
    except ValueError:
        raise UsageError(f"{amount!r} is not an amount of memory", fix="Write it as 800MB or 2GB") from None
