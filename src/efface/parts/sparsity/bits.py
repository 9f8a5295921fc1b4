"""Store masks with one bit a weight."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor


def pack(mask: Tensor) -> Tensor:
    """Return the bits of the bool ``mask``, in logical order, as uint8 (ceil(n / 8),) on the CPU."""
    return torch.from_numpy(np.packbits(mask.detach().cpu().contiguous().view(-1).numpy()))


def unpack(bits: Tensor, shape: Sequence[int]) -> Tensor:
    """Return the bool mask (shape) that ``bits`` were packed from; raise ValueError where they do not fit ``shape``."""
    count = prod(shape)
    if bits.dtype != torch.uint8 or bits.shape != (-(-count // 8),) or any(size < 0 for size in shape):
        raise ValueError("its bits do not fit its shape")
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=count).view(bool)).view(tuple(shape))
