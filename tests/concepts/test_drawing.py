"""Our samplers draw what diffusers draws, for every kind of pipeline that they take, and give gradients."""

import pytest
import torch
from families import fixed_noise, long_prompts, tiny_flux, tiny_pixart, tiny_xl
from tiny import tiny

import efface
from efface.errors import UsageError
from efface.parts.diffusion.adapters import levels
from efface.parts.diffusion.guidance import checkpointed
from efface.parts.diffusion.latents import decode
from efface.parts.diffusion.pipelines import conditions, first_noise, prompted, sample
from efface.parts.diffusion.samplers import SAMPLERS, ddim, euler
from efface.seeds import torch_generator

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning", "ignore::FutureWarning")  # of diffusers
PROMPTS = ["a red circle", "a star on white"]


def ours(pipe, noise, steps, guidance, sampler=ddim, negative=""):
    sigmas = levels(pipe.scheduler, steps)
    with torch.no_grad():
        return decode(pipe.vae, sampler(prompted(pipe, PROMPTS, guidance, negative), noise * sigmas[0].item(), sigmas))


def theirs(pipe, noise, steps, guidance, **given):
    pipe.set_progress_bar_config(disable=True)
    size = {"height": 32, "width": 32, "output_type": "pt", "num_inference_steps": steps, "guidance_scale": guidance}
    return pipe(PROMPTS, latents=noise, **size, **given).images


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("build", [tiny, long_prompts])
def test_stable_diffusion_draws_what_diffusers_draws(build, guidance):
    pipe, noise = build(), fixed_noise()
    a = (1 + levels(pipe.scheduler, 20)[0] ** 2).rsqrt()  # theirs begins at s = 1, ours where the level says
    sigma = levels(pipe.scheduler, 20)[0]
    expected = theirs(pipe, noise * sigma * a, 20, guidance, negative_prompt=["a blue ring"] * 2)
    assert torch.allclose(ours(pipe, noise, 20, guidance, negative="a blue ring"), expected, atol=1e-4)


@pytest.mark.parametrize("negative", ["", "a blue ring"])
def test_sdxl_draws_what_diffusers_draws(negative):
    pipe, noise = tiny_xl(), fixed_noise()
    sigma = levels(pipe.scheduler, 20)[0].item()
    given = {"negative_prompt": [negative] * 2} if negative else {}
    expected = theirs(pipe, noise * sigma / (1 + sigma**2) ** 0.5, 20, 4.0, **given)
    assert torch.allclose(ours(pipe, noise, 20, 4.0, euler, negative), expected, atol=1e-4)


def test_a_picture_depends_on_its_prompt_and_seed_alone():
    pipe = tiny()
    together = sample(pipe, [*PROMPTS, PROMPTS[0]], [3, 4, 5], steps=2)
    assert together.shape == (3, 3, 32, 32)
    assert 0 <= together.min() < together.max() <= 1
    for place, (prompt, seed) in enumerate(zip([*PROMPTS, PROMPTS[0]], [3, 4, 5], strict=True)):
        assert torch.allclose(sample(pipe, [prompt], [seed], steps=2)[0], together[place], atol=1e-5)
    assert torch.allclose(sample(pipe, [*PROMPTS, PROMPTS[0]], [3, 4, 5], steps=2, batch=2), together, atol=1e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_draws(name):
    torch.manual_seed(0)
    assert sample(tiny(), PROMPTS, [0, 1], steps=3, sampler=SAMPLERS[name]).isfinite().all()


def test_embeddings_stand_for_prompts():
    pipe = tiny()
    embeds = conditions(pipe, PROMPTS)
    assert torch.equal(sample(pipe, embeds, [0, 1], steps=2), sample(pipe, PROMPTS, [0, 1], steps=2))
    with pytest.raises(UsageError, match="told more of a prompt"):
        conditions(tiny_xl(), embeds)


def test_long_prompts_are_cut_where_the_slots_end():
    pipe = long_prompts()
    assert conditions(pipe, ["circle " * 99]).shape == (1, 77, 32)
    assert torch.equal(conditions(pipe, ["circle " * 99]), conditions(pipe, ["circle " * 80]))


@pytest.mark.parametrize("below", [float("inf"), 2.0])
def test_gradients_through_sampling_are_those_of_finite_differences(below):
    pipe = tiny().to(torch.float64)
    sigmas, noise = levels(pipe.scheduler, 3), first_noise(pipe, [0])
    weight = pipe.unet.conv_out.bias.requires_grad_()
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def drawn(wrap):
        return ddim(wrap(prompted(pipe, PROMPTS[:1], 4.0)), noise * sigmas[0].item(), sigmas).square().mean()

    (slope,) = torch.autograd.grad(drawn(lambda denoise: checkpointed(denoise, below)), weight)
    (plain,) = torch.autograd.grad(drawn(lambda denoise: denoise), weight)
    assert slope.isfinite().all()
    assert torch.equal(slope, plain) == (below == float("inf"))
    if below == float("inf"):
        with torch.no_grad():
            weight += 1e-5 * direction
            up = drawn(lambda denoise: denoise)
            weight -= 2e-5 * direction
            down = drawn(lambda denoise: denoise)
        assert (up - down).item() / 2e-5 == pytest.approx((slope * direction).sum().item(), rel=1e-4)


def test_what_cannot_be_drawn_with_is_refused():
    flux = tiny_flux()
    with pytest.raises(UsageError, match="has no unet"):
        prompted(flux, PROMPTS, 1.0)
    with pytest.raises(UsageError, match="another sampler"):
        sample(flux, PROMPTS, [0, 1], steps=1, sampler=euler)
    with pytest.raises(UsageError, match="from embeddings"):
        sample(flux, torch.zeros(1, 16, 32), [0], steps=1)


@pytest.mark.parametrize("family", [tiny_flux, tiny_pixart])
def test_a_pipeline_with_a_transformer_draws_as_it_does_itself_and_edits_of_it_act(family):
    pipe = family()
    pipe.set_progress_bar_config(disable=True)
    pipe.default_sample_size = 8  # of FLUX, which otherwise draws 1024 pixels and more
    pictures = sample(pipe, PROMPTS[:1], [3], steps=2, guidance=3.0)
    own = pipe(
        PROMPTS[0], num_inference_steps=2, generator=torch_generator(3, "latents"), output_type="pt",
        guidance_scale=3.0, **({"clean_caption": False} if family is tiny_pixart else {}),
    ).images  # fmt: skip
    assert torch.equal(pictures, own)
    before = sample(pipe, PROMPTS[:1], [3], steps=2, guidance=3.0, negative="star")
    assert before.shape == pictures.shape
    assert not torch.equal(before, pictures)
    plan = efface.forget(pipe, remove="circle", keep=["a square"], method="rece").plan
    drawn = efface.sample(pipe, "a circle", edits=[plan], compare=True, steps=2)
    assert not torch.equal(drawn.pictures, drawn.before)
