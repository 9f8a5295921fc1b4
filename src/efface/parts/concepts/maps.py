"""Edit every cross-attention layer of one text width at once: W becomes W M, with M (width, width).

A closed-form edit asks of each layer that W' c = W g for rows c to be replaced by g, and W' k = W k for rows k to be
kept. All layers have the same W M as solution, for M depends on the rows alone (UCE, Gandikota et al.,
arXiv:2308.14761, eq. 7, with every W taken out to the left). So an edit is one linear map of text, c -> M c; what it
costs does not depend on the number of layers or prompts. Rows are (n, width), products are summed in float64.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from efface.errors import UsageError, WeightsError

RIDGE = 1e-2
"""Pull of M towards the identity, relative to the mean square of the rows; l = 0.5 of UCE is about this much."""
LARGE = 3.0
"""Spectral norm from which on a map edits more than it should."""
CHUNK = 4096  # rows that are multiplied at once
BLOCKS = 4  # of a symmetric product, of which only those on and below the diagonal are computed


class CrossAttnEdit:
    """Rows to replace and rows to keep, summed up in two matrices."""

    def __init__(self, width: int) -> None:
        """Begin with no rows."""
        self.gram = torch.zeros(width, width, dtype=torch.float64)
        """Sum of c c^T over all rows."""
        self.change = torch.zeros(width, width, dtype=torch.float64)
        """Sum of (g - c) c^T; rows to be kept add nothing."""

    def replace(self, old: Tensor, new: Tensor, weight: float = 1.0) -> CrossAttnEdit:
        """Ask that the rows ``old`` have the values of ``new``; ``weight`` is that of all of them together."""
        if old.shape != new.shape:
            what = f"{len(old)} rows cannot have the values of {len(new)}"
            raise UsageError(what, where="replace", fix="Align them, as slots.aligned does")
        self.keep(old, weight)
        if len(old):
            old, new = old.cpu().double(), new.cpu().double()
            self.change.addmm_((new - old).T, old, alpha=weight / len(old))
        return self

    def keep(self, rows: Tensor, weight: float = 1.0) -> CrossAttnEdit:
        """Ask that ``rows`` keep their values; ``weight`` is that of all of them together."""
        rows = rows.flatten(0, -2)
        if len(rows):
            self.gram.add_(gram([rows]), alpha=weight / len(rows))
        return self

    def solve(self, ridge: float = RIDGE) -> Tensor:
        """Return M (width, width), float64: the least squares solution that is nearest to the identity.

        Without rows to replace it is the identity, exactly. Raises :class:`UsageError` if ``ridge`` is not above 0.
        """
        if not ridge > 0:
            raise UsageError(f"{ridge} is not above 0", where="ridge", fix="Without it M is open where no row is")
        identity = torch.eye(len(self.gram), dtype=torch.float64)
        scale = self.gram.trace() / len(self.gram)
        if scale == 0:
            return identity
        factor = torch.linalg.cholesky(self.gram + ridge * scale * identity)
        return identity + torch.cholesky_solve(self.change.T, factor).T


def uce(
    old: Tensor, new: Tensor, keep: Tensor, *, erase: float = 1.0, kept: float = 1.0, ridge: float = RIDGE
) -> Tensor:
    """Return M of UCE: rows ``old`` become ``new``, rows ``keep`` stay."""
    return CrossAttnEdit(old.shape[-1]).replace(old, new, erase).keep(keep, kept).solve(ridge)


def gram(parts: Iterable[Tensor]) -> Tensor:
    """Return the sum of A^T A over the matrices ``parts`` (any, width), as (width, width) in float64 on the CPU."""
    total, wide = None, torch.empty(0, 0, dtype=torch.float64)
    for part in parts:
        if total is None:
            total, wide = (torch.zeros(n, part.shape[1], dtype=torch.float64) for n in (part.shape[1], CHUNK))
        grid = [band.tensor_split(BLOCKS, dim=1) for band in total.tensor_split(BLOCKS)]
        for rows in part.detach().split(CHUNK):
            columns = wide[: len(rows)].copy_(rows).tensor_split(BLOCKS, dim=1)  # in one place, for new memory is slow
            for i, left in enumerate(columns):
                for j in range(i + 1):
                    grid[i][j].addmm_(left.T, columns[j])
    if total is None:
        raise UsageError("no matrices were given", where="gram")
    if not total.isfinite().all():
        raise WeightsError("hold NaN or infinity", where="gram", fix="Load the pipeline again, in float32")
    return total.tril() + total.tril(-1).T


def derive(
    gram0: Tensor, edit: Tensor, rows: Tensor, strength: float, towards: Tensor | None = None, *, rescale: bool = False
) -> Tensor:
    """Return the rows (n, width) that the edited layers turn into what the untouched ones made of ``rows``.

    With W_j the untouched layers and M the ``edit``, each c' minimises sum_j |W_j M c' - W_j c|^2 + lam |c' - p|^2
    (RECE, Gong et al., arXiv:2407.12383, eq. 5). All it takes of the layers is ``gram0``, the sum of W_j^T W_j. ``p``
    is the row of ``towards``, 0 if there is none; lam is ``strength`` times the mean of gram0's diagonal. A large lam
    makes rows short; ``rescale`` gives them the length of ``rows`` again.
    """
    if not strength > 0:
        raise UsageError(f"{strength} is not above 0", where="lam", fix="Give a share of the layers' mean square")
    rows = rows.cpu().double()
    lam = strength * gram0.trace() / len(gram0)
    seen = edit.T @ gram0
    wanted = seen @ rows.T
    if towards is not None:
        wanted += lam * towards.cpu().double().T
    factor = torch.linalg.cholesky(seen @ edit + lam * torch.eye(len(gram0), dtype=torch.float64))
    found = torch.cholesky_solve(wanted, factor).T
    return found * (rows.norm(dim=1) / found.norm(dim=1).clamp(min=1e-12))[:, None] if rescale else found


def residual(gram0: Tensor, edit: Tensor, rows: Tensor, derived: Tensor) -> float:
    """Return how far ``derived`` is from bringing ``rows`` back, as a share of what the untouched layers make of them.

    0 says that the edited layers can still be made to do what they did, 1 that nothing of it is left.
    """
    rows = rows.cpu().double()
    missed = derived @ edit.T - rows
    return float(_energy(gram0, missed) / _energy(gram0, rows)) ** 0.5


def mapped(rows: Tensor, edit: Tensor) -> Tensor:
    """Return the rows (..., width) that are to untouched layers what ``rows`` are to edited ones: W (M c) = (W M) c."""
    return (rows.double() @ edit.T.to(rows.device)).to(rows)


def drift(gram0: Tensor, edit: Tensor, rows: Tensor) -> float:
    """Return how far the edited layers move what they make of ``rows``, as a share of it."""
    return residual(gram0, edit, rows, rows.cpu().double())


def weight_distance(gram0: Tensor, edit: Tensor) -> float:
    """Return the root of the summed squares of W M - W over the layers of ``gram0``."""
    return float(_energy(gram0, (edit - torch.eye(len(edit), dtype=edit.dtype)).T)) ** 0.5


def spectral_norm(edit: Tensor) -> float:
    """Return how much ``edit`` lengthens a row at most; above :data:`LARGE` it edits more than it should."""
    return float(torch.linalg.matrix_norm(edit, ord=2))


def factor(edit: Tensor, tolerance: float = 1e-7) -> tuple[Tensor, Tensor]:
    """Return float32 ``up`` (width, r) and ``down`` (r, width) with M = I + up @ down, r the rank of M - I.

    Singular values below ``tolerance`` of the largest are left out.
    """
    u, s, vt = torch.linalg.svd(edit - torch.eye(len(edit), dtype=edit.dtype))
    rank = int((s > tolerance * s[0]).sum())
    root = s[:rank].sqrt()
    return (u[:, :rank] * root).float(), (root[:, None] * vt[:rank]).float()


def _energy(gram0: Tensor, rows: Tensor) -> Tensor:
    """Return the summed squares of what the layers of ``gram0`` make of ``rows``."""
    return (rows @ gram0 * rows).sum().clamp(min=0)
