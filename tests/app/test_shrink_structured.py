"""`efface shrink` with methods that take channels gives a small dense model in the form the user has it."""

import json

import pytest
import torch
from safetensors.torch import load_file

import efface
from efface.app import cli
from efface.core.models import open_model
from efface.core.plan import Plan
from efface.parts import onnx
from efface.parts.onnx import Parity

NETS = """
from torch import nn
def small():
    layers = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 3), nn.ReLU()
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(96, 4))
"""
CROP = "--method", "precropping", "--set", "rule=erk", "--set", "parameters=0.4", "--set", "multiple_of=2"


@pytest.fixture
def here(tmp_path, monkeypatch):
    name = f"cropped_{tmp_path.name}"
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


def small():
    space = {}
    exec(NETS, space)
    return space["small"]()


def test_a_factory_comes_back_smaller_with_what_replays_it(here, run, tmp_path):
    code, out, _ = run(here, *CROP, "--input", "2x3x6x6", "-o", "out", "--report")
    assert code == 0
    for words in (
        "Channels that go together",
        "16 x 3 x 3 x 3 → ",
        "FLOPs",
        "A call with a batch of 2",
        "from scratch",
    ):
        assert words in out
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "card.json", "plan", "report.html", "report.json", "weights.safetensors"
    }  # fmt: skip
    report = json.loads((tmp_path / "out/report.json").read_text())
    cost = report["cost"]
    assert cost["kept"] <= 0.4 * cost["parameters"]
    assert cost["dense_after"] < cost["dense"]
    assert cost["flops_after"] < cost["flops"]
    assert all(row["after"] < row["before"] for row in report["channels"])
    assert report["latency"]["before"] > 0
    weights = load_file(tmp_path / "out/weights.safetensors")
    assert sum(w.numel() for name, w in weights.items() if "running" not in name and "num" not in name) == cost["kept"]
    net = Plan.load(tmp_path / "out/plan").apply(small(), strict=False)  # whatever its first weights were
    assert all(torch.equal(weights[name], tensor) for name, tensor in net.state_dict().items())
    shapes = {layer["name"]: layer["shape_after"] for layer in report["layers"]}
    assert shapes == {name: list(net.get_parameter(name).shape) for name in shapes}


def test_what_was_shrunk_is_inspected_measured_and_shrunk_again(here, run, tmp_path, capsys):
    example = ("--input", "1x3x6x6")
    assert run(here, *CROP, *example, "-o", "one")[0] == 0
    assert run(here, "--weights", "one", *CROP, "--set", "parameters=0.6", *example, "-o", "two")[0] == 0
    nets = {name: open_model(here, tmp_path / name).model for name in ("one", "two")}
    for name, net in nets.items():
        weights = load_file(tmp_path / name / "weights.safetensors")
        assert all(torch.equal(weights[key], tensor) for key, tensor in net.state_dict().items())
        assert cli.run(["inspect", here, "--weights", name, *example, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["parameters"] == sum(p.numel() for p in net.parameters())
    assert nets["two"][0].out_channels < nets["one"][0].out_channels < 16
    assert (
        cli.run(["bench", here, "two", "--weights", "one", *example, "--seconds", "0.01"]) == 0
    )  # the second step alone


def test_a_dry_run_shows_the_channels_and_writes_nothing(here, run, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    code, out, _ = run(here, *CROP, "--input", "1x3x6x6", "--dry-run", "--json")
    told = json.loads(out)
    assert (code, told["out"], told["onnx"]) == (0, None, None)
    assert {row["group"] for row in told["channels"]} == {"0", "3"}
    assert sorted(p for p in tmp_path.rglob("*") if "__pycache__" not in str(p)) == before


def test_onnx_is_written_beside_the_model(here, run, tmp_path, monkeypatch):
    asked = []

    def export(model, args, path, *, overwrite):
        asked.append((sum(p.numel() for p in model.parameters()), args[0].shape, overwrite))
        return Parity(path, (1, 2), 2e-7)

    monkeypatch.setattr(onnx, "export_onnx", export)
    code, out, err = run(here, *CROP, "--input", "1x3x6x6", "-o", "out", "--onnx", "net.onnx")
    assert code == 0
    assert "ONNX: net.onnx, differs by 2.0e-07 of the largest output at batches of 1 and 2" in " ".join(out.split())
    assert "Shrunk model: out" in err
    kept = json.loads((tmp_path / "out/report.json").read_text())["cost"]["kept"]
    assert asked == [(kept, (1, 3, 6, 6), False)]


def test_a_module_is_cropped_in_place_and_can_be_had_back():
    net = small().eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    shrunk = efface.shrink(
        net, method="precropping", params={"rule": "proxy", "multiple_of": 1}, example=(torch.zeros(1, 3, 6, 6),)
    )
    assert shrunk.model is net
    assert net(torch.zeros(3, 3, 6, 6)).shape == (3, 4)
    assert shrunk.report.sparsity > 0.7
    shrunk.plan.undo(net)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "its input is not known"),
        (("--input", "1x3x6x6", "--set", "parameters=0.01"), "the smallest network"),
        (("--input", "1x3x6x6", "--set", "parameters=1.5"), "outside"),
        (("--input", "1x3x6x6", "--set", "rule=snip"), "Give data"),
        (("--input", "1x5x6x6"), "does not take the input"),
        (("--sparsity", "0.5", "--set", "parameters=0.5"), "parameters: is given twice"),
    ],
)
def test_what_is_wrong_is_said_in_a_line_and_nothing_is_written(here, run, tmp_path, words, says):
    code, out, err = run(here, "--method", "precropping", *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err
    assert not list(tmp_path.glob("*shrunk*"))


def test_a_bare_checkpoint_has_no_channels_to_follow(run, tmp_path):
    from safetensors.torch import save_file

    save_file({"a.weight": torch.randn(8, 8)}, tmp_path / "net.safetensors")
    code, _, err = run(tmp_path / "net.safetensors", "--method", "precropping")
    assert (code, err.count("\n")) == (2, 1)


def test_an_onnx_file_that_is_there_stops_the_work_before_it_begins(here, run, tmp_path):
    (tmp_path / "net.onnx").touch()
    code, _, err = run(here, *CROP, "--input", "1x3x6x6", "--onnx", "net.onnx")
    assert (code, "exists already" in err) == (1, True)
    assert not list(tmp_path.glob("*shrunk*"))
