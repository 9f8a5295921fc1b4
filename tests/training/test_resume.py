"""A training that was stopped goes on as if it had not been."""

from __future__ import annotations

import pytest
import torch
from conftest import Toy

from efface.io.weights import load_weights

VARIANTS = {
    "plain": {},
    "ema": {"ema": 0.9},
    "accumulate": {"accumulate": 3, "clip": 0.1},
    "cosine": {"schedule": "cosine", "warmup": 0.2, "weight_decay": 0.1},
    "onecycle sgd": {"schedule": "onecycle", "warmup": 0.3, "optimizer": "sgd"},
    "bfloat16": {"dtype": "bfloat16"},
    "phases": {"method": Toy(optimizers=2), "ema": 0.99, "accumulate": 2},
}


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS)
def test_stopped_training_goes_on_exactly(fit, settings):
    whole = fit("whole", **settings)
    fit("parts", until=7, **settings)
    torch.rand(17)  # what else happens in the process is no matter
    parts = fit("parts", resume=True, **settings)
    wanted, found = load_weights(whole.weights)[0], load_weights(parts.weights)[0]
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[k], found[k]) for k in wanted)
