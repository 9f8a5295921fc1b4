"""Sampling from what inversion gives draws the picture again."""

from __future__ import annotations

import pytest
import torch

from efface.parts.diffusion.inversion import ddim_inverse, encoded, inverted, redrawn
from efface.parts.diffusion.latents import decode
from efface.parts.diffusion.samplers import ddim
from efface.parts.diffusion.schedules import karras
from efface.parts.worlds.pipeline import load_pipeline
from efface.parts.worlds.world import Scene, render

SIGMAS = karras(20, 0.02, 20.0)
SCENES = (Scene("circle", "red", "white"), Scene("star", "blue", "pink"))
PROMPTS = ["a red circle on white", "a blue star on pink"]


@pytest.fixture(scope="module")
def pipe():
    pipe = load_pipeline()
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.requires_grad_(False)
    return pipe


@pytest.fixture(scope="module")
def pictures():
    return torch.from_numpy(render(SCENES).picture)


def gaussian(x, sigma):
    """Denoise data from a normal distribution of deviation 0.5."""
    return x * 0.25 / (0.25 + sigma**2)


def bent(x, sigma):
    """Denoise by no linear rule."""
    return gaussian(x, sigma) + 0.1 * torch.sin(x / (1 + sigma**2) ** 0.5)


@pytest.mark.parametrize("denoise", [gaussian, bent])
def test_rounds_draw_near_the_exact_inverse(denoise):
    start = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * SIGMAS[0]
    drawn = ddim(denoise, start, SIGMAS)
    misses = [(ddim_inverse(denoise, drawn, SIGMAS, rounds=n) - start).abs().max().item() for n in (0, 1, 2, 60)]
    assert misses == sorted(misses, reverse=True)
    assert misses[1] < misses[0] / 2
    assert misses[-1] < 1e-6 * SIGMAS[0]


def test_the_usual_form_takes_the_slope_of_where_it_begins():
    x, sigmas = torch.ones(1, dtype=torch.float64), torch.tensor([3.0, 1.0], dtype=torch.float64)
    end = x + 2 * (x - gaussian(x, 1.0))
    torch.testing.assert_close(ddim_inverse(gaussian, x, sigmas, rounds=0), end)
    torch.testing.assert_close(ddim_inverse(gaussian, x, sigmas, rounds=1), x + 2 * (end - gaussian(end, 3.0)) / 3)


def test_pictures_come_back_from_their_noise(pipe, pictures):
    noisy = inverted(pipe, pictures, PROMPTS, steps=10)
    assert noisy.shape == (2, 8, 8, 8)
    assert not noisy.requires_grad
    again = redrawn(pipe, noisy, PROMPTS, steps=10)
    assert (again - pictures).square().mean() < 1e-2
    assert (again - decode(pipe.vae, encoded(pipe, pictures))).square().mean() < 1e-3  # the rest is the autoencoder's


def test_noise_of_a_picture_does_not_depend_on_the_others(pipe, pictures):
    together = inverted(pipe, pictures, PROMPTS, steps=4)
    alone = [inverted(pipe, pictures[i : i + 1], PROMPTS[i : i + 1], steps=4) for i in range(2)]
    torch.testing.assert_close(torch.cat(alone), together, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(encoded(pipe, pictures, batch=1), encoded(pipe, pictures))


def test_encoding_undoes_decoding(pipe, pictures):
    again = decode(pipe.vae, encoded(pipe, pictures))
    assert again.shape == pictures.shape
    assert (again - pictures).square().mean() < 3e-3
