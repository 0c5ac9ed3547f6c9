"""Pictures of a base that is compiled: adapters, strengths and schedules change, and nothing is compiled anew."""

from __future__ import annotations

import numpy
import pytest
import torch

import studio
from studio.pipelines import ImagePipeline

STRENGTHS = (0.8, studio.Strength(0.9, schedule=[(0, 0), (0.5, 1)]), studio.Strength(blocks={"up_blocks.*": 0.3}))
CONFIGS = {"pair": (studio.LoRA(rank=4), ["unet"]), "product": (studio.LoHa(rank=2), ["unet", "text_encoder"])}


def pixels(image):
    return numpy.asarray(image).astype(int)


@pytest.mark.slow
def test_adapters_in_slots_draw_what_they_draw_by_themselves(tmp_path):
    pipe, plain = ImagePipeline.open("emoji"), ImagePipeline.open("emoji")
    places = studio.slots(pipe, count=2, rank=8, components=["unet", "text_encoder"])
    pipe.pipe.unet = torch.compile(pipe.pipe.unet, backend="eager")
    generator = torch.Generator().manual_seed(0)
    for name, (config, components) in CONFIGS.items():
        studio.attach(plain, config, name=name, components=components)
        with torch.no_grad():
            for tensor in studio.state(plain, name).values():
                tensor += 0.05 * torch.randn(tensor.shape, generator=generator)
        studio.save(plain, tmp_path / f"{name}.safetensors", name=name)

    def check():
        for name in CONFIGS:
            studio.load(pipe, tmp_path / f"{name}.safetensors", name="now", into=places)
            for strength in STRENGTHS:
                (image,) = pipe.generate("tiger", steps=3, blend={places.taken["now"]: strength})
                (alone,) = plain.generate("tiger", steps=3, blend={name: strength})
                assert abs(pixels(image) - pixels(alone)).max() <= 1

    check()  # what differs in kind is compiled here: a picture, a schedule
    with torch._dynamo.config.patch(error_on_recompile=True):
        check()
