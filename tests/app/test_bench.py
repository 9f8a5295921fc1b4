"""What a plan gains is measured, masks become column blocks where quicker, and how much of a layer is safe is found."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from efface import Plan, bench, export_blocks, sensitivity
from efface.app import cli
from efface.core.models import Opened
from efface.core.ops import Bypass, Delta, Drop, Mask
from efface.core.removal import plan_removal
from efface.errors import PlanError, UsageError
from efface.io.weights import save_weights
from efface.parts.data.tasks import Task
from efface.parts.graph import channel_graph
from efface.parts.sparsity import blocks
from efface.parts.sparsity.blocks import ColumnBlock
from efface.parts.sparsity.project import pattern_mask
from efface.parts.timing import Timing
from efface.verbs import bench as benches
from efface.verbs.inputs import drawn


def build():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.Flatten()),
        *(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3)),
    )


def masked(net, density=0.5, ops=()):
    """Return a plan that masks every weight of `net` at random."""
    draw = torch.Generator().manual_seed(1)
    weights = {name: p for name, p in net.named_parameters() if p.ndim > 1}
    masks = [Mask(name, torch.rand(w.shape, generator=draw) < density) for name, w in weights.items()]
    return Plan.of(net, [*masks, *ops], method="half")


def small_task():
    draw = np.random.default_rng(0)
    pictures, labels = draw.random((40, 1, 4, 4), np.float32), np.arange(40) % 3
    return Task.from_arrays(
        (pictures[:20], labels[:20]), (pictures[20:30], labels[20:30]), (pictures[30:], labels[30:])
    )


@pytest.fixture
def quick(monkeypatch):
    """Make every form of column blocks win, or with False none."""

    def set_(won):
        def timed(calls, **_):
            seconds = {name: 1.0 if (name == "dense") == won else 0.5 for name in calls}
            return {name: Timing(s, s, s, 5) for name, s in seconds.items()}

        monkeypatch.setattr(blocks, "interleave", timed)

    set_(True)
    return set_


def outputs(net, plan, x):
    return plan.apply(copy.deepcopy(net)).eval()(x)


def test_a_plan_is_measured_layer_by_layer_and_the_model_stays():
    net = build()
    before = copy.deepcopy(net.state_dict())
    told = []
    measured = bench(
        net, masked(net), data=small_task(), shape=(2, 1, 4, 4), seconds=0, progress=lambda *step: told.append(step)
    )
    assert [layer.name for layer in measured.layers] == ["0", "2", "4", "6"]
    assert [layer.kind for layer in measured.layers] == ["Conv2d", "Conv2d", "Linear", "Linear"]
    assert all(0.2 < layer.density < 0.8 for layer in measured.layers)
    assert all(layer.before.seconds > 0 and layer.after.runs >= 5 for layer in measured.layers)
    assert measured.shapes == [[2, 1, 4, 4]]
    assert measured.cost.flops == 2 * 2 * (16 * 9 * 6 + 16 * 6 * 4 + 64 * 8 + 8 * 3)
    assert 0 <= measured.score_after.accuracy <= 1
    assert json.loads(json.dumps(measured.as_dict()))["speedup"] == measured.speedup
    assert [share for share, _ in told] == sorted(share for share, _ in told)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())


@pytest.mark.parametrize(
    ("ops", "after", "says"),
    [
        ((), 1.0, "zeros in a dense tensor"),
        ((Bypass("1"),), 1.0, "There is no speed-up"),
        ((), 0.5, None),
    ],
)
def test_no_speed_up_is_said_honestly(monkeypatch, ops, after, says):
    def timed(calls, **_):
        for _ in range(4):
            for call in calls.values():
                call()
        return {name: Timing(s, s, s, 4) for name, s in zip(calls, (1.0, after), strict=True)}

    monkeypatch.setattr(benches, "interleave", timed)
    net = build()
    plan = masked(net, ops=ops)
    notes = bench(net, plan, shape=(1, 1, 4, 4)).notes
    assert (says is None and notes == ()) or says in notes[0]
    tried = replace(plan, made_by=plan.made_by | {"block": 256})
    assert not any("--export" in note for note in bench(net, tried, shape=(1, 1, 4, 4)).notes)


def test_what_only_masks_gets_its_columns_back_whole(quick):
    net, x = build(), torch.randn(3, 1, 4, 4)
    plan = masked(net)
    made = export_blocks(net, plan, shape=(1, 1, 4, 4), block=4, include=["2", "4", "6"])
    assert [layer.form for layer in made.replaced] == ["groups", "rows", "rows"]
    assert made.revived
    dense, edited = copy.deepcopy(net), made.plan.apply(copy.deepcopy(net))
    masks = {op.target: op.keep for op in plan.ops}
    with torch.no_grad():
        dense[0].weight *= masks["0.weight"]  # not included, so still masked
        for name in ("2", "4", "6"):
            layer = dense.get_submodule(name)
            layer.weight *= pattern_mask(edited.get_submodule(name).columns, tuple(layer.weight.shape))
    assert isinstance(edited[4], ColumnBlock)
    torch.testing.assert_close(edited(x), dense(x))


def test_what_was_trained_under_its_mask_keeps_its_zeros(quick):
    net, x = build(), torch.randn(3, 1, 4, 4)
    keep = torch.rand(8, 64, generator=torch.Generator().manual_seed(0)) < 0.5
    plan = Plan.of(net, [Delta.set("4.weight", torch.randn(8, 64), keep), Delta.set("4.bias", torch.ones(8))])
    made = export_blocks(net, plan, shape=(1, 1, 4, 4), block=4)
    assert not made.revived
    (row,) = made.layers
    assert (row.name, row.columns) == ("4", 0.5)
    assert row.density == float(keep.float().mean())
    trained, edited = plan.apply(copy.deepcopy(net)), made.plan.apply(copy.deepcopy(net))
    with torch.no_grad():
        trained[4].weight *= pattern_mask(edited[4].columns, (8, 64))
    assert made.coverage == pytest.approx(float((trained[4].weight != 0).sum() / keep.sum()))
    torch.testing.assert_close(edited(x), trained(x))


def test_masks_of_layers_that_then_lose_channels_become_blocks_of_what_is_left(quick):
    net, x = build().eval(), torch.randn(3, 1, 4, 4)
    graph = channel_graph(net, (x,))
    drops = plan_removal(graph, {name: np.arange(group.size) % 2 == 0 for name, group in graph.groups.items()})
    plan = masked(net, ops=drops)
    made = export_blocks(net, plan, shape=(1, 1, 4, 4), block=4, columns=1.0)
    assert {layer.name for layer in made.replaced} == {"0", "2", "4", "6"}
    assert {op.target for op in made.plan.ops if isinstance(op, Drop)} == {op.target for op in drops}
    torch.testing.assert_close(outputs(net, made.plan, x), outputs(net, plan, x))


def test_all_columns_keep_all_of_the_mask_and_scores_are_told(quick):
    net = build()
    made = export_blocks(net, masked(net), data=small_task(), columns=1.0)
    assert {layer.coverage for layer in made.layers} == {1.0}
    assert made.score_after == made.score_original  # all weights are back
    assert made.as_dict()["score_before"].keys() == {"accuracy", "loss"}
    assert json.loads(json.dumps(made.as_dict()))["coverage"] == 1


def test_layers_that_are_not_quicker_stay_masked(quick):
    quick(False)
    net, x = build(), torch.randn(3, 1, 4, 4)
    plan = masked(net)
    made = export_blocks(net, plan, shape=(1, 1, 4, 4))
    assert made.replaced == ()
    assert len(made.layers) == 4
    assert torch.equal(outputs(net, made.plan, x), outputs(net, plan, x))


def test_tied_grouped_and_foreign_layers_are_left_alone(quick):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.tied, self.plain = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
            self.tied.weight = self.first.weight
            self.grouped, self.attention = nn.Conv1d(4, 4, 1, groups=2), nn.MultiheadAttention(4, 1)

        def forward(self, x):
            x = self.plain(self.tied(self.first(x)))
            return self.attention(x, x, x)[0] + self.grouped(x.t()).t()

    net = Odd()
    made = export_blocks(net, masked(net), shape=(3, 4), columns=0.5)
    assert [layer.name for layer in made.layers] == ["plain"]


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda net: bench(net, masked(net)), UsageError, "not known"),
        (lambda net: bench(net, masked(net), shape=(1, 7)), UsageError, "does not take"),
        (lambda net: bench(net, masked(nn.Linear(2, 2)), shape=(1, 1, 4, 4)), PlanError, "another model"),
        (lambda net: bench(net, masked(net), shape=(1, 1, 4, 4), threads=0), UsageError, "0 threads"),
        (lambda net: export_blocks(net, masked(net), columns=0.0), UsageError, "share of the columns"),
        (lambda net: export_blocks(net, masked(net), columns=1.5), UsageError, "share of the columns"),
        (lambda net: export_blocks(net, masked(net), shape=(1, 1, 4, 4), include=["9"]), UsageError, "called '9'"),
        (
            lambda net: export_blocks(net, Plan.of(net, [Bypass("1")]), shape=(1, 1, 4, 4)),
            UsageError,
            "masks no layer",
        ),
        (lambda net: sensitivity(net, shape=(1, 1, 4, 4), sparsities=(1.2,)), UsageError, "no sparsities"),
    ],
)
def test_what_cannot_be_measured_is_refused(call, error, says):
    net = build()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(error, match=says):
        call(net)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_weights_alone_cannot_be_measured(tmp_path):
    save_weights(tmp_path / "w", build().state_dict(), {})
    with pytest.raises(UsageError, match="cannot be run"):
        sensitivity(tmp_path / "w" / "weights.safetensors")


def test_inputs_are_drawn_by_seed_in_the_form_that_is_known():
    net = build().to(torch.bfloat16)
    opened = Opened(net, "net", "module", lambda *_: None)
    (x,) = drawn(opened, None, (2, 1, 4, 4), seed=0)
    assert (x.dtype, x.shape) == (torch.bfloat16, (2, 1, 4, 4))
    assert x.float().std() > 0.5
    assert torch.equal(drawn(opened, None, (2, 1, 4, 4), 0)[0], x)
    assert not torch.equal(drawn(opened, None, (2, 1, 4, 4), 1)[0], x)
    words = replace(opened, example=(torch.ones(1, 8, dtype=torch.long), 3))
    tokens, time = drawn(words, None, (2, 5), 0)
    assert (tokens.dtype, tokens.shape, time) == (torch.int64, (2, 5), 3)
    assert set(tokens.flatten().tolist()) <= {0, 1}  # the vocabulary is not known


def test_sensitivity_finds_what_is_safe_and_puts_the_weights_back(tmp_path):
    net = build()
    with torch.no_grad():
        net[4].weight.flatten()[: 8 * 64 // 2] = 1e-9  # half of this layer does nothing
    before = copy.deepcopy(net.state_dict())
    found = sensitivity(net, shape=(1, 1, 4, 4), sparsities=(0.9, 0.5, 0.0), include=["4", "6"], tolerance=1e-3)
    assert (found.measure, found.base, found.sparsities) == ("output error", 0.0, (0.0, 0.5, 0.9))
    curves = {layer.name: layer for layer in found.layers}
    assert list(curves) == ["4.weight", "6.weight"]
    assert curves["4.weight"].safe == 0.5
    assert curves["6.weight"].safe == 0.0
    assert curves["4.weight"].values[0] == 0
    assert curves["4.weight"].values[2] > 1e-3
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    found.plot(tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_sensitivity_with_a_task_is_its_accuracy():
    task = small_task()
    found = sensitivity(build(), data=task, sparsities=(0, 1), include=["6"], limit=5)
    assert found.measure == "accuracy"
    assert found.base == found.layers[0].values[0] == task.score(build(), "val", 5).accuracy
    worse = found.layers[0].values[1] < found.base - found.tolerance
    assert found.layers[0].safe == (0 if worse else 1)


@pytest.fixture
def efface(capsys, monkeypatch, tmp_path):
    """Run `efface bench` on what :func:`build` builds, beside a plan for it."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        code = cli.run(["bench", f"{__name__}:build", *words])
        return code, *capsys.readouterr()

    masked(build()).save(tmp_path / "half" / "plan")  # where `efface shrink` puts it
    return run


def test_the_command_measures_exports_and_writes_a_report(efface, quick, tmp_path):
    words = ["half", "--input", "2x1x4x4", "--seconds", "0", "--block", "4", "-o", "out"]
    code, out, err = efface(*words, "--export", "column-blocks", "--sensitivity", "--report")
    assert (code, err) == (0, "")
    for text in ("whole model", "ColumnBlockLinear", "4 of 4 masked layers are quicker", "Safe: within", "out/plan"):
        assert text in out
    names = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*")}
    assert names == {
        "bench.json", "report.html", "sensitivity.png", "times.png", "plan/plan.json", "plan/plan.safetensors"
    }  # fmt: skip
    figures = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert list(figures) == ["sensitivity", "export", "bench"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/png") == 2
    assert "ColumnBlockConv2d" in page

    assert efface(*words)[0] == 1  # the folder is taken
    code, out, err = efface("out", *words[1:], "--overwrite", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["bench"]["layers"][2]["kind"] == "ColumnBlockLinear"


def test_the_command_writes_nothing_unasked(efface, quick, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    assert efface("half", "--input", "1,1,4,4", "--seconds", "0")[0] == 0
    assert sorted(tmp_path.rglob("*")) == before

    quick(False)
    code, out, _ = efface("half", "--input", "1x1x4x4", "--seconds", "0", "--export", "column-blocks")
    assert code == 0
    assert "0 of 4 masked layers" in out
    assert [p.name for p in (tmp_path / "build_bench").iterdir()] == ["bench.json"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "Give a PLAN"),
        (["--export", "column-blocks"], "needs a plan"),
        (["half"], "--input 1x3x224x224"),
        (["half", "--input", "1x-1"], "not a shape"),
        (["half", "--input", "1xa"], "whole numbers"),
        (["half", "--input", "1x1x4x4", "--export", "csr"], "column-blocks"),
        (["--sensitivity", "--input", "1x1x4x4", "--include", "fc"], "'fc'"),
    ],
)
def test_wrong_words_are_a_usage_error(efface, words, says):
    code, out, err = efface(*words)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert says in err
