"""Show that it matters how many weights each layer keeps and not which, and that whole channels save the time too.

Three residual stages, the last one much wider than the others, are thinned out before they are trained: by the weight
mask of synaptic flow, by the same mask shuffled within each layer, by whole channels at the same densities, by a
uniform width multiplier, and by channels that may also grow. All have equally many parameters, new first weights of
the same kind, and train equally long on the same batches.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from efface.core.claim import Claim, Context, Effect, paired, spread
from efface.core.method import Work
from efface.networks.precropping import Precropping
from efface.parts.counting import count_flops, count_parameters
from efface.parts.data.tasks import Task, task
from efface.parts.nn.fresh import redraw
from efface.parts.sparsity.masks import MaskSet
from efface.parts.sparsity.prunable import prunable
from efface.parts.sparsity.scores import synflow
from efface.parts.sparsity.topk import keep_global
from efface.parts.timing import interleave
from efface.seeds import derive, seeded
from efface.training.recipe import Train
from efface.training.tuning import tune

WIDTHS, STEPS, BATCH, LR, ROUNDS = (16, 32, 256), 300, 64, 2e-3, 100
BUDGET, TIGHT = 0.25, 0.1
"""Shares of the parameters; the second is tried by the mask and by channels alone."""

CLAIM = Claim(
    statement="Whole channels, as many as the layer densities of a rule of pruning at initialisation ask for, do as "
    "well as the weight mask of that rule, and save time where a mask saves none",
    baseline="the mask of synaptic flow, the same shuffled within layers, and a uniform width multiplier",
    minutes=7,
    data="15 000 labelled pictures, or as many of shapes that the package makes, at 16 x 16, and 2000 to test on",
)


class Stage(nn.Module):
    """A convolution and a residual one, each with batch norm."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.inner = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, inputs, h, w) to (b, width, h / stride, w / stride)."""
        x = F.relu(self.norm1(self.enter(x)))
        return F.relu(x + self.norm2(self.inner(x)))


def network(widths: tuple[int, ...], pictures: Task) -> nn.Sequential:
    """Return the stages, averaging, and a linear layer."""
    inputs = (pictures.shape[0], *widths)
    stages = [Stage(a, b, 2 if i else 1) for i, (a, b) in enumerate(zip(inputs, widths, strict=False))]
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], len(pictures.classes))
    return nn.Sequential(*stages, *head)


def check(context: Context) -> list[Effect]:
    """Train every arm per seed, time a step of the masked and of the cropped network, and compare."""
    pictures = task(context.data, side=16, limit=64 if context.quick else 15_000)
    limit = 20 if context.quick else None if context.long else 2000
    reached: dict[str, list[float]] = {}
    ratios: list[float] = []
    saved: dict[str, list[float]] = {"mask": [], "channels": []}
    for seed in context.seeds:
        nets = _arms(context, pictures, seed)
        times = _step_times(pictures, {"mask": nets["mask"][0], "channels": nets["channels"][0]}, seed)
        ratios.append(times["mask"] / times["channels"])
        for name in saved:
            saved[name].append(_saved(pictures, nets[name][0], seed) / 1e6)
        for name, (net, masks) in nets.items():
            _train(context, pictures, net, masks, seed)
            reached.setdefault(name, []).append(100 * pictures.score(net, limit=limit).accuracy)
            kept = count_parameters(net, masks or {}).kept
            context.progress(f"seed {seed}, {name}: {reached[name][-1]:.1f} % with {kept:,} parameters")
        context.progress(f"seed {seed}: a step is {ratios[-1]:.2f} times as quick with channels gone")
    mask, shuffled, channels = (reached[name] for name in ("mask", "shuffled", "channels"))
    uniform, grown = reached["uniform"], reached["allowed to grow"]
    lost = fmean(paired(channels, mask))
    memory = {name: fmean(values) for name, values in saved.items()}
    return [
        Effect(
            "only the densities of layers matter",
            "with 25 % of the parameters, accuracy of the shuffled mask within 1 point of that of the mask, in the "
            "mean over seeds",
            {"mask": mask, "shuffled": shuffled},
            abs(fmean(paired(shuffled, mask))) <= 1,
            unit="%",
            note=spread(paired(shuffled, mask), "points"),
        ),
        Effect(
            "whole channels do as well",
            "with 25 % of the parameters, accuracy at least that of the mask less 1 point, in the mean over seeds",
            {"mask": mask, "channels": channels},
            lost >= -1,
            unit="%",
            note=f"{spread(paired(channels, mask), 'points')}; with 10 %, without a rule: "
            f"{spread(paired(reached['channels, 10 %'], reached['mask, 10 %']), 'points')}",
        ),
        Effect(
            "better than one width multiplier for all",
            "with 25 % of the parameters, accuracy at least 2 points above that of the uniform widths, and at least "
            "equal where layers may also grow, in the mean over seeds",
            {"uniform": uniform, "channels": channels, "allowed to grow": grown},
            fmean(paired(channels, uniform)) >= 2 and fmean(paired(grown, uniform)) >= 0,
            unit="%",
            note=f"{spread(paired(channels, uniform), 'points')}, and of what may grow, with as many FLOPs: "
            f"{spread(paired(grown, uniform), 'points')}",
        ),
        Effect(
            "a step is quicker",
            "with 25 % of the parameters, a step of training with channels gone more than 2 times as quick as with the "
            "mask, in the mean over seeds, at an accuracy at least that of the mask less 1 point",
            {"times as quick": ratios},
            fmean(ratios) > 2 and lost >= -1,
            note=f"timed in turns; kept for the backward pass {memory['channels']:.1f} MB, and {memory['mask']:.1f} MB "
            "with the mask",
        ),
    ]


def _arms(context: Context, pictures: Task, seed: int) -> dict[str, tuple[nn.Module, MaskSet | None]]:
    """Return the networks of all arms with new first weights, and the masks of those that have one."""
    widths = tuple(2 * width for width in WIDTHS) if context.long else WIDTHS
    rounds, work = (2 if context.quick else ROUNDS), Work(seed=seed, example=(torch.zeros(2, *pictures.shape),))

    def fresh(widths: tuple[int, ...] = widths) -> nn.Sequential:
        with seeded(seed, "first weights"):
            redraw(net := network(widths, pictures))
        return net

    def mask(share: float) -> MaskSet:
        weights = prunable(net := fresh())
        total, count = count_parameters(net).total, sum(weight.numel() for weight in weights.values())
        density = 1 - (1 - share) * total / count
        scores = synflow(net, weights, work.example, density=density, rounds=rounds)
        return keep_global(scores, round(density * count), min_keep=1)

    def cropped(share: float, flops: float = 1.0, grow: float = 1.0) -> nn.Module:
        method = Precropping(parameters=share, flops=flops, allow_grow=grow, multiple_of=1, rounds=rounds)
        return method.plan(net := fresh(), None, work).apply(net)

    masks, most = mask(BUDGET), BUDGET * count_parameters(fresh()).total
    shares = [share / 256 for share in range(1, 257)]
    narrow = [tuple(max(1, round(share * width)) for width in widths) for share in shares]
    uniform = [found for found in narrow if count_parameters(network(found, pictures)).total <= most][-1]
    channels = cropped(BUDGET)
    return {
        "mask": (fresh(), masks),
        "shuffled": (fresh(), masks.shuffle(derive(seed, "shuffled"))),
        "channels": (channels, None),
        "uniform": (fresh(uniform), None),
        "allowed to grow": (cropped(BUDGET, _flops_share(channels, fresh(), work), grow=2.0), None),
        "mask, 10 %": (fresh(), mask(TIGHT)),
        "channels, 10 %": (cropped(TIGHT), None),
    }


def _flops_share(small: nn.Module, large: nn.Module, work: Work) -> float:
    return count_flops(small, *work.example).total / count_flops(large, *work.example).total


def _train(context: Context, pictures: Task, net: nn.Module, masks: MaskSet | None, seed: int) -> None:
    steps = 2 if context.quick else (2 if context.long else 1) * STEPS
    train = Train(steps=steps, batch=BATCH, seed=derive(seed, "batches"), lr=LR, schedule="cosine")
    tune(net, pictures, train, device=context.device, attach=[] if masks is None else [masks.attach])


def _step_times(pictures: Task, nets: dict[str, nn.Module], seed: int) -> dict[str, float]:
    """Return the seconds of a step of training of copies of each network, timed in turns."""
    batch = pictures.train.batch(seed, 0, BATCH)

    def stepper(net: nn.Module) -> Callable[[], None]:
        optimizer = torch.optim.Adam(net.parameters(), lr=LR)

        def step() -> None:
            optimizer.zero_grad()
            pictures.loss(net, batch).backward()
            optimizer.step()

        return step

    copies = {name: copy.deepcopy(net).train() for name, net in nets.items()}
    timings = interleave({name: stepper(net) for name, net in copies.items()}, seconds=2.0, least=7, most=60)
    return {name: timing.seconds for name, timing in timings.items()}


def _saved(pictures: Task, net: nn.Module, seed: int) -> float:
    """Return the bytes that a step keeps for the backward pass, weights not counted, each storage once."""
    batch, twin, sizes = pictures.train.batch(seed, 0, BATCH), copy.deepcopy(net).train(), dict[int, int]()
    weights = {p.data_ptr() for p in twin.parameters()}

    def note(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            sizes[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        pictures.loss(twin, batch)
    return float(sum(sizes.values()))
