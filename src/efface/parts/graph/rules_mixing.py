"""Rules of operations that mix numbers: products with weights, norms, pools, reductions, attention."""

from __future__ import annotations

import math

import numpy as np
from torch.fx import Node

from efface.parts.graph.atoms import Dims, Label, merge
from efface.parts.graph.rules_shapes import elementwise, meet
from efface.parts.graph.trace import Call

HEAD = "mixes it in attention, whose scale and head size are fixed"


def conv(call: Call) -> Dims:
    """Contract channels with a kernel (out, in / groups, ...), transposed (in, out / groups, ...).

    With groups, inputs and outputs are grids of groups x places: a whole group can go, or one place of every group.
    """
    x, weight, groups = call.dims("input"), call.dims("weight"), call["groups"]
    channel = len(x) - len(call.shape("weight")) + 1  # 0 where the input has no batch
    n = call.shape("weight")
    rows = call.atoms.split(weight[0], (groups, n[0] // groups))[0] if groups > 1 else None
    other = merge([rows, weight[1]], (groups, n[1])) if groups > 1 else weight[1]
    inputs, outputs = (weight[0], other) if "transpose" in call.op else (other, weight[0])
    call.tie(x[channel], inputs)
    call.freeze(weight[2:], "slides it")
    call.freeze(x[channel + 1 :], "slides along it")
    if call["bias"] is not None:
        call.tie(call.dims("bias")[0], outputs)
    call.sized(("in_channels",), inputs)
    call.sized(("out_channels",), outputs)
    if groups > 1:
        call.sized(("groups",), rows)
    return [*x[:channel], outputs, *[None] * (len(n) - 2)]


def linear(call: Call) -> Dims:
    """Contract the last dimension with a weight (out, in)."""
    x, weight = call.dims("input"), call.dims("weight")
    call.tie(x[-1], weight[-1])
    call.sized(("in_features",), weight[-1])
    if len(weight) == 1:
        return x[:-1]
    if call["bias"] is not None:
        call.tie(call.dims("bias")[0], weight[0])
    call.sized(("out_features",), weight[0])
    return [*x[:-1], weight[0]]


def matmul(call: Call) -> Dims:
    """Contract the last dimension of one with the last but one of the other."""
    first, second = ("self", "mat2") if call.op in ("mm", "bmm") else ("self", "other")
    return _product(call, first, second)


def addmm(call: Call) -> Dims:
    """Add a product of matrices to a tensor, as the Conv1D layers of transformers do."""
    first, second = ("mat1", "mat2") if call.op == "addmm" else ("batch1", "batch2")
    result = _product(call, first, second)
    call.sized(("nx",), call.dims(first)[-1])
    call.sized(("nf",), result[-1])
    added, size = call.dims("self"), call.shape("self")
    for back in range(1, len(added) + 1):
        if size[-back] == call.shape()[-back] > 1:
            call.tie(added[-back], result[-back])
    return result


def _product(call: Call, first: str, second: str) -> Dims:
    a, b = call.dims(first), call.dims(second)
    if not (call.is_weight(first) or call.is_weight(second)):
        call.freeze([*a[-2:], *b[-2:]], HEAD)
    inner = b[-1] if len(b) == 1 else b[-2]
    call.tie(a[-1], inner)
    batch = meet(call, [(call.shape(name)[:-2], call.dims(name)[:-2]) for name in (first, second)])
    return [*batch, *a[-2:-1], *(b[-1:] if len(b) > 1 else [])]


def einsum(call: Call) -> Dims:
    """Tie the dimensions of each letter; between activations, only letters of all tensors may lose channels."""
    left, _, right = str(call["equation"]).replace(" ", "").partition("->")
    nodes, words = call["tensors"], left.split(",")
    if "." in left or not right or len(nodes) != len(words):
        for node in nodes:
            call.freeze(call.dims(node), f"computes {left}->{right}")
        return [None] * len(call.shape())
    found: dict[str, Label | None] = {}
    fixed = not any(node in call._weights for node in nodes) and len(nodes) > 1
    for node, word in zip(nodes, words, strict=True):
        for letter, label in zip(word, call.dims(node), strict=True):
            if letter in found:
                call.tie(found[letter], label)
            found[letter] = label if found.get(letter) is None else found[letter]
            everywhere = all(letter in w for w in words) and letter in right
            if fixed and not everywhere:
                call.freeze([label], HEAD)
            elif letter not in right and sum(letter in w for w in words) < 2:
                call.freeze([label], "sums over it")
    return [found[letter] for letter in right]


def embedding(call: Call) -> Dims:
    """Look rows up, whose number is fixed."""
    rows, columns = call.dims("weight")
    call.freeze([rows, *call.dims("indices")], "looks its rows up by number")
    call.sized(("embedding_dim",), columns)
    return [*[None] * len(call.dims("indices")), columns]


def prelu(call: Call) -> Dims:
    """Bend each channel by a slope of its own, or all by one."""
    x = call.dims("self")
    if call.shape("weight") != [1]:
        call.tie(x[1], call.dims("weight")[0])
        call.sized(("num_parameters",), x[1])
    return x


def batch_norm(call: Call) -> Dims:
    """Shift and scale each channel by itself."""
    x = call.dims("input")
    for name in ("weight", "bias", "running_mean", "running_var"):
        if isinstance(call[name], Node):
            call.tie(x[1], call.dims(name)[0])
    call.sized(("num_features",), x[1])
    return x


def layer_norm(call: Call) -> Dims:
    """Normalise over the last dimensions: removal changes mean and variance of what stays."""
    x, over = call.dims("input"), len(call["normalized_shape"])
    for name in ("weight", "bias"):
        if isinstance(call[name], Node):
            for a, b in zip(x[-over:], call.dims(name), strict=True):
                call.tie(a, b)
    if over > 1:
        call.freeze(x[-over:], "normalises over several dimensions")
    elif (label := x[-1]) is not None:
        call.trace.norms[call.node.name] = label
        call.sized(("normalized_shape", "dim", "hidden_size"), label)
    return x


def group_norm(call: Call) -> Dims:
    """Normalise over groups of channels, so that each group loses the same number."""
    x, groups = list(call.dims("input")), call["num_groups"]
    for name in ("weight", "bias"):
        if isinstance(call[name], Node):
            call.tie(x[1], call.dims(name)[0])
    if (label := x[1]) is not None:
        rows, _ = call.atoms.split(label, (groups, label.shape[1] // groups))
        call.freeze([rows], "has a fixed number of groups")
        call.trace.norms[call.node.name] = label
        call.sized(("num_channels",), label)
    return x


def attention(call: Call) -> Dims:
    """Attend head by head. Sizes of heads are fixed by the scale; grouped queries share the heads of their keys."""
    query, key, value = (call.dims(name) for name in ("query", "key", "value"))
    call.freeze([*query[-2:], *key[-2:], *value[-2:]], HEAD)
    shapes = [call.shape(name)[:-2] for name in ("query", "key", "value")]
    labels = [dims[:-2] for dims in (query, key, value)]
    for place in (1, 2):
        if call["enable_gqa"] and shapes[place] and shapes[place][-1] != shapes[0][-1]:
            times = shapes[0][-1] // shapes[place][-1]
            shapes[place] = [*shapes[place][:-1], shapes[0][-1]]
            last = labels[place][-1]
            labels[place] = [*labels[place][:-1], None if last is None else np.repeat(last, times, axis=1)]
    given = list(zip(shapes, labels, strict=True))
    if isinstance(call["attn_mask"], Node):
        given.append((call.shape("attn_mask")[:-2], call.dims("attn_mask")[:-2]))
        call.freeze(call.dims("attn_mask")[-2:], HEAD)
    return [*meet(call, given), query[-2], value[-1]]


def spatial(call: Call) -> Dims | list[Dims]:
    """Pool, resize or pad: channels stay what they are."""
    x = call.dims(call.inputs[0])
    space = next((int(letter) for letter in call.op if letter in "123"), 2)
    call.freeze(x[-space:], "slides along it")
    kept: Dims = [*x[:-space], *[None] * space]
    value = call.node.meta["val"]
    return [kept for _ in value] if isinstance(value, (list, tuple)) else kept


def reduce(call: Call) -> Dims | list[Dims]:
    """Take a mean, sum or the like over dimensions, which fixes them."""
    value = call.node.meta["val"]
    if isinstance(value, (list, tuple)):
        several = True
        ndim = value[0].ndim
    else:
        several, ndim = False, value.ndim
    if isinstance(call["other"], Node):
        return elementwise(call)  # the larger of two tensors
    x = call.dims(call.inputs[0])
    dims = call["dim"] if call["dim"] is not None else call["dims"]
    dims = list(range(len(x))) if dims is None or dims == [] else [dims] if isinstance(dims, int) else list(dims)
    over = {d % len(x) for d in dims} if x else set()
    call.freeze([x[d] for d in over], "reduces it to one number")
    keep = ndim == len(x)
    kept: Dims = [None if d in over else label for d, label in enumerate(x) if keep or d not in over]
    return [kept, kept] if several else kept


def along(call: Call) -> Dims | list[Dims]:
    """Compute along dimensions, each index from the others, which fixes them."""
    x = call.dims("self")
    dims = next((call[name] for name in ("dim", "dims") if call[name] is not None), None)
    if call.op.startswith("tri"):
        dims = [-2, -1]
    over = list(range(len(x))) if dims is None or dims == [] else [dims] if isinstance(dims, int) else list(dims)
    if math.prod(call.shape("self")) and x:
        call.freeze([x[d] for d in over], "makes each index depend on the others")
    value = call.node.meta["val"]
    return [list(x) for _ in value] if isinstance(value, (list, tuple)) else x
