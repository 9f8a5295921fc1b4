"""Time the analysis of channels beside torch-pruning's, and a network of half the FLOPs beside the whole one.

``python benchmarks/graph.py [--threads 2] [--layers 24] [--seconds 10] [-o FILE]``. torch-pruning (1.6) is asked for
its dependency graph and all groups, in turns with ours; where it fails, its error is the figure. What it would remove
with half of the values of an attention is also held against the same weights at zero, by the largest difference as a
share of the largest output: removal and zeroing are the same where the groups are right, and where they are not the
figures say that it fails. Networks take turns while they are timed, with one thread and with ``--threads``.
"""

from __future__ import annotations

import argparse
import bisect
import copy
import importlib
import platform
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from efface.core.plan import Plan
from efface.core.removal import plan_removal
from efface.io.atomic import write_json
from efface.parts.counting import count_flops
from efface.parts.graph import ChannelGraph, Group, channel_graph, keep_best, removals, remove
from efface.parts.graph.remove import tensor_of
from efface.parts.graph.verify import TOLERANCE
from efface.parts.nn.resnets import resnet50
from efface.parts.timing import interleave


def llama(layers: int) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes: dict[str, Any] = {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
    }
    return LlamaForCausalLM(LlamaConfig(vocab_size=512, num_hidden_layers=layers, use_cache=False, **sizes)).eval()


def magnitude(graph: ChannelGraph, group: Group) -> Tensor:
    """Return the root of the sum of squares of each class over all weights of its group."""
    total = torch.zeros(group.size)
    for member in group.members:
        weight = tensor_of(graph.model, member.name).detach()
        if weight.ndim > 1:
            energy = weight.float().square().transpose(0, member.dim).flatten(1).sum(1)
            classes = torch.from_numpy(member.classes)
            total.index_add_(0, classes[classes >= 0], energy[classes >= 0])
    return total.sqrt()


def of_share(graph: ChannelGraph, share: float) -> dict[str, Any]:
    return {name: keep_best(group, magnitude(graph, group), share) for name, group in graph.groups.items()}


def halved(net: nn.Module, x: Tensor) -> tuple[Plan, float]:
    """Return the plan that leaves at most half of the FLOPs, with an equal share of every group, and what is left."""
    graph, whole = channel_graph(net, (x,)), count_flops(net, x).total

    def left(percent: int) -> float:
        undos = [remove(net, removal) for removal in removals(graph, of_share(graph, percent / 100))]
        rest = count_flops(net, x).total / whole
        for undo in reversed(undos):
            undo(net)
        return rest

    percent = bisect.bisect_right(range(1, 100), 0.5, key=left)
    plan = Plan.of(net, plan_removal(graph, of_share(graph, percent / 100)), method="uniform")
    return plan, left(percent)


def peer(net: nn.Module, x: Tensor) -> Callable[[], int]:
    pruning: Any = importlib.import_module("torch_pruning")

    def work() -> int:
        graph = pruning.DependencyGraph().build_dependency(net, example_inputs=x)
        return len(list(graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear])))

    return work


def peer_error(net: nn.Module, x: Tensor) -> dict[str, float]:
    """Return how far removing half of each attention group is from zeroing it, by the group's first layer."""
    pruning: Any = importlib.import_module("torch_pruning")
    found = {}
    for name, module in net.named_modules():
        if not name.endswith("v_proj"):
            continue
        small, zeroed = copy.deepcopy(net), copy.deepcopy(net)
        paths = {id(one): path for path, one in small.named_modules()}
        graph = pruning.DependencyGraph().build_dependency(small, example_inputs=x)
        half = list(range(module.out_features // 2))
        group = graph.get_pruning_group(small.get_submodule(name), pruning.prune_linear_out_channels, idxs=half)
        for dep, indices in group:
            layer = zeroed.get_submodule(paths[id(dep.target.module)]) if id(dep.target.module) in paths else None
            if isinstance(layer, nn.Linear):
                dim = 0 if "out" in dep.handler.__name__ else 1
                layer.weight.data.index_fill_(dim, torch.tensor(indices), 0)
        group.prune()
        with torch.no_grad():
            (given, *_), (wanted, *_) = small(x).values(), zeroed(x).values()
        found[name] = float((given - wanted).abs().max() / wanted.abs().max())
    return found


def peer_verdict(net: nn.Module, x: Tensor) -> str:
    """Say whether torch-pruning's groups of attention are right."""
    try:
        away = max(peer_error(net, x).values())
    except Exception as error:
        return told(error)
    right = "holds" if away <= TOLERANCE else "fails"
    return f"{right}: removal differs from zeroing by up to {away:.1e} of the largest output"


def told(error: Exception) -> str:
    return f"fails: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def analysis(net: nn.Module, x: Tensor) -> dict[str, Any]:
    row: dict[str, Any] = {"groups": len(channel_graph(net, (x,)).groups)}
    try:
        work = peer(net, x)
        row["torch-pruning groups"] = work()
        calls = {"efface": lambda: channel_graph(net, (x,)), "torch-pruning": work}
        times = interleave(calls, seconds=0, least=7)
        row |= {f"{name}, s": timing.seconds for name, timing in times.items()}
        row["times torch-pruning"] = times["efface"].seconds / times["torch-pruning"].seconds
    except Exception as error:  # whatever it raises is what its users see
        row["torch-pruning"] = told(error)
    return row


def latency(nets: dict[str, nn.Module], x: Tensor, threads: int, length: float) -> dict[str, float]:
    """Return the shortest times of the networks, which take turns."""
    times: dict[str, list[float]] = {name: [] for name in nets}
    torch.set_num_threads(threads)
    end = time.perf_counter() + length
    with torch.inference_mode():
        while time.perf_counter() < end or len(times["half"]) < 3:
            for name, model in nets.items():
                start = time.perf_counter()
                model(x)
                times[name].append(time.perf_counter() - start)
    best = {name: min(values) for name, values in times.items()}
    return {**{f"{name}, ms": 1e3 * value for name, value in best.items()}, "speed-up": best["whole"] / best["half"]}


def resnet50_like(net: nn.Module) -> nn.Module:
    twin = resnet50().eval()
    twin.load_state_dict(net.state_dict())
    return twin.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=10.0, help="time for the latency of each batch size")
    parser.add_argument("-o", "--out", type=Path)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    net = resnet50().eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    figures: dict[str, Any] = {"threads": given.threads, "torch": torch.__version__, "cpu": platform.machine()}
    cases: dict[str, tuple[nn.Module, Tensor]] = {
        "ResNet-50": (net, torch.randn(1, 3, 224, 224)),
        f"Llama, {given.layers} layers": (llama(given.layers), torch.ones(1, 16).long()),
    }
    for name, (model, x) in cases.items():
        figures[name] = analysis(model, x)
        if name.startswith("Llama"):
            figures[name]["torch-pruning, grouped queries"] = peer_verdict(llama(2), x)
        print(name, figures[name], flush=True)
    plan, left = halved(net, cases["ResNet-50"][1])
    nets = {"whole": net, "half": plan.apply(resnet50_like(net))}
    for batch in (1, 8):
        x = torch.randn(batch, 3, 224, 224).contiguous(memory_format=torch.channels_last)
        for threads in sorted({1, given.threads}):
            name = f"half-FLOP ResNet-50, batch {batch}, threads {threads}"
            figures[name] = {"FLOPs left": left, **latency(nets, x, threads, given.seconds)}
            print(name, figures[name], flush=True)
    if given.out:
        write_json(given.out, figures, overwrite=True)


if __name__ == "__main__":
    main()
