"""Judge pictures by a model of CLIP's kind, where there is no classifier that knows the concepts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from efface.errors import WeightsError
from efface.extras import need
from efface.parts.metrics.judged import NONE, Judge, Seen

SENTENCE = "a photo of {}"
NOTHING = "a photo"
"""What a picture is likened to that shows none of the concepts."""
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the three colours in the pictures that CLIP was trained on."""
BATCH = 64


def clip_judge(folder: str | Path, concepts: Sequence[str], device: str = "cpu") -> Judge:
    """Return a judge that likens pictures to ``concepts``, and to none of them, by the CLIP model in ``folder``.

    Its log-probabilities are those of zero-shot classification, its features the embeddings of pictures. Raises
    :class:`WeightsError` if the model cannot be opened; a name is looked up in the hub's cache, never on the network.
    """
    transformers = need("transformers", extra="diffusion", job="judging by CLIP")
    try:
        model = transformers.CLIPModel.from_pretrained(folder, local_files_only=True).to(device).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        what = f"cannot be opened as a CLIP model: {str(error).strip().partition(chr(10))[0]}"
        raise WeightsError(what, where=folder, fix="Give a folder of transformers with a CLIPModel") from error
    names = tuple(dict.fromkeys([*concepts, NONE]))
    texts = [NOTHING if name == NONE else SENTENCE.format(name) for name in names]
    side = model.config.vision_config.image_size
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, STD))

    @torch.no_grad()
    def judge(pictures: Tensor) -> Seen:
        given = tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(device)
        beliefs, features = [], []
        for part in pictures.split(BATCH):
            x = F.interpolate(part.to(device), (side, side), mode="bicubic", antialias=True).clamp(0, 1)
            found = model(**given, pixel_values=(x - mean) / std)
            beliefs.append(found.logits_per_image.log_softmax(1).cpu())
            features.append(found.image_embeds.cpu())
        return Seen({"concept": names}, {"concept": torch.cat(beliefs).numpy()}, torch.cat(features).numpy())

    return judge
