"""Turn a paper's official checkpoint into a weights folder of the house."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.core.catalogue import entry
from efface.errors import UsageError, WeightsError
from efface.io.atomic import check_target
from efface.io.weights import CARD, WEIGHTS, check_shapes, convert_checkpoint, save_weights

if TYPE_CHECKING:
    from torch import Tensor

    from efface.core.method import Network


def convert(
    checkpoint: str | Path,
    *,
    method: str,
    out: str | Path,
    params: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the tensors of ``checkpoint``, under the names of ``method`` with ``params``, into the folder ``out``.

    Raises
    ------
    UsageError
        If ``method`` is unknown or not a network, or ``params`` break its bounds.
    WeightsError
        If the file holds more than tensors, or tensors of another network; the first differences are named.
    OutputError
        If ``out`` cannot be written, or holds weights and ``overwrite`` is false.
    """
    found, folder = entry(method), Path(out)
    if found.kind != "Network":
        raise UsageError(f"{found.name} changes models and has no weights of its own", fix="Name a network method")
    network: Network = found.load().from_params(dict(params or {}))  # type: ignore[attr-defined]
    for file in (WEIGHTS, CARD):
        check_target(folder / file, overwrite=overwrite)
    tensors = _renamed(network, convert_checkpoint(checkpoint), checkpoint)
    check_shapes(tensors, shapes(network), where=checkpoint)
    card = {
        "method": found.name,
        "params": network.params(),
        "efface": version("efface"),
        "origin": f"converted from {Path(checkpoint).name}",
        "licence": "that of the checkpoint",
    }
    save_weights(folder, tensors, card, overwrite=overwrite)
    return folder


def shapes(network: Network) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor of ``network``, without computing its initial values."""
    import torch

    with torch.device("meta"):
        net = network.build()
    return {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}


def _renamed(network: Network, tensors: Mapping[str, Tensor], where: str | Path) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = network.rename(key)
        if name in renamed:
            fix = f"Check that this is a checkpoint of {network.name}"
            raise WeightsError(f"two tensors become {name!r}, one of them {key!r}", where=where, fix=fix)
        if name is not None:
            renamed[name] = tensor
    return renamed
