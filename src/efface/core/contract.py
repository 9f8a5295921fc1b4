"""Prove that a method keeps what is promised of every method.

Authors of methods, in this package and in others, call ``efface.check_method("name")`` in their tests; test runners
that show each promise by itself take :func:`checks`. Networks are built with the hyper-parameters ``small`` of their
class and with weights moved away from their initial values, so that layers that begin at zero hide nothing.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.core.card import Card, Tiling
from efface.core.catalogue import Entry, Param, entry
from efface.core.claim import Claim
from efface.core.method import Network, Step
from efface.core.trained import load, shipped
from efface.errors import EffaceError, UsageError
from efface.io.weights import save_weights
from efface.seeds import torch_generator

if TYPE_CHECKING:
    from torch import Tensor, nn

SEED = 0
STEPS = 3
INPUTS = {"picture": 3, "mask": 1}
"""Channels of what ``run`` may be given."""
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1, "float16": 0.05}
"""How far a picture in [0, 1] may be, in the mean, from the one computed whole and in float32."""


class ContractError(EffaceError):
    """A method breaks a promise; the message names the method, the check and what was found."""


@dataclass(frozen=True)
class Check:
    """One promise, to be tried with :meth:`run`."""

    method: str
    function: Callable[[Entry], None]

    @property
    def name(self) -> str:
        """The promise in words."""
        return self.function.__name__.replace("_", " ").strip()

    def run(self) -> None:
        """Raise :class:`ContractError` unless the method keeps the promise."""
        try:
            self.function(entry(self.method))
        except ContractError as error:
            raise ContractError(error.what, where=f"{self.method}, {self.name}", fix=error.fix) from error


def check_method(method: str | type) -> None:
    """Try every promise on ``method``, a name of the catalogue or a class in it.

    Raises :class:`ContractError` at the first that is broken, and :class:`efface.errors.UnknownNameError` for a method
    that is not in the catalogue: other packages enter theirs by the entry-point group ``efface.methods``.
    """
    for check in checks(method):
        check.run()


def checks(method: str | type) -> list[Check]:
    """Return the promises that ``method`` has to keep, in the order in which they are best read."""
    found = entry(method if isinstance(method, str) else method.__module__.rpartition(".")[2])
    functions = [*OF_ALL, *(OF_NETWORKS if found.kind == "Network" else ())]
    return [Check(found.name, function) for function in functions]


# What every method promises


def _docstring_has_its_form(found: Entry) -> None:
    first, _, rest = found.doc.partition("\n")
    _require(first.endswith(".") and len(first) <= 120, f"the first line is no short sentence: {first!r}")
    _require(not rest or rest.startswith("\n"), "the first line is not set off by an empty line")
    _require("\nLeft out:" in rest, "no line begins with `Left out:`", "Say there what of the paper is not here")


def _card_is_true(found: Entry) -> None:
    card = found.card
    _require(found.load().card == card, "the card of the class is not the one its source states")
    _require(Card.from_dict(json.loads(json.dumps(card.as_dict()))) == card, "the card does not survive JSON")
    _require(bool(card.title and card.paper and card.good_at), "title, paper or good_at is empty")
    _require(1980 <= card.year <= 2100, f"{card.year} is no year")
    _require(" from " in card.task, f"the task {card.task!r} is not of the form `what from what`")
    _require(card.tiling in Tiling.__args__, f"tiling {card.tiling!r} is unknown")  # type: ignore[attr-defined]
    _require(card.multiple >= 1 and card.radius >= 0 and card.smallest >= 1, "multiple, radius or smallest is too low")


def _hyper_parameters_are_described(found: Entry) -> None:
    cls = found.load()
    fields = [
        Param(f.name, f.default, f.metadata.get("help", ""), *(f.metadata.get(k) for k in ("low", "high", "choices")))
        for f in dataclasses.fields(cls)
    ]
    _require(tuple(fields) == found.params, "the class has other hyper-parameters than its source declares by `param`")
    for param in fields:
        _require(bool(param.help.strip()), f"{param.name} has no help")
    method = cls()
    _require(cls.from_params(json.loads(json.dumps(method.params()))) == method, "the defaults do not survive JSON")  # type: ignore[attr-defined]


def _bad_hyper_parameters_are_refused(found: Entry) -> None:
    bad: list[dict[str, Any]] = [{"no_such_parameter": 1}]
    for p in found.params:
        wrong: list[Any] = [p.low - 1] if p.low is not None else []
        wrong += [p.high + 1] if p.high is not None else []
        wrong += ["no such choice"] if p.choices else []
        bad += [{p.name: (value,) if isinstance(p.default, tuple) else value} for value in wrong]
        bad += [{p.name: object()}] if p.default is not None else []
    for params in bad:
        try:
            found.load().from_params(params)  # type: ignore[attr-defined]
        except UsageError:
            continue
        raise ContractError(f"{params} is taken")


def _claim_is_there(found: Entry) -> None:
    if not found.module.startswith("efface."):
        return  # other packages keep their evidence where they like
    module = f"efface.claims.{found.stem}"
    _require(importlib.util.find_spec(module) is not None, f"there is no {module}")
    claim = importlib.import_module(module)
    _require(isinstance(getattr(claim, "CLAIM", None), Claim), f"{module} has no CLAIM")
    _require(callable(getattr(claim, "check", None)), f"{module} has no check(context)")


# What networks promise


def _builds_without_computing(found: Entry) -> None:
    import torch

    method = _small(found)
    before = torch.get_rng_state()
    with torch.device("meta"):
        ghost = method.build().state_dict()
    _require(torch.equal(before, torch.get_rng_state()), "building on the meta device draws random numbers")
    _require(all(t.is_meta for t in ghost.values()), "tensors are made elsewhere than on the chosen device")
    real = {k: (t.shape, t.dtype) for k, t in method.build().state_dict().items()}
    _require({k: (t.shape, t.dtype) for k, t in ghost.items()} == real, "the network differs on the meta device")


def _runs_on_every_size(found: Entry) -> None:
    import torch

    least = _side(found, found.card.smallest)
    for height, width in ((least, least), (_side(found, least + 5), _side(found, 2 * least + 1))):
        given = _inputs(found, height, width)
        kept = {name: tensor.clone() for name, tensor in given.items()}
        out = _run(found, given)
        size = f"at {height} x {width}"
        _require(out.shape == given["picture"].shape, f"{size} the result has the shape {tuple(out.shape)}")
        _require(out.dtype == torch.float32, f"{size} the result is {out.dtype}")
        _require(bool(torch.isfinite(out).all()), f"{size} the result holds NaN or infinity")
        _require(float(out.min()) >= 0 and float(out.max()) <= 1, f"{size} the result leaves [0, 1]")
        _require(all(torch.equal(kept[k], given[k]) for k in given), f"{size} the input is changed in place")


def _runs_in_its_number_formats(found: Entry) -> None:
    import torch

    given = _inputs(found, *[_side(found, 48)] * 2)
    exact = _run(found, given)
    _require(found.card.dtypes[0] == "float32", "float32 is not the first of its number formats")
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
    _require(wanted == moved, f"no gradient reaches {', '.join(sorted(wanted - moved)[:3])}")
    start = _fresh(found).state_dict()
    still = [n for n, p in net.named_parameters() if p.requires_grad and torch.equal(p, start[n])]
    _require(not still, f"after {STEPS} steps these have not moved: {', '.join(still[:3])}")


def _same_seed_gives_same_bytes(found: Entry) -> None:
    import torch

    one, two = _trained(found)[0].state_dict(), _trained(found)[0].state_dict()
    differs = [name for name in one if not torch.equal(one[name], two[name])]
    _require(not differs, f"two trainings with one seed differ in {', '.join(differs[:3])}")


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
        params = _small(found).params()
        save_weights(folder, _stirred(found).state_dict(), {"method": found.name, "params": params})
        save_file(given, folder / "given.safetensors")
        child = subprocess.run(
            [sys.executable, "-c", script, name, str(torch.get_num_threads())],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            capture_output=True,
            text=True,
        )
        _require(child.returncode == 0, f"the fresh process failed: {child.stderr.strip()[-500:]}")
        out = load_file(folder / "out.safetensors")["out"]
    _require(torch.equal(out, _run(found, given)), "the reloaded network gives other values")


def _shipped_weights_fit(found: Entry) -> None:
    if shipped(found.name) is not None:
        load(found.name, device="cpu")


OF_ALL = (
    _docstring_has_its_form,
    _card_is_true,
    _hyper_parameters_are_described,
    _bad_hyper_parameters_are_refused,
    _claim_is_there,
)
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


def _require(kept: bool, what: str, fix: str | None = None) -> None:
    if not kept:
        raise ContractError(what, fix=fix)


def _close(out: Tensor, expected: Tensor, tolerance: float, where: str) -> None:
    away = float((out - expected).abs().mean())
    _require(away <= tolerance, f"{where} the result is {away:.2g} away in the mean, more than {tolerance:g}")


def _small(found: Entry) -> Network:
    cls = found.load()
    return cls(**cls.small)  # type: ignore[attr-defined]


def _fresh(found: Entry) -> nn.Module:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return _small(found).build()


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
    _require(not unknown, f"inputs {', '.join(unknown)} are unknown", f"Known: {', '.join(INPUTS)}")
    return given


def _run(found: Entry, given: dict[str, Tensor]) -> Tensor:
    import torch

    rest = {name: tensor for name, tensor in given.items() if name != "picture"}
    with torch.inference_mode():
        return _small(found).run(_stirred(found), given["picture"], **rest)


def _trained(found: Entry) -> tuple[nn.Module, set[str]]:
    """Train for a few steps by hand; return the network and the names of the parameters that a gradient reached."""
    import torch

    method, net = _small(found), _fresh(found).train()
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
                _require(not bad, f"at step {index} these losses are not finite: {', '.join(bad)}")
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
