import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from efface.errors import PlanError, UnknownNameError, UsageError
from efface.parts.counting import Flops
from efface.parts.sparsity.controller import Change, DynamicSparsity, training_flops
from efface.parts.sparsity.masks import BUFFERS, LayerCollapse, MaskSet
from efface.parts.sparsity.regimes import PRESETS, Regime, preset

STEPS = 24


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10), nn.ReLU(), nn.Linear(10, 4),
    )  # fmt: skip


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, 5e-3, weight_decay=0.1),
    "fused amsgrad": lambda p: torch.optim.Adam(p, 5e-3, amsgrad=True, fused=True),
}


def train(net, optimizer, first=0, last=STEPS, *, clip=0.0, accumulate=1, bf16=False):
    """Train as users do; yield after each step of the optimiser, before gradients are cleared."""
    for step in range(first, last):
        for part in range(accumulate):
            random = torch.Generator().manual_seed(100 * step + part)
            x, y = torch.randn(8, 1, 6, 6, generator=random), torch.randint(4, (8,), generator=random)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = F.cross_entropy(net(x).float(), y)
            (loss / accumulate).backward()
        if clip:
            nn.utils.clip_grad_norm_(net.parameters(), clip)
        optimizer.step()
        yield step + 1
        optimizer.zero_grad()


def regime(name="granet", **options):
    return preset(name, **{"density": 0.2, "steps": STEPS, "every": 4, "drop": 0.3, **options})


def started(settings, optimizer="adamw", net=None, **options):
    net = net or network()
    moving = OPTIMIZERS[optimizer](net.parameters())
    control = DynamicSparsity(net, settings, **options)
    return net, moving, control, control.attach(net, moving)


def tensors(net, optimizer, name):
    weight = net.get_parameter(name)
    state = optimizer.state[weight]
    return [weight, *(state[key] for key in BUFFERS if isinstance(state.get(key), torch.Tensor))]


@pytest.mark.parametrize("loop", [{}, {"clip": 0.1}, {"accumulate": 2}, {"bf16": True}], ids=str)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_dead_weights_stay_dead_and_the_end_is_exact(optimizer, loop):
    net, moving, control, _ = started(regime(stop=0.53), optimizer)
    densities = []
    for _ in train(net, moving, **loop):
        densities.append(control.masks.density)
        for name, mask in control.masks.items():
            assert all((tensor[~mask] == 0).all() for tensor in tensors(net, moving, name))
    assert densities == sorted(densities, reverse=True)
    assert control.masks.kept == round(0.2 * control.masks.total)
    assert [c.step for c in control.history] == [0, 4, 8, 12, 13, 16]  # 13 is the end of pruning
    assert sum(c.grown for c in control.history) > 0


@pytest.mark.parametrize("scope", ["global", "uniform"])
@pytest.mark.parametrize("name", PRESETS)
def test_presets_do_what_they_are_known_for(name, scope):
    net, moving, control, _ = started(regime(name, scope=scope, density=0.15))
    first = MaskSet({n: m.clone() for n, m in control.masks.items()})
    counts = first.per_layer()
    for _ in train(net, moving):
        pass
    changes = control.history[1:]
    assert control.masks.kept == round(0.15 * control.masks.total)
    assert first.density == pytest.approx({"gmp": 1, "granet": 0.5}.get(name, 0.15), abs=1e-3)
    match name:
        case "static":
            assert control.masks == first
            assert not changes
        case "gmp":
            assert all(c.grown == 0 and c.churn == 0 and c.dropped > 0 for c in changes)
            assert (control.masks & first) == control.masks
        case "granet":
            assert any(c.grown for c in changes)
            assert all(c.dropped >= c.grown for c in changes)
        case _:
            assert control.masks.per_layer() == counts
            assert all(c.dropped == c.grown > 0 for c in changes)
    if scope == "uniform":
        layers = changes[-1].layers if changes else {}
        assert all(d == pytest.approx(0.2 if n == "9.weight" else 0.15, abs=0.03) for n, d in layers.items())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_grown_weights_begin_at_zero_even_where_they_were_just_dropped(optimizer):
    net, moving, control, _ = started(regime("rigl", density=0.5, end=1.0), optimizer)
    back = 0
    for step in train(net, moving):
        if step % 4:
            before = {name: mask.clone() for name, mask in control.masks.items()}
            continue
        zeros = 0
        for name, mask in control.masks.items():
            weight, *memory = tensors(net, moving, name)
            new = mask & ~before[name]
            assert (weight[new] == 0).all()
            zeros += int((weight[mask] == 0).sum())
            assert all((m[mask & (weight == 0)] == 0).all() for m in memory)
        if control.history[-1].step == step:
            assert zeros >= control.history[-1].grown
            back += zeros - round(control.history[-1].churn * control.masks.kept)
    assert back > 0  # else the case of the name did not occur


def test_dense_layers_exchange_nothing():
    net, moving, control, _ = started(regime(init_density=1.0, stop=1.0, drop=0.5))
    for step in train(net, moving, last=4):
        assert control.masks.density == 1.0 or step == 4
    change = control.history[-1]
    assert change.grown <= sum(round((1 - d) * net.get_parameter(n).numel()) for n, d in change.layers.items())


@pytest.mark.parametrize("name", ["set", "granet", "itop"])
@pytest.mark.parametrize(("optimizer", "cut", "every"), [("sgd", 10, 4), ("adamw", 12, 1)])
@pytest.mark.parametrize("early", [True, False])
def test_a_resumed_training_is_the_uninterrupted_one(name, optimizer, cut, every, early):
    settings = regime(name, every=every)
    net, moving, control, _ = started(settings, optimizer)
    for step in train(net, moving):
        if step == cut:
            saved = copy.deepcopy((net.state_dict(), moving.state_dict(), control.state_dict()))
    other = network()
    other.load_state_dict(saved[0])
    fresh = OPTIMIZERS[optimizer](other.parameters())
    resumed = DynamicSparsity(network(), settings, seed=9)  # all that the seed would draw is in the state, but
    resumed.seed = 0  # the draws to come
    if early:
        resumed.load_state_dict(saved[2])
    resumed.attach(other, fresh)
    if not early:
        other.load_state_dict(saved[0])
        resumed.load_state_dict(saved[2])
    fresh.load_state_dict(saved[1])
    for _ in train(other, fresh, cut):
        pass
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in net.state_dict().items())
    assert resumed.masks == control.masks
    assert resumed.history == control.history


def test_the_state_is_plain_and_of_its_network(tmp_path):
    net, moving, control, _ = started(regime("itop", every=1))
    for _ in train(net, moving, last=3):
        pass
    torch.save(control.state_dict(), tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True)["step"] == 3
    with pytest.raises(PlanError, match="another network"):
        DynamicSparsity(nn.Linear(3, 4), regime()).load_state_dict(control.state_dict())


def test_what_grew_at_the_last_step_is_protected_for_one_update():
    net, moving, control, _ = started(regime("rigl", every=1, end=1.0, drop=0.4), "sgd")
    before = fresh = {name: torch.zeros_like(mask) for name, mask in control.masks.items()}
    for _ in train(net, moving, last=12):
        assert all(control.masks[name][new].all() for name, new in fresh.items())
        fresh = {name: mask & ~before[name] for name, mask in control.masks.items() if before[name].any()}
        before = {name: mask.clone() for name, mask in control.masks.items()}
    assert sum(int(new.sum()) for new in fresh.values()) > 0


def test_random_growth_depends_on_the_seed_alone():
    def masks(seed, noise):
        net, moving, control, _ = started(regime("set"), seed=seed)
        for _ in train(net, moving, last=8):
            torch.manual_seed(noise)
        return control.masks

    assert masks(0, 1) == masks(0, 2)
    assert masks(0, 1) != masks(1, 1)


def test_momentum_goes_on_for_dead_weights_where_growth_goes_by_it():
    net, moving, control, _ = started(regime("rigl", growth="momentum"))
    for _ in train(net, moving, last=3):
        pass
    dead = ~control.masks["3.weight"]
    weight, mean, _ = tensors(net, moving, "3.weight")
    assert (weight[dead] == 0).all()
    assert mean[dead].count_nonzero() > 0
    for _ in train(net, moving, first=3):
        assert (net[3].weight[~control.masks["3.weight"]] == 0).all()
    assert control.history[-1].grown > 0


def test_unfired_places_come_first():
    net, moving, control, _ = started(regime("itop", density=0.3))
    for _ in train(net, moving):
        pass
    first = control.history[1]
    assert first.churn * control.masks.kept == pytest.approx(first.grown)  # none of what was dropped came back
    lived = MaskSet(control.state_dict()["fired"])
    assert (lived | control.masks) == lived
    assert lived.kept >= control.masks.kept + first.grown


def test_given_masks_are_copied_and_hooks_go_away():
    net = network()
    given = MaskSet.ones_like(net, exclude=("9",)).random_like(0)
    net, moving, control, handle = started(regime("gmp"), net=net, masks=given)
    assert "9.weight" not in control.masks
    for _ in train(net, moving, last=8):
        pass
    assert given.density == 1.0 > control.masks.density
    handle.remove()
    for _ in train(net, moving, 8, 9):
        pass
    assert control.step == 8
    assert net[0].weight.count_nonzero() == net[0].weight.numel()


def test_a_layer_that_would_die_is_named():
    net = network()
    with torch.no_grad():
        net[9].weight *= 1e-3
    *_, control, _ = loop = started(regime("gmp", min_keep=0, every=1, density=0.05), net=net)
    with pytest.raises(LayerCollapse, match=r"9\.weight"):
        for _ in train(*loop[:2]):
            pass
    assert control.masks["9.weight"].any()


def test_a_missing_gradient_is_named():
    net = network()
    net[3].weight.requires_grad_(False)
    loop = started(regime("rigl"), net=net)
    with pytest.raises(UsageError, match=r"3\.weight: growth at step 4 needs its gradient"):
        for _ in train(*loop[:2]):
            pass


def test_attaching_to_another_network_leaves_no_hooks():
    other = nn.Linear(3, 4)
    optimizer = OPTIMIZERS["sgd"](other.parameters())
    with pytest.raises(PlanError):
        DynamicSparsity(network(), regime()).attach(other, optimizer)
    assert not optimizer._optimizer_step_post_hooks


@pytest.mark.parametrize(
    "wrong",
    [{"density": 0.0}, {"density": 0.6, "init_density": 0.5}, {"init_density": 1.1}, {"every": 0}, {"drop": 1.5}],
    ids=str,
)
def test_impossible_regimes_are_refused(wrong):
    with pytest.raises(UsageError):
        regime(**wrong)


def test_floors_that_no_density_allows_are_refused_before_training():
    with pytest.raises(UsageError, match=r"would do, or leave each 4$"):
        DynamicSparsity(network(), regime("gmp", density=0.02, min_keep=10))
    with pytest.raises(UsageError, match=r"Lower the sparsity: \d+ weights would do$"):
        DynamicSparsity(network(), regime("gmp", density=0.001))
    with pytest.raises(UsageError):
        DynamicSparsity(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 400)), regime("gmp", scope="uniform", density=0.1))
    with pytest.raises(UnknownNameError, match="granet"):
        regime("grannet")


@pytest.mark.parametrize(
    ("steps", "every", "drop", "end"),
    [(62_500, 1000, 0.5, 62_500), (600, 30, 0.15, 420), (600, None, 0.03, 420), (50, None, 0.005, 35)],
)
def test_short_trainings_exchange_less_and_stop_earlier(steps, every, drop, end):
    found = preset("granet", density=0.1, steps=steps, every=every)
    assert (found.drop, found.end, found.stop) == (drop, end, steps // 2)
    assert preset("granet", density=0.1, steps=steps, drop=0.4, end=1.0).end == steps


def test_shares_fall_to_the_end_of_the_training_but_those_of_rigl_to_the_end_of_exchanges():
    granet, rigl = (preset(name, density=0.1, steps=800, every=100, drop=0.4) for name in ("granet", "rigl"))
    assert granet.exchanged(400) == pytest.approx((0.4 + 0.005) / 2)
    assert rigl.end == 560
    assert rigl.exchanged(500) < 0.02 < granet.exchanged(500)
    assert granet.exchanged(600) == 0


def test_the_shortest_training_reaches_its_density():
    assert preset("gmp", density=0.1, steps=1).prunes(1)
    with pytest.raises(UsageError, match="no updates"):
        Regime(density=0.1, init_density=1.0, every=10)


def test_no_update_comes_before_the_start():
    settings = Regime(density=0.1, init_density=0.5, every=10, start=25, stop=60, end=90, drop=0.2, growth="random")
    assert [t for t in range(1, 200) if settings.prunes(t)] == [30, 40, 50, 60]
    assert [t for t in range(1, 200) if settings.exchanged(t)] == [30, 40, 50, 60, 70, 80]


def test_training_flops_are_those_counted_by_hand():
    flops = Flops({"a": 100, "b": 200}, 50)

    def change(step, a, b, grown=0):
        return Change(step, 0.0, 0, grown, 0.0, {"a": a, "b": b})

    static = [change(0, 0.5, 0.1)]
    assert training_flops(static, flops, 10, "none") == 3 * 10 * (50 + 20 + 50)
    falling = [change(0, 1, 1), change(4, 0.5, 0.1, grown=3)]
    assert training_flops(falling, flops, 10, "none") == 3 * (4 * 350 + 6 * 120)
    assert training_flops(falling, flops, 10, "gradient") == 3 * (4 * 350 + 6 * 120) + 0  # dense before the update
    growing = [change(0, 0.5, 0.1), change(4, 0.5, 0.1, grown=3)]
    assert training_flops(growing, flops, 10, "gradient") == 3 * 10 * 120 + (350 - 120)
    assert training_flops(static, flops, 10, "momentum") == 10 * (3 * 120 + 230)
