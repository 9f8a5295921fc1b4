"""``efface inspect`` says which channels go together, in words, as JSON and as a picture."""

import json
from pathlib import Path

import pytest
import torch

import efface
from efface.app.cli import run
from efface.parts.nn.resnets import resnet_cifar

MODEL = "efface.parts.nn.resnets:resnet_cifar"


def test_table_names_groups_and_costs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", MODEL, "--input", "1x3x16x16", "--frozen"]) == 0
    told = capsys.readouterr().out
    assert "12 groups can lose channels" in told
    assert "layer3.0.conv1" in told
    assert "part of the output" in told


def test_json_and_picture(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "graph.svg"
    assert run(["inspect", MODEL, "--input", "1x3x16x16", "--json", "-o", str(out)]) == 0
    told = json.loads(capsys.readouterr().out)
    rows = {row["name"]: row for row in told["groups"]}
    assert rows["conv1"]["channels"] == 16
    assert rows["conv1"]["frozen"] is None
    assert 0 < rows["conv1"]["flops"] < told["flops"]
    assert out.read_text().startswith("<?xml")


def test_python_api_leaves_the_model_alone() -> None:
    net = resnet_cifar(8, 8)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = efface.inspect(net, example=(torch.randn(1, 3, 8, 8),))
    assert len(found.free) == 6
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_wrong_input_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", MODEL, "--input", "1x5x16x16"]) == 2
    assert "does not take the input" in capsys.readouterr().err


NETS = """
from torch import nn
class Branching(nn.Conv2d):
    def forward(self, x):
        y = super().forward(x)
        return y * 2 if y.sum() > 0 else y
class Adding(nn.Conv2d):
    def forward(self, x, y):
        return super().forward(x) + y
branching, adding = lambda: Branching(3, 4, 1), lambda: Adding(3, 4, 1)
"""


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("branching", ("cannot be exported", ":6: return y * 2 if y.sum() > 0", "no tensor's value decides")),
        ("adding", ("missing 1 required positional argument: 'y'", "Wrap it in a factory")),
    ],
)
@pytest.mark.parametrize("command", [["inspect"], ["shrink", "--method", "precropping", "--set", "rule=erk"]])
def test_what_cannot_be_followed_is_told_in_one_line(command, name, words, tmp_path, monkeypatch, capfd) -> None:
    module = f"nets_{tmp_path.name}".replace("-", "_").replace("[", "_").replace("]", "_")
    (tmp_path / f"{module}.py").write_text(NETS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert run([*command, f"{module}:{name}", "--input", "1x3x8x8"]) in (2, 3)
    told = capfd.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert all(word in told.err for word in words)
