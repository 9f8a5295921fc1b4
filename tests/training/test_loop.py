"""What a step does, and what a training writes."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.utils import parameters_to_vector
from toy import Noise, Spoilt, Toy, advance, recipe, same, trainer, weights

from efface.core.run import Run
from efface.errors import EffaceError, UsageError, WeightsError
from efface.io.weights import load_card
from efface.training.log import plot_losses, read_log
from efface.training.loop import seconds_per_step, train
from efface.training.trainer import PATIENCE

PLAIN = Toy(dropout=0.0)  # neither draws nor batch statistics: a batch may be cut anywhere


def nan(batch):
    return batch | {"target": batch["target"] * float("nan")}


def test_learns(fit):
    lines = read_log(fit(steps=60, batch=8).log)
    assert lines[-1]["loss/total"] < 0.5 * lines[0]["loss/total"]


def test_same_seed_same_weights_and_another_seed_others(fit):
    first, second, third = (weights(fit(name, seed=seed)) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert same(first, second)
    assert not same(first, third)


def test_leaves_the_callers_randomness_alone(fit):
    before = torch.get_rng_state()
    fit(sample_every=5)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_accumulating_equals_a_large_batch(clip):
    large, parts = trainer(PLAIN, batch=6, clip=clip), trainer(PLAIN, batch=2, accumulate=3, clip=clip)
    assert advance(large, 4)["loss/total"] == pytest.approx(float(advance(parts, 4)["loss/total"]), rel=1e-5)
    for a, b in zip(large.net.parameters(), parts.net.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_clipping_bounds_the_step_and_logs_the_norm_before_it():
    held, free = (trainer(PLAIN, optimizer="sgd", betas=(0.0, 0.0), lr=1.0, clip=clip) for clip in (1e-3, 0.0))
    moves = []
    for t in (held, free):
        before = parameters_to_vector(t.net.parameters()).detach()
        norm = float(advance(t, 1)["grad_norm"])
        moves.append(float((parameters_to_vector(t.net.parameters()).detach() - before).norm()))
    assert moves[0] == pytest.approx(1e-3, rel=1e-2)
    assert moves[1] == pytest.approx(norm, rel=1e-4)
    assert norm > 1e-2


@pytest.mark.parametrize(("dtype", "bits"), [("float32", 32), ("bfloat16", 16)])
def test_arithmetic_has_the_number_format_of_the_recipe(dtype, bits):
    t = trainer(dtype=dtype)
    assert float(advance(t, 1)["loss/bits"]) == bits
    assert {p.dtype for p in t.net.parameters()} == {torch.float32}


def test_phases_step_when_due_move_their_own_weights_and_keep_their_options():
    t = trainer(Toy(critic=True), schedule="cosine", lr=1e-3)
    critic = t.net.critic.weight.detach().clone()
    assert {"loss/maker/total", "loss/critic/total", "lr/critic", "grad_norm/maker"} <= set(advance(t, 1))
    assert not torch.equal(critic, t.net.critic.weight)
    critic.copy_(t.net.critic.weight.detach())
    logged = advance(t, 1)  # the critic is not due at step 1
    assert not [name for name in logged if "critic" in name]
    assert torch.equal(critic, t.net.critic.weight)
    logged = advance(t, 1)
    assert logged["lr/critic"] == 1e-2
    assert logged["lr/maker"] == pytest.approx(1e-3 * (1 + np.cos(np.pi * 2 / 20)) / 2)
    updates = {n: {int(s["step"]) for s in o.state_dict()["state"].values()} for n, o in t.optimizers.items()}
    assert updates == {"maker": {3}, "critic": {6}}


def test_phase_may_override_the_optimiser_only():
    class Wrong(Toy):
        def phases(self):
            (phase,) = super().phases().values()
            return {"maker": type(phase)(phase.parameters, phase.loss, options={"stepz": 3})}

    with pytest.raises(UsageError, match="stepz"):
        trainer(Wrong())


def test_update_that_is_not_finite_is_skipped_and_counted(fit):
    run = fit(source=Spoilt([2, 3, 11], nan), ema=0.9)
    assert [line["skipped"] for line in read_log(run.log)] == [2, 2, 3, 3]
    assert all(np.isfinite(line["loss/total"]) for line in read_log(run.log))
    assert all(torch.isfinite(v).all() for v in weights(run).values())


class HalfBroken(Toy):
    """One phase has no finite loss from step 5 on; the other goes on well."""

    def loss(self, net, batch, step):
        losses = super().loss(net, batch, step)
        return losses | {"total": losses["total"] * (float("nan") if step.step >= 5 else 1.0)}


@pytest.mark.parametrize("method", [HalfBroken(), HalfBroken(critic=True)], ids=["one phase", "one of two"])
def test_training_that_has_diverged_ends_with_an_error_and_keeps_its_state(tmp_path, method):
    plan = recipe(steps=40, checkpoint_minutes=0)
    run = Run.create(tmp_path, plan.as_dict())
    with pytest.raises(EffaceError, match=rf"{PATIENCE} steps in a row.*lr"):
        train(method, Noise(), plan, run, device="cpu")
    assert run.load_state()[1]["step"] == 5 + PATIENCE - 1
    assert not run.finished


def test_final_weights_are_the_average_with_a_card(fit):
    run = fit(ema=0.9, store="float16")
    state, values = run.load_state()
    assert same(weights(run), {k.removeprefix("ema/"): half(v) for k, v in state.items() if k.startswith("ema/")})
    assert values["step"] == 20
    card = load_card(run.weights)
    assert (card["method"], card["params"]) == ("toy", Toy().params())
    assert card["metrics"]["loss/total"] == read_log(run.log)[-1]["loss/total"]
    assert card["recipe"] == recipe(ema=0.9, store="float16").as_dict()
    assert {"efface", "torch"} <= set(card["versions"])


def half(tensor):
    return tensor.half() if tensor.is_floating_point() else tensor


def test_starts_from_given_weights(fit):
    first = fit("first", store="bfloat16")
    then = fit("then", init=str(first.weights), lr=0.0, steps=1)
    wanted = {k: v.float() for k, v in weights(first).items() if v.is_floating_point() and "running" not in k}
    assert same(wanted, {k: v for k, v in weights(then).items() if k in wanted})
    with pytest.raises(WeightsError, match="another architecture"):
        fit("other", method=Toy(width=5), init=str(first.weights))


def test_sample_sheet_shows_inputs_output_and_target_in_rows(fit):
    run = fit(sample_every=8, batch=3)
    assert sorted(p.name for p in run.samples.iterdir()) == ["000008.png", "000016.png", "000020.png"]
    sheet = np.asarray(Image.open(run.samples / "000020.png"))
    assert sheet.shape == (3 * 12, 4 * 12, 3)
    picture, mask, target = sheet[:8, :8], sheet[:8, 12:20], sheet[:8, 36:44]
    assert set(np.unique(mask)) == {0, 255}
    assert (target == np.where(mask == 255, 0, picture)).all()


def test_batch_without_the_methods_inputs_draws_no_sheet(fit):
    class Blind(Noise):
        def batch(self, seed, step, count):
            batch = super().batch(seed, step, count)
            return {"seen": batch["picture"], "cover": batch["mask"], "target": batch["target"]}

    class Renaming(Toy):
        def prepare(self, net, batch, step):
            return {"picture": batch["seen"], "mask": batch["cover"], "target": batch["target"]}

    assert not fit(method=Renaming(), source=Blind(), sample_every=5).samples.exists()


def test_plot_is_skipped_without_matplotlib(fit, monkeypatch):
    monkeypatch.setattr("efface.training.loop.plot_losses", plot_losses)
    assert (fit("with").path / "loss.png").is_file()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    run = fit("without")
    assert not (run.path / "loss.png").exists()
    assert "efface[plots]" in read_log(run.log)[-1]["note"]


def test_log_tells_step_rate_and_losses(fit):
    run = fit(until=7, accumulate=2)
    lines = [json.loads(line) for line in run.log.read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 7]
    assert set(lines[0]) == {
        "step", "seconds", "samples_per_second", "skipped", "loss/total", "loss/bits", "lr", "grad_norm"
    }  # fmt: skip
    assert lines[0]["seconds"] * lines[0]["samples_per_second"] == pytest.approx(5 * 2 * 2, rel=1e-3)


def test_timing_a_step_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert 0 < seconds_per_step(Toy(), Noise(), recipe(steps=1), device="cpu") < 5
    assert not list(tmp_path.iterdir())


def test_absent_device_is_refused():
    with pytest.raises(UsageError, match="tpu"):
        seconds_per_step(Toy(), Noise(), recipe(), device="tpu")
