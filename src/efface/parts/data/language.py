"""Turn text into rows of tokens: to train a language model on, to calibrate an edit of one, and to measure it.

A text becomes one long row of tokens, of which windows are cut; rows are never padded, so no token has to be masked.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from efface.errors import DataError, UsageError
from efface.extras import need
from efface.parts.data.tasks import Score
from efface.parts.nn.modes import mode
from efface.seeds import numpy_generator, torch_generator

UNKNOWN = "\N{REPLACEMENT CHARACTER}"
ALPHABET = (UNKNOWN, "\n", *map(chr, range(ord(" "), ord("~") + 1)))
"""What the character tokenizer knows, in the order of the tokens: an unknown character, a new line, printable ASCII."""
HELD_OUT = 0.1
"""Share of a text, its end, that is only measured on."""
MOST_SCORED = 256
"""Windows that a model is scored on at most."""


@dataclass(frozen=True, eq=False)
class Tokens:
    """One long row of tokens ``ids`` (n,), and a source of windows of it, ``length`` tokens each."""

    ids: Tensor
    length: int

    def __post_init__(self) -> None:
        if len(self.ids) < self.length:
            what = f"the text has {len(self.ids)} tokens, fewer than one window of {self.length}"
            raise DataError(what, fix="Give a longer text")

    def batch(self, seed: int, step: int, count: int) -> dict[str, Tensor]:
        """Return ``tokens`` (count, length): windows at random places, a pure function of the three arguments."""
        starts = numpy_generator(seed, step, "windows").integers(len(self.ids) - self.length + 1, size=count)
        places = torch.from_numpy(starts)[:, None] + torch.arange(self.length)
        return {"tokens": self.ids[places]}

    def at(self, length: int) -> Tokens:
        """Return the same tokens in windows of another ``length``."""
        return Tokens(self.ids, length)

    def rows(self, count: int, length: int) -> Tensor:
        """Return the first ``count * length`` tokens as rows; a text that is shorter is a :class:`DataError`."""
        if len(self.ids) < count * length:
            what = f"the text has {len(self.ids)} tokens, and {count} rows of {length} are asked for"
            raise DataError(what, fix="Give a longer text, or ask for fewer or shorter rows")
        return self.ids[: count * length].view(count, length)


@dataclass(frozen=True, eq=False)
class Corpus:
    """A text in the tokens of one model: a part to learn from and a part, its end, to measure on."""

    name: str
    train: Tokens
    val: Tokens

    @classmethod
    def of(cls, ids: Tensor, *, name: str = "text", length: int = 128) -> Corpus:
        """Cut the tokens ``ids`` (n,) into the two parts, whose windows are ``length`` tokens long."""
        cut = len(ids) - max(length, round(HELD_OUT * len(ids)))
        if cut < length:
            fix = "Give a longer text"
            raise DataError(f"has {len(ids)} tokens, fewer than two windows of {length}", where=name, fix=fix)
        return cls(name, Tokens(ids[:cut], length), Tokens(ids[cut:], length))

    @classmethod
    def read(cls, path: str | Path, tokenizer: Any, *, length: int = 128) -> Corpus:
        """Read a text file, or all of a folder, in the tokens of a tokenizer of transformers."""
        return cls.of(encode(tokenizer, read_text(path)), name=Path(path).stem, length=length)

    def check(self, net: nn.Module) -> None:
        """Raise :class:`UsageError` unless ``net`` is a language model that knows all of the tokens."""
        embedded = getattr(net, "get_input_embeddings", lambda: None)()
        if embedded is None or not getattr(net, "can_generate", lambda: False)():
            fix = "Give a decoder of transformers, such as a folder of LlamaForCausalLM"
            raise UsageError(f"{type(net).__name__} is no language model", where=self.name, fix=fix)
        largest = int(max(self.train.ids.max(), self.val.ids.max()))
        if largest >= embedded.num_embeddings:
            what = f"token {largest} is beyond the {embedded.num_embeddings} that the model knows"
            raise UsageError(what, where=self.name, fix="Take the tokenizer of the model")

    def loss(self, net: nn.Module, batch: dict[str, Any]) -> Tensor:
        """Return the mean cross-entropy of every next token of ``batch``, in nats."""
        return next_token_loss(net, batch["tokens"])

    def score(self, net: nn.Module, part: str = "val") -> Score:
        """Return how well ``net`` tells the next token of the held-out part, or of ``train``: share right and loss."""
        tokens: Tokens = getattr(self, part)
        count = min(MOST_SCORED, len(tokens.ids) // tokens.length)
        rows = tokens.rows(count, tokens.length).to(next(net.parameters()).device)
        right = loss = 0.0
        with torch.inference_mode(), mode(net, training=False):
            for some in rows.split(32):
                logits = net(some, use_cache=False).logits[:, :-1].flatten(0, 1).float()
                right += float((logits.argmax(1) == some[:, 1:].flatten()).sum())
                loss += float(F.cross_entropy(logits, some[:, 1:].flatten(), reduction="sum"))
        told = count * (tokens.length - 1)
        return Score(right / told, loss / told)


def next_token_loss(net: Any, tokens: Tensor) -> Tensor:
    """Return the mean cross-entropy in nats of every next one of ``tokens`` (b, t)."""
    logits = net(tokens, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())


def read_text(path: str | Path) -> str:
    """Return the text of a UTF-8 file, or of all ``.txt`` files of a folder in the order of their names."""
    path = Path(path)
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    try:
        text = "\n".join(file.read_text("utf-8") for file in files)
    except FileNotFoundError as error:
        raise DataError("there is no such file or folder", where=path, fix="Give a text file") from error
    except UnicodeDecodeError as error:
        raise DataError("is no UTF-8 text", where=path, fix="Give a text file, or convert it to UTF-8") from error
    if not text.strip():
        raise DataError("holds no text", where=path, fix="Give a text file, or a folder of .txt files")
    return text


def encode(tokenizer: Any, text: str) -> Tensor:
    """Return the tokens (n,) of ``text``, nothing added before or after."""
    return torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False).input_ids)


def characters() -> Any:
    """Return a tokenizer of transformers that makes a token of every character; ``save_pretrained`` writes it."""
    tokenizers = need("tokenizers", extra="diffusion", job="the character tokenizer")
    transformers = need("transformers", extra="diffusion", job="the character tokenizer")
    inner = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({character: i for i, character in enumerate(ALPHABET)}, unk_token=UNKNOWN)
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    inner.decoder = tokenizers.decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token=UNKNOWN, clean_up_tokenization_spaces=False
    )


def sampled(net: Any, count: int, length: int, seed: int = 0) -> Tensor:
    """Return ``count * length`` tokens that the language model ``net`` draws itself, ``count`` rows at a time.

    Each row begins with a token drawn evenly. So a model can be calibrated and measured where there is no text at all:
    on what it says itself.
    """
    generator = torch_generator(seed, "sampled")
    device = next(net.parameters()).device
    tokens = torch.randint(net.get_input_embeddings().num_embeddings, (count, 1), generator=generator).to(device)
    given, cache = tokens, None
    with torch.inference_mode(), mode(net, training=False):
        for _ in range(length - 1):
            out = net(given, past_key_values=cache, use_cache=True)
            chances = out.logits[:, -1].float().softmax(1).cpu()
            given, cache = torch.multinomial(chances, 1, generator=generator).to(device), out.past_key_values
            tokens = torch.cat([tokens, given], 1)
    return tokens.flatten().cpu()
