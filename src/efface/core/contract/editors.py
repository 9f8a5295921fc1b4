"""What editors promise.

They edit a tiny convolutional network with batch normalisation, with the hyper-parameters ``small`` of their class;
those that need a task get one that the package makes, of pictures that the network takes. Those that need a text edit a
tiny decoder instead.
"""

from __future__ import annotations

import tempfile
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
from efface.core.method import Editor, Work
from efface.errors import EffaceError
from efface.seeds import torch_generator

if TYPE_CHECKING:
    from torch import Tensor, nn

    from efface.core.plan import Plan
    from efface.parts.data.language import Corpus
    from efface.parts.data.tasks import Task

SIDE, CLASSES, WORDS = 8, 10, 20
PLAIN = ("torch.nn.", "efface.parts.", "transformers.")
"""Where the modules of an edited model come from."""


def _says_what_it_needs(found: Entry) -> None:
    needs = found.load().needs  # type: ignore[attr-defined]
    require(needs in ("nothing", "task", "text"), f"it needs {needs!r}", "Say `nothing`, `task` or `text`")
    require(isinstance(small(found), Editor), "it is no Editor")


def _planning_leaves_the_model_as_it_was(found: Entry) -> None:
    model = tiny(_needs(found))
    before, draws = snapshot(model), chances()
    _plan(found, model)
    same(before, snapshot(model), "planning changes")
    require(draws == chances(), "planning draws from a global random generator", "Take those of `work`")


def _same_seed_gives_same_bytes(found: Entry) -> None:
    import torch

    saved = []
    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as folder:
        for number, plan in enumerate((_planned(found), _plan(found, tiny(_needs(found))))):
            plan.save(path := Path(folder, str(number)))
            saved.append([file.read_bytes() for file in sorted(path.iterdir())])
            torch.manual_seed(number)  # a draw without a name would follow it
    require(saved[0] == saved[1], "two plans with one seed differ")


def _is_undone_bit_by_bit(found: Entry) -> None:
    model, plan = tiny(_needs(found)), _planned(found)
    before, modules = snapshot(model), list(model.modules())
    plan.apply(model)
    plan.undo(model)
    same(before, snapshot(model), "undoing does not put back")
    require(all(a is b for a, b in zip(modules, model.modules(), strict=True)), "undoing puts back other modules")


def _leaves_a_plain_model(found: Entry) -> None:
    model = tiny(_needs(found))
    _planned(found).apply(model)
    strange = {type(m).__module__ for m in model.modules() if not f"{type(m).__module__}.".startswith(PLAIN)}
    require(not strange, f"the result holds modules of {', '.join(sorted(strange))}")
    hooks = [name for name, module in model.named_modules() if module._forward_hooks or module._forward_pre_hooks]
    require(not hooks, f"the result has hooks on {', '.join(hooks[:3])}")


def _replays_in_a_fresh_process(found: Entry) -> None:
    from safetensors.torch import load_file, save_file

    script = (
        "import sys, torch; from pathlib import Path; from safetensors.torch import load_file, save_file\n"
        "from efface.core.contract.editors import tiny; from efface.core.plan import Plan\n"
        "folder = Path(sys.argv[1]); torch.set_num_threads(int(sys.argv[2]))\n"
        f"model = Plan.load(folder / 'plan').apply(tiny({_needs(found)!r})).eval()\n"
        "with torch.no_grad(): out = model(load_file(folder / 'given.safetensors')['given'])\n"
        "out = getattr(out, 'logits', out)\n"
        "save_file({'out': out.contiguous()}, folder / 'out.safetensors')\n"
    )
    model, plan = tiny(_needs(found)), _planned(found)
    plan.apply(model)
    with tempfile.TemporaryDirectory() as name:
        plan.save(Path(name, "plan"))
        save_file({"given": _given(_needs(found))}, Path(name, "given.safetensors"))
        in_a_fresh_process(script, Path(name))
        out = load_file(Path(name, "out.safetensors"))["out"]
    require(out.equal(_out(model, _needs(found))), "the plan replayed in a fresh process gives other values")


def _meets_the_sparsity(found: Entry) -> None:
    from efface.parts.sparsity.prunable import prunable

    method = small(found)
    if not isinstance(asked := getattr(method, "sparsity", None), float):
        return
    masks, weights = _planned(found).masks(), prunable(tiny(_needs(found)))
    total = sum(weight.numel() for weight in weights.values())
    removed = sum(int((~mask).sum()) for mask in masks.values())
    require(abs(removed - asked * total) <= 1, f"{removed} of {total} weights go where the sparsity is {asked}")


def _refuses_broken_weights(found: Entry) -> None:
    import torch

    model = tiny(_needs(found))
    with torch.no_grad():
        next(p for p in reversed(list(model.parameters())) if p.ndim > 1)[0, 0] = float("nan")
    before = snapshot(model)
    try:
        _plan(found, model)
    except EffaceError:
        same(before, snapshot(model), "refusing changes")
    else:
        raise ContractError("weights that hold NaN are taken")


OF_EDITORS = (
    _says_what_it_needs,
    _planning_leaves_the_model_as_it_was,
    _same_seed_gives_same_bytes,
    _is_undone_bit_by_bit,
    _leaves_a_plain_model,
    _replays_in_a_fresh_process,
    _meets_the_sparsity,
    _refuses_broken_weights,
)


def tiny(needs: str = "nothing") -> nn.Module:
    """Return a small convolutional network for pictures (b, 3, 8, 8), every time the same, partly frozen.

    What needs a ``text`` gets a small decoder of transformers.
    """
    import torch
    from torch import nn

    if needs == "text":
        return _tiny_decoder()
    with torch.device("meta"):
        net = nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, CLASSES)),
        )
    net.to_empty(device="cpu")
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if tensor.is_floating_point():
                tensor.uniform_(-0.5, 0.5, generator=torch_generator(SEED, "tiny", name))
                tensor.add_(1.0 if tensor.ndim == 1 else 0.0)  # scales and variances are positive
            else:
                tensor.fill_(7)
    net[4].eval()
    net[8].bias.requires_grad_(False)
    return net


def _tiny_decoder() -> nn.Module:
    import torch

    from efface.extras import need

    library = need("transformers", extra="diffusion", job="the contract of methods that need text")
    config = library.LlamaConfig(
        vocab_size=WORDS, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32, bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        net: nn.Module = library.LlamaForCausalLM(config)
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.uniform_(-0.5, 0.5, generator=torch_generator(SEED, "tiny", name)).add_(1.0 if p.ndim == 1 else 0.0)
    net.get_parameter("lm_head.weight").requires_grad_(False)
    return net


def _needs(found: Entry) -> str:
    needs: str = found.load().needs  # type: ignore[attr-defined]
    return needs


def _planned(found: Entry) -> Plan:
    cls: Any = found.load()
    return _once(cls)


@cache
def _once(cls: type[Editor]) -> Plan:
    return _edited(cls(**cls.small), tiny(cls.needs))


def _plan(found: Entry, model: nn.Module) -> Plan:
    return _edited(small(found), model)


def _edited(method: Editor, model: nn.Module) -> Plan:
    data = {"task": _task, "text": _corpus}.get(method.needs, lambda: None)()
    return method.plan(model, data, Work(seed=SEED, example=(_given(method.needs),)))


def _corpus() -> Corpus:
    import torch

    from efface.parts.data.language import Corpus

    return Corpus.of(torch.randint(WORDS, (400,), generator=torch_generator(SEED, "corpus")), length=16)


def _task() -> Task:
    from efface.parts.data.tasks import task

    return task("shapes", side=SIDE, limit=100)


def _given(needs: str) -> Tensor:
    import torch

    if needs == "text":
        return torch.randint(WORDS, (2, 12), generator=torch_generator(SEED, "given"))
    return torch.randn(4, 3, SIDE, SIDE, generator=torch_generator(SEED, "given"))


def _out(model: nn.Module, needs: str) -> Tensor:
    import torch

    with torch.no_grad():
        out = model.eval()(_given(needs))
    return getattr(out, "logits", out)
