"""A network written as ONNX gives what the network gives, at any batch size, or there is no file."""

import sys

import onnxruntime
import pytest
import torch
from torch import nn

from efface.errors import InputError, MissingExtraError, OutputError
from efface.parts import onnx
from efface.parts.onnx import export_onnx

EXAMPLE = (torch.ones(1, 3, 6, 6),)


class Batched(nn.Module):
    """Holds its batch size in its code."""

    def forward(self, x):
        return 2 * x.view(1, 12)


class Alien(nn.Module):
    def forward(self, x):
        return torch.linalg.eigvalsh(x)


def net():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 2)
    return nn.Sequential(*layers)


def test_the_file_gives_the_same_at_any_batch_size_and_the_network_stays(tmp_path):
    model, path = net(), tmp_path / "folder/net.onnx"
    parity = export_onnx(model, EXAMPLE, path)
    assert (parity.path, parity.batches) == (path, (1, 2))
    assert parity.difference < 1e-5
    assert model.training
    assert [p.name for p in path.parent.iterdir()] == ["net.onnx"]
    session, x = onnxruntime.InferenceSession(path), torch.randn(5, 3, 6, 6)
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), model.eval()(x).detach(), rtol=1e-4, atol=1e-5)
    with pytest.raises(OutputError, match="exists already"):
        export_onnx(model, EXAMPLE, path)


def test_a_batch_size_that_is_part_of_the_network_is_left_alone(tmp_path):
    assert export_onnx(Batched(), (torch.ones(1, 12),), tmp_path / "net.onnx").batches == (1,)


def test_an_operation_without_a_form_in_onnx_is_named_and_nothing_is_written(tmp_path):
    with pytest.raises(InputError, match=r"aten\._linalg_eigh has no form"):
        export_onnx(Alien(), (torch.eye(3)[None],), tmp_path / "net.onnx")
    assert not any(tmp_path.iterdir())


def test_a_file_that_gives_something_else_is_not_kept(tmp_path, monkeypatch):
    class Wrong:
        def save(self, path, external_data):
            path.write_bytes(b"")

    monkeypatch.setattr(onnx, "_converted", lambda *args, **kwargs: Wrong())
    with pytest.raises(InputError, match="onnxruntime does not take the file"):
        export_onnx(net(), EXAMPLE, tmp_path / "net.onnx")
    monkeypatch.setattr(onnx, "_difference", lambda *args: 0.5)
    with pytest.raises(InputError, match="differs from the network by 5"):
        export_onnx(net(), EXAMPLE, tmp_path / "net.onnx")
    assert not any(tmp_path.iterdir())


def test_a_number_format_that_cannot_be_compared_is_refused(tmp_path):
    with pytest.raises(InputError, match="bfloat16"):
        export_onnx(net().bfloat16(), EXAMPLE, tmp_path / "net.onnx")


def test_the_extra_is_named_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingExtraError, match=r"onnxscript.*efface\[onnx\]"):
        export_onnx(net(), EXAMPLE, tmp_path / "net.onnx")
