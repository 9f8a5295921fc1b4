"""A network, a source and a recipe small enough to train in milliseconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from efface.core.card import Card
from efface.core.method import Network, Phase, param
from efface.core.run import Run
from efface.seeds import torch_generator
from efface.training.loop import train
from efface.training.recipe import Recipe, Train


class Pair(nn.Module):
    """A maker and a critic, with dropout and batch statistics so that every kind of state is there."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.maker = nn.Sequential(
            nn.Conv2d(4, width, 3, padding=1), nn.BatchNorm2d(width), nn.Dropout(0.1), nn.Conv2d(width, 3, 1)
        )
        self.critic = nn.Conv2d(3, 1, 3)

    def forward(self, x, mask):
        return self.maker(torch.cat([x, mask], dim=1))


@dataclass(frozen=True, kw_only=True)
class Toy(Network):
    """Learns to give the target; with ``phases`` 2 a critic learns beside it, every other step, twice."""

    card: ClassVar[Card] = Card(
        title="Toy", paper="none", year=2024, task="noise from noise", inputs=("picture", "mask")
    )
    width: int = param(4, "channels", low=1)
    optimizers: int = param(1, "phases", choices=(1, 2))

    def build(self):
        return Pair(self.width)

    def loss(self, net, batch, step):
        noise = torch.randn(batch["picture"].shape, generator=step.generator("noise"))
        error = (net(batch["picture"] + 0.1 * noise, batch["mask"]) - batch["target"]).square().mean()
        return {"total": error, "error": error}

    def critic_loss(self, net, batch, step):
        with torch.no_grad():
            made = net(batch["picture"], batch["mask"])
        noise = torch.rand((), generator=step.generator("critic"))
        return {"total": (net.critic(made).mean() - net.critic(batch["target"]).mean() - noise).square()}

    def run(self, net, x, **given):
        return net(x, given["mask"]).clamp(0, 1)

    def phases(self):
        maker = Phase(parameters=lambda net: list(net.maker.parameters()), loss=self.loss)
        critic = Phase(
            lambda net: list(net.critic.parameters()), self.critic_loss, 2, 2, {"lr": 1e-2, "betas": (0.5, 0.9)}
        )
        return {"maker": maker} if self.optimizers == 1 else {"maker": maker, "critic": critic}


class Noise:
    """Batches of noise. Sample i is the same however the samples are cut into batches."""

    def batch(self, seed, step, count):
        picture = torch.stack(
            [torch.rand(3, 8, 8, generator=torch_generator(seed, i)) for i in range(step * count, (step + 1) * count)]
        )
        mask = (picture[:, :1] > 0.5).float()
        return {"picture": picture, "mask": mask, "target": picture * (1 - mask)}


def recipe(**settings) -> Recipe:
    return Recipe(method="toy", train=Train(**({"steps": 20, "batch": 2, "lr": 1e-2, "log_every": 5} | settings)))


@pytest.fixture
def fit(tmp_path):
    """Train the toy into a new folder under ``name``, or on from what is there, for ``steps`` of the recipe."""

    def fit(name="run", *, method=None, source=None, until=None, resume=False, **settings):
        method, plan = method or Toy(), recipe(**settings)
        run = Run.open(tmp_path / name) if resume else Run.create(tmp_path / name, plan.as_dict())
        calls = iter(range(1, 10**6))
        stop = (lambda: next(calls) == until) if until else (lambda: False)
        run_ended = train(method, source or Noise(), plan, run, device="cpu", resume=resume, stop=stop)
        assert run_ended == (until is None)
        return run

    return fit
