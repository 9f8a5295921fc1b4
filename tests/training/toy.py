"""A network, a source and a recipe small enough to train in milliseconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from efface.core.card import Card
from efface.core.method import Network, Phase, param
from efface.io.weights import load_weights
from efface.seeds import torch_generator
from efface.training.recipe import Recipe, Train
from efface.training.trainer import Trainer, accelerator


class Pair(nn.Module):
    """A maker and a critic, with dropout and batch statistics so that every kind of state is there."""

    def __init__(self, width, dropout):
        super().__init__()
        norm = [nn.BatchNorm2d(width), nn.Dropout(dropout)] if dropout else []
        self.maker = nn.Sequential(nn.Conv2d(4, width, 3, padding=1), *norm, nn.Conv2d(width, 3, 1))
        self.critic = nn.Conv2d(3, 1, 3)

    def forward(self, x, mask):
        return self.maker(torch.cat([x, mask], dim=1))


@dataclass(frozen=True, kw_only=True)
class Toy(Network):
    """Learn to give the target; with two phases a critic learns beside it, every other step, twice."""

    card: ClassVar[Card] = Card(
        title="Toy", paper="none", year=2024, task="noise from noise", inputs=("picture", "mask")
    )
    width: int = param(4, "channels", low=1)
    dropout: float = param(0.1, "share of features dropped; 0 also goes without batch statistics", low=0.0, high=1.0)
    critic: bool = param(False, "train the critic too")

    def build(self):
        return Pair(self.width, self.dropout)

    def prepare(self, net, batch, step):
        noise = torch.randn(batch["picture"].shape, generator=step.generator("noise"))
        return batch | {"picture": batch["picture"] + self.dropout * noise}

    def loss(self, net, batch, step):
        out = net(batch["picture"], batch["mask"])
        error = (out - batch["target"]).square().mean()
        return {"total": error, "bits": torch.tensor(torch.finfo(out.dtype).bits)}

    def critic_loss(self, net, batch, step):
        noise = torch.rand((), generator=step.generator("critic"))
        made = net(batch["picture"], batch["mask"])
        return {"total": (net.critic(made).mean() - net.critic(batch["target"]).mean() - noise).square()}

    def run(self, net, x, *, mask):
        return net(x, mask).clamp(0, 1)

    def phases(self):
        maker = Phase(lambda net: list(net.maker.parameters()), self.loss)
        options = {"lr": 1e-2, "betas": (0.5, 0.9), "schedule": "constant"}
        critic = Phase(lambda net: list(net.critic.parameters()), self.critic_loss, 2, 3, options)
        return {"maker": maker, "critic": critic} if self.critic else {"maker": maker}


class Noise:
    """Batches of noise. Sample i is the same however the samples are cut into batches."""

    def batch(self, seed, step, count):
        pictures = [torch.rand(3, 8, 8, generator=torch_generator(seed, step * count + i)) for i in range(count)]
        picture = torch.stack(pictures)
        mask = (picture[:, :1] > 0.5).float()
        return {"picture": picture, "mask": mask, "target": picture * (1 - mask)}


class Spoilt(Noise):
    """Noise whose batches of the given numbers hold what ``spoil`` makes of them."""

    def __init__(self, steps, spoil):
        self.steps, self.spoil = steps, spoil

    def batch(self, seed, step, count):
        batch = super().batch(seed, step, count)
        return self.spoil(batch) if step in self.steps else batch


def recipe(**settings):
    return Recipe(method="toy", train=Train(**({"steps": 20, "batch": 2, "lr": 1e-2, "log_every": 5} | settings)))


def trainer(method=None, **settings):
    plan = recipe(**settings).train
    return Trainer(method or Toy(), plan, accelerator(plan, "cpu"))


def advance(trainer, steps):
    """Take ``steps`` steps on noise and return what the last one logged."""
    data = trainer.batches(Noise())
    for _ in range(steps):
        logged = trainer.advance([next(data) for _ in range(trainer.train.accumulate)])
    data.close()
    return logged


def same(a, b):
    """Say whether two dicts of tensors are equal bit by bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def weights(run):
    return load_weights(run.weights)[0]
