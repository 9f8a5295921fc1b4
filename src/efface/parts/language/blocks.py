"""Find the blocks of a decoder of transformers, and the residual branches in them: attention and feed-forward layers.

Names tell them, those that Llama, Mistral, Qwen, Gemma, Phi, GLM, OLMo, Mixtral, GPT-2, GPT-NeoX, GPT-J and OPT have.
A block that holds weights under any other name is refused, for nobody knows what would become of them.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from efface.errors import UsageError
from efface.parts.nn.passing import Silent, arguments_of

ATTENTION = ("self_attn", "attn", "attention")
FFN = ("mlp", "feed_forward", "block_sparse_moe")
PLAIN_FFN = ("fc1", "fc2")
"""The two layers of a feed-forward layer that is no module of its own."""
NORMS_OF_ATTENTION = ("input_layernorm", "ln_1", "self_attn_layer_norm", "post_self_attn_layernorm")
NORMS_OF_FFN = (
    "ln_2",
    "final_layer_norm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
    "post_mlp_layernorm",
)  # fmt: skip
BETWEEN, BEHIND = "post_attention_layernorm", "post_feedforward_layernorm"
"""A norm before the feed-forward layer; where one is behind that (Gemma, OLMo), it is the one behind the attention."""

Kind = Literal["attention", "ffn"]


@dataclass(frozen=True)
class Sublayer:
    """A residual branch of a block: what it adds to its input is one attention or one feed-forward layer."""

    block: int
    kind: Kind
    branch: str
    """Name of the module whose output is added; of a mixture of experts that is the whole mixture."""
    helpers: tuple[str, ...]
    """Names of modules that serve nothing but this branch, among them its norms."""

    @property
    def label(self) -> str:
        """Short name: ``A6`` is the attention of block 6, ``M6`` its feed-forward layer (MLP)."""
        return f"{'A' if self.kind == 'attention' else 'M'}{self.block}"


def blocks_of(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the name and the list of the blocks of a decoder.

    Raises
    ------
    UsageError
        If the model is no decoder, holds more than one list of blocks, or is compiled, so that its blocks are no longer
        run one by one.
    """
    if not getattr(model, "can_generate", lambda: False)() or getattr(model.config, "is_encoder_decoder", False):
        what = f"{type(model).__name__} is no decoder that writes text"
        raise UsageError(what, fix="Give a causal language model of transformers, such as LlamaForCausalLM")
    if type(model).__name__ == "OptimizedModule" or any(m._compiled_call_impl is not None for m in model.modules()):
        raise UsageError("the model is compiled", fix="Take the parts out first, and compile what is left")
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and all(_child(block, ATTENTION) for block in module)
    ]
    if len(found) != 1:
        what = f"{type(model).__name__} has {len(found)} lists of blocks with an attention"
        raise UsageError(what, fix="Give a decoder in which every block holds one of " + ", ".join(ATTENTION))
    return found[0]


def sublayers(model: nn.Module) -> list[Sublayer]:
    """Return the residual branches of ``model`` that are not silent, by blocks, attention first.

    The norm before two branches that run side by side (Phi, GPT-J) is a helper of both.
    """
    path, blocks = blocks_of(model)
    if getattr(text_config(model), "num_kv_shared_layers", 0):
        raise UsageError("attentions share keys and values", where=path, fix="Leave this model")
    found = []
    for number, block in enumerate(blocks):
        for kind, names in _branches(block, f"{path}.{number}").items():
            *helpers, branch = (f"{path}.{number}.{name}" for name in names)
            if not isinstance(model.get_submodule(branch), Silent):
                found.append(Sublayer(number, kind, branch, tuple(helpers)))
    return found


def text_config(model: nn.Module) -> Any:
    """Return the configuration of the decoder, which in a model of pictures and text is a part of the whole."""
    config: Any = model.config
    return config.get_text_config(decoder=True)


def idle(candidates: Collection[Sublayer], removed: Collection[Sublayer]) -> list[str]:
    """Return the helpers that nothing needs any more once those ``removed`` are gone from all ``candidates``."""
    needed = {name for sublayer in candidates if sublayer not in removed for name in sublayer.helpers}
    return list(dict.fromkeys(name for sublayer in removed for name in sublayer.helpers if name not in needed))


def context_of(model: nn.Module) -> int:
    """Return how many tokens ``model`` takes at most, 2048 where it does not say."""
    context: int | None = getattr(text_config(model), "max_position_embeddings", None)
    return context or 2048


def _branches(block: nn.Module, where: str) -> dict[Kind, list[str]]:
    """Return the names of what each branch consists of, the module that gives its output last."""
    children = {name for name, child in block.named_children() if next(child.parameters(), None) is not None}
    attention, ffn = _child(block, ATTENTION), _child(block, FFN)
    plain = [name for name in PLAIN_FFN if hasattr(block, name)]
    norms = {"attention": [n for n in NORMS_OF_ATTENTION if n in children]}
    norms["ffn"] = [n for n in NORMS_OF_FFN if n in children]
    if BETWEEN in children:
        norms["attention" if BEHIND in children else "ffn"].append(BETWEEN)
    known = {attention, ffn, *plain, *norms["attention"], *norms["ffn"]}
    if strange := sorted(children - known):
        raise UsageError(f"holds weights of unknown use: {', '.join(strange)}", where=where, fix="Leave this model")
    if ffn is None and len(plain) != len(PLAIN_FFN):
        raise UsageError(f"has no feed-forward layer ({', '.join((*FFN, *PLAIN_FFN))})", where=where)
    for name in filter(None, (attention, ffn)):
        if "residual" in arguments_of(block.get_submodule(name)):
            what = "adds to its input by itself, and cannot be taken out of the sum"
            raise UsageError(what, where=f"{where}.{name}", fix="Leave this model")
    if not getattr(block, "do_layer_norm_before", True):
        what = "normalises the sum, not the input of a branch"
        raise UsageError(what, where=where, fix="Give a decoder that normalises before its branches")
    shared = norms["attention"] if not norms["ffn"] else []  # one norm before both
    return {
        "attention": [*norms["attention"], str(attention)],
        "ffn": [*norms["ffn"], *shared, *([str(ffn)] if ffn else plain)],
    }


def _child(block: nn.Module, names: tuple[str, ...]) -> str | None:
    children = dict(block.named_children())
    return next((name for name in names if name in children), None)
