"""A pipeline of real classes with random weights, small enough to build in every test."""

import warnings
from typing import Any

from torch import nn

from efface.parts.worlds.pipeline import autoencoder, pipeline, text_encoder, unet
from efface.seeds import seeded

WIDTH = 32


def tiny() -> Any:
    """Return the pipeline; unlike untrained ones its denoiser listens, for no branch of it is silent."""
    with seeded(0, "tiny"):
        net = unet((8, 16), WIDTH)
        for parameter in net.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        parts = net, text_encoder(WIDTH, 1), autoencoder((8, 8, 8))
    for part in parts:
        part.eval().requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of diffusers, about an offset that trailing steps do not use
        return pipeline(*parts)
