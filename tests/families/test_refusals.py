"""What a family cannot do is refused in one sentence, before anything is computed."""

from __future__ import annotations

import pytest
import torch

from studio.errors import BadConfig, DoesNotFit
from studio.families import FAMILIES, open_base
from studio.pipelines import SCHEDULERS, ImagePipeline
from studio.pipelines.request import Request
from studio.pipelines.sample import draw
from tiny_pipelines import BUILDERS, FAMILY, PROMPT, build

FLOWS = [kind for kind in BUILDERS if FAMILIES[FAMILY[kind]].process.word == "flow"]
SIZE = {"width": 64, "height": 64}


@pytest.mark.parametrize("kind", [kind for kind in BUILDERS if not FAMILIES[FAMILY[kind]].chunks])
def test_a_prompt_that_the_family_does_not_read_whole(kind):
    pipe = ImagePipeline.open(build(kind))
    with pytest.raises(DoesNotFit, match="this base reads [0-9]+; shorten it"):
        pipe.generate("a photo of sks dog " * 200, steps=2, **SIZE)


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_side_that_it_cannot_draw(kind):
    pipe = ImagePipeline.open(build(kind))
    with pytest.raises(BadConfig, match="sides of .* are divisible by"):
        pipe.generate(PROMPT, steps=1, width=68, height=64)


@pytest.mark.parametrize(("kind", "side"), [("sd3", 272), ("lumina2", 1040), ("z-image", 1040)])
def test_a_side_that_it_has_no_positions_for(kind, side):
    pipe = ImagePipeline.open(build(kind))
    with pytest.raises(BadConfig, match="has no positions beyond"):
        pipe.generate(PROMPT, steps=1, width=side, height=64)


@pytest.mark.parametrize("kind", ["flux2"])
def test_guidance_of_a_base_that_has_none(kind):
    pipe = ImagePipeline.open(build(kind))
    with pytest.raises(BadConfig, match="embedded_guidance is what it takes"):
        pipe.generate(PROMPT, steps=1, guidance=4.0, **SIZE)


def test_a_distilled_base_takes_no_guidance_at_all():
    pipe = build("flux2-klein")
    pipe.register_to_config(is_distilled=True)
    with pytest.raises(BadConfig, match="distilled to draw without it, in one pass; leave it out$"):
        ImagePipeline.open(pipe).generate(PROMPT, steps=1, guidance=4.0, **SIZE)


@pytest.mark.parametrize("kind", [kind for kind in BUILDERS if kind not in ("flux1", "flux2")])
def test_embedded_guidance_of_a_base_that_embeds_none(kind):
    pipe = ImagePipeline.open(build(kind))
    with pytest.raises(BadConfig, match="embeds no guidance"):
        pipe.generate(PROMPT, steps=1, embedded_guidance=3.5, **SIZE)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("kind", ["flux1", "sana", "qwen-image"])
def test_a_named_scheduler_draws_a_flow_or_is_refused_by_name(kind, name):
    """What runs is told the flow's shift: its first noise level is 1, as the base's own, and pictures are finite."""
    base = open_base(build(kind))
    request = Request(prompt=PROMPT, steps=3, guidance=1.0, embedded=base.defaults.embedded, scheduler=name, **SIZE)
    row = SCHEDULERS[name]
    if not row.flow or row.schedule:
        with pytest.raises(DoesNotFit, match="cannot sample a flow"):
            draw(base, [request], rows=1)
        return
    pixels, sampler = draw(base, [request], rows=1)
    assert torch.isfinite(pixels).all() and 0.97 < float(sampler.scheduler.sigmas[0]) <= 1


@pytest.mark.parametrize("kind", FLOWS)
def test_a_scheduler_of_the_other_process(kind):
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    with pytest.raises(DoesNotFit, match="samples no flow"):
        ImagePipeline.open(build(kind)).generate(PROMPT, steps=2, scheduler=DDIMScheduler(), **SIZE)
    with pytest.raises(DoesNotFit, match="no table"):
        ImagePipeline.open(build("sd1")).generate(
            PROMPT, steps=2, scheduler=FlowMatchEulerDiscreteScheduler(), **SIZE
        )  # fmt: skip


def test_steps_that_the_scheduler_cannot_make():
    with pytest.raises(BadConfig, match="cannot make 1 steps: their times are not finite"):
        ImagePipeline.open(build("qwen-image")).generate(PROMPT, steps=1, **SIZE)


def test_an_autoencoder_whose_fp16_overflows_decodes_in_fp32_and_is_as_it_was():
    pipe = build("sdxl").to(torch.float16)
    with torch.no_grad():
        pipe.vae.decoder.conv_in.weight *= 3e4  # beyond fp16 from the first layer on; a norm follows
        pipe.vae.decoder.conv_in.bias.zero_()
    weights = {name: tensor.clone() for name, tensor in pipe.vae.state_dict().items()}
    base = open_base(pipe)
    request = Request(prompt=PROMPT, steps=2, guidance=1.0, **SIZE)
    pixels, _ = draw(base, [request], rows=1)
    assert torch.isfinite(pixels).all()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in pipe.vae.state_dict().items())
    assert pipe.vae.dtype == torch.float16
