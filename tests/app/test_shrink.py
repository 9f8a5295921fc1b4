"""`efface shrink` and `efface.shrink` take weights out of what users have, or say what is wrong and change nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import efface
from efface.app import cli
from efface.core.catalogue import entries
from efface.core.ops import Mask
from efface.core.plan import Plan
from efface.errors import DataError, EffaceError, InputError, OutputError, UsageError
from efface.parts.data.tasks import Task
from efface.verbs.shrink import _editor

NETS = """
import torch
def small():
    layers = torch.nn.Flatten(), torch.nn.Linear(48, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2)
    return torch.nn.Sequential(*layers)
"""
QUICK = {"steps": 2, "batch": 4, "optimizer": "adamw", "lr": 1e-3}


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    tensors = {"a.weight": torch.randn(8, 10), "a.bias": torch.randn(8), "b.weight": torch.randn(4, 8).half()}
    save_file(tensors, tmp_path / "net.safetensors", metadata={"made": "here"})
    return tmp_path / "net.safetensors"


@pytest.fixture
def pictures(tmp_path):
    """Write a folder of pictures in two classes, bright and dark."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 4)):
        for level, name in ((40, "dark"), (180, "bright")):
            folder = tmp_path / "pictures" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(level, level + 60, (4, 4, 3)).astype(np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "pictures"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Put a module with a factory into the current directory, and return the factory's name."""
    name = f"shrunk_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return f"{name}:small"


@pytest.fixture
def run(capsys):
    def run(*words):
        code = cli.run(["shrink", *map(str, words)])
        return code, *capsys.readouterr()

    return run


def files(folder):
    return {p: (p.stat().st_size, p.stat().st_mtime_ns) for p in Path(folder).rglob("*") if p.is_file()}


def small_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 6), nn.ReLU(), nn.Linear(6, 2))


def test_a_bare_checkpoint_comes_back_with_zeros_and_its_plan(checkpoint, run):
    before = files(checkpoint.parent)
    code, out, _ = run(checkpoint, "--sparsity", 0.5)
    assert code == 0
    folder = checkpoint.parent / "net_shrunk"
    assert str(folder) in out
    assert {p.name for p in folder.iterdir()} == {"net.safetensors", "plan", "report.json"}
    was, now = load_file(checkpoint), load_file(folder / "net.safetensors")
    assert {k: (t.shape, t.dtype) for k, t in was.items()} == {k: (t.shape, t.dtype) for k, t in now.items()}
    assert sum(int(now[f"{n}.weight"].count_nonzero()) for n in "ab") == 56
    assert all(torch.equal(now[k][now[k] != 0], was[k][now[k] != 0]) for k in now)
    assert torch.equal(was["a.bias"], now["a.bias"])
    assert before.items() <= files(checkpoint.parent).items()
    plan = Plan.load(folder / "plan")
    replayed = efface.shrink(checkpoint, sparsity=0.5).plan
    assert plan.after.sha256 == replayed.after.sha256


def test_a_bare_checkpoint_is_never_edited_in_memory(checkpoint, monkeypatch):
    monkeypatch.setattr(Mask, "apply", None)
    report = efface.shrink(checkpoint, sparsity=0.5).report
    assert (sum(report.before), sum(report.after)) == (112, 56)


def test_a_second_result_takes_a_name_of_its_own(checkpoint, run):
    for _ in range(2):
        assert run(checkpoint)[0] == 0
    assert (checkpoint.parent / "net_shrunk-2/report.json").is_file()


def test_a_dry_run_shows_every_layer_and_writes_nothing(checkpoint, run):
    before = files(checkpoint.parent)
    code, out, _ = run(checkpoint, "--sparsity", 0.5, "--dry-run")
    assert code == 0
    assert files(checkpoint.parent) == before
    for words in ("a.weight", "b.weight", "8 x 10", "share of kept", "50.00%", "parameters", "1 MAC = 2 FLOPs"):
        assert words in out


def test_json_tells_the_same_to_programs(checkpoint, run):
    code, out, err = run(checkpoint, "--sparsity", 0.75, "--exclude", "b", "-o", checkpoint.parent / "o", "--json")
    told = json.loads(out)
    assert (code, err) == (0, "")
    assert told["sparsity"] == pytest.approx(0.75 * 80 / 112)
    assert {layer["name"]: layer["kept"] for layer in told["layers"]} == {"a.weight": 20, "b.weight": 32}
    assert told["cost"]["parameters"] == 120
    stored = json.loads((checkpoint.parent / "o/report.json").read_text())
    assert {k: v for k, v in stored.items() if k not in ("edges", "before", "after")}.items() <= told.items()
    assert "edges" not in told
    assert sum(stored["after"]) == 52 == sum(stored["before"]) - 60


def test_a_factory_is_trained_scored_and_reported(here, pictures, run, tmp_path):
    settings = [word for k, v in QUICK.items() for word in ("--set", f"{k}={v}")]
    code, out, _ = run(here, "--data", pictures, "--sparsity", 0.5, "--report", "-o", "out", *settings)
    assert code == 0
    assert "Accuracy on pictures" in out
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["score_after"]["accuracy"] <= 1
    assert report["cost"]["flops_after"] < report["cost"]["flops"] == 2 * (48 * 6 + 6 * 2)
    page = (tmp_path / "out/report.html").read_text()
    assert page.count("data:image/png") == 3
    again = efface.shrink(here, weights=tmp_path / "out", sparsity=0.5, example=(torch.zeros(1, 3, 4, 4),))
    assert again.report.before[40] + sum(again.report.before) > 0
    assert int(again.model[1].weight.count_nonzero() + again.model[3].weight.count_nonzero()) == 150


def test_a_module_is_changed_in_place_and_can_be_had_back():
    net = small_net()
    before = {name: p.clone() for name, p in net.state_dict().items()}
    shrunk = efface.shrink(net, sparsity=0.8, example=(torch.zeros(1, 48),))
    assert shrunk.model is net
    assert sum(int(net[i].weight.count_nonzero()) for i in (1, 3)) == 60
    assert shrunk.report.sparsity == pytest.approx(0.8)
    shrunk.plan.undo(net)
    assert all(torch.equal(before[name], p) for name, p in net.state_dict().items())


def test_scoring_on_a_task_leaves_modes_and_gradients(tmp_path):
    net = small_net().train()
    net[1].eval()
    pictures = np.random.default_rng(0).integers(0, 255, (20, 3, 4, 4)).astype(np.uint8)
    task = Task.from_arrays((pictures, np.arange(20) % 2), (pictures, np.arange(20) % 2))
    shrunk = efface.shrink(net, sparsity=0.5, data=task, params=QUICK)
    assert (net.training, net[1].training) == (True, False)
    assert all(p.grad is None for p in net.parameters())
    assert shrunk.report.data == "arrays"
    saved = shrunk.save(tmp_path / "out")
    assert torch.equal(load_file(saved / "weights.safetensors")["1.weight"], net[1].weight)


def test_tied_weights_count_once_and_stay_tied(tmp_path):
    net = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
    net[1].weight = net[0].weight
    shrunk = efface.shrink(net, sparsity=0.6)
    assert shrunk.report.layers[0].kept == 10
    assert len(shrunk.report.layers) == 1
    assert shrunk.report.notes[0] == "1.weight: tied to 0.weight"
    assert net[1].weight is net[0].weight


def test_empty_layers_are_passed_over(tmp_path):
    save_file({"a.weight": torch.empty(0, 3), "b.weight": torch.randn(10, 10)}, tmp_path / "n.safetensors")
    report = efface.shrink(tmp_path / "n.safetensors", sparsity=0.5).report
    assert [layer.name for layer in report.layers] == ["b.weight"]
    assert report.notes == ("Without weights, and passed over: a.weight",)


def test_statistics_of_norms_are_no_parameters_of_a_bare_checkpoint(tmp_path):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    save_file(net.state_dict(), tmp_path / "n.safetensors")
    assert efface.shrink(tmp_path / "n.safetensors", sparsity=0.5).report.cost.parameters == 36 + 4 + 8


@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("global-mp", {"sparsity": 0.9}),
        ("random_search", {"node_sparsity": 0.9}),
        ("oto", {"target": 0.9}),
        ("finercut", {"ratio": 0.9}),
        ("cfsp", {"keep": 0.1}),
        ("precropping", {"parameters": 0.1}),
    ],
)
def test_sparsity_is_the_share_that_goes_whatever_the_method_calls_it(method, given):
    assert given.items() <= _editor(method, 0.9, {}, {}).params().items()
    with pytest.raises(UsageError, match="given twice"):
        _editor(method, 0.9, {}, dict(given))


def test_every_method_says_how_much_goes():
    for entry in entries().values():
        if entry.subject == "networks":
            method = entry.load()
            assert (method.stays or method.goes) in {param.name for param in entry.params}


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda net: efface.shrink(5), "model: the model is given as int"),
        (lambda net: efface.shrink(None), "given as NoneType"),
        (lambda net: efface.shrink(net.state_dict()), "given as OrderedDict.*an nn.Module"),
        (lambda net: efface.shrink(net, data=3), "data are given as int"),
        (lambda net: efface.shrink(net, example=3), "inputs are given as int"),
        (lambda net: efface.shrink(net).plan.cost(net, 3), "inputs are given as int"),
        (lambda net: efface.bench(net, Plan.of(net, []), example=3), "inputs are given as int"),
    ],
)
def test_what_is_of_a_wrong_type_is_said(call, says):
    with pytest.raises(UsageError, match=says):
        call(small_net())


def test_a_tensor_is_the_only_input():
    net, x = small_net(), torch.zeros(3, 48)
    shrunk = efface.shrink(net, sparsity=0.5, example=x)
    shrunk.plan.undo(net)
    assert shrunk.report.cost == shrunk.plan.cost(net, x) == shrunk.plan.cost(net, [x])
    assert shrunk.report.cost.flops == 3 * 2 * (48 * 6 + 6 * 2)


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("--sparsity", "1.0"), 2, "outside [0.0, 0.999999]"),
        (("--sparsity", "nan"), 2, "outside"),
        (("--sparsity", "-0.1"), 2, "outside"),
        (("--include", "c.*"), 2, "is called 'c.*'. Known: a"),
        (("--exclude", "a.wieght"), 2, "Did you mean a.weight"),
        (("--exclude", "*"), 2, "every prunable weight is excluded"),
        (("--method", "global-pm"), 2, "Did you mean global-mp"),
        (("--method", "strokefill"), 2, "no method that takes weights out"),
        (("--method", "fineprune"), 2, "Did you mean finercut?"),
        (("--method", "cfsp", "--include", "a"), 2, "include: cfsp has no such option"),
        (("--sparsity", "0.999"), 2, "Keep at least 2"),
        (("--dry-run", "--report"), 2, "--dry-run: writes nothing"),
        (("--dry-run", "-o", "new"), 2, "--dry-run: writes nothing"),
        (("--dry-run", "--onnx", "new.onnx"), 2, "--dry-run: writes nothing"),
        (("--method", "lth"), 2, "needs data"),
        (("--set", "min_kept=3"), 2, "Did you mean min_keep"),
        (("--set", "sparsity=0.3", "--sparsity", "0.4"), 2, "given twice"),
        (("--set", "min_keep=50"), 2, "lower the minimum to"),
        (("--data", "shapes"), 2, "cannot be run"),
        (("--input", "1x10"), 2, "cannot be run"),
        (("--input", "1xa"), 2, "not a shape of whole numbers"),
        (("--weights", "other.safetensors"), 2, "weights of its own"),
        (("--set", "schedule=gradual"), 2, "Give data and steps"),
        (("--device", "tpu"), 2, "not available"),
        (("-o", "."), 1, "exists already"),
        (("-o", ".", "--overwrite"), 1, "holds something else"),
    ],
)
def test_what_is_wrong_is_said_and_nothing_is_written(checkpoint, run, monkeypatch, words, code, says):
    monkeypatch.chdir(checkpoint.parent)
    before = files(checkpoint.parent)
    got, out, err = run(checkpoint, *words)
    assert (got, out) == (code, "")
    assert says in err
    assert err.count("\n") == 1
    assert files(checkpoint.parent) == before


def test_an_input_is_drawn_for_flops_or_refused(here, run):
    code, out, _ = run(here, "--input", "1x3x4x4", "--dry-run")
    assert code == 0
    assert "FLOPs" in out
    code, _, err = run(here, "--input", "1x7", "--dry-run")
    assert (code, err.count("\n")) == (2, 1)
    assert "does not take the input" in err


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_and_the_model_is_untouched(bad):
    net = small_net()
    net[3].weight.data[0, 0] = bad
    before = net[1].weight.clone()
    with pytest.raises(InputError, match="NaN"):
        efface.shrink(net)
    assert torch.equal(net[1].weight, before)


def test_data_of_another_kind_is_refused(here, pictures):
    with pytest.raises(DataError, match="nowhere"):
        efface.shrink(here, data="nowhere")
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 1))
    with pytest.raises(UsageError, match="two pictures of 2 classes"):
        efface.shrink(net, data=pictures)
    with pytest.raises(UsageError, match="does not take pictures"):
        efface.shrink(nn.Sequential(nn.Linear(7, 2)), data=pictures)


def test_an_earlier_result_is_replaced_only_when_asked(checkpoint):
    folder = checkpoint.parent / "out"
    efface.shrink(checkpoint, sparsity=0.3).save(folder)
    shrunk = efface.shrink(checkpoint, sparsity=0.6)
    with pytest.raises(OutputError, match="exists already"):
        shrunk.save(folder)
    assert json.loads((folder / "report.json").read_text())["params"]["sparsity"] == 0.3
    shrunk.save(folder, overwrite=True)
    assert json.loads((folder / "report.json").read_text())["params"]["sparsity"] == 0.6


def test_a_checkpoint_that_changed_meanwhile_is_not_written(checkpoint):
    shrunk = efface.shrink(checkpoint)
    tensors = load_file(checkpoint)
    tensors["a.weight"] = tensors["a.weight"] + 1
    save_file(tensors, checkpoint.with_name("new.safetensors"))
    checkpoint.with_name("new.safetensors").replace(checkpoint)
    with pytest.raises(EffaceError, match="other weights"):
        shrunk.save(checkpoint.parent / "out")
    assert not (checkpoint.parent / "out").exists()
