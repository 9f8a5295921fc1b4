"""Derive every random draw from (seed, step, name), so that the same seed gives the same bytes."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy
    import torch


def derive(seed: int, *names: object) -> int:
    """Return a 63-bit seed that depends on ``seed`` and on every one of ``names`` (their ``str``)."""
    text = "\x1f".join([str(int(seed)), *map(str, names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def numpy_generator(seed: int, *names: object) -> numpy.random.Generator:
    """Return a NumPy generator for the draw called ``names`` under ``seed``."""
    import numpy

    return numpy.random.Generator(numpy.random.PCG64(derive(seed, *names)))


def torch_generator(seed: int, *names: object, device: str = "cpu") -> torch.Generator:
    """Return a torch generator on ``device`` for the draw called ``names`` under ``seed``."""
    import torch

    return torch.Generator(device=device).manual_seed(derive(seed, *names))


@contextlib.contextmanager
def seeded(seed: int, *names: object) -> Iterator[None]:
    """Let torch's global generator draw what is called ``names`` under ``seed``, and then put it back.

    For code that takes no generator, such as the first weights of modules.
    """
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, *names))
        yield
