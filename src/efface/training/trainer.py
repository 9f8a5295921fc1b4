"""Hold what a training changes (weights, optimisers, running average, step) and take one step of it."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from efface.core.method import Phase, Step
from efface.core.trained import pick_device
from efface.errors import EffaceError
from efface.io.weights import check_shapes, load_weights
from efface.seeds import derive, seeded
from efface.training.optim import Ema, lr_factor, optimizer
from efface.training.order import Source, batches
from efface.training.recipe import Train

if TYPE_CHECKING:
    from accelerate import Accelerator

PATIENCE = 10  # steps in a row with a gradient that is not finite before a training is given up
Batch = dict[str, Any]


def accelerator(train: Train, device: str = "auto") -> Accelerator:
    """Return accelerate's view of this process: its device, its number among others, the arithmetic of ``train``."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # a process may hold several trainings, one after another
    return Accelerator(
        cpu=pick_device(device) == "cpu",
        mixed_precision="bf16" if train.dtype == "bfloat16" else "no",
        gradient_accumulation_steps=train.accumulate,
    )


class Trainable(Protocol):
    """What a trainer asks of whatever it trains; every :class:`~efface.core.method.Network` answers."""

    @property
    def name(self) -> str:
        """What errors call it by."""
        ...

    def build(self) -> torch.nn.Module:
        """Return the network to train: a new one, or one that somebody gave."""
        ...

    def prepare(self, net: Any, batch: Batch, step: Step) -> Batch:
        """Change a batch just before the losses see it."""
        ...

    def phases(self) -> dict[str, Phase]:
        """Return the optimisers of the training, in the order in which they step."""
        ...


class Trainer:
    """A training between two steps."""

    def __init__(self, method: Trainable, train: Train, accelerator: Accelerator) -> None:
        """Build the network and its optimisers on the accelerator's device, before the first step."""
        self.method, self.train, self.accelerator = method, train, accelerator
        self.device = accelerator.device
        with seeded(train.seed, "build"):
            self.net = method.build()
        self.net.to(self.device).train()
        if train.compile:
            self.net.compile()
        self.phases = method.phases()
        self.settings = {name: train.override(phase.options) for name, phase in self.phases.items()}
        self.parameters = {
            name: [p for p in phase.parameters(self.net) if p.requires_grad] for name, phase in self.phases.items()
        }
        self.optimizers = {name: optimizer(self.parameters[name], self.settings[name]) for name in self.phases}
        self.ema = Ema(self.net.state_dict(), train.ema) if train.ema else None
        self.step, self.skipped, self.skipped_in_a_row = 0, 0, 0

    def batches(self, source: Source) -> Generator[Batch]:
        """Return this process's batches from the present step on; closing them ends the workers."""
        ours = range(self._index(0), self._index(0, self.train.steps), self.accelerator.num_processes)
        pin = self.device.type == "cuda"
        return batches(source, ours, seed=self.train.seed, count=self.train.batch, workers=self.train.workers, pin=pin)

    def advance(self, batches: list[Batch]) -> dict[str, Tensor | float]:
        """Take one step, in which every phase that is due updates its weights; return scalars for the log."""
        given = [(self._prepared(batch, step := self._told(i)), step) for i, batch in enumerate(batches)]
        logged: dict[str, Tensor | float] = {}
        skipped = self.skipped
        for name, phase in self.phases.items():
            for update in range(phase.updates if self.step % phase.every == 0 else 0):
                logged |= self._update(name, given, update)
        self._check_patience(self.skipped - skipped)
        if self.ema is not None:
            self.ema.update(self.net.state_dict(), self.step)
        self.step += 1
        return logged

    def _update(self, name: str, given: list[tuple[Batch, Step]], update: int) -> dict[str, Tensor | float]:
        self.net.zero_grad(set_to_none=True)  # another phase's loss may have reached these weights too
        losses: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.device))
        for batch, step in given:
            if update:  # other draws than in the first update of this step
                step = dataclasses.replace(step, seed=derive(step.seed, "update", update))
            self._reseed(derive(step.seed, step.step, name, "torch"))
            with self.accelerator.autocast():
                parts = self.phases[name].loss(self.net, batch, step)
            self.accelerator.backward(parts["total"])  # divides by the number of accumulated batches
            for part, value in parts.items():
                losses[part] += value.detach() / len(given)
        settings, parameters = self.settings[name], self.parameters[name]
        gradients = [p.grad for p in parameters if p.grad is not None]
        self._average([losses["total"], *gradients])
        norm = torch.nn.utils.get_total_norm(gradients)
        if not torch.isfinite(norm + losses["total"]):
            self.skipped += 1
            return {}
        if settings.clip:
            torch.nn.utils.clip_grads_with_norm_(parameters, settings.clip, norm)
        rate = settings.lr * lr_factor(settings.schedule, self.step, self.train.steps, settings.warmup, settings.drops)
        for group in self.optimizers[name].param_groups:
            group["lr"] = rate
        self.optimizers[name].step()
        label = self._label(name)
        logged: dict[str, Tensor | float] = {f"loss{label}/{part}": value for part, value in losses.items()}
        return logged | {f"lr{label}": rate, f"grad_norm{label}": norm}

    def _average(self, tensors: list[Tensor]) -> None:
        """Replace ``tensors`` by their means over all processes, in one message."""
        if self.accelerator.num_processes == 1:
            return
        flat = self.accelerator.reduce(torch.cat([t.reshape(-1).float() for t in tensors]), "mean")
        for tensor, mean in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def _check_patience(self, skipped: int) -> None:
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        if self.skipped_in_a_row == PATIENCE:
            raise EffaceError(
                f"a loss or its gradient was not finite in {PATIENCE} steps in a row, up to step {self.step}",
                where=self.method.name,
                fix="Lower lr, set clip, lengthen warmup, or use float32 in [train]",
            )

    def _prepared(self, batch: Batch, step: Step) -> Batch:
        self._reseed(derive(step.seed, step.step, "prepare", "torch"))
        with self.accelerator.autocast():
            return self.method.prepare(self.net, self._moved(batch), step)

    def _reseed(self, seed: int) -> None:
        """Do what ``torch.manual_seed`` does for the devices in use; that one keeps a list of its calls forever."""
        torch.default_generator.manual_seed(seed)
        if self.device.type != "cpu":
            getattr(torch, self.device.type).manual_seed(seed)

    def _moved(self, batch: Batch) -> Batch:
        return {k: v.to(self.device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in batch.items()}

    def _index(self, i: int, step: int | None = None) -> int:
        """Return the number of this process's ``i``-th batch of a step among all batches of the training."""
        first = (self.step if step is None else step) * self.train.accumulate
        return (first + i) * self.accelerator.num_processes + self.accelerator.process_index

    def _told(self, i: int) -> Step:
        total = self.train.steps * self.train.accumulate * self.accelerator.num_processes
        return Step(step=self._index(i), total=total, seed=self.train.seed, device=str(self.device))

    def _label(self, name: str) -> str:
        return f"/{name}" if len(self.phases) > 1 else ""

    @property
    def headline(self) -> str:
        """Name in the log of the loss that stands for the training: the first phase's total."""
        return f"loss{self._label(next(iter(self.phases)))}/total"

    @property
    def samples_per_step(self) -> int:
        """Number of samples that one step sees, over all processes."""
        return self.train.batch * self.train.accumulate * self.accelerator.num_processes

    def agree(self, flag: bool) -> bool:
        """Return whether ``flag`` is true in any process."""
        if self.accelerator.num_processes == 1:
            return flag
        return bool(self.accelerator.reduce(torch.tensor(float(flag), device=self.device), "sum"))

    def averaged(self) -> dict[str, Tensor]:
        """Return the weights that a training is for: the running average where one is kept."""
        return self.net.state_dict() if self.ema is None else self.ema.state

    def stored(self) -> dict[str, Tensor]:
        """Return :meth:`averaged` in the number format in which the recipe stores weights."""
        dtype = getattr(torch, self.train.store)
        return {k: v.to(dtype) if v.is_floating_point() else v for k, v in self.averaged().items()}

    def samples(self, source: Source) -> tuple[torch.nn.Module, Batch]:
        """Return a copy of the network with the averaged weights, and a batch kept for looking at."""
        net = copy.deepcopy(self.net)
        net.load_state_dict(self.averaged())
        return net, self._moved(source.batch(derive(self.train.seed, "samples"), 0, min(4, self.train.batch)))

    def start_from(self, folder: str) -> None:
        """Take the weights in ``folder`` as the first ones."""
        tensors, _ = load_weights(folder, {k: tuple(v.shape) for k, v in self.net.state_dict().items()})
        self._load_net(tensors)
        if self.train.ema:
            self.ema = Ema(self.net.state_dict(), self.train.ema)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all that a later process needs to go on; random states are not among it, for every draw is derived."""
        tensors = {f"net/{k}": v for k, v in self.net.state_dict().items()}
        if self.ema is not None:
            tensors |= {f"ema/{k}": v for k, v in self.ema.state.items()}
        tensors |= {f"optimizer/{k}": v for k, v in self.moments().items()}
        return tensors, {"skipped": self.skipped, "skipped_in_a_row": self.skipped_in_a_row}

    def load(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Go back to a :meth:`state`; ``values`` also tells its ``step``."""
        part = {
            prefix: {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            for prefix in ("net/", "ema/", "optimizer/")
        }
        self._load_net(part["net/"])
        if self.ema is not None:
            for k, v in self.ema.state.items():
                v.copy_(part["ema/"][k])
        self.load_moments(part["optimizer/"])
        self.step, self.skipped = values["step"], values["skipped"]
        self.skipped_in_a_row = values["skipped_in_a_row"]

    def moments(self) -> dict[str, Tensor]:
        """Return what the optimisers remember: ``phase/number of the parameter/slot`` to a tensor, not copied."""
        return {
            f"{name}/{i}/{slot}": value
            for name, optim in self.optimizers.items()
            for i, slots in optim.state_dict()["state"].items()
            for slot, value in slots.items()
            if value is not None
        }

    def load_moments(self, moments: Mapping[str, Tensor]) -> None:
        """Let the optimisers remember copies of :meth:`moments`."""
        for name, optim in self.optimizers.items():
            slots: dict[int, dict[str, Tensor]] = defaultdict(dict)
            for key, value in moments.items():
                phase, i, slot = key.split("/")
                if phase == name:
                    slots[int(i)][slot] = value.clone()
            optim.load_state_dict({"state": dict(slots), "param_groups": optim.state_dict()["param_groups"]})

    def _load_net(self, tensors: Mapping[str, Tensor]) -> None:
        check_shapes(tensors, {k: tuple(v.shape) for k, v in self.net.state_dict().items()}, where=self.method.name)
        self.net.load_state_dict(tensors)


@contextlib.contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """Leave torch's generators as they were: every step reseeds them."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield
