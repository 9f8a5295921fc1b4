"""Load a trained network: shipped with the package, or from a folder of weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.core.catalogue import entries, entry
from efface.errors import UsageError, WeightsError
from efface.io.weights import load_card, load_weights

if TYPE_CHECKING:
    from torch import Tensor, nn

    from efface.core.method import Network

SHIPPED = Path(__file__).resolve().parent.parent / "weights"


@dataclass(frozen=True)
class Trained:
    """A method, its network with weights, ready to run, and the card of the weights."""

    method: Network
    net: nn.Module
    card: dict[str, Any]
    device: str

    def run(self, x: Tensor, **given: Any) -> Tensor:
        """Apply the network to ``x`` (b, 3, h, w) on its device, in bfloat16 where method and processor have it."""
        import torch

        kind = self.device.partition(":")[0]
        half = "bfloat16" in self.method.card.dtypes and _computes_bfloat16(kind)
        given = {k: v.to(self.device) if isinstance(v, torch.Tensor) else v for k, v in given.items()}
        with torch.inference_mode(), torch.autocast(kind, torch.bfloat16, enabled=half):
            return self.method.run(self.net, x.to(self.device), **given).float().cpu()


def shipped(name: str) -> Path | None:
    """Return the folder of the weights that come with the package, or None where there are none."""
    folder = SHIPPED / entry(name).name
    return folder if (folder / "card.json").is_file() else None


def describe(name: str | None = None, weights: str | Path | None = None) -> tuple[Path, dict[str, Any]]:
    """Return the folder and the card of ``weights`` (default: the shipped ones of ``name``), reading nothing else.

    Raises :class:`UsageError` where none are shipped, :class:`WeightsError` where the folder is of another method.
    """
    folder = Path(weights) if weights is not None else shipped(name) if name is not None else None
    if folder is None:
        raise UsageError(
            f"no weights for {name} come with the package",
            fix=f"Give --weights FOLDER, or train them: efface fit recipes/{name}.toml",
        )
    card = load_card(folder)
    if name is not None and card.get("method") != entry(name).name:
        raise WeightsError(f"these weights are of {card.get('method')!r}, not of {name!r}", where=folder)
    made_by = entries().get(str(card.get("method")))
    if made_by is None or made_by.kind != "Network":
        raise WeightsError(f"these weights are of no network that is known: {card.get('method')!r}", where=folder)
    return folder, card


def load(name: str | None = None, *, weights: str | Path | None = None, device: str = "auto") -> Trained:
    """Build the network that ``weights`` (default: the shipped ones of ``name``) belong to, in evaluation mode.

    Raises what :func:`describe` raises, and :class:`WeightsError` where the weights are of another network, or damaged.
    """
    import torch

    folder, card = describe(name, weights)
    method = entry(str(card.get("method"))).load().from_params(card.get("params", {}))
    with torch.random.fork_rng(devices=[]):  # not on `meta`, where drawing first weights would import half of torch
        net = method.build()
    tensors, _ = load_weights(folder, {key: tuple(value.shape) for key, value in net.state_dict().items()})
    device = pick_device(device)
    net.load_state_dict(tensors)
    return Trained(method, net.eval().requires_grad_(False).to(device), card, device)


def pick_device(device: str) -> str:
    """Resolve ``auto`` to the accelerator at hand, else the CPU; an absent device is a :class:`UsageError`."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind = device.partition(":")[0]
    if kind not in ("cpu", "cuda", "mps") or (kind == "cuda" and not torch.cuda.is_available()):
        raise UsageError(f"device {device!r} is not available", fix="Use --device cpu, or auto")
    return device


def _computes_bfloat16(kind: str) -> bool:
    """Return whether the processor computes in bfloat16 by itself; emulated, it is slower than float32."""
    import torch

    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return kind == "cpu" and bool(torch.cpu._is_avx512_bf16_supported())
