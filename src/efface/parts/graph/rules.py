"""Say what each ATen operation does to labels: one table, from the name of an operation to its rule.

A rule is given a :class:`.trace.Call`, ties or freezes labels, and returns those of the result, one for each dimension;
for operations with several results, a list of such lists. An operation that is not here is unknown: all that goes into
it is frozen, and it is reported by name and place.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Node

from efface.parts.graph import rules_mixing as mixing
from efface.parts.graph import rules_shapes as shapes
from efface.parts.graph.trace import Call, Trace, module_of

ELEMENTWISE = """
    abs add addcdiv addcmul alias atan bitwise_and bitwise_not bitwise_or ceil celu clamp clamp_max clamp_min
    clone contiguous copy cos detach div dropout elu eq erf exp exp2 expm1 feature_dropout fill floor fmod
    full_like ge gelu gt hardsigmoid hardswish hardtanh isfinite isinf isnan leaky_relu le lerp lift_fresh_copy
    log log1p log_sigmoid logical_and logical_not logical_or lt masked_fill maximum minimum mish mul nan_to_num
    ne neg ones_like pow rand_like randn_like reciprocal relu relu6 remainder round rrelu rsqrt rsub selu sgn
    sigmoid sign silu sin softplus softshrink softsign sqrt square sub tan tanh threshold to type_as where xlogy
    zeros_like zero _to_copy __and__ __or__ __xor__ bernoulli alpha_dropout floor_divide true_divide multiply
    subtract divide
""".split()  # noqa: SIM905
MAKERS = """
    arange empty eye full linspace new_empty new_full new_ones new_zeros ones rand randn scalar_tensor
    tril_indices triu_indices zeros empty_permuted
""".split()  # noqa: SIM905
POOLS = """
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
    avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d max_pool2d_with_indices upsample_bicubic2d
    upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d
    upsample_trilinear3d _upsample_nearest_exact2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa
    reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d grid_sampler grid_sampler_2d
""".split()  # noqa: SIM905
REDUCTIONS = """
    all amax amin any argmax argmin logsumexp max mean median min norm linalg_vector_norm prod std sum var
    var_mean
""".split()  # noqa: SIM905
ALONG = """
    cumsum cumprod flip log_softmax logcumsumexp roll softmax sort topk _softmax diff tril triu
""".split()  # noqa: SIM905

Rule = Callable[[Call], Any]

RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, shapes.elementwise),
    **dict.fromkeys(MAKERS, shapes.made),
    **dict.fromkeys(POOLS, mixing.spatial),
    **dict.fromkeys(REDUCTIONS, mixing.reduce),
    **dict.fromkeys(ALONG, mixing.along),
    **dict.fromkeys(("view", "reshape", "flatten", "unflatten", "_unsafe_view", "view_copy"), shapes.view),
    **dict.fromkeys(("squeeze", "unsqueeze"), shapes.squeeze),
    **dict.fromkeys(("permute", "transpose", "t", "movedim", "swapaxes", "swapdims", "moveaxis", "numpy_T", "mT"),
                    shapes.permute),
    **dict.fromkeys(("expand", "expand_as"), shapes.expand),
    **dict.fromkeys(("repeat", "tile"), shapes.repeat),
    "repeat_interleave": shapes.repeat_interleave,
    **dict.fromkeys(("cat", "concat", "concatenate"), shapes.cat),
    **dict.fromkeys(("stack", "hstack", "vstack"), shapes.stack),
    **dict.fromkeys(("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk"),
                    shapes.split),
    "unbind": shapes.unbind,
    "select": shapes.select,
    **dict.fromkeys(("slice", "narrow"), shapes.cut),
    "index_select": shapes.index_select,
    "index": shapes.index,
    **dict.fromkeys(("gather", "take_along_dim"), shapes.gather),
    **dict.fromkeys(("pad", "constant_pad_nd"), shapes.pad),
    **dict.fromkeys(("pixel_shuffle", "pixel_unshuffle"), shapes.pixels),
    "channel_shuffle": shapes.channel_shuffle,
    "glu": shapes.glu,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
                    mixing.conv),
    "linear": mixing.linear,
    **dict.fromkeys(("matmul", "mm", "bmm"), mixing.matmul),
    **dict.fromkeys(("addmm", "baddbmm"), mixing.addmm),
    "einsum": mixing.einsum,
    "embedding": mixing.embedding,
    "prelu": mixing.prelu,
    **dict.fromkeys(("batch_norm", "instance_norm"), mixing.batch_norm),
    **dict.fromkeys(("layer_norm", "rms_norm"), mixing.layer_norm),
    "group_norm": mixing.group_norm,
    "scaled_dot_product_attention": mixing.attention,
}  # fmt: skip


def infer(trace: Trace, node: Node, env: dict[Node, Any], weights: set[Node]) -> Any:
    """Return the labels of the result of ``node``."""
    if node.target is operator.getitem:
        source, place = node.args
        found = env.get(source)  # type: ignore[arg-type]
        return found[place] if found else _unlabelled(node.meta.get("val"))  # type: ignore[index]
    tensors = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]
    if not isinstance(node.target, OpOverload) or node.target.namespace != "aten":
        return _unknown(trace, node, tensors, env)
    name = str(node.target._overloadpacket).removeprefix("aten.")
    if name.startswith(("_assert", "sym_", "_local_scalar")) or node.meta.get("val") is None:
        return None
    rule = RULES.get(name) or RULES.get(name.rstrip("_"))
    if all(label is None for source in tensors for label in env.get(source) or ()):
        return _unlabelled(node.meta["val"])
    return rule(Call(trace, node, env, weights)) if rule else _unknown(trace, node, tensors, env)


def _unknown(trace: Trace, node: Node, tensors: list[Node], env: dict[Node, Any]) -> Any:
    """Freeze all that goes in, and say so."""
    labels = [label for source in tensors for label in env.get(source) or () if label is not None]
    if labels:
        lines = [line.strip() for line in str(node.meta.get("stack_trace") or "").splitlines()]
        at = next((line for line in reversed(lines) if line.startswith("File ")), "place unknown")
        told = f"{node.target} in {module_of(node) or 'the network'} is not known ({at})"
        trace.unknown.append(told)
        for label in labels:
            trace.atoms.freeze(label, told)
    return _unlabelled(node.meta.get("val"))


def _unlabelled(value: Any) -> Any:
    if isinstance(value, Tensor):
        return [None] * value.ndim
    return [_unlabelled(one) for one in value] if isinstance(value, (list, tuple)) else None
