"""Train the tiny language model: a decoder of the Llama format that reads characters.

It is no method of the catalogue, for it takes nothing away, but it trains as networks do, by a recipe:
``efface fit recipes/tiny-llama.toml --data TEXT``. Methods that shrink language models are shown on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from efface.core.method import Network, Step, param
from efface.extras import need
from efface.io.folders import atomic_folder
from efface.io.weights import load_weights
from efface.parts.data.language import ALPHABET, characters, next_token_loss


@dataclass(frozen=True, kw_only=True)
class TinyLlama(Network):
    """Tell the next character of a text."""

    trains_on: ClassVar[str] = "text"

    blocks: int = param(8, "decoder blocks", low=1)
    width: int = param(96, "features of a token", low=8)
    ffn: int = param(256, "features inside a feed-forward layer", low=8)
    heads: int = param(4, "heads of queries", low=1)
    kv_heads: int = param(2, "heads of keys and values, which queries share", low=1)
    context: int = param(128, "largest number of tokens of a text", low=2)

    @property
    def name(self) -> str:
        """Name in recipes."""
        return "tiny-llama"

    def build(self) -> nn.Module:
        """Build transformers' LlamaForCausalLM; embedding and output layer are one."""
        transformers = need("transformers", extra="diffusion", job="the tiny language model")
        config = transformers.LlamaConfig(
            vocab_size=len(ALPHABET), hidden_size=self.width, intermediate_size=self.ffn,
            num_hidden_layers=self.blocks, num_attention_heads=self.heads, num_key_value_heads=self.kv_heads,
            max_position_embeddings=self.context, tie_word_embeddings=True,
            bos_token_id=None, eos_token_id=None, pad_token_id=None, initializer_range=0.04,
        )  # fmt: skip
        return transformers.LlamaForCausalLM(config)

    def loss(self, net: nn.Module, batch: dict[str, Any], step: Step) -> dict[str, Tensor]:
        """Return the cross-entropy of the next of ``tokens`` (b, t), in nats."""
        return {"total": next_token_loss(net, batch["tokens"])}


NETWORKS: dict[str, type[Network]] = {"tiny-llama": TinyLlama}
"""The networks by the names that recipes give them."""


def assemble(weights: str | Path, folder: str | Path) -> Any:
    """Write what a training left in ``weights`` as an ordinary folder of transformers, and return the model."""
    tensors, card = load_weights(Path(weights))
    net: Any = TinyLlama.from_params(card["params"]).build()  # type: ignore[attr-defined]
    net.load_state_dict(tensors)
    with atomic_folder(folder) as new:
        net.eval().save_pretrained(new)
        characters().save_pretrained(new)
    return net
