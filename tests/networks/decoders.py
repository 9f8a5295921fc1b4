"""Tiny decoders of every architecture that tests of language models go through."""

import torch
import transformers

SIZES = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 64, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
GQA = SIZES | {"num_key_value_heads": 2}
NARROW = GQA | {"head_dim": 4, "sliding_window": 5}
OLD = {"vocab_size": 40, "n_embd": 16, "n_layer": 3, "n_head": 4, "n_positions": 64, "bos_token_id": None}
DECODERS = {
    "Llama": GQA | {"tie_word_embeddings": True},
    "Mistral": GQA | {"sliding_window": 5},
    "Qwen2": GQA,
    "Qwen3": GQA | {"head_dim": 4},
    "Gemma2": NARROW,
    "Gemma3Text": NARROW | {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
    "Olmo2": GQA,
    "Glm4": GQA | {"head_dim": 4},
    "Phi": SIZES,
    "Phi3": GQA,
    "GPTNeoX": SIZES,
    "GPTJ": OLD | {"rotary_dim": 4, "eos_token_id": None},
    "GPT2": OLD | {"eos_token_id": None},
    "OPT": {k: v for k, v in SIZES.items() if k not in ("intermediate_size", "pad_token_id")}
    | {"ffn_dim": 24, "word_embed_proj_dim": 16, "pad_token_id": 1},
    "Mixtral": GQA | {"num_local_experts": 3},
}
"""Options of configurations by the beginning of their names."""
MIXTURES = ("Mixtral",)
EVERY = sorted(DECODERS)
IDS = torch.arange(3, 15)[None]


def decoder(name="Llama", **options):
    """Return a decoder with weights that leave no branch at zero, every time the same."""
    config = getattr(transformers, f"{name}Config")(**DECODERS[name] | options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(4) if p.ndim > 1 else p.uniform_(0.5, 1.5)
    return model


def logits(model, ids=IDS):
    with torch.no_grad():
        return model(ids).logits


def continued(model, **options):
    """Return what the model writes on from `IDS`, greedily."""
    return model.generate(IDS, max_new_tokens=8, do_sample=False, **options)
