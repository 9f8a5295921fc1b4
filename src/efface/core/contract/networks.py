"""What networks promise.

They are built with the hyper-parameters ``small`` of their class and with weights moved away from their initial values,
so that layers that begin at zero hide nothing.
"""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from efface.core.catalogue import Entry
from efface.core.contract.promise import SEED, in_a_fresh_process, require, small
from efface.core.method import Step
from efface.core.trained import load, shipped
from efface.io.weights import save_weights
from efface.seeds import torch_generator

if TYPE_CHECKING:
    from torch import Tensor, nn

STEPS = 3
INPUTS = {"picture": 3, "mask": 1}
"""Channels of what ``run`` may be given."""
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1, "float16": 0.05}
"""How far a picture in [0, 1] may be, in the mean, from the one computed whole and in float32."""


def _builds_without_computing(found: Entry) -> None:
    import torch

    method = small(found)
    before = torch.get_rng_state()
    with torch.device("meta"):
        ghost = method.build().state_dict()
    require(torch.equal(before, torch.get_rng_state()), "building on the meta device draws random numbers")
    require(all(t.is_meta for t in ghost.values()), "tensors are made elsewhere than on the chosen device")
    real = {k: (t.shape, t.dtype) for k, t in method.build().state_dict().items()}
    require({k: (t.shape, t.dtype) for k, t in ghost.items()} == real, "the network differs on the meta device")


def _runs_on_every_size(found: Entry) -> None:
    import torch

    least = _side(found, found.card.smallest)
    for height, width in ((least, least), (_side(found, least + 5), _side(found, 2 * least + 1))):
        given = _inputs(found, height, width)
        kept = {name: tensor.clone() for name, tensor in given.items()}
        out = _run(found, given)
        size = f"at {height} x {width}"
        require(out.shape == given["picture"].shape, f"{size} the result has the shape {tuple(out.shape)}")
        require(out.dtype == torch.float32, f"{size} the result is {out.dtype}")
        require(bool(torch.isfinite(out).all()), f"{size} the result holds NaN or infinity")
        require(float(out.min()) >= 0 and float(out.max()) <= 1, f"{size} the result leaves [0, 1]")
        require(all(torch.equal(kept[k], given[k]) for k in given), f"{size} the input is changed in place")


def _runs_in_its_number_formats(found: Entry) -> None:
    import torch

    given = _inputs(found, *[_side(found, 48)] * 2)
    exact = _run(found, given)
    require(found.card.dtypes[0] == "float32", "float32 is not the first of its number formats")
    for name in found.card.dtypes[1:]:
        with torch.autocast("cpu", getattr(torch, name)):
            out = _run(found, given).float()
        _close(out, exact, TOLERANCE[name], f"in {name}")


def _pictures_of_a_batch_are_independent(found: Entry) -> None:
    given = _inputs(found, *[_side(found, 48)] * 2)
    alone = _run(found, {name: tensor[:1] for name, tensor in given.items()})
    _close(_run(found, given)[:1], alone, TOLERANCE["float32"], "beside another picture")


def _tiles_equal_the_whole(found: Entry) -> None:
    if found.card.tiling != "local":
        return
    unit = found.card.multiple
    margin = -(-found.card.radius // unit) * unit
    side = _side(found, 48)
    given = _inputs(found, side, 2 * margin + 3 * side)
    for turned in (False, True):  # along the width, then along the height
        whole = {k: v.mT.contiguous() if turned else v for k, v in given.items()}
        part = slice(side, 2 * margin + 2 * side)
        tile = {k: v[:, :, part] if turned else v[..., part] for k, v in whole.items()}
        inner = slice(margin + side, margin + 2 * side)
        local = slice(margin, margin + side)
        expected, out = _run(found, whole), _run(found, tile)
        expected, out = (expected[:, :, inner], out[:, :, local]) if turned else (expected[..., inner], out[..., local])
        _close(out, expected, TOLERANCE["float32"], f"{found.card.radius} px from the edge of a tile")


def _trains(found: Entry) -> None:
    import torch

    net, moved = _trained(found)
    wanted = {name for name, p in net.named_parameters() if p.requires_grad}
    require(wanted == moved, f"no gradient reaches {', '.join(sorted(wanted - moved)[:3])}")
    start = _fresh(found).state_dict()
    still = [n for n, p in net.named_parameters() if p.requires_grad and torch.equal(p, start[n])]
    require(not still, f"after {STEPS} steps these have not moved: {', '.join(still[:3])}")


def _same_seed_gives_same_bytes(found: Entry) -> None:
    import torch

    one, two = _trained(found)[0].state_dict(), _trained(found)[0].state_dict()
    differs = [name for name in one if not torch.equal(one[name], two[name])]
    require(not differs, f"two trainings with one seed differ in {', '.join(differs[:3])}")


def _reloads_in_a_fresh_process(found: Entry) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    given = _inputs(found, *[_side(found, 48)] * 2)
    script = (
        "import sys, torch; from pathlib import Path; from safetensors.torch import load_file, save_file\n"
        "from efface.core.trained import load\n"
        "folder = Path(sys.argv[1]); torch.set_num_threads(int(sys.argv[2]))\n"
        "given = load_file(folder / 'given.safetensors'); trained = load(weights=folder, device='cpu')\n"
        "out = trained.method.run(trained.net, given.pop('picture'), **given)\n"
        "save_file({'out': out.contiguous()}, folder / 'out.safetensors')\n"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        params = small(found).params()
        save_weights(folder, _stirred(found).state_dict(), {"method": found.name, "params": params})
        save_file(given, folder / "given.safetensors")
        in_a_fresh_process(script, folder)
        out = load_file(folder / "out.safetensors")["out"]
    require(torch.equal(out, _run(found, given)), "the reloaded network gives other values")


def _shipped_weights_fit(found: Entry) -> None:
    if shipped(found.name) is not None:
        load(found.name, device="cpu")


OF_NETWORKS = (
    _builds_without_computing,
    _runs_on_every_size,
    _runs_in_its_number_formats,
    _pictures_of_a_batch_are_independent,
    _tiles_equal_the_whole,
    _trains,
    _same_seed_gives_same_bytes,
    _reloads_in_a_fresh_process,
    _shipped_weights_fit,
)


def _close(out: Tensor, expected: Tensor, tolerance: float, where: str) -> None:
    away = float((out - expected).abs().mean())
    require(away <= tolerance, f"{where} the result is {away:.2g} away in the mean, more than {tolerance:g}")


def _fresh(found: Entry) -> nn.Module:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return small(found).build()


def _stirred(found: Entry) -> nn.Module:
    import torch

    net = _fresh(found)
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch_generator(SEED, "stir", name)))
    return net.eval().requires_grad_(False)


def _side(found: Entry, pixels: int) -> int:
    """Return the least side from ``pixels`` on that the network takes."""
    unit = found.card.multiple
    return -(-max(pixels, found.card.smallest) // unit) * unit


def _inputs(found: Entry, height: int, width: int) -> dict[str, Tensor]:
    """Return a bright and a dark picture, each with a mask that holds a box."""
    import torch

    noise = torch.rand(2, 3, height, width, generator=torch_generator(SEED, "picture"))
    given = {"picture": noise * torch.tensor([1.0, 0.4]).reshape(2, 1, 1, 1)}
    if "mask" in found.card.inputs:
        given["mask"] = torch.zeros(2, 1, height, width)
        given["mask"][..., height // 4 : -(-height // 2), width // 4 : -(-width // 2)] = 1
    unknown = sorted(set(found.card.inputs) - INPUTS.keys())
    require(not unknown, f"inputs {', '.join(unknown)} are unknown", f"Known: {', '.join(INPUTS)}")
    return given


def _run(found: Entry, given: dict[str, Tensor]) -> Tensor:
    import torch

    rest = {name: tensor for name, tensor in given.items() if name != "picture"}
    with torch.inference_mode():
        return small(found).run(_stirred(found), given["picture"], **rest)


def _trained(found: Entry) -> tuple[nn.Module, set[str]]:
    """Train for a few steps by hand; return the network and the names of the parameters that a gradient reached."""
    import torch

    method, net = small(found), _fresh(found).train()
    batches = _batches(method.trains_on, _side(found, 48))
    phases = method.phases()
    optimisers = {name: torch.optim.AdamW(phase.parameters(net), lr=1e-2) for name, phase in phases.items()}
    reached: set[str] = set()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        for index in range(STEPS):
            step = Step(index, STEPS, SEED)
            batch = method.prepare(net, dict(batches[index]), step)
            for name, phase in phases.items():
                net.zero_grad()
                losses = phase.loss(net, batch, step)
                bad = [k for k, v in losses.items() if not bool(torch.isfinite(torch.as_tensor(v)).all())]
                require(not bad, f"at step {index} these losses are not finite: {', '.join(bad)}")
                losses["total"].backward()
                own = {id(p) for p in phase.parameters(net)}
                reached |= {n for n, p in net.named_parameters() if id(p) in own and p.grad is not None}
                optimisers[name].step()
    return net, reached


@cache
def _batches(name: str, side: int) -> list[dict[str, Tensor]]:
    from efface.parts.data import source

    maker = source(name, size=side, fonts=[])
    return [maker.batch(SEED, index, 2) for index in range(STEPS)]
