"""`check_method` finds broken promises in methods of other packages."""

import pytest

import efface
from efface.core.contract import ContractError, check_method, checks
from efface.errors import UnknownNameError

GOOD = '''"""Darken the mask.

Left out: everything.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from efface.core.card import Card
from efface.core.method import Network, param


@dataclass(frozen=True, kw_only=True)
class Darken(Network):
    """One convolution."""

    kernel: int = param(3, "side of the kernel in pixels", low=1, high=9)
    card = Card(
        title="Darken",
        paper="of no paper",
        year=2026,
        task="light from pictures",
        inputs=("picture", "mask"),
        tiling="local",
        radius=1,
        good_at="Tests.",
    )
    small: ClassVar = {"kernel": 3}

    def build(self):
        """Build one convolution."""
        return nn.Conv2d(4, 3, self.kernel, padding="same")

    def loss(self, net, batch, step):
        """Return the L1 distance."""
        return {"total": (self._apply(net, batch["picture"], batch["mask"]) - batch["target"]).abs().mean()}

    def run(self, net, x, *, mask):
        """Apply it."""
        return self._apply(net, x, mask).clamp(0, 1)

    def _apply(self, net, x, mask):
        return net(torch.cat([x, mask], 1))
'''


def test_a_good_method_of_another_package_passes_by_name_and_by_class(install):
    install(GOOD)
    check_method("darken")
    assert [c.name for c in checks(efface.get("darken"))] == [c.name for c in checks("darken")]
    assert efface.find("light")[0].module == "elsewhere.darken"


LIES = {
    "radius=1": ("radius=0", "tiles equal the whole"),
    "return self._apply(net, x, mask).clamp(0, 1)": ("return self._apply(net, x, mask) * 9", "runs on every size"),
    "return net(torch.cat([x, mask], 1))": (
        "return net(torch.cat([x + x.std((0, 1, 2, 3)), mask], 1))",
        "pictures of a batch are independent",
    ),
    'padding="same")': ('padding="same", device="cpu")', "builds without computing"),
    '"side of the kernel in pixels"': ('" "', "hyper parameters are described"),
    "Left out: everything.\n": ("", "docstring has its form"),
    'title="Darken"': ('title=""', "card is true"),
    ".abs().mean()}": (".abs().mean().detach().requires_grad_()}", "trains"),
    "light from pictures": ("light", "card is true"),
    "def build(self):": (
        "def build(self, _seen=[]):\n        _seen.append(torch.rand(1, device='cpu'))",
        "builds without computing",
    ),
    'class Darken(Network):\n    """One convolution."""': (
        'class Darken(Network):\n    """One convolution."""\n\n    def __post_init__(self):\n        pass',
        "bad hyper parameters are refused",
    ),
    "    def run(self, net, x, *, mask):": (
        "    def prepare(self, net, batch, step):\n        import os\n"
        '        return batch | {"mask": batch["mask"] * os.urandom(1)[0]}\n\n    def run(self, net, x, *, mask):',
        "same seed gives same bytes",
    ),
}


@pytest.mark.parametrize("truth", LIES, ids=lambda t: LIES[t][1])
def test_a_broken_promise_is_named(install, truth):
    lie, promise = LIES[truth]
    assert truth in GOOD
    install(GOOD.replace(truth, lie))
    (check,) = (c for c in checks("darken") if c.name == promise)
    with pytest.raises(ContractError, match=f"darken, {promise}"):
        check.run()


def test_an_unknown_method_is_no_method():
    with pytest.raises(UnknownNameError, match="strokefill"):
        check_method("strokefil")
