"""States lie on the sampler's way, and noise is noise whatever a model predicts."""

import dataclasses

import pytest
import torch
from tiny import tiny

from efface.errors import UsageError
from efface.parts.concepts.rollout import (
    guidance_terms,
    noise_prediction,
    noised,
    partial_denoise,
    predict_x0,
    predictions,
    trajectories,
)
from efface.parts.concepts.slots import encode
from efface.parts.diffusion.adapters import Process, levels
from efface.parts.diffusion.latents import decode
from efface.parts.diffusion.pipelines import first_noise, sample


@pytest.fixture(scope="module")
def pipe():
    return tiny()


class Speaking(torch.nn.Module):
    """Predicts for noise and clean pictures that it knows, in the convention of its scheduler."""

    def __init__(self, unet, process, clean, noise):
        super().__init__()
        self.config, self.process, self.clean, self.noise = unet.config, process, clean, noise

    def forward(self, x, t, embeds):
        sigma = float(self.process.sigmas[int(t[0])])
        found = self.process.predicted(x, sigma, self.clean)
        return type("Output", (), {"sample": found})


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_noise_is_found_in_every_convention(kind):
    pipe = tiny()
    pipe.scheduler.register_to_config(prediction_type=kind)
    process = Process.of(pipe.scheduler)
    clean, noise = torch.randn(2, 2, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    pipe.unet = Speaking(pipe.unet, process, clean, noise)
    a, s = process.scales(float(process.sigmas[400]))
    found = noise_prediction(pipe, a * clean + s * noise, 400, torch.zeros(1, 16, 32))
    torch.testing.assert_close(found, noise, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow"])
def test_noise_goes_in_as_the_scheduler_adds_it_and_out_again(kind):
    from diffusers import FlowMatchEulerDiscreteScheduler

    pipe, t = tiny(), torch.tensor([0, 250, 600])
    x0, noise = torch.randn(2, 3, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    if kind == "flow":
        pipe.scheduler = FlowMatchEulerDiscreteScheduler()
        share = (t / 1000).view(-1, 1, 1, 1)
        expected = (1 - share) * x0 + share * noise
    else:
        pipe.scheduler.register_to_config(prediction_type=kind)
        expected = pipe.scheduler.add_noise(x0, noise, t)
    x = noised(pipe, x0, noise, t)
    torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(predict_x0(pipe, x, noise, t), x0, rtol=1e-4, atol=1e-4)


def test_a_flow_is_read_as_noise(pipe):
    from diffusers import FlowMatchEulerDiscreteScheduler

    flowing = tiny()
    flowing.scheduler = FlowMatchEulerDiscreteScheduler()
    x, embeds = torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(0)), encode(flowing, ["star"]).embeds
    velocity = flowing.unet(x, torch.tensor(250.0), embeds.expand(2, -1, -1)).sample
    torch.testing.assert_close(noise_prediction(flowing, x, 250, embeds), x + 0.75 * velocity)


def test_one_batch_gives_what_single_calls_give(pipe):
    text, noise = encode(pipe, ["", "circle", "red star"]), first_noise(pipe, [1, 2])
    times = torch.tensor([300, 700])
    found = predictions(pipe, noise, times, text)
    for row, embeds in zip(found, text.embeds, strict=True):
        torch.testing.assert_close(row, noise_prediction(pipe, noise, times, embeds[None]), rtol=1e-4, atol=1e-5)
    empty, terms = guidance_terms(pipe, noise, times, text)
    torch.testing.assert_close(terms, found[1:] - found[0])
    assert torch.equal(empty, found[0])


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_states_lead_to_what_the_sampler_draws(pipe, guidance):
    prompts, seeds, steps = ["circle", "red star"], [1, 2], 4
    noise, text, empty = first_noise(pipe, seeds), encode(pipe, prompts), encode(pipe, [""])
    states, times = trajectories(pipe, text, empty, noise, steps=steps, guidance=guidance)
    assert states.shape == (steps, 2, 8, 8, 8)
    torch.testing.assert_close(times.round(), torch.tensor([999.0, 749.0, 499.0, 249.0]), atol=1e-3, rtol=0)
    process, last = Process.of(pipe.scheduler), levels(pipe.scheduler, steps)[-2].item()
    both = predictions(pipe, states[-1], times[-1], encode(pipe, ["", *prompts]))
    found = both[0] + guidance * (torch.stack([both[1, 0], both[2, 1]]) - both[0])
    a, s = process.scales(last)
    drawn = decode(pipe.vae, (states[-1] - s * found) / a)
    torch.testing.assert_close(drawn, sample(pipe, prompts, seeds, steps=steps, guidance=guidance), atol=1e-4, rtol=0)


@pytest.mark.parametrize("stop", [0, 2, 3])
def test_partial_denoise_is_a_state_of_the_way(pipe, stop):
    noise, text, empty = first_noise(pipe, [3]), encode(pipe, ["circle"]), encode(pipe, [""])
    states, times = trajectories(pipe, text, empty, noise, steps=4, guidance=2.0)
    x, t = partial_denoise(pipe, text, empty, noise, steps=4, stop=stop, guidance=2.0)
    assert torch.equal(x, states[stop])
    assert t == times[stop]


def test_only_the_states_asked_for_are_returned(pipe):
    noise, text, empty = first_noise(pipe, [3]), encode(pipe, ["circle"]), encode(pipe, [""])
    every, times = trajectories(pipe, text, empty, noise, steps=4, guidance=1.0)
    some, at = trajectories(pipe, text, empty, noise, steps=4, guidance=1.0, keep=[2, 0])
    assert torch.equal(some, every[[0, 2]])
    assert torch.equal(at, times[[0, 2]])
    for keep in ((4,), (), (-1, 2)):
        with pytest.raises(UsageError, match="not among 4 steps"):
            trajectories(pipe, text, empty, noise, steps=4, guidance=1.0, keep=keep)


def test_a_model_with_guidance_built_in_is_refused():
    pipe = tiny()
    pipe.unet.register_to_config(time_cond_proj_dim=8)
    with pytest.raises(UsageError, match="guidance built in"):
        noise_prediction(pipe, torch.zeros(1, 8, 8, 8), 5, torch.zeros(1, 16, 32))


def test_pooled_embeddings_reach_the_model_and_are_asked_for(pipe):
    from diffusers import UNet2DConditionModel

    large = tiny()
    large.unet = UNet2DConditionModel(
        sample_size=8, in_channels=8, out_channels=8, layers_per_block=1, block_out_channels=(8,), norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D",), up_block_types=("CrossAttnUpBlock2D",), cross_attention_dim=32,
        attention_head_dim=2, addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 10,
    )  # fmt: skip
    x, text = torch.randn(2, 8, 8, 8, generator=torch.Generator().manual_seed(0)), encode(large, ["", "circle"])
    with pytest.raises(UsageError, match="pooled"):
        noise_prediction(large, x, 5, text.embeds)
    text = dataclasses.replace(text, pooled=torch.randn(2, 10, generator=torch.Generator().manual_seed(1)))
    found = predictions(large, x, 5, text)
    apart = noise_prediction(large, x, 5, text.embeds[1:], text.pooled[1:])
    torch.testing.assert_close(found[1], apart, rtol=1e-4, atol=1e-5)
    states, _ = trajectories(large, text, dataclasses.replace(encode(large, [""]), pooled=text.pooled[:1]), x,
                             steps=2, guidance=2.0)  # fmt: skip
    assert states.isfinite().all()
