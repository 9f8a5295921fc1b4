"""Share examples out to clients whose labels differ, as those of real devices do."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from efface.errors import UsageError
from efface.seeds import numpy_generator

TRIES = 1000


def dirichlet(
    labels: NDArray[np.int64], clients: int, alpha: float = 0.5, *, seed: int = 0, least: int = 2
) -> list[NDArray[np.int64]]:
    """Return which examples each client has: every example goes to one, each class by shares of its own.

    The shares of a class are drawn from a Dirichlet distribution whose parameters are all ``alpha`` (Hsu, Qi and Brown,
    arXiv:1909.06335): the smaller, the more clients differ. They are drawn anew until each client has ``least``
    examples, since batch statistics need two. Indices ascend.

    Raises
    ------
    UsageError
        If there are too few examples, ``alpha`` is not positive, or the draws go on leaving a client without.
    """
    if clients < 1 or not alpha > 0:
        raise UsageError(f"{clients} clients at alpha {alpha:g} share nothing", where="clients, alpha")
    if len(labels) < clients * least:
        what = f"{len(labels)} examples cannot give {clients} clients {least} each"
        raise UsageError(what, where="clients", fix="Take fewer clients, or more data")
    for attempt in range(TRIES):
        draw = numpy_generator(seed, "dirichlet", attempt)
        parts: list[list[NDArray[np.int64]]] = [[] for _ in range(clients)]
        for label in np.unique(labels):
            own = draw.permutation(np.flatnonzero(labels == label))
            cuts = np.round(np.cumsum(draw.dirichlet(np.full(clients, alpha)))[:-1] * len(own)).astype(np.int64)
            for part, share in zip(parts, np.split(own, cuts), strict=True):
                part.append(share)
        found = [np.sort(np.concatenate(part)) for part in parts]
        if min(map(len, found)) >= least:
            return found
    what = f"in {TRIES} draws some of {clients} clients always had fewer than {least} examples"
    raise UsageError(what, where="alpha", fix="Take a larger alpha, fewer clients, or more data")
