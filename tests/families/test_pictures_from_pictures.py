"""Redrawing a picture and a part of it: as diffusers' own img2img and inpainting pipelines do, family by family."""

from __future__ import annotations

import dataclasses

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from studio.errors import BadConfig
from studio.families import FAMILIES, open_base
from studio.pipelines.request import Request
from studio.pipelines.sample import draw
from studio.pipelines.start import Given
from tiny_pipelines import BUILDERS, FAMILY, NEGATIVE, PROMPT, build

SIZE = {"width": 96, "height": 64}
PIPELINES = {
    "sd1": ("StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"),
    "sd2": ("StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"),
    "sdxl": ("StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline"),
    "sd3": ("StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline"),
    "flux1": ("FluxImg2ImgPipeline", "FluxInpaintPipeline"),
    "flux1-schnell": ("FluxImg2ImgPipeline", "FluxInpaintPipeline"),
    "chroma": ("ChromaImg2ImgPipeline", "ChromaInpaintPipeline"),
    "z-image": ("ZImageImg2ImgPipeline", "ZImageInpaintPipeline"),
    "qwen-image": ("QwenImageImg2ImgPipeline", "QwenImageInpaintPipeline"),
}
GUIDED = {
    "flux1": {"guidance_scale": 3.5}, "flux1-schnell": {"max_sequence_length": 256},
    "z-image": {"guidance_scale": 2.0, "negative_prompt": NEGATIVE},
    "qwen-image": {"true_cfg_scale": 3.0, "negative_prompt": NEGATIVE},
}  # fmt: skip


def picture() -> Image.Image:
    values = np.random.default_rng(0).integers(0, 255, (8, 12, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((SIZE["width"], SIZE["height"]))


def mask() -> Image.Image:
    values = np.zeros((SIZE["height"], SIZE["width"]), dtype=np.uint8)
    values[16:48, 32:96] = 255
    return Image.fromarray(values)


def theirs(pipe, kind: str, which: int, strength: float) -> torch.Tensor:
    cls = getattr(diffusers, PIPELINES[kind][which])
    extra = {"requires_safety_checker": False} if kind in ("sd1", "sd2") else {}
    other = cls(**pipe.components, **extra) if extra else cls.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    call = GUIDED.get(kind, {"guidance_scale": 3.0, "negative_prompt": NEGATIVE}) | {
        "num_inference_steps": 4, "strength": strength, "output_type": "np",
    }  # fmt: skip
    if which or kind not in ("sd1", "sd2", "sdxl"):  # whose img2img takes the picture's size
        call |= SIZE
    if which:
        call |= {"mask_image": mask()}
    if (kind, which) == ("sd3", 1):  # it decodes without the shift of the latents: they are compared, not its picture
        call |= {"output_type": "latent"}
    (made,) = other(prompt=PROMPT, image=picture(), generator=torch.Generator().manual_seed(5), **call)[:1]
    if call["output_type"] == "latent":
        with torch.no_grad():
            return FAMILIES["sd3"].decode(pipe, made) / 2 + 0.5
    return torch.from_numpy(np.asarray(made)).permute(0, 3, 1, 2)


def ours(base, kind: str, which: int, strength: float) -> torch.Tensor:
    guidance = {"flux1": 1.0, "flux1-schnell": 1.0}.get(kind, 3.0)
    given = Given(image=picture(), strength=strength, mask=mask() if which else None)
    request = Request(
        prompt=PROMPT, negative=NEGATIVE, seed=5, steps=4, guidance=guidance, embedded=base.defaults.embedded,
        given=given, **SIZE,
    )  # fmt: skip
    pixels, _ = draw(base, [request], rows=1)
    return pixels / 2 + 0.5


@pytest.mark.parametrize("strength", [0.6, 1.0])
@pytest.mark.parametrize("which", [0, 1], ids=["whole", "masked"])
@pytest.mark.parametrize("kind", PIPELINES)
def test_it_is_what_diffusers_draws(kind, which, strength):
    if (kind, which) == ("chroma", 1):
        pytest.skip("diffusers 0.42's own ChromaInpaintPipeline asks for a setting that Chroma does not have")
    pipe = build(kind)
    base = open_base(pipe)
    own = ours(base, kind, which, strength)
    assert (own - theirs(pipe, kind, which, strength)).abs().max() < 1e-5


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_mask_keeps_what_is_outside_of_it(kind):
    """Outside the mask, the latents behind the last step are those of the given picture."""
    base = open_base(build(kind))
    family = FAMILIES[FAMILY[kind]]
    seen = []

    def decode(pipe, latents):
        seen.append(latents)
        return family.decode(pipe, latents)

    watched = dataclasses.replace(base, family=dataclasses.replace(family, decode=decode))
    given = Given(image=picture(), strength=1.0, mask=mask())
    embedded, guidance = base.defaults.embedded, base.defaults.guidance
    request = Request(prompt=PROMPT, seed=5, steps=2, guidance=guidance, embedded=embedded, given=given, **SIZE)
    draw(watched, [request], rows=1)
    values = torch.from_numpy(np.asarray(picture(), dtype=np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    with torch.no_grad():
        picture_latents = family.encode_image(base.pipe, values, torch.Generator().manual_seed(5))
    cells = seen[0].shape[2:]
    drawn = torch.nn.functional.interpolate(
        torch.from_numpy(np.asarray(mask(), dtype=np.float32) / 255)[None, None], size=cells
    )
    outside = (seen[0] - picture_latents) * (1 - drawn)
    assert outside.abs().max() == 0 and ((seen[0] - picture_latents) * drawn).abs().max() > 1e-3


def test_impossible_strengths_and_masks_are_refused():
    with pytest.raises(BadConfig, match="above 0 and at most 1"):
        Given(image=picture(), strength=0.0)
    with pytest.raises(BadConfig, match="above 0 and at most 1"):
        Given(image=picture(), strength=float("nan"))
    with pytest.raises(BadConfig, match="32 x 32 pixels and the picture 96 x 64"):
        Given(image=picture(), strength=0.5, mask=Image.new("L", (32, 32)))
    base = open_base(build("sd1"))
    with pytest.raises(BadConfig, match="leaves none"):
        ours(base, "sd1", 0, 0.01)
