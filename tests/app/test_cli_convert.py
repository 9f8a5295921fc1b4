"""Official checkpoints come in through `efface convert`, and only whole ones of the right network."""

import json

import pytest
import torch

from efface.app import cli
from efface.core.catalogue import get
from efface.core.trained import load

SMALL = get("strokefill")(**get("strokefill").small)
SETTINGS = [word for k, v in SMALL.small.items() for word in ("--set", f"{k}={list(v) if isinstance(v, tuple) else v}")]


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "official.pth"
    torch.save({"state_dict": {f"module.{k}": v for k, v in SMALL.build().state_dict().items()}}, path)
    return path


def convert(checkpoint, out, *words):
    return cli.run(["convert", str(checkpoint), "--method", "strokefill", "-o", str(out), *words])


def test_a_checkpoint_becomes_a_weights_folder(checkpoint, tmp_path, capsys):
    assert convert(checkpoint, tmp_path / "w", *SETTINGS, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"folder": str(tmp_path / "w")}
    trained = load("strokefill", weights=tmp_path / "w", device="cpu")
    assert trained.method == SMALL
    stored = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(stored[f"module.{k}"], v) for k, v in trained.net.state_dict().items())


def test_weights_of_another_size_are_refused_and_nothing_is_written(checkpoint, tmp_path, capsys):
    assert convert(checkpoint, tmp_path / "w") == 3
    assert "another shape" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


def test_weights_in_the_way_are_kept_unless_told_otherwise(checkpoint, tmp_path, capsys):
    assert convert(checkpoint, tmp_path / "w", *SETTINGS) == 0
    before = (tmp_path / "w/card.json").stat().st_mtime_ns
    assert convert(checkpoint, tmp_path / "w", *SETTINGS) == 1
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "w/card.json").stat().st_mtime_ns == before
    assert convert(checkpoint, tmp_path / "w", *SETTINGS, "--overwrite") == 0


@pytest.mark.parametrize(
    "content", [b"", b"not a checkpoint", b"\x80\x02cos\nsystem\n."], ids=["empty", "text", "code"]
)
def test_what_is_no_checkpoint_is_refused(tmp_path, capsys, content):
    path = tmp_path / "strange.pth"
    path.write_bytes(content)
    assert convert(path, tmp_path / "w", *SETTINGS) == 3
    assert str(path) in capsys.readouterr().err
    assert not (tmp_path / "w").exists()


def test_a_missing_file_is_refused(tmp_path, capsys):
    assert convert(tmp_path / "none.pth", tmp_path / "w", *SETTINGS) == 3
    assert "no such file" in capsys.readouterr().err
