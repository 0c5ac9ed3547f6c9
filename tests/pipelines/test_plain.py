"""Adapters on plain diffusers pipelines that the user goes on calling: text to image, image to image, ControlNet."""

from __future__ import annotations

import numpy
import pytest
import torch
from PIL import Image

import studio
from studio.errors import DoesNotFit
from studio.families import open_base
from studio.pipelines import ImagePipeline

CALL = {"num_inference_steps": 4, "guidance_scale": 4.0}


def picture():
    ramp = numpy.linspace(0, 255, 64, dtype=numpy.uint8)
    return Image.fromarray(numpy.stack([numpy.tile(ramp, (64, 1))] * 3, axis=-1))


def text_to_image(base):
    return base, {}


def image_to_image(base):
    from diffusers import StableDiffusionImg2ImgPipeline

    parts = {**base.components, "image_encoder": None, "feature_extractor": None, "safety_checker": None}
    return StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False), {"image": picture(), "strength": 0.9}


def control_net(base):
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

    torch.manual_seed(0)
    net = ControlNetModel.from_unet(base.unet, conditioning_embedding_out_channels=(8, 8, 16, 16))
    with torch.no_grad():  # its last layers start at zero; here they must act
        for block in net.controlnet_down_blocks:
            block.weight.normal_(std=0.02)
    parts = {**base.components, "image_encoder": None, "feature_extractor": None, "safety_checker": None}
    pipe = StableDiffusionControlNetPipeline(**parts, controlnet=net.eval(), requires_safety_checker=False)
    return pipe, {"image": picture()}


@pytest.fixture(scope="module")
def base():
    return open_base("emoji").pipe


@pytest.mark.parametrize("make", [text_to_image, image_to_image, control_net])
@pytest.mark.parametrize("method", ["lora", "lokr"])
def test_an_adapter_acts_and_leaves_no_trace(base, make, method):
    pipe, inputs = make(base)
    pipe.set_progress_bar_config(disable=True)

    def draw():
        generator = torch.Generator().manual_seed(0)
        return pipe("rocket", **inputs, **CALL, generator=generator, output_type="np").images

    before = draw()
    studio.attach(pipe, studio.METHODS[method](rank=4), name="dog", components=["unet", "text_encoder"])
    try:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for tensor in studio.state(pipe, "dog").values():
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.05)
        with torch.no_grad():
            acting = draw()
            with studio.blended(pipe, {}):
                off = draw()
            with studio.blended(pipe, {"dog": 0.5}):
                half = draw()
            studio.bake(pipe)
            baked = draw()
            studio.unbake(pipe)
    finally:
        studio.detach(pipe)
    assert abs(acting - before).max() > 8 / 255
    assert 0 < abs(half - before).mean() < abs(acting - before).mean()
    assert (off == before).all()
    assert abs(baked - acting).max() <= 1 / 255
    assert (draw() == before).all()


def test_an_adapter_that_is_attached_to_one_pipeline_acts_in_others_on_its_modules(base):
    other, inputs = image_to_image(base)
    other.set_progress_bar_config(disable=True)

    def draw():
        return other("rocket", **inputs, **CALL, generator=torch.Generator().manual_seed(0), output_type="np").images

    before = draw()
    studio.attach(base, studio.LoRA(rank=4), name="dog")
    try:
        with torch.no_grad():
            for key, tensor in studio.state(base, "dog").items():
                if key.endswith(".up"):
                    tensor.fill_(0.05)
        assert abs(draw() - before).max() > 8 / 255
    finally:
        studio.detach(base)
    assert (draw() == before).all()


def test_pipelines_that_need_more_than_text_are_not_drawn_from_text_alone(base):
    pipe, _ = control_net(base)
    with pytest.raises(DoesNotFit, match="does not draw from text alone; call it yourself"):
        ImagePipeline.open(pipe).generate("rocket", steps=2)


def test_the_modules_of_an_image_to_image_pipeline_draw_from_text_too(base):
    pipe, _ = image_to_image(base)
    (ours,) = ImagePipeline.open(pipe).generate("rocket", steps=2)
    (same,) = ImagePipeline.open(base).generate("rocket", steps=2)
    assert ours.tobytes() == same.tobytes()
