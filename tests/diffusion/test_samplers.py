from __future__ import annotations

import inspect

import diffusers
import pytest
import torch

from efface.parts.diffusion.adapters import Process, denoiser, levels
from efface.parts.diffusion.samplers import SAMPLERS, ancestral, ddim, dpmpp_2m, euler, heun
from efface.parts.diffusion.schedules import exponential, flow, karras, sigmas_of, trailing

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # of diffusers

STEPS = 20
BETAS = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}


class Answer:
    """What a network of diffusers returns."""

    def __init__(self, sample: torch.Tensor) -> None:
        self.sample = sample


def net(x, t, condition=None):
    """Stand for a network: smooth, and another function at every time."""
    t = torch.as_tensor(t, dtype=x.dtype).reshape(-1, *[1] * (x.ndim - 1))
    return Answer(torch.tanh(x * (1 + 0.3 * torch.sin(t / 200))) * 0.8 + 0.1 * torch.cos(3 * x))


def theirs(scheduler, x, **options):
    x = x * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(net(scheduler.scale_model_input(x, t), t).sample, t, x, **options).prev_sample
    return x


def ours(sampler, scheduler, x, sigmas, **options):
    model = denoiser(net, Process.of(scheduler))
    return sampler(lambda x, sigma: model(x, sigma, None), x * sigmas[0].item(), sigmas, **options)


@pytest.fixture
def start():
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])  # with linspace theirs steps to other levels than it says
def test_ddim_agrees_with_diffusers(start, prediction, spacing):
    scheduler = diffusers.DDIMScheduler(
        **BETAS, prediction_type=prediction, timestep_spacing=spacing, clip_sample=False, set_alpha_to_one=True
    )
    sigmas = levels(scheduler, STEPS)
    a = (1 + sigmas[0] ** 2).rsqrt()  # theirs begins at the state a * x0 + s * noise with s held at 1
    expected = theirs(scheduler, start)
    assert torch.allclose(ours(ddim, scheduler, start / (sigmas[0] * a), sigmas), expected, atol=1e-4)
    assert torch.allclose(ours(euler, scheduler, start / (sigmas[0] * a), sigmas), expected, atol=1e-4)


def test_noisy_ddim_agrees_with_diffusers(start):
    scheduler = diffusers.DDIMScheduler(**BETAS, timestep_spacing="trailing", clip_sample=False)
    sigmas = levels(scheduler, STEPS)
    fresh = torch.randn(STEPS, *start.shape, generator=torch.Generator().manual_seed(1), dtype=start.dtype)
    x, draws = start, iter(fresh)
    for t, noise in zip(scheduler.timesteps, fresh, strict=True):
        x = scheduler.step(net(x, t).sample, t, x, eta=0.7, variance_noise=noise).prev_sample
    a = (1 + sigmas[0] ** 2).rsqrt()
    mine = ours(ddim, scheduler, start / (sigmas[0] * a), sigmas, eta=0.7, noise=lambda x: next(draws))
    assert torch.allclose(mine, x, atol=1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_euler_agrees_with_diffusers(start, prediction):
    scheduler = diffusers.EulerDiscreteScheduler(**BETAS, prediction_type=prediction, timestep_spacing="trailing")
    sigmas = levels(scheduler, STEPS)
    x = start * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(net(scheduler.scale_model_input(x, t), t).sample, t, x).prev_sample
    mine = ours(euler, scheduler, start * scheduler.init_noise_sigma / sigmas[0], sigmas)
    assert torch.allclose(mine, x, atol=1e-4)


def test_heun_agrees_with_diffusers(start):
    scheduler = diffusers.HeunDiscreteScheduler(**BETAS, prediction_type="epsilon", timestep_spacing="trailing")
    scheduler.set_timesteps(STEPS)
    expected = theirs(scheduler, start)
    sigmas = torch.cat([scheduler.sigmas[::2], scheduler.sigmas[-1:]]).unique().flip(0).double()
    mine = ours(heun, scheduler, start * scheduler.init_noise_sigma / sigmas[0], sigmas)
    assert torch.allclose(mine, expected, atol=1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_dpmpp_agrees_with_diffusers(start, prediction):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **BETAS, prediction_type=prediction, timestep_spacing="trailing", final_sigmas_type="zero"
    )
    sigmas = levels(scheduler, STEPS)
    expected = theirs(scheduler, start)
    a = (1 + sigmas[0] ** 2).rsqrt()
    assert torch.allclose(ours(dpmpp_2m, scheduler, start / (sigmas[0] * a), sigmas), expected, atol=1e-4)


def test_ancestral_agrees_with_diffusers(start):
    scheduler = diffusers.EulerAncestralDiscreteScheduler(**BETAS, timestep_spacing="trailing")
    sigmas = levels(scheduler, STEPS)
    expected = theirs(scheduler, start, generator=torch.Generator().manual_seed(2))
    generator = torch.Generator().manual_seed(2)

    def noise(x):
        return torch.randn(x.shape, generator=generator, dtype=x.dtype)

    mine = ours(ancestral, scheduler, start * scheduler.init_noise_sigma / sigmas[0], sigmas, noise=noise)
    assert torch.allclose(mine, expected, atol=1e-4)


def test_flow_agrees_with_diffusers(start):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(STEPS)
    s = scheduler.sigmas.double()[:-1].clamp(max=1 - 1e-7)  # time 1 has no finite level
    sigmas = torch.cat([s / (1 - s), torch.zeros(1)])
    x = start
    for t in scheduler.timesteps:
        x = scheduler.step(net(x, t).sample, t, x).prev_sample
    mine = ours(euler, scheduler, start / (1 - s[0]) / sigmas[0], sigmas)
    assert torch.allclose(mine, x, atol=1e-4)


@pytest.mark.parametrize("name", SAMPLERS)
def test_perfect_denoiser_is_followed_to_its_answer(name, start):
    answer = torch.full_like(start, 0.3)
    assert torch.allclose(SAMPLERS[name](lambda x, sigma: answer, start * 80, karras(5, 0.02, 80)), answer)


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_are_short(name):
    assert len(inspect.getsource(SAMPLERS[name]).splitlines()) <= 40


def gaussian(x, sigma):
    """Denoise data from a normal distribution of deviation 0.5: its flow has a closed form."""
    return x * 0.25 / (0.25 + sigma**2)


@pytest.mark.parametrize(("sampler", "order"), [(euler, 1), (heun, 2), (dpmpp_2m, 2)])
def test_error_falls_with_the_order_of_the_sampler(sampler, order, start):
    exact = start * 0.5 / (0.25 + 10.0**2) ** 0.5 * 10
    errors = [(sampler(gaussian, start * 10, exponential(n, 0.001, 10.0)) - exact).abs().max().item() for n in (20, 40)]
    assert errors[0] / errors[1] > 0.8 * 2**order


def test_noise_of_the_ancestral_walk_keeps_the_distribution():
    start = torch.randn(40_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for walk in (ancestral, ddim):
            made = walk(gaussian, start * 10, exponential(150, 0.001, 10.0), eta=1.0)
            assert made.std().item() == pytest.approx(0.5, rel=0.05)


def test_schedules_fall_to_zero():
    table = diffusers.DDIMScheduler(**BETAS).alphas_cumprod
    for sigmas in (karras(7, 0.1, 9), exponential(7, 0.1, 9), trailing(table, 7), flow(7, shift=3.0)):
        assert len(sigmas) == 8
        assert sigmas[-1] == 0
        assert (sigmas.diff() < 0).all()
        assert sigmas.isfinite().all()
    assert trailing(table, 7)[0] == sigmas_of(table)[-1]
