"""Each kind of edit does what it says, is undone bit by bit, and comes back from JSON and tensors as it was."""

import sys

import pytest
import torch
from torch import nn

from efface.core.fingerprint import Fingerprint
from efface.core.ops import OPS, Bypass, Delta, Mask, Replace, TensorOp, tensor_at
from efface.core.ops.replace import allowed
from efface.errors import PlanError
from efface.parts.nn.passing import PassThrough


class Block(nn.Module):
    """A layer as transformers have them: called with keywords, it returns a tuple."""

    def __init__(self):
        super().__init__()
        self.attention_type = "full"
        self.linear = nn.Linear(4, 4)

    def forward(self, hidden, mask=None, *, cache=None, **kwargs):
        return self.linear(hidden), None


class Net(nn.Module):
    """Convolution, batch normalisation, one layer in two places, a tied weight and a block."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.twice = nn.ModuleList([shared := nn.Linear(4, 4), shared])
        self.block = Block()
        self.first, self.tied = nn.Linear(4, 4), nn.Linear(4, 4)
        self.tied.weight = self.first.weight

    def forward(self, x):
        x = self.bn(self.conv(x)).mean((2, 3))
        for layer in self.twice:
            x = layer(x)
        assert self.block.attention_type == "full"
        return self.tied(self.first(self.block(hidden=x, mask=None)[0]))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def some(*shape):
    return noise(*shape) > 0


def out(net):
    with torch.no_grad():
        return net(noise(2, 2, 5, 5))


LINEAR = {"in_features": 4, "out_features": 4}
EDITS = {
    "mask": lambda: Mask("conv.weight", some(4, 2, 3, 3)),
    "mask of a buffer": lambda: Mask("bn.running_mean", some(4)),
    "mask of a tied weight": lambda: Mask("tied.weight", some(4, 4)),
    "mask that keeps all": lambda: Mask("conv.bias", torch.ones(4, dtype=torch.bool)),
    "mask that keeps nothing": lambda: Mask("conv.bias", torch.zeros(4, dtype=torch.bool)),
    "addition": lambda: Delta.add("conv.weight", noise(4, 2, 3, 3)),
    "addition in another format": lambda: Delta.add("first.weight", noise(4, 4).half()),
    "low rank": lambda: Delta.low_rank("first.weight", noise(4, 2), noise(2, 4), 0.3),
    "low rank of a convolution": lambda: Delta.low_rank("conv.weight", noise(4, 2, 1, 1), noise(2, 2, 3, 3)),
    "values": lambda: Delta.set("first.weight", noise(4, 4)),
    "values of a buffer": lambda: Delta.set("bn.running_var", noise(4).abs()),
    "one whole number": lambda: Delta.set("bn.num_batches_tracked", torch.tensor(7)),
    "values kept": lambda: Delta.set("first.weight", noise(4, 4), some(4, 4)),
    "bypass": lambda: Bypass("first"),
    "bypass of a shared module": lambda: Bypass("twice.1"),
    "bypass of a block": lambda: Bypass("block", result=("hidden", None)),
    "replacement": lambda: Replace.by("first", nn.Linear(4, 4, bias=False), LINEAR | {"bias": False}),
    "replacement by a part": lambda: Replace.by("first", PassThrough(["x"]), {"arguments": ["x"]}),
    "replacement with a buffer": lambda: Replace.by("bn", nn.BatchNorm2d(4), {"num_features": 4}),
}  # fmt: skip
each_edit = pytest.mark.parametrize("make", EDITS.values(), ids=EDITS)


@each_edit
def test_an_edit_is_undone_bit_by_bit(net, make):
    op, before, modules, expected = make(), Fingerprint.of(net), list(net.modules()), out(net)
    draws = torch.get_rng_state()
    op.check(net)
    undo = op.apply(net)
    assert torch.equal(draws, torch.get_rng_state())
    undo(net)
    assert Fingerprint.of(net) == before
    assert list(net.modules()) == modules
    assert torch.equal(out(net), expected)


@each_edit
def test_an_edit_comes_back_from_its_stored_form(net, make):
    op = make()
    again = OPS[op.kind].read(op.target, op.values(), op.tensors())
    assert again.values() == op.values()
    undo = op.apply(net)
    expected = out(net)
    undo(net)
    again.apply(net)
    assert torch.equal(out(net), expected)


@each_edit
def test_what_a_tensor_becomes_is_known_without_editing_it(net, make):
    if isinstance(op := make(), TensorOp):
        before, expected = Fingerprint.of(net), op.becomes(tensor_at(net, op.target))
        assert Fingerprint.of(net) == before
        op.apply(net)
        assert torch.equal(expected, tensor_at(net, op.target))


def test_numbers_of_eight_bits_are_masked_and_had_back():
    net = nn.Linear(4, 4).to(torch.float8_e4m3fn)
    op, before = Mask("weight", some(4, 4)), net.weight.detach().clone()
    assert op.row(net).norm == pytest.approx(float(before.float()[~op.keep].norm()))
    undo = op.apply(net)
    assert torch.equal(net.weight.float(), before.float() * op.keep)
    undo(net)
    assert torch.equal(net.weight.view(torch.uint8), before.view(torch.uint8))


@each_edit
def test_a_row_counts_what_would_go_and_changes_nothing(net, make):
    op, before = make(), Fingerprint.of(net)
    row = op.row(net)
    assert Fingerprint.of(net) == before
    assert row.target == op.target
    assert row.op.startswith(op.kind)
    assert 0 <= row.removed <= row.weights
    assert row.norm >= 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_mask_zeroes_what_goes_and_keeps_every_bit_of_the_rest(dtype):
    net = nn.Conv2d(3, 5, 3).to(dtype).to(memory_format=torch.channels_last)
    with torch.no_grad():
        net.weight[0] = -0.0
        net.weight[1] = float("inf")
    keep, before = some(5, 3, 3, 3), net.weight.detach().clone()
    undo = Mask("weight", keep).apply(net)
    assert torch.equal(net.weight, torch.where(keep, before, 0))
    undo(net)
    assert Fingerprint.of(net).tensors["weight"].same_weights(Fingerprint.of(with_weight(before)).tensors["weight"])
    assert net.weight.is_contiguous(memory_format=torch.channels_last)


def with_weight(weight):
    holder = nn.Module()
    holder.weight = nn.Parameter(weight)
    return holder


def test_additions_are_computed_wide_and_rounded_once():
    net = nn.Linear(4, 3).bfloat16()
    up, down, before = noise(3, 2), noise(2, 4), net.weight.detach().float()
    Delta.low_rank("weight", up, down, 0.5).apply(net)
    assert torch.equal(net.weight, (before + 0.5 * (up @ down)).bfloat16())
    before = net.weight.detach().float()
    Delta.add("weight", down.new_ones(3, 4)).apply(net)
    assert torch.equal(net.weight, (before + 1).bfloat16())


def test_values_are_copies_and_with_a_mask_only_those_kept_are_stored(net):
    values, keep = noise(4, 4), some(4, 4)
    op = Delta.set("first.weight", values, keep)
    whole = Delta.set("first.weight", values)
    expected = values.clone()
    values.zero_()
    assert op.tensors()["values"].shape == (int(keep.sum()),)
    assert op.tensors()["keep"].nbytes == 2
    op.apply(net)
    assert torch.equal(net.first.weight, expected * keep)
    whole.apply(net)
    assert torch.equal(net.tied.weight, expected)


def test_a_mask_of_one_name_holds_for_all_names_of_a_tied_weight(net):
    keep = some(4, 4)
    Mask("tied.weight", keep).apply(net)
    assert net.first.weight is net.tied.weight
    assert torch.equal(net.first.weight != 0, keep)


def test_a_shared_module_is_replaced_everywhere_and_like_the_old_one(net):
    net.twice[0].train().requires_grad_(False)
    new = nn.Linear(4, 4).bfloat16()
    Replace.by("twice.1", new, LINEAR).apply(net)
    one, other = net.twice
    assert one is other
    assert one.training
    assert one.weight.dtype == torch.bfloat16
    assert not one.weight.requires_grad
    assert torch.equal(one.weight, new.weight)
    assert one.weight.data_ptr() != new.weight.data_ptr()


BAD = {
    "suggests": (lambda: Mask("conv.wieght", some(1)), "conv.weight"),
    "no tensor": (lambda: Mask("conv", some(1)), "no parameter or buffer is called 'conv'"),
    "no module": (lambda: Bypass("conv.weight"), "no module is called"),
    "the model itself": (lambda: Bypass(""), "no module is called ''"),
    "shape of a mask": (lambda: Mask("conv.weight", some(4, 2)), r"\(4, 2\) and the model \(4, 2, 3, 3\)"),
    "format of a mask": (lambda: Mask("conv.weight", noise(4, 2, 3, 3)), "float32 instead of bool"),
    "shape of an addition": (lambda: Delta.add("first.weight", noise(4, 1)), "has the shape"),
    "ranks": (lambda: Delta.low_rank("first.weight", noise(4, 2), noise(3, 4)), "the ranks 2 and 3 differ"),
    "low rank of a vector": (lambda: Delta.low_rank("bn.weight", noise(4, 2), noise(2, 4)), "has the shape"),
    "format of values": (lambda: Delta.set("first.weight", noise(4, 4).half()), "float16 and the model torch.float32"),
    "addition to numbers": (lambda: Delta.add("bn.num_batches_tracked", torch.tensor(1)), "int64"),
    "NaN": (lambda: Delta.add("first.weight", noise(4, 4) / 0), "NaN or infinity"),
    "form": (lambda: Delta("first.weight", "multiply", {"by": noise(1)}), "no delta 'multiply'"),
    "argument": (lambda: Bypass("block", result=("hiden",)), "takes no argument 'hiden'"),
    "arguments that are no JSON": (lambda: Replace("first", "torch.nn.Linear", {"dtype": torch.half}, {}), "JSON"),
    "arguments of a class": (lambda: Replace("first", "torch.nn.Linear", {"in": 4}, {}), "cannot be built"),
    "tensors of a class": (
        lambda: Replace("first", "torch.nn.Linear", {"in_features": 10**6, "out_features": 9}, {"weight": noise(1)}),
        "do not fit its arguments",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_an_edit_that_does_not_fit_is_refused(net, name):
    make, match = BAD[name]
    with pytest.raises(PlanError, match=match):
        make().check(net)


@pytest.mark.parametrize(
    "path",
    [
        "this.Zen",
        "os.system",
        "torch.nn.Parameter",
        "torch.nn.functional.relu",
        "torch.nn.modules.linear.Linear",
        "torch.hub.load",
        "efface.core.plan.Plan",
        "efface.parts.nn.passing.inspect.Signature",
        "efface.parts.nn.passing.arguments_of",
        "efface.parts.no_such.Thing",
        "efface.parts..os.System",
        "Linear",
        "",
    ],
)
def test_no_class_but_those_of_torch_nn_and_parts_is_taken_from_a_file(path):
    with pytest.raises(PlanError, match="no module that a plan may build"):
        Replace.read("first", {"class": path, "args": {}}, {})
    assert "this" not in sys.modules


def test_classes_of_torch_nn_and_parts_are_allowed():
    assert allowed("torch.nn.Linear") is nn.Linear
    assert allowed("efface.parts.nn.passing.PassThrough") is PassThrough


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


def llama(transformers):
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval(), "model"


def gpt2(transformers):
    config = transformers.GPT2Config(vocab_size=32, n_embd=16, n_layer=3, n_head=4, n_positions=32)
    return transformers.GPT2LMHeadModel(config).eval(), "transformer"


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("number", [0, 2])
def test_a_transformer_without_a_layer_computes_and_generates_what_one_built_without_it_does(
    transformers, make, number
):
    torch.manual_seed(0)
    model, body = make(transformers)
    body = getattr(model, body)
    layers = "layers" if hasattr(body, "layers") else "h"
    whole, tokens = getattr(body, layers), torch.randint(32, (2, 5))
    target = next(name for name, module in model.named_modules() if module is whole[number])
    undo = Bypass(target).apply(model)
    found, written = model(tokens).logits, generate(model, tokens)
    undo(model)

    setattr(body, layers, nn.ModuleList(layer for at, layer in enumerate(whole) if at != number))
    for at, layer in enumerate(getattr(body, layers)):
        next(m for m in layer.modules() if hasattr(m, "layer_idx")).layer_idx = at
    assert torch.equal(found, model(tokens).logits)
    assert torch.equal(written, generate(model, tokens))


def generate(model, tokens):
    return model.generate(tokens, max_new_tokens=4, do_sample=False, pad_token_id=0, eos_token_id=None, use_cache=True)
