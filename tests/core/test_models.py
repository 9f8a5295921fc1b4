"""A model is opened in the form its user has it, and written back in that form; strangers' code never runs."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from efface.core.models import open_model
from efface.errors import OutputError, UsageError, WeightsError
from efface.io.weights import load_weights

TENSORS = {
    "stem.weight": torch.arange(24.0).view(2, 3, 2, 2),
    "type.weight": torch.arange(6).view(2, 3).bfloat16(),  # a layer named like a method of nn.Module
    "type.bias": torch.zeros(2, dtype=torch.float16),
    "steps": torch.tensor([3]),
    "none": torch.empty(0, 4),
}
FACTORY = """
import torch
class Net(torch.nn.Sequential):
    @classmethod
    def tied(cls):
        net = cls(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
        net[1].weight = net[0].weight
        return net
build = lambda: Net(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
broken = lambda: 1 / 0
number = lambda: 3
size = 5
"""


def double(model):
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) and one[k].dtype == two[k].dtype for k in one)


@pytest.fixture
def bare(tmp_path):
    path = tmp_path / "net.safetensors"
    save_file(TENSORS, path, metadata={"made": "here"})
    return path


@pytest.fixture
def sharded(tmp_path):
    folder, files = tmp_path / "sharded", {"a.safetensors": ["stem.weight", "none"], "b.safetensors": ["type.weight"]}
    folder.mkdir()
    for file, names in files.items():
        save_file({name: TENSORS[name] for name in names}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, names in files.items() for name in names}}
    (folder / "net.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def factory(tmp_path, monkeypatch):
    """Return the name of a module in the current directory, a new one for each test."""
    name = f"nets_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_a_bare_file_is_a_tree_of_its_tensors_and_is_written_back_as_it_was(bare, tmp_path):
    opened = open_model(bare)
    assert (opened.name, opened.form, opened.example) == ("net", "safetensors", ())
    assert same(opened.model.state_dict(), TENSORS)
    opened.save(tmp_path / "out", double)
    assert same(load_file(tmp_path / "out/net.safetensors"), {
        name: t * 2 if t.is_floating_point() else t for name, t in TENSORS.items()
    })  # fmt: skip
    with safe_open(tmp_path / "out/net.safetensors", "pt") as file:
        assert file.metadata() == {"made": "here"}
    assert same(load_file(bare), TENSORS)
    assert same(opened.model.state_dict(), TENSORS)


def test_a_new_tensor_in_place_of_the_files_reaches_the_file_too(bare, tmp_path):
    def replace(model):
        model.stem.weight = nn.Parameter(torch.full_like(model.stem.weight, 7.0), requires_grad=False)

    open_model(bare).save(tmp_path / "out", replace)
    assert torch.all(load_file(tmp_path / "out/net.safetensors")["stem.weight"] == 7)


def test_shards_stay_shards(sharded, tmp_path):
    for spec in (sharded, sharded / "net.safetensors.index.json"):
        opened = open_model(spec)
        assert set(opened.model.state_dict()) == {"stem.weight", "none", "type.weight"}
    opened.save(tmp_path / "out", double)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(p.name for p in sharded.iterdir())
    assert torch.equal(load_file(tmp_path / "out/b.safetensors")["type.weight"], TENSORS["type.weight"] * 2)


def test_an_edit_that_fails_leaves_nothing_behind(bare, tmp_path):
    def fail(model):
        double(model)
        raise ValueError("no")

    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match="no"):
        open_model(bare).save(tmp_path / "out", fail)
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_in_the_way_is_kept(bare, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(OutputError):
            open_model(bare).save(tmp_path / "out", overwrite=overwrite)
    assert (tmp_path / "out/thesis.txt").read_text() == "years of work"


def test_a_module_and_a_factory_are_written_as_weights_that_the_factory_takes(factory, tmp_path):
    net = open_model(f"{factory}:build", seed=3)
    assert (net.name, net.form) == ("build", "factory")
    assert same(net.model.state_dict(), open_model(f"{factory}:build", seed=3).model.state_dict())
    assert not same(net.model.state_dict(), open_model(f"{factory}:build", seed=4).model.state_dict())
    net.save(tmp_path / "out", double)
    state, card = load_weights(tmp_path / "out")
    assert card["factory"] == f"{factory}:build"
    for weights in (tmp_path / "out", tmp_path / "out/weights.safetensors"):
        assert same(open_model(f"{factory}:build", weights).model.state_dict(), state)
    open_model(net.model).save(tmp_path / "again")
    assert same(load_weights(tmp_path / "again")[0], state)


def test_tied_weights_may_be_stored_once(factory, tmp_path):
    save_file({"0.weight": torch.eye(3), "0.bias": torch.zeros(3), "1.bias": torch.ones(3)}, tmp_path / "w.safetensors")
    model = open_model(f"{factory}:Net.tied", tmp_path / "w.safetensors").model
    assert model[1].weight is model[0].weight
    assert torch.equal(model[1].weight, torch.eye(3))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("broken", "ZeroDivisionError"),
        ("number", "gives a int, not an nn.Module"),
        ("size", "is a int, not a function"),
        ("biuld", "It has: "),
        ("", "is not module:factory"),
    ],
)
def test_what_is_wrong_with_a_factory_is_said(factory, name, says):
    with pytest.raises(UsageError) as raised:
        open_model(f"{factory}:{name}")
    assert says in str(raised.value)


@pytest.mark.parametrize("text", ["import no_such_library", "1 +", "raise RuntimeError('boom')"])
def test_a_module_that_does_not_import_is_said_so(factory, tmp_path, text):
    (tmp_path / f"{factory}_bad.py").write_text(text)
    with pytest.raises(UsageError) as raised:
        open_model(f"{factory}_bad:build")
    assert any(word in str(raised.value) for word in ("no_such_library", "SyntaxError", "boom"))
    with pytest.raises(UsageError, match="no module is called 'no_such_module'"):
        open_model("no_such_module:build")


def test_weights_of_another_network_are_refused(factory, bare):
    with pytest.raises(WeightsError, match="do not fit"):
        open_model(f"{factory}:build", bare)
    with pytest.raises(UsageError, match="weights of its own"):
        open_model(bare, bare)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".safetensors"])
def test_pickles_are_refused_whatever_they_are_called(tmp_path, suffix):
    torch.save({"w": torch.ones(2)}, tmp_path / f"net{suffix}")
    for spec in (tmp_path / f"net{suffix}", tmp_path):
        with pytest.raises(WeightsError, match="efface convert"):
            open_model(spec)


def test_what_holds_no_model_is_refused(tmp_path, bare):
    for spec in ("nowhere", tmp_path / "nowhere"):
        with pytest.raises(UsageError, match="no such file or folder"):
            open_model(spec)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no model"):
        open_model(tmp_path / "empty")
    bare.write_bytes(bare.read_bytes()[:-3])
    with pytest.raises(WeightsError, match="not a whole safetensors file"):
        open_model(bare)
    bare.with_suffix(".onnx").write_bytes(b"x")
    with pytest.raises(WeightsError, match="a form that is not read"):
        open_model(bare.with_suffix(".onnx"))


def test_a_shard_outside_the_folder_is_refused(sharded, bare):
    index = {"weight_map": {"a": "../net.safetensors", "b": "a.safetensors"}}
    (sharded / "net.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match="outside the folder"):
        open_model(sharded)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("hub") / "gpt2"
    torch.manual_seed(0)
    config = GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=11, n_positions=16, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).bfloat16().save_pretrained(folder, max_shard_size="2KB")
    (folder / "vocab.json").write_text("{}")
    return folder


def test_a_transformers_folder_is_written_back_with_its_tokeniser(gpt2, tmp_path, capfd):
    opened = open_model(gpt2)
    assert (opened.name, opened.form) == ("gpt2", "transformers")
    assert opened.model.dtype == torch.bfloat16
    assert opened.model(*opened.example).logits.shape == (1, 8, 11)
    opened.save(tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(p.name for p in gpt2.iterdir())
    assert same(open_model(tmp_path / "out").model.state_dict(), opened.model.state_dict())
    assert capfd.readouterr() == ("", "")


def test_a_transformers_folder_without_some_of_its_weights_is_refused(gpt2, tmp_path):
    opened = open_model(gpt2)
    opened.save(tmp_path / "out")
    for file in (tmp_path / "out").glob("*.safetensors*"):
        file.unlink()
    with pytest.raises(WeightsError, match=r"holds no \.safetensors file"):
        open_model(tmp_path / "out")
    state = {name: t.clone() for name, t in opened.model.state_dict().items() if "c_fc" not in name}
    save_file(state, tmp_path / "out/model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="2 weights are missing: transformer"):
        open_model(tmp_path / "out")


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_network_of_diffusers_is_written_back(tmp_path, variant):
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    net = AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, sample_size=8, latent_channels=2)
    net.half().save_pretrained(tmp_path / "pipe/vae", variant=variant)
    (tmp_path / "pipe/model_index.json").write_text("{}")
    with pytest.raises(UsageError, match="pipe/vae"):
        open_model(tmp_path / "pipe")
    opened = open_model(tmp_path / "pipe/vae")
    assert (opened.name, opened.form) == ("vae", "diffusers")
    assert same(opened.model.state_dict(), net.state_dict())
    opened.save(tmp_path / "out", double)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
        p.name for p in (tmp_path / "pipe/vae").iterdir()
    )
    assert same(open_model(tmp_path / "out").model.state_dict(), opened.model.state_dict())


def test_a_class_that_the_library_lacks_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"architectures": ["BertForSequenceClasification"]}')
    with pytest.raises(UsageError, match="BertForSequenceClassification"):
        open_model(tmp_path)


def test_a_weights_folder_of_a_method_is_opened_and_keeps_its_card(tmp_path):
    from efface.core.catalogue import get
    from efface.io.weights import save_weights

    method = get("strokefill")(**get("strokefill").small)
    torch.manual_seed(0)
    card = {"method": "strokefill", "params": method.params(), "origin": "here"}
    save_weights(tmp_path / "w", method.build().state_dict(), card)
    opened = open_model(tmp_path / "w")
    opened.save(tmp_path / "out", double)
    state, written = load_weights(tmp_path / "out")
    assert written["origin"] == "here"
    assert same(state, opened.model.state_dict())
