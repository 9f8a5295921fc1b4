"""What erasers promise.

They take a concept out of a tiny pipeline of diffusers with random weights, which has the classes and module names of
Stable Diffusion 1.x, with the hyper-parameters ``small`` of their class.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.core.catalogue import Entry
from efface.core.contract.promise import (
    SEED,
    ContractError,
    chances,
    in_a_fresh_process,
    require,
    same,
    small,
    snapshot,
)
from efface.core.eraser import Concepts, Eraser, editable
from efface.core.method import Work
from efface.errors import EffaceError, UsageError
from efface.seeds import seeded, torch_generator

if TYPE_CHECKING:
    from torch import Tensor

    from efface.core.plan import Plan

PLAIN = ("torch.nn.", "diffusers.", "transformers.")
"""Where the modules of an edited pipeline come from."""
ERASED = Concepts.of("circle", "square", ("a red cross", "a blue star"))


def _says_whether_it_trains(found: Entry) -> None:
    method = small(found)
    require(isinstance(method, Eraser), "it is no Eraser")
    require(isinstance(method.trains, bool), f"it trains: {method.trains!r}", "Say true or false")


def _planning_leaves_the_pipeline_as_it_was(found: Entry) -> None:
    pipe = tiny()
    before, draws = snapshot(editable(pipe)), chances()
    modules = [(type(module), id(module)) for module in editable(pipe).modules()]
    _plan(found, pipe)
    same(before, snapshot(editable(pipe)), "planning changes")
    require(draws == chances(), "planning draws from a global random generator", "Take those of `work`")
    after = [(type(module), id(module)) for module in editable(pipe).modules()]
    require(modules == after, "planning leaves other modules in the pipeline")


def _plan_says_what_it_erases(found: Entry) -> None:
    about = _planned(found).made_by
    require(about.get("method") == found.name, "made_by does not name the method", "Make the plan by `planned`")
    require(about.get("erases") == ERASED.facts()["erases"], "made_by does not say what is erased")


def _edits_what_it_names_and_nothing_else(found: Entry) -> None:
    pipe, plan = tiny(), _planned(found)
    before = snapshot(editable(pipe))
    touched = {name for op in plan.ops for name in op.touches}
    plan.apply(editable(pipe))
    after = snapshot(editable(pipe))
    changed = {name for name, tensor in before.items() if hasattr(tensor, "equal") and not tensor.equal(after[name])}
    require(bool(changed), "nothing changes")
    require(set(plan.base.tensors) <= touched, "its fingerprint covers what it does not edit", "Use `planned`")
    require(changed <= touched, f"it changes {', '.join(sorted(changed - touched)[:3])}, which it does not name")


def _same_seed_gives_same_bytes(found: Entry) -> None:
    import torch

    saved = []
    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as folder:
        for number, plan in enumerate((_planned(found), _plan(found, tiny()))):
            plan.save(path := Path(folder, str(number)))
            saved.append([file.read_bytes() for file in sorted(path.iterdir())])
            torch.manual_seed(number)  # a draw without a name would follow it
    require(saved[0] == saved[1], "two plans with one seed differ")


def _is_undone_bit_by_bit(found: Entry) -> None:
    box, plan = editable(tiny()), _planned(found)
    before, modules = snapshot(box), list(box.modules())
    plan.apply(box)
    plan.undo(box)
    same(before, snapshot(box), "undoing does not put back")
    require(all(a is b for a, b in zip(modules, box.modules(), strict=True)), "undoing puts back other modules")


def _comes_in_strengths(found: Entry) -> None:
    out = []
    for strength in (0.0, 0.5, 1.0):
        pipe = tiny()
        _planned(found).scaled(strength).apply(editable(pipe))
        out.append(_out(pipe))
    require(out[0].allclose(_out(tiny()), atol=1e-6), "at strength 0 it does something")
    require(not out[1].equal(out[2]), "at half its strength it does the same")


def _leaves_a_plain_pipeline(found: Entry) -> None:
    box = editable(tiny())
    names = list(box.state_dict())
    _planned(found).apply(box)
    strange = {type(m).__module__ for m in box.modules() if not f"{type(m).__module__}.".startswith(PLAIN)}
    require(not strange, f"the result holds modules of {', '.join(sorted(strange))}")
    hooks = [name for name, module in box.named_modules() if module._forward_hooks or module._forward_pre_hooks]
    require(not hooks, f"the result has hooks on {', '.join(hooks[:3])}")
    require(list(box.state_dict()) == names, "the result has other names of weights")


def _replays_in_a_fresh_process(found: Entry) -> None:
    from safetensors.torch import load_file

    script = (
        "import sys, torch; from pathlib import Path; from safetensors.torch import save_file\n"
        "from efface.core.contract.erasers import _out, tiny; from efface.core.eraser import editable\n"
        "from efface.core.plan import Plan\n"
        "folder = Path(sys.argv[1]); torch.set_num_threads(int(sys.argv[2])); pipe = tiny()\n"
        "Plan.load(folder / 'plan').apply(editable(pipe))\n"
        "save_file({'out': _out(pipe)}, folder / 'out.safetensors')\n"
    )
    pipe, plan = tiny(), _planned(found)
    plan.apply(editable(pipe))
    with tempfile.TemporaryDirectory() as name:
        plan.save(Path(name, "plan"))
        in_a_fresh_process(script, Path(name))
        out = load_file(Path(name, "out.safetensors"))["out"]
    require(out.equal(_out(pipe)), "the plan replayed in a fresh process gives other values")


def _refuses_concepts_that_cannot_be(found: Entry) -> None:
    for what, concepts in (
        ("a concept of more tokens than fit", Concepts.of("circle " * 99)),
        ("a concept with the tokens of its replacement", Concepts(("circle",), ("Circle",))),
    ):
        _refused(found, tiny(), concepts, what, UsageError)


def _refuses_a_pipeline_without_cross_attention(found: Entry) -> None:
    import diffusers

    pipe = tiny()
    pipe.unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=8, out_channels=8, layers_per_block=1, block_out_channels=(8, 16),
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, norm_num_groups=8,
    )  # fmt: skip
    _refused(found, pipe, ERASED, "a pipeline without cross-attention", UsageError)


def _refuses_broken_weights(found: Entry) -> None:
    import torch

    pipe = tiny()
    with torch.no_grad():
        for name, weight in pipe.unet.named_parameters():
            if "attn2.to_" in name:
                weight[0] = float("nan")
    _refused(found, pipe, ERASED, "weights that hold NaN", EffaceError)


OF_ERASERS = (
    _says_whether_it_trains,
    _planning_leaves_the_pipeline_as_it_was,
    _plan_says_what_it_erases,
    _edits_what_it_names_and_nothing_else,
    _same_seed_gives_same_bytes,
    _is_undone_bit_by_bit,
    _comes_in_strengths,
    _leaves_a_plain_pipeline,
    _replays_in_a_fresh_process,
    _refuses_concepts_that_cannot_be,
    _refuses_a_pipeline_without_cross_attention,
    _refuses_broken_weights,
)


def tiny() -> Any:
    """Return a pipeline of the Stable Diffusion 1 kind for pictures (b, 3, 32, 32), every time the same, and new."""
    pipe = copy.copy(_original())
    pipe.register_modules(**{name: copy.deepcopy(part) for name, part in _original().components.items()})
    return pipe


@cache
def _original() -> Any:
    from torch import nn

    from efface.parts.worlds.pipeline import autoencoder, pipeline, text_encoder, unet

    with seeded(SEED, "tiny"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of diffusers, about an offset that trailing steps do not use
        pipe = pipeline(unet((8, 16), 32), text_encoder(32, 1), autoencoder((8, 8, 8)))
        for weight in pipe.unet.parameters():  # no branch is silent, as it would be in an untrained one
            if weight.ndim > 1:
                nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
    for part in ("unet", "text_encoder", "vae"):
        getattr(pipe, part).eval()
    return pipe


def _planned(found: Entry) -> Plan:
    cls: Any = found.load()
    return _once(cls)


@cache
def _once(cls: type[Eraser]) -> Plan:
    return cls(**cls.small).plan(tiny(), ERASED, Work(seed=SEED))


def _plan(found: Entry, pipe: Any) -> Plan:
    method: Eraser = small(found)
    return method.plan(pipe, ERASED, Work(seed=SEED))


def _refused(found: Entry, pipe: Any, concepts: Concepts, what: str, error: type[Exception]) -> None:
    before, method = snapshot(editable(pipe)), small(found)
    try:
        method.plan(pipe, concepts, Work(seed=SEED))
    except error:
        same(before, snapshot(editable(pipe)), "refusing changes")
    else:
        raise ContractError(f"{what} is taken", fix="Call check_concepts first")


def _out(pipe: Any) -> Tensor:
    """Return what the denoiser makes of a fixed latent under a prompt that names the concept."""
    import torch

    from efface.parts.concepts.slots import encode

    latent = torch.randn(2, 8, 8, 8, generator=torch_generator(SEED, "latent"))
    with torch.no_grad():
        text = encode(pipe, ["a red circle", "a blue star"]).embeds
        out: Tensor = pipe.unet(latent, 500, text).sample
    return out.contiguous()
